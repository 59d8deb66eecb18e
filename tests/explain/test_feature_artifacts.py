"""What a run leaves of its features: of whom, how many, and nothing that names a patient."""

import json
import types

import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.data.base import SourceInfo, Table
from cxrjax.data.images import Images
from cxrjax.evals.eval_splits import Data
from cxrjax.explain import feature_artifacts
from cxrjax.models.features import Features
from cxrjax.report.pages import run_page
from cxrjax.report.run_writer import Writer

CLASSES = ("normal", "opacity")


def images(part, n, patients, size=16):
  """Brighter for the second class; from two sites."""
  rng = np.random.default_rng(len(part))
  of = np.arange(n) % 2
  pixels = np.clip(
    60 + 90 * of[:, None, None, None] + rng.integers(0, 40, (n, size, size, 1)), 0, 255
  )
  table = Table(
    ids=tuple(f"secret-{part}-{i}" for i in range(n)),
    patients=patients,
    sites=tuple(f"site {i % 3}" for i in range(n)),
    labels=np.eye(2, dtype=np.float32)[of],
    ages=np.full(n, np.nan, np.float32),
    sexes=("",) * n,
  )
  return Images(
    pixels.astype(np.uint8), table, SourceInfo("made", part, CLASSES, True, {part: n}, part)
  )


class Encoder:
  """Four numbers an image: the mean of each quarter, which are its patches as well."""

  def grid(self, image_shape):
    return 2, 2

  def encode(self, params, x):
    b, h, w, _ = x.shape
    quarters = x.reshape(b, 2, h // 2, 2, w // 2).mean((2, 4)).reshape(b, 4)
    return Features(params * quarters, jnp.stack([quarters, quarters**2, 1 + quarters], -1), {})


def run_of(data, scale=1.0):
  encoder = Encoder()
  return types.SimpleNamespace(
    evaluators={"probe": types.SimpleNamespace(batch=16, mean=0.5, std=0.25)},
    eval_data={"probe": data},
    mesh=None,
    encoder=encoder,
    encode=lambda params, x: encoder.encode(params, x).cls,
    method=types.SimpleNamespace(encoder_params=lambda params, state: params["scale"]),
  ), {"params": {"scale": jnp.float32(scale)}, "method_state": {}}


def data_of(train, test):
  found = {"train": train, "test": test}
  return Data(found, {k: (k, np.arange(len(v))) for k, v in found.items()}, (), {}, ())


@pytest.fixture
def written(tmp_path, monkeypatch):
  monkeypatch.setattr(feature_artifacts, "TRAIN", 30)
  monkeypatch.setattr(feature_artifacts, "TEST", 20)
  train = images("train", 41, tuple(f"doe-{i // 2}" for i in range(41)))
  # The first test images are of patients who own training images.
  test = images("test", 33, tuple(f"doe-{i}" for i in range(33)))
  run, state = run_of(data_of(train, test))
  with Writer(tmp_path) as writer:
    feature_artifacts.write(run, state, writer)
  with np.load(tmp_path / "figures" / "features.npz") as file:
    return tmp_path, dict(file), json.loads((tmp_path / "run.json").read_text())["features"]


def test_of_whom_and_how_many(written):
  _, arrays, facts = written
  assert (facts["train"], facts["of_train"], facts["of_test"]) == (30, 41, 33)
  assert 20 <= facts["test"] <= 26 and len(arrays["xy"]) == facts["test"]
  assert arrays["embedding"].shape == (facts["test"], 4)
  np.testing.assert_allclose(
    np.linalg.norm(arrays["embedding"].astype(float), axis=1), 1, atol=0.01
  )
  assert arrays["image"].shape == (6, 16, 16) and arrays["near_image"].shape == (6, 5, 16, 16)
  assert arrays["patch_colours"].shape == (6, 2, 2, 3)
  # One of each class in turn.
  assert arrays["group_label"][arrays["query"]].tolist() == [0, 1, 0, 1, 0, 1]
  # The classes are far apart, sites and their order are not.
  shared = {row["by"]: row for row in facts["shared"]}
  assert set(shared) == {"label", "site"}  # ages and sexes are not known
  assert shared["label"]["value"] == 1 and 0.4 < shared["label"]["chance"] < 0.6
  assert (arrays["near_label"] == arrays["group_label"][arrays["query"]][:, None]).all()
  assert shared["site"]["value"] < 0.6
  assert (np.diff(arrays["similarity"], axis=1) <= 1e-6).all()


def test_nothing_names_an_image_or_a_patient(written):
  workdir, arrays, _ = written
  run_page.write(workdir)
  texts = [str(a.tolist()) for a in arrays.values() if a.dtype.kind == "U"]
  texts += [(workdir / name).read_text() for name in ("run.json", "report.html", "MODEL_CARD.md")]
  assert not any("secret" in text or "doe" in text for text in texts)
  assert "could not be drawn" not in texts[-2] and "What the features encode" in texts[-2]


def test_test_images_of_one_class_are_called_by_it(tmp_path):
  """It is no group to tell from others, but it is known."""
  train = images("train", 12, tuple(f"doe-{i}" for i in range(12)))
  test = images("test", 24, tuple(f"roe-{i}" for i in range(24))).take(range(0, 24, 2))
  run, state = run_of(data_of(train, test))
  with Writer(tmp_path) as writer:
    feature_artifacts.write(run, state, writer)
  run_page.write(tmp_path)
  html = (tmp_path / "report.html").read_text()
  assert "test image 1: normal" in html and "label unknown" not in html
  facts = json.loads((tmp_path / "run.json").read_text())["features"]
  assert [row["by"] for row in facts["shared"]] == ["site"]
  assert "map of the test images by site" in html and "images by label" not in html


def test_features_that_are_not_finite_are_left_out(tmp_path):
  part = images("train", 12, ("",) * 12)
  run, state = run_of(data_of(part, images("test", 12, ("",) * 12)), float("nan"))
  with Writer(tmp_path) as writer:
    feature_artifacts.write(run, state, writer)
  assert not (tmp_path / "figures").exists()


def test_without_labelled_training_images_there_is_nothing_to_show(tmp_path):
  test = images("test", 8, ("",) * 8)
  run, state = run_of(Data({"test": test}, {"test": ("test", np.arange(8))}, (), {}, ()))
  with Writer(tmp_path) as writer:
    feature_artifacts.write(run, state, writer)
  assert not (tmp_path / "figures").exists()


def test_large_pictures_are_made_smaller():
  small = feature_artifacts._small(np.full((2, 500, 500, 1), 7, np.uint8))
  assert small.shape == (2, 125, 125) and (small == 7).all()

"""Predictions of finished runs: the numbers of their own evaluation, of whatever files."""

import contextlib
import csv
import dataclasses
import json
import pathlib
import types
from typing import Any

import dicoms
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from films import bad_files, command, table, written
from PIL import Image

import cxrjax
from cxrjax import export, predict
from cxrjax.core import zoo
from cxrjax.core.errors import UserError
from cxrjax.data import open_source
from cxrjax.data.decoding import windowing
from cxrjax.data.sources.phantom import Source
from cxrjax.evals import features
from cxrjax.inference import ensemble, networks
from cxrjax.methods.base import SupervisedMethod
from cxrjax.metrics.roc import auroc
from cxrjax.training import exported_run, restore


def test_numbers_are_those_of_the_runs_own_test_evaluation(net, films):
  folder, truth = films
  found = net.predict(folder, progress=False)
  assert list(found.ids) == sorted(truth) and not found.skipped
  expected = np.array([truth[name] for name in found.ids])
  np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
  np.testing.assert_array_equal(found.called[:, 1], expected[:, 1] >= net.thresholds[1])
  assert net.kind == "classifier" and net.classes == ("normal", "opacity") and net.exclusive
  assert net.temperature != (1.0,) and net.image_size == 32
  np.testing.assert_array_equal(net.probabilities(folder), found.probabilities)


def test_features_are_those_of_the_evaluators(net, films):
  folder, _ = films
  images = [np.asarray(Image.open(f)) for f in sorted(folder.rglob("*.png"))]
  squares = np.stack([windowing.resize(x[..., None], net.image_size) for x in images])
  expected = features.extract(
    lambda params, x: net.run.encoder.encode(params, x).cls,
    net.run.encoder_params,
    squares,
    mean=net.mean,
    std=net.std,
  )
  np.testing.assert_allclose(net.embed(folder), expected, atol=1e-5)
  found = net.predict(images, embed=True, progress=False)
  np.testing.assert_allclose(found.embeddings, expected, atol=1e-5)
  assert found.ids[:2] == ("0", "1")


def test_findings_have_a_temperature_and_a_threshold_each(net):
  method = dataclasses.replace(
    net.run.method, labels=dataclasses.replace(net.run.method.labels, exclusive=False)
  )
  judged = {"temperature": [2.0, 0.5], "thresholds": [0.3, 0.6]}
  run = dataclasses.replace(
    net.run, method=method, facts=net.run.facts | {"evaluation": {"test": {"trained": judged}}}
  )
  found = networks.Network(run, 32)
  image = Source(split="test", n=1, size=40)[0].image
  x = jnp.asarray((windowing.resize(image, 32)[None] / 255 - net.mean) / net.std)
  own = np.asarray(jax.jit(method.predict)(found.params, x.astype(jnp.float32)), np.float64)
  logits = np.log(own / (1 - own))
  expected = 1 / (1 + np.exp(-logits / [2.0, 0.5]))
  got = found.predict([image], progress=False)
  np.testing.assert_allclose(got.probabilities, expected, atol=1e-5)
  np.testing.assert_array_equal(got.called, expected >= [0.3, 0.6])
  assert list(got.to_dict()) == [
    "id",
    "probability_normal",
    "probability_opacity",
    "called_normal",
    "called_opacity",
    "note",
  ]
  assert "called from normal 0.3, opacity 0.6 on" in "\n".join(predict.describe(found, "x"))


def test_without_a_test_evaluation_it_says_so(net):
  run = dataclasses.replace(net.run, facts=net.run.facts | {"evaluation": {}})
  bare = networks.Network(run, 32)
  assert bare.temperature == (1.0,) and bare.thresholds is None
  assert "not calibrated" in predict.describe(bare, "x")[1]
  image = Source(split="test", n=1, size=32)[0].image
  expected = jax.jit(net.run.method.predict)(net.params, net.normalised(image[None]))
  np.testing.assert_allclose(bare.probabilities([image]), expected, atol=1e-6)


def test_an_ensemble_averages_calibrated_probabilities(net, tuned, films, tmp_path):
  folder, _ = films
  params = jax.tree.map(lambda x: 1.5 * x, net.run.params)
  facts = json.loads(json.dumps(net.run.facts))
  facts["evaluation"]["test"]["trained"] |= {"temperature": [2.0], "thresholds": [0.7, 0.3]}
  other = networks.Network(dataclasses.replace(net.run, params=params, facts=facts), net.image_size)
  both = ensemble.Ensemble.of([net, other], "workdir")
  found = both.predict(folder, embed=True, progress=False)
  one, two = (n.predict(folder, embed=True, progress=False) for n in (net, other))
  assert np.abs(one.probabilities - two.probabilities).max() > 0.01
  np.testing.assert_allclose(
    found.probabilities, (one.probabilities + two.probabilities) / 2, atol=1e-6
  )
  np.testing.assert_allclose(
    found.embeddings, np.concatenate([one.embeddings, two.embeddings], 1), atol=1e-5
  )
  cut = (net.thresholds[1] + 0.3) / 2
  np.testing.assert_array_equal(found.called[:, 1], found.probabilities[:, 1] >= cut)
  maps = both.explain(sorted(folder.rglob("*.png"))[:2], "attention")
  assert maps.shape == (2, 32, 32) and np.isfinite(maps).all()
  assert both.fingerprint not in (net.fingerprint, other.fingerprint)
  twice = cxrjax.load([tuned, tuned])
  assert twice.fingerprint == cxrjax.load(f"{tuned},{tuned}").fingerprint
  lines = command(f"{tuned},{tuned}", folder, out=tmp_path / "out", embed=True)
  assert lines[0].startswith("ensemble of 2 (classifier)")
  assert len(table(tmp_path / "out")) == len(found.ids)


def test_what_is_no_ensemble(net, runs):
  with pytest.raises(UserError, match=r"their kinds are classifier and encoder"):
    ensemble.Ensemble.of([net, networks.load("runs/pre")], "--workdir")
  with pytest.raises(UserError, match="export its runs one by one"):
    export.write(f"{net.run.workdir},{net.run.workdir}", "x.npz")


def test_a_run_handed_on_is_the_run_in_half_precision(net, tuned, films, tmp_path):
  folder, _ = films
  place = tmp_path / "handed on"
  export.write(str(tuned), str(place), "run")
  assert {p.name for p in place.iterdir()} == {
    "config.json",
    "run.json",
    "network.safetensors",
    "manifest.json",
    "MODEL_CARD.md",
  }
  assert all(p.stat().st_mode & 0o044 for p in place.iterdir())
  copy = networks.load(place)
  found, own = (n.predict(folder, progress=False) for n in (copy, net))
  np.testing.assert_allclose(found.probabilities, own.probabilities, atol=2e-3)
  assert copy.temperature == net.temperature and copy.thresholds == net.thresholds
  words = "".join(p.read_text() for p in place.glob("*.json"))
  assert str(tmp_path) not in words and "patient" not in words.replace("shared_patients", "")

  assert "is whole" in export.check(str(place))
  for name in ("network.safetensors", "run.json", "config.json"):
    data = (place / name).read_bytes()
    at = data.index(b"0.", len(data) // 2) if name != "network.safetensors" else len(data) - 9
    (place / name).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(UserError, match=f"damaged.*checksum of {name} does not match"):
      restore.restore(place, "workdir")
    with pytest.raises(UserError, match="damaged"):
      export.check(str(place))
    (place / name).write_bytes(data)


def test_what_is_handed_on_names_no_place_of_this_machine():
  path = "/home/somebody/Smith, John/films"
  data = {
    "source": f"folder:{path}",
    "cache_dir": path,
    "masks": f"{path}/run",
    "options": {"csv": f"{path}/labels.csv", "manual_dir": path},
  }
  part = {"data": {"name": f"folder:{path}", "options": {"manual_dir": "~/archives"}}}
  config = exported_run._config(
    {"data": data, "init": {"path": path}, "evals": {"test": part}, "views": {"mean": 0.5}}
  )
  facts = exported_run._facts({"steps": 3, "data": {"train": {"name": f"folder:{path}", "n": 4}}})
  text = json.dumps([config, facts])
  assert "somebody" not in text and "archives" not in text
  assert config["data"]["source"] == facts["data"]["train"]["name"] == "folder:films"
  assert config["views"] == {"mean": 0.5} and config["data"]["options"]["csv"] == "labels.csv"


@dataclasses.dataclass(frozen=True)
class Averaged(SupervisedMethod):
  """A classifier that is evaluated by a moving average of its parameters."""

  encoder: Any
  clock: Any

  def init(self, key, batch_spec): ...

  def loss(self, params, state, batch, key, step): ...

  def predict(self, params, images): ...

  def network_params(self, params, state):
    return state["average"]


def test_what_of_a_state_only_training_needs():
  leaves = {"encoder": {"a": 0.0}, "head": {"b": 0.0}}
  state = {"params": leaves, "method_state": {"average": jax.tree.map(float, leaves), "stats": {}}}
  method = Averaged(encoder=None, clock=None)
  assert exported_run.network_arrays(method, state) == {
    "extra/average/encoder/a",
    "extra/average/head/b",
  }
  encoder_alone = types.SimpleNamespace(encoder_params=method.encoder_params)
  assert exported_run.network_arrays(encoder_alone, state) == {"extra/average/encoder/a"}


def test_networks_of_the_package_by_name():
  assert zoo.resolve_workdir("runs/a") == pathlib.Path("runs/a")
  with pytest.raises(
    UserError, match=r"workdir='zoo:lung' is not a network that comes with the package"
  ):
    zoo.resolve_workdir("zoo:lung")
  for name in zoo.names():
    place = zoo.resolve_workdir(f"zoo:{name}")
    assert (place / "MODEL_CARD.md").is_file()
    assert sum(file.stat().st_size for file in place.iterdir()) < 6e6


def test_the_lungs_of_films_that_come_with_the_package():
  source = open_source("mini", split="test")
  found = cxrjax.load("zoo:lungs").predict(
    [source[i].image[..., 0] for i in range(0, 400, 40)], progress=False
  )
  for mask in found.masks:
    assert mask.shape == (64, 64) and 0.1 < mask.mean() < 0.5
    # Lungs on both sides, and the spine between them.
    assert min(mask[:, :28].sum(), mask[:, 36:].sum()) > 100 and mask[30:, 30:34].mean() < 0.5


def test_pneumonia_in_films_that_come_with_the_package():
  """Of the official test part, which it has not learnt from; a quarter of its pixels are left."""
  source = open_source("mini", split="test")
  rows = range(0, 400, 8)
  network = cxrjax.load("zoo:pneumonia-children")
  found = network.predict([source[i].image[..., 0] for i in rows], progress=False)
  truth = source.table.labels[list(rows), source.info.classes.index("pneumonia")]
  assert network.classes == ("normal", "pneumonia") and network.temperature[0] < 1
  assert auroc(found.probabilities[:, 1].astype(float), truth).value > 0.9
  card = (zoo.resolve_workdir("zoo:pneumonia-children") / "MODEL_CARD.md").read_text()
  assert "Research use only" in card and "624 test images" in card


def test_three_exclusive_classes_are_called_by_the_likeliest(net):
  labels = dataclasses.replace(net.run.method.labels, classes=("a", "b", "c"))
  method = dataclasses.replace(net.run.method, labels=labels)
  facts = {"evaluation": {"test": {"trained": {"temperature": [2.0]}}}, "data": {"train": {}}}
  three = networks.Network(dataclasses.replace(net.run, method=method, facts=facts), 32)
  assert three.thresholds is None
  p = np.array([[0.2, 0.5, 0.3], [0.4, 0.3, 0.3]])
  assert three.call(three.calibrated(p.astype(np.float32))).tolist() == [
    [False, True, False],
    [True, False, False],
  ]
  assert three.describe()["temperature"] == [2.0]


def test_what_both_networks_have_in_common_is_computed_once(net):
  """Features beside probabilities cost no second pass."""
  x = jnp.zeros((4, 32, 32, 1))
  flops = [
    jax.jit(function).lower(net.params, x).compile().cost_analysis()["flops"]
    for function in (net.outputs, net.outputs_and_features)
  ]
  assert flops[1] < 1.05 * flops[0]


def test_explained(net, films):
  folder, _ = films
  maps = net.explain(folder / "a", "attention")
  assert maps.shape == (len(list((folder / "a").iterdir())), 32, 32) and (maps >= 0).all()
  one = net.explain(folder / "a" / "00.png", "gradcam", "opacity")
  np.testing.assert_allclose(one, net.explain(folder / "a" / "00.png", "gradcam", 1))
  with pytest.raises(UserError, match="target='opcity' is not a class; did you mean 'opacity'"):
    net.explain(folder, target="opcity")
  with pytest.raises(UserError, match="method='cam' is not known"):
    net.explain(folder, "cam")


def test_masks_lie_over_their_images(runs):
  """At the image's own size, whatever was done to make it square."""
  images = [
    np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for shape in ((40, 40), (64, 48), (32, 90))
  ]
  lungs = cxrjax.load("runs/lungs")
  predicted = jax.jit(lungs.outputs)
  for fit in ("squash", "pad", "crop"):
    lungs.run.config["data"]["fit"] = fit
    found = lungs.predict(images, progress=False)
    assert [m.shape for m in found.masks] == [x.shape for x in images]
    assert found.probabilities is None and found.to_dict().keys() == {"id", "lung_share", "note"}
    assert all(m.any() and not m.all() for m in found.masks)
    # Put back into the square, a mask is what the network called lungs there.
    square = windowing.resize(images[1][..., None], 32, fit)
    p = np.asarray(predicted(lungs.params, lungs.normalised(square[None]))["mask"])
    own = lungs.predict([square[..., 0]], progress=False).masks[0]
    np.testing.assert_array_equal(own, lungs.lungs(p[0, ..., 0]))  # at the network's own size
    again = windowing.resize(255 * found.masks[1][..., None], 32, fit)[..., 0] >= 128
    inside = windowing.resize(np.full((64, 48, 1), 255, np.uint8), 32, fit)[..., 0] > 0
    assert ((again == lungs.lungs(p[0, ..., 0])) | ~inside).mean() > 0.9, fit
  assert cxrjax.load("runs/pre").kind == "encoder"


# Files of all kinds.


def test_the_same_radiograph_in_any_format(net, tmp_path):
  image = Source(split="test", n=1, size=40)[0].image[..., 0].copy()
  image[0, :2] = 0, 255  # so that a window from the pixels is the whole range
  written(tmp_path / "x", image)
  found = net.predict(tmp_path / "x", progress=False)
  assert len(found) == 6 and not found.skipped
  near = np.abs(found.probabilities - net.probabilities([image])).max(1)
  assert near[[i for i, name in enumerate(found.ids) if name != "wide.tif"]].max() < 2e-3
  assert near.max() < 0.05  # a TIFF brings no window; its darkest and brightest are cut
  found.to_csv(tmp_path / "x.csv")
  text = (tmp_path / "x.csv").read_text(encoding="utf-8")
  assert [row["id"] for row in csv.DictReader(text.splitlines())] == list(found.ids)
  assert not any(secret in text for secret in dicoms.SECRETS.values())


def test_16_bits_stay_16_bits_where_the_run_had_them(net, tmp_path):
  facts = json.loads(json.dumps(net.run.facts))
  facts["data"]["train"]["bits"] = 16
  deep = networks.Network(dataclasses.replace(net.run, facts=facts), 32)
  assert deep.look().bits == 16 and net.look().bits == 8
  image = Source(split="test", n=1, size=40)[0].image[..., 0]
  np.testing.assert_allclose(deep.probabilities([image]), net.probabilities([image]), atol=2e-3)


def test_bad_images_are_listed_and_the_rest_is_predicted(net, tuned, films, tmp_path):
  folder, truth = films
  reasons = bad_files(tmp_path / "bad")
  said = command(tuned, folder, tmp_path / "bad", out=tmp_path / "out")
  assert len(table(tmp_path / "out")) == len(truth)
  skipped = dict(csv.reader((tmp_path / "out" / "skipped.csv").read_text().splitlines()))
  assert skipped.pop("id") == "reason" and len(skipped) == 6
  for name, why in reasons.items():
    assert why in skipped[f"{tmp_path}/bad/{name}"], name
  assert any("6 could not be used" in line for line in said)
  assert any("blank.png: it is blank" in line for line in said)
  both = net.predict([folder, tmp_path / "bad"], progress=False)
  assert dict(both.skipped) == skipped and len(both) == len(truth)
  with pytest.raises(UserError, match=r"/bad/\w+\.\w+: it .*on_bad_image='skip'"):
    net.predict([folder, tmp_path / "bad"], progress=False, on_bad_image="error")
  with pytest.raises(UserError, match=r"all 6 images are bad; the first: blank\.png: it is blank"):
    net.predict(tmp_path / "bad", progress=False)


def test_names_are_unique(net, films, tmp_path):
  folder, truth = films
  image = folder / "a" / "00.png"
  for name in ("one", "two"):
    (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / name / "deep" / "x.png").write_bytes(image.read_bytes())
  with contextlib.chdir(tmp_path):
    found = net.predict(["one", "two/", str(image), "one", "one/deep/x.png"], progress=False)
  assert found.ids == ("one/deep/x.png", "two/deep/x.png", str(image))
  np.testing.assert_allclose(found.probabilities, np.tile(truth["a/00.png"], (3, 1)), atol=1e-6)


@pytest.mark.parametrize(
  ("images", "message"),
  [
    ([], "no images are given"),
    ("nowhere", "nowhere: there is no such file or folder"),
    (np.zeros((8, 8)), r"an array of shape \(8, 8\) is not a list of images"),
    ([np.zeros((8, 8))], "image 0 is an array of float64; give gray levels as uint8"),
    ([np.zeros((8, 8, 3), np.uint8)], r"image 0 has the shape \(8, 8, 3\)"),
    (["x.png", np.zeros((8, 8), np.uint8)], "paths and arrays cannot be mixed"),
  ],
)
def test_what_is_no_image(net, images, message):
  with pytest.raises(UserError, match=message):
    net.predict(images, progress=False)

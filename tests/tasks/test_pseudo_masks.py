"""A segmentation run, and its masks in another run's batches."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small import lines

from cxrjax.config.config_files import load_config
from cxrjax.core.errors import UserError
from cxrjax.data.loading.decoded_cache import load_images
from cxrjax.data.sources.phantom import Source
from cxrjax.inference import networks, pseudo_masks
from cxrjax.metrics import intervals, segmentation
from cxrjax.tasks import train
from cxrjax.tasks.training_run import Run
from cxrjax.training.restore import Restored, restore


def config_of(name, arg="tiny", **model):
  config = load_config(name)(arg).to_dict()
  config["model"] |= {"width": 32, "depth": 2, "heads": 2, **model}
  return config


@pytest.fixture(scope="module")
def lungs(tmp_path_factory):
  """The workdir of a segmentation run that ended, whose masks are said to be worse at its end."""
  workdir = tmp_path_factory.mktemp("segment") / "run"
  config = config_of(
    "segment", "tiny,method.decoder=linear,lr=0.3,duration=60 steps,eval_every=20 steps"
  )
  real, judged = Run.evaluate, []

  def evaluate(self, name, state):
    result = real(self, name, state)
    judged.append((name, int(state["step"])))
    if judged[-1] == ("validation", 60):
      result.metrics["dice"] = intervals.Interval(0.1, 0.0, 0.2, 48, "made up")
      result.scores["dice"] = 0.1
    return result

  said = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Run, "evaluate", evaluate)
    assert train.run(config, workdir, say=said.append) == 0
  assert judged == [*(("validation", step) for step in (0, 20, 40, 60)), ("test", 40)]
  assert "Mean training mask" in "\n".join(said)
  return workdir


@pytest.fixture(scope="module")
def films(tmp_path_factory):
  """A folder of radiographs without masks."""
  folder = tmp_path_factory.mktemp("films")
  source = Source(split="test", n=16, size=40)
  for i in range(16):
    Image.fromarray(source[i].image[..., 0]).save(folder / f"{i:02d}.png")
  return folder


def test_the_checkpoint_is_chosen_on_validation_and_judged_on_test_once(lungs):
  found = lines(lungs, "eval")
  scores = {
    r["step"]: r["metrics"]["dice"]["value"]
    for r in found
    if (r["evaluator"], r["encoder"]) == ("validation", "trained")
  }
  assert sorted(scores) == [20, 40, 60] and max(scores, key=scores.get) == 40
  test = [r for r in found if r["evaluator"] == "test" and r["encoder"] == "trained"]
  facts = json.loads((lungs / "run.json").read_text())
  assert [r["step"] for r in test] == [40] == [facts["chosen"]["step"]]
  assert facts["chosen"]["evaluators"] == ["test"]
  assert facts["data"]["test"]["split"] == "test"
  assert facts["data"]["validation"]["split"] == "val"
  assert facts["data"]["train"]["lung_masks"] == {"published": 48, "none": 0}
  assert restore(lungs, "config.x").step == 40
  page = (lungs / "report.html").read_text()
  assert "could not be drawn" not in page and 'id="masks"' in page


def test_a_restored_run_predicts_what_the_run_did(lungs):
  found = restore(lungs, "config.data.masks")
  arrays = np.load(lungs / "figures" / "scores_test_trained.npz")
  x = jnp.asarray((arrays["image"][..., None] / np.float32(255) - 0.5) / 0.25)
  params = found.method.network_params(found.params, found.method_state)
  called = np.asarray(found.method.predict(params, x))[..., 0] >= 0.5
  keep = found.method.components
  called = [segmentation.largest(m, keep) for m in called]
  np.testing.assert_array_equal(called, arrays["predicted"])
  assert set(found.encoder_params) == set(found.params["encoder"])
  assert found.encoder.encode(found.encoder_params, x).cls.shape == (len(x), 32)


def test_rgmim_sees_predicted_masks(lungs, films, tmp_path):
  config = config_of(
    "rgmim", f"tiny,data=folder:{films},split=all,eval_data=none,data.masks={lungs}"
  )
  config["data"]["cache_dir"] = str(tmp_path)
  run = Run(config, progress=False)
  assert run.describe()["data"]["train"]["lung_masks"] == {
    "published": 0,
    f"predicted by {lungs}": 16,
  }
  batch = run.loader.fetch(run.loader.data, run.loader[0])
  rows = np.asarray(batch["index"])
  drawn = pseudo_masks.Segmenter.load(str(lungs)).masks(
    load_images(run.training_data.source, 32, cache_dir=tmp_path)
  )
  np.testing.assert_array_equal(batch["mask"], drawn[rows])
  # The truth is known, as these are phantoms: they are masks of lungs, not of anything.
  truth = load_images(Source(split="test", n=16, size=40), 32, cache_dir=tmp_path).masks
  both = (np.asarray(truth) & drawn).sum((1, 2, 3))
  assert (2 * both / (np.asarray(truth).sum((1, 2, 3)) + drawn.sum((1, 2, 3)))).mean() > 0.7
  views = run.train_step.views(batch, jax.random.key(0))
  assert views["has_mask"].all() and views["global_mask"].any((0, 2, 3, 4)).all()


def test_masks_are_predicted_once_and_anew_by_another_run(lungs, films, tmp_path, monkeypatch):
  from cxrjax.data import open_source

  images = load_images(open_source(f"folder:{films}", split="all"), 32, cache_dir=tmp_path)
  real, calls = pseudo_masks.Segmenter.masks, []
  monkeypatch.setattr(
    pseudo_masks.Segmenter, "masks", lambda self, *a: calls.append(1) or real(self, *a)
  )

  def fill(**options):
    return pseudo_masks.fill(
      images, str(lungs), cache_dir=tmp_path, progress=False, **options
    ).masks

  first = np.array(fill())  # a copy: a file that is cut short takes those down who look into it
  (kept,) = tmp_path.glob("masks-*.npy")
  assert len(calls) == 1
  np.testing.assert_array_equal(fill(), first)
  assert len(calls) == 1
  fill(look="padded")
  assert len(calls) == 2
  monkeypatch.setattr(Restored, "fingerprint", "another")
  fill()
  assert len(calls) == 3
  kept.write_bytes(kept.read_bytes()[:100])
  monkeypatch.undo()
  np.testing.assert_array_equal(fill(), first)
  assert not list(tmp_path.glob("*.tmp-*"))


def test_a_mask_of_the_datas_own_stays(lungs, tmp_path):
  images = load_images(Source(split="test", n=6, size=32), 32, cache_dir=tmp_path)
  own = np.array(images.masks)
  own[[1, 4]] = 0  # two have none
  images = dataclasses.replace(images, masks=own)
  assert pseudo_masks.count(images) == 4
  filled = pseudo_masks.fill(images, str(lungs), cache_dir=tmp_path, progress=False)
  kept = [0, 2, 3, 5]
  np.testing.assert_array_equal(filled.masks[kept], own[kept])
  assert filled.masks[[1, 4]].any((1, 2, 3)).all()
  assert pseudo_masks.count(filled) == 6


def test_large_and_16_bit_images_are_shown_to_the_network_as_it_learnt(lungs, tmp_path):
  source = Source(split="test", n=4, size=64)
  segmenter = pseudo_masks.Segmenter.load(str(lungs))
  assert segmenter.network.image_size == 32
  eight, wide = (
    segmenter.masks(load_images(source, 64, cache_dir=tmp_path, bits=bits)) for bits in (8, 16)
  )
  assert eight.shape == (4, 64, 64, 1) and set(np.unique(eight)) <= {0, 1}
  assert (eight != wide).mean() < 0.01
  truth = np.asarray(load_images(source, 64, cache_dir=tmp_path).masks)
  assert (2 * (truth & eight).sum() / (truth.sum() + eight.sum())) > 0.7


def test_what_is_no_finished_segmentation_run(lungs, tmp_path, monkeypatch):
  with pytest.raises(UserError, match=r"config\.data\.masks='.*nothing' holds no run"):
    pseudo_masks.Segmenter.load(str(tmp_path / "nothing"))
  (tmp_path / "half").mkdir()
  for name in ("config.json", "run.json"):
    text = (lungs / name).read_text().replace('"finished"', '"stopped: SIGTERM"')
    (tmp_path / "half" / name).write_text(text)
  with pytest.raises(UserError, match=r"holds an unfinished run \(status: 'stopped: SIGTERM'\)"):
    pseudo_masks.Segmenter.load(str(tmp_path / "half"))
  (tmp_path / "half" / "run.json").write_text((lungs / "run.json").read_text())
  with pytest.raises(UserError, match=r"half' cannot be restored: .*checkpoints does not exist"):
    pseudo_masks.Segmenter.load(str(tmp_path / "half"))
  other = dataclasses.replace(restore(lungs, "x"), method=types.SimpleNamespace())
  other.config["method"]["name"] = "cxrjax.methods.dino"
  monkeypatch.setattr(networks, "restore", lambda workdir, key: other)
  with pytest.raises(
    UserError, match=r"config\.data\.masks='.*' is a run of dino, which does not predict"
  ):
    pseudo_masks.Segmenter.load(str(lungs))


@pytest.mark.parametrize(
  ("value", "found"),
  [
    ("", (False, "")),
    (False, (False, "")),
    (None, (False, "")),
    ("own", (True, "")),
    (True, (True, "")),
    ("True", (True, "")),
    ("runs/lungs", (True, "runs/lungs")),
  ],
)
def test_what_the_config_may_say(value, found):
  assert pseudo_masks.parse_option(value) == found

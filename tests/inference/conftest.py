"""A classifier, and its test images as files."""

import json

import films as given
import finished
import numpy as np
import pytest
from PIL import Image

import cxrjax
from cxrjax.config.config_files import load_config
from cxrjax.data import open_source
from cxrjax.inference import networks

LOADED = {}


@pytest.fixture(scope="session")
def tuned(tmp_path_factory):
  """The workdir of a classifier, judged on test images."""
  config = load_config("finetune")(
    "tiny,evals.validation.threshold_for=balanced_accuracy"
  ).to_dict()
  config["model"] |= {"width": 32, "depth": 1, "heads": 2}
  workdir = tmp_path_factory.mktemp("tuned") / "run"
  finished.network(workdir, config)
  return workdir


@pytest.fixture
def net(tuned, runs):
  return cxrjax.load(tuned)


@pytest.fixture(scope="session")
def films(tuned, tmp_path_factory):
  """The run's test images as files, in two folders, and what the run has found of each."""
  folder = tmp_path_factory.mktemp("films")
  config = json.loads((tuned / "config.json").read_text())
  options = dict(config["evals"]["test"]["data"])
  options.pop("val")
  source = open_source(
    options.pop("name"),
    split=options.pop("test"),
    **{k: v for k, v in options.items() if k not in ("train", "subset", "split_seed")},
  )
  found = np.load(tuned / "figures" / "scores_test_trained.npz")
  stored = dict(zip(found["id"].tolist(), found["probability"], strict=True))
  truth = {}
  for i in range(len(source)):
    record = source[i]
    name = f"{'ab'[i % 2]}/{i:02d}.png"
    (folder / name).parent.mkdir(exist_ok=True)
    Image.fromarray(record.image[..., 0]).save(folder / name)
    truth[name] = stored[record.id]
  return folder, truth


@pytest.fixture(autouse=True)
def runs(monkeypatch):
  """Every run is loaded, and so compiled, once; `runs/pre` and `runs/lungs` are not on disk."""
  restore, load = networks.restore, networks.load
  made = {"runs/pre": given.encoder_run(), "runs/lungs": given.lung_run()}

  def loaded(workdir, key="workdir", image_size=None, trust=()):
    if str(workdir) not in LOADED:
      found = load(workdir, key, image_size)
      if str(workdir) in made:
        return found
      LOADED[str(workdir)] = found
    return LOADED[str(workdir)]

  monkeypatch.setattr(
    networks, "restore", lambda workdir, key: made.get(workdir) or restore(workdir, key)
  )
  monkeypatch.setattr(networks, "load", loaded)
  return made

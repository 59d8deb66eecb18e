"""Training keeps away from the patients and images that judge it."""

import json
import types

import numpy as np
import pytest
from small import tiny

from cxrjax.core.errors import UserError
from cxrjax.data import hashes, leaks, load_images, open_source, splits
from cxrjax.evals.parts import Data
from cxrjax.tasks import guard, start, train

PHANTOM = {"n": 24, "size": 32}


def judged(test):
  """What an evaluator has loaded, as far as the guard looks."""
  images = load_images(test, 32, progress=False)
  return {"probe": Data(
    {"test": images}, {"test": ("test", np.arange(len(images)))}, (), {}, ())}


def test_training_on_the_test_split_is_refused():
  test = open_source("phantom", split="test", **PHANTOM)
  clean = open_source("phantom", split="train", **PHANTOM)
  assert guard.shared_patients(clean, judged(test), "error") == [
    "probe: no patient of the test images is in the training data"]
  everything = open_source("phantom", split="all", **PHANTOM)
  with pytest.raises(UserError, match=r"test split are in the training data phantom \[all\]"):
    guard.shared_patients(everything, judged(test), "error")
  people = len(set(test.table.patients))
  assert guard.shared_patients(everything, judged(test), "allow") == [
    f"probe: {people} of {people} test patients are in the training data"]
  with pytest.raises(UserError, match=r"shared_patients='maybe' is no option; valid: allow, error"):
    guard.shared_patients(clean, judged(test), "maybe")


def test_a_pool_that_holds_the_test_split_is_refused():
  test = open_source("phantom", split="test", **PHANTOM)
  parts = tuple({"source": "phantom", "split": split} for split in ("train", "test"))
  pool = open_source(parts, **PHANTOM)
  with pytest.raises(UserError, match="would flatter"):
    guard.shared_patients(pool, judged(test), "error")


def test_patients_are_remembered_without_their_names(tmp_path):
  source = open_source("phantom", split="train", **PHANTOM)
  guard.remember(source, tmp_path)
  kept = np.load(tmp_path / guard.FILE)
  keys, secret = splits.patient_keys(source), hashes.patient_key()
  assert set(leaks.overlap(kept, keys, secret)) == set(keys)
  other = splits.patient_keys(open_source("phantom", split="test", **PHANTOM))
  assert leaks.overlap(kept, other, secret) == ()
  raw = (tmp_path / guard.FILE).read_bytes()
  assert not any(p.encode() in raw for p in source.table.patients if len(p) > 3)


def test_patients_of_the_run_that_is_begun_with(tmp_path, monkeypatch):
  test = open_source("phantom", split="test", **PHANTOM)
  guard.remember(test, tmp_path)
  with pytest.raises(UserError, match=r"patients of config.evals.probe's test split were learnt"):
    start.seen_before(str(tmp_path), judged(test), "error")
  people = len(set(test.table.patients))
  assert start.seen_before(str(tmp_path), judged(test), "allow") == [
    f"probe: {people} of its test patients are among those that {tmp_path} learnt from"]
  monkeypatch.setenv(hashes.KEY, "of another machine")
  said, = start.seen_before(str(tmp_path), judged(test), "error")
  assert said.startswith(f"probe: whether {tmp_path} learnt from its test patients cannot be told")
  (tmp_path / guard.FILE).write_bytes(b"\x93NUMPY")
  with pytest.raises(UserError, match=r"patients.npy is damaged"):
    start.seen_before(str(tmp_path), judged(test), "error")


def test_near_duplicates_of_test_images_are_named():
  test = open_source("phantom", split="test", **PHANTOM)
  whole = open_source("phantom", split="all", **PHANTOM)
  loader = types.SimpleNamespace(images=load_images(whole, 32, progress=False))
  found, = guard.near_duplicates(loader, judged(test), 0.99)
  assert found.startswith(f"probe: {len(test)} of {len(test)} test images are near-duplicates")
  assert guard.near_duplicates(loader, judged(test), 0) == []
  streamed, = guard.near_duplicates(types.SimpleNamespace(images=None), judged(test), 0.95)
  assert "streamed" in streamed and "configs/audit.py" in streamed


@pytest.mark.full
def test_a_run_on_its_test_images_stops_before_it_starts(tmp_path):
  config = tiny(data__split="all", duration="2 steps")
  config["evals"] = {"probe": {
    "name": "cxrjax.evals.probe", "every": "2 steps", "size": 32, "ks": (1,), "mean": 0.5,
    "std": 0.25, "data": {"name": "phantom", **config["data"]["options"]}}}
  with pytest.raises(UserError, match=r"config\.evals\.probe's test split are in the train"):
    train.run(config, tmp_path / "run", say=lambda s: None)
  assert not (tmp_path / "run" / "checkpoints").exists()
  config["data"]["shared_patients"] = "allow"
  said = []
  train.run(config, tmp_path / "run", say=said.append)
  assert any("test patients are in the training data" in s for s in said)
  facts = json.loads((tmp_path / "run" / "run.json").read_text())
  assert any("test patients are in" in note for note in facts["data"]["train"]["notes"])
  assert (tmp_path / "run" / guard.FILE).exists()

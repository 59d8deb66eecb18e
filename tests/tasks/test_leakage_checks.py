"""Training keeps away from the patients and images that judge it."""

import json
import types

import numpy as np
import pytest
from PIL import Image
from small import tiny

from cxrjax.core.errors import UserError
from cxrjax.data import load_images, open_source
from cxrjax.data.sources import file_hashes
from cxrjax.data.splits import leakage, patient_splits
from cxrjax.evals.eval_splits import Data
from cxrjax.tasks import leakage_checks, train
from cxrjax.training import learnt_from

PHANTOM = {"n": 24, "size": 32}


def judged(test):
  """What an evaluator has loaded, as far as the guard looks."""
  images = load_images(test, 32, progress=False)
  return {"probe": Data({"test": images}, {"test": ("test", np.arange(len(images)))}, (), {}, ())}


def streamed():
  """A loader that keeps no decoded images."""
  return types.SimpleNamespace(images=None)


def decoded(source, size=40):
  return types.SimpleNamespace(images=load_images(source, size, progress=False))


@pytest.fixture
def films(tmp_path):
  """Phantoms of 12 patients, two images each, as files, and a table that names the patients."""
  drawn = load_images(open_source("phantom", split="train", n=24, size=80), 80, progress=False)
  rows = ["path,label,patient,split"]
  for k, image in enumerate(np.asarray(drawn.pixels)[..., 0]):
    (tmp_path / "films").mkdir(exist_ok=True)
    Image.fromarray(image).save(tmp_path / "films" / f"{k:02d}.png")
    rows.append(f"{k:02d}.png,{'ab'[k % 2]},p{k // 2},{'test' if k < 8 else 'train'}")
  (tmp_path / "films" / "list.csv").write_text("\n".join(rows))
  return tmp_path / "films"


def test_nothing_is_said_of_patients_whom_nobody_names(films):
  train, test = (open_source(f"folder:{films}", split=split) for split in ("train", "test"))
  (said,) = leakage_checks.shared_patients(train, judged(test), "error")
  assert said.startswith("probe: patients are unknown for ") and said.endswith(
    "so whether a patient of the test images is in the training data could not be checked"
  )
  assert f"{len(test)} of {len(test)} test images" in said
  known = [
    open_source(f"folder:{films}", split=split, csv="list.csv") for split in ("train", "test")
  ]
  assert leakage_checks.shared_patients(known[0], judged(known[1]), "error") == [
    "probe: no patient of the test images is in the training data"
  ]
  # The one names them, the other does not; both do, each in its own way.
  (said,) = leakage_checks.shared_patients(train, judged(known[1]), "error")
  assert "training images, so whether" in said and "could not be checked" in said
  other = open_source(f"folder:{films}", split="train", patient_regex=r"\d")
  (said,) = leakage_checks.shared_patients(other, judged(known[1]), "error")
  assert "name patients in different ways, so whether" in said and said.endswith("not be checked")


def test_images_that_a_pretraining_saw_under_other_names_are_found(films, tmp_path):
  """Pretrained on a folder alone, judged by a table that moves its images to other splits."""
  workdir = tmp_path / "run"
  workdir.mkdir()
  pretraining = open_source(f"folder:{films}", split="all")
  learnt_from.remember(decoded(pretraining), pretraining, workdir)
  for file in sorted(films.glob("*.png")):  # other names, another format
    Image.open(file).save(films / f"case{file.stem}.jpg", quality=95)
    file.unlink()
  table = (films / "list.csv").read_text().replace(".png", ".jpg").replace("\n", "\ncase")
  (films / "list.csv").write_text(table)
  test = open_source(f"folder:{films}", split="test", csv="list.csv")
  with pytest.raises(
    UserError,
    match=r"8 of the 8 images of config\.evals\.probe's test split are "
    r"among those that config\.init\.path=.*data\.csv, data\.patient_column",
  ):
    leakage_checks.seen_in_pretraining(str(workdir), judged(test), "error")
  patients, images = leakage_checks.seen_in_pretraining(str(workdir), judged(test), "allow")
  assert "could not be checked" in patients and "patients are unknown for 24 of 24" in patients
  assert images == f"probe: 8 of 8 test images are among those that {workdir} learnt from"


def test_what_a_pretraining_did_not_see_is_said_to_be_unseen_only_where_it_was_compared(
  films, tmp_path
):
  train, test = (
    open_source(f"folder:{films}", split=split, csv="list.csv") for split in ("train", "test")
  )
  for loader, word in (
    (decoded(train), "none of the 8 test images looks the same"),
    (streamed(), "could not be checked, as it streamed 16 images"),
  ):
    learnt_from.remember(loader, train, tmp_path)
    patients, images = leakage_checks.seen_in_pretraining(str(tmp_path), judged(test), "error")
    assert patients.startswith("probe: no patient of the test images is among those that")
    assert word in images
  later = tmp_path / "later"  # a run that starts from that one learnt from its images as well
  later.mkdir()
  learnt_from.remember(decoded(train), train, later, str(tmp_path))
  assert learnt_from.learnt(str(later)).known.images == 32
  assert (
    "as it streamed 16" in leakage_checks.seen_in_pretraining(str(later), judged(test), "error")[1]
  )
  (later / learnt_from.FILE).write_bytes(b"PK")
  with pytest.raises(UserError, match=r"learnt.npz is damaged"):
    leakage_checks.seen_in_pretraining(str(later), judged(test), "error")
  (weights,) = leakage_checks.seen_in_pretraining(
    str(tmp_path / "weights.npz"), judged(test), "error"
  )
  assert "does not say what it learnt from" in weights
  assert leakage_checks.seen_in_pretraining("", judged(test), "error") == []


def test_training_on_the_test_split_is_refused():
  test = open_source("phantom", split="test", **PHANTOM)
  clean = open_source("phantom", split="train", **PHANTOM)
  assert leakage_checks.shared_patients(clean, judged(test), "error") == [
    "probe: no patient of the test images is in the training data"
  ]
  everything = open_source("phantom", split="all", **PHANTOM)
  with pytest.raises(UserError, match=r"test split are in the training data phantom \[all\]"):
    leakage_checks.shared_patients(everything, judged(test), "error")
  people = len(set(test.table.patients))
  assert leakage_checks.shared_patients(everything, judged(test), "allow") == [
    f"probe: {people} of {people} test patients are in the training data"
  ]
  with pytest.raises(
    UserError, match=r"shared_patients='maybe' is not an option; valid: allow, error"
  ):
    leakage_checks.shared_patients(clean, judged(test), "maybe")


def test_a_pool_that_holds_the_test_split_is_refused():
  test = open_source("phantom", split="test", **PHANTOM)
  parts = tuple({"source": "phantom", "split": split} for split in ("train", "test"))
  pool = open_source(parts, **PHANTOM)
  with pytest.raises(UserError, match="would flatter"):
    leakage_checks.shared_patients(pool, judged(test), "error")


def test_patients_are_remembered_without_their_names(tmp_path):
  source = open_source("phantom", split="train", **PHANTOM)
  learnt_from.remember(streamed(), source, tmp_path)
  kept = learnt_from.learnt(str(tmp_path)).patients
  keys, secret = patient_splits.patient_keys(source), file_hashes.patient_key()
  assert set(leakage.overlap(kept, keys, secret)) == set(keys)
  other = patient_splits.patient_keys(open_source("phantom", split="test", **PHANTOM))
  assert leakage.overlap(kept, other, secret) == ()
  raw = (tmp_path / learnt_from.FILE).read_bytes()
  assert not any(p.encode() in raw for p in source.table.patients if len(p) > 3)


def test_patients_of_the_run_that_is_begun_with(tmp_path, monkeypatch):
  test = open_source("phantom", split="test", **PHANTOM)
  learnt_from.remember(streamed(), test, tmp_path)
  with pytest.raises(UserError, match=r"probe's test split are of 12 patients whom config.init"):
    leakage_checks.seen_in_pretraining(str(tmp_path), judged(test), "error")
  people = len(set(test.table.patients))
  assert leakage_checks.seen_in_pretraining(str(tmp_path), judged(test), "allow")[0] == (
    f"probe: {people} of its test patients are among those that {tmp_path} learnt from"
  )
  monkeypatch.setenv(file_hashes.KEY, "of another machine")
  said, _ = leakage_checks.seen_in_pretraining(str(tmp_path), judged(test), "error")
  assert said.startswith(f"probe: whether {tmp_path} learnt from a patient of the test images")
  file = tmp_path / learnt_from.FILE
  whole, patients = file.read_bytes(), learnt_from.learnt(str(tmp_path)).patients
  refused = 0
  for at in range(0, len(whole), len(whole) // 97):  # one bit anywhere
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
    try:
      np.testing.assert_array_equal(learnt_from.learnt(str(tmp_path)).patients, patients)
    except UserError as error:
      assert "learnt.npz is damaged" in str(error)
      refused += 1
  assert refused > 20


def test_near_duplicates_of_test_images_are_named():
  test = open_source("phantom", split="test", **PHANTOM)
  whole = open_source("phantom", split="all", **PHANTOM)
  loader = types.SimpleNamespace(images=load_images(whole, 32, progress=False))
  (found,) = leakage_checks.near_duplicates(loader, judged(test), 0.99)
  assert found.startswith(f"probe: {len(test)} of {len(test)} test images are near-duplicates")
  assert leakage_checks.near_duplicates(loader, judged(test), 0) == []
  (streamed,) = leakage_checks.near_duplicates(
    types.SimpleNamespace(images=None), judged(test), 0.95
  )
  assert "streamed" in streamed and "configs/audit.py" in streamed


@pytest.mark.full
def test_a_run_on_its_test_images_stops_before_it_starts(tmp_path):
  config = tiny(data__split="all", duration="2 steps")
  config["evals"] = {
    "probe": {
      "name": "cxrjax.evals.probe",
      "every": "2 steps",
      "size": 32,
      "ks": (1,),
      "mean": 0.5,
      "std": 0.25,
      "data": {"name": "phantom", **config["data"]["options"]},
    }
  }
  with pytest.raises(UserError, match=r"config\.evals\.probe's test split are in the train"):
    train.run(config, tmp_path / "run", say=lambda s: None)
  assert not (tmp_path / "run" / "checkpoints").exists()
  config["data"]["shared_patients"] = "allow"
  said = []
  train.run(config, tmp_path / "run", say=said.append)
  assert any("test patients are in the training data" in s for s in said)
  facts = json.loads((tmp_path / "run" / "run.json").read_text())
  assert any("test patients are in" in note for note in facts["data"]["train"]["notes"])
  assert (tmp_path / "run" / learnt_from.FILE).exists()

"""Parts: no patient in two, validation carved, refusals in one line."""

import json

import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.evals import eval_splits


def load(data, tmp_path, **options):
  return eval_splits.load(data, 16, cache_dir=tmp_path, progress=False, **options)


def patients_of(data):
  return {part: set(data.patients(part)) for part in eval_splits.SPLITS}


def test_validation_is_carved_by_patient(fake, tmp_path):
  source = fake(train=fake.split("train", 120), test=fake.split("test", 40))
  data = load(source, tmp_path, val_fraction=0.25)
  found = patients_of(data)
  assert not found["train"] & found["val"] and not found["train"] & found["test"]
  assert len(data.labels("train")) + len(data.labels("val")) == 120
  assert len(data.labels("val")) == pytest.approx(30, abs=4)
  share = {part: data.labels(part)[:, 1].mean() for part in ("train", "val")}
  assert share["val"] == pytest.approx(share["train"], abs=0.1)
  assert "carved by patient" in data.notes[0]
  # Labels, patients and pixels belong together: brighter images are the positive ones.
  for part in eval_splits.SPLITS:
    key, rows = data.rows[part]
    level = data.images[key].pixels[rows].mean((1, 2, 3))
    positive = data.labels(part)[:, 1] == 1
    assert level[positive].mean() > level[~positive].mean() + 25
    assert all(i.startswith("test" if part == "test" else "train") for i in data.ids(part))
  again = load(source, tmp_path, val_fraction=0.25)
  assert again.ids("val") == data.ids("val") and again.ids("train") == data.ids("train")


def test_own_validation_split(fake, tmp_path):
  make = fake.split
  source = fake(
    train=make("train", 60), val=make("val", 60), test=make("test", 30), dev=make("d", 9)
  )
  assert all(i.startswith("val/") for i in load(source, tmp_path).ids("val"))
  assert len(load(source | {"val": "dev"}, tmp_path).ids("val")) == 9
  carved = load(source | {"val": "carve"}, tmp_path)
  assert all(i.startswith("train/") for i in carved.ids("val"))


def test_a_tiny_validation_split_is_not_used(fake, tmp_path):
  make = fake.split
  source = fake(train=make("train", 100), val=make("val", 16), test=make("test", 20))
  data = load(source, tmp_path)
  assert all(i.startswith("train/") for i in data.ids("val"))
  assert "only 16 images" in data.notes[0]


def test_max_train_takes_whole_patients(fake, tmp_path):
  source = fake(train=fake.split("train", 200), test=fake.split("test", 20))
  data = load(source, tmp_path, max_train=60)
  assert len(data.labels("train")) == pytest.approx(60, abs=4)
  owners = data.patients("train")
  assert all(owners.count(p) == 2 for p in owners)
  assert len(data.images["train"]) == len(data.labels("train")) + len(data.labels("val"))
  assert "max_train" in data.notes[-1]


def test_patients_in_two_parts(fake, tmp_path):
  test = fake.split("test", 20)
  test.patients[:3] = ["train-1", "train-2", "train-2"]
  source = fake(train=fake.split("train", 80), test=test)
  with pytest.raises(UserError, match=r"2 patients are in more than one.*allow_shared_patients"):
    load(source, tmp_path)
  data = load(source, tmp_path, allow_shared_patients=True)
  assert data.shared == ("fake/train-1", "fake/train-2")
  facts = eval_splits.describe(data)
  assert facts["shared_patients"] == 2
  assert "2 patients are in more than one of train, val and test" in facts["notes"]


def test_that_no_patient_is_in_two_parts_is_said_only_where_patients_are_known(fake, tmp_path):
  known = eval_splits.describe(
    load(fake(train=fake.split("train", 80), test=fake.split("test", 20)), tmp_path)
  )
  assert known["shared_patients"] == 0 and eval_splits.NO_SHARED_PATIENTS in known["notes"]
  test = fake.split("test", 20)
  test.patients[:] = [""] * 20
  unknown = eval_splits.describe(load(fake(train=fake.split("train", 80), test=test), tmp_path))
  assert (
    unknown["shared_patients"] is None and eval_splits.NO_SHARED_PATIENTS not in unknown["notes"]
  )
  assert unknown["notes"][-1] == (
    "patients are unknown for 20 of 20 test images, so whether a patient is in two of train, val "
    "and test could not be checked"
  )


def test_unlabelled_images_are_left_out_and_counted(fake, tmp_path):
  train, test = fake.split("train", 80), fake.split("test", 20)
  train.labels[:6] = np.nan
  test.labels[3] = np.nan
  data = load(fake(train=train, test=test), tmp_path)
  assert len(data.labels("train")) + len(data.labels("val")) == 74
  facts = eval_splits.describe(data)
  assert facts["train"]["unlabelled"] == 6 and facts["test"]["unlabelled"] == 1
  assert facts["test"]["n"] == 19
  # Several findings: an image counts when any of them is known.
  train.labels[:6, 0] = 1
  data = load(fake(train=train, test=test, exclusive=False), tmp_path)
  assert len(data.labels("train")) + len(data.labels("val")) == 80


def test_unknown_patients_stand_alone(fake, tmp_path):
  train, test = fake.split("train", 80), fake.split("test", 20)
  train.patients[:] = [""] * 80
  test.patients[:] = [""] * 20
  data = load(fake(train=train, test=test), tmp_path)
  assert data.shared == () and 4 < len(data.labels("val")) < 30
  assert eval_splits.describe(data)["train"]["patients"] is None


def test_facts_are_json(fake, tmp_path):
  data = load(fake(train=fake.split("train", 80), test=fake.split("test", 20)), tmp_path)
  facts = json.loads(json.dumps(eval_splits.describe(data), allow_nan=False))
  test = facts["test"]
  assert test["n"] == 20 and test["patients"] == 10 and test["classes"] == ["normal", "opacity"]
  assert sum(test["class_counts"].values()) == 20 and test["splits"] == {"train": 80, "test": 20}
  assert test["fingerprint"] == data.images["test"].info.fingerprint


@pytest.mark.parametrize(
  "change,message",
  [
    ({"classes": ()}, "has no labels"),
    ({"name": None}, "data.name is missing"),
    ({"one": True}, r"one class only \(\['normal'\]\)"),
    ({"unknown": True}, "no image with a known label"),
    ({"patient": True}, "one patient"),
  ],
)
def test_refusals(fake, tmp_path, change, message):
  train, test = fake.split("train", 60), fake.split("test", 20)
  if "one" in change:
    train.labels[:] = [1, 0]
  if "unknown" in change:
    test.labels[:] = np.nan
  if "patient" in change:
    train.patients[:] = ["p"] * 60
  if "classes" in change:
    train.labels, test.labels = train.labels[:, :0], test.labels[:, :0]
  source = fake(train=train, test=test, classes=change.get("classes", ("normal", "opacity")))
  if "name" in change:
    source = {}
  with pytest.raises(UserError, match=message):
    load(source, tmp_path)


@pytest.mark.parametrize("option", ["subset", "labelled"])
def test_few_labels_are_of_train_alone(fake, tmp_path, option):
  make = fake.split
  source = fake(train=make("train", 400), val=make("val", 60), test=make("test", 30))
  whole = load(source, tmp_path)
  few = load(source | {option: "10 %"}, tmp_path)
  assert abs(len(few.ids("train")) - 40) <= 1
  assert set(few.ids("train")) < set(whole.ids("train"))
  assert few.ids("test") == whole.ids("test") and few.ids("val") == whole.ids("val")
  facts = eval_splits.describe(few)["train"]
  said = {"subset": "10 %", "labelled": "labels of 10 %"}[option]
  assert facts["split"] == f"train, {said}" and "whole patients" in " ".join(facts["notes"])
  assert facts["fingerprint"] != eval_splits.describe(whole)["train"]["fingerprint"]


def test_folds_have_train_and_test_and_validation_is_carved(fake, tmp_path):
  source = fake(all=fake.split("all", 300))
  data = load(source | {"fold": "2 of 3"}, tmp_path)
  found = patients_of(data)
  assert len(set.union(*found.values())) == sum(map(len, found.values())) == 150
  assert abs(len(data.ids("test")) - 100) <= 4


def test_a_pool_of_sources(fake, tmp_path):
  make = fake.split
  source = fake(train=make("train", 60), test=make("test", 30), more=make("more", 40))
  items = [
    source["name"],
    {
      "source": "phantom",
      "options": {"n": 20, "size": 40},
      "rename": {"normal": "well", "opacity": "sick"},
    },
  ]
  data = load({"name": items, "val": "carve"}, tmp_path)
  assert data.classes == ("normal", "opacity", "well", "sick") and not data.exclusive
  assert len(data.ids("test")) == 50 and len(data.ids("train")) + len(data.ids("val")) == 80
  with pytest.raises(UserError, match=r"fake: \d+ patients are in more"):
    load({"name": [source["name"]], "test": "train"}, tmp_path)

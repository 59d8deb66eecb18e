import collections

import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.data.splits import patient_splits


def population(n=600, seed=0):
  """Patients with 1 to 6 images and a rare class that depends on the patient."""
  rng = np.random.default_rng(seed)
  patients = [f"p{p}" for p in range(n) for _ in range(rng.integers(1, 7))]
  sick = {f"p{p}": rng.random() < 0.15 for p in range(n)}
  labels = np.array([[1.0 - sick[p], sick[p]] for p in patients], np.float32)
  return patients, labels


def test_no_patient_crosses_and_every_image_is_used_once():
  patients, labels = population()
  found = patient_splits.split_by_patient(
    patients, {"train": 0.7, "val": 0.1, "test": 0.2}, 0, labels
  )
  rows = np.concatenate(list(found.values()))
  assert sorted(rows.tolist()) == list(range(len(patients)))
  owners = [{patients[i] for i in found[name]} for name in found]
  assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])


def test_shares_are_met_in_images_and_in_every_class():
  patients, labels = population()
  found = patient_splits.split_by_patient(
    patients, {"train": 0.7, "val": 0.1, "test": 0.2}, 0, labels
  )
  n = len(patients)
  for name, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
    # At most one patient (6 images) per class and cut.
    assert abs(len(found[name]) - share * n) <= 12
    assert abs(labels[found[name], 1].mean() - labels[:, 1].mean()) < 0.03


def test_small_and_large_patients_are_treated_alike():
  patients, labels = population(3000)
  sizes = collections.Counter(patients)
  found = patient_splits.split_by_patient(patients, {"train": 0.8, "val": 0.2}, 0, labels)
  mean = [np.mean([sizes[p] for p in {patients[i] for i in rows}]) for rows in found.values()]
  assert abs(mean[0] - mean[1]) < 0.3  # a greedy split gives val the small ones


def test_split_depends_on_the_seed_and_names_only():
  patients, labels = population(100)
  a = patient_splits.split_by_patient(patients, {"train": 0.5, "test": 0.5}, 1, labels)
  b = patient_splits.split_by_patient(patients, {"train": 0.5, "test": 0.5}, 2, labels)
  assert set(a["test"].tolist()) != set(b["test"].tolist())
  back = np.arange(len(patients))[::-1]
  c = patient_splits.split_by_patient(
    [patients[i] for i in back], {"train": 0.5, "test": 0.5}, 1, labels[back]
  )
  assert {patients[i] for i in a["test"]} == {patients[back[i]] for i in c["test"]}


def test_no_split_is_empty_while_there_are_patients():
  for seed in range(20):
    found = patient_splits.split_by_patient(
      ["a", "b", "c", "c"], {"x": 0.9, "y": 0.05, "z": 0.05}, seed
    )
    assert all(len(rows) for rows in found.values())


def test_fewer_patients_than_splits():
  with pytest.raises(UserError, match="1 patient"):
    patient_splits.split_by_patient(["a", "a"], {"train": 0.5, "test": 0.5})


def test_carve_keeps_patients_in_place_when_images_come():
  patients, _ = population(500)
  before = dict(zip(patients, patient_splits.assign_by_name(patients), strict=True))
  more = [*patients, *(f"new{i}" for i in range(300))]
  after = dict(zip(more, patient_splits.assign_by_name(more), strict=True))
  assert all(after[p] == where for p, where in before.items())
  shares = collections.Counter(before.values())
  assert abs(shares["train"] / 500 - 0.7) < 0.07 and abs(shares["test"] / 500 - 0.2) < 0.06


def test_findings_of_patients_are_shared_out():
  rng = np.random.default_rng(0)
  sizes = rng.integers(1, 6, 2000)
  patients = np.repeat([f"p{i}" for i in range(2000)], sizes).tolist()
  prone = np.repeat(rng.random((2000, 4)) < (0.4, 0.2, 0.1, 0.02), sizes, axis=0)
  labels = (prone & (rng.random(prone.shape) < 0.7)).astype(np.float32)
  found = patient_splits.split_by_patient(patients, {"train": 0.8, "test": 0.2}, 0, labels)
  share = labels[found["test"]].sum(0) / labels.sum(0)
  assert np.abs(share - 0.2).max() < 0.03
  plain = patient_splits.split_by_patient(patients, {"train": 0.8, "test": 0.2}, 0)
  assert np.abs(labels[plain["test"]].sum(0) / labels.sum(0) - 0.2).max() > 0.03


def test_groups_are_shared_out():
  patients, labels = population(400)
  groups = (np.arange(len(patients)) >= 1000).astype(np.int64)
  found = patient_splits.split_by_patient(patients, {"a": 0.9, "b": 0.1}, 0, labels, groups)
  assert abs(np.sum(groups[found["b"]]) / np.sum(groups) - 0.1) < 0.02


def test_what_excludes_one_another():
  nan = np.nan
  for rows, expected in (
    ([[1, 0], [0, 1]], True),
    ([[1, 0], [nan, nan]], True),
    ([[1, 0], [1, 1]], False),
    ([[1, 0], [0, 0]], False),
    ([[0.5, 0.5]], False),
  ):
    assert patient_splits.is_exclusive(np.array(rows, np.float32)) is expected


def test_positions_are_even_and_other_purposes_differ():
  patients = [f"p{i}" for i in range(1000)]
  where = patient_splits.positions(patients, purpose="subset")
  assert np.histogram(list(where.values()), 10, (0, 1))[0].tolist() == [100] * 10
  assert (
    where
    != patient_splits.positions(patients, purpose="fold")
    != patient_splits.positions(patients)
  )

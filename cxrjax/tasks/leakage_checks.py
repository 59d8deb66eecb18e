"""Leakage checks: patients and images shared by training and test data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cxrjax.core.errors import UserError, suggest
from cxrjax.data.base import SourceInfo
from cxrjax.data.sources import file_hashes
from cxrjax.data.splits import image_hashes, leakage, patient_splits
from cxrjax.evals.eval_splits import Data
from cxrjax.training import learnt_from
from cxrjax.training.init_params import KEY

CHOICES = ("error", "allow")
FIRST, PAIRS = 0.85, 1000  # at the start of a run: least first correlation, most pairs compared


def shared_patients(train: Any, evaluations: Mapping[str, Data], choice: str) -> list[str]:
  """Refuses test images of training patients; returns a remark for each evaluation.

  Args:
    train: the training source.
    evaluations: evaluation data by name; only their test images count.
    choice: `config.data.shared_patients`, "error" or "allow".

  Raises:
    UserError: patients are shared and `choice` is "error".
  """
  if choice not in CHOICES:
    raise UserError(
      f"config.data.shared_patients={choice!r} is not an option{suggest(str(choice), CHOICES)}"
    )
  train_keys = patient_splits.patient_keys(train)
  train_patients, train_known = set(train_keys) - {""}, leakage.count_known(train_keys, train.info)
  remarks = []
  for name, data in evaluations.items():
    test_keys, info = test_patients(data)
    rows = [i for i, key in enumerate(test_keys) if key in train_patients]
    n_shared = len({test_keys[i] for i in rows})
    if n_shared and choice == "error":
      raise UserError(
        f"{n_shared} patients ({len(rows)} images, e.g. {data.ids('test')[rows[0]]}) of "
        f"config.evals.{name}'s test split are in the training data {train.info.name} "
        f"[{train.info.split}], so results would flatter; train on another split, or set "
        "config.data.shared_patients='allow'"
      )
    remarks.append(
      f"{name}: "
      + leakage.summary(
        n_shared,
        (leakage.count_known(test_keys, info), train_known),
        ("test images", "training images"),
        some=f"{n_shared} of {len(set(test_keys) - {''})} test patients are in the training data",
        none="no patient of the test images is in the training data",
        whether="whether a patient of the test images is in the training data",
      )
    )
  return remarks


def test_patients(data: Data) -> tuple[list[str], SourceInfo]:
  """Patient keys of the test images, and the info of their source."""
  key, rows = data.rows["test"]
  keys = patient_splits.patient_keys(data.images[key])
  return [keys[i] for i in rows.tolist()], data.images[key].info


def near_duplicates(loader: Any, evaluations: Mapping[str, Data], threshold: float) -> list[str]:
  """Remarks on test images that are near-duplicates of a training image.

  Args:
    loader: of the training images; only decoded ones are compared.
    evaluations: evaluation data by name.
    threshold: `config.data.near_duplicates`, a correlation (see `cxrjax.audit.duplicates`); 0 skips
      the check. A run compares only the likeliest pairs closely, an audit all.
  """
  if not threshold:
    return []
  if loader.images is None:
    return [
      "near-duplicates were not searched for, as the training images are streamed: "
      "configs/audit.py finds them"
    ]
  from cxrjax.audit import duplicates

  train = duplicates.prepare(loader.images)
  remarks = []
  for name, data in evaluations.items():
    key, rows = data.rows["test"]
    pairs = duplicates.across(
      train, duplicates.prepare(data.images[key], rows), threshold, FIRST, limit=PAIRS
    )
    if not len(pairs.i):
      remarks.append(
        f"{name}: no near-duplicate of a training image was found among the test images"
      )
      continue
    best = int(np.argmax(pairs.r))
    train_id = loader.images.table.ids[int(pairs.i[best])]
    test_id = data.images[key].table.ids[int(rows[int(pairs.j[best])])]
    remarks.append(
      f"{name}: {len(set(pairs.j.tolist()))} of {len(rows)} test images are near-duplicates of "
      f"training images (their detail correlates at {threshold:g} or more), e.g. {test_id} of "
      f"{train_id} at {pairs.r[best]:.3f}; configs/audit.py shows them"
    )
  return remarks


def seen_in_pretraining(
  path: str, evaluations: Mapping[str, Any], choice: str, cache_dir: str | None = None
) -> list[str]:
  """Refuses test images or patients that the initial run was trained on; returns remarks.

  Patients are compared by name, images by content: an image with another name, split or file
  format is still the same.

  Args:
    path: `config.init.path`.
    evaluations: evaluation data by name.
    choice: `config.data.shared_patients`, "error" or "allow".
    cache_dir: `config.data.cache_dir`, which holds the secret key.

  Raises:
    UserError: patients or images are shared and `choice` is "error"; or the initial run's record
      of them is damaged.
  """
  if not path:
    return []
  before = learnt_from.learnt(path)
  if before is None:
    return [
      f"{path} does not say what it learnt from, so whether test images, or other images of "
      "their patients, were among it is not known"
    ]
  secret = file_hashes.patient_key(cache_dir)
  remarks = []
  for name, data in evaluations.items():
    if not isinstance(data, Data):
      continue
    test_keys, info = test_patients(data)
    patients = leakage.overlap(before.patients, test_keys, secret) if len(before.patients) else ()
    of_patients = [i for i, k in enumerate(test_keys) if k in (patients or ())]
    key, rows = data.rows["test"]
    distances = image_hashes.nearest_distances(
      before.hashes, image_hashes.of_images(data.images[key], rows)
    )
    same = np.flatnonzero(distances <= image_hashes.MAX_DISTANCE).tolist()
    for leaked, reason in (
      (of_patients, f"are of {len(patients or ())} patients whom {KEY}={path} learnt from"),
      (same, f"are among those that {KEY}={path} learnt from"),
    ):
      if leaked and choice == "error":
        raise UserError(
          f"{len(leaked)} of the {len(test_keys)} images of config.evals.{name}'s test split "
          f"{reason}, e.g. {data.ids('test')[leaked[0]]}, so results would flatter; start from a "
          "run on the same data with the same split and patients (data.csv, data.patient_column), "
          "or set config.data.shared_patients='allow'"
        )
    remarks.append(
      f"{name}: " + _patient_remark(patients, leakage.count_known(test_keys, info), before, path)
    )
    remarks.append(f"{name}: " + _image_remark(len(same), len(test_keys), before, path))
  return remarks


def _patient_remark(
  shared: Sequence[str] | None,
  test_known: leakage.PatientCounts,
  before: learnt_from.Learnt,
  path: str,
) -> str:
  """Remark on test patients that the initial run was trained on."""
  if shared is None:
    return (
      f"whether {path} learnt from a patient of the test images could not be checked: it "
      "keeps their hashes under another secret than this cache folder's; see "
      "CXRJAX_PATIENT_KEY"
    )
  return leakage.summary(
    len(shared),
    (test_known, before.known),
    ("test images", f"images that {path} learnt from"),
    some=f"{len(shared)} of its test patients are among those that {path} learnt from",
    none=f"no patient of the test images is among those that {path} learnt from",
    whether=f"whether {path} learnt from a patient of the test images",
  )


def _image_remark(n_same: int, total: int, before: learnt_from.Learnt, path: str) -> str:
  """Remark on test images that the initial run was trained on."""
  if n_same:
    return f"{n_same} of {total} test images are among those that {path} learnt from"
  if before.unseen:
    return (
      f"whether {path} learnt from a test image could not be checked, as it streamed "
      f"{before.unseen} images"
    )
  return (
    f"none of the {total} test images looks the same as one that {path} learnt from (crops "
    "are not recognised: configs/audit.py finds them)"
  )

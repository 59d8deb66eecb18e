"""Keeps training away from the patients and the images that judge it."""

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
FIRST, PAIRS = 0.85, 1000  # at the start of a run: least first correlation, most pairs looked at


def shared_patients(train: Any, evaluations: Mapping[str, Data], choice: str) -> list[str]:
  """Refuses test images of patients that are learnt from; returns a remark for each evaluation.

  Args:
    train: the source that is learnt from.
    evaluations: what judges the run, by name; only their test images count.
    choice: `config.data.shared_patients`, "error" or "allow".

  Raises:
    UserError: there are such patients, and `choice` is "error".
  """
  if choice not in CHOICES:
    raise UserError(
      f"config.data.shared_patients={choice!r} is no option{suggest(str(choice), CHOICES)}"
    )
  learnt = patient_splits.patient_keys(train)
  seen, told = set(learnt) - {""}, leakage.known(learnt, train.info)
  remarks = []
  for name, data in evaluations.items():
    test, info = test_patients(data)
    rows = [i for i, key in enumerate(test) if key in seen]
    both = len({test[i] for i in rows})
    if both and choice == "error":
      raise UserError(
        f"{both} patients ({len(rows)} images, e.g. {data.ids('test')[rows[0]]}) of "
        f"config.evals.{name}'s test split are in the training data {train.info.name} "
        f"[{train.info.split}], so results would flatter; train on another split, or set "
        "config.data.shared_patients='allow'"
      )
    remarks.append(
      f"{name}: "
      + leakage.said(
        both,
        (leakage.known(test, info), told),
        ("test images", "training images"),
        some=f"{both} of {len(set(test) - {''})} test patients are in the training data",
        none="no patient of the test images is in the training data",
        whether="whether a patient of the test images is in the training data",
      )
    )
  return remarks


def test_patients(data: Data) -> tuple[list[str], SourceInfo]:
  """Keys of the test images' patients, and the source they come from."""
  key, rows = data.rows["test"]
  keys = patient_splits.patient_keys(data.images[key])
  return [keys[i] for i in rows.tolist()], data.images[key].info


def near_duplicates(loader: Any, evaluations: Mapping[str, Data], threshold: float) -> list[str]:
  """Remarks on test images that are nearly the same as a training image.

  Args:
    loader: of the training images; only decoded ones are looked at.
    evaluations: what judges the run, by name.
    threshold: `config.data.near_duplicates`, a correlation (see `cxrjax.audit.duplicates`); 0 does
      not look. A run looks closely at the likeliest pairs only, an audit at all.
  """
  if not threshold:
    return []
  if loader.images is None:
    return [
      "near-duplicates were not looked for, as the training images are streamed: "
      "configs/audit.py finds them"
    ]
  from cxrjax.audit import duplicates

  train = duplicates.of_images(loader.images)
  remarks = []
  for name, data in evaluations.items():
    key, rows = data.rows["test"]
    found = duplicates.across(
      train, duplicates.of_images(data.images[key], rows), threshold, FIRST, limit=PAIRS
    )
    if not len(found.i):
      remarks.append(
        f"{name}: no near-duplicate of a training image was found among the test images"
      )
      continue
    best = int(np.argmax(found.r))
    a = loader.images.table.ids[int(found.i[best])]
    b = data.images[key].table.ids[int(rows[int(found.j[best])])]
    remarks.append(
      f"{name}: {len(set(found.j.tolist()))} of {len(rows)} test images are near-duplicates of "
      f"training images (their detail correlates at {threshold:g} or more), e.g. {b} of {a} at "
      f"{found.r[best]:.3f}; configs/audit.py shows them"
    )
  return remarks


def seen_before(
  path: str, evaluations: Mapping[str, Any], choice: str, cache_dir: str | None = None
) -> list[str]:
  """Refuses test images that the starting run has learnt from, or whose patients; remarks.

  Patients are compared by name and images by what they show: under other names, in other splits
  and formats an image is the same.

  Args:
    path: `config.init.path`.
    evaluations: what judges the run, by name.
    choice: `config.data.shared_patients`, "error" or "allow".
    cache_dir: `config.data.cache_dir`, where the secret lies.

  Raises:
    UserError: there are such patients or images, and `choice` is "error"; or the run's file of
      them is damaged.
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
    keys, info = test_patients(data)
    patients = leakage.overlap(before.patients, keys, secret) if len(before.patients) else ()
    key, rows = data.rows["test"]
    bits = image_hashes.nearest(before.hashes, image_hashes.of_images(data.images[key], rows))
    same = np.flatnonzero(bits <= image_hashes.SAME).tolist()
    for found, what in (
      (
        [i for i, k in enumerate(keys) if k in (patients or ())],
        f"are of {len(patients or ())} patients whom {KEY}={path} learnt from",
      ),
      (same, f"are among those that {KEY}={path} learnt from"),
    ):
      if found and choice == "error":
        raise UserError(
          f"{len(found)} of the {len(keys)} images of config.evals.{name}'s test split {what}, "
          f"e.g. {data.ids('test')[found[0]]}, so results would flatter; start from a run on the "
          "same data with the same split and patients (data.csv, data.patient_column), or set "
          "config.data.shared_patients='allow'"
        )
    remarks.append(f"{name}: " + _patients(patients, leakage.known(keys, info), before, path))
    remarks.append(f"{name}: " + _images(len(same), len(keys), before, path))
  return remarks


def _patients(
  shared: Sequence[str] | None, test: leakage.Known, before: learnt_from.Learnt, path: str
) -> str:
  """What is said of the patients whom a run has learnt from."""
  if shared is None:
    return (
      f"whether {path} learnt from a patient of the test images could not be checked: it "
      "keeps their hashes under another secret than this cache folder's; see "
      "CXRJAX_PATIENT_KEY"
    )
  return leakage.said(
    len(shared),
    (test, before.known),
    ("test images", f"images that {path} learnt from"),
    some=f"{len(shared)} of its test patients are among those that {path} learnt from",
    none=f"no patient of the test images is among those that {path} learnt from",
    whether=f"whether {path} learnt from a patient of the test images",
  )


def _images(same: int, total: int, before: learnt_from.Learnt, path: str) -> str:
  """What is said of the test images that a run has learnt from."""
  if same:
    return f"{same} of {total} test images are among those that {path} learnt from"
  if before.unseen:
    return (
      f"whether {path} learnt from a test image could not be checked, as it streamed "
      f"{before.unseen} images"
    )
  return (
    f"none of the {total} test images looks the same as one that {path} learnt from (crops "
    "are not recognised: configs/audit.py finds them)"
  )

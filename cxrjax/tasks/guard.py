"""Keeps training away from the patients and the images that judge it."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from cxrjax.core.build import suggest
from cxrjax.core.errors import UserError
from cxrjax.data import hashes, leaks, splits
from cxrjax.evals.parts import Data

FILE = "patients.npy"  # in a workdir: keyed hashes of the patients that were learnt from
CHOICES = ("error", "allow")
FIRST, PAIRS = 0.85, 1000  # at the start of a run: least first correlation, most pairs looked at


def shared_patients(train: Any, evaluations: Mapping[str, Data], choice: str) -> list[str]:
  """Refuses test images of patients that are learnt from; returns remarks.

  Args:
    train: the source that is learnt from.
    evaluations: what judges the run, by name; only their test images count.
    choice: `config.data.shared_patients`, "error" or "allow".

  Raises:
    UserError: there are such patients, and `choice` is "error".
  """
  if choice not in CHOICES:
    raise UserError(f"config.data.shared_patients={choice!r} is no option"
                    f"{suggest(str(choice), CHOICES)}")
  seen = set(splits.patient_keys(train)) - {""}
  remarks = []
  for name, data in evaluations.items():
    key, rows = data.rows["test"]
    keys = splits.patient_keys(data.images[key])
    test = [keys[i] for i in rows.tolist()]
    both = sorted(set(test) & seen)
    images = sum(k in seen for k in test)
    if both and choice == "error":
      raise UserError(
        f"{len(both)} patients ({images} images) of config.evals.{name}'s test split are in the "
        f"training data {train.info.name} [{train.info.split}], e.g. {both[0]!r}, so results would "
        "flatter; train on another split, or set config.data.shared_patients='allow'")
    remarks.append(f"{name}: {len(both)} of {len(set(test))} test patients are in the training data"
                   if both else f"{name}: no patient of the test images is in the training data")
  return remarks


def near_duplicates(
    loader: Any, evaluations: Mapping[str, Data], threshold: float) -> list[str]:
  """Remarks on test images that are nearly the same as a training image.

  Args:
    loader: of the training images; only decoded ones are looked at.
    evaluations: what judges the run, by name.
    threshold: `config.data.near_duplicates`, a correlation (see `cxrjax.data.duplicates`); 0 does
      not look. A run looks closely at the likeliest pairs only, an audit at all.
  """
  if not threshold:
    return []
  if loader.images is None:
    return ["near-duplicates were not looked for, as the training images are streamed: "
            "configs/audit.py finds them"]
  from cxrjax.data import duplicates

  train = duplicates.of_images(loader.images)
  remarks = []
  for name, data in evaluations.items():
    key, rows = data.rows["test"]
    found = duplicates.across(
      train, duplicates.of_images(data.images[key], rows), threshold, FIRST, limit=PAIRS)
    if not len(found.i):
      remarks.append(f"{name}: no near-duplicate of a training image was found among the test "
                     "images")
      continue
    best = int(np.argmax(found.r))
    a = loader.images.table.ids[int(found.i[best])]
    b = data.images[key].table.ids[int(rows[int(found.j[best])])]
    remarks.append(
      f"{name}: {len(set(found.j.tolist()))} of {len(rows)} test images are near-duplicates of "
      f"training images (their detail correlates at {threshold:g} or more), e.g. {b} of {a} at "
      f"{found.r[best]:.3f}; configs/audit.py shows them")
  return remarks


def remember(train: Any, workdir: pathlib.Path, cache_dir: str | None = None) -> None:
  """Notes in the workdir whose images were learnt from, as keyed hashes, for later runs."""
  keys = splits.patient_keys(train)
  np.save(workdir / FILE, leaks.remember(keys, hashes.patient_key(cache_dir)))

"""Splits that no patient crosses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Int64

from cxrjax.core.errors import UserError
from cxrjax.data import order

CARVED = {"train": 0.7, "val": 0.1, "test": 0.2}


def patient_uniform(patients: Sequence[str], key: str = "split") -> dict[str, float]:
  """A number in [0, 1) for each patient, from its name alone."""
  return {p: float(order.uniform(f"{key}/{p}", 1)[0]) for p in dict.fromkeys(patients)}


def carve(patients: Sequence[str], fractions: Mapping[str, float] = CARVED) -> list[str]:
  """Which split each image falls into, by its patient's name alone.

  A patient stays in its split when images are added or removed, so nobody moves from train to test
  when a data set grows. The shares are met on average; `split_by_patient` meets them closely.

  Args:
    patients: patient of each image.
    fractions: share of each split; they sum to 1.
  """
  names, ends = list(fractions), np.cumsum(list(fractions.values()))
  place = {patient: names[min(int(np.searchsorted(ends, u, side="right")), len(names) - 1)]
           for patient, u in patient_uniform(patients).items()}
  return [place[patient] for patient in patients]


def split_by_patient(
    patients: Sequence[str], fractions: Mapping[str, float], seed: int = 0,
    labels: Float32[np.ndarray, "n k"] | None = None) -> dict[str, Int64[np.ndarray, "_"]]:
  """Rows of each split: all images of a patient in one, sizes and classes as asked for.

  Patients are taken class by class (a patient's class is what most of its images have), within a
  class in an order that depends on `seed` and the patients' names alone, and that row is cut where
  the splits' shares of its images are reached.

  Args:
    patients: patient of each image.
    fractions: share of images of each split; they sum to 1.
    seed: another seed, another split.
    labels: to keep the classes' shares the same in all splits; NaN counts as a value of its own.

  Returns:
    Ascending rows of every split, which together are all rows.

  Raises:
    UserError: fewer patients than splits.
  """
  names, shares = list(fractions), np.array(list(fractions.values()), dtype=np.float64)
  if len(shares) == 0 or (shares <= 0).any() or abs(shares.sum() - 1) > 1e-6:
    raise ValueError(f"fractions must be positive and sum to 1, not {dict(fractions)}")
  rows: dict[str, list[int]] = {}
  for row, patient in enumerate(patients):
    rows.setdefault(patient, []).append(row)
  if len(rows) < len(names):
    raise UserError(
      f"{len(rows)} patient(s) cannot be split into {', '.join(names)}: none may be in two")
  where = patient_uniform(list(rows), f"patients/{seed}")
  strata: dict[bytes, list[str]] = {}
  for patient in sorted(rows, key=lambda p: (where[p], p)):
    strata.setdefault(_stratum(labels, rows[patient]), []).append(patient)
  chosen: dict[str, list[int]] = {name: [] for name in names}
  ends = np.cumsum(shares)
  for stratum, members in strata.items():
    sizes = np.array([len(rows[patient]) for patient in members])
    # Each patient is an interval as long as it has images; where its middle falls decides. The
    # interval starts anywhere, or lone patients of rare classes would all go to the first split.
    middle = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
    start = order.uniform(f"stratum/{seed}/{stratum.hex()}", 1)[0] if len(members) < 20 else 0.0
    picks = np.searchsorted(ends, (middle + start) % 1, side="right")
    for patient, pick in zip(members, picks, strict=True):
      chosen[names[min(int(pick), len(names) - 1)]] += rows[patient]
  _fill_empty(chosen, rows)
  return {name: np.array(sorted(found), dtype=np.int64) for name, found in chosen.items()}


def _stratum(labels: np.ndarray | None, rows: list[int]) -> bytes:
  if labels is None:
    return b""
  kinds = [labels[row].astype("<f4").tobytes() for row in rows]
  return max(sorted(set(kinds)), key=kinds.count)


def _fill_empty(chosen: dict[str, list[int]], rows: dict[str, list[int]]) -> None:
  """Gives a split that got nobody the last patient of the split with the most patients."""
  owner = {row: patient for patient, mine in rows.items() for row in mine}
  for name in chosen:
    if not chosen[name]:
      donor = max(chosen, key=lambda n: len({owner[row] for row in chosen[n]}))
      patient = owner[chosen[donor][-1]]
      chosen[donor] = [row for row in chosen[donor] if owner[row] != patient]
      chosen[name] = list(rows[patient])

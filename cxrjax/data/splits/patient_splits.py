"""Patient-wise splits: no patient is in more than one.

The assignment depends only on the patients' names, the labels and a seed: not on the order of the
rows, the machine, or the version of any library.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Int64

from cxrjax.core import hash_random
from cxrjax.core.errors import UserError
from cxrjax.data.base import Described, Table

CARVED = {"train": 0.7, "val": 0.1, "test": 0.2}
POOL = "pool"  # `dataset` of sources whose patients already include the name of their data set
SMALL_STRATUM = 20  # patients
UNKNOWN = "patients unknown: every image counts as a separate patient"


def owners(table: Table) -> tuple[str, ...]:
  """Patient of each image; images of unknown patients count as a patient of their own."""
  return tuple(p or f"image {i}" for p, i in zip(table.patients, table.ids, strict=True))


def patient_keys(source: Described) -> tuple[str, ...]:
  """Patient of each image, prefixed with the naming scheme: `set/patient`; empty if unknown.

  Sources with the same `info.naming` share a patient if and only if they share a key.
  """
  if source.info.dataset == POOL:
    return source.table.patients
  (naming,) = source.info.naming
  return tuple(f"{naming}/{p}" if p else "" for p in source.table.patients)


def patient_uniform(patients: Sequence[str], key: str = "split") -> dict[str, float]:
  """Pseudo-random number in [0, 1) for each patient, a function of its name alone."""
  names = list(dict.fromkeys(patients))
  return dict(zip(names, hash_random.uniforms(f"{key}/{p}" for p in names).tolist(), strict=True))


def assign_by_name(patients: Sequence[str], fractions: Mapping[str, float] = CARVED) -> list[str]:
  """Assigns each image to a split by its patient's name alone.

  Patients stay in their split when images are added or removed, so nobody moves from train to test
  when a data set grows. Shares are met on average; `split_by_patient` meets them closely.

  Args:
    patients: patient of each image.
    fractions: share of each split; they sum to 1.
  """
  names, ends = list(fractions), np.cumsum(list(fractions.values()))
  split_of = {}
  for patient, u in patient_uniform(patients).items():
    k = int(np.searchsorted(ends, u, side="right"))
    split_of[patient] = names[min(k, len(names) - 1)]
  return [split_of[patient] for patient in patients]


def split_by_patient(
  patients: Sequence[str],
  fractions: Mapping[str, float],
  seed: int = 0,
  labels: Float32[np.ndarray, "n k"] | None = None,
  groups: Int64[np.ndarray, "n"] | None = None,
  purpose: str = "",
) -> dict[str, Int64[np.ndarray, "_"]]:
  """Stratified split by patient into given shares of the images.

  Within each stratum (see `positions`), the sequence of patients is cut where the splits' shares of
  its images are reached.

  Args:
    patients: patient of each image.
    fractions: share of images of each split; they sum to 1.
    seed: random seed.
    labels: labels to stratify by; NaN counts as a value of its own.
    groups: group of each image to stratify by too, such as its source.
    purpose: name of the use, so that different uses give independent splits.

  Returns:
    Ascending rows of every split, which together are all rows.

  Raises:
    UserError: fewer patients than splits.
  """
  names, shares = list(fractions), np.array(list(fractions.values()), dtype=np.float64)
  if len(shares) == 0 or (shares <= 0).any() or abs(shares.sum() - 1) > 1e-6:
    raise ValueError(f"fractions must be positive and sum to 1, not {dict(fractions)}")
  rows = _rows_by_patient(patients)
  if len(rows) < len(names):
    raise UserError(
      f"{len(rows)} patient(s) cannot be split into {', '.join(names)}: none may be in two"
    )
  position_of = positions(patients, seed, labels, groups, purpose)
  indices = np.searchsorted(np.cumsum(shares), list(position_of.values()), side="right")
  splits: dict[str, list[int]] = {name: [] for name in names}
  for patient, k in zip(position_of, indices.tolist(), strict=True):
    splits[names[min(k, len(names) - 1)]] += rows[patient]
  _fill_empty(splits, rows)
  return {name: np.array(sorted(members), dtype=np.int64) for name, members in splits.items()}


def positions(
  patients: Sequence[str],
  seed: int = 0,
  labels: Float32[np.ndarray, "n k"] | None = None,
  groups: Int64[np.ndarray, "n"] | None = None,
  purpose: str = "",
) -> dict[str, float]:
  """Position of each patient in [0, 1), such that every interval is a stratified sample.

  The patients of each stratum are lined up in an order that depends on `seed` and their names
  alone; each occupies a length proportional to its images, and its position is the middle of that.
  So the interval from 0.2 to 0.3 holds a tenth of the images of every stratum, up to one patient,
  and nested intervals give nested subsets.

  A stratum is a class (for a patient, that of most of its images). If images may have several
  findings, it is the union of the findings of a patient's images; combinations of fewer than 20
  patients are merged by their rarest finding.

  Args:
    patients: patient of each image.
    seed: random seed of the order.
    labels: 1, 0 or NaN per class, to stratify by; NaN counts as a value of its own.
    groups: group of each image to stratify by too.
    purpose: name of the use, so that different uses have independent orders.
  """
  rows = _rows_by_patient(patients)
  salt = f"{purpose}/{seed}" if purpose else str(seed)
  order = patient_uniform(list(rows), f"patients/{salt}")
  stratum_of = _strata(rows, labels, groups)
  strata: dict[bytes, list[str]] = {}
  for patient in sorted(rows, key=lambda p: (order[p], p)):
    strata.setdefault(stratum_of[patient], []).append(patient)
  position_of: dict[str, float] = {}
  for stratum, members in strata.items():
    sizes = np.array([len(rows[patient]) for patient in members])
    middle = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
    # Random start, or single patients of rare classes would all go to the first split, and none
    # to a subset smaller than half a patient's share.
    start = 0.0
    if purpose or len(members) < SMALL_STRATUM:
      start = hash_random.uniform(f"stratum/{salt}/{stratum.hex()}", 1)[0]
    position_of.update(zip(members, ((middle + start) % 1).tolist(), strict=True))
  return position_of


def _rows_by_patient(patients: Sequence[str]) -> dict[str, list[int]]:
  rows: dict[str, list[int]] = {}
  for row, patient in enumerate(patients):
    rows.setdefault(patient, []).append(row)
  return rows


def _strata(
  rows: dict[str, list[int]], labels: np.ndarray | None, groups: np.ndarray | None
) -> dict[str, bytes]:
  """Stratum of each patient, by labels and groups."""
  if labels is None or not labels.shape[1]:
    strata = dict.fromkeys(rows, b"")
  elif is_exclusive(labels):
    strata = _most_common_classes(rows, labels)
  else:
    strata = _finding_combinations(rows, labels)
  if groups is None:
    return strata
  # A patient with images in two groups belongs to the first.
  group_of_row = groups.tolist()
  first_group = {p: min(group_of_row[row] for row in rows[p]) for p in strata}
  return {p: stratum + b"|%d" % first_group[p] for p, stratum in strata.items()}


def is_exclusive(labels: Float32[np.ndarray, "n k"]) -> bool:
  """Whether every image with known labels has exactly one class."""
  known = labels[~np.isnan(labels).any(axis=1)]
  return bool(np.isin(known, (0, 1)).all() and (known.sum(axis=1) == 1).all())


def _row_bytes(labels: np.ndarray) -> list[bytes]:
  """Each row of labels as bytes, equal if and only if the labels are."""
  # Adding 0.0 turns -0.0 into 0.0; all NaN get the same bits.
  canonical = np.where(np.isnan(labels), np.nan, labels + 0.0).astype("<f4")
  width, data = 4 * canonical.shape[1], canonical.tobytes()
  return [data[i * width : (i + 1) * width] for i in range(len(canonical))]


def _most_common_classes(rows: dict[str, list[int]], labels: np.ndarray) -> dict[str, bytes]:
  """Most common class of each patient's images; ties go to the first in byte order."""
  class_of_row, class_of_patient = _row_bytes(labels), {}
  for patient, patient_rows in rows.items():
    classes = [class_of_row[row] for row in patient_rows]
    class_of_patient[patient] = classes[0]
    if len(set(classes)) > 1:
      class_of_patient[patient] = max(sorted(set(classes)), key=classes.count)
  return class_of_patient


def _finding_combinations(rows: dict[str, list[int]], labels: np.ndarray) -> dict[str, bytes]:
  """All findings of each patient; rare combinations are replaced by their rarest finding."""
  grouped_rows = np.concatenate([np.asarray(patient_rows) for patient_rows in rows.values()])
  starts = np.cumsum([0, *(len(patient_rows) for patient_rows in rows.values())])[:-1]
  # Maximum over a patient's images: 1 over 0 over unknown.
  findings = np.fmax.reduceat(labels[grouped_rows], starts, axis=0)
  present = findings == 1
  carriers = present.sum(axis=0)
  rarity = np.where(present, carriers, len(rows) + 1)
  rarest = np.where(present.any(axis=1), rarity.argmin(axis=1), -1)
  combinations = _row_bytes(findings)
  count = Counter(combinations)
  return {
    patient: combination if count[combination] >= SMALL_STRATUM else b"rarest %d" % finding
    for patient, combination, finding in zip(rows, combinations, rarest.tolist(), strict=True)
  }


def _fill_empty(splits: dict[str, list[int]], rows: dict[str, list[int]]) -> None:
  """Gives each empty split the last patient of the split with the most patients."""
  owner = {row: patient for patient, patient_rows in rows.items() for row in patient_rows}
  for name in splits:
    if not splits[name]:
      donor = max(splits, key=lambda n: len({owner[row] for row in splits[n]}))
      patient = owner[splits[donor][-1]]
      splits[donor] = [row for row in splits[donor] if owner[row] != patient]
      splits[name] = list(rows[patient])

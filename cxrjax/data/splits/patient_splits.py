"""Splits that no patient crosses.

Who goes where depends on the patients' names, the labels and a seed: not on the order of the rows,
the machine, or the version of any library.
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
POOL = "pool"  # the `dataset` of sources whose patients already carry their data set's name
SMALL_STRATUM = 20  # patients
UNKNOWN = "patients unknown: every image counts as a patient of its own"


def owners(table: Table) -> tuple[str, ...]:
  """Patient of each image; where that is unknown, the image counts as a patient of its own."""
  return tuple(p or f"image {i}" for p, i in zip(table.patients, table.ids, strict=True))


def patient_keys(source: Described) -> tuple[str, ...]:
  """Patient of each image with the name of the set that names it so: `set/patient`.

  Sources whose `info.naming` is the same share a patient exactly if they share a key. Unknown
  patients have an empty one.
  """
  if source.info.dataset == POOL:
    return source.table.patients
  (naming,) = source.info.naming
  return tuple(f"{naming}/{p}" if p else "" for p in source.table.patients)


def patient_uniform(patients: Sequence[str], key: str = "split") -> dict[str, float]:
  """A number in [0, 1) for each patient, from its name alone."""
  names = list(dict.fromkeys(patients))
  return dict(zip(names, hash_random.uniforms(f"{key}/{p}" for p in names).tolist(), strict=True))


def carve(patients: Sequence[str], fractions: Mapping[str, float] = CARVED) -> list[str]:
  """Which split each image falls into, by its patient's name alone.

  A patient stays in its split when images are added or removed, so nobody moves from train to test
  when a data set grows. The shares are met on average; `split_by_patient` meets them closely.

  Args:
    patients: patient of each image.
    fractions: share of each split; they sum to 1.
  """
  names, ends = list(fractions), np.cumsum(list(fractions.values()))
  place = {
    patient: names[min(int(np.searchsorted(ends, u, side="right")), len(names) - 1)]
    for patient, u in patient_uniform(patients).items()
  }
  return [place[patient] for patient in patients]


def split_by_patient(
  patients: Sequence[str],
  fractions: Mapping[str, float],
  seed: int = 0,
  labels: Float32[np.ndarray, "n k"] | None = None,
  groups: Int64[np.ndarray, "n"] | None = None,
  purpose: str = "",
) -> dict[str, Int64[np.ndarray, "_"]]:
  """Rows of each split: all images of a patient in one, sizes and classes as asked for.

  Patients are taken stratum by stratum (see `positions`), and each stratum's row of patients is cut
  where the splits' shares of its images are reached.

  Args:
    patients: patient of each image.
    fractions: share of images of each split; they sum to 1.
    seed: another seed, another split.
    labels: to keep the classes' shares the same in all splits; NaN counts as a value of its own.
    groups: of each image, such as the source it comes from; their shares are kept the same too.
    purpose: another purpose, another split.

  Returns:
    Ascending rows of every split, which together are all rows.

  Raises:
    UserError: fewer patients than splits.
  """
  names, shares = list(fractions), np.array(list(fractions.values()), dtype=np.float64)
  if len(shares) == 0 or (shares <= 0).any() or abs(shares.sum() - 1) > 1e-6:
    raise ValueError(f"fractions must be positive and sum to 1, not {dict(fractions)}")
  rows = _rows(patients)
  if len(rows) < len(names):
    raise UserError(
      f"{len(rows)} patient(s) cannot be split into {', '.join(names)}: none may be in two"
    )
  found = positions(patients, seed, labels, groups, purpose)
  picks = np.searchsorted(np.cumsum(shares), list(found.values()), side="right")
  chosen: dict[str, list[int]] = {name: [] for name in names}
  for patient, pick in zip(found, picks.tolist(), strict=True):
    chosen[names[min(pick, len(names) - 1)]] += rows[patient]
  _fill_empty(chosen, rows)
  return {name: np.array(sorted(found), dtype=np.int64) for name, found in chosen.items()}


def positions(
  patients: Sequence[str],
  seed: int = 0,
  labels: Float32[np.ndarray, "n k"] | None = None,
  groups: Int64[np.ndarray, "n"] | None = None,
  purpose: str = "",
) -> dict[str, float]:
  """Where each patient stands between 0 and 1, so that any stretch is a fair share of all.

  The patients of a stratum stand in a row, in an order that depends on `seed` and their names
  alone; each takes as much room as it has images, and its position is the middle of that. So the
  stretch from 0.2 to 0.3 holds a tenth of the images of every stratum, up to one patient, and
  stretches that lie in one another give subsets that do.

  A stratum is a class (a patient's is what most of its images have). Where images may have several
  findings, it is the findings of all of a patient's images together; combinations that fewer than
  20 patients have are put together by the rarest finding in them.

  Args:
    patients: patient of each image.
    seed: another seed, another order.
    labels: 1, 0 or NaN per class, to be shared out evenly; NaN counts as a value of its own.
    groups: of each image; they are shared out evenly as well.
    purpose: another purpose, another order.
  """
  rows = _rows(patients)
  salt = f"{purpose}/{seed}" if purpose else str(seed)
  where = patient_uniform(list(rows), f"patients/{salt}")
  kinds = _strata(rows, labels, groups)
  strata: dict[bytes, list[str]] = {}
  for patient in sorted(rows, key=lambda p: (where[p], p)):
    strata.setdefault(kinds[patient], []).append(patient)
  found: dict[str, float] = {}
  for stratum, members in strata.items():
    sizes = np.array([len(rows[patient]) for patient in members])
    middle = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
    # A row starts anywhere, or lone patients of rare classes would all go to the first split, and
    # none to a subset smaller than half a patient's share.
    start = 0.0
    if purpose or len(members) < SMALL_STRATUM:
      start = hash_random.uniform(f"stratum/{salt}/{stratum.hex()}", 1)[0]
    found.update(zip(members, ((middle + start) % 1).tolist(), strict=True))
  return found


def _rows(patients: Sequence[str]) -> dict[str, list[int]]:
  rows: dict[str, list[int]] = {}
  for row, patient in enumerate(patients):
    rows.setdefault(patient, []).append(row)
  return rows


def _strata(
  rows: dict[str, list[int]], labels: np.ndarray | None, groups: np.ndarray | None
) -> dict[str, bytes]:
  if labels is None or not labels.shape[1]:
    kinds = dict.fromkeys(rows, b"")
  elif is_exclusive(labels):
    kinds = _most_common(rows, labels)
  else:
    kinds = _combinations(rows, labels)
  if groups is None:
    return kinds
  # A patient that two groups share counts to the first.
  of_row = groups.tolist()
  return {p: kind + b"|%d" % min(of_row[row] for row in rows[p]) for p, kind in kinds.items()}


def is_exclusive(labels: Float32[np.ndarray, "n k"]) -> bool:
  """Whether every image with known labels has exactly one class."""
  known = labels[~np.isnan(labels).any(axis=1)]
  return bool(np.isin(known, (0, 1)).all() and (known.sum(axis=1) == 1).all())


def _bytes(labels: np.ndarray) -> list[bytes]:
  """Each row of labels as bytes that are equal where the labels are."""
  plain = np.where(np.isnan(labels), np.nan, labels + 0.0).astype("<f4")
  width, text = 4 * plain.shape[1], plain.tobytes()
  return [text[i * width : (i + 1) * width] for i in range(len(plain))]


def _most_common(rows: dict[str, list[int]], labels: np.ndarray) -> dict[str, bytes]:
  of_row, found = _bytes(labels), {}
  for patient, mine in rows.items():
    kinds = [of_row[row] for row in mine]
    found[patient] = kinds[0] if len(set(kinds)) == 1 else max(sorted(set(kinds)), key=kinds.count)
  return found


def _combinations(rows: dict[str, list[int]], labels: np.ndarray) -> dict[str, bytes]:
  """All findings of each patient; rare combinations by the rarest finding in them."""
  together = np.concatenate([np.asarray(mine) for mine in rows.values()])
  starts = np.cumsum([0, *(len(mine) for mine in rows.values())])[:-1]
  of_patient = np.fmax.reduceat(labels[together], starts, axis=0)  # 1 over 0 over unknown
  present = of_patient == 1
  carriers = present.sum(axis=0)
  rarity = np.where(present, carriers, len(rows) + 1)
  rarest = np.where(present.any(axis=1), rarity.argmin(axis=1), -1)
  kinds = _bytes(of_patient)
  count = Counter(kinds)
  return {
    patient: kind if count[kind] >= SMALL_STRATUM else b"rarest %d" % r
    for patient, kind, r in zip(rows, kinds, rarest.tolist(), strict=True)
  }


def _fill_empty(chosen: dict[str, list[int]], rows: dict[str, list[int]]) -> None:
  """Gives a split that got nobody the last patient of the split with the most patients."""
  owner = {row: patient for patient, mine in rows.items() for row in mine}
  for name in chosen:
    if not chosen[name]:
      donor = max(chosen, key=lambda n: len({owner[row] for row in chosen[n]}))
      patient = owner[chosen[donor][-1]]
      chosen[donor] = [row for row in chosen[donor] if owner[row] != patient]
      chosen[name] = list(rows[patient])

"""Parts of a source: `10 %`, `16 per class`, fold `2 of 5`, `train[15%:]`; by patient, stratified.

The selection depends only on the names of patients and images, the labels and the seed: not on the
order of the rows or the machine. Subsets with the same seed are nested: 1 % in 10 %, 8 per class in
16 per class. Slices have no seed, so that validation images are the same in every run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64

from cxrjax.core import hash_random
from cxrjax.core.errors import UserError
from cxrjax.data.base import Record, Source, SourceInfo
from cxrjax.data.inspection import bits_of
from cxrjax.data.splits import patient_splits

ROLES = ("train", "test")  # of a fold
_PERCENT = re.compile(r"^\s*(\d+(?:\.\d*)?|\.\d+)\s*%\s*$")
_PER_CLASS = re.compile(r"^\s*(\d+)\s+per\s+class\s*$")
_SLICE = re.compile(r"^([^\[\]+]+)\[\s*(?:([\d.]+)\s*%)?\s*:\s*(?:([\d.]+)\s*%)?\s*\]$")
_FOLD = re.compile(r"^\s*(\d+)\s+of\s+(\d+)(?:\s+in\s+(\S.*?))??(\s+by image)?\s*$")


class Subset(Source):
  """Some images of a source, which is itself a source.

  Args:
    source: the full source; may itself be a subset.
    rows: rows of `source` to take, in this order.
    said: description of the subset, for `info.split`.
    notes: how it was chosen.
    sizes: number of images by split, if the subset is one of several splits of the source.

  Attributes:
    source: the source that images are read from, never itself a subset.
    rows: rows of that source.
  """

  def __init__(
    self,
    source: Source,
    rows: Int64[np.ndarray, "_"],
    said: str,
    notes: Sequence[str] = (),
    sizes: dict[str, int] | None = None,
  ):
    self.table = source.table.take(rows)
    info = source.info
    self.groups = None if source.groups is None else source.groups[rows]
    parts = info.parts
    if parts:
      part_of_row = np.searchsorted(np.cumsum([p.rows for p in parts]), rows, side="right")
      if (np.diff(part_of_row) < 0).any():
        raise ValueError("rows of a pool must stay in the order of its parts")
      counts = np.bincount(part_of_row, minlength=len(parts)).tolist()
      parts = tuple(dataclasses.replace(p, rows=n) for p, n in zip(parts, counts, strict=True) if n)
    content = "\0".join([info.fingerprint, *self.table.ids])
    self.info: SourceInfo = dataclasses.replace(
      info,
      split=said,
      splits=info.splits if sizes is None else sizes,
      parts=parts,
      fingerprint=hashlib.sha256(content.encode()).hexdigest(),
      notes=(*info.notes, *notes),
    )
    self.rows: np.ndarray = source.rows[rows] if isinstance(source, Subset) else rows
    self.source: Source = source.source if isinstance(source, Subset) else source

  @property
  def bits(self) -> int:  # type: ignore[override]  # computed when asked for
    return bits_of(self.source)

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> Record:
    return self.read(index)

  def read(self, index: int, at_least: int | None = None) -> Record:
    """Reads image `index`; JPEGs may be decoded at reduced size, not below `at_least` pixels."""
    if not 0 <= index < len(self):
      raise IndexError(index)
    return self.source.read(int(self.rows[index]), at_least)


def take(source: Source, subset: str, seed: int = 0, key: str = "config.data.subset") -> Subset:
  """Takes a subset of a source.

  Args:
    source: the full source.
    subset: `10 %` of the images (whole patients, every class and every source of a pool in
      proportion), or `16 per class` (exactly this number for exclusive classes; at least this
      number of images with each finding otherwise; all if there are fewer).
    seed: random seed.
    key: config key for error messages.

  Raises:
    UserError: text in neither form, or a count per class for a source without labels.
  """
  percent, per_class = _PERCENT.match(subset), _PER_CLASS.match(subset)
  owners, table = patient_splits.owners(source.table), source.table
  if not len(table):
    raise UserError(f"{key}={subset!r} of no images; check config.data.split")
  if percent and 0 < float(percent[1]) <= 100:
    description = f"{float(percent[1]):g} %"
    rows = fraction(owners, float(percent[1]) / 100, seed, table.labels, source.groups)
    method = "whole patients, classes in proportion"
  elif per_class and int(per_class[1]) > 0:
    description = f"{int(per_class[1])} per class"
    if not source.info.classes:
      raise UserError(
        f"{key}={subset!r} needs labels, and {source.info.name} has none; give a percentage"
      )
    rows = per_class_rows(owners, table.ids, table.labels, int(per_class[1]), seed)
    method = "as many patients as possible"
    counts = dict(zip(source.info.classes, (table.labels[rows] == 1).sum(axis=0), strict=True))
    for name, n in counts.items():
      if n < int(per_class[1]):
        method += f"; {name} has only {n}"
    if not len(rows):
      raise UserError(
        f"{key}={subset!r}: {source.info.name} [{source.info.split}] "
        "has no image with a known label"
      )
  else:
    raise UserError(
      f"{key}={subset!r} is not a subset; write it like '10 %' (above 0, "
      "at most 100) or '16 per class'"
    )
  note = (
    f"{description}: {len(rows)} of {len(table)} images of "
    f"{len({owners[i] for i in rows})} patients, {method}, seed {seed}"
  )
  return Subset(source, rows, f"{source.info.split}, {description}{_seed_suffix(seed)}", [note])


def parse_fold(fold: str) -> tuple[int, int, str, bool]:
  """Parses `2 of 5` to (2, 5, "all", True), `2 of 5 in val by image` to (2, 5, "val", False)."""
  match = _FOLD.match(fold)
  if not match or not 1 <= int(match[1]) <= int(match[2]) or int(match[2]) < 2:
    raise UserError(
      f"config.data.fold={fold!r} is not a fold; write it like '2 of 5' (the second "
      "fifth of all images is the test split, the rest the training split) or '2 of "
      "5 in train' (of that split's images), or '2 of 5 by image'"
    )
  return int(match[1]), int(match[2]), match[3] or "all", not match[4]


def take_fold(source: Source, fold: str, role: str, seed: int = 0) -> Subset:
  """Takes the training or test images of one fold of a cross-validation.

  Args:
    source: all images to divide into folds.
    fold: `2 of 5`: the second of five parts is for testing, the other four are for training.
      Followed by `by image`, images are divided instead of patients, to measure the effect of
      leakage.
    role: `train` or `test`.
    seed: random seed of the folds.

  Raises:
    UserError: invalid text, an unknown role, or fewer patients than folds.
  """
  number, count, base, by_patient = parse_fold(fold)
  if role not in ROLES:
    raise UserError(
      f"config.data.split={role!r} with config.data.fold={fold!r}: a fold has the "
      f"splits {' and '.join(ROLES)}"
    )
  owners = patient_splits.owners(source.table) if by_patient else source.table.ids
  patients = len(set(owners))
  if patients < count:
    raise UserError(
      f"config.data.fold={fold!r}: {source.info.name} has {patients} patient(s), too "
      f"few for {count} folds"
    )
  folds = patient_splits.split_by_patient(
    owners,
    {str(i): 1 / count for i in range(1, count + 1)},
    seed,
    source.table.labels,
    source.groups,
    purpose="fold",
  )
  test = folds[str(number)]
  rows = test if role == "test" else np.setdiff1d(np.arange(len(owners), dtype=np.int64), test)
  description = f"fold {number} of {count}" + ("" if base == "all" else f" in {base}")
  method = "by patient" if by_patient else "by image, so that a patient may be in both splits"
  note = f"{description}: {method}, classes in proportion, seed {seed}"
  return Subset(
    source,
    rows,
    f"{role}, {description}{_seed_suffix(seed)}",
    [note],
    {"train": len(owners) - len(test), "test": len(test)},
  )


def parse_slice(split: str) -> tuple[str, tuple[float, float] | None]:
  """Parses `train[15%:]` to ("train", (0.15, 1.0)), and other splits to (split, None)."""
  match = _SLICE.match(split)
  if not match or not (match[2] or match[3]):
    return split, None
  try:
    ends = float(match[2] or 0) / 100, float(match[3] or 100) / 100
  except ValueError:
    ends = (0.0, 0.0)
  if not 0 <= ends[0] < ends[1] <= 1:
    raise UserError(
      f"config.data.split={split!r} is not a slice; write it like 'train[15%:]' (all "
      "but the first 15 %) or 'train[:15%]'"
    )
  return match[1], ends


def take_slice(source: Source, split: str, ends: tuple[float, float]) -> Subset:
  """Takes the patients between two shares of a split, every class in proportion.

  Disjoint slices share no patient, and adjoining slices add up to the whole.

  Args:
    source: the full split.
    split: name of the split, slice included.
    ends: lower and upper share of the images, 0 to 1.

  Raises:
    UserError: no image lies in the slice.
  """
  owners = patient_splits.owners(source.table)
  positions = patient_splits.positions(
    owners, 0, source.table.labels, source.groups, purpose="slice"
  )
  low, high = ends
  rows = np.array([i for i, p in enumerate(owners) if low <= positions[p] < high], dtype=np.int64)
  if not len(rows):
    raise UserError(
      f"config.data.split={split!r} has none of {source.info.name}'s {len(owners)} "
      "images; take a larger slice"
    )
  note = f"{split}: {len(rows)} of {len(owners)} images, whole patients, classes in proportion"
  return Subset(source, rows, split, [note])


def _seed_suffix(seed: int) -> str:
  return f" (seed {seed})" if seed else ""


def fraction(
  patients: Sequence[str],
  share: float,
  seed: int = 0,
  labels: Float32[np.ndarray, "n k"] | None = None,
  groups: Int64[np.ndarray, "n"] | None = None,
) -> Int64[np.ndarray, "_"]:
  """Rows of about `share` of the images: whole patients, stratified, at least one.

  The patients of smaller shares are among those of larger ones.

  Args:
    patients: patient of each image.
    share: above 0, at most 1; met as closely as whole patients allow.
    seed: random seed.
    labels: see `patient_splits.positions`.
    groups: see `patient_splits.positions`.
  """
  positions = patient_splits.positions(patients, seed, labels, groups, purpose="subset")
  ordered = sorted(positions, key=lambda p: (positions[p], p))
  sizes = dict.fromkeys(ordered, 0)
  for patient in patients:
    sizes[patient] += 1
  ends = np.cumsum([sizes[p] for p in ordered])
  last = int(np.argmin(np.abs(ends - share * len(patients))))
  chosen = set(ordered[: last + 1])
  return np.array([i for i, p in enumerate(patients) if p in chosen], dtype=np.int64)


def per_class_rows(
  patients: Sequence[str],
  ids: Sequence[str],
  labels: Float32[np.ndarray, "n k"],
  count: int,
  seed: int = 0,
) -> Int64[np.ndarray, "_"]:
  """Rows of `count` images of each class, from as many patients as possible.

  Classes take turns, the rarest first: each adds an image until it has one, then until it has two,
  and so on, so that the images of smaller counts are among those of larger ones. An image counts
  for each of its findings. If findings may occur together, images known to have none are a class of
  their own.

  Args:
    patients: patient of each image.
    ids: name of each image.
    labels: 1, 0 or NaN per class.
    count: images per class; all of a class that has fewer.
    seed: random seed.
  """
  present = labels == 1
  negative = ~present.any(axis=1) & (labels == 0).any(axis=1)
  if negative.any():
    present = np.concatenate([present, negative[:, None]], axis=1)
  image_order = hash_random.uniforms(f"image/{seed}/{i}" for i in ids)
  patient_order = patient_splits.patient_uniform(patients, f"per class/{seed}")
  queues = []
  for members in (np.flatnonzero(column).tolist() for column in present.T):
    members.sort(key=lambda r: (image_order[r], ids[r]))
    turns: dict[str, int] = {}
    ranked = []
    for r in members:  # the first image of every patient, then the second of every patient, ...
      turn = turns[patients[r]] = turns.get(patients[r], 0) + 1
      ranked.append((turn, patient_order[patients[r]], patients[r], r))
    queues.append([entry[-1] for entry in sorted(ranked)])
  queues = [q for q in queues if q]
  queues.sort(key=lambda q: (len(q), [ids[r] for r in q[:1]]))
  members_of = [set(q) for q in queues]
  counts, cursors = [0] * len(queues), [0] * len(queues)
  chosen: set[int] = set()
  for target in range(1, count + 1):
    for c, queue in enumerate(queues):
      while counts[c] < target and cursors[c] < len(queue):
        r = queue[cursors[c]]
        cursors[c] += 1
        if r not in chosen:
          chosen.add(r)
          for other, class_members in enumerate(members_of):
            counts[other] += r in class_members
  return np.array(sorted(chosen), dtype=np.int64)

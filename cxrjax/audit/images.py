"""Input of an audit: every split of every source, decoded, and links between their images."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from cxrjax.audit import duplicates
from cxrjax.core.errors import UserError, suggest
from cxrjax.data.base import Source, SourceInfo, Table
from cxrjax.data.images import Images
from cxrjax.data.loading import decoded_cache
from cxrjax.data.sources.by_name import open_source
from cxrjax.data.splits import patient_splits
from cxrjax.data.splits.subset import Subset

NO_SPLIT = "no split"

Place = tuple[int, int]  # index of a split, and row of its table


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """One split of one source.

  Attributes:
    title: of source and split, short, for tables; unique.
    source: index of the source.
    name: of the split in its source.
    info: of the source.
    table: of all images, unreadable ones included.
    patients: key of each image's patient, see `splits.patient_keys`.
    good: rows of the images that could be decoded.
    bad: reason for every row that could not be decoded.
    notes: rows that were decoded in an unusual way, by remark.
    images: the decoded images.
  """

  title: str
  source: int
  name: str
  info: SourceInfo
  table: Table
  patients: tuple[str, ...]
  good: Int64[np.ndarray, "m"]
  bad: Mapping[int, str]
  images: Images
  notes: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)

  @property
  def tells_patients(self) -> bool:
    """Whether any patient has several images; if none has, patients may not be identified."""
    known = [p for p in self.patients if p]
    return len(set(known)) < len(known)


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two near-duplicates.

  Attributes:
    a: split and row of one image.
    b: split and row of the other image.
    r: correlation of aligned detail.
    first: correlation of signatures.
    same_patient: according to the tables; None where a patient is unknown.
    differ: classes that only one of the images has.
  """

  a: Place
  b: Place
  r: float
  first: float
  same_patient: bool | None
  differ: tuple[str, ...]


def open_splits(
  sources: Sequence[Mapping[str, Any]], wanted: Sequence[str] = (), **decoding: Any
) -> list[Split]:
  """Opens and decodes all splits of the sources; bad images are counted, never fatal.

  Args:
    sources: `source` and, optionally, `options` of each.
    wanted: splits to open; all by default.
    **decoding: for `decoded_cache.decode_rows`: size, fit, bits, window, cache_dir, progress.

  Raises:
    UserError: a source cannot be opened, or has none of the splits in `wanted`.
  """
  decoded_cache.check_options(decoding["size"], decoding.get("fit", "squash"), "skip")
  short_names = _short_names([str(s["source"]) for s in sources])
  splits = []
  for i, spec in enumerate(sources):
    available = _splits_of(str(spec["source"]), dict(spec.get("options") or {}))
    selected = [name for name in available if not wanted or name in wanted]
    if not selected:
      raise UserError(
        f"{spec['source']} has no split {'+'.join(wanted)!r}{suggest(wanted[0], available)}"
      )
    for name in selected:
      title = " ".join(filter(None, (short_names[i], name if len(available) > 1 else "")))
      splits.append(_decode(title or name, i, name, available[name], decoding))
  return splits


def _splits_of(name: str, options: Mapping[str, Any]) -> dict[str, Source]:
  """All splits of a source, and as one more the images that are in none."""
  complete = open_source(name, split="all", **options)
  splits = {s: open_source(name, split=s, **options) for s in complete.info.splits}
  if not splits:
    return {"all": complete}
  if sum(map(len, splits.values())) < len(complete):
    assigned = set().union(*(s.table.ids for s in splits.values()))
    unassigned = [i for i, name in enumerate(complete.table.ids) if name not in assigned]
    if unassigned:
      splits[NO_SPLIT] = Subset(complete, np.asarray(unassigned, np.int64), NO_SPLIT)
  return splits


def _decode(
  title: str, index: int, name: str, source: Source, decoding: Mapping[str, Any]
) -> Split:
  decoded = decoded_cache.decode_rows(source, stop_at_bad=False, **decoding)
  return Split(
    title=title,
    source=index,
    name=name,
    info=source.info,
    table=source.table,
    patients=patient_splits.patient_keys(source),
    good=decoded.good,
    bad=decoded.bad,
    images=Images(
      pixels=decoded.pixels,
      table=source.table.take(decoded.good),
      info=source.info,
      windows=decoded.windows,
    ),
    notes=decoded.notes,
  )


def _short_names(names: Sequence[str]) -> list[str]:
  """Last component of each name; empty for a single name, numbered where two are the same."""
  if len(names) == 1:
    return [""]
  ends = [n.rstrip("/").replace(":", "/").rpartition("/")[2] or n for n in names]
  return [f"{k + 1} {end}" if ends.count(end) > 1 else end for k, end in enumerate(ends)]


def near_duplicates(
  splits: Sequence[Split],
  threshold: float = duplicates.SAME,
  first: float = duplicates.FIRST,
  limit: int = duplicates.LIMIT,
  advance: Callable[[], None] = lambda: None,
) -> tuple[list[Pair], dict[str, Any]]:
  """Near-duplicates within and across all splits, most similar first, and facts on the search.

  Args:
    splits: compared each with itself and with every other.
    threshold: least correlation of aligned detail.
    first: least correlation of signatures for a second look.
    limit: most pairs, of all splits together, that get a second look.
    advance: called after each two splits, for a progress bar.
  """
  prepared = [duplicates.prepare(p.images) for p in splits]
  combinations = list(itertools.combinations_with_replacement(range(len(splits)), 2))
  sizes = [
    len(splits[x].good) * len(splits[y].good) / (2 if x == y else 1) for x, y in combinations
  ]
  matches: list[Pair] = []
  inspected, threshold_used = 0, first
  for (x, y), size in zip(combinations, sizes, strict=True):
    # Share of the limit by size, but no less than an equal one: small splits can hide a leak, too.
    share = max(limit // len(combinations), round(limit * size / max(sum(sizes), 1)))
    if x == y:
      pairs = duplicates.within(prepared[x], threshold, first, share)
    else:
      pairs = duplicates.across(prepared[x], prepared[y], threshold, first, share)
    inspected += pairs.inspected
    threshold_used = max(threshold_used, pairs.threshold if pairs.inspected >= share else first)
    matches += [
      _make_pair(
        splits, (x, int(splits[x].good[i])), (y, int(splits[y].good[j])), float(r), float(r0)
      )
      for i, j, r, r0 in zip(pairs.i, pairs.j, pairs.r, pairs.first, strict=True)
    ]
    advance()
  matches.sort(key=lambda p: (-p.r, p.a, p.b))
  return matches, {"compared": float(sum(sizes)), "looked": inspected, "first": threshold_used}


def _make_pair(splits: Sequence[Split], a: Place, b: Place, r: float, first: float) -> Pair:
  split_a, split_b = splits[a[0]], splits[b[0]]
  patient_a, patient_b = split_a.patients[a[1]], split_b.patients[b[1]]
  same_patient = None
  if patient_a and patient_b:
    # Patient names of different data sets cannot be compared.
    comparable = split_a.info.dataset == split_b.info.dataset and (
      split_a.tells_patients or split_b.tells_patients
    )
    if patient_a == patient_b:
      same_patient = True
    elif comparable:
      same_patient = False
  return Pair(a, b, r, first, same_patient, _differing_classes(split_a, a[1], split_b, b[1]))


def _differing_classes(split_a: Split, row_a: int, split_b: Split, row_b: int) -> tuple[str, ...]:
  names = [c for c in split_a.info.classes if c in split_b.info.classes]
  labels_a = [split_a.table.labels[row_a, split_a.info.classes.index(c)] for c in names]
  labels_b = [split_b.table.labels[row_b, split_b.info.classes.index(c)] for c in names]
  # The comparison is false where a label is unknown (NaN).
  return tuple(c for c, v, w in zip(names, labels_a, labels_b, strict=True) if abs(v - w) > 0.5)


def group_numbers(splits: Sequence[Split], pairs: Sequence[Pair]) -> list[Int64[np.ndarray, "_"]]:
  """Group number of every image, by split; `pairs` join images into groups."""
  offsets = np.cumsum([0, *(len(p.table) for p in splits)])
  i, j = (
    np.array([offsets[side[0]] + side[1] for side in ends_of], np.int64)
    for ends_of in ([p.a for p in pairs], [p.b for p in pairs])
  )
  joined = duplicates.groups(int(offsets[-1]), i, j)
  return [joined[offsets[k] : offsets[k + 1]] for k in range(len(splits))]


def crossing_patients(splits: Sequence[Split]) -> dict[str, list[Place]]:
  """Patients with images in several splits of their data set: split and row of each image."""
  places_of: dict[str, list[Place]] = {}
  for k, split in enumerate(splits):
    for row, patient in enumerate(split.patients):
      if patient:
        places_of.setdefault(patient, []).append((k, row))
  return {p: places for p, places in places_of.items() if len({k for k, _ in places}) > 1}


def owners(splits: Sequence[Split], groups: Sequence[Int64[np.ndarray, "_"]]) -> list[list[str]]:
  """Key of every image, by split, that folds keep together: patient and duplicates, joined."""
  offsets = np.cumsum([0, *(len(p.table) for p in splits)])
  first_of_patient: dict[str, int] = {}
  i, j = [], []
  for k, split in enumerate(splits):
    for row, (patient, group) in enumerate(zip(split.patients, groups[k].tolist(), strict=True)):
      index = int(offsets[k]) + row
      for other in (first_of_patient.setdefault(patient, index) if patient else index, group):
        if other != index:
          i.append(index)
          j.append(other)
  joined = duplicates.groups(int(offsets[-1]), np.array(i, np.int64), np.array(j, np.int64))
  return [[str(x) for x in joined[offsets[k] : offsets[k + 1]]] for k in range(len(splits))]

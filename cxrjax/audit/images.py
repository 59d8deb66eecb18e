"""What an audit looks at: every split of every source, decoded, and what connects their images."""

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

WITHOUT = "no split"


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
  """One split of one source.

  Attributes:
    name: `source split`, short, for tables; different for every part.
    number: of the source.
    split: of it.
    info: of the source.
    table: of all its images.
    patients: key of each image's patient, see `splits.patient_keys`.
    good: rows of those that could be decoded.
    bad: row and reason of those that could not.
    notes: rows of which a user should know how they were read, by what that is.
    images: the good ones.
  """

  name: str
  number: int
  split: str
  info: SourceInfo
  table: Table
  patients: tuple[str, ...]
  good: Int64[np.ndarray, "m"]
  bad: Mapping[int, str]
  images: Images
  notes: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)

  @property
  def tells_patients(self) -> bool:
    """Whether some patient has several images; else nobody may have told who they are."""
    known = [p for p in self.patients if p]
    return len(set(known)) < len(known)


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two near-duplicates: parts and rows of their tables.

  Attributes:
    a: part and row of the one.
    b: part and row of the other.
    r: correlation of aligned detail.
    first: correlation of signatures.
    same_patient: what the tables say; None where a patient is unknown.
    differ: classes that the one has and the other has not.
  """

  a: tuple[int, int]
  b: tuple[int, int]
  r: float
  first: float
  same_patient: bool | None
  differ: tuple[str, ...]


def open_parts(
  sources: Sequence[Mapping[str, Any]], wanted: Sequence[str] = (), **decoding: Any
) -> list[Part]:
  """Opens and decodes all splits of the sources; bad images are counted, never fatal.

  Args:
    sources: `source` and, optionally, `options` of each.
    wanted: splits to look at; all by default.
    **decoding: for `store.decode_rows`: size, fit, bits, window, cache_dir, progress.

  Raises:
    UserError: a source that cannot be opened, or has none of the splits that are wanted.
  """
  decoded_cache.check_options(decoding["size"], decoding.get("fit", "squash"), "skip")
  names = _short([str(s["source"]) for s in sources])
  found = []
  for number, spec in enumerate(sources):
    options = dict(spec.get("options") or {})
    own = _splits_of(str(spec["source"]), options)
    chosen = [s for s in own if not wanted or s in wanted]
    if not chosen:
      raise UserError(
        f"{spec['source']} has no split {'+'.join(wanted)!r}{suggest(wanted[0], own)}"
      )
    for split in chosen:
      label = " ".join(x for x in (names[number], split if len(own) > 1 else "") if x)
      found.append(_part(label or split, number, split, own[split], decoding))
  return found


def _splits_of(name: str, options: Mapping[str, Any]) -> dict[str, Source]:
  """Every split of a source, and what is in none of them."""
  whole = open_source(name, split="all", **options)
  found = {s: open_source(name, split=s, **options) for s in whole.info.splits}
  if not found:
    return {"all": whole}
  if sum(map(len, found.values())) < len(whole):
    inside = set().union(*(s.table.ids for s in found.values()))
    rest = [i for i, name in enumerate(whole.table.ids) if name not in inside]
    if rest:
      found[WITHOUT] = Subset(whole, np.asarray(rest, np.int64), WITHOUT)
  return found


def _part(name: str, number: int, split: str, source: Source, decoding: Mapping[str, Any]) -> Part:
  found = decoded_cache.decode_rows(source, stop_at_bad=False, **decoding)
  images = Images(
    pixels=found.pixels,
    table=source.table.take(found.good),
    info=source.info,
    windows=found.windows,
  )
  return Part(
    name,
    number,
    split,
    source.info,
    source.table,
    patient_splits.patient_keys(source),
    found.good,
    found.bad,
    images,
    found.notes,
  )


def _short(names: Sequence[str]) -> list[str]:
  """The end of each name; nothing where there is only one, a number where two are the same."""
  if len(names) == 1:
    return [""]
  ends = [n.rstrip("/").replace(":", "/").rpartition("/")[2] or n for n in names]
  return [f"{k + 1} {end}" if ends.count(end) > 1 else end for k, end in enumerate(ends)]


def near_duplicates(
  parts: Sequence[Part],
  threshold: float = duplicates.SAME,
  first: float = duplicates.FIRST,
  limit: int = duplicates.LIMIT,
  advance: Callable[[], None] = lambda: None,
) -> tuple[list[Pair], dict[str, Any]]:
  """Near-duplicates within and across all parts, most alike first, and how they were looked for.

  Args:
    parts: to compare, each with itself and with every other.
    threshold: least correlation of aligned detail.
    first: least correlation of signatures for a second look.
    limit: most pairs of all that get one.
    advance: called after each two parts.
  """
  looks = [duplicates.of_images(p.images) for p in parts]
  couples = list(itertools.combinations_with_replacement(range(len(parts)), 2))
  sizes = [len(parts[x].good) * len(parts[y].good) / (2 if x == y else 1) for x, y in couples]
  found: list[Pair] = []
  looked, compared, highest = 0, 0.0, first
  for (x, y), size in zip(couples, sizes, strict=True):
    # Each couple's share of the limit; a small one that hides a leak keeps enough.
    share = max(limit // len(couples), round(limit * size / max(sum(sizes), 1)))
    if x == y:
      pairs = duplicates.within(looks[x], threshold, first, share)
    else:
      pairs = duplicates.across(looks[x], looks[y], threshold, first, share)
    looked, compared = looked + pairs.looked, compared + size
    highest = max(highest, pairs.threshold if pairs.looked >= share else first)
    found += [
      _pair(parts, (x, int(parts[x].good[i])), (y, int(parts[y].good[j])), float(r), float(r0))
      for i, j, r, r0 in zip(pairs.i, pairs.j, pairs.r, pairs.first, strict=True)
    ]
    advance()
  found.sort(key=lambda p: (-p.r, p.a, p.b))
  return found, {"compared": compared, "looked": looked, "first": highest}


def _pair(
  parts: Sequence[Part], a: tuple[int, int], b: tuple[int, int], r: float, first: float
) -> Pair:
  one, other = parts[a[0]].patients[a[1]], parts[b[0]].patients[b[1]]
  same = None
  if one and other:
    # Two data sets' names for patients say nothing about each other.
    p, q = parts[a[0]], parts[b[0]]
    told = p.info.dataset == q.info.dataset and (p.tells_patients or q.tells_patients)
    same = True if one == other else False if told else None
  return Pair(a, b, r, first, same, _differ(parts[a[0]], a[1], parts[b[0]], b[1]))


def _differ(p: Part, row: int, q: Part, other: int) -> tuple[str, ...]:
  names = [c for c in p.info.classes if c in q.info.classes]
  x = [p.table.labels[row, p.info.classes.index(c)] for c in names]
  y = [q.table.labels[other, q.info.classes.index(c)] for c in names]
  return tuple(c for c, v, w in zip(names, x, y, strict=True) if abs(v - w) > 0.5)  # NaN is not


def group_numbers(parts: Sequence[Part], pairs: Sequence[Pair]) -> list[Int64[np.ndarray, "_"]]:
  """For the images of every part, the number of the group that `pairs` put them in."""
  ends = np.cumsum([0, *(len(p.table) for p in parts)])
  i, j = (
    np.array([ends[side[0]] + side[1] for side in ends_of], np.int64)
    for ends_of in ([p.a for p in pairs], [p.b for p in pairs])
  )
  joined = duplicates.groups(int(ends[-1]), i, j)
  return [joined[ends[k] : ends[k + 1]] for k in range(len(parts))]


def crossing_patients(parts: Sequence[Part]) -> dict[str, list[tuple[int, int]]]:
  """Patients with images in several splits of their data set: part and row of each image."""
  where: dict[str, list[tuple[int, int]]] = {}
  for k, part in enumerate(parts):
    for row, patient in enumerate(part.patients):
      if patient:
        where.setdefault(patient, []).append((k, row))
  return {p: found for p, found in where.items() if len({k for k, _ in found}) > 1}


def owners(parts: Sequence[Part], groups: Sequence[Int64[np.ndarray, "_"]]) -> list[list[str]]:
  """For the images of every part, what no fold may divide: patient and duplicates, joined."""
  ends = np.cumsum([0, *(len(p.table) for p in parts)])
  first: dict[str, int] = {}
  i, j = [], []
  for k, part in enumerate(parts):
    for row, (patient, group) in enumerate(zip(part.patients, groups[k].tolist(), strict=True)):
      own = int(ends[k]) + row
      for other in (first.setdefault(patient, own) if patient else own, group):
        if other != own:
          i.append(own)
          j.append(other)
  joined = duplicates.groups(int(ends[-1]), np.array(i, np.int64), np.array(j, np.int64))
  return [[str(x) for x in joined[ends[k] : ends[k + 1]]] for k in range(len(parts))]

"""Several sources as one: labels merged by name, images drawn by weight."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cxrjax.core.errors import UserError, suggest
from cxrjax.data import inspection
from cxrjax.data.base import Part, Record, Source, SourceInfo, Table
from cxrjax.data.splits import patient_splits


class Pool:
  """The images of several sources, one source after the other.

  A class is the same in two sources if its name is, whatever the case and whether words are joined
  by spaces, hyphens or underscores; it is spelt as in the first. Where a source does not know a
  class, its images have NaN there. Unless all sources have the same exclusive classes, classes
  become findings: an image of class A is known to be without the other classes of its own source.

  Args:
    sources: what to join.
    weights: how often each source's images are drawn, relative to the others'; None draws every
      image equally often.
    renames: for each source, other names of classes, to be merged under.

  Raises:
    UserError: no source, a weight that is none, a renamed class that is not there, two classes of
      one source that become one, or the same images twice.
  """

  def __init__(
    self,
    sources: Sequence[Source],
    weights: Sequence[Any] | None = None,
    renames: Sequence[Mapping[str, str]] = (),
  ):
    if not sources:
      raise UserError("config.data.source=[] names no source; give at least one")
    self.sources = tuple(sources)
    notes = [f"{s.info.name}: {note}" for s in sources for note in s.info.notes]
    columns, classes, exclusive = _merge(self.sources, renames or [{}] * len(sources), notes)
    tables, skipped, fingerprints = [], [], []
    for k, (source, column) in enumerate(zip(self.sources, columns, strict=True)):
      tables.append(_qualify(k, source, column, len(classes)))
      skipped += [(_id(k, source, name), why) for name, why in source.info.skipped]
      fingerprints += [source.info.fingerprint, source.info.split, str(len(source))]
    _refuse_repeats(self.sources)
    self.table = _join(tables)
    sizes = [len(s) for s in self.sources]
    self._starts: np.ndarray = np.cumsum([0, *sizes])
    self.groups: np.ndarray = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    names = [s.info.name for s in self.sources]
    parts: tuple[Part, ...] = ()
    if weights is not None:
      parts = _parts(names, sizes, weights)
    total = sum(p.weight for p in parts)
    shares = [f", {p.weight / total:.3g} of those drawn" for p in parts] or [""] * len(names)
    notes.append(
      "a pool of "
      + "; ".join(
        f"{name} ({size} images{share})"
        for name, size, share in zip(names, sizes, shares, strict=True)
      )
    )
    of = list(dict.fromkeys(s.info.split for s in self.sources))
    common = set.intersection(*(set(s.info.splits) for s in self.sources))
    content = "\0".join(fingerprints)
    self.info: SourceInfo = SourceInfo(
      name=" + ".join(names),
      split=" + ".join(of),
      classes=classes,
      exclusive=exclusive,
      fingerprint=hashlib.sha256(content.encode()).hexdigest(),
      splits={
        name: sum(s.info.splits[name] for s in self.sources)
        for name in self.sources[0].info.splits
        if name in common
      },
      notes=tuple(dict.fromkeys(notes)),
      dataset=patient_splits.POOL,
      parts=parts,
      skipped=tuple(skipped),
      naming=tuple(dict.fromkeys(n for s in self.sources for n in s.info.naming)),
      advice=next((s.info.advice for s in self.sources if s.info.advice), ""),
    )

  def __len__(self) -> int:
    return len(self.groups)

  @functools.cached_property
  def bits(self) -> int:
    """16 if one of the sources has 16 bits, else 8."""
    return max(inspection.bits_of(source) for source in self.sources)

  def __getitem__(self, index: int) -> Record:
    return self.read(index)

  def read(self, index: int, at_least: int | None = None) -> Record:
    """Image `index`; a JPEG may be decoded smaller, for a result of `at_least` pixels."""
    if not 0 <= index < len(self):
      raise IndexError(index)
    k = int(self.groups[index])
    source, row = self.sources[k], index - int(self._starts[k])
    reader = getattr(source, "read", None)
    record = source[row] if reader is None else reader(row, at_least=at_least)
    return dataclasses.replace(
      record,
      labels=self.table.labels[index],
      id=self.table.ids[index],
      patient=self.table.patients[index],
    )


def _fold(name: str) -> str:
  """What two spellings of a class have in common."""
  return re.sub(r"[\s_-]+", " ", name.strip()).casefold()


def _merge(
  sources: Sequence[Source], renames: Sequence[Mapping[str, str]], notes: list[str]
) -> tuple[list[list[int]], tuple[str, ...], bool]:
  """For each source the merged column of each of its classes; the merged classes; exclusive."""
  place: dict[str, int] = {}
  classes: list[str] = []
  columns, spellings = [], {}
  for k, (source, rename) in enumerate(zip(sources, renames, strict=True)):
    for name in rename:
      if name not in source.info.classes:
        raise UserError(
          f"config.data.source[{k}].rename={name!r} is no class of "
          f"{source.info.name}{suggest(name, source.info.classes)}"
        )
    seen: dict[int, str] = {}
    for name in source.info.classes:
      shown = rename.get(name, name)
      key = _fold(shown)
      if key not in place:
        place[key] = len(classes)
        classes.append(shown)
      if place[key] in seen:
        raise UserError(
          f"config.data.source[{k}]: {source.info.name} has the classes "
          f"{seen[place[key]]!r} and {name!r}, which a pool would take for one; give "
          f"config.data.source[{k}].rename={{{name!r}: 'another name'}}"
        )
      seen[place[key]] = name
      if name != classes[place[key]]:
        spellings[name, classes[place[key]]] = f"{name} of {source.info.name}"
    columns.append(list(seen))
  for (_, shown), text in spellings.items():
    notes.append(f"class {text} counts as {shown}")
  labelled = [(s, set(c)) for s, c in zip(sources, columns, strict=True) if c]
  exclusive = all(s.info.exclusive and c == labelled[0][1] for s, c in labelled)
  return columns, tuple(classes), exclusive


def _id(k: int, source: Source, name: str) -> str:
  return f"{k}:{source.info.name}/{name}"


def _qualify(k: int, source: Source, columns: list[int], width: int) -> Table:
  """A source's table with the pool's columns, ids and patients."""
  labels = np.full((len(source), width), np.nan, np.float32)
  labels[:, columns] = source.table.labels
  return dataclasses.replace(
    source.table,
    ids=tuple(_id(k, source, i) for i in source.table.ids),
    patients=patient_splits.patient_keys(source),
    labels=labels,
  )


def _join(tables: Sequence[Table]) -> Table:
  texts = {
    name: tuple(value for t in tables for value in getattr(t, name))
    for name in ("ids", "patients", "sites", "views", "sexes")
  }
  return Table(
    **texts,
    labels=np.concatenate([t.labels for t in tables]),
    ages=np.concatenate([t.ages for t in tables]),
  )


def _parts(names: Sequence[str], sizes: Sequence[int], weights: Sequence[Any]) -> tuple[Part, ...]:
  for k, (weight, size) in enumerate(zip(weights, sizes, strict=True)):
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not number or not math.isfinite(weight) or weight <= 0:
      raise UserError(
        f"config.data.source[{k}].weight={weight!r} is no weight; give a number "
        "above 0, relative to the other sources' (1 where none is given), or leave "
        "the source out"
      )
    if not size:
      raise UserError(f"config.data.source[{k}] has no images to draw; leave it out")
  return tuple(
    Part(name, size, float(w)) for name, size, w in zip(names, sizes, weights, strict=True)
  )


def _refuse_repeats(sources: Sequence[Source]) -> None:
  """Raises where images are there twice: that would be a weight in disguise."""
  seen: dict[tuple[str, str], int] = {}
  for k, source in enumerate(sources):
    for name in source.table.ids:
      first = seen.setdefault((source.info.dataset, name), k)
      if first != k:
        raise UserError(
          f"config.data.source[{k}] has images that config.data.source[{first}] has, such as "
          f"{name!r} of {source.info.name}; give every image once, with a weight if its source "
          "should be drawn more often"
        )

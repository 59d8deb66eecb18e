"""Mixture of several sources: labels merged by name, images drawn by weight."""

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


class Pool(Source):
  """Concatenation of several sources.

  Classes of two sources are merged if their names are equal up to case and up to spaces, hyphens
  and underscores between words; the first spelling is used. Images have NaN for classes that their
  source lacks. Unless all sources have the same exclusive classes, classes become findings: an
  image of class A is known to be without the other classes of its own source.

  Args:
    sources: the sources to concatenate.
    weights: how often each source's images are drawn, relative to the others'; None draws every
      image equally often.
    renames: for each source, new names of some classes, under which they are merged.

  Raises:
    UserError: no source, an invalid weight, an unknown class in `renames`, two classes of one
      source that would be merged, or the same images twice.
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
    for k, (source, source_columns) in enumerate(zip(self.sources, columns, strict=True)):
      tables.append(_qualify(k, source, source_columns, len(classes)))
      skipped += [(_id(k, source, name), reason) for name, reason in source.info.skipped]
      fingerprints += [source.info.fingerprint, source.info.split, str(len(source))]
    _check_no_repeats(self.sources)
    self.table = _join(tables)
    sizes = [len(s) for s in self.sources]
    self._starts: np.ndarray = np.cumsum([0, *sizes])
    self.groups: np.ndarray = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    names = [s.info.name for s in self.sources]
    parts = () if weights is None else _parts(names, sizes, weights)
    notes.append(_pool_note(names, sizes, parts))
    splits = list(dict.fromkeys(s.info.split for s in self.sources))
    common = set.intersection(*(set(s.info.splits) for s in self.sources))
    content = "\0".join(fingerprints)
    self.info: SourceInfo = SourceInfo(
      name=" + ".join(names),
      split=" + ".join(splits),
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
  def bits(self) -> int:  # type: ignore[override]  # computed when asked for
    """16 if any source has 16 bits, else 8."""
    return max(inspection.bits_of(source) for source in self.sources)

  def __getitem__(self, index: int) -> Record:
    return self.read(index)

  def read(self, index: int, at_least: int | None = None) -> Record:
    """Reads image `index`; JPEGs may be decoded at reduced size, not below `at_least` pixels."""
    if not 0 <= index < len(self):
      raise IndexError(index)
    k = int(self.groups[index])
    source, row = self.sources[k], index - int(self._starts[k])
    record = source.read(row, at_least)
    return dataclasses.replace(
      record,
      labels=self.table.labels[index],
      id=self.table.ids[index],
      patient=self.table.patients[index],
    )


def _fold(name: str) -> str:
  """Normalized class name, equal for all its spellings."""
  return re.sub(r"[\s_-]+", " ", name.strip()).casefold()


def _merge(
  sources: Sequence[Source], renames: Sequence[Mapping[str, str]], notes: list[str]
) -> tuple[list[list[int]], tuple[str, ...], bool]:
  """Merged column of each class of each source; merged classes; whether they are exclusive."""
  column_of: dict[str, int] = {}
  classes: list[str] = []
  columns, spellings = [], {}
  for k, (source, rename) in enumerate(zip(sources, renames, strict=True)):
    for name in [name for name in rename if name not in source.info.classes]:
      raise UserError(
        f"config.data.source[{k}].rename={name!r} is not a class of "
        f"{source.info.name}{suggest(name, source.info.classes)}"
      )
    name_of: dict[int, str] = {}
    for name in source.info.classes:
      new_name = rename.get(name, name)
      key = _fold(new_name)
      if key not in column_of:
        column_of[key] = len(classes)
        classes.append(new_name)
      column = column_of[key]
      if column in name_of:
        raise UserError(
          f"config.data.source[{k}]: {source.info.name} has the classes "
          f"{name_of[column]!r} and {name!r}, which a pool would take for one; give "
          f"config.data.source[{k}].rename={{{name!r}: 'another name'}}"
        )
      name_of[column] = name
      if name != classes[column]:
        spellings[name, classes[column]] = f"{name} of {source.info.name}"
    columns.append(list(name_of))
  for (_, merged_name), text in spellings.items():
    notes.append(f"class {text} counts as {merged_name}")
  labelled = [(s, set(c)) for s, c in zip(sources, columns, strict=True) if c]
  exclusive = all(s.info.exclusive and c == labelled[0][1] for s, c in labelled)
  return columns, tuple(classes), exclusive


def _id(k: int, source: Source, name: str) -> str:
  return f"{k}:{source.info.name}/{name}"


def _qualify(k: int, source: Source, columns: list[int], width: int) -> Table:
  """Table of one source with the pool's columns, ids and patients."""
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
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not math.isfinite(weight) or weight <= 0:
      raise UserError(
        f"config.data.source[{k}].weight={weight!r} is not a weight; give a number "
        "above 0, relative to the other sources' (1 where none is given), or leave "
        "the source out"
      )
    if not size:
      raise UserError(f"config.data.source[{k}] has no images to draw; leave it out")
  return tuple(
    Part(name, size, float(w)) for name, size, w in zip(names, sizes, weights, strict=True)
  )


def _pool_note(names: Sequence[str], sizes: Sequence[int], parts: Sequence[Part]) -> str:
  """Sizes of the sources, and their shares of the draws where they are weighted."""
  total = sum(p.weight for p in parts)
  shares = [f", {p.weight / total:.3g} of the draws" for p in parts] or [""] * len(names)
  sources = zip(names, sizes, shares, strict=True)
  return "a pool of " + "; ".join(f"{name} ({n} images{share})" for name, n, share in sources)


def _check_no_repeats(sources: Sequence[Source]) -> None:
  """Raises if two sources share images, which would be a hidden weight."""
  first_source: dict[tuple[str, str], int] = {}
  for k, source in enumerate(sources):
    for name in source.table.ids:
      first = first_source.setdefault((source.info.dataset, name), k)
      if first != k:
        raise UserError(
          f"config.data.source[{k}] has images that config.data.source[{first}] has, such as "
          f"{name!r} of {source.info.name}; give every image once, with a weight if its source "
          "should be drawn more often"
        )

"""Where the tables and images of a published set lie, whichever way somebody has unpacked it."""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Iterable, Mapping

from cxrjax.builders import tfds_features
from cxrjax.builders.csv_builder import Part
from cxrjax.core.errors import UserError
from cxrjax.data.sources import archive

EDGES = ("x_min", "y_min", "x_max", "y_max")


def opened(path: pathlib.Path) -> archive.Archive:
  """A set's archive, or the folder it was unpacked to, with the archives in that folder."""
  return archive.Archive(path, nested=path.is_dir())


def table(release: archive.Archive, name: str, needed: str = "") -> str:
  """The CSV of this name, plain or gzipped, nearest to the top; empty where there is none.

  Args:
    release: opened with `opened`.
    name: without the suffix.
    needed: where to get it, of a table that must be there.

  Raises:
    UserError: it must be there and is not.
  """
  found = tfds_features.matching(release.names, rf"({re.escape(name)})\.csv(?:\.gz)?")
  if not found and needed:
    raise UserError(
      f"{release.path} has no {name}.csv: another data set, or only a part of it; "
      f"get it from {needed}"
    )
  return min(found.values(), default="")


def parts(path: pathlib.Path, names: Iterable[str], pattern: str) -> list[Part]:
  """The archives and folders with images: each is a piece of work of its own.

  Where an archive in a folder and what it unpacks to are both there, the archive is what was
  published.

  Args:
    path: the set's archive or folder.
    names: of all files in it, as `opened` shows them.
    pattern: regular expression of an image's path.

  Raises:
    UserError: there are no images.
  """
  search = re.compile(pattern).search
  tops = {name.split("/")[0] if "/" in name else "" for name in names if search(name)}
  if not tops:
    raise UserError(f"{path} has no images in it: only a part of the data set, or another one")
  if not path.is_dir() or "" in tops:
    return [Part(str(path))]
  packed = {archive.stem(p.name): p for p in sorted(path.iterdir()) if archive.is_archive(p)}
  return [Part(str(packed.get(top, path / top)), prefix=top) for top in sorted(tops)]


def without_labels(
  release: archive.Archive, pattern: str, submission: str, column: str
) -> dict[str, str]:
  """Images of a challenge whose labels were never published, and the place that names each.

  Args:
    release: opened with `opened`.
    pattern: regular expression of their paths, with a group for the image's name.
    submission: the table that names all of them, where it is there.
    column: of that table.

  Raises:
    UserError: the table names an image twice, or lacks the column.
  """
  there = {match[1] for name in release.names if (match := re.search(pattern, name))}
  listed = table(release, submission) if there else ""
  if not listed:
    return dict.fromkeys(sorted(there), str(release.path))
  found: dict[str, str] = {}
  for place, row in archive.rows(release, listed, (column,)):
    if row[column] in found:
      raise UserError(f"{place} lists {row[column][:50]} a second time")
    found[row[column]] = place
  return found


def edges(row: Mapping[str, str], place: str) -> list[float] | None:
  """[ymin, xmin, ymax, xmax] of a row with a box; None where its cells are empty.

  Raises:
    UserError: some cells are empty, or no numbers; with `place`, where they stand.
  """
  try:
    x_min, y_min, x_max, y_max = (tfds_features.number(row[name]) for name in EDGES)
  except ValueError as error:
    raise UserError(f"{place}: the box is not four numbers") from error
  box = [y_min, x_min, y_max, x_max]
  if all(map(math.isnan, box)):
    return None
  if not all(map(math.isfinite, box)):
    raise UserError(f"{place}: the box is not four numbers")
  return box

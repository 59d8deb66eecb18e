"""Locates the tables and images of a published set, in whatever way it was unpacked."""

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


def open_release(path: pathlib.Path) -> archive.Archive:
  """Opens a set's archive, or the folder it was unpacked to, with the archives in that folder."""
  return archive.Archive(path, nested=path.is_dir())


def find_table(release: archive.Archive, name: str, needed: str = "") -> str:
  """Path of the CSV of this name, plain or gzipped, nearest to the top; empty if there is none.

  Args:
    release: opened with `opened`.
    name: without the suffix.
    needed: for a required table, where to get it.

  Raises:
    UserError: a required table is missing.
  """
  matches = tfds_features.match_files(release.names, rf"({re.escape(name)})\.csv(?:\.gz)?")
  if not matches and needed:
    raise UserError(
      f"{release.path} has no {name}.csv: another data set, or only a part of it; "
      f"get it from {needed}"
    )
  return min(matches.values(), default="")


def parts(path: pathlib.Path, names: Iterable[str], pattern: str) -> list[Part]:
  """The archives and folders with images: each is a separate piece of work.

  Where a folder holds both an archive and its unpacked content, the archive is used, as it is what
  was published.

  Args:
    path: the set's archive or folder.
    names: of all files in it, as listed by `opened`.
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
  """Images of a challenge whose labels were never published, each with the place that lists it.

  Args:
    release: opened with `opened`.
    pattern: regular expression of their paths, with a group for the image's name.
    submission: name of the table that lists all of them, if there is one.
    column: of that table, with the images' names.

  Raises:
    UserError: the table names an image twice, or lacks the column.
  """
  present = {match[1] for name in release.names if (match := re.search(pattern, name))}
  csv_name = find_table(release, submission) if present else ""
  if not csv_name:
    return dict.fromkeys(sorted(present), str(release.path))
  places: dict[str, str] = {}
  for place, row in archive.rows(release, csv_name, (column,)):
    name = row[column]
    if name in places:
      raise UserError(f"{place} lists {name[:50]} a second time")
    places[name] = place
  return places


def edges(row: Mapping[str, str], place: str) -> list[float] | None:
  """Parses the box of a row to [ymin, xmin, ymax, xmax]; None where its cells are empty.

  Raises:
    UserError: some cells are empty or not numbers; the message names `place`, where they are.
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

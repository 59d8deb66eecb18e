"""Which images of a folder the rows of a table mean."""

from __future__ import annotations

import functools
import posixpath
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int64

from cxrjax.core.errors import UserError
from cxrjax.data.sources.folder_index import Index

_SEVERAL = -2


def by_path(
  index: Index, file: str, names: Sequence[str], numbers: Sequence[int]
) -> tuple[Int64[np.ndarray, "n"], list[tuple[str, int]]]:
  """Row of each image in the index, -1 for those that are not there; and those, with their lines.

  Args:
    index: the images.
    file: the table, for errors.
    names: paths of its images.
    numbers: lines that they stand on.

  Raises:
    UserError: a row that names no image, one that was named before, or one of several.
  """
  files = _Files(index)
  rows = np.array(files.find_all(names, lambda i: f"{file} line {numbers[i]}"), np.int64)
  there = rows[rows >= 0]
  if len(np.unique(there)) < len(there):
    first: dict[int, int] = {}
    for row, number in zip(rows.tolist(), numbers, strict=True):
      if row >= 0 and first.setdefault(row, number) != number:
        raise UserError(
          f"{file} line {number} names {index.paths[row]} again (first on line {first[row]})"
        )
  absent: dict[str, int] = {}
  for i in np.flatnonzero(rows < 0).tolist():
    if absent.setdefault(names[i], numbers[i]) != numbers[i]:
      raise UserError(
        f"{file} line {numbers[i]} names {names[i]} again (first on line {absent[names[i]]})"
      )
  return rows, [*absent.items()]


class _Files:
  """Finds the images a table names, whose folder may be one above or below the index's root.

  A name fits an image if one's path ends in the other's, with or without the image's extension.
  What a name has before the image's whole path must be the names of the root's own folders.
  """

  def __init__(self, index: Index, spelt: Callable[[str], str] = str):
    self._index = index
    self._root = index.root.resolve()
    self._by_path: dict[str, int] = {}
    for row in index.images.tolist():
      path = spelt(index.paths[row])
      if self._by_path.setdefault(path, row) != row:
        self._by_path[path] = _SEVERAL
    self._by_end: dict[int, dict[str, int]] = {}

  def find_all(self, names: Sequence[str], where: Callable[[int], str]) -> list[int]:
    """Row of each image, -1 where there is none."""
    rows = [self._by_path.get(name, -1) for name in names]
    for i, name in enumerate(names):
      if rows[i] < 0:
        rows[i] = self._find(name, functools.partial(where, i))
    return rows

  def _find(self, name: str, where: Callable[[], str]) -> int:
    if not name:
      raise UserError(f"{where()} names no image")
    path = name
    if "\\" in path or path[0] == "." or "/" in path:
      path = self._below(name, where)
    row = self._row(path)
    if row == _SEVERAL:
      one, other = [p for p in self._by_path if path in _ends(p, path.count("/") + 1)][:2]
      raise UserError(f"{where()}: {name} may be {one} or {other}; give its whole path")
    if row < 0 and not path.isascii():
      row = max(self._composed._row(_composed(path)), -1)
    return row

  def _row(self, path: str) -> int:
    """Of a path with slashes; -1 where there is none, _SEVERAL where it fits more than one."""
    row = self._by_path.get(path, -1)
    row = self._ends(path.count("/") + 1).get(path, -1) if row < 0 else row
    return self._from_above(path) if row == -1 else row

  def _from_above(self, path: str) -> int:
    """An image by a path that begins in folders that the root lies in, or in the root."""
    parts = path.split("/")
    for own in {self._root, self._index.root.absolute()}:
      folders = [*own.parent.parts, own.stem if own.is_file() else own.name]
      for count in range(1, min(len(parts), len(folders) + 1)):
        if parts[:count] == folders[-count:]:
          below = "/".join(parts[count:])
          row = self._by_path.get(below, -1)
          row = self._without_extension().get(below, -1) if row < 0 else row
          if row >= 0:
            return row
    return -1

  @functools.cached_property
  def _composed(self) -> _Files:
    """The same images by names of the same letters: a letter and its accent as one.

    macOS writes names as two, most tables have one.
    """
    return _Files(self._index, _composed)

  def _below(self, name: str, where: Callable[[], str]) -> str:
    """The path from the root on."""
    path = posixpath.normpath(name.replace("\\", "/"))
    if path.startswith("/"):
      roots = {str(self._index.root), str(self._root)}
      inside = next((path[len(r) + 1 :] for r in roots if path.startswith(f"{r}/")), None)
      if inside is None:
        raise UserError(
          f"{where()}: {name} is outside {self._index.root}; give a folder that "
          "holds all images, or paths below it"
        )
      return inside
    if path.split("/")[0] == "..":
      raise UserError(f"{where()}: {name} leads out of {self._index.root}")
    return path

  def _without_extension(self) -> dict[str, int]:
    if 0 not in self._by_end:
      stems = self._by_end[0] = {}
      for path, row in self._by_path.items():
        stem = posixpath.splitext(path)[0]
        if stems.setdefault(stem, row) != row:
          stems[stem] = _SEVERAL
    return self._by_end[0]

  def _ends(self, depth: int) -> dict[str, int]:
    """Images by the last `depth` parts of their paths; _SEVERAL where that fits more than one."""
    if depth not in self._by_end:
      ends = self._by_end[depth] = {}
      for path, row in self._by_path.items():
        for end in _ends(path, depth):
          if ends.setdefault(end, row) != row:
            ends[end] = _SEVERAL
    return self._by_end[depth]


def _ends(path: str, depth: int) -> tuple[str, ...]:
  """The last `depth` parts of a path, with and without its extension; nothing if it has fewer."""
  end = "/".join(path.rsplit("/", depth)[-depth:]) if depth > 1 else path.rpartition("/")[2]
  if end.count("/") != depth - 1:
    return ()
  stem, dot, _ = end.rpartition(".")
  return (end, stem) if dot and stem and not stem.endswith("/") else (end,)


def _composed(name: str) -> str:
  return unicodedata.normalize("NFC", name)

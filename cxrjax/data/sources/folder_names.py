"""Matches the rows of a table to the images of a folder by path."""

from __future__ import annotations

import functools
import posixpath
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int64

from cxrjax.core.errors import UserError
from cxrjax.data.sources.folder_index import Index

_AMBIGUOUS = -2


def by_path(
  index: Index, file: str, names: Sequence[str], numbers: Sequence[int]
) -> tuple[Int64[np.ndarray, "n"], list[tuple[str, int]]]:
  """Row of each image in the index, -1 if missing; and the missing names with their lines.

  Args:
    index: the images.
    file: the table, for errors.
    names: paths of its images.
    numbers: line numbers of the paths.

  Raises:
    UserError: a row names no image, a repeated one, or is ambiguous.
  """
  files = _Files(index)
  rows = np.array(files.find_all(names, lambda i: f"{file} line {numbers[i]}"), np.int64)
  matched = rows[rows >= 0]
  if len(np.unique(matched)) < len(matched):
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
  """Finds the images named by a table, whose paths may start above or below the index's root.

  A name matches an image if either path ends in the other, with or without the image's extension.
  Whatever precedes the image's full path in a name must be the folders that lead to the root.
  """

  def __init__(self, index: Index, normalize: Callable[[str], str] = str):
    self._index = index
    self._root = index.root.resolve()
    self._by_path: dict[str, int] = {}
    for row in index.images.tolist():
      path = normalize(index.paths[row])
      if self._by_path.setdefault(path, row) != row:
        self._by_path[path] = _AMBIGUOUS
    self._by_suffix: dict[int, dict[str, int]] = {}

  def find_all(self, names: Sequence[str], where: Callable[[int], str]) -> list[int]:
    """Row of each image, -1 if there is none."""
    rows = [self._by_path.get(name, -1) for name in names]
    for i, name in enumerate(names):
      if rows[i] < 0:
        rows[i] = self._find(name, functools.partial(where, i))
    return rows

  def _find(self, name: str, where: Callable[[], str]) -> int:
    if not name:
      raise UserError(f"{where()} does not name an image")
    path = name
    if "\\" in path or path[0] == "." or "/" in path:
      path = self._relative(name, where)
    row = self._row(path)
    if row == _AMBIGUOUS:
      depth = path.count("/") + 1
      first, second = [p for p in self._by_path if path in _suffixes(p, depth)][:2]
      raise UserError(f"{where()}: {name} may be {first} or {second}; give its full path")
    if row < 0 and not path.isascii():
      row = max(self._normalized._row(_compose(path)), -1)
    return row

  def _row(self, path: str) -> int:
    """Row of a path with slashes; -1 without a match, _AMBIGUOUS with more than one."""
    row = self._by_path.get(path, -1)
    if row < 0:
      row = self._suffix_rows(path.count("/") + 1).get(path, -1)
    return self._from_above(path) if row == -1 else row

  def _from_above(self, path: str) -> int:
    """Row of a path that starts with the root's name or with folders above the root."""
    parts = path.split("/")
    for root in {self._root, self._index.root.absolute()}:
      folders = [*root.parent.parts, root.stem if root.is_file() else root.name]
      for count in range(1, min(len(parts), len(folders) + 1)):
        if parts[:count] == folders[-count:]:
          relative = "/".join(parts[count:])
          row = self._by_path.get(relative, -1)
          if row < 0:
            row = self._without_extension().get(relative, -1)
          if row >= 0:
            return row
    return -1

  @functools.cached_property
  def _normalized(self) -> _Files:
    """The same images by Unicode-composed (NFC) names.

    macOS decomposes accented letters in file names, while most tables have them composed.
    """
    return _Files(self._index, _compose)

  def _relative(self, name: str, where: Callable[[], str]) -> str:
    """Path relative to the root."""
    path = posixpath.normpath(name.replace("\\", "/"))
    if path.startswith("/"):
      roots = {str(self._index.root), str(self._root)}
      relative = next((path[len(r) + 1 :] for r in roots if path.startswith(f"{r}/")), None)
      if relative is None:
        raise UserError(
          f"{where()}: {name} is outside {self._index.root}; give a folder that "
          "holds all images, or paths below it"
        )
      return relative
    if path.split("/")[0] == "..":
      raise UserError(f"{where()}: {name} points outside {self._index.root}")
    return path

  def _without_extension(self) -> dict[str, int]:
    """Rows by full path without extension."""
    if 0 not in self._by_suffix:
      stems = self._by_suffix[0] = {}
      for path, row in self._by_path.items():
        stem = posixpath.splitext(path)[0]
        if stems.setdefault(stem, row) != row:
          stems[stem] = _AMBIGUOUS
    return self._by_suffix[0]

  def _suffix_rows(self, depth: int) -> dict[str, int]:
    """Rows by the last `depth` parts of the paths; _AMBIGUOUS for more than one image."""
    if depth not in self._by_suffix:
      rows = self._by_suffix[depth] = {}
      for path, row in self._by_path.items():
        for suffix in _suffixes(path, depth):
          if rows.setdefault(suffix, row) != row:
            rows[suffix] = _AMBIGUOUS
    return self._by_suffix[depth]


def _suffixes(path: str, depth: int) -> tuple[str, ...]:
  """The last `depth` parts of a path, with and without extension; empty if it has fewer parts."""
  suffix = "/".join(path.rsplit("/", depth)[-depth:]) if depth > 1 else path.rpartition("/")[2]
  if suffix.count("/") != depth - 1:
    return ()
  stem, dot, _ = suffix.rpartition(".")
  return (suffix, stem) if dot and stem and not stem.endswith("/") else (suffix,)


def _compose(name: str) -> str:
  return unicodedata.normalize("NFC", name)

"""Helpers of `data.sources.archive`: walks folders, unpacks tars, filters nested archives."""

from __future__ import annotations

import bz2
import fnmatch
import gzip
import io
import lzma
import os
import pathlib
import zipfile
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

from cxrjax.core import files

_OPENERS: dict[bytes, Callable[[io.BufferedReader], Any]] = {
  b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
  b"BZ": bz2.BZ2File,
  b"\xfd7": lzma.LZMAFile,
}


def check_start(opened: zipfile.ZipFile) -> None:
  """Raises BadZipFile if Python mistook the end record of a zip inside the zip for its own."""
  assert opened.fp is not None  # the zip is open
  opened.fp.seek(0)
  first = min((info.header_offset for info in opened.infolist()), default=0)
  if first and opened.fp.read(4) == b"PK\3\4":
    raise zipfile.BadZipFile("its end is missing")


def unpacked(path: pathlib.Path) -> Any:
  """Opens a tar for reading, decompressing gzip, bzip2 or xz on the fly.

  Raises:
    Damaged: not a regular file; during reading, if it unpacks to implausibly many bytes.
  """
  file = files.open_regular(path)
  magic = file.read(2)
  file.seek(0)
  return _LimitedStream(file, _OPENERS[magic](file)) if magic in _OPENERS else file


class _LimitedStream:
  """A decompressed file with a limit on the unpacked bytes, including those skipped by seeking."""

  def __init__(self, packed: io.BufferedIOBase, plain: Any):
    self._packed, self._plain = packed, plain
    self._max_bytes = max(
      files.SMALL_MEMBER_BYTES, files.MAX_RATIO * os.fstat(packed.fileno()).st_size
    )

  def read(self, size: int) -> bytes:
    self._check(self._plain.tell() + size)
    return self._plain.read(size)

  def seek(self, offset: int) -> int:
    self._check(offset)
    return self._plain.seek(offset)

  def tell(self) -> int:
    return self._plain.tell()

  def close(self) -> None:
    self._plain.close()
    self._packed.close()

  def _check(self, position: int) -> None:
    if position > self._max_bytes:
      raise files.Damaged(f"it would unpack to more than {self._max_bytes:,} bytes")


class Inside:
  """View of `wanted` for a nested archive: tests its names with `folder` in front."""

  def __init__(self, wanted: Container[str], folder: str):
    self._wanted, self._folder = wanted, folder

  def __contains__(self, name: object) -> bool:
    return f"{self._folder}/{name}" in self._wanted


def walk(root: pathlib.Path, only: Sequence[str]) -> Iterator[str]:
  """Yields the files below a folder; follows links to folders, but visits no folder twice.

  Args:
    root: the folder.
    only: case-insensitive glob patterns of the files and folders to include at the top level.
  """

  def matching(names: list[str]) -> list[str]:
    return sorted(
      n for n in names if any(fnmatch.fnmatchcase(n.lower(), pattern.lower()) for pattern in only)
    )

  visited: set[str] = set()
  for folder, subfolders, names in os.walk(root, followlinks=True):
    prefix = os.path.relpath(folder, root)
    if prefix == ".":
      subfolders[:], names = matching(subfolders), matching(names)
    else:
      subfolders.sort()
    real = os.path.realpath(folder)
    if real in visited:
      subfolders.clear()
      continue
    visited.add(real)
    for file in sorted(names):
      yield file if prefix == "." else f"{prefix.replace(os.sep, '/')}/{file}"

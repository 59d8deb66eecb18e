"""Parts of `data.sources.archive`: walking folders, unpacking tars, archives in archives."""

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
  """Raises BadZipFile where Python took the end of a zip inside a zip for that of the whole."""
  assert opened.fp is not None  # it is open
  opened.fp.seek(0)
  first = min((info.header_offset for info in opened.infolist()), default=0)
  if first and opened.fp.read(4) == b"PK\3\4":
    raise zipfile.BadZipFile("its end is missing")


def unpacked(path: pathlib.Path) -> Any:
  """A tar's bytes, open for reading, unpacked on the way where gzip, bzip2 or xz packed it.

  Raises:
    Damaged: no regular file; later, that it unpacks to far more than such a file plausibly does.
  """
  file = files.opened(path)
  start = file.read(2)
  file.seek(0)
  return _Unpacked(file, _OPENERS[start](file)) if start in _OPENERS else file


class _Unpacked:
  """A packed file; what is unpacked of it is counted, also where it is passed over."""

  def __init__(self, packed: io.BufferedIOBase, plain: Any):
    self._packed, self._plain = packed, plain
    self._most = max(files.SMALL, files.MAX_RATIO * os.fstat(packed.fileno()).st_size)

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

  def _check(self, place: int) -> None:
    if place > self._most:
      raise files.Damaged(f"it would unpack to more than {self._most:,} bytes")


class Inside:
  """Which names of an archive in a folder are wanted."""

  def __init__(self, wanted: Container[str], folder: str):
    self._wanted, self._folder = wanted, folder

  def __contains__(self, name: object) -> bool:
    return f"{self._folder}/{name}" in self._wanted


def walk(root: pathlib.Path, only: Sequence[str]) -> Iterator[str]:
  """Files below a folder; links to folders are followed, but no folder is gone through twice."""

  def chosen(names: list[str]) -> list[str]:
    return sorted(
      n for n in names if any(fnmatch.fnmatchcase(n.lower(), pattern.lower()) for pattern in only)
    )

  seen: set[str] = set()
  for folder, below, names in os.walk(root, followlinks=True):
    prefix = os.path.relpath(folder, root)
    below[:], names = (chosen(below), chosen(names)) if prefix == "." else (sorted(below), names)
    real = os.path.realpath(folder)
    if real in seen:
      below.clear()
      continue
    seen.add(real)
    for file in sorted(names):
      yield file if prefix == "." else f"{prefix.replace(os.sep, '/')}/{file}"

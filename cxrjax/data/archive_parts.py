"""Parts of `cxrjax.data.archive`: folders gone through, names in archives in archives, zips cut."""

from __future__ import annotations

import fnmatch
import os
import pathlib
import zipfile
from collections.abc import Container, Iterator, Sequence


def check_start(opened: zipfile.ZipFile) -> None:
  """Raises BadZipFile where Python took the end of a zip inside a zip for that of the whole."""
  opened.fp.seek(0)
  first = min((info.header_offset for info in opened.infolist()), default=0)
  if first and opened.fp.read(4) == b"PK\3\4":
    raise zipfile.BadZipFile("its end is missing")


class Inside:
  """Which names of an archive in a folder are wanted."""

  def __init__(self, wanted: Container[str], folder: str):
    self._wanted, self._folder = wanted, folder

  def __contains__(self, name: str) -> bool:
    return f"{self._folder}/{name}" in self._wanted


def walk(root: pathlib.Path, only: Sequence[str]) -> Iterator[str]:
  """Files below a folder; links to folders are followed, but no folder is gone through twice."""
  def chosen(names: list[str]) -> list[str]:
    return sorted(n for n in names
                  if any(fnmatch.fnmatchcase(n.lower(), pattern.lower()) for pattern in only))

  seen: set[str] = set()
  for folder, below, files in os.walk(root, followlinks=True):
    prefix = os.path.relpath(folder, root)
    below[:], files = (chosen(below), chosen(files)) if prefix == "." else (sorted(below), files)
    real = os.path.realpath(folder)
    if real in seen:
      below.clear()
      continue
    seen.add(real)
    for file in sorted(files):
      yield file if prefix == "." else f"{prefix.replace(os.sep, '/')}/{file}"

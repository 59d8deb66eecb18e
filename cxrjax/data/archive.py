"""Published archives, read where they lie: a zip or the folder somebody unpacked it to."""

from __future__ import annotations

import contextlib
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence

from cxrjax.core.errors import UserError

_JUNK_FOLDERS = {"__MACOSX", ".ipynb_checkpoints", "@eaDir"}
_JUNK_FILES = {"thumbs.db", "desktop.ini", ".ds_store"}


def is_junk(name: str) -> bool:
  """Whether a path is left behind by an operating system rather than published."""
  *folders, file = name.replace("\\", "/").split("/")
  hidden = file.startswith(".") or any(f.startswith(".") and f not in (".", "..") for f in folders)
  return hidden or file.lower() in _JUNK_FILES or not _JUNK_FOLDERS.isdisjoint(folders)


class Archive:
  """The files of a zip or a folder, by their names inside it, junk left out.

  Args:
    path: a zip file or a folder.

  Attributes:
    path: as given.
    names: names of the files, `/` between folders, sorted.

  Raises:
    UserError: it is neither, or a zip that is damaged or cut short.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)
    self._zip: zipfile.ZipFile | None = None
    if self.path.is_dir():
      names = [f.relative_to(self.path).as_posix() for f in self.path.rglob("*") if f.is_file()]
    else:
      try:
        self._zip = zipfile.ZipFile(self.path)
      except FileNotFoundError as error:
        raise UserError(f"{self.path} does not exist") from error
      except (zipfile.BadZipFile, OSError) as error:
        raise UserError(
          f"{self.path} is not a whole zip file ({error}): a download that broke off? "
          "delete it and download it again") from error
      names = [info.filename for info in self._zip.infolist() if not info.is_dir()]
    self.names = tuple(sorted(name for name in names if not is_junk(name)))

  def read(self, name: str) -> bytes:
    """The bytes of one file. Raises a UserError where they are damaged."""
    try:
      if self._zip is None:
        return (self.path / name).read_bytes()
      return self._zip.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
      raise UserError(
        f"{self.path}: {name} in it is damaged ({error}); download it again") from error

  def close(self) -> None:
    if self._zip is not None:
      self._zip.close()

  def __enter__(self) -> Archive:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def find(folder: str | os.PathLike, candidates: Sequence[str], where_to_get: str) -> pathlib.Path:
  """The first archive or unpacked folder in `folder` that matches one of the patterns.

  Args:
    folder: the manual folder.
    candidates: glob patterns, the most specific first, e.g. `("chest_xray.zip", "chest_xray")`.
    where_to_get: for the error, e.g. an address.

  Raises:
    UserError: none is there, or only a download that has not finished.
  """
  folder = pathlib.Path(folder).expanduser()
  for pattern in candidates:
    for path in sorted(folder.glob(pattern)):
      if path.is_dir() or zipfile.is_zipfile(path) or path.suffix == ".zip":
        return path
  for path in _unfinished(folder):
    raise UserError(f"{path} is a download that has not finished; let it finish, then run again")
  raise UserError(
    f"{folder} has no {candidates[0]} (nor {', '.join(candidates[1:])}); get it from "
    f"{where_to_get} and put it there, or name another folder with manual_dir")


def _unfinished(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  with contextlib.suppress(OSError):
    for path in sorted(folder.iterdir()):
      if path.suffix in (".crdownload", ".part", ".partial", ".download"):
        yield path

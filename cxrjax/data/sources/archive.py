"""Published archives, read where they lie: a zip, a tar, or the folder somebody unpacked it to.

Nothing is ever extracted to disk. What an archive says of itself is not trusted: members are read
up to a size, names that lead out of the archive are not looked at, a name that comes twice is read
the first time only.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import lzma
import os
import pathlib
import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Container, Iterator, Sequence
from typing import Any

from cxrjax.core import files
from cxrjax.core.errors import UserError, suggest
from cxrjax.data.sources import archive_parts

MAX_BYTES = 1 << 30  # of one member; the largest published radiograph has a tenth of it
_ZIPS, _TARS = (".zip",), (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_UNFINISHED = (".crdownload", ".part", ".partial", ".download", ".aria2", ".!qb")
_JUNK_FOLDERS = {"__MACOSX", ".ipynb_checkpoints", "@eaDir"}
_JUNK_FILES = {"thumbs.db", "desktop.ini", ".ds_store"}
_DAMAGE = (
  zipfile.BadZipFile,
  tarfile.TarError,
  zlib.error,
  lzma.LZMAError,
  EOFError,
  OSError,
  files.Damaged,
  OverflowError,
)


def is_junk(name: str) -> bool:
  """Whether a path is left behind by an operating system rather than published."""
  *folders, file = name.replace("\\", "/").split("/")
  hidden = file.startswith(".") or any(f.startswith(".") and f not in (".", "..") for f in folders)
  return hidden or file.lower() in _JUNK_FILES or not _JUNK_FOLDERS.isdisjoint(folders)


def is_left_behind(name: str) -> bool:
  """Whether an operating system or a program put a file or folder there, of no use to anybody."""
  *folders, file = name.rstrip("/").split("/")
  return (
    file.startswith("._")
    or file.lower() in _JUNK_FILES
    or not _JUNK_FOLDERS.isdisjoint((*folders, file))
  )


def is_archive(name: str | os.PathLike) -> bool:
  """Whether a file's name is that of an archive that is read here."""
  return os.fspath(name).lower().endswith(_ZIPS + _TARS)


def is_tar(name: str | os.PathLike) -> bool:
  """Whether a file's name is that of a tar."""
  return os.fspath(name).lower().endswith(_TARS)


def stem(name: str | os.PathLike) -> str:
  """An archive's file name without its suffix: `images_001.tar.gz` gives `images_001`."""
  name = os.path.basename(os.fspath(name))
  ends = [end for end in _TARS + _ZIPS if name.lower().endswith(end)]
  return name[: -len(max(ends, key=len))] if ends else name


class Archive:
  """The files of a zip, a tar or a folder, by their names inside it, junk left out.

  A file is found by name quickly in a folder, a zip and a plain tar. A compressed tar has to be
  unpacked from its start to list or find anything: go through it once, with `members`.

  Args:
    path: a zip, a tar (plain, gzip, bzip2 or xz) or a folder.
    nested: look into archives in it (which must be zips where it is no folder) as if each had been
      unpacked to a folder of its own name, without the suffix. Where there is such a folder too, it
      is passed over: an archive says when it is not whole.
    only: of a folder, the files and folders right in it to look at: glob patterns, whatever the
      case.
    max_bytes: a larger member is refused.
    content: the archive's bytes, where it lies in no file of its own; `path` is then for errors.

  Attributes:
    path: as given.
    junk: what is left out, see `is_junk`.

  Raises:
    UserError: it does not exist, or is damaged or cut short.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    *,
    nested: bool = False,
    only: Sequence[str] = ("*",),
    max_bytes: int = MAX_BYTES,
    content: bytes | None = None,
  ):
    self.path = pathlib.Path(path)
    self.junk: list[str] = []
    self._refused: list[tuple[str, str]] = []
    self._max_bytes = max_bytes
    self._zip: zipfile.ZipFile | None = None
    self._tar: tarfile.TarFile | None = None
    self._bytes: Any = None  # of the tar
    self._inner: dict[str, Archive] = {}
    self._names: tuple[str, ...] | None = None
    # Where each file lies: its path in the folder, ZipInfo or TarInfo; None for a tar not yet read.
    self._where: dict[str, Any] | None = {}
    if content is None and self.path.is_dir():
      for name in archive_parts.walk(self.path, only):
        self._accept(self._where, name, name)
    elif content is None and not self.path.exists():
      raise UserError(f"{self.path} does not exist")
    elif content is None and is_tar(self.path):
      with self._damaged(""), contextlib.ExitStack() as stack:
        self._bytes = stack.enter_context(contextlib.closing(archive_parts.unpacked(self.path)))
        self._tar = tarfile.open(fileobj=self._bytes, mode="r:")  # noqa: SIM115
        stack.pop_all()  # it stays open
      self._where = None
    else:
      with self._damaged(""):
        self._zip = files.open_zip(self.path if content is None else io.BytesIO(content))
        archive_parts.check_start(self._zip)
      for info in self._zip.infolist():
        if not info.filename.endswith("/"):
          self._accept(self._where, info.filename, info)
    if nested:
      try:
        self._open_inner()
      except UserError:
        self.close()
        raise

  @property
  def names(self) -> tuple[str, ...]:
    """Names of the files, `/` between folders, sorted."""
    if self._names is None:
      inside = (f"{folder}/{name}" for folder, inner in self._inner.items() for name in inner.names)
      self._names = tuple(sorted([*self._files, *inside]))
    return self._names

  @property
  def refused(self) -> tuple[tuple[str, str], ...]:
    """Name of each file that is not looked at, and why; of a compressed tar after one pass."""
    return (
      *self._refused,
      *(
        (f"{folder}/{name}", reason)
        for folder, inner in self._inner.items()
        for name, reason in inner.refused
      ),
    )

  def __contains__(self, name: str) -> bool:
    inner, rest = self._belongs(name)
    return rest in inner if inner else name in self._files

  def read(self, name: str, max_bytes: int | None = None) -> bytes:
    """The bytes of one file.

    Raises:
      UserError: it is not in the archive, is damaged, encrypted, or larger than may be.
    """
    inner, rest = self._belongs(name)
    if inner:
      return inner.read(rest, max_bytes)
    if name not in self._files:
      raise UserError(f"{self.path} has no {name} in it")
    where, limit = self._files[name], max_bytes or self._max_bytes
    with self._damaged(name):
      if self._zip is not None:
        return self._read_zip(where, limit)
      if self._tar is not None:
        return self._read_tar(name, where, limit)
      file = self.path / where
      self._check_size(name, file.stat().st_size, limit)
      with files.opened(file) as opened:
        return opened.read()

  def members(self, wanted: Container[str] | None = None) -> Iterator[tuple[str, bytes]]:
    """Every file's name and bytes, in the order they lie in the archive: one pass, whatever it is.

    Args:
      wanted: names to read; by default all.
    """
    if self._tar is not None and self._where is None:
      for name, info in self._walk_tar():
        if wanted is None or name in wanted:
          with self._damaged(name):
            data = self._read_tar(name, info, self._max_bytes)
          yield name, data
    else:
      order = list(self._files)
      if self._zip is not None:
        order.sort(key=lambda name: self._files[name].header_offset)
      for name in order:
        if wanted is None or name in wanted:
          yield name, self.read(name)
    for folder, inner in self._inner.items():
      inside = None if wanted is None else archive_parts.Inside(wanted, folder)
      for name, data in inner.members(inside):
        yield f"{folder}/{name}", data

  def close(self) -> None:
    for opened in (self._zip, self._tar, self._bytes, *self._inner.values()):
      if opened is not None:
        opened.close()

  def __enter__(self) -> Archive:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  # How it is done.

  @property
  def _files(self) -> dict[str, Any]:
    if self._where is None:
      for _ in self._walk_tar():
        pass
    assert self._where is not None  # as a whole walk leaves it
    return self._where

  def _accept(self, known: dict[str, Any], name: str, where: object) -> str | None:
    """Adds a file under the name it is known by; None for one that is not looked at."""
    clean = posixpath.normpath(name.replace("\\", "/"))
    if is_junk(clean.removeprefix("../")):
      self.junk.append(clean)
      return None
    if name.startswith(("/", "\\")) or clean.split("/")[0] == ".." or ":" in clean.split("/")[0]:
      self._refused.append((name, "its name leads out of the archive"))
      return None
    if clean in known:
      self._refused.append((name, "its name comes a second time in the archive"))
      return None
    known[clean] = where
    return clean

  def _walk_tar(self) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The tar's files in order; remembers them on the way."""
    assert self._tar is not None
    found: dict[str, Any] = {}
    self._refused, self.junk = [], []
    members = iter(self._tar)
    while True:
      with self._damaged(""):
        info = next(members, None)
        if info is None:
          # The end is marked by zeros: without them somebody cut the file between two members.
          self._bytes.seek(self._tar.offset)
          if self._bytes.read(512) != bytes(512):
            raise EOFError("its end is missing")
          self._bytes.read(1 << 16)  # the padding, up to where gzip compares its checksum
          self._where = found
          return
      if info.isreg():
        name = self._accept(found, info.name, info)
        if name is not None:
          yield name, info
      elif not info.isdir() and not is_junk(info.name):
        self._refused.append((info.name, "it is a link or a device, not a file"))

  def _read_tar(self, name: str, info: tarfile.TarInfo, limit: int) -> bytes:
    self._check_size(name, info.size, limit)
    assert self._tar is not None
    file = self._tar.extractfile(info)
    assert file is not None  # only regular files are accepted
    data = file.read()
    if len(data) != info.size:
      raise EOFError("it is cut short")
    return data

  def _read_zip(self, info: zipfile.ZipInfo, limit: int) -> bytes:
    assert self._zip is not None
    try:
      return files.unzip(self._zip, info, limit)
    except files.Damaged as error:
      reason = str(error).removeprefix("it ")
      raise UserError(
        f"{self.path}: {info.filename} in it {reason}; get the archive from its "
        "publisher, or unpack it and give the folder"
      ) from error

  def _check_size(self, name: str, size: int, limit: int) -> None:
    if size > limit:
      raise UserError(f"{self.path}: {name} in it has {size:,} bytes; at most {limit:,} are read")

  def _open_inner(self) -> None:
    for name in [n for n in self._files if is_archive(n)]:
      if self._zip is None and self._tar is None:
        inner = Archive(self.path / self._files[name], max_bytes=self._max_bytes)
      elif name.lower().endswith(_ZIPS):
        inner = Archive(f"{self.path}:{name}", max_bytes=self._max_bytes, content=self.read(name))
      else:
        continue
      folder = posixpath.join(posixpath.dirname(name), stem(name))
      self._inner[folder] = inner
      for file in [f for f in self._files if f == name or f.startswith(f"{folder}/")]:
        del self._files[file]

  def _belongs(self, name: str) -> tuple[Archive | None, str]:
    """The archive inside this one that a file lies in, and its name there."""
    for folder, inner in self._inner.items():
      if name.startswith(f"{folder}/"):
        return inner, name[len(folder) + 1 :]
    return None, name

  @contextlib.contextmanager
  def _damaged(self, name: str) -> Iterator[None]:
    try:
      yield
    except _DAMAGE as error:
      detail = " ".join(str(error).split())[:200] or type(error).__name__
      if name:
        raise UserError(
          f"{self.path}: {name} in it is damaged ({detail}); download it again"
        ) from error
      kind = "tar" if is_tar(self.path) else "zip"
      raise UserError(
        f"{self.path} is not a whole {kind} file ({detail}): a download that broke "
        "off? delete it and download it again"
      ) from error


def rows(
  opened: Archive, name: str, columns: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
  """Rows of a CSV in an archive, plain or gzipped, with a place for errors: `FILE line 5`.

  Args:
    opened: the archive.
    name: of the CSV in it, `.csv` or `.csv.gz`.
    columns: those it must have.

  Raises:
    UserError: a column is missing, a row has too many or too few fields, or it is no text.
  """
  data, where = opened.read(name), f"{opened.path}: {name}"
  if name.lower().endswith(".gz"):
    limit = min(MAX_BYTES, max(files.SMALL, files.MAX_RATIO * len(data)))
    try:
      with gzip.open(io.BytesIO(data)) as packed:
        data = packed.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
      raise UserError(f"{where} is damaged ({error}); download it again") from error
    if len(data) > limit:
      raise UserError(f"{where} unpacks to more than {limit:,} bytes")
  try:
    text = io.StringIO(data.decode("utf-8-sig"), newline="")
  except UnicodeDecodeError as error:
    raise UserError(f"{where} is not text in UTF-8 (byte {error.start})") from error
  reader = csv.DictReader(text)
  try:
    header = reader.fieldnames or []
    for column in columns:
      if column not in header:
        raise UserError(f"{where} has no column {column!r}{suggest(column, header)}")
    for row in reader:
      place = f"{where} line {reader.line_num}"
      if any(row.pop(None, ())) or any(row[column] is None for column in columns):
        raise UserError(
          f"{place} has not as many fields as the header's {len(header)}: is the file whole?"
        )
      yield place, {column: cell or "" for column, cell in row.items()}
  except csv.Error as error:
    raise UserError(f"{where} line {reader.line_num} is no CSV ({error})") from error


def find(
  folder: str | os.PathLike,
  candidates: Sequence[str],
  where_to_get: str,
  markers: Sequence[str] = (),
) -> pathlib.Path:
  """The first archive or unpacked folder in `folder` that matches one of the patterns.

  Args:
    folder: the manual folder.
    candidates: glob patterns, the most specific first, e.g. `("chest_xray.zip", "chest_xray")`.
    where_to_get: for the error, e.g. an address.
    markers: glob patterns of what the archive has at its top: a manual folder that has one of these
      is itself the unpacked archive.

  Raises:
    UserError: none is there, or only a download that has not finished.
  """
  folder = pathlib.Path(folder).expanduser()
  for path in (path for pattern in candidates for path in sorted(folder.glob(pattern))):
    if path.is_dir() or is_archive(path) or (path.is_file() and zipfile.is_zipfile(path)):
      return path
  if any(True for pattern in markers for _ in folder.glob(pattern)):
    return folder
  raise _absent(folder, candidates, where_to_get)


def gather(folder: str | os.PathLike, candidates: Sequence[str], where_to_get: str) -> Archive:
  """All archives, folders and files in `folder` that match one of the patterns, as one.

  For sets published in pieces, and for those unpacked right into the manual folder. Arguments are
  those of `find`; patterns match whatever the case.

  Raises:
    UserError: none is there, one is damaged, or there is only a download that has not finished.
  """
  folder = pathlib.Path(folder).expanduser()
  opened = Archive(folder, nested=True, only=candidates)
  if not opened.names:
    opened.close()
    raise _absent(folder, candidates, where_to_get)
  return opened


def _absent(folder: pathlib.Path, candidates: Sequence[str], where_to_get: str) -> UserError:
  with contextlib.suppress(OSError):
    for path in sorted(folder.iterdir()):
      if path.name.lower().endswith(_UNFINISHED):
        return UserError(
          f"{path} is a download that has not finished; let it finish, then run again"
        )
  others = f" (nor {', '.join(candidates[1:])})" if len(candidates) > 1 else ""
  return UserError(
    f"{folder} has no {candidates[0]}{others}; get it from "
    f"{where_to_get} and put it there, or name another folder with manual_dir"
  )

"""Reads published archives in place: a zip, a tar, or the folder one was unpacked to.

Nothing is ever extracted to disk. Archives are not trusted: member sizes are limited, names that
lead out of the archive are refused, and of members with the same name only the first is read.
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

MAX_BYTES = 1 << 30  # per member; the largest published radiograph is a tenth of that
_ZIP_SUFFIXES, _TAR_SUFFIXES = (".zip",), (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_UNFINISHED_SUFFIXES = (".crdownload", ".part", ".partial", ".download", ".aria2", ".!qb")
_JUNK_FOLDERS = {"__MACOSX", ".ipynb_checkpoints", "@eaDir"}
_JUNK_FILES = {"thumbs.db", "desktop.ini", ".ds_store"}
_READ_ERRORS = (
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
  """Whether a path is hidden, or operating-system clutter rather than published data."""
  *folders, file = name.replace("\\", "/").split("/")
  hidden = file.startswith(".") or any(f.startswith(".") and f not in (".", "..") for f in folders)
  return hidden or file.lower() in _JUNK_FILES or not _JUNK_FOLDERS.isdisjoint(folders)


def is_left_behind(name: str) -> bool:
  """Whether a file or folder is a useless by-product of an operating system or program."""
  *folders, file = name.rstrip("/").split("/")
  return (
    file.startswith("._")
    or file.lower() in _JUNK_FILES
    or not _JUNK_FOLDERS.isdisjoint((*folders, file))
  )


def is_archive(name: str | os.PathLike) -> bool:
  """Whether a file name has the suffix of a supported archive format."""
  return os.fspath(name).lower().endswith(_ZIP_SUFFIXES + _TAR_SUFFIXES)


def is_tar(name: str | os.PathLike) -> bool:
  """Whether a file name has the suffix of a tar."""
  return os.fspath(name).lower().endswith(_TAR_SUFFIXES)


def stem(name: str | os.PathLike) -> str:
  """File name of an archive without its suffix: `images_001.tar.gz` gives `images_001`."""
  name = os.path.basename(os.fspath(name))
  suffixes = [s for s in _TAR_SUFFIXES + _ZIP_SUFFIXES if name.lower().endswith(s)]
  return name[: -len(max(suffixes, key=len))] if suffixes else name


class Archive:
  """Access to the files in a zip, a tar or a folder by name, without junk.

  Access by name is fast for a folder, a zip and a plain tar. A compressed tar has to be unpacked
  from its start to list or find anything: iterate over it once, with `members`.

  Args:
    path: a zip, a tar (plain, gzip, bzip2 or xz) or a folder.
    nested: also open the archives inside it (zips only, unless `path` is a folder), as if each had
      been unpacked to a folder named like it without the suffix. If that folder exists as well, it
      is ignored in favor of the archive, which can tell whether it is complete.
    only: top-level files and folders to include if `path` is a folder: case-insensitive glob
      patterns.
    max_bytes: size limit of a member; larger ones are refused.
    content: bytes of an archive that is not a file of its own; `path` then only serves error
      messages.

  Attributes:
    path: as given.
    junk: names of the files left out, see `is_junk`.

  Raises:
    UserError: the archive does not exist, is damaged or is truncated.
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
    self._tar_stream: Any = None
    self._inner: dict[str, Archive] = {}
    self._names: tuple[str, ...] | None = None
    # Per file: its path in the folder, its ZipInfo or its TarInfo; None for a tar not yet read.
    self._entries: dict[str, Any] | None = {}
    if content is None and self.path.is_dir():
      for name in archive_parts.walk(self.path, only):
        self._accept(self._entries, name, name)
    elif content is None and not self.path.exists():
      raise UserError(f"{self.path} does not exist")
    elif content is None and is_tar(self.path):
      with self._reporting_damage(""), contextlib.ExitStack() as stack:
        stream = contextlib.closing(archive_parts.unpacked(self.path))
        self._tar_stream = stack.enter_context(stream)
        self._tar = tarfile.open(fileobj=self._tar_stream, mode="r:")  # noqa: SIM115
        stack.pop_all()  # on success the stream stays open
      self._entries = None
    else:
      with self._reporting_damage(""):
        self._zip = files.open_zip(self.path if content is None else io.BytesIO(content))
        archive_parts.check_start(self._zip)
      for info in self._zip.infolist():
        if not info.filename.endswith("/"):
          self._accept(self._entries, info.filename, info)
    if nested:
      try:
        self._open_inner()
      except UserError:
        self.close()
        raise

  @property
  def names(self) -> tuple[str, ...]:
    """Sorted names of the files, with `/` between folders."""
    if self._names is None:
      nested = (f"{folder}/{name}" for folder, inner in self._inner.items() for name in inner.names)
      self._names = tuple(sorted([*self._files, *nested]))
    return self._names

  @property
  def refused(self) -> tuple[tuple[str, str], ...]:
    """Names of refused files with the reason; complete for a compressed tar after one pass."""
    return (
      *self._refused,
      *(
        (f"{folder}/{name}", reason)
        for folder, inner in self._inner.items()
        for name, reason in inner.refused
      ),
    )

  def __contains__(self, name: str) -> bool:
    inner, inner_name = self._resolve(name)
    return inner_name in inner if inner else name in self._files

  def read(self, name: str, max_bytes: int | None = None) -> bytes:
    """Reads the bytes of one file.

    Raises:
      UserError: the file is not in the archive, is damaged, encrypted, or larger than the limit.
    """
    inner, inner_name = self._resolve(name)
    if inner:
      return inner.read(inner_name, max_bytes)
    if name not in self._files:
      raise UserError(f"{self.path} has no {name} in it")
    entry, limit = self._files[name], max_bytes or self._max_bytes
    with self._reporting_damage(name):
      if self._zip is not None:
        return self._read_zip(entry, limit)
      if self._tar is not None:
        return self._read_tar(name, entry, limit)
      file = self.path / entry
      self._check_size(name, file.stat().st_size, limit)
      with files.open_regular(file) as opened:
        return opened.read()

  def members(self, wanted: Container[str] | None = None) -> Iterator[tuple[str, bytes]]:
    """Yields name and bytes of every file in archive order, in one pass for all formats.

    Args:
      wanted: names of the files to read; all by default.
    """
    if self._tar is not None and self._entries is None:
      for name, info in self._walk_tar():
        if wanted is None or name in wanted:
          with self._reporting_damage(name):
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
      wanted_here = None if wanted is None else archive_parts.Inside(wanted, folder)
      for name, data in inner.members(wanted_here):
        yield f"{folder}/{name}", data

  def close(self) -> None:
    for resource in (self._zip, self._tar, self._tar_stream, *self._inner.values()):
      if resource is not None:
        resource.close()

  def __enter__(self) -> Archive:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  @property
  def _files(self) -> dict[str, Any]:
    if self._entries is None:
      for _ in self._walk_tar():
        pass
    assert self._entries is not None  # set at the end of a complete walk
    return self._entries

  def _accept(self, entries: dict[str, Any], name: str, entry: object) -> str | None:
    """Adds an entry under its normalized name and returns that; None for junk and refused names."""
    clean = posixpath.normpath(name.replace("\\", "/"))
    if is_junk(clean.removeprefix("../")):
      self.junk.append(clean)
      return None
    if name.startswith(("/", "\\")) or clean.split("/")[0] == ".." or ":" in clean.split("/")[0]:
      self._refused.append((name, "its name points outside the archive"))
      return None
    if clean in entries:
      self._refused.append((name, "its name occurs twice in the archive"))
      return None
    entries[clean] = entry
    return clean

  def _walk_tar(self) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yields the accepted files of the tar in order; a complete walk sets `_entries`."""
    assert self._tar is not None
    entries: dict[str, Any] = {}
    self._refused, self.junk = [], []
    members = iter(self._tar)
    while True:
      with self._reporting_damage(""):
        info = next(members, None)
        if info is None:
          # Zeros mark the end; without them the file was cut off between two members.
          self._tar_stream.seek(self._tar.offset)
          if self._tar_stream.read(512) != bytes(512):
            raise EOFError("its end is missing")
          self._tar_stream.read(1 << 16)  # through the padding, so that gzip verifies its checksum
          self._entries = entries
          return
      if info.isreg():
        name = self._accept(entries, info.name, info)
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
    """Opens the archives in this one; they replace unpacked folders of the same name."""
    for name in [n for n in self._files if is_archive(n)]:
      if self._zip is None and self._tar is None:
        inner = Archive(self.path / self._files[name], max_bytes=self._max_bytes)
      elif name.lower().endswith(_ZIP_SUFFIXES):
        inner = Archive(f"{self.path}:{name}", max_bytes=self._max_bytes, content=self.read(name))
      else:
        continue
      folder = posixpath.join(posixpath.dirname(name), stem(name))
      self._inner[folder] = inner
      replaced = [f for f in self._files if f == name or f.startswith(f"{folder}/")]
      for file in replaced:
        del self._files[file]

  def _resolve(self, name: str) -> tuple[Archive | None, str]:
    """The nested archive that holds a file, if any, and the file's name in it."""
    for folder, inner in self._inner.items():
      if name.startswith(f"{folder}/"):
        return inner, name[len(folder) + 1 :]
    return None, name

  @contextlib.contextmanager
  def _reporting_damage(self, name: str) -> Iterator[None]:
    """Turns read errors into a UserError; an empty `name` stands for the whole archive."""
    try:
      yield
    except _READ_ERRORS as error:
      detail = " ".join(str(error).split())[:200] or type(error).__name__
      if name:
        raise UserError(
          f"{self.path}: {name} in it is damaged ({detail}); download it again"
        ) from error
      kind = "tar" if is_tar(self.path) else "zip"
      raise UserError(
        f"{self.path} is not a complete {kind} file ({detail}): an interrupted "
        "download? delete it and download it again"
      ) from error


def rows(
  opened: Archive, name: str, columns: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
  """Yields the rows of a plain or gzipped CSV, each with its place for errors: `FILE line 5`.

  Args:
    opened: the archive.
    name: name of the CSV in the archive, `.csv` or `.csv.gz`.
    columns: required columns.

  Raises:
    UserError: a column is missing, a row has too many or too few fields, or the file is not text.
  """
  data, where = opened.read(name), f"{opened.path}: {name}"
  if name.lower().endswith(".gz"):
    limit = min(MAX_BYTES, max(files.SMALL_MEMBER_BYTES, files.MAX_RATIO * len(data)))
    try:
      with gzip.open(io.BytesIO(data)) as unpacked:
        data = unpacked.read(limit + 1)
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
          f"{place} does not have the header's {len(header)} fields: is the file complete?"
        )
      yield place, {column: cell or "" for column, cell in row.items()}
  except csv.Error as error:
    raise UserError(f"{where} line {reader.line_num} is not valid CSV ({error})") from error


def find(
  folder: str | os.PathLike,
  candidates: Sequence[str],
  where_to_get: str,
  markers: Sequence[str] = (),
) -> pathlib.Path:
  """Finds the first archive or unpacked folder in `folder` that matches one of the patterns.

  Args:
    folder: the manual folder.
    candidates: glob patterns in order of preference, e.g. `("chest_xray.zip", "chest_xray")`.
    where_to_get: download location for the error message, e.g. a URL.
    markers: glob patterns of top-level entries of the archive: a manual folder that has one of
      these is itself the unpacked archive.

  Raises:
    UserError: nothing matches, or there is only an unfinished download.
  """
  folder = pathlib.Path(folder).expanduser()
  for path in (path for pattern in candidates for path in sorted(folder.glob(pattern))):
    if path.is_dir() or is_archive(path) or (path.is_file() and zipfile.is_zipfile(path)):
      return path
  if any(True for pattern in markers for _ in folder.glob(pattern)):
    return folder
  raise _not_found(folder, candidates, where_to_get)


def gather(folder: str | os.PathLike, candidates: Sequence[str], where_to_get: str) -> Archive:
  """Opens all archives, folders and files in `folder` that match a pattern as a single archive.

  For data sets published in pieces, and for those unpacked directly into the manual folder. The
  arguments are those of `find`; patterns are case-insensitive.

  Raises:
    UserError: nothing matches, an archive is damaged, or there is only an unfinished download.
  """
  folder = pathlib.Path(folder).expanduser()
  opened = Archive(folder, nested=True, only=candidates)
  if not opened.names:
    opened.close()
    raise _not_found(folder, candidates, where_to_get)
  return opened


def _not_found(folder: pathlib.Path, candidates: Sequence[str], where_to_get: str) -> UserError:
  with contextlib.suppress(OSError):
    for path in sorted(folder.iterdir()):
      if path.name.lower().endswith(_UNFINISHED_SUFFIXES):
        return UserError(f"{path} is an unfinished download; let it finish, then run again")
  alternatives = f" (nor {', '.join(candidates[1:])})" if len(candidates) > 1 else ""
  return UserError(
    f"{folder} has no {candidates[0]}{alternatives}; get it from "
    f"{where_to_get} and put it there, or name another folder with manual_dir"
  )

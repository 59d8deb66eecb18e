"""Index of the images below a folder or in a zip, for millions of files; cached between runs.

The cache is one file of plain arrays per folder. Each run lists the whole tree again (0.6 s for a
million files on a local disk) and, by default, compares every file's size and times (3 s): files
added, removed, renamed or written since are noticed, and only these are read again. One of the
times is the ctime, which programs that replace a file or restore its modification time cannot
preserve. A file that had been written just before it was listed is read once more, as it may have
been written again within the same clock tick.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import hashlib
import io
import itertools
import os
import pathlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tqdm
from jaxtyping import Int8, Int32, Int64

from cxrjax.core import cache_folder, files
from cxrjax.core.atomic_files import atomic_open
from cxrjax.core.errors import UserError, suggest
from cxrjax.core.text import escape
from cxrjax.data.decoding import decode, dicom
from cxrjax.data.sources import archive, file_hashes, file_kinds
from cxrjax.data.sources.file_kinds import MEDICAL, OTHER, UNKNOWN

CHECKS = ("files", "names")
_VERSION = 5
_NOT_CHECKED = -1  # size and times of a file that was only listed


@dataclasses.dataclass
class _Listing:
  """Files sorted by path, and the zips that contain some of them."""

  paths: list[str]
  homes: Int32[np.ndarray, "n"]  # index of the zip; -1 for a file outside of zips
  kinds: Int8[np.ndarray, "n"]
  states: Int64[np.ndarray, "n 3"]  # size, and times in ns; for files in a zip, those of the zip
  listed: int  # time of the listing, in ns
  zips: list[str]  # paths below the root; an empty one for the root itself
  notes: list[tuple[str, str]]
  facts: file_hashes.Facts


class Index:
  """The images below a folder or in a zip.

  Args:
    root: the folder or the zip file.
    cache_dir: where the index is cached.
    check: `files` compares every file's size and times; `names` only lists the folders, which is
      faster on network disks, and misses files that were overwritten in place.

  Attributes:
    paths: sorted paths of all files examined, below the root, `/` between parts; the contents of
      `x/y.zip` are in `x/y/`.
    images: rows of `paths` that are images.
    kinds: IMAGE, MEDICAL (DICOM) or OTHER for each path.
    facts: hash and DICOM facts read from each file.
    others: the files that are not images, by kind.
    notes: paths that were not examined, and why.
    key: secret key of the patients' hashes.
    memory: the cache file of the index.

  Raises:
    UserError: no such folder, one that cannot be listed, a damaged zip, no images.
  """

  def __init__(self, root: str | os.PathLike, cache_dir: str | None = None, check: str = "files"):
    if check not in CHECKS:
      raise UserError(
        f"config.data.options.check={check!r} is not an option{suggest(check, CHECKS)}"
      )
    self.root = pathlib.Path(root).expanduser()
    _check_root(root, self.root)
    digest = hashlib.sha256(os.fsencode(self.root.resolve())).hexdigest()[:24]
    self.memory = cache_folder.cache_root(cache_dir) / "folders" / f"{digest}.npz"
    self.key = file_hashes.patient_key(cache_dir)
    self._archives: dict[int, archive.Archive] = {}
    self._lock = threading.Lock()
    old = _load(self.memory, self.key)
    check_states = check == "files" or old is None
    self._listing = _Walk(self.root, old, check_states).listing()
    changed = old is None or _carry_over(self._listing, old)
    for row in np.flatnonzero(self._listing.states[:, 0] == _NOT_CHECKED).tolist():  # new files
      with contextlib.suppress(OSError):
        status = os.stat(self.root / self._listing.paths[row])
        self._listing.states[row] = file_hashes.file_state(status)
    self.paths, self.facts = self._listing.paths, self._listing.facts
    self.kinds, self.states = self._listing.kinds, self._listing.states
    self.notes = self._listing.notes
    unknown = np.flatnonzero(self.kinds == UNKNOWN)
    file_hashes.in_threads(unknown, self._detect_kind, "looking for DICOM")
    if changed:
      self._save()
    self.others = tuple(file_kinds.others(self.paths, self.kinds))
    self.images: Int64[np.ndarray, "_"] = np.flatnonzero(self.kinds <= MEDICAL)
    if not len(self.images):
      self._raise_no_images()

  def learn(self, rows: Int64[np.ndarray, "_"]) -> None:
    """Fills in `facts` of some rows, reading only files that have not been read yet."""
    self.facts.learn(rows, self.open, self.key, self._save, f"reading {escape(self.root.name)}")

  @contextlib.contextmanager
  def open(self, row: int) -> Iterator[io.BufferedIOBase]:
    """Opens the file of a row. Raises OSError, or UserError for a damaged zip or member."""
    home = int(self._listing.homes[row])
    if home < 0:
      with open(self.root / self.paths[row], "rb") as opened:
        yield opened
    else:
      yield io.BytesIO(self._archive(home).read(self._name_in_zip(row)))

  def read(self, row: int) -> bytes:
    """Reads the bytes of an image; raises decode.BadImage if that fails."""
    home = int(self._listing.homes[row])
    try:
      if home < 0:
        return files.read(self.root / self.paths[row], archive.MAX_BYTES)
      return self._archive(home).read(self._name_in_zip(row))
    except OSError as error:
      raise decode.BadImage(f"it cannot be read ({error.strerror or error})") from error
    except (UserError, files.Damaged) as error:
      raise decode.BadImage(str(error)) from error

  def text(self, name: str) -> bytes | None:
    """Reads a file beside the images by its path below the root; None if there is none."""
    if self.root.is_dir():
      file = self.root / pathlib.Path(name).expanduser()  # absolute paths stay absolute
      return file.read_bytes() if file.is_file() else None
    with archive.Archive(self.root) as opened:
      return opened.read(name) if name in opened else None

  def _archive(self, home: int) -> archive.Archive:
    with self._lock:
      if home not in self._archives:
        self._archives[home] = archive.Archive(self.root / self._listing.zips[home])
      return self._archives[home]

  def _name_in_zip(self, row: int) -> str:
    zip_path = self._listing.zips[self._listing.homes[row]]
    return self.paths[row].removeprefix(_prefix(zip_path))

  def _detect_kind(self, row: int) -> None:
    """Sets the kind of a file by its first bytes: many hospital archives use no extensions."""
    with contextlib.suppress(OSError, UserError), self.open(row) as opened:
      self.kinds[row] = file_kinds.by_start(opened.read(dicom.START))

  def _save(self) -> None:
    listing = self._listing
    columns: dict[str, Any] = {
      f"fact_{name}": getattr(listing.facts, name) for name in file_hashes.Facts.COLUMNS
    }
    texts: dict[str, Any] = {
      name: _pack(texts)
      for name, texts in (
        ("paths", listing.paths),
        ("zips", listing.zips),
        ("notes", itertools.chain(*listing.notes)),
      )
    }
    with contextlib.suppress(OSError), atomic_open(self.memory, private=True) as opened:
      np.savez(
        opened,
        version=_VERSION,
        key=_key_fingerprint(self.key),
        homes=listing.homes,
        kinds=listing.kinds,
        states=listing.states,
        listed=listing.listed,
        **texts,
        **columns,
      )

  def _raise_no_images(self) -> None:
    others = ", ".join(f"{len(other.paths)} {other.kind}" for other in self.others[:3])
    extensions = ", ".join(file_kinds.EXTENSIONS)
    raise UserError(
      f"no images in {self.root}; they are recognized by {extensions}, or by their first bytes"
      + (f" (it has other files: {others})" if others else "")
    )


def _check_root(path: str | os.PathLike, root: pathlib.Path) -> None:
  if root.is_dir() or (root.is_file() and root.name.lower().endswith(".zip")):
    return  # a damaged zip raises when it is opened
  reason = "there is no such folder or zip"
  if archive.is_archive(root):
    reason = "images in a tar cannot be read out of order; unpack it, or pack them as a zip"
  elif root.exists():
    reason = "it is neither a folder nor a zip"
  raise UserError(f"config.data.source='folder:{path}': {reason}")


class _Walk:
  """Lists the files below a root.

  Args:
    root: a folder or a zip.
    old: the cached listing; unchanged zips are not opened again.
    check_states: whether to ask for the size and times of each file.
  """

  def __init__(self, root: pathlib.Path, old: _Listing | None, check_states: bool):
    self._root, self._old, self._check_states = root, old, check_states
    self._paths: list[str] = []
    self._homes, self._kinds, self._states = (array.array(code) for code in "ibq")
    self._zips: list[str] = []
    self._notes: list[tuple[str, str]] = []
    self._visited: set[tuple[int, int]] = set()

  def listing(self) -> _Listing:
    listed = time.time_ns()
    if self._root.is_dir():
      with tqdm.tqdm(
        desc=f"listing {escape(self._root.name)}",
        unit=" files",
        file=sys.stderr,
        delay=2,
        mininterval=0.5,
        dynamic_ncols=True,
        leave=False,
      ) as self._bar:
        # Links come last, so that a folder reached both ways is listed under its real path.
        links = self._list_folders([""])
        while links:
          links = self._list_folders(links)
    else:
      self._add_zip("")
    order = sorted(range(len(self._paths)), key=self._paths.__getitem__)
    return _Listing(
      paths=[self._paths[i] for i in order],
      homes=np.frombuffer(self._homes, np.int32)[order],
      kinds=np.frombuffer(self._kinds, np.int8)[order],
      states=np.frombuffer(self._states, np.int64).reshape(-1, 3)[order],
      listed=listed,
      zips=self._zips,
      notes=self._notes,
      facts=file_hashes.Facts(len(order)),
    )

  def _list_folders(self, waiting: list[str]) -> list[str]:
    """Lists folders (paths below the root, ending in `/`) recursively; returns links to folders."""
    links: list[str] = []
    while waiting:
      folder = waiting.pop()
      try:
        status = os.stat(self._root / folder)
        if (status.st_dev, status.st_ino) in self._visited:
          continue
        self._visited.add((status.st_dev, status.st_ino))
        subfolders, linked, zips = self._list_folder(folder)
      except OSError as error:
        raise UserError(f"{self._root / folder} cannot be listed ({error.strerror})") from error
      for name in sorted(zips):
        path = folder + name
        if archive.stem(name) in subfolders + linked:
          self._notes.append((path, " was not opened: a folder beside it has the same name"))
        elif any(_prefix(other) == _prefix(path) for other in self._zips):
          self._notes.append((path, " was not opened: another zip has the same name"))
        else:
          self._add_zip(path)
      waiting += [f"{folder}{name}/" for name in sorted(subfolders, reverse=True)]
      links += [f"{folder}{name}/" for name in linked]
      self._bar.update(len(self._paths) - self._bar.n)
    return sorted(links, reverse=True)

  def _list_folder(self, folder: str) -> tuple[list[str], list[str], list[str]]:
    """Adds the files of one folder; returns its subfolders, links to folders, and zips."""
    subfolders: list[str] = []
    linked: list[str] = []
    zips: list[str] = []
    with os.scandir(self._root / folder) as entries:
      for entry in entries:
        name = entry.name
        kind = file_kinds.by_name(name)
        if (kind in (OTHER, UNKNOWN) or not entry.is_file()) and entry.is_dir():
          if archive.is_junk(f"{name}/x"):
            self._add(f"{folder}{name}/", OTHER, -1, None, (0, 0, 0))
          else:
            (linked if entry.is_symlink() else subfolders).append(name)
        elif kind == OTHER and name.lower().endswith(".zip") and not archive.is_junk(name):
          zips.append(name)
        elif entry.is_file():
          self._add(folder + name, kind, -1, entry)
        else:  # a broken link, a device
          self._add(folder + name, OTHER, -1, None, (0, 0, 0))
    return subfolders, linked, zips

  def _add(
    self,
    path: str,
    kind: int,
    home: int,
    entry: os.DirEntry | None,
    state: tuple[int, ...] = (_NOT_CHECKED,) * 3,
  ) -> None:
    if entry is not None and self._check_states:
      state = file_hashes.file_state(entry.stat())
    self._paths.append(path)
    self._kinds.append(kind)
    self._homes.append(home)
    self._states.extend(state)

  def _add_zip(self, path: str) -> None:
    """Adds the files of a zip, from the cached listing if it has not changed."""
    state, home = file_hashes.file_state(os.stat(self._root / path)), len(self._zips)
    prefix = _prefix(path)
    self._zips.append(path)
    old = self._old
    if old is not None and path in old.zips:
      rows = np.flatnonzero(old.homes == old.zips.index(path))
      if (
        len(rows)
        and tuple(old.states[rows[0]]) == state
        and not file_hashes.maybe_stale(state, old.listed)
      ):
        for row in rows.tolist():
          self._add(old.paths[row], int(old.kinds[row]), home, None, state)
        self._notes += [note for note in old.notes if note[0].startswith(prefix)]
        return
    with archive.Archive(self._root / path) as opened:
      for name in opened.names:
        self._add(prefix + name, file_kinds.by_name(name.rpartition("/")[2]), home, None, state)
      for name in opened.junk:
        self._add(prefix + name, OTHER, home, None, state)
      self._notes += [(prefix + name, f" was skipped: {why}") for name, why in opened.refused]


def _prefix(zip_path: str) -> str:
  """Folder that the files of a zip are listed in: `x/y/` for `x/y.zip`."""
  folder, slash, name = zip_path.rpartition("/")
  return f"{folder}{slash}{archive.stem(name)}/" if zip_path else ""


def _carry_over(new: _Listing, old: _Listing) -> bool:
  """Copies states, facts and kinds of unchanged files; returns whether any file has changed."""
  if new.paths == old.paths:
    old_rows = np.arange(len(new.paths))
  else:
    row_of = {path: row for row, path in enumerate(old.paths)}
    old_rows = np.array([row_of.get(path, -1) for path in new.paths], np.int64)
  only_listed = (new.states[:, 0] == _NOT_CHECKED) & (old_rows >= 0)
  new.states[only_listed] = old.states[old_rows[only_listed]]
  unchanged = old_rows >= 0
  unchanged[unchanged] = (new.states[unchanged] == old.states[old_rows[unchanged]]).all(axis=1)
  unchanged &= only_listed | ~file_hashes.maybe_stale(new.states.T, old.listed)
  new.facts.take_over(old.facts, np.flatnonzero(unchanged), old_rows[unchanged])
  detected = unchanged & (new.kinds == UNKNOWN)
  new.kinds[detected] = old.kinds[old_rows[detected]]
  return len(old_rows) != len(old.paths) or not unchanged.all()


def _load(file: pathlib.Path, key: bytes) -> _Listing | None:
  """Loads the cached listing; None if there is none, or one with another key or version."""
  with contextlib.suppress(OSError, ValueError, KeyError):  # a damaged cache is rebuilt
    arrays = files.read_npz(file)
    if int(arrays["version"]) != _VERSION or str(arrays["key"]) != _key_fingerprint(key):
      return None
    texts = {name: _unpack(arrays[name]) for name in ("paths", "zips", "notes")}
    facts = file_hashes.Facts(len(texts["paths"]))
    for name in file_hashes.Facts.COLUMNS:
      getattr(facts, name)[...] = arrays[f"fact_{name}"]
    notes = texts["notes"]
    return _Listing(
      paths=texts["paths"],
      homes=arrays["homes"],
      kinds=arrays["kinds"],
      states=arrays["states"],
      listed=int(arrays["listed"]),
      zips=texts["zips"],
      notes=[*zip(notes[::2], notes[1::2], strict=True)],
      facts=facts,
    )
  return None


def _key_fingerprint(key: bytes) -> str:
  return hashlib.sha256(b"mark" + key).hexdigest()


def _pack(texts: Iterable[str]) -> np.ndarray:
  """Texts as one array of bytes, each ended by a zero, which no file name contains."""
  joined = "".join(f"{text}\0" for text in texts)
  return np.frombuffer(joined.encode("utf-8", "surrogateescape"), np.uint8)


def _unpack(packed: np.ndarray) -> list[str]:
  return packed.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]

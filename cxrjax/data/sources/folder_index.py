"""Which images lie below a folder or in a zip, for millions of them; remembered between runs.

The memory is one file of plain arrays per folder. Each time, the whole tree is listed again (0.6 s
for a million files on a local disk) and, unless told otherwise, every file's size and times are
looked at (3 s): what was added, removed, renamed or written since is noticed, and only that is read
again. One of the times is the system's own (ctime), which a program that puts another file in a
file's place, or gives it back its old time, cannot keep; and a file that had just been written when
it was listed is read once more, as it may have been written again within the same tick.
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
from cxrjax.core.errors import UserError, suggest
from cxrjax.core.text import shown
from cxrjax.data.decoding import decode, dicom
from cxrjax.data.sources import archive, file_hashes, file_kinds
from cxrjax.data.sources.file_kinds import MEDICAL, OTHER, UNKNOWN

CHECKS = ("files", "names")
_VERSION = 5
_NOT_ASKED = -1  # size and times of a file that was listed only


@dataclasses.dataclass
class _Listing:
  """Files in the order of their paths, and the zips that some lie in."""

  paths: list[str]
  homes: Int32[np.ndarray, "n"]  # which zip; -1 for a file of its own
  kinds: Int8[np.ndarray, "n"]
  states: Int64[np.ndarray, "n 3"]  # size, and times in ns; the zip's for what lies in one
  listed: int  # when, in ns
  zips: list[str]  # below the root; empty for the root itself
  notes: list[tuple[str, str]]
  facts: file_hashes.Facts


class Index:
  """The images below a folder or in a zip.

  Args:
    root: the folder or the zip file.
    cache_dir: where the index is remembered.
    check: `files` looks at every file's size and times; `names` only lists the folders, faster on
      network disks, and does not notice a file that was overwritten in place.

  Attributes:
    paths: of all files looked at, below the root, sorted, `/` between parts; what lies in
      `x/y.zip` is in `x/y/`.
    images: rows of `paths` that are images.
    kinds: of each path, IMAGE, MEDICAL (DICOM) or OTHER.
    facts: what was read from each.
    others: the files that are no images, by kind.
    notes: paths that were not looked at, and why.
    key: the secret that hashes of patients are made with.
    memory: where the index is remembered.

  Raises:
    UserError: no such folder, one that cannot be listed, a damaged zip, no images.
  """

  def __init__(self, root: str | os.PathLike, cache_dir: str | None = None, check: str = "files"):
    if check not in CHECKS:
      raise UserError(f"config.data.options.check={check!r} is no option{suggest(check, CHECKS)}")
    self.root = pathlib.Path(root).expanduser()
    _check_root(root, self.root)
    where = hashlib.sha256(os.fsencode(self.root.resolve())).hexdigest()[:24]
    self.memory = cache_folder.cache_root(cache_dir) / "folders" / f"{where}.npz"
    self.key = file_hashes.patient_key(cache_dir)
    self._archives: dict[int, archive.Archive] = {}
    self._lock = threading.Lock()
    old = _load(self.memory, self.key)
    self._now = _Walk(self.root, old, ask=check == "files" or old is None).listing()
    changed = old is None or _carry_over(self._now, old)
    for row in np.flatnonzero(self._now.states[:, 0] == _NOT_ASKED).tolist():  # new ones
      with contextlib.suppress(OSError):
        found = os.stat(self.root / self._now.paths[row])
        self._now.states[row] = file_hashes.state(found)
    self.paths, self.facts, self.kinds = self._now.paths, self._now.facts, self._now.kinds
    self.notes, self.states = self._now.notes, self._now.states
    unknown = np.flatnonzero(self.kinds == UNKNOWN)
    file_hashes.in_threads(unknown, self._look, "looking for DICOM")
    if changed:
      self._save()
    self.others = tuple(file_kinds.others(self.paths, self.kinds))
    self.images: Int64[np.ndarray, "_"] = np.flatnonzero(self.kinds <= MEDICAL)
    if not len(self.images):
      self._nothing()

  def learn(self, rows: Int64[np.ndarray, "_"]) -> None:
    """Fills in `facts` of some rows, reading the files that were not read before."""
    self.facts.learn(rows, self.open, self.key, self._save, f"reading {shown(self.root.name)}")

  @contextlib.contextmanager
  def open(self, row: int) -> Iterator[io.BufferedIOBase]:
    """The file of a row. Raises OSError, or UserError for a zip or a member that is damaged."""
    home = int(self._now.homes[row])
    if home < 0:
      with open(self.root / self.paths[row], "rb") as opened:
        yield opened
    else:
      yield io.BytesIO(self._archive(home).read(self._inside(row)))

  def read(self, row: int) -> bytes:
    """The bytes of an image; raises decode.BadImage where they cannot be had."""
    try:
      with self.open(row) as opened:
        data = opened.read(archive.MAX_BYTES + 1)
    except OSError as error:
      raise decode.BadImage(f"it cannot be read ({error.strerror or error})") from error
    except UserError as error:
      raise decode.BadImage(str(error)) from error
    if len(data) > archive.MAX_BYTES:
      raise decode.BadImage(f"it has more than {archive.MAX_BYTES:,} bytes")
    return data

  def text(self, name: str) -> bytes | None:
    """A file beside the images by its path below the root; None where there is none."""
    if self.root.is_dir():
      file = self.root / pathlib.Path(name).expanduser()  # an absolute path stays what it is
      return file.read_bytes() if file.is_file() else None
    with archive.Archive(self.root) as opened:
      return opened.read(name) if name in opened else None

  def _archive(self, home: int) -> archive.Archive:
    with self._lock:
      if home not in self._archives:
        self._archives[home] = archive.Archive(self.root / self._now.zips[home])
      return self._archives[home]

  def _inside(self, row: int) -> str:
    """Name of a file within its zip."""
    return self.paths[row].removeprefix(_prefix(self._now.zips[self._now.homes[row]]))

  def _look(self, row: int) -> None:
    """What a file is whose name does not tell, as many archives of hospitals name theirs."""
    with contextlib.suppress(OSError, UserError), self.open(row) as opened:
      self.kinds[row] = file_kinds.by_start(opened.read(dicom.START))

  def _save(self) -> None:
    now = self._now
    columns: dict[str, Any] = {
      f"fact_{name}": getattr(now.facts, name) for name in file_hashes.Facts.COLUMNS
    }
    texts: dict[str, Any] = {
      name: _pack(texts)
      for name, texts in (
        ("paths", now.paths),
        ("zips", now.zips),
        ("notes", itertools.chain(*now.notes)),
      )
    }
    with contextlib.suppress(OSError), file_hashes.written(self.memory) as opened:
      np.savez(
        opened,
        version=_VERSION,
        key=_key_mark(self.key),
        homes=now.homes,
        kinds=now.kinds,
        states=now.states,
        listed=now.listed,
        **texts,
        **columns,
      )

  def _nothing(self) -> None:
    seen = ", ".join(f"{len(other.paths)} {other.kind}" for other in self.others[:3])
    known = ", ".join(file_kinds.EXTENSIONS)
    raise UserError(
      f"no images in {self.root}; they are known by {known}, or by their first bytes"
      + (f" (it has other files: {seen})" if seen else "")
    )


def _check_root(given: str | os.PathLike, root: pathlib.Path) -> None:
  if root.is_dir() or (root.is_file() and root.name.lower().endswith(".zip")):
    return  # a damaged zip says so when it is opened
  reason = "there is no such folder or zip"
  if archive.is_archive(root):
    reason = "images in a tar cannot be read out of order; unpack it, or pack them as a zip"
  elif root.exists():
    reason = "it is neither a folder nor a zip"
  raise UserError(f"config.data.source='folder:{given}': {reason}")


class _Walk:
  """Lists what lies below a root."""

  def __init__(self, root: pathlib.Path, old: _Listing | None, ask: bool):
    self._root, self._old, self._ask = root, old, ask
    self._paths: list[str] = []
    self._homes, self._kinds, self._states = (array.array(code) for code in "ibq")
    self._zips: list[str] = []
    self._notes: list[tuple[str, str]] = []
    self._seen: set[tuple[int, int]] = set()

  def listing(self) -> _Listing:
    listed = time.time_ns()
    if self._root.is_dir():
      with tqdm.tqdm(
        desc=f"listing {shown(self._root.name)}",
        unit=" files",
        file=sys.stderr,
        delay=2,
        mininterval=0.5,
        dynamic_ncols=True,
        leave=False,
      ) as self._bar:
        # Links come last: a folder that is there in its own right is known by its own name.
        links = self._folders([""])
        while links:
          links = self._folders(links)
    else:
      self._zip("")
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

  def _folders(self, waiting: list[str]) -> list[str]:
    """Lists folders (below the root, with a `/` at the end) and all in them; returns links."""
    links: list[str] = []
    while waiting:
      below = waiting.pop()
      try:
        own = os.stat(self._root / below)
        if (own.st_dev, own.st_ino) in self._seen:
          continue
        self._seen.add((own.st_dev, own.st_ino))
        folders, linked, zips = self._folder(below)
      except OSError as error:
        raise UserError(f"{self._root / below} cannot be listed ({error.strerror})") from error
      for name in sorted(zips):
        if archive.stem(name) in folders + linked:
          self._notes.append(
            (below + name, " was not looked into: a folder beside it has its name")
          )
        else:
          folders_too = f"{below}{archive.stem(name)}/"
          if any(_prefix(z) == folders_too for z in self._zips):
            self._notes.append((below + name, " was not looked into: another zip has its name"))
          else:
            self._zip(below + name)
      waiting += [f"{below}{name}/" for name in sorted(folders, reverse=True)]
      links += [f"{below}{name}/" for name in linked]
      self._bar.update(len(self._paths) - self._bar.n)
    return sorted(links, reverse=True)

  def _folder(self, below: str) -> tuple[list[str], list[str], list[str]]:
    """Takes in the files of one folder; returns its folders, links to folders, and zips."""
    folders: list[str] = []
    linked: list[str] = []
    zips: list[str] = []
    with os.scandir(self._root / below) as entries:
      for entry in entries:
        name = entry.name
        kind = file_kinds.by_name(name)
        if (kind in (OTHER, UNKNOWN) or not entry.is_file()) and entry.is_dir():
          if archive.is_junk(f"{name}/x"):
            self._add(f"{below}{name}/", OTHER, -1, None, (0, 0, 0))
          else:
            (linked if entry.is_symlink() else folders).append(name)
        elif kind == OTHER and name.lower().endswith(".zip") and not archive.is_junk(name):
          zips.append(name)
        elif entry.is_file():
          self._add(below + name, kind, -1, entry)
        else:  # a link to nothing, a device
          self._add(below + name, OTHER, -1, None, (0, 0, 0))
    return folders, linked, zips

  def _add(
    self,
    path: str,
    kind: int,
    home: int,
    entry: os.DirEntry | None,
    state: tuple[int, ...] = (_NOT_ASKED,) * 3,
  ) -> None:
    if entry is not None and self._ask:
      state = file_hashes.state(entry.stat())
    self._paths.append(path)
    self._kinds.append(kind)
    self._homes.append(home)
    self._states.extend(state)

  def _zip(self, below: str) -> None:
    """Takes in the files of a zip, from memory where it has not changed."""
    state, home = file_hashes.state(os.stat(self._root / below)), len(self._zips)
    prefix = _prefix(below)
    self._zips.append(below)
    old = self._old
    if old is not None and below in old.zips:
      rows = np.flatnonzero(old.homes == old.zips.index(below))
      if (
        len(rows)
        and tuple(old.states[rows[0]]) == state
        and not file_hashes.fresh(state, old.listed)
      ):
        for row in rows.tolist():
          self._add(old.paths[row], int(old.kinds[row]), home, None, state)
        self._notes += [note for note in old.notes if note[0].startswith(prefix)]
        return
    with archive.Archive(self._root / below) as opened:
      for name in opened.names:
        self._add(prefix + name, file_kinds.by_name(name.rpartition("/")[2]), home, None, state)
      for name in opened.junk:
        self._add(prefix + name, OTHER, home, None, state)
      self._notes += [(prefix + name, f" was not looked at: {why}") for name, why in opened.refused]


def _prefix(zipped: str) -> str:
  """What stands before the names of the files in a zip."""
  folder, slash, name = zipped.rpartition("/")
  return f"{folder}{slash}{archive.stem(name)}/" if zipped else ""


def _carry_over(now: _Listing, old: _Listing) -> bool:
  """Takes over what is known of files that have not changed; whether any has."""
  if now.paths == old.paths:
    rows = np.arange(len(now.paths))
  else:
    place = {path: row for row, path in enumerate(old.paths)}
    rows = np.array([place.get(path, -1) for path in now.paths], np.int64)
  listed = (now.states[:, 0] == _NOT_ASKED) & (rows >= 0)
  now.states[listed] = old.states[rows[listed]]
  kept = rows >= 0
  kept[kept] = (now.states[kept] == old.states[rows[kept]]).all(axis=1)
  kept &= listed | ~file_hashes.fresh(now.states.T, old.listed)
  now.facts.take_over(old.facts, np.flatnonzero(kept), rows[kept])
  looked_into = kept & (now.kinds == UNKNOWN)
  now.kinds[looked_into] = old.kinds[rows[looked_into]]
  return len(rows) != len(old.paths) or not kept.all()


def _load(file: pathlib.Path, key: bytes) -> _Listing | None:
  """What was remembered; None where nothing is, or with another key."""
  with contextlib.suppress(OSError, ValueError, KeyError):  # a damaged one is made again
    found = files.read_npz(file)
    if int(found["version"]) != _VERSION or str(found["key"]) != _key_mark(key):
      return None
    texts = {name: _unpack(found[name]) for name in ("paths", "zips", "notes")}
    facts = file_hashes.Facts(len(texts["paths"]))
    for name in file_hashes.Facts.COLUMNS:
      getattr(facts, name)[...] = found[f"fact_{name}"]
    notes = texts["notes"]
    return _Listing(
      paths=texts["paths"],
      homes=found["homes"],
      kinds=found["kinds"],
      states=found["states"],
      listed=int(found["listed"]),
      zips=texts["zips"],
      notes=[*zip(notes[::2], notes[1::2], strict=True)],
      facts=facts,
    )
  return None


def _key_mark(key: bytes) -> str:
  return hashlib.sha256(b"mark" + key).hexdigest()


def _pack(texts: Iterable[str]) -> np.ndarray:
  """Texts as bytes with a zero after each: no name of a file holds one."""
  whole = "".join(f"{text}\0" for text in texts)
  return np.frombuffer(whole.encode("utf-8", "surrogateescape"), np.uint8)


def _unpack(packed: np.ndarray) -> list[str]:
  return packed.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]

"""torch's checkpoint files, read without torch and without running what they hold.

A pickle is a program: it may call any function that it names. Here it may name a short list of
things, none of which does more than describe a tensor; anything else is refused before it is even
looked up. The program is run by the unpickler that is itself written in Python, whose memory grows
with the file and not with what the file says; what could make copies of copies is left out, and
nothing is changed but what the program has made. Tensors come out as descriptions (`Tensor`) and
are read from the file on demand, so that an optimiser's moments cost nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import math
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import ml_dtypes
import numpy as np

from cxrjax.core import files
from cxrjax.core.files import Damaged

_TYPES = {
  "DoubleStorage": np.dtype("<f8"),
  "FloatStorage": np.dtype("<f4"),
  "HalfStorage": np.dtype("<f2"),
  "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "LongStorage": np.dtype("<i8"),
  "IntStorage": np.dtype("<i4"),
  "ShortStorage": np.dtype("<i2"),
  "CharStorage": np.dtype("i1"),
  "ByteStorage": np.dtype("u1"),
  "BoolStorage": np.dtype("bool"),
}
_PROGRAM = 256 << 20  # bytes of a pickle without its numbers; most have less than a megabyte
_LEGACY = 0x1950A86A20F9469CFC6C  # the number that files of torch before 1.6 begin with


class Refused(Exception):
  """A pickle names something that is not on the list."""


@dataclasses.dataclass(frozen=True)
class _Storage:
  """Numbers in a file."""

  dtype: np.dtype
  count: int
  read: Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where a tensor lies in a storage, in elements."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    del copy
    if not math.prod(self.shape):
      return np.empty(self.shape, dtype or self.storage.dtype)
    last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
    if self.offset < 0 or last >= self.storage.count or min(self.strides, default=0) < 0:
      raise Damaged("a tensor reaches beyond its storage")
    if math.prod(self.shape) > self.storage.count:
      raise Damaged("a tensor repeats the numbers of its storage")
    whole = np.frombuffer(self.storage.read(), self.storage.dtype)
    if len(whole) != self.storage.count:
      raise Damaged("a storage is cut short")
    size = whole.itemsize
    view = np.lib.stride_tricks.as_strided(
      whole[self.offset :], self.shape, [size * s for s in self.strides], writeable=False
    )
    return np.array(view, dtype)


class _Inert(dict):
  """Stands for an object that is of no use here, such as the arguments of a training run."""

  def __init__(self, *args: Any) -> None:
    super().__init__()

  def __setstate__(self, state: Any) -> None:
    pass

  def __setitem__(self, key: Any, value: Any) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class _StorageType:
  dtype: np.dtype


def _tensor(storage, offset, shape, strides, *_):
  shape, strides = tuple(shape), tuple(strides)
  if (
    not isinstance(storage, _Storage)
    or len(shape) != len(strides)
    or len(shape) > 32
    or not all(type(n) is int for n in (offset, *shape, *strides))
    or min(shape, default=0) < 0
  ):
    raise Damaged("a tensor is none")
  return Tensor(storage, offset, shape, strides)


def _parameter(data, *_):
  return data


def _size(shape=()):
  if not isinstance(shape, tuple | list) or len(shape) > 32:
    raise Damaged("a size is none")
  return tuple(shape)


def _ordered(items=()):
  """An OrderedDict of a list of pairs, as Python 2 wrote it; the list is used up."""
  found = collections.OrderedDict((_key(key), value) for key, value in items)
  if isinstance(items, list):
    items.clear()
  return found


def _key(key):
  """A key of a dict; others than these may take time without end to be looked up."""
  if isinstance(key, str | int | float | bytes | None):
    return key
  if isinstance(key, tuple) and len(key) < 10 and all(isinstance(k, str | int) for k in key):
    return key
  raise Damaged("a key of a dict is none")


# What a pickle may name, and what it gets instead. Nothing here is torch's or the system's own.
_ALLOWED: dict[tuple[str, str], Any] = {
  ("collections", "OrderedDict"): _ordered,
  ("torch._utils", "_rebuild_tensor"): _tensor,
  ("torch._utils", "_rebuild_tensor_v2"): _tensor,
  ("torch._utils", "_rebuild_parameter"): _parameter,
  ("torch.nn.parameter", "Parameter"): _Inert,
  ("torch", "Size"): _size,
  ("torch", "device"): _Inert,
  ("argparse", "Namespace"): _Inert,
  ("numpy.core.multiarray", "scalar"): _Inert,
  ("numpy._core.multiarray", "scalar"): _Inert,
  ("numpy", "dtype"): _Inert,
  ("_codecs", "encode"): _Inert,
  **{("torch", name): _StorageType(dtype) for name, dtype in _TYPES.items()},
  **{("torch.storage", name): _StorageType(dtype) for name, dtype in _TYPES.items()},
  **{("torch", name): None for name in ("float16", "bfloat16", "float32", "float64", "int64")},
}


class _Unpickler(pickle._Unpickler):
  """Finds nothing but what is on the list; `storages` makes the storage of a persistent id."""

  # What the base class has besides what its stub says.
  stack: list[Any]
  append: Callable[[Any], None]
  pop_mark: Callable[[], list[Any]]

  dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
  for _code in (
    pickle.BYTEARRAY8,
    pickle.NEXT_BUFFER,
    pickle.READONLY_BUFFER,
    pickle.EXT1,
    pickle.EXT2,
    pickle.EXT4,
  ):  # torch writes none of these
    del dispatch[_code[0]]

  def __init__(self, file: Any, storages: Callable[..., _Storage]) -> None:
    super().__init__(file, encoding="utf-8")
    self._storages = storages

  def _build(self) -> None:
    """Drops an object's attributes: torch's OrderedDict has some that nobody needs."""
    self.stack.pop()
    if not isinstance(self.stack[-1], collections.OrderedDict | _Inert):
      raise Damaged("it changes what is no object of its own")

  def _dict(self) -> None:
    self._fill({}, self.pop_mark())

  def _set_item(self) -> None:
    value, key = self.stack.pop(), self.stack.pop()
    self._fill(self.stack.pop(), [key, value])

  def _set_items(self) -> None:
    items = self.pop_mark()
    self._fill(self.stack.pop(), items)

  def _fill(self, into: Any, items: list[Any]) -> None:
    if not isinstance(into, dict):
      raise Damaged("it changes what is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
      into[_key(key)] = value
    self.append(into)

  def _drop_items(self) -> None:
    """Sets stay empty: no weights are in one."""
    self.pop_mark()

  def _frozen_set(self) -> None:
    self.pop_mark()
    self.append(frozenset())

  dispatch |= {
    pickle.BUILD[0]: _build,
    pickle.DICT[0]: _dict,
    pickle.SETITEM[0]: _set_item,
    pickle.SETITEMS[0]: _set_items,
    pickle.ADDITEMS[0]: _drop_items,
    pickle.FROZENSET[0]: _frozen_set,
  }

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _ALLOWED:
      raise Refused(f"{module[:100]}.{name[:100]}")
    return _ALLOWED[module, name]

  def persistent_load(self, pid: Any) -> _Storage:
    if not (
      isinstance(pid, tuple)
      and len(pid) >= 5
      and pid[0] == "storage"
      and isinstance(pid[1], _StorageType)
    ):
      raise Damaged("a storage is of an unknown kind")
    if type(pid[2]) is not str or type(pid[4]) is not int or not 0 <= pid[4] < 1 << 40:
      raise Damaged("the name or the size of a storage is none")
    return self._storages(pid[1].dtype, pid[2], pid[4], *pid[5:])


class _Short:
  """A file that is asked for no more than it has, whatever a pickle says of its own length."""

  def __init__(self, file: BinaryIO) -> None:
    self._file, self._size = file, os.fstat(file.fileno()).st_size
    self.readline = file.readline

  def read(self, size: int) -> bytes:
    if size > self._size - self._file.tell():
      raise EOFError
    return self._file.read(size)


def read(path: pathlib.Path) -> Any:
  """What `torch.save` wrote, without running it: nested dicts, whose tensors `tensors` finds.

  Raises:
    Refused: the pickle names a function or class that no checkpoint of weights needs.
    Damaged: the file is damaged or of another format.
    OSError: it cannot be read.
  """
  try:
    with files.opened(path) as file:
      return _read_zip(path) if zipfile.is_zipfile(file) else _read_legacy(path)
  except (Refused, files.Damaged, OSError):
    raise
  except Exception as error:  # a damaged pickle may raise nearly anything
    raise Damaged(f"it is damaged ({type(error).__name__})") from error


def _read_zip(path: pathlib.Path) -> Any:
  """Files of torch since 1.6: a zip archive with `data.pkl` and one member for every storage."""
  archive = files.open_zip(path)  # open as long as a tensor may be read from it
  names = archive.namelist()
  pickled = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
  if len(pickled) != 1:
    raise Damaged("it is a zip archive, but not of torch's")
  root = pickled[0].partition("/")[0]

  def member(name: str, limit: int) -> bytes:
    if f"{root}/{name}" not in archive.NameToInfo:
      raise Damaged(f"it lacks {name}")
    return files.unzip(archive, archive.getinfo(f"{root}/{name}"), limit)

  if f"{root}/byteorder" in names and member("byteorder", 16) != b"little":
    raise Damaged("its numbers are big endian")

  def storage(dtype: np.dtype, key: str, count: int, *_: Any) -> _Storage:
    return _Storage(dtype, count, lambda: member(f"data/{key}", count * dtype.itemsize))

  return _Unpickler(io.BytesIO(member("data.pkl", _PROGRAM)), storage).load()


def _read_legacy(path: pathlib.Path) -> Any:
  """Files of torch before 1.6: pickles one after the other, then the storages' numbers."""
  places: dict[str, int] = {}
  known: dict[str, np.dtype] = {}

  def storage(dtype: np.dtype, key: str, count: int, view: Any = None) -> _Storage:
    if view is not None:
      raise Damaged("it holds views of storages, as only torch before 0.4 wrote them")
    known[key] = dtype

    def content() -> bytes:
      with files.opened(path) as file:
        if key not in places:
          raise Damaged(f"it lacks the numbers of {key!r}")
        file.seek(places[key])
        try:
          return _Short(file).read(count * dtype.itemsize)
        except EOFError as error:
          raise Damaged("it is cut short") from error

    return _Storage(dtype, count, content)

  with files.opened(path) as file:
    short = _Short(file)
    try:
      if _Unpickler(short, storage).load() != _LEGACY:
        raise Damaged("it is no checkpoint of torch's")
    except (pickle.UnpicklingError, EOFError, KeyError) as error:
      raise Damaged("it is no checkpoint of torch's") from error
    _Unpickler(short, storage).load()  # the protocol
    system = _Unpickler(short, storage).load()
    if not (isinstance(system, dict) and system.get("little_endian", True)):
      raise Damaged("its numbers are big endian")
    found = _Unpickler(short, storage).load()
    keys = _Unpickler(short, storage).load()
    for key in keys:
      count = int.from_bytes(file.read(8), "little")
      places[key] = file.tell()
      file.seek(count * known[key].itemsize, io.SEEK_CUR)
  return found


def tensors(tree: Any) -> dict[str, Any]:
  """Every tensor in nested dicts by its dotted name; lists and other objects are left out.

  A dict that is in several others counts where it is the least deep.

  Raises:
    Damaged: dicts in one another without end.
  """
  found: dict[str, Any] = {}
  waiting = [("", tree)] if isinstance(tree, dict) else []
  seen: set[int] = set()
  for _ in range(files.MAX_DEPTH):
    below = []
    for prefix, level in waiting:
      if id(level) in seen:
        continue
      seen.add(id(level))
      for name, value in level.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, Tensor):
          found[dotted] = value
        elif isinstance(value, dict):
          below.append((f"{dotted}.", value))
    waiting = below
  if waiting:
    raise Damaged(f"its dicts nest more than {files.MAX_DEPTH} levels deep")
  return found

"""Reads torch's checkpoint files without torch and without executing their code.

A pickle is a program: it may call any function that it names. Here it may name only a short list of
objects that merely describe tensors; anything else is refused before it is looked up. The program
is run by the unpickler written in Python, whose memory grows with the file's actual size and not
with the sizes it declares; opcodes that could multiply copies are removed, and only objects that
the program created itself are modified. Tensors are returned as descriptions (`Tensor`) and read
from the file on demand, so that an optimizer's moments cost nothing.
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

_STORAGE_TYPES = {
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
_MAX_PROGRAM = 256 << 20  # bytes of a pickle without its tensors; most have less than a megabyte
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first number in files of torch before 1.6


class RefusedPickle(Exception):
  """A pickle names something outside the allowlist."""


@dataclasses.dataclass(frozen=True)
class _Storage:
  """Typed numbers in a file."""

  dtype: np.dtype
  count: int
  read: Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Location of a tensor in a storage, in elements."""

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
    elements = np.frombuffer(self.storage.read(), self.storage.dtype)
    if len(elements) != self.storage.count:
      raise Damaged("a storage is cut short")
    item_bytes = elements.itemsize
    view = np.lib.stride_tricks.as_strided(
      elements[self.offset :], self.shape, [item_bytes * s for s in self.strides], writeable=False
    )
    return np.array(view, dtype)


class _Inert(dict):
  """Placeholder for objects that are not needed, such as the arguments of a training run."""

  def __init__(self, *args: Any) -> None:
    super().__init__()

  def __setstate__(self, state: Any) -> None:
    pass

  def __setitem__(self, key: Any, value: Any) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class _StorageType:
  dtype: np.dtype


def _rebuild_tensor(storage, offset, shape, strides, *_):
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


def _rebuild_parameter(data, *_):
  return data


def _check_size(shape=()):
  if not isinstance(shape, tuple | list) or len(shape) > 32:
    raise Damaged("a size is none")
  return tuple(shape)


def _ordered_dict(items=()):
  """Builds an OrderedDict from pairs, as Python 2 pickled it; empties the list of pairs."""
  ordered = collections.OrderedDict((_check_key(key), value) for key, value in items)
  if isinstance(items, list):
    items.clear()
  return ordered


def _check_key(key):
  """Validates a key of a dict; hashing keys of other types may take unbounded time."""
  if isinstance(key, str | int | float | bytes | None):
    return key
  if isinstance(key, tuple) and len(key) < 10 and all(isinstance(k, str | int) for k in key):
    return key
  raise Damaged("a key of a dict is none")


# Names that a pickle may use, and their substitutes. None of them is torch's or the system's own.
_ALLOWED: dict[tuple[str, str], Any] = {
  ("collections", "OrderedDict"): _ordered_dict,
  ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
  ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
  ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
  ("torch.nn.parameter", "Parameter"): _Inert,
  ("torch", "Size"): _check_size,
  ("torch", "device"): _Inert,
  ("argparse", "Namespace"): _Inert,
  ("numpy.core.multiarray", "scalar"): _Inert,
  ("numpy._core.multiarray", "scalar"): _Inert,
  ("numpy", "dtype"): _Inert,
  ("_codecs", "encode"): _Inert,
  **{("torch", name): _StorageType(dtype) for name, dtype in _STORAGE_TYPES.items()},
  **{("torch.storage", name): _StorageType(dtype) for name, dtype in _STORAGE_TYPES.items()},
  **{("torch", name): None for name in ("float16", "bfloat16", "float32", "float64", "int64")},
}


class _Unpickler(pickle._Unpickler):
  """Unpickler restricted to the allowlist; `storages` creates the storage of a persistent id."""

  # Attributes of the base class that its type stub lacks.
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
    """Drops an object's attributes; torch's OrderedDict has some that are not needed."""
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

  def _fill(self, target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict):
      raise Damaged("it changes what is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
      target[_check_key(key)] = value
    self.append(target)

  def _drop_items(self) -> None:
    """Leaves sets empty: they hold no weights."""
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
      raise RefusedPickle(f"{module[:100]}.{name[:100]}")
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


class _BoundedFile:
  """A file that never reads beyond its end, whatever length a pickle declares."""

  def __init__(self, file: BinaryIO) -> None:
    self._file, self._size = file, os.fstat(file.fileno()).st_size
    self.readline = file.readline

  def read(self, size: int) -> bytes:
    if size > self._size - self._file.tell():
      raise EOFError
    return self._file.read(size)


def read(path: pathlib.Path) -> Any:
  """Reads a file by `torch.save` without executing it: nested dicts, for use with `tensors`.

  Raises:
    Refused: the pickle names a function or class that no checkpoint of weights needs.
    Damaged: the file is damaged or of another format.
    OSError: it cannot be read.
  """
  try:
    with files.open_regular(path) as file:
      return _read_zip(path) if zipfile.is_zipfile(file) else _read_legacy(path)
  except (RefusedPickle, files.Damaged, OSError):
    raise
  except Exception as error:  # a damaged pickle may raise almost anything
    raise Damaged(f"it is damaged ({type(error).__name__})") from error


def _read_zip(path: pathlib.Path) -> Any:
  """Files of torch since 1.6: a zip archive with `data.pkl` and one member for every storage."""
  archive = files.open_zip(path)  # stays open: tensors are read on demand
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

  return _Unpickler(io.BytesIO(member("data.pkl", _MAX_PROGRAM)), storage).load()


def _read_legacy(path: pathlib.Path) -> Any:
  """Files of torch before 1.6: consecutive pickles, then the storages' numbers."""
  offsets: dict[str, int] = {}
  dtypes: dict[str, np.dtype] = {}

  def storage(dtype: np.dtype, key: str, count: int, view: Any = None) -> _Storage:
    if view is not None:
      raise Damaged("it holds views of storages, as only torch before 0.4 wrote them")
    dtypes[key] = dtype

    def content() -> bytes:
      with files.open_regular(path) as file:
        if key not in offsets:
          raise Damaged(f"it lacks the numbers of {key!r}")
        file.seek(offsets[key])
        try:
          return _BoundedFile(file).read(count * dtype.itemsize)
        except EOFError as error:
          raise Damaged("it is cut short") from error

    return _Storage(dtype, count, content)

  with files.open_regular(path) as file:
    bounded = _BoundedFile(file)
    try:
      if _Unpickler(bounded, storage).load() != _LEGACY_MAGIC:
        raise Damaged("it is no checkpoint of torch's")
    except (pickle.UnpicklingError, EOFError, KeyError) as error:
      raise Damaged("it is no checkpoint of torch's") from error
    _Unpickler(bounded, storage).load()  # the protocol
    system = _Unpickler(bounded, storage).load()
    if not (isinstance(system, dict) and system.get("little_endian", True)):
      raise Damaged("its numbers are big endian")
    tree = _Unpickler(bounded, storage).load()
    keys = _Unpickler(bounded, storage).load()
    for key in keys:
      count = int.from_bytes(file.read(8), "little")
      offsets[key] = file.tell()
      file.seek(count * dtypes[key].itemsize, io.SEEK_CUR)
  return tree


def tensors(tree: Any) -> dict[str, Any]:
  """Collects the tensors of nested dicts by dotted name; lists and other objects are skipped.

  A dict that occurs several times counts where it is nested least deeply.

  Raises:
    Damaged: dicts nested too deeply.
  """
  tensors_by_name: dict[str, Any] = {}
  pending = [("", tree)] if isinstance(tree, dict) else []
  visited: set[int] = set()
  for _ in range(files.MAX_DEPTH):
    children = []
    for prefix, node in pending:
      if id(node) in visited:
        continue
      visited.add(id(node))
      for name, value in node.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, Tensor):
          tensors_by_name[dotted] = value
        elif isinstance(value, dict):
          children.append((f"{dotted}.", value))
    pending = children
  if pending:
    raise Damaged(f"its dicts nest more than {files.MAX_DEPTH} levels deep")
  return tensors_by_name

"""torch's checkpoint files, read without torch and without running what they hold.

A pickle is a program: it may call any function that it names. Here it may name a short list of
things, none of which does more than describe a tensor; anything else is refused before it is even
looked up. Tensors come out as descriptions (`Tensor`) and are read from the file on demand, so
that an optimiser's moments cost nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import math
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

_TYPES = {
  "DoubleStorage": np.dtype("<f8"), "FloatStorage": np.dtype("<f4"),
  "HalfStorage": np.dtype("<f2"), "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "LongStorage": np.dtype("<i8"), "IntStorage": np.dtype("<i4"), "ShortStorage": np.dtype("<i2"),
  "CharStorage": np.dtype("i1"), "ByteStorage": np.dtype("u1"), "BoolStorage": np.dtype("bool"),
}
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
    last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
    whole = np.frombuffer(self.storage.read(), self.storage.dtype)
    if math.prod(self.shape) and not (
        self.offset >= 0 and last < len(whole) and min(self.strides, default=0) >= 0):
      raise ValueError("a tensor reaches beyond its storage")
    size = whole.itemsize
    if not math.prod(self.shape):
      return np.empty(self.shape, dtype or whole.dtype)
    view = np.lib.stride_tricks.as_strided(
      whole[self.offset:], self.shape, [size * s for s in self.strides], writeable=False)
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
  if not isinstance(storage, _Storage):
    raise ValueError("a tensor has no storage")
  return Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _parameter(data, *_):
  return data


def _size(shape=()):
  return tuple(shape)


# What a pickle may name, and what it gets instead. Nothing here is torch's or the system's own.
_ALLOWED: dict[tuple[str, str], Any] = {
  ("collections", "OrderedDict"): collections.OrderedDict,
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


class _Unpickler(pickle.Unpickler):
  """Finds nothing but what is on the list; `storages` makes the storage of a persistent id."""

  def __init__(self, file: io.BufferedIOBase, storages: Callable[..., _Storage]) -> None:
    super().__init__(file, encoding="utf-8")
    self._storages = storages

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _ALLOWED:
      raise Refused(f"{module}.{name}")
    return _ALLOWED[module, name]

  def persistent_load(self, pid: Any) -> _Storage:
    if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"
            and isinstance(pid[1], _StorageType)):
      raise ValueError("a storage is of an unknown kind")
    return self._storages(pid[1].dtype, str(pid[2]), int(pid[4]), *pid[5:])


def read(path: pathlib.Path) -> Any:
  """What `torch.save` wrote, with every tensor as a `Tensor`.

  Raises:
    Refused: the pickle names a function or class that no checkpoint of weights needs.
    ValueError: the file is damaged or of another format.
  """
  try:
    return _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
  except (Refused, ValueError):
    raise
  except Exception as error:  # a damaged pickle may raise nearly anything
    raise ValueError(f"it is damaged ({type(error).__name__})") from error


def _read_zip(path: pathlib.Path) -> Any:
  """Files of torch since 1.6: a zip archive with `data.pkl` and one member for every storage."""
  archive = zipfile.ZipFile(path)
  names = archive.namelist()
  pickled = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
  if len(pickled) != 1:
    raise ValueError("it is a zip archive, but not of torch's")
  root = pickled[0].partition("/")[0]
  if f"{root}/byteorder" in names and archive.read(f"{root}/byteorder") != b"little":
    raise ValueError("its numbers are big endian")

  def storage(dtype: np.dtype, key: str, count: int, *_: Any) -> _Storage:
    return _Storage(dtype, count, lambda: archive.read(f"{root}/data/{key}"))

  return _Unpickler(io.BytesIO(archive.read(pickled[0])), storage).load()


def _read_legacy(path: pathlib.Path) -> Any:
  """Files of torch before 1.6: pickles one after the other, then the storages' numbers."""
  places: dict[str, int] = {}
  known: dict[str, np.dtype] = {}

  def storage(dtype: np.dtype, key: str, count: int, view: Any = None) -> _Storage:
    if view is not None:
      raise ValueError("it holds views of storages, as only torch before 0.4 wrote them")
    known[key] = dtype

    def content() -> bytes:
      with path.open("rb") as file:
        file.seek(places[key])
        return file.read(count * dtype.itemsize)

    return _Storage(dtype, count, content)

  with path.open("rb") as file:
    try:
      if _Unpickler(file, storage).load() != _LEGACY:
        raise ValueError("it is no checkpoint of torch's")
    except pickle.UnpicklingError as error:
      raise ValueError("it is no checkpoint of torch's") from error
    _Unpickler(file, storage).load()  # the protocol
    system = _Unpickler(file, storage).load()
    if not (isinstance(system, dict) and system.get("little_endian", True)):
      raise ValueError("its numbers are big endian")
    found = _Unpickler(file, storage).load()
    keys = _Unpickler(file, storage).load()
    for key in map(str, keys):
      count = int.from_bytes(file.read(8), "little")
      places[key] = file.tell()
      file.seek(count * known[key].itemsize, io.SEEK_CUR)
  return found


def tensors(tree: Any, prefix: str = "") -> dict[str, Any]:
  """Every tensor in nested dicts by its dotted name; lists and other objects are left out."""
  found: dict[str, Any] = {}
  if isinstance(tree, dict):
    for name, value in tree.items():
      dotted = f"{prefix}{name}"
      if isinstance(value, Tensor):
        found[dotted] = value
      elif isinstance(value, dict):
        found.update(tensors(value, f"{dotted}."))
  return found

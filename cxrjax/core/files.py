"""Files that may be a stranger's, read so that nothing in them costs more than it holds.

Only regular files are opened: a pipe would be waited for without end. What a file says of its own
sizes is held against the bytes that are there before anything is made of it. Whatever is wrong is a
`ValueError` that says so in one line, without the file's name.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import stat
import struct
import warnings
import zipfile
import zlib
from typing import Any, Literal

import ml_dtypes
import numpy as np

MAX_JSON = 64 << 20  # bytes; the largest run.json has a thousandth of it
MAX_DEPTH = 64  # of lists and mappings in one another
MAX_RATIO = 200  # unpacked to packed size of a member of a zip of more than SMALL bytes
SMALL = 16 << 20
_MEMBERS = 100_000  # of a file of arrays
_CHUNK = 1 << 20  # bytes that are unpacked at a time
_HEADER = 100 << 20  # of a .safetensors, as its own library has it
_PLAIN = "biufcSU"  # kinds of arrays that hold their own numbers or texts
_SAFE = {
  "BOOL": np.bool_,
  "U8": np.uint8,
  "I8": np.int8,
  "U16": np.uint16,
  "I16": np.int16,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
  "U32": np.uint32,
  "I32": np.int32,
  "F32": np.float32,
  "U64": np.uint64,
  "I64": np.int64,
  "F64": np.float64,
  "C64": np.complex64,
  "F8_E4M3": ml_dtypes.float8_e4m3fn,
  "F8_E5M2": ml_dtypes.float8_e5m2,
  "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}


class Damaged(ValueError):
  """What is wrong with a file, in one line that begins with "it"."""


def opened(path: str | os.PathLike[str]) -> io.BufferedReader:
  """A regular file, open for reading.

  Raises:
    OSError: it is not there or cannot be read.
    Damaged: it is a pipe, a device or a socket.
  """
  if stat.S_ISDIR(os.stat(path).st_mode):
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
  if stat.S_ISREG(os.stat(path).st_mode):
    # Without waiting, in case it has become a pipe since.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(handle).st_mode):
      return os.fdopen(handle, "rb")
    os.close(handle)
  raise Damaged("it is a pipe or a device, not a regular file")


def read(path: str | os.PathLike[str], limit: int) -> bytes:
  """A whole regular file of at most `limit` bytes."""
  with opened(path) as file:
    data = file.read(limit + 1)
  if len(data) > limit:
    raise Damaged(f"it has more than {limit:,} bytes")
  return data


def parse_json(data: bytes | str) -> Any:
  """JSON of bounded depth."""
  try:
    value = json.loads(data.decode("utf-8-sig") if isinstance(data, bytes) else data)
  except UnicodeDecodeError as error:
    raise Damaged(f"it is not text in UTF-8 (byte {error.start})") from error
  except RecursionError as error:
    raise Damaged(f"it nests more than {MAX_DEPTH} levels deep") from error
  except ValueError as error:
    raise Damaged(f"it is not JSON, or cut short ({error})") from error
  level, depth = [value], 0
  while level := [
    x
    for item in level
    if isinstance(item, dict | list)
    for x in (item.values() if isinstance(item, dict) else item)
  ]:
    depth += 1
    if depth > MAX_DEPTH:
      raise Damaged(f"it nests more than {MAX_DEPTH} levels deep")
  return value


def read_json(path: str | os.PathLike[str]) -> Any:
  """A file of JSON."""
  return parse_json(read(path, MAX_JSON))


def read_mapping(path: str | os.PathLike[str]) -> dict[str, Any]:
  """A file of JSON that holds a mapping, as this program writes its own."""
  value = read_json(path)
  if not isinstance(value, dict):
    raise Damaged("it holds no mapping")
  return value


def open_zip(file: io.BufferedIOBase | str | os.PathLike[str]) -> zipfile.ZipFile:
  """A zip, whatever is wrong with it in one kind of error.

  Raises:
    OSError, Damaged: there is no such file, or it is not a regular one.
    zipfile.BadZipFile: it is damaged, or of a version that Python does not read.
  """
  if isinstance(file, str | os.PathLike):
    opened(file).close()
  try:
    return zipfile.ZipFile(file)
  except (NotImplementedError, ValueError, IndexError, OverflowError, struct.error) as error:
    raise zipfile.BadZipFile(str(error) or type(error).__name__) from error


def unzip(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
  """One member of a zip, counted while it is unpacked.

  Args:
    archive: the zip.
    info: of the member.
    limit: of its bytes.

  Raises:
    Damaged: it is, or it is larger, unpacks to far more than is plausible or to another size than
      the zip says, is encrypted, or packed in a way that is not read.
    OSError: it cannot be read.
  """
  size = info.file_size
  if size > limit:
    raise Damaged(f"it has {size:,} bytes; at most {limit:,} are read")
  if size > max(SMALL, MAX_RATIO * info.compress_size):
    raise Damaged(f"it would unpack to {size:,} bytes from {info.compress_size:,}")
  if info.flag_bits & 1:
    raise Damaged("it is encrypted")
  if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    # The others are unpacked by as many bytes as they please at a time.
    raise Damaged("it is packed in a way that is not read here (only stored and deflated are)")
  parts, count = [], 0
  try:
    # In pieces: as a whole, all that the member holds would be unpacked, whatever its size is said
    # to be.
    with archive.open(info) as member:
      while part := member.read(_CHUNK):
        parts.append(part)
        count += len(part)
  except (zipfile.BadZipFile, zlib.error, EOFError, struct.error) as error:
    raise Damaged(f"it is damaged ({str(error)[:200] or type(error).__name__})") from error
  except (NotImplementedError, RuntimeError, UnicodeDecodeError) as error:
    raise Damaged(f"it is packed in a way that is not read here ({error})") from error
  if count != size:
    raise Damaged(f"it unpacks to {count:,} bytes, where the zip says {size:,}")
  return b"".join(parts)


def parse_npy(data: bytes) -> np.ndarray:
  """An array in the format of a .npy, without Python objects; it shares memory with `data`."""
  dtype, shape, order, start = _npy_header(io.BytesIO(data))
  _check_shape(dtype, shape, len(data) - start)
  return _array(data, start, dtype, shape, order)


def map_npy(path: str | os.PathLike[str]) -> np.ndarray:
  """The array of a .npy file, read from disk where it is looked at.

  Raises:
    OSError, Damaged: it cannot be read.
  """
  with opened(path) as file:
    dtype, shape, order, start = _npy_header(file)
    _check_shape(dtype, shape, os.fstat(file.fileno()).st_size - start)
    if not math.prod(shape):
      return np.zeros(shape, dtype)
    return np.memmap(file, dtype, "r", start, shape, order)


def _npy_header(file: io.BufferedIOBase) -> tuple[np.dtype, Any, Literal["C", "F"], int]:
  """Type, shape, order and place of an array's numbers."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # on headers of Python 2
      version = np.lib.format.read_magic(file)
      header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
      }[version]
      shape, in_fortran, dtype = header(file)
  except Exception as error:  # what a header may raise that is read as Python is without end
    raise Damaged("the header of its array is damaged") from error
  if (
    dtype.hasobject or dtype.fields is not None or (dtype.kind not in _PLAIN and dtype.kind != "V")
  ):
    raise Damaged(f"its array is of {dtype}, which is not read")
  return dtype, shape, "F" if in_fortran else "C", file.tell()


def _check_shape(dtype: np.dtype, shape: Any, there: int) -> None:
  """Refuses what is no shape, or not that of so many bytes."""
  if (
    not isinstance(shape, tuple | list)
    or len(shape) > 32
    or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape)
  ):
    raise Damaged("the shape of its array is none")
  count = math.prod(shape)
  if count >= 1 << 48 or (count > 1 and not dtype.itemsize) or (count * dtype.itemsize != there):
    raise Damaged(
      f"its array of {' x '.join(map(str, shape)) or 1} {dtype} is not the "
      f"{there:,} bytes that are there"
    )


def _array(
  data: Any, start: int, dtype: np.dtype, shape: Any, order: Literal["C", "F"] = "C"
) -> np.ndarray:
  """An array of numbers that are all there."""
  count = math.prod(shape)
  if not count * dtype.itemsize:
    return np.zeros(shape, dtype)
  return np.frombuffer(data, dtype, count, start).reshape(shape, order=order)


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """All arrays of an .npz by their names.

  Raises:
    OSError, Damaged: it cannot be read.
  """
  found: dict[str, np.ndarray] = {}
  with opened(path) as file:
    room = max(1 << 30, MAX_RATIO * os.fstat(file.fileno()).st_size)
    try:
      with open_zip(file) as archive:
        if len(archive.infolist()) > _MEMBERS:
          raise Damaged(f"it has more than {_MEMBERS:,} arrays")
        for info in archive.infolist():
          name = info.filename.removesuffix(".npy")
          if name in found or name == info.filename:
            raise Damaged(f"it has no array, or a second one, in {info.filename!r}")
          data = unzip(archive, info, room)
          found[name] = parse_npy(data)
          room -= len(data)
    except zipfile.BadZipFile as error:
      raise Damaged(f"it is damaged ({str(error)[:200]})") from error
  return found


def read_npy(path: str | os.PathLike[str]) -> np.ndarray:
  """The array of a .npy file.

  Raises:
    OSError, Damaged: it cannot be read.
  """
  with opened(path) as file:
    return parse_npy(file.read())


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """All arrays of a .safetensors by their names, of 8-bit floats too, and its metadata.

  Raises:
    OSError, Damaged: it cannot be read.
  """
  with opened(path) as file:
    there = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if there < 8 or length > min(_HEADER, there - 8):
      raise Damaged("it is cut short, or no .safetensors")
    header = parse_json(file.read(length))
    data = memoryview(file.read())
  if not isinstance(header, dict):
    raise Damaged("its header is damaged")
  about = header.pop("__metadata__", {})
  if not isinstance(about, dict) or not all(isinstance(v, str) for v in about.values()):
    raise Damaged("its metadata are no texts")
  found, end = {}, 0
  for name, (kind, shape, start, stop) in sorted(
    ((n, _entry(n, e)) for n, e in header.items()), key=lambda item: item[1][2:]
  ):
    if start != end or stop < start:
      raise Damaged(f"{name!r} in it lies over another array, or beside a gap")
    _check_shape(np.dtype(_SAFE[kind]), shape, stop - start)
    if stop > len(data):
      raise Damaged("it is cut short")
    found[name], end = _array(data[start:stop], 0, np.dtype(_SAFE[kind]), shape), stop
  if end != len(data):
    raise Damaged(f"it has {len(data):,} bytes of numbers, where its header says {end:,}")
  return found, about


def _entry(name: str, entry: Any) -> tuple[str, Any, int, int]:
  """One array of a .safetensors: type, shape, begin and end."""
  try:
    kind, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
  except (TypeError, KeyError, ValueError) as error:
    raise Damaged(f"{name!r} in its header is damaged") from error
  if not isinstance(kind, str) or kind not in _SAFE:
    raise Damaged(
      f"{name!r} in it is of type {kind!r}, which is not read; valid: {', '.join(_SAFE)}"
    )
  if not (type(start) is int and type(stop) is int and start >= 0):
    raise Damaged(f"{name!r} in its header is damaged")
  return kind, shape, start, stop

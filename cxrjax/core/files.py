"""Safe reading of untrusted files, at a cost bounded by what they actually contain.

Only regular files are opened: reading a pipe could block forever. The sizes that a file declares
are checked against the bytes present before anything is allocated. Every defect is a `ValueError`
with a one-line message that leaves out the file's name.
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

MAX_JSON = 64 << 20  # bytes; the largest run.json has a thousandth of that
MAX_DEPTH = 64  # of nested lists and mappings
MAX_RATIO = 200  # unpacked to packed size, for zip members of more than SMALL bytes
SMALL_MEMBER_BYTES = 16 << 20
_MAX_ARRAYS = 100_000  # per .npz
_CHUNK = 1 << 20  # bytes unpacked at a time
_MAX_HEADER = 100 << 20  # bytes, of a .safetensors; the limit of its own library
_PLAIN_KINDS = "biufcSU"  # dtype kinds that hold numbers or text inline
_DTYPES = {  # of a .safetensors
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
  """A defect of a file, described in one line that begins with "it"."""


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
  """Opens a regular file for reading.

  Raises:
    OSError: it does not exist or cannot be read.
    Damaged: it is a pipe, a device or a socket.
  """
  mode = os.stat(path).st_mode
  if stat.S_ISDIR(mode):
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
  if stat.S_ISREG(mode):
    # Non-blocking, in case it has been replaced by a pipe.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(handle).st_mode):
      return os.fdopen(handle, "rb")
    os.close(handle)
  raise Damaged("it is a pipe or a device, not a regular file")


def read(path: str | os.PathLike[str], limit: int) -> bytes:
  """Reads a regular file of at most `limit` bytes."""
  with open_regular(path) as file:
    size = os.fstat(file.fileno()).st_size
    if size > limit:
      raise Damaged(f"it has more than {limit:,} bytes")
    return file.read(size)


def parse_json(data: bytes | str) -> Any:
  """Parses JSON of bounded depth."""
  try:
    value = json.loads(data.decode("utf-8-sig") if isinstance(data, bytes) else data)
  except UnicodeDecodeError as error:
    raise Damaged(f"it is not text in UTF-8 (byte {error.start})") from error
  except RecursionError as error:
    raise Damaged(f"it nests more than {MAX_DEPTH} levels deep") from error
  except ValueError as error:
    raise Damaged(f"it is not JSON, or cut short ({error})") from error
  # Level by level: `value` may nest too deeply for recursion.
  nodes, depth = [value], 0
  while nodes := [
    x
    for item in nodes
    if isinstance(item, dict | list)
    for x in (item.values() if isinstance(item, dict) else item)
  ]:
    depth += 1
    if depth > MAX_DEPTH:
      raise Damaged(f"it nests more than {MAX_DEPTH} levels deep")
  return value


def read_json(path: str | os.PathLike[str]) -> Any:
  """Reads a JSON file."""
  return parse_json(read(path, MAX_JSON))


def read_mapping(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Reads a JSON file that must hold a mapping, as those of this program do."""
  value = read_json(path)
  if not isinstance(value, dict):
    raise Damaged("it does not hold a mapping")
  return value


def open_zip(file: io.BufferedIOBase | str | os.PathLike[str]) -> zipfile.ZipFile:
  """Opens a zip, with one kind of error for all defects.

  Raises:
    OSError, Damaged: there is no such file, or it is not a regular one.
    zipfile.BadZipFile: it is damaged, or of a version that Python cannot read.
  """
  if isinstance(file, str | os.PathLike):
    open_regular(file).close()
  try:
    return zipfile.ZipFile(file)
  except (NotImplementedError, ValueError, IndexError, OverflowError, struct.error) as error:
    raise zipfile.BadZipFile(str(error) or type(error).__name__) from error


def unzip(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
  """Unpacks a zip member, checking its size on the way.

  Args:
    archive: the zip.
    info: the member.
    limit: its maximum size in bytes.

  Raises:
    Damaged: it is damaged, too large, unpacks to implausibly many bytes or to another size than the
      zip declares, is encrypted, or uses an unsupported compression.
    OSError: it cannot be read.
  """
  size = info.file_size
  if size > limit:
    raise Damaged(f"it has {size:,} bytes; at most {limit:,} are read")
  if size > max(SMALL_MEMBER_BYTES, MAX_RATIO * info.compress_size):
    raise Damaged(f"it would unpack to {size:,} bytes from {info.compress_size:,}")
  if info.flag_bits & 1:
    raise Damaged("it is encrypted")
  if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    # Python's other decompressors do not bound the bytes that they return at a time.
    raise Damaged("it uses an unsupported compression (only stored and deflated are read)")
  parts, count = [], 0
  try:
    # In chunks: a single read would unpack the whole member, whatever size it declares.
    with archive.open(info) as member:
      while part := member.read(_CHUNK):
        parts.append(part)
        count += len(part)
  except (zipfile.BadZipFile, zlib.error, EOFError, struct.error) as error:
    raise Damaged(f"it is damaged ({str(error)[:200] or type(error).__name__})") from error
  except (NotImplementedError, RuntimeError, UnicodeDecodeError) as error:
    raise Damaged(f"it uses an unsupported compression ({error})") from error
  if count != size:
    raise Damaged(f"it unpacks to {count:,} bytes, but the zip declares {size:,}")
  return b"".join(parts)


def parse_npy(data: bytes) -> np.ndarray:
  """Parses an array in .npy format, without Python objects; it shares memory with `data`."""
  dtype, shape, order, start = _npy_header(io.BytesIO(data))
  _check_shape(dtype, shape, len(data) - start)
  return _array(data, start, dtype, shape, order)


def _npy_header(file: io.BufferedIOBase) -> tuple[np.dtype, Any, Literal["C", "F"], int]:
  """Parses dtype, shape, memory order and data offset of an array."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # about headers written by Python 2
      version = np.lib.format.read_magic(file)
      header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
      }[version]
      shape, in_fortran, dtype = header(file)
  except Exception as error:  # parsed as Python, a header may raise anything
    raise Damaged("the header of its array is damaged") from error
  if (
    dtype.hasobject
    or dtype.fields is not None
    or (dtype.kind not in _PLAIN_KINDS and dtype.kind != "V")
  ):
    raise Damaged(f"its array has dtype {dtype}, which is not supported")
  return dtype, shape, "F" if in_fortran else "C", file.tell()


def _check_shape(dtype: np.dtype, shape: Any, available: int) -> None:
  """Validates a shape, and that its array has the size of the available bytes."""
  if (
    not isinstance(shape, tuple | list)
    or len(shape) > 32
    or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape)
  ):
    raise Damaged("the shape of its array is invalid")
  count = math.prod(shape)
  if (
    count >= 1 << 48 or (count > 1 and not dtype.itemsize) or (count * dtype.itemsize != available)
  ):
    raise Damaged(
      f"its array of {' x '.join(map(str, shape)) or 1} {dtype} does not "
      f"match the {available:,} bytes present"
    )


def _array(
  data: Any, start: int, dtype: np.dtype, shape: Any, order: Literal["C", "F"] = "C"
) -> np.ndarray:
  """Wraps checked bytes as an array."""
  count = math.prod(shape)
  if not count * dtype.itemsize:
    return np.zeros(shape, dtype)
  return np.frombuffer(data, dtype, count, start).reshape(shape, order=order)


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Reads all arrays of an .npz by name.

  Raises:
    OSError, Damaged: it cannot be read.
  """
  arrays: dict[str, np.ndarray] = {}
  with open_regular(path) as file:
    bytes_left = max(1 << 30, MAX_RATIO * os.fstat(file.fileno()).st_size)
    try:
      with open_zip(file) as archive:
        if len(archive.infolist()) > _MAX_ARRAYS:
          raise Damaged(f"it has more than {_MAX_ARRAYS:,} arrays")
        for info in archive.infolist():
          name = info.filename.removesuffix(".npy")
          if name in arrays or name == info.filename:
            raise Damaged(f"its member {info.filename!r} is not an array, or a duplicate")
          data = unzip(archive, info, bytes_left)
          arrays[name] = parse_npy(data)
          bytes_left -= len(data)
    except zipfile.BadZipFile as error:
      raise Damaged(f"it is damaged ({str(error)[:200]})") from error
  return arrays


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Reads the arrays of a .safetensors by name, including 8-bit floats, and its metadata.

  Raises:
    OSError, Damaged: it cannot be read.
  """
  with open_regular(path) as file:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(_MAX_HEADER, size - 8):
      raise Damaged("it is cut short, or not a .safetensors file")
    header = parse_json(file.read(length))
    data = memoryview(file.read())
  if not isinstance(header, dict):
    raise Damaged("its header is damaged")
  metadata = header.pop("__metadata__", {})
  if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
    raise Damaged("its metadata are not strings")
  arrays, end = {}, 0
  for name, (kind, shape, start, stop) in sorted(
    ((n, _parse_entry(n, e)) for n, e in header.items()), key=lambda item: item[1][2:]
  ):
    if start != end or stop < start:
      raise Damaged(f"{name!r} in it lies over another array, or beside a gap")
    _check_shape(np.dtype(_DTYPES[kind]), shape, stop - start)
    if stop > len(data):
      raise Damaged("it is cut short")
    arrays[name], end = _array(data[start:stop], 0, np.dtype(_DTYPES[kind]), shape), stop
  if end != len(data):
    raise Damaged(f"it has {len(data):,} bytes of numbers, where its header says {end:,}")
  return arrays, metadata


def _parse_entry(name: str, entry: Any) -> tuple[str, Any, int, int]:
  """Parses a .safetensors header entry: dtype, shape, start and end."""
  try:
    kind, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
  except (TypeError, KeyError, ValueError) as error:
    raise Damaged(f"{name!r} in its header is damaged") from error
  if not isinstance(kind, str) or kind not in _DTYPES:
    raise Damaged(
      f"{name!r} in it is of type {kind!r}, which is not read; valid: {', '.join(_DTYPES)}"
    )
  if not (type(start) is int and type(stop) is int and start >= 0):
    raise Damaged(f"{name!r} in its header is damaged")
  return kind, shape, start, stop

"""Image squares in a `.npy` file, with one checksum per square appended after the array.

A small file is verified when it is opened, and rebuilt where it is damaged. In a large one each
square is verified when it is first read, since opening a file must not read a whole disk.
"""

from __future__ import annotations

import concurrent.futures
import errno
import io
import os
import pathlib
import shutil
import threading
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt32

from cxrjax.core import checksums
from cxrjax.core.errors import UserError
from cxrjax.data.images import LazyRows

SMALL = 1 << 30  # bytes that are verified on opening: about a third of a second
_PART = 256  # squares that a thread verifies at a time


def allocate(path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """Allocates a new array on disk, to be filled and then `seal`ed.

  The disk space is reserved: a full disk is an error now, not a SIGBUS later.
  """
  array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
  size = path.stat().st_size + 4 * (len(array) + 1)
  with open(path, "r+b") as file:
    if hasattr(os, "posix_fallocate"):
      os.posix_fallocate(file.fileno(), 0, size)
    elif shutil.disk_usage(path.parent).free < size:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
  return array


def checksums_of(rows: Sequence[np.ndarray] | np.ndarray) -> UInt32[np.ndarray, "n"]:
  """The checksum of each square."""
  return np.fromiter(map(_sum, rows), np.uint32, len(rows))


def seal(array: np.ndarray, known: UInt32[np.ndarray, "n"]) -> None:
  """Flushes an array made by `allocate` to disk and appends the checksums of its squares."""
  assert isinstance(array, np.memmap) and array.filename and len(known) == len(array)
  array.flush()
  with open(array.filename, "r+b") as file:
    tail = known.astype("<u4").tobytes()
    header = file.read(array.offset)
    file.seek(array.offset + array.nbytes)
    file.write(tail + zlib.crc32(tail, zlib.crc32(header)).to_bytes(4, "little"))
    file.truncate()


def load(
  path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype, count: int | None = None
) -> np.ndarray | LazyRows | None:
  """Loads the first `count` squares of a file; None where it is missing, incomplete or damaged.

  Args:
    path: of the file.
    shape: of the full array.
    dtype: of the array.
    count: number of squares to load; all by default.
  """
  n, header = shape[0], _header(shape, dtype)
  size = int(np.prod(shape)) * np.dtype(dtype).itemsize
  try:
    with open(path, "rb") as file:
      start = file.read(len(header))
      file.seek(len(header) + size)
      tail = file.read(4 * n + 5)
  except OSError:
    return None
  tail_sum = zlib.crc32(tail[: 4 * n], zlib.crc32(header)).to_bytes(4, "little")
  if start != header or len(tail) != 4 * n + 4 or tail[4 * n :] != tail_sum:
    return None
  array = np.memmap(path, dtype, "r", len(header), shape)[:count]
  known = np.frombuffer(tail, "<u4", n)[:count]
  if array.nbytes > SMALL:
    return LazyRows(VerifiedSquares(array, known, path), np.arange(len(array)))
  return array if _is_intact(array, known) else None


class VerifiedSquares:
  """Squares of a file, each verified against its checksum when it is first read.

  Args:
    squares: in the file.
    known: their checksums.
    path: of the file, which is removed if damaged, so that it is rebuilt.
  """

  def __init__(self, squares: np.ndarray, known: UInt32[np.ndarray, "n"], path: pathlib.Path):
    self._squares, self._known, self._path = squares, known, path
    self._verified = np.zeros(len(squares), bool)
    self._lock = threading.Lock()
    self.shape, self.dtype, self.ndim = squares.shape, squares.dtype, squares.ndim

  def __getitem__(self, rows: int | np.integer | np.ndarray) -> np.ndarray:
    """Squares by index, or a single one.

    Raises:
      UserError: one of them is damaged.
    """
    squares = np.array(self._squares[rows])
    stack = squares if np.ndim(rows) else squares[None]
    rows = np.atleast_1d(rows)
    new = np.flatnonzero(~self._verified[rows])
    if (checksums_of(stack[new]) != self._known[rows[new]]).any():
      with self._lock:
        self._path.unlink(missing_ok=True)
      raise UserError(f"{self._path} is damaged and was removed; the same command makes it again")
    self._verified[rows[new]] = True
    return squares


def _sum(square: np.ndarray) -> int:
  return checksums.crc32(np.ascontiguousarray(square).view(np.uint8))


def _is_intact(array: np.ndarray, known: np.ndarray) -> bool:
  def is_part_intact(start: int) -> bool:
    part = slice(start, start + _PART)
    return bool((checksums_of(array[part]) == known[part]).all())

  with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    return all(pool.map(is_part_intact, range(0, len(array), _PART)))


def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
  """Header of a `.npy` file, as `allocate` writes it."""
  buffer = io.BytesIO()
  description = {
    "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
    "fortran_order": False,
    "shape": tuple(shape),
  }
  np.lib.format.write_array_header_1_0(buffer, description)
  return buffer.getvalue()

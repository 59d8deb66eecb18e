"""Squares in a file, each with a checksum: a `.npy` file, behind whose array the checksums lie.

What is small is held against them when it is opened, and is made again where it is damaged. Of what
is large every square is, when it is first read: an opening must not read a whole disk.
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
from cxrjax.data.images import Rows

SMALL = 1 << 30  # bytes that are held against their checksums at once: about a third of a second
_PART = 256  # squares that a thread looks at


def allocate(path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """A new array on disk, to be filled and then `seal`ed.

  Its space is really there: a full disk is an error now, not a SIGBUS later.
  """
  array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
  size = path.stat().st_size + 4 * (len(array) + 1)
  with open(path, "r+b") as file:
    if hasattr(os, "posix_fallocate"):
      os.posix_fallocate(file.fileno(), 0, size)
    elif shutil.disk_usage(path.parent).free < size:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
  return array


def sums(rows: Sequence[np.ndarray] | np.ndarray) -> UInt32[np.ndarray, "n"]:
  """The checksum of each of some squares."""
  return np.fromiter(map(_sum, rows), np.uint32, len(rows))


def seal(array: np.ndarray, known: UInt32[np.ndarray, "n"]) -> None:
  """Writes an array of `allocate` to the disk, and its squares' checksums behind it."""
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
) -> np.ndarray | Rows | None:
  """The first `count` squares of a file, by default all; None where there is no whole one.

  Args:
    path: of the file.
    shape: of the whole array.
    dtype: of the array.
    count: how many are wanted.
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
  own = zlib.crc32(tail[: 4 * n], zlib.crc32(header)).to_bytes(4, "little")
  if start != header or len(tail) != 4 * n + 4 or tail[4 * n :] != own:
    return None
  array = np.memmap(path, dtype, "r", len(header), shape)[:count]
  known = np.frombuffer(tail, "<u4", n)[:count]
  if array.nbytes > SMALL:
    return Rows(Checked(array, known, path), np.arange(len(array)))
  return array if _whole(array, known) else None


class Checked:
  """Squares of a file, each held against its checksum when it is first read.

  Args:
    squares: in the file.
    known: checksums.
    path: of the file, which is removed where it is damaged, so that it is made again.
  """

  def __init__(self, squares: np.ndarray, known: UInt32[np.ndarray, "n"], path: pathlib.Path):
    self._squares, self._known, self._path = squares, known, path
    self._seen = np.zeros(len(squares), bool)
    self._lock = threading.Lock()
    self.shape, self.dtype, self.ndim = squares.shape, squares.dtype, squares.ndim

  def __getitem__(self, rows: int | np.integer | np.ndarray) -> np.ndarray:
    """Some squares, or one.

    Raises:
      UserError: one of them is damaged.
    """
    found = np.array(self._squares[rows])
    rows, several = np.atleast_1d(rows), found if np.ndim(rows) else found[None]
    new = np.flatnonzero(~self._seen[rows])
    if (sums(several[new]) != self._known[rows[new]]).any():
      with self._lock:
        self._path.unlink(missing_ok=True)
      raise UserError(f"{self._path} is damaged and was removed; the same command makes it again")
    self._seen[rows[new]] = True
    return found


def _sum(square: np.ndarray) -> int:
  return checksums.crc32(np.ascontiguousarray(square).view(np.uint8))


def _whole(array: np.ndarray, known: np.ndarray) -> bool:
  def whole(start: int) -> bool:
    part = slice(start, start + _PART)
    return bool((sums(array[part]) == known[part]).all())

  with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    return all(pool.map(whole, range(0, len(array), _PART)))


def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
  """Of a `.npy` file, as `allocate` has it written."""
  opened = io.BytesIO()
  described = {
    "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
    "fortran_order": False,
    "shape": tuple(shape),
  }
  np.lib.format.write_array_header_1_0(opened, described)
  return opened.getvalue()

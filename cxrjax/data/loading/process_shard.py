"""Resident images with several processes: each decodes those that lie on its own devices."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float32, Int

from cxrjax.core.errors import UserError
from cxrjax.data import inspection
from cxrjax.data.base import Source
from cxrjax.data.images import Stack, WideStack
from cxrjax.data.loading import decoded_cache
from cxrjax.data.loading.device_arrays import Placement


class ProcessShard:
  """One process's images, addressed by source row; bad ones and those of others read as black.

  Args:
    pixels: good images of this process.
    windows: of these images; None with 8 bits.
    masks: of these images; None where none has a mask.
    rows: of these images in the source, ascending.
    bad: rows that no process can use, and why as far as this one knows; ascending.
  """

  def __init__(
    self,
    pixels: Stack | WideStack,
    windows: Float32[np.ndarray, "_ 2"] | None,
    masks: Stack | None,
    rows: Int[np.ndarray, "_"],
    bad: dict[int, str],
  ):
    self._pixels, self._windows, self._masks, self._rows = pixels, windows, masks, rows
    self.bad = bad

  def pixels(self, rows: slice) -> np.ndarray:
    return self._filled(rows, self._pixels)

  def windows(self, rows: slice) -> np.ndarray:
    assert self._windows is not None
    return self._filled(rows, self._windows)

  def masks(self, rows: slice) -> np.ndarray:
    if self._masks is None:  # another process has some
      return np.zeros((rows.stop - rows.start, *self._pixels.shape[1:]), np.uint8)
    return self._filled(rows, self._masks)

  def _filled(self, rows: slice, array: Any) -> np.ndarray:
    first, last = np.searchsorted(self._rows, [rows.start, rows.stop]).tolist()
    values = np.asarray(array[first:last])
    if last - first == rows.stop - rows.start:
      return values
    padded = np.zeros((rows.stop - rows.start, *array.shape[1:]), array.dtype)
    padded[self._rows[first:last] - rows.start] = values
    return padded


def load(
  source: Source,
  size: int,
  placement: Placement,
  *,
  on_bad_image: str,
  progress: bool,
  **options: Any,
) -> ProcessShard:
  """Decodes this process's share; all processes agree on the bad images.

  Nothing is raised before all processes have reported: one that stops early would leave the others
  waiting.

  Args:
    source: the same in all processes.
    size: side of the squares, pixels.
    placement: of all images on the devices.
    on_bad_image: `error` or `skip`.
    progress: a bar on process 0.
    **options: of `decoded_cache.decode_rows`.

  Raises:
    UserError: a bad image where these are errors, or a process that could not load its images.
  """
  n = len(source)
  padded = -(-n // placement.devices) * placement.devices
  rows = placement.positions(padded)
  rows = rows[rows < n]
  decoded: decoded_cache.Decoded | None = None
  failure: UserError | None = None
  try:
    if len(rows):
      decoded = decoded_cache.decode_rows(
        source, size, indices=rows, progress=progress and jax.process_index() == 0, **options
      )
  except UserError as error:
    failure = error
  bad = {} if decoded is None else {int(rows[i]): reason for i, reason in decoded.bad.items()}
  report = np.zeros(n + 1, np.uint8)
  report[n] = failure is not None
  report[sorted(bad)] = 1
  report = multihost_utils.process_allgather(report).reshape(-1, n + 1).max(axis=0)
  if failure is not None:
    raise failure
  if report[n]:
    raise UserError("another process could not load its images; see its output")
  unusable = {
    row: bad.get(row, "found bad by another process") for row in np.flatnonzero(report[:n]).tolist()
  }
  if unusable and on_bad_image == "error":
    row = min(unusable)
    raise decoded_cache.bad_image(source.table.ids[row], unusable[row])
  if decoded is None:  # more devices than rows
    dtype = np.dtype(f"u{inspection.bits_of(source, options.get('bits', 'auto')) // 8}")
    no_pixels = np.zeros((0, size, size, 1), dtype)
    no_windows = np.zeros((0, 2), np.float32) if dtype == np.uint16 else None
    return ProcessShard(no_pixels, no_windows, None, rows, unusable)
  return ProcessShard(decoded.pixels, decoded.windows, decoded.masks, rows[decoded.good], unusable)

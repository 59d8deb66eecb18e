"""On-demand decoding, or reading from a file of decoded images, with threads that prefetch."""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Float32, Int32, UInt8, UInt16

from cxrjax.core.errors import UserError
from cxrjax.data.base import Source
from cxrjax.data.decoding import decode, windowing, worker_pool
from cxrjax.data.images import Images, Stack, WideStack
from cxrjax.data.loading import decoded_cache

_READ = 16  # images that a thread copies at a time


class Image(NamedTuple):
  """A decoded image.

  Attributes:
    row: its row in the source.
    pixels: a square; see `images.Images`.
    window: gray levels shown black and white.
    mask: 1 in the lungs, else 0; all 0 where the image has no mask.
  """

  row: int
  pixels: UInt8[np.ndarray, "s s 1"] | UInt16[np.ndarray, "s s 1"]
  window: windowing.Window
  mask: UInt8[np.ndarray, "s s 1"]


class Reader:
  """Decodes single images of a source.

  Args:
    source: of the images.
    size: side of the squares, pixels; for this and the following see `decoded_cache.load_images`.
    fit: how images are made square.
    bits: 8 or 16.
    window: which levels are shown.
    on_bad: `error`, or `skip`: the next good image takes the place of a bad one.

  Attributes:
    skipped: bad images met so far, and why.
    notes: remarks on how images were read so far, with the image's name.
  """

  def __init__(
    self,
    source: Source,
    size: int,
    fit: str,
    bits: int,
    window: str | windowing.Window,
    on_bad: str,
  ):
    self._source, self._size, self._fit, self._on_bad = source, size, fit, on_bad
    self._bits, self._window = bits, window
    self.skipped: dict[str, str] = {}
    self.notes: dict[tuple[str, str], None] = {}

  def __call__(self, row: int) -> Image:
    """Decodes image `row`.

    Raises:
      UserError: the image is bad and bad images are errors, or all images are bad.
    """
    source, first_error = self._source, None
    for candidate in range(row, row + len(source)):
      candidate %= len(source)
      try:
        record = source.read(candidate, self._size)
        square, window, mask = decoded_cache.to_square(
          record, self._size, self._fit, self._bits, self._window
        )
        self.notes |= dict.fromkeys((source.table.ids[candidate], note) for note in record.notes)
        if mask is None:
          mask = np.zeros(square.shape, np.uint8)
        return Image(candidate, square, window, mask)
      except decode.BadImage as error:
        name = source.table.ids[candidate]
        if self._on_bad == "error":
          raise decoded_cache.bad_image(name, str(error)) from error
        self.skipped[name] = str(error)
        first_error = first_error or error
    raise UserError(f"{source.info.name}: every image is bad; one of them: {first_error}")


class Block(NamedTuple):
  """One process's images of a range of steps.

  Attributes:
    rows: of the images in the source.
    pixels: squares.
    windows: gray levels shown black and white.
    masks: 1 in the lungs, else 0; None unless requested.
  """

  rows: Int32[np.ndarray, "steps p"]
  pixels: UInt8[np.ndarray, "steps p s s 1"] | UInt16[np.ndarray, "steps p s s 1"]
  windows: Float32[np.ndarray, "steps p 2"]
  masks: UInt8[np.ndarray, "steps p s s 1"] | None = None


class StepRange:
  """One process's images of steps `start..stop-1`, as an indexable sequence.

  Args:
    images: a reader that decodes them, or all images decoded.
    rows: function from a step to the rows of its full batch.
    positions: which images of a batch this process provides.
    start: first step.
    stop: one past the last step.
    masks: whether to provide lung masks.
  """

  def __init__(
    self,
    images: Reader | Images,
    rows: Callable[[int], Int32[np.ndarray, "b"]],
    positions: np.ndarray,
    start: int,
    stop: int,
    masks: bool = False,
  ):
    self._masks = masks
    self._images, self._positions, self._start, self._stop = images, positions, start, stop
    self._rows = functools.lru_cache(maxsize=16)(rows)  # called once per image

  def __len__(self) -> int:
    return (self._stop - self._start) * len(self._positions)

  def __getitem__(self, item: int) -> Image:
    assert isinstance(self._images, Reader)
    step, position = divmod(item, len(self._positions))
    return self._images(int(self._rows(self._start + step)[self._positions[position]]))

  def block(self) -> Block:
    """All images at once, decoded or copied by threads."""
    with concurrent.futures.ThreadPoolExecutor(worker_pool.num_threads()) as pool:
      if isinstance(self._images, Images):
        return self._copy(pool, self._start, self._stop)
      images = pool.map(self.__getitem__, range(len(self)))
      return self._collate(images, self._stop - self._start)

  def blocks(self, size: int) -> Iterator[Block]:
    """Yields blocks of `size` steps (fewer at the end); decoding runs about a block ahead."""
    starts = range(self._start, self._stop, size)
    if isinstance(self._images, Images):
      with concurrent.futures.ThreadPoolExecutor(worker_pool.num_threads()) as pool:
        for step in starts:
          yield self._copy(pool, step, min(step + size, self._stop))
      return
    threads = worker_pool.num_threads()
    ahead = max(2 * len(self._positions) * size, 2 * threads)
    images = iter(
      grain.MapDataset.source(self).to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
      )
    )
    for step in starts:
      yield self._collate(images, min(size, self._stop - step))

  def _collate(self, images: Iterator[Image], steps: int) -> Block:
    """Stacks the images of the next steps."""
    shape = (steps, len(self._positions))
    rows, windows = np.zeros(shape, np.int32), np.zeros((*shape, 2), np.float32)
    squares: np.ndarray | None = None
    masks: np.ndarray | None = None
    for place in np.ndindex(shape):
      image = next(images)
      if squares is None:
        squares = np.empty((*shape, *image.pixels.shape), image.pixels.dtype)
        masks = np.empty((*shape, *image.mask.shape), np.uint8) if self._masks else None
      rows[place], squares[place], windows[place] = image[:3]
      if masks is not None:
        masks[place] = image.mask
    assert squares is not None
    return Block(rows, squares, windows, masks)

  def _copy(self, pool: concurrent.futures.ThreadPoolExecutor, start: int, stop: int) -> Block:
    """Copies steps `start..stop-1` from a file of decoded images, with many reads in parallel."""
    images = self._images
    assert isinstance(images, Images) and images.windows is not None
    rows = np.stack([self._rows(step)[self._positions] for step in range(start, stop)])
    flat = rows.reshape(-1)

    def gather(stack: Stack | WideStack) -> np.ndarray:
      squares = np.empty((len(flat), *stack.shape[1:]), stack.dtype)

      def copy(first: int) -> None:
        part = slice(first, first + _READ)
        squares[part] = stack[flat[part]]

      list(pool.map(copy, range(0, len(flat), _READ)))
      return squares.reshape(*rows.shape, *squares.shape[1:])

    masks = gather(images.masks) if self._masks and images.masks is not None else None
    return Block(rows, gather(images.pixels), images.windows[rows], masks)

"""Images decoded ahead of whoever wants them, batch by batch, for one or several networks at once.

Threads decode; a bounded number of images is in memory, however many there are in all.
"""

from __future__ import annotations

import concurrent.futures
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8, UInt16

from cxrjax.data.base import Record
from cxrjax.data.decoding import worker_pool
from cxrjax.data.decoding.decode import BadImage
from cxrjax.data.decoding.windowing import Window
from cxrjax.data.loading import decoded_cache
from cxrjax.data.loading.decoded_cache import DecodeSpec
from cxrjax.inference.inputs import ImageInputs

_NOTHING = np.zeros(0, np.float32)


class Squares(NamedTuple):
  """The images of a batch as one network is to see them.

  Attributes:
    pixels: see `data.images.Images`.
    windows: the gray levels shown of 16-bit ones; None with 8 bits.
  """

  pixels: UInt8[np.ndarray, "m s s 1"] | UInt16[np.ndarray, "m s s 1"]
  windows: Float32[np.ndarray, "m 2"] | None


class Batch(NamedTuple):
  """Some images in a row.

  Attributes:
    rows: of the good ones, in order.
    shapes: their own heights and widths, pixels.
    squares: for each `DecodeSpec`; empty where there is no good image.
    bad: rows of the others, and why.
    notes: of each good one, what a user should know of how it was read.
  """

  rows: tuple[int, ...]
  shapes: tuple[tuple[int, int], ...]
  squares: tuple[Squares, ...]
  bad: tuple[tuple[int, str], ...]
  notes: tuple[tuple[str, ...], ...] = ()


def batches(
  images: ImageInputs,
  rows: Iterable[int],
  looks: Sequence[DecodeSpec],
  size: int,
  threads: int | None = None,
) -> Generator[Batch, None, None]:
  """Images in turn, `size` at a time (a batch with bad ones has fewer good ones).

  Args:
    images: where they are.
    rows: which of them.
    looks: what they are to be like, for each network.
    size: images a batch.
    threads: that decode; by default one a core.

  Yields:
    Batches in order; while one is looked at, up to about two more are decoded.
  """
  threads = threads or worker_pool.workers()
  ahead = max(2 * size, 2 * threads)
  waiting: deque[tuple[int, concurrent.futures.Future]] = deque()
  pool = concurrent.futures.ThreadPoolExecutor(threads, "cxrjax-decode")
  todo = iter(rows)

  def gathered(count: int) -> Batch:
    good, shapes, bad, notes = [], [], [], []
    found: list[list[tuple[np.ndarray, Window]]] = []
    for _ in range(count):
      row, future = waiting.popleft()
      try:
        shape, squares, said = future.result()
      except BadImage as error:
        bad.append((row, str(error)))
        continue
      good.append(row)
      shapes.append(shape)
      notes.append(said)
      found.append(squares)
    return Batch(
      tuple(good),
      tuple(shapes),
      tuple(_stack([squares[k] for squares in found], look) for k, look in enumerate(looks))
      if good
      else (),
      tuple(bad),
      tuple(notes),
    )

  try:
    for row in todo:
      waiting.append((row, pool.submit(_one, images, row, looks)))
      if len(waiting) >= ahead + size:
        yield gathered(size)
    while waiting:
      yield gathered(min(size, len(waiting)))
  finally:
    pool.shutdown(cancel_futures=True)


def _one(
  images: ImageInputs, row: int, looks: Sequence[DecodeSpec]
) -> tuple[tuple[int, int], list[tuple[np.ndarray, Window]], tuple[str, ...]]:
  """One image for every look."""
  squares: list[tuple[np.ndarray, Window]] = []
  shape, film = (0, 0), images.film(row)
  notes: tuple[str, ...] = ()
  for look in looks:
    shown = film(look.size)
    shape, notes = shown.shape, shown.notes
    record = Record(shown.pixels, _NOTHING, None, "", "", window=shown.window)
    squares.append(decoded_cache.to_square(record, look.size, look.fit, look.bits, look.window)[:2])
  return shape, squares, notes


def _stack(found: Sequence[tuple[np.ndarray, Window]], look: DecodeSpec) -> Squares:
  pixels = np.stack([square for square, _ in found])
  if look.bits == 8:
    return Squares(pixels, None)
  return Squares(pixels, np.array([window for _, window in found], np.float32))

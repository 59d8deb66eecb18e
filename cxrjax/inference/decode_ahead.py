"""Decodes images ahead of their consumer, batch by batch, for one or several networks at once.

Threads decode; the number of images in memory is bounded.
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

_NO_LABELS = np.zeros(0, np.float32)


class Squares(NamedTuple):
  """The images of a batch as input of one network.

  Attributes:
    pixels: see `data.images.Images`.
    windows: gray-level windows of 16-bit images; None for 8 bits.
  """

  pixels: UInt8[np.ndarray, "m s s 1"] | UInt16[np.ndarray, "m s s 1"]
  windows: Float32[np.ndarray, "m 2"] | None


class Batch(NamedTuple):
  """Consecutive decoded images.

  Attributes:
    rows: of the good images, in order.
    shapes: their original heights and widths, pixels.
    squares: one per `DecodeSpec`; empty if there is no good image.
    bad: rows of the bad images, and why.
    notes: of each good image, what a user should know about how it was read.
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
  """Yields images in order, `size` at a time; bad ones leave a batch with fewer.

  Args:
    images: named images.
    rows: indices of those to decode.
    looks: size, fit, bit depth and window for each network.
    size: images per batch.
    threads: number of decoding threads; by default one per core.

  Yields:
    Batches in order; while one is consumed, up to about two more are decoded.
  """
  threads = threads or worker_pool.num_threads()
  max_ahead = max(2 * size, 2 * threads)
  queue: deque[tuple[int, concurrent.futures.Future]] = deque()
  pool = concurrent.futures.ThreadPoolExecutor(threads, "cxrjax-decode")

  def next_batch(count: int) -> Batch:
    good, shapes, bad, notes = [], [], [], []
    decoded: list[list[tuple[np.ndarray, Window]]] = []
    for _ in range(count):
      row, future = queue.popleft()
      try:
        shape, squares, image_notes = future.result()
      except BadImage as error:
        bad.append((row, str(error)))
        continue
      good.append(row)
      shapes.append(shape)
      notes.append(image_notes)
      decoded.append(squares)
    stacked: tuple[Squares, ...] = ()
    if good:
      by_look = zip(*decoded, strict=True)
      stacked = tuple(_stack_squares(s, look) for s, look in zip(by_look, looks, strict=True))
    return Batch(tuple(good), tuple(shapes), stacked, tuple(bad), tuple(notes))

  try:
    for row in rows:
      queue.append((row, pool.submit(_decode_image, images, row, looks)))
      if len(queue) >= max_ahead + size:
        yield next_batch(size)
    while queue:
      yield next_batch(min(size, len(queue)))
  finally:
    pool.shutdown(cancel_futures=True)


def _decode_image(
  images: ImageInputs, row: int, looks: Sequence[DecodeSpec]
) -> tuple[tuple[int, int], list[tuple[np.ndarray, Window]], tuple[str, ...]]:
  """Decodes one image to every spec of `looks`: its shape, squares and notes."""
  squares: list[tuple[np.ndarray, Window]] = []
  shape, film = (0, 0), images.film(row)
  notes: tuple[str, ...] = ()
  for look in looks:
    shown = film(look.size)
    shape, notes = shown.shape, shown.notes
    record = Record(shown.pixels, _NO_LABELS, None, "", "", window=shown.window)
    squares.append(decoded_cache.to_square(record, look.size, look.fit, look.bits, look.window)[:2])
  return shape, squares, notes


def _stack_squares(decoded: Sequence[tuple[np.ndarray, Window]], look: DecodeSpec) -> Squares:
  pixels = np.stack([square for square, _ in decoded])
  if look.bits == 8:
    return Squares(pixels, None)
  return Squares(pixels, np.array([window for _, window in decoded], np.float32))

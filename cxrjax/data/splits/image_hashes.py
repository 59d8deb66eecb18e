"""A hash of what a radiograph shows, by which a later run recognises it under any name.

Signs of local contrast on a 32 x 32 grid: 1024 bits. Of Kermany's, Shenzhen's and the COVID-19
Radiography Database's radiographs, up to 2,000 of each, another size (72 and 64 pixels) changes at
most 94 bits, another size with another gamma at most 78 in 99 of 100; two different radiographs
differ in 190 or more, two phantoms in 116. Crops and turns change as many bits as another
radiograph has: `audit.duplicates` is for those.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Int, Int64, UInt8

from cxrjax.data.descriptors import Pixels, batched, gray_and_detail, small
from cxrjax.data.images import Images

SAME = 96  # two images that differ in more bits are two radiographs
_GRID, _FINE, _SIGMA = 32, 64, 2.0
BYTES = _GRID * _GRID // 8
_BLOCK = 4096


def of_images(
  images: Images | Pixels, rows: Int[np.ndarray, "m"] | None = None
) -> UInt8[np.ndarray, "m 128"]:
  """Hashes of images, or of some rows of them."""
  rows = np.arange(len(images)) if rows is None else rows
  found = np.empty((len(rows), BYTES), np.uint8)
  for start in range(0, len(rows), _BLOCK):
    x = small(images, _FINE, rows[start : start + _BLOCK])
    x = batched(functools.partial(gray_and_detail, sigma=_SIGMA), x)[1]
    x = x.reshape(-1, _GRID, _FINE // _GRID, _GRID, _FINE // _GRID).mean((2, 4))
    x = x.reshape(len(x), -1)
    found[start : start + _BLOCK] = np.packbits(x > np.median(x, 1, keepdims=True), axis=1)
  return found


def nearest(
  learnt: UInt8[np.ndarray, "n 128"], test: UInt8[np.ndarray, "m 128"]
) -> Int64[np.ndarray, "m"]:
  """Of each hash of `test` the fewest bits in which it differs from one of `learnt`."""
  bits = 8 * BYTES
  found = np.full(len(test), bits, np.int64)
  for at in range(0, len(test), _BLOCK):
    here, signs = found[at : at + _BLOCK], _signs(test[at : at + _BLOCK])
    for start in range(0, len(learnt), _BLOCK):
      alike = (_signs(learnt[start : start + _BLOCK]) @ signs.T).max(0)
      np.minimum(here, ((bits - alike) / 2).astype(np.int64), out=here)
  return found


def _signs(hashes: np.ndarray) -> np.ndarray:
  return np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1

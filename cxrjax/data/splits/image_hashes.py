"""Perceptual hash of a radiograph, by which a later run recognizes it under any name.

The 1024 bits are the signs of local contrast on a 32 x 32 grid. For up to 2,000 radiographs each of
Kermany's, Shenzhen's and the COVID-19 Radiography Database's, another size (72 and 64 pixels)
changes at most 94 bits, and another size with another gamma at most 78 in 99 of 100; two different
radiographs differ in 190 or more, two phantoms in 116. Crops and rotations change as many bits as a
different radiograph: `audit.duplicates` finds those.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Int, Int64, UInt8

from cxrjax.data.descriptors import Pixels, batched, downsample, gray_and_detail
from cxrjax.data.images import Images

MAX_DISTANCE = 96  # images that differ in more bits are different radiographs
_GRID, _FINE, _SIGMA = 32, 64, 2.0
BYTES = _GRID * _GRID // 8
_BLOCK = 4096


def of_images(
  images: Images | Pixels, rows: Int[np.ndarray, "m"] | None = None
) -> UInt8[np.ndarray, "m 128"]:
  """Hashes of all images, or of the given rows."""
  rows = np.arange(len(images)) if rows is None else rows
  hashes = np.empty((len(rows), BYTES), np.uint8)
  for start in range(0, len(rows), _BLOCK):
    x = downsample(images, _FINE, rows[start : start + _BLOCK])
    x = batched(functools.partial(gray_and_detail, sigma=_SIGMA), x)[1]
    x = x.reshape(-1, _GRID, _FINE // _GRID, _GRID, _FINE // _GRID).mean((2, 4))
    x = x.reshape(len(x), -1)
    hashes[start : start + _BLOCK] = np.packbits(x > np.median(x, 1, keepdims=True), axis=1)
  return hashes


def nearest_distances(
  learnt: UInt8[np.ndarray, "n 128"], test: UInt8[np.ndarray, "m 128"]
) -> Int64[np.ndarray, "m"]:
  """Smallest Hamming distance, in bits, of each hash in `test` to those in `learnt`."""
  bits = 8 * BYTES
  distances = np.full(len(test), bits, np.int64)
  for test_start in range(0, len(test), _BLOCK):
    block = distances[test_start : test_start + _BLOCK]  # a view, updated in place
    test_signs = _signs(test[test_start : test_start + _BLOCK])
    for start in range(0, len(learnt), _BLOCK):
      similarity = (_signs(learnt[start : start + _BLOCK]) @ test_signs.T).max(0)
      np.minimum(block, ((bits - similarity) / 2).astype(np.int64), out=block)
  return distances


def _signs(hashes: np.ndarray) -> np.ndarray:
  """Bits as -1 and 1, so that a product of two hashes is the bits minus twice the distance."""
  return np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1

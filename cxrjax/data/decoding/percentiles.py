"""Which gray levels of a 16-bit image are shown where nobody says: between its percentiles."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt16

TAILS = (0.5, 99.5)  # percent of the pixels below and up to the window
_BLOCK = 1 << 20  # pixels counted at a time


def percentiles(
  image: UInt16[np.ndarray, "*shape"], percents: tuple[float, float]
) -> tuple[float, float]:
  """What `np.percentile(image, percents)` gives, from a count of the levels: a quarter the time."""
  flat = np.ascontiguousarray(image).reshape(-1)
  count = np.zeros(65536, np.int64)
  for start in range(0, len(flat), _BLOCK):  # counting makes 64-bit integers of what it counts
    count += np.bincount(flat[start : start + _BLOCK], minlength=65536)
  below = np.cumsum(count)
  found = []
  for percent in percents:
    place = percent / 100 * (len(flat) - 1)
    first = int(place)
    a, b = np.searchsorted(below, [first, min(first + 1, len(flat) - 1)], side="right").tolist()
    share = place - first
    found.append(a + (b - a) * share if share < 0.5 else b - (b - a) * (1 - share))
  return float(found[0]), float(found[1])

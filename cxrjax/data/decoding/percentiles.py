"""Default window of a 16-bit image: between two percentiles of its gray levels."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt16

TAILS = (0.5, 99.5)  # percentiles at the black and the white end of the window
_BLOCK = 1 << 20  # pixels counted at a time


def percentiles(
  image: UInt16[np.ndarray, "*shape"], percents: tuple[float, float]
) -> tuple[float, float]:
  """Same as `np.percentile(image, percents)`, from a histogram: in a quarter of the time."""
  flat = np.ascontiguousarray(image).reshape(-1)
  count = np.zeros(65536, np.int64)
  for start in range(0, len(flat), _BLOCK):  # bincount converts its input to 64-bit integers
    count += np.bincount(flat[start : start + _BLOCK], minlength=65536)
  cumulative = np.cumsum(count)
  levels = []
  for percent in percents:
    rank = percent / 100 * (len(flat) - 1)
    first = int(rank)
    ranks = [first, min(first + 1, len(flat) - 1)]
    a, b = np.searchsorted(cumulative, ranks, side="right").tolist()
    fraction = rank - first
    levels.append(a + (b - a) * fraction if fraction < 0.5 else b - (b - a) * (1 - fraction))
  return float(levels[0]), float(levels[1])

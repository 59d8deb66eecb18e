"""In which order images are seen: a permutation per epoch, from nothing but (seed, epoch).

A permutation is the sorting order of a hash, so it is the same on every machine and with every
version of every library, and costs the host about 0.1 microseconds an image (grain's `shuffle`,
random access as well, costs 15 to 25).
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np
from jaxtyping import Float64, Int32, UInt64


def splitmix64(start: int, n: int) -> UInt64[np.ndarray, "n"]:
  """The first `n` outputs of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom
  number generators", OOPSLA 2014, figure 17) from the state `start`."""
  z = np.uint64(start) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
  z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return z ^ (z >> np.uint64(31))


def hash_rows(key: str, n: int) -> UInt64[np.ndarray, "n"]:
  """`n` evenly spread 64-bit numbers that depend on `key` alone."""
  return splitmix64(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little"), n)


def uniform(key: str, n: int) -> Float64[np.ndarray, "n"]:
  """`n` numbers in [0, 1) that depend on `key` alone; the first `m` do not depend on `n`."""
  return (hash_rows(key, n) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, n: int) -> Int32[np.ndarray, "n"]:
  """The permutation of `0 .. n-1` in which epoch `epoch` sees the images."""
  order = np.argsort(hash_rows(f"order/{seed}/{epoch}", n), kind="stable").astype(np.int32)
  order.flags.writeable = False  # it is shared by all who ask
  return order


def elements(seed: int, start: int, stop: int, n: int) -> Int32[np.ndarray, "m"]:
  """Elements `start .. stop-1` of the infinite stream of permutations, one per epoch."""
  parts = []
  while start < stop:
    epoch, offset = divmod(start, n)
    end = min(n, offset + stop - start)
    parts.append(epoch_order(seed, epoch, n)[offset:end])
    start += end - offset
  return np.concatenate(parts) if parts else np.zeros(0, np.int32)

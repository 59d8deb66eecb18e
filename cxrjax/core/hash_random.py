"""Random numbers as hashes of keys: the same on every machine and with every library version."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float64, UInt64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(start: int, n: int) -> UInt64[np.ndarray, "n"]:
  """The first `n` outputs of SplitMix64 from the state `start`.

  Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 17.
  """
  return _mix(np.uint64(start) + np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN)


def _mix(z: np.ndarray) -> np.ndarray:
  z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return z ^ (z >> np.uint64(31))


def _state(key: str) -> int:
  return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")


def hash_rows(key: str, n: int) -> UInt64[np.ndarray, "n"]:
  """`n` uniformly distributed 64-bit numbers that depend on `key` alone."""
  return splitmix64(_state(key), n)


def uniform(key: str, n: int) -> Float64[np.ndarray, "n"]:
  """`n` numbers in [0, 1) that depend on `key` alone; the first `m` do not depend on `n`."""
  return (hash_rows(key, n) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniforms(keys: Iterable[str]) -> Float64[np.ndarray, "_"]:
  """A number in [0, 1) for each key, from that key alone: `uniform(key, 1)[0]`, but fast."""
  states = np.fromiter((_state(key) for key in keys), dtype=np.uint64)
  return (_mix(states + _GOLDEN) >> np.uint64(11)).astype(np.float64) * 2.0**-53

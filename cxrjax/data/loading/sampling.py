"""Order of training images: one permutation per epoch, a function of (seed, epoch) alone.

A weighted pool is a `mixture`: every source has its own stream of permutations, and a fixed pattern
determines which stream comes next.

A permutation is the sorting order of a hash, so it is the same on every machine and with every
library version, and costs the host about 0.1 microseconds per image (grain's `shuffle`, also with
random access, costs 15 to 25).
"""

from __future__ import annotations

import fractions
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int32

from cxrjax.core.errors import UserError
from cxrjax.core.hash_random import hash_rows, uniform

LONGEST_PERIOD = 1 << 16  # of a mixture's pattern, which bounds how finely weights are met


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, n: int) -> Int32[np.ndarray, "n"]:
  """The permutation of `0 .. n-1` in which epoch `epoch` sees the images."""
  return _permutation(f"order/{seed}/{epoch}", n)


def elements(seed: int, start: int, stop: int, n: int) -> Int32[np.ndarray, "m"]:
  """Elements `start .. stop-1` of the infinite stream of permutations, one per epoch."""
  return _window(lambda epoch: epoch_order(seed, epoch, n), start, stop, n)


def mixture(
  seed: int,
  start: int,
  stop: int,
  groups: Sequence[Int32[np.ndarray, "_"]],
  weights: Sequence[float],
) -> Int32[np.ndarray, "_"]:
  """Elements `start .. stop-1` of an infinite stream that draws from groups of rows by weight.

  The group of element `j` follows a pattern that repeats after at most about 65,536 elements: any
  stretch as long as one period holds each group in proportion to its weight (exactly where the
  weights' ratios are simple, else to within one image), spread evenly, so that a batch does too.
  Within a group, every row comes once before any comes again, in a new order each time.

  Args:
    seed: determines the pattern's order and the groups' permutations.
    start: first element.
    stop: one past the last element.
    groups: rows to draw from.
    weights: how often each group is drawn, relative to the others; positive.

  Raises:
    UserError: a group is empty.
  """
  if len(groups) != len(weights) or not groups:
    raise ValueError(f"{len(groups)} groups, {len(weights)} weights")
  for k, group in enumerate(groups):
    if not len(group):
      raise UserError(f"part {k} of the pool has no image that can be used; leave it out")
  counts, pattern, ranks = _interleaving(seed, tuple(float(w) for w in weights))
  period, place = np.divmod(np.arange(start, stop, dtype=np.int64), len(pattern))
  owner = pattern[place]
  position = period * counts[owner] + ranks[place]  # in the owner's stream
  result = np.zeros(len(owner), np.int32)
  for k, group in enumerate(groups):
    slots = np.flatnonzero(owner == k)
    if len(slots):
      first, n = int(position[slots[0]]), len(group)
      # The group's elements are consecutive in its stream, so one slice of it is enough.
      stream = _window(_stream(seed, k, n), first, first + len(slots), n)
      result[slots] = group[stream]
  return result


def quotas(weights: Sequence[float]) -> list[int]:
  """Integers in the ratio of `weights`: a period of a mixture, about 65,536 in total at most.

  Exact where the ratios have small denominators; else by largest remainder (Hamilton's method),
  with at least 1 for each.
  """
  if any(not 0 < w < float("inf") for w in weights):
    raise ValueError(f"weights must be positive and finite, not {tuple(weights)}")
  largest = max(weights)
  exact = [fractions.Fraction(w / largest).limit_denominator(LONGEST_PERIOD) for w in weights]
  common = math.lcm(*(f.denominator for f in exact))
  integers = [int(f * common) for f in exact]
  if min(integers) > 0 and sum(integers) <= LONGEST_PERIOD:
    return integers
  total = sum(exact)
  shares = [f / total * LONGEST_PERIOD for f in exact]
  integers = [int(s) for s in shares]
  by_remainder = sorted(range(len(shares)), key=lambda k: (integers[k] - shares[k], k))
  for k in by_remainder[: LONGEST_PERIOD - sum(integers)]:
    integers[k] += 1
  return [max(1, q) for q in integers]


@functools.lru_cache(maxsize=8)
def _interleaving(seed: int, weights: tuple[float, ...]) -> tuple[np.ndarray, ...]:
  """Quota of each group; for each place of a period its group and its rank within the group."""
  counts = np.array(quotas(weights), dtype=np.int64)
  phases = uniform(f"mixture/{seed}", len(counts))
  owner = np.repeat(np.arange(len(counts)), counts)
  ranks = np.concatenate([np.arange(q) for q in counts])
  due = (ranks + phases[owner]) / counts[owner]  # group k is due every 1 / counts[k]
  places = np.argsort(due, kind="stable")
  result = counts, owner[places], ranks[places]
  for array in result:
    array.flags.writeable = False
  return result


@functools.lru_cache(maxsize=64)
def _stream(seed: int, group: int, n: int) -> Callable[[int], np.ndarray]:
  """Permutations of one group of a mixture by epoch; the last two are cached for each group."""
  return functools.lru_cache(maxsize=2)(
    lambda epoch: _permutation(f"order/{seed}/{group}/{epoch}", n)
  )


def _permutation(key: str, n: int) -> np.ndarray:
  order = np.argsort(hash_rows(key, n), kind="stable").astype(np.int32)
  order.flags.writeable = False  # it is cached and shared by all callers
  return order


def _window(epoch: Callable[[int], np.ndarray], start: int, stop: int, n: int) -> np.ndarray:
  parts = []
  while start < stop:
    index, offset = divmod(start, n)
    end = min(n, offset + stop - start)
    parts.append(epoch(index)[offset:end])
    start += end - offset
  return np.concatenate(parts) if parts else np.zeros(0, np.int32)

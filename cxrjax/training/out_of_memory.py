"""Turns XLA's out-of-memory error into advice on what to change."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax

from cxrjax.core.errors import UserError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_USABLE = 0.92  # share of a device's memory that a program can get: the rest is fragmented


def is_out_of_memory(error: Exception) -> bool:
  """Whether XLA reports that a program does not fit into memory."""
  return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def out_of_memory(
  error: Exception,
  *,
  images: int,
  accumulate: int,
  devices: int,
  remat: bool | None,
  resident_bytes: int,
  fixed: float | None,
  peak: float | None,
  limit: float | None,
) -> UserError:
  """The error for a step that does not fit, with options and values that make it smaller.

  Args:
    error: XLA's.
    images: per batch, over all devices.
    accumulate: current number of microbatches.
    devices: number of devices that a batch is split over.
    remat: whether blocks are recomputed in the backward pass; None if the network cannot do so.
    resident_bytes: of images stored on one device.
    fixed: bytes of the step's state and data on one device, which smaller microbatches do not
      reduce; None if unknown.
    peak: bytes that the compiled step needs on one device; None if XLA has not compiled it.
    limit: memory of a device in bytes; None if it is not reported.
  """
  usage = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?)", str(error))  # a TPU's compiler
  if usage:
    peak, limit = (float(usage[i]) * _UNITS[usage[i + 1]] for i in (1, 3))
  per_device = images // devices
  problem = f"a step of {per_device} images does not fit into a device's memory"
  if peak and limit:
    problem += f" ({peak / 1e9:.1f} GB of {limit / 1e9:.1f} GB)"
  remedies = []
  if peak and limit and fixed is not None and fixed >= _USABLE * limit:
    remedies.append(f"parameters and data alone take {fixed / 1e9:.1f} GB: raise config.mesh.fsdp")
  elif microbatches := _microbatches(
    per_device, accumulate, _shrink_factor(peak, limit, fixed or 0.0)
  ):
    remedies.append(
      f"set config.accumulate={microbatches} (microbatches of {per_device // microbatches} "
      f"images), or config.batch_size={max(devices, images * accumulate // microbatches)}"
    )
  if remat is False:
    remedies.append("config.model.remat=True")
  if resident_bytes:
    remedies.append(f"config.data.storage='cached', which frees {resident_bytes / 1e9:.1f} GB")
  return UserError(f"{problem}; {'; or '.join(remedies) or 'use a device with more memory'}")


def _microbatches(per_device: int, accumulate: int, factor: float | None) -> int | None:
  """The least number of microbatches that are smaller by `factor`; None if they cannot shrink."""
  divisors = [k for k in range(2, per_device + 1) if not per_device % k and k > accumulate]
  large_enough = (k for k in divisors if factor is None or k >= factor * accumulate)
  return next(large_enough, divisors[-1] if divisors else None)


def _shrink_factor(peak: float | None, limit: float | None, fixed: float) -> float | None:
  """Factor by which a microbatch must shrink; None if unknown."""
  if not peak or not limit:
    return None
  return max(1.0, (peak - fixed) / max(_USABLE * limit - fixed, 1.0))


def guarded(call: Callable[[], Any], why: Callable[[Exception], UserError]) -> Any:
  """Runs `call()`; if it runs out of memory, raises the error that `why` makes of XLA's."""
  try:
    return call()
  except jax.errors.JaxRuntimeError as error:
    if not is_out_of_memory(error):
      raise
    raise why(error) from error

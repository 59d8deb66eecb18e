"""What to change where a step does not fit into a device's memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax

from cxrjax.core.errors import UserError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SHARE = 0.92  # of a device's memory that a program can have: the rest is in pieces


def is_out_of_memory(error: Exception) -> bool:
  """Whether XLA says that a program does not fit."""
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
  """The error for a step that does not fit: which options make it smaller, with values.

  Args:
    error: XLA's.
    images: in a batch, over all devices.
    accumulate: microbatches now.
    devices: over which a batch is split.
    remat: whether blocks are computed again in the backward pass; None where the network cannot.
    resident_bytes: of images that lie on one device.
    fixed: bytes of the step's state and data on one device, which no microbatch makes smaller; None
      where it is not known.
    peak: bytes that the compiled step needs on one device; None where XLA has not compiled it.
    limit: bytes that a device has; None where it does not say.
  """
  used = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?)", str(error))  # a TPU's compiler
  if used:
    peak, limit = (float(used[i]) * _UNITS[used[i + 1]] for i in (1, 3))
  each = images // devices
  said = f"a step of {each} images does not fit into a device's memory"
  if peak and limit:
    said += f" ({peak / 1e9:.1f} GB of {limit / 1e9:.1f} GB)"
  ways = []
  if peak and limit and fixed is not None and fixed >= _SHARE * limit:
    ways.append(f"parameters and data alone take {fixed / 1e9:.1f} GB: raise config.mesh.fsdp")
  else:
    fits = _fits(peak, limit, fixed or 0.0)
    steps = [k for k in range(2, each + 1) if not each % k and k > accumulate]
    more = next(
      (k for k in steps if fits is None or k >= fits * accumulate), steps[-1] if steps else None
    )
    if more:
      ways.append(
        f"set config.accumulate={more} (microbatches of {each // more} images), or "
        f"config.batch_size={max(devices, images * accumulate // more)}"
      )
  if remat is False:
    ways.append("config.model.remat=True")
  if resident_bytes:
    ways.append(f"config.data.storage='cached', which frees {resident_bytes / 1e9:.1f} GB")
  return UserError(f"{said}; {'; or '.join(ways) or 'take a device with more memory'}")


def _fits(peak: float | None, limit: float | None, fixed: float) -> float | None:
  """How many times smaller a microbatch must be; None where that is not known."""
  if not peak or not limit:
    return None
  return max(1.0, (peak - fixed) / max(_SHARE * limit - fixed, 1.0))


def guarded(call: Callable[[], Any], why: Callable[[Exception], UserError]) -> Any:
  """`call()`; where it runs out of memory, the error that `why` makes of XLA's."""
  try:
    return call()
  except jax.errors.JaxRuntimeError as error:
    if not is_out_of_memory(error):
      raise
    raise why(error) from error

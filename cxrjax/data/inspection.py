"""Samples a few images of a source to find its bit depth and whether it has lung masks."""

from __future__ import annotations

import contextlib

import numpy as np

from cxrjax.core.errors import UserError
from cxrjax.data.base import Source
from cxrjax.data.decoding import decode
from cxrjax.data.images import Images, evenly_spaced

# Flags give strings.
BITS: dict[str | int, int | None] = {"auto": None, 8: 8, 16: 16, "8": 8, "16": 16}
SAMPLE = 32  # images inspected for bit depth and masks


def bits_of(source: Source, bits: str | int = "auto") -> int:
  """Bit depth, 8 or 16: as requested, or that of the source's pixels.

  With `auto` it is the source's own `bits`, if that is not None. Otherwise 32 evenly spaced
  images are inspected, and it is 16 if any of them has 16 bits, so that the result is the same on
  every machine and for every subset.

  Raises:
    UserError: `bits` is not an option.
  """
  if isinstance(bits, bool) or not isinstance(bits, str | int) or bits not in BITS:
    raise UserError(f"config.data.bits={bits!r} is not an option; valid: 'auto', 8, 16")
  requested = BITS[bits]
  if requested is not None:
    return requested
  if source.bits is not None:
    return source.bits
  for row in sample(len(source)):
    with contextlib.suppress(decode.BadImage):
      if source.read(row, decode.MIN_SIDE).image.dtype == np.uint16:
        return 16
  return 8


def check_masks(source: Source) -> None:
  """Raises a UserError if none of 32 evenly spaced images of a source has a lung mask."""
  rows = sample(len(source))
  for row in rows:
    with contextlib.suppress(decode.BadImage):
      if source.read(row, decode.MIN_SIDE).mask is not None:
        return
  raise no_masks(source)


def no_masks(source: Source | Images) -> UserError:
  """Error to raise if lung masks are requested and the source has none."""
  return UserError(
    f"config.data.masks='own', but {source.info.name} has no lung masks; sources that have them "
    "are phantom, tfds:covid19_radiography, tfds:jsrt, tfds:nlm_tb/montgomery and "
    "tfds:nlm_tb/shenzhen; config.data.masks=zoo:lungs, or the workdir of a run "
    "of configs/segment.py, predicts them"
  )


def sample(n: int) -> list[int]:
  """Rows, of `n`, to inspect for bit depth and masks."""
  return evenly_spaced(n, SAMPLE).tolist()

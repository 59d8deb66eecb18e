"""What a few images of a source show of all: their bit depth, and whether there are lung masks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np

from cxrjax.core.errors import UserError
from cxrjax.data.base import Record, Source
from cxrjax.data.decoding import decode
from cxrjax.data.images import Images, even

# A flag gives text.
BITS: dict[str | int, int | None] = {"auto": None, 8: 8, 16: 16, "8": 8, "16": 16}
SAMPLE = 32  # images looked at for their bits and masks


def bits_of(source: Source, bits: str | int = "auto") -> int:
  """8 or 16: as asked for, or what the pixels of a source have.

  With `auto` a source that knows says so in its attribute `bits`. Of others 32 images, evenly
  spaced, are looked at, and the first with 16 bits decides. So the answer is the same on every
  machine and for every subset.

  Raises:
    UserError: `bits` is not an option.
  """
  if isinstance(bits, bool) or not isinstance(bits, str | int) or bits not in BITS:
    raise UserError(f"config.data.bits={bits!r} is not an option; valid: 'auto', 8, 16")
  asked = BITS[bits]
  if asked is not None:
    return asked
  known = getattr(source, "bits", None)
  if known is not None:
    return int(known)
  for row in sample(len(source)):
    with contextlib.suppress(decode.BadImage):
      if read(source, row, decode.MIN_SIDE).image.dtype == np.uint16:
        return 16
  return 8


def check_masks(source: Source) -> None:
  """Raises a UserError where none of 32 images of a source, evenly spaced, has a lung mask."""
  rows = sample(len(source))
  for row in rows:
    with contextlib.suppress(decode.BadImage):
      if read(source, row, decode.MIN_SIDE).mask is not None:
        return
  raise no_masks(source)


def no_masks(source: Source | Images) -> UserError:
  """What to raise where lung masks are wanted and there are none."""
  return UserError(
    f"config.data.masks='own', but {source.info.name} has no lung masks; sources that have them "
    "are phantom, tfds:covid19_radiography, tfds:jsrt, tfds:nlm_tb/montgomery and "
    "tfds:nlm_tb/shenzhen; config.data.masks=zoo:lungs, or the workdir of a run "
    "of configs/segment.py, predicts them"
  )


def sample(n: int) -> list[int]:
  """The rows, of `n`, that are looked at for their bits and masks."""
  return even(n, SAMPLE).tolist()


def read(source: Source, index: int, size: int) -> Record:
  """A record for a result of `size` pixels; sources that can decode JPEGs smaller do."""
  reader: Callable[..., Record] | None = getattr(source, "read", None)
  return source[index] if reader is None else reader(index, at_least=size)

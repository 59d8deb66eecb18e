"""Encoded bytes to gray pixels, 8 and 16 bit: PNG, JPEG, TIFF, DICOM and what else is met.

Whatever the file, its samples are described once (`data.decoding.samples`) and become gray levels
in one place. Decoding runs in processes of its own (`data.decoding.worker_pool`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt16

from cxrjax.data.decoding import dicom, dicom_pixels, formats, worker_pool
from cxrjax.data.decoding.samples import MAX_PIXELS, MIN_SIDE, BadImage, check_shape

__all__ = [
  "MAX_PIXELS",
  "MIN_SIDE",
  "VERSION",
  "BadImage",
  "Shown",
  "bits",
  "check_shape",
  "decode",
  "decode_here",
  "shown",
]

VERSION = 4  # raise when decoded pixels change: it is part of the key of every cache
_MISSING = "it is empty (0 bytes): an interrupted download or copy"
_pool = worker_pool.Pool()


def decode(
  data: bytes, name: str = "", at_least: int | None = None
) -> UInt8[np.ndarray, "h w 1"] | UInt16[np.ndarray, "h w 1"]:
  """Gray pixels of an encoded image, upright, black is 0.

  Colour and palettes are turned to gray (ITU-R 601 luma), alpha is ignored; 16 bits stay uint16;
  1 bit becomes 0 and 255.

  Args:
    data: the file's bytes.
    name: for errors, in front of the reason.
    at_least: for a result of this many pixels a JPEG may be decoded at 1/2, 1/4 or 1/8, never
      below twice that size. The result stays a pure function of the bytes and this number.

  Raises:
    BadImage: not an image, damaged, of a kind that is not read, smaller than 16 pixels or
      absurdly large.
  """
  try:
    return shown(data, at_least).pixels
  except BadImage as error:
    raise BadImage(f"{name}: {error}" if name else str(error)) from error.__cause__


class Shown(NamedTuple):
  """A decoded image and how to show it.

  Attributes:
    pixels: what `decode` gives.
    window: the gray levels shown black and white that a DICOM file brings.
    shape: height and width in the file, upright, of which a JPEG may be decoded to a part.
    notes: what a user should know of how it was read; empty for most.
  """

  pixels: UInt8[np.ndarray, "h w 1"] | UInt16[np.ndarray, "h w 1"]
  window: tuple[float, float] | None
  shape: tuple[int, int]
  notes: tuple[str, ...] = ()


def shown(data: bytes, at_least: int | None = None) -> Shown:
  """What `decode` gives, with what else a file says of it.

  Raises:
    BadImage: see `decode`.
  """
  if not data:
    raise BadImage(_MISSING)
  try:
    pixels, facts = _decoded(data, at_least, encoded=False)
  except dicom_pixels.Encoded:
    pixels, facts = _pool.decode(data, at_least)
  window = facts["window"]
  return Shown(pixels, window and tuple(window), tuple(facts["full"]), tuple(facts["notes"]))


def decode_here(data: bytes, at_least: int | None) -> tuple[np.ndarray, dict[str, Any]]:
  """What `shown` gives, decoded in this process: pixels and the rest.

  Raises:
    BadImage: see `decode`.
  """
  return _decoded(data, at_least, encoded=True)


def _decoded(data: bytes, at_least: int | None, encoded: bool) -> tuple[np.ndarray, dict[str, Any]]:
  """Without `encoded` only what no native decoder is needed for; else raises Encoded."""
  if dicom.is_dicom(data):
    found = dicom.read(data, encoded=encoded)
    assert found.pixels is not None  # which are read by default
    return found.pixels, {
      "window": found.window,
      "full": found.pixels.shape[:2],
      "notes": found.notes,
    }
  if not encoded:
    raise dicom_pixels.Encoded
  samples = formats.open_image(data)
  return samples.gray(at_least), {"window": None, "full": samples.upright, "notes": samples.notes}


def bits(data: bytes) -> int:
  """8 or 16: what `decode` would give, from the file's header.

  Raises:
    BadImage: the header shows that it is none.
  """
  if not data:
    raise BadImage(_MISSING)
  if dicom.is_dicom(data):
    return 8 if dicom.read(data, pixels=False).bits <= 8 else 16
  if formats.by_pillow(data):  # whose openers are native code
    return 8 * _pool.decode(data).pixels.itemsize
  return formats.open_image(data).depth

"""Decodes PNG, JPEG, TIFF, DICOM and other image files to 8- or 16-bit gray pixels.

Every reader describes the samples of its format in one way (`data.decoding.samples`), and one place
converts them to gray levels. Decoding runs in separate processes (`data.decoding.worker_pool`).
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
  "DecodedImage",
  "bit_depth",
  "check_shape",
  "decode",
  "decode_here",
  "decode_with_window",
]

VERSION = 4  # increase when decoded pixels change: it is part of every cache key
_MISSING = "it is empty (0 bytes): an interrupted download or copy"
_pool = worker_pool.Pool()


def decode(
  data: bytes, name: str = "", at_least: int | None = None
) -> UInt8[np.ndarray, "h w 1"] | UInt16[np.ndarray, "h w 1"]:
  """Decodes an image to gray pixels, upright, with 0 as black.

  Colour and palettes are converted to gray (ITU-R 601 luma), alpha is ignored; 16 bits stay uint16;
  1 bit becomes 0 and 255.

  Args:
    data: the file's bytes.
    name: prefix of error messages.
    at_least: target size in pixels, for which a JPEG may be decoded at 1/2, 1/4 or 1/8, never below
      twice that size. The result is a pure function of the bytes and this number.

  Raises:
    BadImage: not an image, damaged, of an unsupported kind, smaller than 16 pixels or implausibly
      large.
  """
  try:
    return decode_with_window(data, at_least).pixels
  except BadImage as error:
    raise BadImage(f"{name}: {error}" if name else str(error)) from error.__cause__


class DecodedImage(NamedTuple):
  """A decoded image and how to show it.

  Attributes:
    pixels: as `decode` returns them.
    window: gray levels shown black and white, from the DICOM header; else None.
    shape: upright height and width in the file; a JPEG may be decoded at a fraction of it.
    notes: remarks for users on how the image was read; mostly empty.
  """

  pixels: UInt8[np.ndarray, "h w 1"] | UInt16[np.ndarray, "h w 1"]
  window: tuple[float, float] | None
  shape: tuple[int, int]
  notes: tuple[str, ...] = ()


def decode_with_window(data: bytes, at_least: int | None = None) -> DecodedImage:
  """Decodes an image as `decode` does, and returns its window, full size and notes as well.

  Raises:
    BadImage: see `decode`.
  """
  if not data:
    raise BadImage(_MISSING)
  try:
    pixels, facts = _decode(data, at_least, encoded=False)
  except dicom_pixels.NeedsNativeDecoder:
    pixels, facts = _pool.decode(data, at_least)
  window = facts["window"]
  return DecodedImage(pixels, window and tuple(window), tuple(facts["full"]), tuple(facts["notes"]))


def decode_here(data: bytes, at_least: int | None) -> tuple[np.ndarray, dict[str, Any]]:
  """Decodes in this process: the pixels, and the other fields of `Shown` as a dict.

  Raises:
    BadImage: see `decode`.
  """
  return _decode(data, at_least, encoded=True)


def _decode(data: bytes, at_least: int | None, encoded: bool) -> tuple[np.ndarray, dict[str, Any]]:
  """Pixels and facts; raises Encoded for a file that needs a native decoder, unless `encoded`."""
  if dicom.is_dicom(data):
    radiograph = dicom.read(data, encoded=encoded)
    assert radiograph.pixels is not None  # they are read by default
    return radiograph.pixels, {
      "window": radiograph.window,
      "full": radiograph.pixels.shape[:2],
      "notes": radiograph.notes,
    }
  if not encoded:
    raise dicom_pixels.NeedsNativeDecoder
  samples = formats.open_image(data)
  return samples.gray(at_least), {"window": None, "full": samples.upright, "notes": samples.notes}


def bit_depth(data: bytes) -> int:
  """Bit depth of the pixels that `decode` would return, 8 or 16, from the file's header.

  Raises:
    BadImage: the header shows that it is unusable.
  """
  if not data:
    raise BadImage(_MISSING)
  if dicom.is_dicom(data):
    return 8 if dicom.read(data, pixels=False).bits <= 8 else 16
  if formats.by_pillow(data):  # its header parsers are native code
    return 8 * _pool.decode(data).pixels.itemsize
  return formats.open_image(data).depth

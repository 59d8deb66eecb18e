"""Encoded bytes to gray pixels: PNG, JPEG, TIFF, BMP, DICOM; 8 and 16 bit; of any colour type."""

from __future__ import annotations

import io
import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image

VERSION = 2  # raise when decoded pixels change: it is part of the key of every cache
MIN_SIDE = 16  # pixels; below this nothing of a chest is left
MAX_PIXELS = 300_000_000  # a header that asks for more is no radiograph
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_MISSING = "it is empty (0 bytes): an interrupted download or copy"


class BadImage(Exception):
  """An image that cannot be used; the message says why, without the image's name."""


def decode(
    data: bytes, name: str = "", at_least: int | None = None,
    ) -> UInt8[np.ndarray, "h w 1"] | UInt16[np.ndarray, "h w 1"]:
  """Gray pixels of an encoded image.

  RGB, palette and alpha are turned to gray (ITU-R 601 luma, alpha ignored); 16-bit gray stays
  uint16; 1-bit becomes 0 and 255.

  Args:
    data: the file's bytes.
    name: for errors, in front of the reason.
    at_least: for a result of this many pixels a JPEG may be decoded at 1/2, 1/4 or 1/8, never
      below twice that size. The result stays a pure function of the bytes and this number.

  Raises:
    BadImage: not an image, damaged, smaller than 16 pixels or absurdly large.
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
    shape: height and width in the file, of which a JPEG may be decoded to a part.
  """

  pixels: UInt8[np.ndarray, "h w 1"] | UInt16[np.ndarray, "h w 1"]
  window: tuple[float, float] | None
  shape: tuple[int, int]


def shown(data: bytes, at_least: int | None = None) -> Shown:
  """What `decode` gives, with what else a file says of it.

  Raises:
    BadImage: see `decode`.
  """
  from cxrjax.data import dicom  # it needs what is defined here

  if dicom.is_dicom(data):
    found = dicom.read(data)
    return Shown(found.pixels, found.window, found.pixels.shape[:2])
  image, shape = _open(data, at_least)
  return Shown(_gray(image)[..., None], None, shape)


def bits(data: bytes) -> int:
  """8 or 16: what `decode` would give, from the file's header.

  Raises:
    BadImage: the header shows that it is none.
  """
  from cxrjax.data import dicom

  if dicom.is_dicom(data):
    return 8 if dicom.read(data, pixels=False).bits <= 8 else 16
  mode = _open(data, None, pixels=False)[0].mode
  return 16 if mode.startswith("I") or mode == "F" else 8


def _open(
    data: bytes, at_least: int | None, pixels: bool = True) -> tuple[Image.Image, tuple[int, int]]:
  """The image, and its height and width in the file."""
  if not data:
    raise BadImage(_MISSING)
  try:
    with warnings.catch_warnings():
      # PIL warns of things we check ourselves (size) or that do not touch pixels (metadata).
      warnings.simplefilter("ignore")
      image = Image.open(io.BytesIO(data), formats=_FORMATS)
      check_shape(image.width, image.height)
      shape = image.height, image.width
      if at_least is not None and image.format == "JPEG":
        image.draft(None, (2 * at_least, 2 * at_least))
      if pixels:
        image.load()
      return image, shape
  except BadImage:
    raise
  except Image.UnidentifiedImageError as error:
    raise BadImage("it is not a PNG, JPEG, TIFF, BMP or DICOM image "
                   f"(starts with {data[:8]!r})") from error
  except (Image.DecompressionBombError, MemoryError) as error:
    raise BadImage("its header asks for too many pixels") from error
  # PIL's codecs raise whatever the damage makes them raise.
  except Exception as error:
    raise BadImage(f"it is damaged or cut short ({error})") from error


def check_shape(width: int, height: int) -> None:
  """Raises BadImage for a size that no radiograph has."""
  if min(width, height) < MIN_SIDE:
    raise BadImage(f"it has {width} x {height} pixels; at least {MIN_SIDE} a side are needed")
  if width * height > MAX_PIXELS:
    raise BadImage(f"its header asks for {width} x {height} pixels")


def _gray(image: Image.Image) -> np.ndarray:
  mode = image.mode
  if mode == "L":
    return np.array(image)
  if mode.startswith("I;16"):
    return np.array(image).astype(np.uint16)
  if mode in ("I", "F"):
    values = np.array(image)
    if not np.isfinite(values).all():
      raise BadImage("it has values that are not finite")
    if mode == "I" and values.min() >= 0 and values.max() <= 65535:
      return values.astype(np.uint16)
    low, high = float(values.min()), float(values.max())
    scale = 65535 / (high - low) if high > low else 0.0
    return np.round((values - low) * scale).astype(np.uint16)
  if mode in ("P", "PA"):
    image = image.convert("RGBA" if "transparency" in image.info else "RGB")
  if image.mode in ("RGBA", "RGBX"):
    image = image.convert("RGB")  # drops alpha; compositing would darken what it marks
  return np.array(image.getchannel("L") if image.mode in ("LA", "La") else image.convert("L"))

"""Conversion of image samples to gray levels, from a description that every reader fills in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Shaped, UInt8, UInt16
from PIL import Image

MIN_SIDE = 16  # pixels; smaller images show nothing of a chest
# A 14 x 17 inch film scanned at 50 micrometers has 61 million. A file of a megabyte may claim as
# many; reading it takes a gigabyte at most, even at 64 million pixels of 16-bit colour.
MAX_PIXELS = 64_000_000
_SMALL, _PACKED = 1_000_000, 100  # pixels allowed for any file, and for each of its bytes
# ITU-R 601 luma in 1/65536, as Pillow rounds it: equal channels stay unchanged.
_LUMA = (19595, 38470, 7471)
_ROWS = 256  # rows converted at a time, to avoid a wide copy of the whole image


class BadImage(Exception):
  """An unusable image; the message gives the reason, without the image's name."""


@dataclasses.dataclass(frozen=True)
class Samples:
  """Samples of an image file, as described by its header.

  Attributes:
    shape: height and width as stored, before `orientation`.
    bits: of a sample: 1 to 8 become uint8, 9 to 16 uint16 with the same levels. 32-bit levels are
      kept where all fit into 16 bits, else the image's range is scaled to 16 bits.
    load: decodes the samples: [h w] gray or [h w 3] red, green and blue. Its argument is a target
      size in pixels, for which it may decode at 1/2, 1/4 or 1/8, never below twice that size.
    kind: `u` unsigned or `i` signed integers, which are shifted to start at 0; `f` floats, whose
      range is scaled to 16 bits.
    white_is_zero: whether 0 is white.
    orientation: EXIF's and TIFF's tag 274, 1 to 8, by which the image is turned upright.
    notes: remarks for users on how the image was read.
  """

  shape: tuple[int, int]
  bits: int
  load: Callable[[int | None], Shaped[np.ndarray, "h w *c"]]
  kind: str = "u"
  white_is_zero: bool = False
  orientation: int = 1
  notes: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    check_shape(self.shape[1], self.shape[0])

  @property
  def depth(self) -> int:
    """Bits of a gray level: 8 or 16."""
    return 8 if self.kind != "f" and self.bits <= 8 else 16

  @property
  def upright(self) -> tuple[int, int]:
    """Height and width of the image once turned upright."""
    return self.shape[::-1] if self.orientation >= 5 else self.shape

  def gray(
    self, at_least: int | None = None
  ) -> UInt8[np.ndarray, "h w 1"] | UInt16[np.ndarray, "h w 1"]:
    """Decodes the image to gray levels, upright, with 0 as black.

    Raises:
      BadImage: non-finite values, or colour that is not of unsigned integers.
    """
    values = self.load(at_least)
    is_full_size = values.shape[:2] == self.shape
    if not is_full_size and (at_least is None or min(values.shape[:2]) < 2 * at_least):
      raise BadImage(
        f"it holds {values.shape[1]} x {values.shape[0]} pixels, but its header says "
        f"{self.shape[1]} x {self.shape[0]}"
      )
    if values.ndim == 3:
      values = _luma(values)
    levels, top = _levels(values, self.kind, self.bits)
    if self.white_is_zero:
      levels = top - levels
    return np.ascontiguousarray(_upright(levels, self.orientation))[..., None]


def check_shape(width: int, height: int) -> None:
  """Validates the size of a radiograph; raises BadImage where it is too small or too large."""
  if min(width, height) < MIN_SIDE:
    raise BadImage(f"it has {width} x {height} pixels; at least {MIN_SIDE} a side are needed")
  if width * height > MAX_PIXELS:
    raise BadImage(
      f"its header asks for {width} x {height} pixels; at most {MAX_PIXELS:,} are read"
    )


def check_packed(width: int, height: int, size: int) -> None:
  """Raises BadImage where a file of `size` bytes claims implausibly many pixels (a bomb).

  For slow codecs that compress blank areas without a bound, where the header alone would determine
  how long a small file takes.
  """
  if width * height > _SMALL + _PACKED * size:
    raise BadImage(f"its header asks for {width} x {height} pixels, but it has {size:,} bytes")


def _luma(rgb: np.ndarray) -> np.ndarray:
  if rgb.dtype not in (np.uint8, np.uint16):
    raise BadImage(f"it is in colour, of {rgb.dtype} values; convert it to 8 or 16-bit gray")
  if rgb.dtype == np.uint8:  # same sums, five times as fast
    return np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).convert("L"))
  luma = np.empty(rgb.shape[:2], rgb.dtype)
  for start in range(0, len(rgb), _ROWS):
    red, green, blue = (
      rgb[start : start + _ROWS, :, c].astype(np.uint32) * np.uint32(weight)
      for c, weight in enumerate(_LUMA)
    )
    luma[start : start + _ROWS] = (red + green + blue + np.uint32(1 << 15)) >> np.uint32(16)
  return luma


def _levels(values: np.ndarray, kind: str, bits: int) -> tuple[np.ndarray, np.integer]:
  """Gray levels from 0 as uint8 or uint16, and the highest possible level."""
  if kind == "f":
    if not np.isfinite(values).all():
      raise BadImage("it has values that are not finite")
    return _scaled(values), np.uint16(65535)
  if bits > 16:
    if values.min() < 0 or values.max() > 65535:
      return _scaled(values), np.uint16(65535)
    return values.astype(np.uint16), np.uint16(65535)
  wide = np.uint8 if bits <= 8 else np.uint16
  if kind == "i":
    values = values.astype(np.int32) + (1 << (bits - 1))
  if bits < 8:  # white is white: 1 bit becomes 0 and 255
    values = np.round(values * np.float32(255 / ((1 << bits) - 1)))
    bits = 8
  return values.astype(wide, copy=False), wide((1 << bits) - 1)


def _scaled(values: np.ndarray) -> np.ndarray:
  """Scales an image's range to 16 bits."""
  low, high = float(values.min()), float(values.max())
  scale = 65535 / (high - low) if high > low else 0.0
  levels = np.empty(values.shape, np.uint16)
  for start in range(0, len(values), _ROWS):
    levels[start : start + _ROWS] = np.round(
      (values[start : start + _ROWS].astype(np.float64) - low) * scale
    )
  return levels


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
  """Turns the image upright, by its orientation tag (1 to 8)."""
  if orientation >= 5:
    image = image.T
  if orientation in (2, 3, 6, 7):
    image = image[:, ::-1]
  if orientation in (3, 4, 7, 8):
    image = image[::-1]
  return image

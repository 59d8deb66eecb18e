"""How the samples of an image file become gray levels: a description that every reader fills in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Shaped, UInt8, UInt16
from PIL import Image

MIN_SIDE = 16  # pixels; below this nothing of a chest is left
# A 14 x 17 inch film scanned at 50 micrometers has 61 million. A file of a megabyte may ask for as
# many, and reading it then takes a gigabyte at most, 64 million pixels of 16-bit colour among it.
MAX_PIXELS = 64_000_000
_SMALL, _PACKED = 1_000_000, 100  # pixels of any file, and more for each of its bytes
# ITU-R 601 luma in 1/65536, as Pillow rounds it: equal channels come out as they are.
_LUMA = (19595, 38470, 7471)
_ROWS = 256  # converted at a time, so that no copy of the whole image is made


class BadImage(Exception):
  """An image that cannot be used; the message says why, without the image's name."""


@dataclasses.dataclass(frozen=True)
class Samples:
  """What an image file holds, known from its header.

  Attributes:
    shape: height and width as stored, before `orientation`.
    bits: of a sample: 1 to 8 become uint8, 9 to 16 uint16 of the same levels. Levels of 32 bits are
      kept where all fit into 16, else the image's own range is scaled to 16 bits.
    load: decodes the samples: [h w] gray or [h w 3] red, green and blue. For a result of so many
      pixels a side it may decode at 1/2, 1/4 or 1/8, never below twice that size.
    kind: `u` unsigned or `i` signed integers, which are shifted to begin at 0; `f` floats, whose
      range is scaled to 16 bits.
    white_is_zero: 0 is white.
    orientation: how to turn it upright, EXIF's and TIFF's tag 274, 1 to 8.
    notes: what a user should know of how it was read.
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
    """Height and width of the image as it is shown."""
    return self.shape[::-1] if self.orientation >= 5 else self.shape

  def gray(
    self, at_least: int | None = None
  ) -> UInt8[np.ndarray, "h w 1"] | UInt16[np.ndarray, "h w 1"]:
    """Decodes the image: gray levels, upright, black is 0.

    Raises:
      BadImage: values that are not finite, or colour of another type than unsigned integers.
    """
    values = self.load(at_least)
    whole = values.shape[:2] == self.shape
    if not whole and (at_least is None or min(values.shape[:2]) < 2 * at_least):
      raise BadImage(
        f"it holds {values.shape[1]} x {values.shape[0]} pixels where its header says "
        f"{self.shape[1]} x {self.shape[0]}"
      )
    if values.ndim == 3:
      values = _luma(values)
    found, top = _levels(values, self.kind, self.bits)
    if self.white_is_zero:
      found = top - found
    return np.ascontiguousarray(_turned(found, self.orientation))[..., None]


def check_shape(width: int, height: int) -> None:
  """Raises BadImage for a size that no radiograph has."""
  if min(width, height) < MIN_SIDE:
    raise BadImage(f"it has {width} x {height} pixels; at least {MIN_SIDE} a side are needed")
  if width * height > MAX_PIXELS:
    raise BadImage(
      f"its header asks for {width} x {height} pixels; at most {MAX_PIXELS:,} are read"
    )


def check_packed(width: int, height: int, size: int) -> None:
  """Raises BadImage for a file of `size` bytes that holds more pixels than a radiograph packs.

  For codecs that are slow and pack blank areas without a bound, where a header would otherwise
  decide how long a small file takes.
  """
  if width * height > _SMALL + _PACKED * size:
    raise BadImage(f"its header asks for {width} x {height} pixels, and it has {size:,} bytes")


def _luma(rgb: np.ndarray) -> np.ndarray:
  if rgb.dtype not in (np.uint8, np.uint16):
    raise BadImage(f"it is in colour, of {rgb.dtype} values; convert it to 8 or 16-bit gray")
  if rgb.dtype == np.uint8:  # the same sums, five times as fast
    return np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).convert("L"))
  found = np.empty(rgb.shape[:2], rgb.dtype)
  for start in range(0, len(rgb), _ROWS):
    red, green, blue = (
      rgb[start : start + _ROWS, :, c].astype(np.uint32) * np.uint32(weight)
      for c, weight in enumerate(_LUMA)
    )
    found[start : start + _ROWS] = (red + green + blue + np.uint32(1 << 15)) >> np.uint32(16)
  return found


def _levels(values: np.ndarray, kind: str, bits: int) -> tuple[np.ndarray, np.integer]:
  """Levels from 0 as uint8 or uint16, and the highest that there may be."""
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
  """An image's own range over 16 bits."""
  low, high = float(values.min()), float(values.max())
  scale = 65535 / (high - low) if high > low else 0.0
  found = np.empty(values.shape, np.uint16)
  for start in range(0, len(values), _ROWS):
    found[start : start + _ROWS] = np.round(
      (values[start : start + _ROWS].astype(np.float64) - low) * scale
    )
  return found


def _turned(image: np.ndarray, orientation: int) -> np.ndarray:
  """The image upright, by the tag that says how it is stored."""
  if orientation >= 5:
    image = image.T
  if orientation in (2, 3, 6, 7):
    image = image[:, ::-1]
  if orientation in (3, 4, 7, 8):
    image = image[::-1]
  return image

"""Windowing of gray levels to 8 bits or 0..1, and resizing of images to squares.

16-bit radiographs hold more levels than a screen shows, and only part of their range is the
patient. A window (low, high) selects that part: levels up to `low` are black, from `high` on white,
linear between (DICOM PS3.3 C.11.2.1.2, for an identity rescale and without its half-level shift).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Float32, UInt8, UInt16
from PIL import Image

from cxrjax.core.errors import UserError
from cxrjax.data.decoding.percentiles import TAILS, percentiles
from cxrjax.data.decoding.samples import BadImage, check_shape

WHOLE = {8: (0.0, 255.0), 16: (0.0, 65535.0)}
_IN_CACHE = 1 << 16  # pixels windowed at a time, which fit into the processor's cache

Window = tuple[float, float]
Pixels = UInt8[np.ndarray, "h w 1"] | UInt16[np.ndarray, "h w 1"]
Array = TypeVar("Array", np.ndarray, jax.Array)


def check_window(window: Any) -> str | Window:
  """Validates a window: `"auto"`, `"full"` or (low, high), returned as floats; else a UserError."""
  if isinstance(window, str):
    if window in ("auto", "full"):
      return window
    pair: Sequence[Any] = window.strip("()[] ").split(",")  # a flag arrives as text
  else:
    pair = window if isinstance(window, list | tuple) else ()
  with contextlib.suppress(TypeError, ValueError):
    low, high = map(float, pair)
    if _is_window(low, high):
      return low, high
  raise UserError(
    f"config.data.window={window!r} is not a window; give 'auto', 'full' or two gray "
    "levels, (black, white)"
  )


def choose_window(
  image: Pixels, given: Window | None = None, window: str | Window = "auto"
) -> Window:
  """Selects the gray levels of an image that are shown black and white.

  Args:
    image: gray levels as published.
    given: the window that came with the image, if any.
    window: `auto` uses the given one; without it, or where it shows nothing of this image, 16-bit
      images are shown from their 0.5 to their 99.5 percentile and 8-bit ones in full range. `full`
      is the type's range. Two gray levels apply to 16-bit images; 8-bit ones keep the full range.

  Raises:
    BadImage: smaller than 16 pixels a side, of constant value, or all black or all white in the
      two gray levels.
  """
  low, high = _extremes(image)
  full_range = WHOLE[8 * image.dtype.itemsize]
  if window == "full":
    return full_range
  if not isinstance(window, str):
    if image.dtype == np.uint8:
      return full_range
    if not _shows(window, low, high):
      raise BadImage(
        f"config.data.window={window} leaves nothing of it visible: its gray levels are {low} "
        f"to {high}"
      )
    return window
  if given is not None and _shows(given, low, high):
    return float(given[0]), float(given[1])
  if image.dtype == np.uint8:
    return full_range
  central = percentiles(image, TAILS)
  # In a nearly blank image only the tails differ.
  return central if _is_window(*central) else (float(low), float(high))


def to_uint8(image: Pixels, window: Window) -> UInt8[np.ndarray, "h w 1"]:
  """Applies a window, to 8 bits; an 8-bit image with the full range is returned as is."""
  if image.dtype == np.uint8 and tuple(window) == WHOLE[8]:
    return image
  low, scale = np.float32(window[0]), np.float32(255 / (window[1] - window[0]))
  flat = np.ascontiguousarray(image).reshape(-1)
  windowed = np.empty(flat.shape, np.uint8)
  for start in range(0, len(flat), _IN_CACHE):  # a third of the time of a lookup table
    part = slice(start, start + _IN_CACHE)
    x = flat[part].astype(np.float32)
    x -= low
    x *= scale
    x += np.float32(0.5)
    windowed[part] = np.clip(x, 0, 255, out=x)
  return windowed.reshape(image.shape)


def to_unit(
  pixels: UInt8[Array, "*b s s 1"] | UInt16[Array, "*b s s 1"], windows: Float32[Array, "*b 2"]
) -> Float32[Array, "*b s s 1"]:
  """Applies windows, to 0..1: for NumPy arrays on the host, or traced in a jitted step."""
  low, high = (windows[..., i, None, None, None] for i in (0, 1))
  return ((pixels.astype(np.float32) - low) / (high - low)).clip(0, 1)


def resize(
  image: Pixels, size: int, fit: str = "squash", *, nearest: bool = False
) -> UInt8[np.ndarray, "s s 1"] | UInt16[np.ndarray, "s s 1"]:
  """Resizes to a square of `size` pixels: PIL's antialiased bicubic, or nearest for masks.

  Args:
    image: gray pixels; 8 bits stay 8 bits and 16 stay 16.
    size: side of the result.
    fit: `squash` both sides to `size`; `pad` the shorter side with 0, centred; `crop` the middle
      square.
    nearest: use the nearest pixel, so that labels stay labels.
  """
  height, width = image.shape[:2]
  method = Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC
  wide = image.dtype == np.uint16
  gray = np.ascontiguousarray(image[..., 0])
  # PIL's float32 holds 16 bits exactly and is as fast as its 16-bit mode, which rounds twice.
  plane = Image.fromarray(gray.astype(np.float32) if wide else gray)
  if fit == "crop":
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    plane = plane.resize((size, size), method, box=(left, top, left + side, top + side))
  elif fit == "pad":
    scale = size / max(width, height)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    canvas = Image.new(plane.mode, (size, size))
    canvas.paste(plane.resize(inner, method), ((size - inner[0]) // 2, (size - inner[1]) // 2))
    plane = canvas
  elif plane.size != (size, size):
    plane = plane.resize((size, size), method)
  square = np.array(plane)[..., None]
  return np.clip(np.rint(square), 0, 65535).astype(np.uint16) if wide else square


def resize_back(
  square: Float32[np.ndarray, "s s"], shape: tuple[int, int], fit: str = "squash"
) -> Float32[np.ndarray, "h w"]:
  """Maps values on a square made by `resize` back onto the original image, bilinearly.

  Args:
    square: a value for each pixel of the square.
    shape: height and width of the original image.
    fit: as passed to `resize`; the area that `crop` cut off is 0.
  """
  height, width = shape
  size = len(square)
  plane = Image.fromarray(np.ascontiguousarray(square))
  box = (0.0, 0.0, float(size), float(size))
  inner = width, height
  if fit == "pad":
    scale = size / max(width, height)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (size - w) // 2, (size - h) // 2
    box = (left, top, left + w, top + h)
  elif fit == "crop":
    inner = (min(width, height),) * 2
  values = np.asarray(plane.resize(inner, Image.Resampling.BILINEAR, box=box))
  if fit == "crop":
    uncropped = np.zeros(shape, np.float32)
    top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
    uncropped[top : top + inner[1], left : left + inner[0]] = values
    return uncropped
  return values


def _extremes(image: Pixels) -> tuple[int, int]:
  check_shape(image.shape[1], image.shape[0])
  low, high = int(image.min()), int(image.max())
  if low == high:
    raise BadImage(f"it is blank: every pixel is {low}")
  return low, high


def _is_window(low: float, high: float) -> bool:
  """Whether the levels are finite and increasing, also as the float32 they are stored in."""
  return bool(np.isfinite([low, high]).all() and np.float32(low) < np.float32(high))


def _shows(window: Window, low: int, high: int) -> bool:
  """Whether a window overlaps the levels of an image, which span `low` to `high`."""
  return _is_window(*window) and window[0] < high and window[1] > low

"""Embeds arrays as small pictures; colour map for attention."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from cxrjax.report.html.element import Html, el


@functools.cache
def colour_map(n: int = 256) -> UInt8[np.ndarray, "n 3"]:
  """A perceptually uniform map from black over violet, red and orange to pale yellow.

  A path through the Oklab colour space with rising lightness, walked in steps of equal length, so
  that equal differences in value look equally large, also in gray and to colour-blind readers.

  References:
    Ottosson, A perceptual color space for image processing, 2020 (Oklab's matrices).
  """
  t = np.linspace(0, 1, 4097)
  lightness = 0.10 + 0.87 * t
  hue = np.deg2rad(np.interp(t, [0, 0.35, 0.7, 1], [285, 370, 415, 468]))
  chroma = np.interp(t, [0, 0.3, 0.6, 0.85, 1], [0.03, 0.145, 0.168, 0.14, 0.07])
  lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], -1)
  length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(lab, axis=0), axis=1))])
  even = np.interp(np.linspace(0, length[-1], n), length, t)
  lab = np.stack([np.interp(even, t, lab[:, i]) for i in range(3)], -1)
  return np.rint(255 * oklab_to_srgb(lab)).astype(np.uint8)


def oklab_to_srgb(lab: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
  """Oklab to gamma-encoded sRGB in 0..1, clipped to the gamut."""
  to_lms = np.array(
    [
      [1, 0.3963377774, 0.2158037573],
      [1, -0.1055613458, -0.0638541728],
      [1, -0.0894841775, -1.2914855480],
    ]
  )
  to_rgb = np.array(
    [
      [4.0767416621, -3.3077115913, 0.2309699292],
      [-1.2684380046, 2.6097574011, -0.3413193965],
      [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
  )
  linear = np.clip((lab @ to_lms.T) ** 3 @ to_rgb.T, 0, 1)
  return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def gray(array: np.ndarray) -> UInt8[np.ndarray, "h w"]:
  """Converts a picture to 8-bit gray: uint8 is kept, other types are stretched to 0..255."""
  array = np.asarray(array)
  if array.ndim == 3:
    array = array[..., 0]
  if array.ndim != 2 or not array.size:
    raise ValueError(f"a picture needs two axes, not shape {array.shape}")
  if array.dtype == np.uint8:
    return array
  array = np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
  low, high = float(array.min()), float(array.max())
  return np.rint(255 * (array - low) / max(high - low, 1e-12)).astype(np.uint8)


def overlay(
  image: UInt8[np.ndarray, "h w"], heat: Float[np.ndarray, "gh gw"], opacity: float = 0.7
) -> UInt8[np.ndarray, "h w 3"]:
  """Blends a heat map in 0..1, smoothly enlarged, over a radiograph.

  Opacity grows with the heat, so that the radiograph stays visible where nothing is attended to.
  """
  h, w = image.shape
  enlarged = np.asarray(
    Image.fromarray(heat.astype(np.float32)).resize((w, h), Image.Resampling.BICUBIC)
  )
  enlarged = np.clip(enlarged, 0, 1)
  alpha = (opacity * enlarged**0.8)[..., None]
  color = colour_map()[np.rint(255 * enlarged).astype(int)]
  return np.rint((1 - alpha) * image[..., None] + alpha * color).astype(np.uint8)


def outlines(
  image: UInt8[np.ndarray, "h w *c"],
  masks: Sequence[Bool[np.ndarray, "h w"]],
  colours: Sequence[tuple[int, int, int]],
  size: int = 256,
) -> UInt8[np.ndarray, "sh sw 3"]:
  """Outlines masks on a radiograph, gray or coloured, enlarged to about `size` pixels.

  Later masks lie on top.
  """
  scale = max(1, round(size / max(image.shape[:2])))
  h, w = (n * scale for n in image.shape[:2])
  enlarged = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BICUBIC))
  canvas = enlarged.copy() if image.ndim == 3 else np.repeat(enlarged[..., None], 3, axis=-1)
  for mask, color in zip(masks, colours, strict=True):
    inside = np.pad(np.kron(mask, np.ones((scale, scale), bool)), 1)
    neighbors = [inside[1:-1, :-2], inside[1:-1, 2:], inside[:-2, 1:-1], inside[2:, 1:-1]]
    inside = inside[1:-1, 1:-1]
    canvas[inside & ~np.logical_and.reduce(neighbors)] = color
  return canvas


def picture(array: UInt8[np.ndarray, "h w *c"], alt: str, size: int = 256) -> Html:
  """A gray or colour picture as an embedded JPEG of at most `size` pixels a side."""
  image = Image.fromarray(array)
  image.thumbnail((size, size), Image.Resampling.LANCZOS)
  buffer = io.BytesIO()
  image.save(buffer, "JPEG", quality=82, optimize=True)
  return _img(buffer.getvalue(), "image/jpeg", alt, image.size)


def heat_map(heat: Float[np.ndarray, "gh gw"], alt: str) -> Html:
  """Values in 0..1 as a tiny PNG, one pixel a patch, enlarged by the browser without smoothing."""
  index = np.rint(255 * np.clip(np.nan_to_num(heat), 0, 1)).astype(np.uint8)
  image = Image.fromarray(index)  # gray; with a palette its values become indices into it
  image.putpalette(colour_map().tobytes())
  return _cells(image, alt)


def cells(colours: UInt8[np.ndarray, "gh gw 3"], alt: str) -> Html:
  """Colours as a tiny PNG, one pixel a patch, enlarged by the browser without smoothing."""
  return _cells(Image.fromarray(colours), alt)


def _cells(image: Image.Image, alt: str) -> Html:
  buffer = io.BytesIO()
  image.save(buffer, "PNG", optimize=True)
  return _img(buffer.getvalue(), "image/png", alt, image.size, cls="pixels")


def colour_bar(low: str, high: str, label: str) -> Html:
  """The colour map with the values at its ends."""
  strip = heat_map(np.linspace(0, 1, 128)[None], f"colour scale from {low} to {high}")
  return el(
    "div", el("span", low), strip, el("span", high), el("span", label, cls="unit"), cls="scale"
  )


def _img(data: bytes, kind: str, alt: str, size: tuple[int, int], **attributes: str) -> Html:
  uri = f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
  return el("img", src=uri, alt=alt, width=size[0], height=size[1], **attributes)

"""What a radiograph is recognised by: its local detail, free of exposure and of large shapes.

Two radiographs of different people correlate at 0.5 to 0.97 pixel by pixel, since all chests are
alike. Subtracting from every pixel the mean around it and dividing by the deviation around it
leaves ribs, vessels, markers and devices, by which no two are alike, and takes away brightness,
contrast, gamma and large white labels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, UInt8

from cxrjax.data.decoding.windowing import to_unit
from cxrjax.data.images import Images, stored

FLOOR = 0.1  # of the image's deviation: what varies less than this around a pixel is left flat
BATCH = 64
_CHUNK = 512
_ROUNDING = 1e-4  # what differs by less than this share of the whole is rounding

Pixels = UInt8[np.ndarray, "_ _ _ 1"] | Float[np.ndarray, "_ _ _ 1"]


def areas(size: int, side: int) -> Float32[np.ndarray, "side size"]:
  """Row i averages the pixels of cell i of `side`; border pixels count by the part inside."""
  edges = np.linspace(0, size, side + 1)
  pixel = np.arange(size)
  inside = np.clip(
    np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel), 0, None
  )
  return (inside / inside.sum(1, keepdims=True)).astype(np.float32)


def small(
  images: Images | Pixels, side: int, rows: Int[np.ndarray, "m"] | None = None
) -> Float32[np.ndarray, "m side side"]:
  """Some images as they are shown, averaged over `side` x `side` cells of any size.

  Args:
    images: decoded images, taken as 0 to 255, or gray levels in any unit.
    side: of the result, cells.
    rows: which of them; all by default.
  """
  pixels, windows = stored(images) if isinstance(images, Images) else (images, None)
  n = len(images) if rows is None else len(rows)
  result = np.empty((n, side, side), np.float32)
  for start in range(0, n, _CHUNK):
    stop = min(start + _CHUNK, n)
    part = slice(start, stop) if rows is None else rows[start:stop]
    x = np.asarray(pixels[part])
    x = x.astype(np.float32) if windows is None else 255 * to_unit(x, windows[part])
    height, width = x.shape[1:3]
    x = x[..., 0]
    # Two large products; thousands of small ones (one an image) are many times slower.
    x = (x.reshape(-1, width) @ areas(width, side).T).reshape(len(x), height, side)
    x = np.ascontiguousarray(x.transpose(0, 2, 1)).reshape(-1, height) @ areas(height, side).T
    result[start:stop] = x.reshape(stop - start, side, side).transpose(0, 2, 1)
  return result


def batched(
  function: Callable[..., Sequence[Any]], *arrays: np.ndarray, size: int = BATCH
) -> list[np.ndarray]:
  """A function of several arrays, `size` rows at a time: so it is compiled once for all lengths.

  What is missing in the last batch is filled with zeros, and cut off again.
  """
  n, parts = len(arrays[0]), []
  for start in range(0, max(n, 1), size):
    count = min(size, n - start)
    full = [np.zeros((size, *x.shape[1:]), x.dtype) for x in arrays]
    for whole, x in zip(full, arrays, strict=True):
      whole[:count] = x[start : start + count]
    parts.append([np.asarray(y)[:count] for y in function(*full)])
  return [np.concatenate(y) for y in zip(*parts, strict=True)]


@functools.partial(jax.jit, static_argnames="sigma")
def local_contrast(x: Float[Array, "n s s"], sigma: float) -> Float[Array, "n s s"]:
  """Every pixel's difference from the mean around it, over the deviation around it.

  Args:
    x: gray levels.
    sigma: of the Gaussian that says what is around, pixels; at the border its inside part.

  References:
    Jarrett et al., What is the best multi-stage architecture for object recognition?, ICCV 2009,
    section 2 (local contrast normalisation).
  """
  whole = x.std((1, 2), keepdims=True)
  difference = x - blur(x, sigma)
  deviation = jnp.sqrt(blur(difference**2, sigma) + (FLOOR * whole) ** 2)
  blank = whole <= _ROUNDING * jnp.abs(x).mean((1, 2), keepdims=True)
  return jnp.where(blank, 0, difference / jnp.where(blank, 1, deviation))


def blur(x: Float[Array, "n s s"], sigma: float) -> Float[Array, "n s s"]:
  """Gaussian blur; weights that fall outside are given to those inside."""
  at = np.arange(x.shape[1])
  weights = np.exp(-0.5 * ((at[:, None] - at) / sigma) ** 2)
  kernel = jnp.asarray(weights / weights.sum(1, keepdims=True), jnp.float32)
  return jnp.einsum("ij,njk,lk->nil", kernel, x, kernel)


@functools.partial(jax.jit, static_argnames="sigma")
def gray_and_detail(
  x: Float[Array, "n s s"], sigma: float
) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
  """Gray levels and local contrast of each image as `unit` vectors."""
  return unit(x), unit(local_contrast(x, sigma))


@jax.jit
def unit(x: Float[Array, "n s s"]) -> Float[Array, "n d"]:
  """Images as vectors of mean 0 and norm 1; 0 for a blank one. Products are correlations."""
  x = x.reshape(len(x), -1)
  centred = x - x.mean(1, keepdims=True)
  norm = jnp.linalg.norm(centred, axis=1, keepdims=True)
  blank = norm <= _ROUNDING * jnp.linalg.norm(x, axis=1, keepdims=True)
  return jnp.where(blank, 0, centred / jnp.where(blank, 1, norm))

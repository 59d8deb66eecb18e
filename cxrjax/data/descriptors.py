"""Image descriptors that identify a radiograph by local detail, whatever its exposure.

The pixels of two radiographs of different people correlate at 0.5 to 0.97, since all chests look
alike. Subtracting the local mean from every pixel and dividing by the local deviation leaves ribs,
vessels, markers and devices, which are unique, and removes brightness, contrast, gamma and large
white labels.
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

FLOOR = 0.1  # of the image's deviation; regions that vary less stay flat
BATCH = 64
_CHUNK = 512
_ROUNDING = 1e-4  # smaller relative differences are rounding errors

Pixels = UInt8[np.ndarray, "_ _ _ 1"] | Float[np.ndarray, "_ _ _ 1"]


def area_weights(size: int, side: int) -> Float32[np.ndarray, "side size"]:
  """Area-averaging matrix: row i averages cell i of `side`, with partial pixels at its borders."""
  edges = np.linspace(0, size, side + 1)
  pixel = np.arange(size)
  overlap = np.clip(
    np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel), 0, None
  )
  return (overlap / overlap.sum(1, keepdims=True)).astype(np.float32)


def downsample(
  images: Images | Pixels, side: int, rows: Int[np.ndarray, "m"] | None = None
) -> Float32[np.ndarray, "m side side"]:
  """Images as displayed, averaged over `side` x `side` cells of any size.

  Args:
    images: decoded images, scaled to 0 to 255, or gray levels in any unit.
    side: cells per side of the result.
    rows: rows of the images; all by default.
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
    # Two large matrix products are many times faster than thousands of small ones.
    x = (x.reshape(-1, width) @ area_weights(width, side).T).reshape(len(x), height, side)
    x = (
      np.ascontiguousarray(x.transpose(0, 2, 1)).reshape(-1, height) @ area_weights(height, side).T
    )
    result[start:stop] = x.reshape(stop - start, side, side).transpose(0, 2, 1)
  return result


def batched(
  function: Callable[..., Sequence[Any]], *arrays: np.ndarray, size: int = BATCH
) -> list[np.ndarray]:
  """Applies a function in batches of `size` rows, so that it is compiled once for all lengths.

  The last batch is padded with zeros, and its results are cut off again.
  """
  n, results = len(arrays[0]), []
  for start in range(0, max(n, 1), size):
    count = min(size, n - start)
    batch = [np.zeros((size, *x.shape[1:]), x.dtype) for x in arrays]
    for padded, x in zip(batch, arrays, strict=True):
      padded[:count] = x[start : start + count]
    results.append([np.asarray(y)[:count] for y in function(*batch)])
  return [np.concatenate(y) for y in zip(*results, strict=True)]


@functools.partial(jax.jit, static_argnames="sigma")
def local_contrast(x: Float[Array, "n s s"], sigma: float) -> Float[Array, "n s s"]:
  """Local contrast normalization: difference from the local mean over the local deviation.

  Args:
    x: gray levels.
    sigma: standard deviation of the Gaussian neighborhood in pixels; truncated at image borders.

  References:
    Jarrett et al., What is the best multi-stage architecture for object recognition?, ICCV 2009,
    section 2 (local contrast normalization).
  """
  global_deviation = x.std((1, 2), keepdims=True)
  difference = x - blur(x, sigma)
  deviation = jnp.sqrt(blur(difference**2, sigma) + (FLOOR * global_deviation) ** 2)
  is_blank = global_deviation <= _ROUNDING * jnp.abs(x).mean((1, 2), keepdims=True)
  return jnp.where(is_blank, 0, difference / jnp.where(is_blank, 1, deviation))


def blur(x: Float[Array, "n s s"], sigma: float) -> Float[Array, "n s s"]:
  """Gaussian blur; at image borders the kernel is truncated and renormalized."""
  position = np.arange(x.shape[1])
  weights = np.exp(-0.5 * ((position[:, None] - position) / sigma) ** 2)
  kernel = jnp.asarray(weights / weights.sum(1, keepdims=True), jnp.float32)
  return jnp.einsum("ij,njk,lk->nil", kernel, x, kernel)


@functools.partial(jax.jit, static_argnames="sigma")
def gray_and_detail(
  x: Float[Array, "n s s"], sigma: float
) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
  """Gray levels and local contrast of each image, each as a `unit` vector."""
  return unit(x), unit(local_contrast(x, sigma))


@jax.jit
def unit(x: Float[Array, "n s s"]) -> Float[Array, "n d"]:
  """Flattens images to mean 0 and norm 1, so that products are correlations; 0 for blank images."""
  x = x.reshape(len(x), -1)
  centered = x - x.mean(1, keepdims=True)
  norm = jnp.linalg.norm(centered, axis=1, keepdims=True)
  is_blank = norm <= _ROUNDING * jnp.linalg.norm(x, axis=1, keepdims=True)
  return jnp.where(is_blank, 0, centered / jnp.where(is_blank, 1, norm))

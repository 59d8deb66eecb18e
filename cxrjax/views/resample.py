"""Separable resampling as matrices: a crop is `rows @ image @ columns.T`, and so is a blur.

An accelerator multiplies matrices far faster than it gathers pixels, and one matrix holds the crop,
the antialiasing, the resize and the flip.

References: Keys, "Cubic convolution interpolation for digital image processing", IEEE TASSP 29(6),
1981, eq. 15 with a = -1/2, which is PIL's BICUBIC.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}
"""Half width of each kernel, in pixels of the coarser grid."""


def bicubic(x: Float[Array, "*d"]) -> Float[Array, "*d"]:
  """Keys' cubic kernel with a = -1/2; zero from |x| = 2 on."""
  # 1.5|x|^3 - 2.5 x^2 + 1 inside 1 and -.5|x|^3 + 2.5 x^2 - 4|x| + 2 from 1 to 2, as a sum of
  # truncated powers: no branches, so that it costs a handful of vector instructions.
  outer = jnp.maximum(2.0 - jnp.abs(x), 0.0)
  inner = jnp.maximum(1.0 - jnp.abs(x), 0.0)
  return 0.5 * outer * outer * (outer - 1.0) + inner * inner * (1.0 - 2.0 * inner)


def bilinear(x: Float[Array, "*d"]) -> Float[Array, "*d"]:
  """The hat function; zero from |x| = 1 on."""
  return jnp.maximum(1.0 - jnp.abs(x), 0.0)


def crop_matrix(
    start: Float[Array, "*b"] | float, length: Float[Array, "*b"] | float, in_size: int,
    out_size: int, flip: Bool[Array, "*b"] | bool = False, kernel: str = "bicubic",
) -> Float[Array, "*b out in"]:
  """The matrix that resamples `[start, start + length)` of a line of pixels to `out_size` pixels.

  Pixel `j` covers `[j, j + 1)`. As in PIL's `resize(box=)`, the kernel widens with the reduction
  (antialiasing), it may look at pixels outside the box but inside the image, and each row is
  normalised to sum 1, so that constants stay constant. A part of the box beyond the image
  repeats the edge.

  Args:
    start: left end of the box, in pixels of the input.
    length: its length in pixels, above 0.
    in_size: pixels of the input line.
    out_size: pixels of the output line.
    flip: read the box from right to left.
    kernel: `"bicubic"` or `"bilinear"`.
  """
  start, length, flip = jnp.broadcast_arrays(
    jnp.asarray(start, jnp.float32), jnp.asarray(length, jnp.float32), jnp.asarray(flip))
  scale = (length / out_size)[..., None]
  place = jnp.arange(out_size, dtype=jnp.float32) + 0.5
  place = jnp.where(flip[..., None], out_size - place, place)
  center = jnp.clip(start[..., None] + place * scale, 0.0, in_size)
  pixel = jnp.arange(in_size, dtype=jnp.float32) + 0.5
  function = {"bicubic": bicubic, "bilinear": bilinear}[kernel]
  weights = function((pixel - center[..., None]) / jnp.maximum(scale, 1.0)[..., None])
  return weights / jnp.sum(weights, axis=-1, keepdims=True)


def blur_matrix(sigma: Float[Array, "*b"] | float, size: int) -> Float[Array, "*b size size"]:
  """The matrix of a Gaussian blur of a line of `size` pixels; the edge pixels repeat outwards.

  Args:
    sigma: standard deviation in pixels; 0 gives the identity.
    size: pixels of the line.
  """
  sigma = jnp.maximum(jnp.asarray(sigma, jnp.float32), 1e-2)[..., None, None]
  pixel = jnp.arange(size, dtype=jnp.float32)
  distance = (pixel - pixel[:, None]) / sigma
  weights = jnp.exp(-0.5 * distance * distance)
  return weights / jnp.sum(weights, axis=-1, keepdims=True)


def to_unit(images: Num[Array, "*b h w 1"]) -> Float[Array, "*b h w 1"]:
  """Pixels as float32 in 0..1: integers are divided by their type's maximum, floats are kept."""
  if jnp.issubdtype(images.dtype, jnp.integer):
    return images.astype(jnp.float32) / jnp.iinfo(images.dtype).max
  return images.astype(jnp.float32)


def resize(images: Num[Array, "b h w 1"], size: int) -> Float[Array, "b size size 1"]:
  """Whole images squashed to `size` x `size`, in 0..1, with PIL's antialiased bicubic."""
  h, w = images.shape[1:3]
  x = to_unit(images)[..., 0]
  if (h, w) != (size, size):
    highest = jax.lax.Precision.HIGHEST
    rows, columns = crop_matrix(0.0, h, h, size), crop_matrix(0.0, w, w, size)
    x = jnp.einsum("oh,bhw,pw->bop", rows, x, columns, precision=highest)
  return jnp.clip(x, 0.0, 1.0)[..., None]

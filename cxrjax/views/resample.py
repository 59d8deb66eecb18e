"""Separable resampling as matrices: a crop is `rows @ image @ columns.T`, and so is a blur.

An accelerator multiplies matrices far faster than it gathers pixels, and one matrix combines crop,
antialiasing, resize and flip. Only `rotate`, which is not separable, gathers.

Random views multiply in bfloat16 on accelerators (`product`), which represents uint8 pixels exactly
and weights and intermediate pixels to 0.4 %, the precision at which the networks there read them;
on a CPU, in float32. `resize`, which evaluations use, asks for full float32.

References: Keys, "Cubic convolution interpolation for digital image processing", IEEE TASSP 29(6),
1981, eq. 15 with a = -1/2, which is PIL's BICUBIC.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from cxrjax.core import errors
from cxrjax.core.errors import UserError

FULL = jax.lax.Precision.HIGHEST


def bicubic(x: Float[Array, "*d"]) -> Float[Array, "*d"]:
  """Keys' cubic kernel with a = -1/2; zero for |x| >= 2."""
  # 1.5|x|^3 - 2.5x^2 + 1 up to 1 and -.5|x|^3 + 2.5x^2 - 4|x| + 2 from there to 2, written as a sum
  # of truncated powers: no branches, few vector instructions.
  outer = jnp.maximum(2.0 - jnp.abs(x), 0.0)
  inner = jnp.maximum(1.0 - jnp.abs(x), 0.0)
  return 0.5 * outer * outer * (outer - 1.0) + inner * inner * (1.0 - 2.0 * inner)


def bilinear(x: Float[Array, "*d"]) -> Float[Array, "*d"]:
  """The hat function; zero for |x| >= 1."""
  return jnp.maximum(1.0 - jnp.abs(x), 0.0)


KERNELS = {"bicubic": bicubic, "bilinear": bilinear}


def crop_matrix(
  start: Float[Array, "*#b"] | float,
  length: Float[Array, "*#b"] | float,
  in_size: int,
  out_size: int,
  flip: Bool[Array, "*#b"] | bool = False,
  kernel: str = "bicubic",
) -> Float[Array, "*b out in"]:
  """The matrix that resamples `[start, start + length)` of a line of pixels to `out_size` pixels.

  Pixel `j` covers `[j, j + 1)`, and the box need not begin or end at a pixel's border. As in PIL's
  `resize(box=)`, the kernel widens with the reduction (antialiasing), it uses pixels outside the
  box but inside the image, and each row is normalised to sum 1, so that constants stay constant.
  Parts of the box beyond the image repeat its edge.

  Args:
    start: where the box begins, in pixels of the input.
    length: its length in pixels, above 0.
    in_size: pixels of the input line.
    out_size: pixels of the output line.
    flip: read the box backwards.
    kernel: `"bicubic"` or `"bilinear"`.

  Raises:
    UserError: unknown kernel.
  """
  if kernel not in KERNELS:
    raise UserError(f"kernel={kernel!r} is unknown{errors.suggest(kernel, KERNELS)}")
  start, length, flip = jnp.broadcast_arrays(
    jnp.asarray(start, jnp.float32), jnp.asarray(length, jnp.float32), jnp.asarray(flip)
  )
  start, length, flip = start[..., None], length[..., None], flip[..., None]
  scale = length / out_size
  position = jnp.arange(out_size, dtype=jnp.float32) + 0.5
  center = start + jnp.where(flip, out_size - position, position) * scale
  # Beyond the image's edge this keeps at least one pixel within the kernel's reach.
  center = jnp.clip(center, 0.0, in_size)
  pixel = jnp.arange(in_size, dtype=jnp.float32) + 0.5
  shrink = 1.0 / jnp.maximum(scale, 1.0)
  weights = KERNELS[kernel](pixel * shrink[..., None] - (center * shrink)[..., None])
  return _normalized(weights)


def center_crop(
  images: Float[Array, "b h w c"], scale: float, flip: bool = False
) -> Float[Array, "b h w c"]:
  """Central crop of images, resized to the images' size, mirrored or not.

  Args:
    images: with any range of values.
    scale: side of the crop as a share of the image's, above 0 and up to 1.
    flip: swap left and right.
  """
  if scale == 1:
    return images[:, :, ::-1] if flip else images
  rows, columns = (
    crop_matrix(size * (1 - scale) / 2, size * scale, size, size, turn, "bilinear")
    for size, turn in zip(images.shape[1:3], (False, flip), strict=True)
  )
  x = product("oh,bhwc->bowc", rows, images)
  return product("pw,bowc->bopc", columns, x).astype(images.dtype)


def blur_matrix(sigma: Float[Array, "*b"] | float, size: int) -> Float[Array, "*b size size"]:
  """The matrix of a Gaussian blur of a line of `size` pixels; rows are normalised up to the ends.

  Args:
    sigma: standard deviation in pixels; 0 gives the identity.
    size: pixels of the line.
  """
  sigma = jnp.maximum(jnp.asarray(sigma, jnp.float32), 1e-2)[..., None, None]
  pixel = jnp.arange(size, dtype=jnp.float32)
  distance = (pixel - pixel[:, None]) / sigma
  return _normalized(jnp.exp(-0.5 * distance * distance))


def _normalized(weights: Float[Array, "*b out in"]) -> Float[Array, "*b out in"]:
  """Rows divided by their sums."""
  # The barrier keeps XLA from recomputing the weights for the sum; the product with ones is
  # vectorised, unlike XLA's row reduction on CPUs (six times slower for small crops).
  weights = jax.lax.optimization_barrier(weights)
  total = jnp.einsum("...oi,i->...o", weights, jnp.ones(weights.shape[-1]), precision=FULL)
  return weights / total[..., None]


def product(spec: str, a: Num[Array, "..."], b: Num[Array, "..."]) -> Float[Array, "..."]:
  """`einsum(spec, a, b)` with a float32 result; operands in bfloat16, on a CPU in float32."""

  def einsum_in(dtype: Any) -> Any:
    return lambda a, b: jnp.einsum(
      spec, a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32
    )

  return jax.lax.platform_dependent(
    a, b, cpu=einsum_in(jnp.float32), default=einsum_in(jnp.bfloat16)
  )


def unit(dtype: jnp.dtype) -> float:
  """Factor that scales pixels of a type to 0..1: 1 / maximum for integers, 1 for floats."""
  return 1.0 / jnp.iinfo(dtype).max if jnp.issubdtype(dtype, jnp.integer) else 1.0


def resize(images: Num[Array, "b h w 1"], size: int) -> Float[Array, "b {size} {size} 1"]:
  """Whole images squashed to `size` x `size`, in 0..1, with PIL's antialiased bicubic.

  Args:
    images: integers (0 .. the type's maximum) or floats in 0..1.
    size: side of the result in pixels; at the images' own size they are only rescaled.
  """
  h, w = images.shape[1:3]
  x = images[..., 0].astype(jnp.float32)
  if (h, w) != (size, size):
    x = jnp.einsum("oh,bhw->bow", crop_matrix(0.0, float(h), h, size), x, precision=FULL)
    x = jnp.einsum("bow,pw->bop", x, crop_matrix(0.0, float(w), w, size), precision=FULL)
  return jnp.clip(x * unit(images.dtype), 0.0, 1.0)[..., None]


def rotation_margin(size: int, degrees: float) -> int:
  """Pixels to add on every side of a square of `size` so that it can turn by up to `degrees`."""
  turn = math.radians(min(degrees, 45.0))
  return math.ceil(size * (math.cos(turn) + math.sin(turn) - 1.0) / 2.0) + 1


def rotate(
  x: Float[Array, "*b n n"], angle: Float[Array, "*b"], size: int
) -> Float[Array, "*b {size} {size}"]:
  """Turns square images counterclockwise about their centre and crops the central `size` x `size`.

  Bilinear; beyond the image its edge is repeated.

  Args:
    x: square images.
    angle: in radians.
    size: side of the result, at most `n`.
  """
  n = x.shape[-1]
  offset = jnp.arange(size, dtype=jnp.float32) - (size - 1) / 2.0
  cos, sin = (f(angle)[..., None, None] for f in (jnp.cos, jnp.sin))
  down, right = offset[:, None], offset
  row = jnp.clip((n - 1) / 2.0 + cos * down + sin * right, 0.0, n - 1.0)
  column = jnp.clip((n - 1) / 2.0 - sin * down + cos * right, 0.0, n - 1.0)
  top = jnp.minimum(jnp.floor(row), n - 2.0)
  left = jnp.minimum(jnp.floor(column), n - 2.0)
  row_weight, column_weight = row - top, column - left
  corner = (top * n + left).astype(jnp.int32).reshape(*x.shape[:-2], size * size)
  flat = x.reshape(*x.shape[:-2], n * n)

  def at(shift):
    pixels = jnp.take_along_axis(flat, corner + shift, axis=-1, mode="promise_in_bounds")
    return pixels.reshape(*x.shape[:-2], size, size)

  upper = at(0) * (1.0 - column_weight) + at(1) * column_weight
  lower = at(n) * (1.0 - column_weight) + at(n + 1) * column_weight
  return upper * (1.0 - row_weight) + lower * row_weight

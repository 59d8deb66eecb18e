"""Aligns pairs of radiographs by an affine map and correlates their detail.

A copy that was cropped, shifted, stretched or rotated by a few percent correlates no better with
its original than another chest does. An affine map fitted by least squares undoes that: afterwards
copies agree to a pixel, different exposures of one patient nearly, different people do not.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cxrjax.core import compile_effort
from cxrjax.data.descriptors import blur, local_contrast

COARSE, FINE = 64, 96  # side of the compared images, pixels
REACH = 0.35  # largest shift or stretch of a map, as a fraction of half an image


@compile_effort.jit
def coarse(
  a: Float[Array, "n s s"], b: Float[Array, "n s s"]
) -> tuple[Float[Array, "n"], Float[Array, "n 2 3"]]:
  """Correlation of the detail of `a` with that of `b` aligned to it, at COARSE pixels; and the map.

  The map takes a pixel of `a`, in coordinates from -1 to 1, to the corresponding one of `b`.
  """
  size = a.shape[1]
  identity = jnp.broadcast_to(jnp.eye(2, 3), (len(a), 2, 3))
  maps = identity
  for contrast_sigma, blur_sigma, steps in ((8, 2, 12), (4, 1, 8)):
    x, y = (
      blur(local_contrast(v, contrast_sigma * size / COARSE), blur_sigma * size / COARSE)
      for v in (a, b)
    )
    maps = _align(x, y, maps, steps)
  x, y = (local_contrast(v, 4 * size / COARSE) for v in (a, b))
  return _better_map(x, y, maps, identity)


@compile_effort.jit
def fine(
  a: Float[Array, "n s s"], b: Float[Array, "n s s"], maps: Float[Array, "n 2 3"]
) -> tuple[Float[Array, "n"], Float[Array, "n 2 3"]]:
  """Same as `coarse`, for finer detail at FINE pixels, starting from the maps of `coarse`."""
  scale = a.shape[1] / COARSE
  x, y = (blur(local_contrast(v, 4 * scale), 0.5 * scale) for v in (a, b))
  refined = _align(x, y, maps, 8)
  x, y = (local_contrast(v, 2 * scale) for v in (a, b))
  return _better_map(x, y, refined, jnp.broadcast_to(jnp.eye(2, 3), refined.shape))


def _better_map(x, y, maps, identity):
  """The better of map and identity, so that a diverged search does not hide an exact copy."""
  r, r_identity = (jax.vmap(_correlation)(x, y, m) for m in (maps, identity))
  return jnp.maximum(r, r_identity), jnp.where((r >= r_identity)[:, None, None], maps, identity)


def _align(x, y, maps, steps):
  return jax.vmap(functools.partial(_align_one, steps=steps))(x, y, maps)


def _align_one(
  a: Float[Array, "s s"], b: Float[Array, "s s"], start: Float[Array, "2 3"], steps: int
) -> Float[Array, "2 3"]:
  """Gauss-Newton on the six parameters of an affine map, with the gradient of the fixed image.

  References:
    Baker and Matthews, Lucas-Kanade 20 years on: a unifying framework, IJCV 2004, section 3.2
    (the inverse compositional algorithm).
  """
  size = a.shape[0]
  u, v = _grid(size)
  grad_y, grad_x = jnp.gradient(a)
  half = (size - 1) / 2
  jacobian = half * jnp.stack([grad_x * u, grad_x * v, grad_x, grad_y * u, grad_y * v, grad_y])
  jacobian = jacobian.reshape(6, -1)
  gram = jacobian @ jacobian.T
  inverse = _inverse(gram + 0.01 * jnp.diag(jnp.diag(gram)) + 1e-6 * jnp.eye(6))

  def step(m: Float[Array, "2 3"], _: None) -> tuple[Float[Array, "2 3"], None]:
    warped, inside = _warp(b, m)
    change = inverse @ (jacobian @ ((warped - a) * inside).reshape(-1))
    change = jnp.clip(change, -0.1, 0.1).reshape(2, 3)
    m = _compose(m, change)
    return jnp.clip(m, jnp.eye(2, 3) - REACH, jnp.eye(2, 3) + REACH), None

  return jax.lax.scan(step, start, None, length=steps)[0]


def _inverse(m: Float[Array, "k k"]) -> Float[Array, "k k"]:
  """Gauss-Jordan without pivoting, for small positive definite matrices: calls no library."""
  k = len(m)
  augmented = jnp.concatenate([m, jnp.eye(k)], 1)
  for i in range(k):
    row = augmented[i] / augmented[i, i]
    augmented = (augmented - augmented[:, i : i + 1] * row).at[i].set(row)
  return augmented[:, k:]


def _compose(m: Float[Array, "2 3"], change: Float[Array, "2 3"]) -> Float[Array, "2 3"]:
  """The map `m` after the inverse of (identity + `change`)."""
  a = jnp.eye(2) + change[:, :2]
  determinant = a[0, 0] * a[1, 1] - a[0, 1] * a[1, 0]
  inverse = jnp.array([[a[1, 1], -a[0, 1]], [-a[1, 0], a[0, 0]]]) / determinant
  linear = m[:, :2] @ inverse
  return jnp.concatenate([linear, (m[:, 2] - linear @ change[:, 2])[:, None]], 1)


def _warp(b: Float[Array, "s s"], m: Float[Array, "2 3"]) -> tuple[Float[Array, "s s"], Array]:
  """`b` resampled through the map (bilinear), and the mask of pixels that lie inside `b`."""
  size = b.shape[0]
  half = (size - 1) / 2
  u, v = _grid(size)
  x = (m[0, 0] * u + m[0, 1] * v + m[0, 2]) * half + half
  y = (m[1, 0] * u + m[1, 1] * v + m[1, 2]) * half + half
  # Rounding may put the last pixel under the identity map slightly outside.
  inside = (x > -1e-3) & (x < size - 1 + 1e-3) & (y > -1e-3) & (y < size - 1 + 1e-3)
  left, top = (jnp.clip(jnp.floor(t), 0, size - 2) for t in (x, y))
  p, q = x - left, y - top
  index = (top * size + left).astype(jnp.int32)
  flat = b.reshape(-1)
  value = (flat[index] * (1 - p) + flat[index + 1] * p) * (1 - q) + (
    flat[index + size] * (1 - p) + flat[index + size + 1] * p
  ) * q
  return jnp.where(inside, value, 0), inside.astype(jnp.float32)


def _correlation(
  a: Float[Array, "s s"], b: Float[Array, "s s"], m: Float[Array, "2 3"]
) -> Float[Array, ""]:
  """Correlation over the overlap of the two images; 0 if that is less than half an image."""
  warped, inside = _warp(b, m)
  count = jnp.maximum(inside.sum(), 1)
  x, y = ((v - (v * inside).sum() / count) * inside for v in (a, warped))
  r = (x * y).sum() / jnp.sqrt(jnp.maximum((x * x).sum() * (y * y).sum(), 1e-12))
  return jnp.where(inside.mean() >= 0.5, r, 0)


def _grid(size: int) -> tuple[Float[Array, "s s"], Float[Array, "s s"]]:
  half = (size - 1) / 2
  t = (jnp.arange(size) - half) / half
  return jnp.broadcast_to(t[None], (size, size)), jnp.broadcast_to(t[:, None], (size, size))

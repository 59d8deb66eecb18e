"""Changes of gray level, branch-free: where nothing is to change, a factor is 1."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cxrjax.views import resample


def jitter(
    x: Float[Array, "*b h w"], brightness: Float[Array, "*b"], contrast: Float[Array, "*b"],
    brightness_first: Bool[Array, "*b"],
) -> Float[Array, "*b h w"]:
  """Brightness and contrast as torchvision's `ColorJitter` has them on gray images in 0..1.

  Brightness multiplies; contrast scales the distance to the mean of the image as it is then. Each
  clips to 0..1. Factors of 1 leave the image as it is.

  Args:
    x: images in 0..1.
    brightness: factor, >= 0.
    contrast: factor, >= 0.
    brightness_first: the order of the two.
  """
  b, c, first = (a[..., None, None] for a in (brightness, contrast, brightness_first))
  x = jnp.clip(jnp.where(first, b, 1.0) * x, 0.0, 1.0)
  mean = jnp.mean(x, axis=(-2, -1), keepdims=True)
  x = jnp.clip(c * x + (1.0 - c) * mean, 0.0, 1.0)
  return jnp.clip(jnp.where(first, 1.0, b) * x, 0.0, 1.0)


def blur(x: Float[Array, "*b h w"], sigma: Float[Array, "*b"]) -> Float[Array, "*b h w"]:
  """Gaussian blur with standard deviation `sigma` in pixels; 0 leaves the image as it is."""
  rows = resample.blur_matrix(sigma, x.shape[-2])
  columns = rows if x.shape[-2] == x.shape[-1] else resample.blur_matrix(sigma, x.shape[-1])
  return jnp.einsum("...oh,...hw,...pw->...op", rows, x, columns)


def solarize(
    x: Float[Array, "*b h w"], threshold: float, apply: Bool[Array, "*b"],
) -> Float[Array, "*b h w"]:
  """Inverts the gray levels from `threshold` up (x -> 1 - x) where `apply`."""
  return jnp.where(apply[..., None, None] & (x >= threshold), 1.0 - x, x)

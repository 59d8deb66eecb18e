"""Branch-free intensity augmentations: a factor of 1 or a sigma of 0 leaves an image unchanged."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cxrjax.views import resample


def jitter(
  x: Float[Array, "*b h w"],
  brightness: Float[Array, "*b"],
  contrast: Float[Array, "*b"],
  brightness_first: Bool[Array, "*b"],
) -> Float[Array, "*b h w"]:
  """Brightness and contrast like torchvision's `ColorJitter`, for gray images in 0..1.

  Brightness multiplies; contrast scales the distance to the current mean of the image. Each clips
  to 0..1 before the next is applied. Factors of 1 leave the image unchanged.

  Args:
    x: images in 0..1.
    brightness: factor, at least 0.
    contrast: factor, at least 0.
    brightness_first: order of the two.
  """
  b, c, first = (a[..., None, None] for a in (brightness, contrast, brightness_first))
  # Brightness, contrast, brightness, with one brightness 1: a single mean serves both orders.
  x = jnp.clip(jnp.where(first, b, 1.0) * x, 0.0, 1.0)
  mean = jnp.mean(x, axis=(-2, -1), keepdims=True)
  x = jnp.clip(c * x + (1.0 - c) * mean, 0.0, 1.0)
  return jnp.clip(jnp.where(first, 1.0, b) * x, 0.0, 1.0)


def blur(x: Float[Array, "*b n n"], sigma: Float[Array, "*b"]) -> Float[Array, "*b n n"]:
  """Gaussian blur of square images; `sigma` in pixels, 0 leaves the image unchanged."""
  matrix = resample.blur_matrix(sigma, x.shape[-1])
  x = resample.product("...oh,...hw->...ow", matrix, x)
  return resample.product("...ow,...pw->...op", x, matrix)


def solarize(
  x: Float[Array, "*b h w"], threshold: float, apply: Bool[Array, "*b"]
) -> Float[Array, "*b h w"]:
  """Inverts the gray levels from `threshold` up (x -> 1 - x) where `apply`; x in 0..1."""
  return jnp.where(apply[..., None, None] & (x >= threshold), 1.0 - x, x)

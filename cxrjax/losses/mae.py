"""Loss of masked autoencoders: squared error of the pixels of hidden patches.

References:
  He et al., Masked autoencoders are scalable vision learners, 2021 (arXiv 2111.06377), section 3.
"""

from __future__ import annotations

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float


def patches(images: Float[Array, "b h w c"], size: int) -> Float[Array, "b n p"]:
  """Splits images into patches of `size` x `size` pixels; patches and their pixels row by row."""
  return rearrange(images, "b (rows i) (cols j) c -> b (rows cols) (i j c)", i=size, j=size)


def normalised(target: Float[Array, "b n p"]) -> Float[Array, "b n p"]:
  """Normalises each patch to mean 0 and (unbiased) variance 1, the paper's better target."""
  variance = target.var(-1, ddof=1, keepdims=True)
  return (target - target.mean(-1, keepdims=True)) / jnp.sqrt(variance + 1e-6)


def masked_mse(
  prediction: Float[Array, "b n p"], target: Float[Array, "b n p"], mask: Bool[Array, "b n"]
) -> Float[Array, ""]:
  """Mean squared pixel error over all hidden patches (`mask`)."""
  error = jnp.square(prediction - target).mean(-1)
  return (error * mask).sum() / mask.sum()

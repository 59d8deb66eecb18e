"""Reconstruction losses: the error of corrupted pixels only.

The mean is over the corrupted pixels of all images, so that a pixel has the same weight in every
image; with gradient accumulation, over those of a microbatch.

References:
  Atito et al., GMML is All you Need, 2022 (arXiv 2205.14986): absolute errors.
  Atito et al., MC-SSL0.0: Towards Multi-Concept Self-Supervised Learning, 2021 (arXiv 2111.15340):
  squared ones.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def l1(
  prediction: Float[Array, "n h w c"], target: Float[Array, "n h w c"], mask: Bool[Array, "n h w 1"]
) -> Float[Array, ""]:
  """Mean of `|prediction - target|` where the mask is True; 0 where it never is."""
  return _mean(jnp.abs(prediction - target), mask)


def mse(
  prediction: Float[Array, "n h w c"], target: Float[Array, "n h w c"], mask: Bool[Array, "n h w 1"]
) -> Float[Array, ""]:
  """Mean of `(prediction - target)^2` where the mask is True; 0 where it never is."""
  return _mean(jnp.square(prediction - target), mask)


def _mean(error: Float[Array, "n h w c"], mask: Bool[Array, "n h w 1"]) -> Float[Array, ""]:
  # Summed per image first: one float32 sum over 10^7 pixels would lose digits.
  total = (error.astype(jnp.float32) * mask).sum((1, 2, 3)).sum()
  count = mask.sum((1, 2, 3)).astype(jnp.float32).sum() * error.shape[-1]
  return total / jnp.maximum(count, 1)

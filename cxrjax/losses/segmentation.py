"""Losses of binary masks: soft Dice and cross-entropy.

References:
  Milletari et al., V-Net, 2016 (arXiv 1606.04797), section 3: the Dice overlap as a loss; as here,
  without the squares in its denominator, Drozdzal et al. 2016 (arXiv 1608.04117), equation 3.
  Isensee et al., nnU-Net, 2018 (arXiv 1809.10486): the sum of both.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

SMOOTH = 1.0  # in pixels; gives an empty prediction for an image without lungs an overlap of 1


def soft_dice(logits: Float[Array, "n h w 1"], target: Bool[Array, "n h w 1"]) -> Float[Array, "n"]:
  """1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1) of each image, p = sigmoid(logits); 0..1."""
  p, t = jax.nn.sigmoid(logits), target.astype(logits.dtype)
  overlap, total = (p * t).sum((1, 2, 3)), (p + t).sum((1, 2, 3))
  return 1 - (2 * overlap + SMOOTH) / (total + SMOOTH)


def cross_entropy(
  logits: Float[Array, "n h w 1"], target: Bool[Array, "n h w 1"]
) -> Float[Array, "n"]:
  """-t log(p) - (1 - t) log(1 - p), mean over each image's pixels; in nats."""
  t = target.astype(logits.dtype)
  return (jax.nn.softplus(logits) - t * logits).mean((1, 2, 3))


def weighted_mean(values: Float[Array, "n"], weights: Float[Array, "n"]) -> Float[Array, ""]:
  """sum(w v) / sum(w): images of weight 0 are ignored; 0 if there are no others."""
  return (weights * values).sum() / jnp.maximum(weights.sum(), 1e-6)

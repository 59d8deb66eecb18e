"""Measures that distinguish a healthy representation from a collapsed one."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def entropy(probabilities: Float[Array, "*n K"]) -> Float[Array, "*n"]:
  """Shannon entropy in nats; `ln K` for a uniform distribution, 0 for a one-hot one."""
  p = probabilities.astype(jnp.float32)
  return -(p * jnp.log(jnp.maximum(p, 1e-30))).sum(-1)


def spread(features: Float[Array, "n d"]) -> Float[Array, ""]:
  """Mean standard deviation of the unit-length features' dimensions, times `sqrt(d)`.

  1 if features point in all directions, 0 if all images have the same features.

  References:
    Chen and He, Exploring Simple Siamese Representation Learning, 2020 (arXiv 2011.10566),
    section 4.1.
  """
  unit = _normalise(features)
  return unit.std(0).mean() * jnp.sqrt(features.shape[-1])


def participation_ratio(features: Float[Array, "n d"]) -> Float[Array, ""]:
  """Effective rank of the features' covariance, `(tr C)^2 / tr(C^2)`; from 1 to min(n - 1, d).

  Computed from the Gram matrix of the batch: one small product, no decomposition.
  """
  centred = features.astype(jnp.float32) - features.astype(jnp.float32).mean(0)
  gram = centred @ centred.T
  return jnp.trace(gram) ** 2 / jnp.maximum((gram**2).sum(), 1e-12)


def _normalise(features: Float[Array, "n d"]) -> Float[Array, "n d"]:
  features = features.astype(jnp.float32)
  norm = jnp.sqrt((features**2).sum(-1, keepdims=True))
  return features / jnp.maximum(norm, 1e-12)

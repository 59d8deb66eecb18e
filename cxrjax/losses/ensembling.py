"""Soft targets that combine the predictions for similar images of a batch.

References:
  Ge et al., Self-distillation with Batch Knowledge Ensembling, 2021 (arXiv 2104.13298), section 3.
  Li et al., Boosting Automatic COVID-19 Detection Performance with Self-Supervised Learning and
  Batch Knowledge Ensembling, 2022 (arXiv 2212.09281).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy
from jaxtyping import Array, Float

from cxrjax.losses.contrastive import unit


def affinity(features: Float[Array, "n d"], temperature: float = 1.0) -> Float[Array, "n n"]:
  """`A_ij = exp(cos(f_i, f_j) / temperature)` for `j != i` and 0 for `j = i`; rows sum to 1.

  Args:
    features: of at least two images.
    temperature: 1 in the paper; at lower values fewer images count.
  """
  f = unit(features)
  cosine = f @ f.T / temperature
  return jax.nn.softmax(jnp.where(jnp.eye(len(f), dtype=bool), -jnp.inf, cosine), axis=1)


def propagate(
  affinity: Float[Array, "n n"], p: Float[Array, "n k"], omega: float
) -> Float[Array, "n k"]:
  """`Q = (1 - w) (I - w A)^-1 P`, the limit of `Q <- w A Q + (1 - w) P` (equations 5 to 7).

  Args:
    affinity: rows sum to 1.
    p: probabilities of classes, or of findings.
    omega: w, the weight of other images, from 0 to below 1.
  """
  eye = jnp.eye(len(affinity), dtype=affinity.dtype)
  return (1 - omega) * jnp.linalg.solve(eye - omega * affinity, p)


def softmax_kl(target: Float[Array, "n k"], logits: Float[Array, "n k"]) -> Float[Array, ""]:
  """Mean `KL(target || softmax(logits))` over images; `target` is a constant."""
  target = jax.lax.stop_gradient(target)
  return (xlogy(target, target) - target * jax.nn.log_softmax(logits)).sum(1).mean()


def sigmoid_kl(target: Float[Array, "n k"], logits: Float[Array, "n k"]) -> Float[Array, ""]:
  """Mean `KL(target || sigmoid(logits))` over images and findings; `target` is a constant."""
  q = jax.lax.stop_gradient(target)
  present = xlogy(q, q) + q * jax.nn.softplus(-logits)
  absent = xlogy(1 - q, 1 - q) + (1 - q) * jax.nn.softplus(logits)
  return (present + absent).mean()

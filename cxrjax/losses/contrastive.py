"""Contrastive losses: distinguish a view from the views of all other images.

Means are over all rows passed in, the global batch; in training with accumulation that is one
microbatch, which then also has fewer negatives. All cosines and softmaxes are in float32.

Each loss comes with an accuracy, the share of rows whose positive is the nearest of all candidates,
which has no gradient.

References:
  van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018
  (arXiv 1807.03748), equation 4: InfoNCE.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Result = tuple[Float[Array, ""], Float[Array, ""]]


def unit(x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
  """Scales rows to length 1, in float32; rows of zeros stay zero."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24))


def nt_xent(first: Float[Array, "b d"], second: Float[Array, "b d"], temperature: float) -> Result:
  """SimCLR's loss and accuracy of picking the same image's view among 2b - 1 other views.

  Mean over all 2b views of `-log exp(s_ij / tau) / sum_{k != i} exp(s_ik / tau)`, where j is the
  other view of i's image and s the cosine.

  Args:
    first: projections of one view of every image.
    second: of another view of the same images.
    temperature: tau.

  References:
    Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020
    (arXiv 2002.05709), equation 1 and Algorithm 1.
  """
  # An image's views are adjacent, so that rows split over devices stay where they are.
  z = jnp.stack([unit(first), unit(second)], axis=1).reshape(-1, first.shape[1])
  row = jnp.arange(z.shape[0])
  logits = jnp.where(row[:, None] == row, -jnp.inf, _cosines(z, z) / temperature)
  return _cross_entropy(logits, row ^ 1)


def info_nce(query: Float[Array, "b d"], key: Float[Array, "b d"], temperature: float) -> Result:
  """Loss and accuracy of finding a query's image among the batch's keys, which are constants.

  Mean over i of `-log exp(q_i k_i / tau) / sum_j exp(q_i k_j / tau)`, of unit vectors.

  References:
    Chen et al., An Empirical Study of Training Self-Supervised Vision Transformers (MoCo v3), 2021
    (arXiv 2104.02057), equation 1 and Algorithm 1. There it is multiplied by 2 tau.
  """
  logits = _cosines(unit(query), unit(jax.lax.stop_gradient(key))) / temperature
  return _cross_entropy(logits, jnp.arange(query.shape[0]))


def info_nce_queue(
  query: Float[Array, "b d"],
  key: Float[Array, "b d"],
  queue: Float[Array, "K d"],
  temperature: float,
  left_out: Bool[Array, "b K"] | None = None,
) -> Result:
  """Loss and accuracy of finding a query's own key among it and a queue of earlier keys.

  Mean over i of `-log exp(q_i k_i / tau) / (exp(q_i k_i / tau) + sum_j exp(q_i u_j / tau))`; keys
  and queue are constants.

  Args:
    query: projections of one view.
    key: the moving average network's projections of another view.
    queue: earlier keys u.
    temperature: tau.
    left_out: entries of the queue that are not negatives of a query.

  References:
    He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2019
    (arXiv 1911.05722), equation 1 and Algorithm 1.
  """
  query, key, queue = (unit(x) for x in (query, *jax.lax.stop_gradient((key, queue))))
  negative = _cosines(query, queue)
  if left_out is not None:
    negative = jnp.where(left_out, -jnp.inf, negative)
  logits = jnp.concatenate([(query * key).sum(-1, keepdims=True), negative], axis=1) / temperature
  return _cross_entropy(logits, jnp.zeros(query.shape[0], jnp.int32))


def _cosines(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
  # Division by a temperature of 0.1 or less would make the rounding of TF32 visible.
  return jnp.einsum("nd,md->nm", a, b, precision=jax.lax.Precision.HIGHEST)


def _cross_entropy(logits: Float[Array, "n m"], target: Int[Array, "n"]) -> Result:
  positive = jnp.take_along_axis(logits, target[:, None], axis=1)[:, 0]
  is_match = logits.argmax(axis=1) == target
  return (jax.nn.logsumexp(logits, axis=1) - positive).mean(), is_match.mean(dtype=jnp.float32)

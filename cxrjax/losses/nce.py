"""Noise-contrastive estimation against a memory bank: same-image pairs versus noise.

Each loss comes with an accuracy, the share of rows whose positive is the nearest of all candidates,
which has no gradient. All cosines, exponentials and means are in float32.

References:
  Gutmann and Hyvarinen, Noise-contrastive estimation, AISTATS 2010.
  Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, 2018
  (arXiv 1805.01978), section 3.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cxrjax.losses.contrastive import unit

Result = tuple[Float[Array, ""], Float[Array, ""]]


def nce(
  query: Float[Array, "b d"],
  positive: Float[Array, "b d"],
  negatives: Float[Array, "K d"],
  temperature: float,
  left_out: Bool[Array, "b K"] | None = None,
) -> Result:
  """Loss and accuracy of distinguishing a query's memory from those of other images.

  With cosines `s`, `e(x) = exp(s(q, x) / tau)` and `C = sum_j e(n_j)` over the negatives `n`, the
  probability that a pair is of the same image is `h(x) = e(x) / (e(x) + C)`, and the loss

      -log h(p) - sum_j log(1 - h(n_j)),

  mean over the rows. Memories are constants. The authors' code replaces C by a constant, K times
  the mean of `e` over the first batch.

  Args:
    query: embeddings of the batch, of any length.
    positive: memory of each query.
    negatives: memories of other images.
    temperature: tau.
    left_out: entries of `negatives` that are not negatives of a query; at least one must remain.

  References:
    Misra and van der Maaten, Self-Supervised Learning of Pretext-Invariant Representations, 2019
    (arXiv 1912.01991), equations 3 and 4.
  """
  query, positive, negatives = (
    unit(x) for x in (query, *jax.lax.stop_gradient((positive, negatives)))
  )
  # Division by a temperature of 0.1 or less would make the rounding of TF32 visible.
  positive_logits = (query * positive).sum(-1) / temperature
  negative_logits = (
    jnp.einsum("bd,kd->bk", query, negatives, precision=jax.lax.Precision.HIGHEST) / temperature
  )
  if left_out is not None:
    negative_logits = jnp.where(left_out, -jnp.inf, negative_logits)
  log_c = jax.nn.logsumexp(negative_logits, axis=1)
  # -log h = log(1 + C / e) and -log(1 - h) = log(1 + e / C): neither can overflow.
  negative_loss = jax.nn.softplus(negative_logits - log_c[:, None]).sum(1)
  loss = (jax.nn.softplus(log_c - positive_logits) + negative_loss).mean()
  return loss, (positive_logits > negative_logits.max(1)).mean(dtype=jnp.float32)

"""Classification losses for labels that may be unknown."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def softmax(
  logits: Float[Array, "n k"],
  labels: Float[Array, "n k"],
  weights: Float[Array, "k"],
  smoothing: float = 0.0,
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
  """Cross-entropy of mutually exclusive classes.

  Args:
    logits: scores of the classes.
    labels: one-hot, or shares that sum to 1 (mixed images); a row with NaN is unknown.
    weights: of the classes; an image's weight is the mean of these, weighted by its shares.
    smoothing: share of every label that is spread over all classes (Szegedy et al. 2016, arXiv
      1512.00567, section 7).

  Returns:
    The weighted loss of every image, and 1 where its class is known, else 0.
  """
  known = ~jnp.isnan(labels).any(1)
  labels = jnp.where(known[:, None], labels, 0.0)
  smooth = labels * (1 - smoothing) + smoothing / labels.shape[1]
  loss = -(smooth * jax.nn.log_softmax(logits)).sum(1) * (labels @ weights)
  return jnp.where(known, loss, 0.0), known.astype(jnp.float32)


def sigmoid(
  logits: Float[Array, "n k"],
  labels: Float[Array, "n k"],
  weights: Float[Array, "k 2"],
  smoothing: float = 0.0,
) -> tuple[Float[Array, "n k"], Float[Array, "n k"]]:
  """Binary cross-entropy of findings, any number per image; unknown ones do not count.

  Args:
    logits: scores of the findings.
    labels: 1 present, 0 absent, in between for mixed images, NaN unknown.
    weights: of each finding if absent and if present.
    smoothing: labels become `(1 - smoothing) label + smoothing / 2`.

  Returns:
    The loss of every image's findings, and 1 where a finding is known, else 0.
  """
  known = ~jnp.isnan(labels)
  labels = jnp.where(known, labels, 0.0)
  smooth = labels * (1 - smoothing) + smoothing / 2
  absent = (1 - smooth) * jax.nn.softplus(logits) * weights[:, 0]
  present = smooth * jax.nn.softplus(-logits) * weights[:, 1]
  return jnp.where(known, absent + present, 0.0), known.astype(jnp.float32)


def mean_of_known(loss: Float[Array, "*shape"], known: Float[Array, "*shape"]) -> Float[Array, ""]:
  """Mean over known labels; 0 if there are none."""
  return loss.sum() / jnp.maximum(known.sum(), 1.0)

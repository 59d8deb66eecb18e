"""DINO's cross-entropy between a centred, sharpened teacher and a student.

References:
  Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021 (arXiv 2104.14294).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def teacher_probabilities(
  logits: Float[Array, "*n K"], center: Float[Array, "K"], temperature: Float[Array, ""] | float
) -> Float[Array, "*n K"]:
  """`softmax((g_t - c) / tau_t)` in float32, without a gradient (section 3.1, Algorithm 1)."""
  logits = jax.lax.stop_gradient(logits).astype(jnp.float32)
  return jax.nn.softmax((logits - center) / temperature, axis=-1)


def cross_entropy(
  student: Float[Array, "b v K"], teacher: Float[Array, "b t K"], temperature: float
) -> Float[Array, ""]:
  """Mean of `-sum P_t log P_s` over pairs of teacher and student views (equation 3).

  Pairs of the same crop, teacher view `i` and student view `i`, are left out.

  The sum over student views is taken on logits before the product with the teacher, since
  `sum_s log P_s = sum_s z_s - sum_s logsumexp(z_s)`: two passes over the student's logits instead
  of one for every pair, and no array of log-probabilities.

  Args:
    student: logits of all views, the teacher's views first.
    teacher: probabilities.
    temperature: of the student, 0.1 in the paper.
  """
  batch, views, _ = student.shape
  num_global = teacher.shape[1]
  logits = student.astype(jnp.float32) / temperature
  normaliser = jax.nn.logsumexp(logits, axis=-1)
  others = logits.sum(1, keepdims=True) - logits[:, :num_global]
  others_normaliser = normaliser.sum(1, keepdims=True) - normaliser[:, :num_global]
  total = (others_normaliser - (teacher * others).sum(-1)).sum()
  return total / (num_global * (views - 1) * batch)


def update_center(
  center: Float[Array, "K"], logits: Float[Array, "b t K"], momentum: float
) -> Float[Array, "K"]:
  """`c <- m c + (1 - m) mean(g_t)` over all teacher views of the global batch (equation 4)."""
  mean = jax.lax.stop_gradient(logits).astype(jnp.float32).mean((0, 1))
  return momentum * center + (1 - momentum) * mean

"""iBOT's loss: predict the teacher's prototype assignments of masked patches.

References:
  Zhou et al., iBOT: Image BERT Pre-Training with Online Tokenizer, 2021 (arXiv 2111.07832),
  equation 2.
  Oquab et al., DINOv2, 2023 (arXiv 2304.07193), section 4 and its training code.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def patch_weights(mask: Bool[Array, "*crops n"]) -> Float[Array, "*crops n"]:
  """Weights of masked patches, 1 / (masked patches of the crop) / crops; 0 for other patches.

  Crops without a masked patch count as crops, as in the papers' code: if half of them are masked,
  all weights sum to a half.
  """
  masked = mask.sum(-1, keepdims=True)
  crops = mask.size // mask.shape[-1]
  return mask / (jnp.maximum(masked, 1) * crops).astype(jnp.float32)


def cross_entropy(
  student: Float[Array, "n K"],
  teacher: Float[Array, "n K"],
  weights: Float[Array, "n"],
  temperature: float,
) -> Float[Array, ""]:
  """`-sum_i w_i sum_k P_t log P_s` over patches.

  Args:
    student: logits of the patches that are hidden from it.
    teacher: probabilities of the same patches, which it sees.
    weights: from `patch_weights`.
    temperature: of the student, 0.1 in the papers.
  """
  logits = student.astype(jnp.float32) / temperature
  patch_losses = jax.nn.logsumexp(logits, axis=-1) - (teacher * logits).sum(-1)
  return (weights * patch_losses).sum()


def update_center(
  center: Float[Array, "K"], logits: Float[Array, "n K"], valid: Bool[Array, "n"], momentum: float
) -> Float[Array, "K"]:
  """`c <- m c + (1 - m) mean(g_t)` over the masked patches of the global batch; without any, `c`.

  As in DINOv2; iBOT takes the mean over all patches (equation 4).
  """
  logits = jax.lax.stop_gradient(logits).astype(jnp.float32)
  count = valid.sum()
  mean = jnp.where(valid[:, None], logits, 0.0).sum(0) / jnp.maximum(count, 1)
  return jnp.where(count > 0, momentum * center + (1 - momentum) * mean, center)

"""Sinkhorn-Knopp: balanced assignments that use all prototypes equally.

References:
  Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments (SwAV),
  2020 (arXiv 2006.09882), equations 3 and 5.
  Oquab et al., DINOv2, 2023 (arXiv 2304.07193), section 4: instead of DINO's centre.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def sinkhorn_knopp(
  logits: Float[Array, "n K"],
  temperature: Float[Array, ""] | float,
  iterations: int = 3,
  valid: Bool[Array, "n"] | None = None,
) -> Float[Array, "n K"]:
  """The teacher's probabilities, without a gradient.

  The columns (prototypes) and then the rows (samples) of `exp(logits / tau)` are scaled to equal
  sums, `iterations` times; with many, every prototype gets `n / K` of the samples. The papers
  rescale the matrix; scaling a column by `exp(-c)` equals subtracting `c` from its logits, so this
  is DINO's softmax with a centre computed from the batch alone, and in logarithms no temperature is
  too small.

  All rows must be present: sums run over the global batch (with accumulation: the microbatch).

  Args:
    logits: of all samples.
    temperature: tau; also SwAV's epsilon.
    iterations: 3 in the papers; 0 is a plain softmax.
    valid: samples that count; by default all. The others are assigned, too, but have no influence.
  """
  scaled = jax.lax.stop_gradient(logits).astype(jnp.float32) / temperature
  counted = None if valid is None else valid[:, None]
  rows = jnp.zeros((scaled.shape[0], 1), jnp.float32)
  center = jnp.zeros((1, scaled.shape[1]), jnp.float32)
  for _ in range(iterations):
    center = jax.nn.logsumexp(scaled - rows, axis=0, keepdims=True, where=counted)
    center = jnp.where(jnp.isfinite(center), center, 0.0)  # no sample is valid
    rows = jax.nn.logsumexp(scaled - center, axis=1, keepdims=True)
  return jax.nn.softmax(scaled - center, axis=-1)

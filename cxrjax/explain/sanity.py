"""Sanity checks: whether an explanation map depends on the learned weights.

References:
  Adebayo et al., Sanity Checks for Saliency Maps, 2018 (arXiv 1810.03292): maps of a network with
  random weights should not resemble those of the trained one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Array, Float, Float64, Key

from cxrjax.explain.maps import Head


def random_head(head: Head, key: Key[Array, ""]) -> Head:
  """A head of the same shape with weights N(0, 1 / d)."""
  d, _ = head.kernel.shape
  kernel = jax.random.normal(key, head.kernel.shape) / np.sqrt(d)
  return Head(kernel, jnp.zeros_like(head.bias))


def correlations(
  a: Float[np.ndarray, "n gh gw"], b: Float[np.ndarray, "n gh gw"]
) -> Float64[np.ndarray, "n"]:
  """Spearman correlation between two maps of each image; NaN where either map is flat."""
  rho = np.full(len(a), np.nan)
  for i, (x, y) in enumerate(zip(a.reshape(len(a), -1), b.reshape(len(b), -1), strict=True)):
    x, y = scipy.stats.rankdata(x), scipy.stats.rankdata(y)
    if np.ptp(x) and np.ptp(y):
      rho[i] = np.corrcoef(x, y)[0, 1]
  return rho

"""Consistency losses between two predictions for the same images."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float


def squared_difference(p: Float[Array, "n k"], target: Float[Array, "n k"]) -> Float[Array, ""]:
  """Mean squared difference of probabilities, over images and classes; `target` is a constant.

  References:
    Tarvainen and Valpola, Mean teachers are better role models, 2017 (arXiv 1703.01780),
    section 2: the consistency cost J.
  """
  return ((p - jax.lax.stop_gradient(target)) ** 2).mean()

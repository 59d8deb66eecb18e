"""Cosine losses of predictive methods: align a network's predictions with targets.

Targets are constants. Means are over all rows passed in, the global batch (with accumulation: the
microbatch), and all cosines are in float32.
"""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

from cxrjax.losses.contrastive import unit


def similarity(prediction: Float[Array, "b d"], target: Float[Array, "b d"]) -> Float[Array, ""]:
  """Mean cosine of rows, from -1 to 1; no gradient reaches `target`.

  SimSiam minimises its negative, averaged over both directions.

  References:
    Chen and He, Exploring Simple Siamese Representation Learning, 2020 (arXiv 2011.10566),
    equations 1 and 3.
  """
  return (unit(prediction) * unit(jax.lax.stop_gradient(target))).sum(-1).mean()


def distance(prediction: Float[Array, "b d"], target: Float[Array, "b d"]) -> Float[Array, ""]:
  """Mean squared distance of unit vectors, `2 - 2 cos`, from 0 to 4; `target` is a constant.

  References:
    Grill et al., Bootstrap Your Own Latent, 2020 (arXiv 2006.07733), equation 2.
  """
  return 2 - 2 * similarity(prediction, target)

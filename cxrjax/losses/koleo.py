"""KoLeo: spreads features evenly by maximising distances to nearest neighbours.

References:
  Sablayrolles et al., Spreading Vectors for Similarity Search, 2018 (arXiv 1806.03198), equation 2.
  Oquab et al., DINOv2, 2023 (arXiv 2304.07193), section 4.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cxrjax.core.errors import UserError

EPSILON = 1e-8  # smallest distance that is distinguished


def koleo(features: Float[Array, "n d"]) -> Float[Array, ""]:
  """`-mean_i log min_j |x_i - x_j|` of the unit-length features.

  The negated Kozachenko-Leonenko estimate of differential entropy, up to constants. Both features
  of a pair have a gradient. Neighbours are searched in the global batch (with accumulation: the
  microbatch); DINOv2's code searches among one device's images.

  Args:
    features: of one view per image; two views of an image would be each other's neighbours.

  Raises:
    UserError: fewer than two images.
  """
  n = features.shape[0]
  if n < 2:
    raise UserError(
      "KoLeo compares the images of a batch, and there is one; raise config.batch_size, lower "
      "config.accumulate, or set config.method.koleo_weight=0"
    )
  x = features.astype(jnp.float32)
  x = x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), EPSILON**2))
  # Full precision, as distances are differences of nearly equal numbers.
  exact = jax.lax.Precision.HIGHEST
  cosines = jax.lax.stop_gradient(jnp.matmul(x, x.T, precision=exact))
  nearest = jnp.argmax(jnp.where(jnp.eye(n, dtype=bool), -2.0, cosines), axis=1)
  # A product, not a lookup, so that its gradient sums images in the same order on every backend.
  neighbour = jnp.matmul(jax.nn.one_hot(nearest, n, dtype=jnp.float32), x, precision=exact)
  squared = ((x - neighbour) ** 2).sum(-1)
  return -0.5 * jnp.log(squared + EPSILON**2).mean()

"""Mixed images with mixed labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def mixup(
  keys: Key[Array, "n"], images: Float[Array, "n h w c"], labels: Float[Array, "n k"], alpha: float
) -> tuple[Float[Array, "n h w c"], Float[Array, "n k"]]:
  """Every image mixed with another of the batch, and its labels in the same proportion.

  The partner of image i is image n-1-i; the larger share is the image's own, which leaves the
  distribution of pairs as it is. A label that one of the two does not know is unknown.

  Args:
    keys: one for each image.
    images: of any range.
    labels: 1, 0 or NaN.
    alpha: shares are drawn from Beta(alpha, alpha), above 0.

  References:
    Zhang et al., mixup, 2017 (arXiv 1710.09412), equation 1.
  """
  share = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)
  share = jnp.maximum(share, 1 - share).astype(images.dtype)
  x = share[:, None, None, None]
  y = share[:, None].astype(labels.dtype)
  return x * images + (1 - x) * images[::-1], y * labels + (1 - y) * labels[::-1]

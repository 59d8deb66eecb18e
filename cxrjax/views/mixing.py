"""Mixup: mixed images with mixed labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def mixup(
  keys: Key[Array, "n"], images: Float[Array, "n h w c"], labels: Float[Array, "n k"], alpha: float
) -> tuple[Float[Array, "n h w c"], Float[Array, "n k"]]:
  """Mixes every image with another of the batch, and its labels in the same proportion.

  The partner of image i is image n-1-i; the larger share is the image's own, which does not change
  the distribution of pairs. A label that is unknown for one of the two is unknown.

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
  image_share = share[:, None, None, None]
  label_share = share[:, None].astype(labels.dtype)
  mixed_images = image_share * images + (1 - image_share) * images[::-1]
  mixed_labels = label_share * labels + (1 - label_share) * labels[::-1]
  return mixed_images, mixed_labels

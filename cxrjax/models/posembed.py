"""Position embeddings that fit any number of patches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def resample(
    grid: Float[Array, "n d"], old: tuple[int, int], new: tuple[int, int]) -> Float[Array, "m d"]:
  """A learnt grid of position embeddings, row by row, bicubically resampled to another grid.

  The number of patches decides, not a rounded scale factor, so that any image size works.

  Args:
    grid: n = old[0] * old[1] embeddings.
    old: rows and columns they were learnt at.
    new: rows and columns wanted.
  """
  if old == new:
    return grid
  dim = grid.shape[-1]
  square = grid.reshape(*old, dim)
  resized = jax.image.resize(square, (*new, dim), "cubic", antialias=False)
  return resized.reshape(new[0] * new[1], dim).astype(jnp.float32)

"""Position embeddings that fit any number of patches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
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


def sincos(grid: tuple[int, int], dim: int) -> Float[Array, "n d"]:
  """Fixed embeddings of the patches of a grid, row by row: sines and cosines of both coordinates.

  A quarter of the features each are sin and cos of the column and sin and cos of the row, at
  frequencies from 1 to 1/10000 radians a patch (He et al. 2021, arXiv:2111.06377, after Vaswani et
  al. 2017, arXiv:1706.03762, section 3.5).

  Args:
    grid: rows and columns.
    dim: features, a multiple of 4.
  """
  if dim % 4:
    raise ValueError(f"dim={dim} must be a multiple of 4")
  frequency = 10000.0 ** (-np.arange(dim // 4) / (dim // 4))
  rows, columns = np.indices(grid).reshape(2, -1, 1) * frequency
  parts = np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)
  return jnp.asarray(np.concatenate(parts, axis=1), jnp.float32)

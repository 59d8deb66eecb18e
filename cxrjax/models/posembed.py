"""Position embeddings for any number of patches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# How positions are resampled to another number of patches:
#   dino: Keys' cubic of a = -0.75 on a scale of (new + 0.1) / old, edges repeated (DINO, iBOT, and
#     DINOv2 without registers, in training on small crops as well);
#   torch: the same on a scale of new / old (MAE, transformers);
#   timm: a = -0.5, widened where the grid shrinks, edges left out (timm, DINOv2 with registers);
#   big_vision: linear, from the first to the last patch.
INTERPOLATIONS = ("dino", "torch", "timm", "big_vision")


def resample(
  grid: Float[Array, "n d"], old: tuple[int, int], new: tuple[int, int], interpolation: str = "dino"
) -> Float[Array, "m d"]:
  """Resamples a learned grid of position embeddings, row by row, to another grid.

  Args:
    grid: n = old[0] * old[1] embeddings.
    old: rows and columns that they were learned for.
    new: rows and columns of the result.
    interpolation: one of `INTERPOLATIONS`.
  """
  if old == new:
    return grid
  rows, columns = (
    jnp.asarray(weights(o, n, interpolation), jnp.float32) for o, n in zip(old, new, strict=True)
  )
  old_grid = grid.astype(jnp.float32).reshape(*old, -1)
  resampled = jnp.einsum(
    "yr,xc,rcd->yxd", rows, columns, old_grid, precision=jax.lax.Precision.HIGHEST
  )
  return resampled.reshape(new[0] * new[1], -1)


def weights(old: int, new: int, interpolation: str) -> Float[np.ndarray, "new old"]:
  """Interpolation weights of the old positions for each new one along one axis.

  References: Keys 1981, IEEE Trans. Acoust. Speech Signal Process. 29:1153, equation 4, with the
  constant -1/2 that he derives or torch's -3/4.
  """
  positions = np.arange(new)
  if interpolation == "big_vision":
    location = positions * (old - 1) / max(new - 1, 1)
    return np.maximum(1 - np.abs(location[:, None] - np.arange(old)), 0.0)
  scale = (new + 0.1 * (interpolation == "dino")) / old
  center = ((positions + 0.5) / scale - 0.5)[:, None]
  if interpolation == "timm":
    share = _keys((np.arange(old) - center) * min(scale, 1.0), -0.5)
    return share / share.sum(1, keepdims=True)
  neighbors = np.floor(center).astype(int) + np.arange(-1, 3)
  matrix = np.zeros((new, old))
  np.add.at(
    matrix, (positions[:, None], np.clip(neighbors, 0, old - 1)), _keys(neighbors - center, -0.75)
  )
  return matrix


def _keys(x: Float[np.ndarray, "..."], a: float) -> Float[np.ndarray, "..."]:
  """Keys' cubic kernel."""
  x = np.abs(x)
  near = ((a + 2) * x - (a + 3)) * x**2 + 1
  return np.where(x <= 1, near, np.where(x < 2, a * (((x - 5) * x + 8) * x - 4), 0.0))


def sincos(grid: tuple[int, int], dim: int) -> Float[Array, "n d"]:
  """Fixed sine and cosine embeddings of the patches of a grid, row by row.

  Sine and cosine of the column and sine and cosine of the row take a quarter of the features each,
  at frequencies from 1 to 1/10000 radians per patch (He et al. 2021, arXiv:2111.06377, after
  Vaswani et al. 2017, arXiv:1706.03762, section 3.5).

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

"""Occlusion sensitivity: the drop of a score when part of the image is hidden."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Score = Callable[[Float[Array, "n d"]], Float[Array, "n"]]
WINDOWS = 8  # windows along a side of the image, without overlap


def occlusion(
  network: Any,
  params: Any,
  x: Float[Array, "n h w c"],
  score: Score,
  window: int | None = None,
  stride: int | None = None,
) -> Float[Array, "n gh gw"]:
  """The mean drop of a score over all windows that hide a location.

  A square of `window` pixels moves over the image in steps of `stride` and replaces what it covers
  by the image's mean. A cell of the map, of `stride` pixels, is the mean drop over all squares that
  cover it. The last squares end at the image's edge.

  Args:
    network: an encoder.
    params: its parameters.
    x: normalised images of one size.
    score: of the features.
    window: pixels; an eighth of the smaller side by default.
    stride: pixels, at most `window`; half the window by default.

  Returns:
    Values in the score's units; below 0 where hiding raises the score.

  Raises:
    ValueError: a stride that does not divide the window, or a window larger than the image.

  References:
    Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, 2014
    (arXiv 1311.2901), section 4.2.
  """
  _, h, w, _ = x.shape
  window = window or max(2, min(h, w) // WINDOWS)
  stride = stride or (window // 2 if window % 2 == 0 else window)
  if not 0 < stride <= window <= min(h, w) or window % stride:
    raise ValueError(
      f"window={window}, stride={stride}: the stride must divide the window, which "
      f"must fit into {h}x{w} pixels"
    )
  tops, lefts = (_starts(side, window, stride) for side in (h, w))
  corners = jnp.stack(jnp.meshgrid(tops, lefts, indexing="ij"), -1).reshape(-1, 2)
  fill = x.mean((1, 2), keepdims=True)

  def score_of(images: Float[Array, "n h w c"]) -> Float[Array, "n"]:
    return score(network.encode(params, images).cls)

  def hidden(corner: Array) -> Float[Array, "n h w c"]:
    return jnp.where(_covered(corner, window, (h, w))[..., None], fill, x)

  full_score = score_of(x)
  drops = jax.lax.map(lambda corner: full_score - score_of(hidden(corner)), corners)
  # The centre of a cell stands for all of it: windows cover whole cells, except at the edge.
  cells = [jnp.minimum(jnp.arange(0, side, stride) + stride // 2, side - 1) for side in (h, w)]
  covered = jax.vmap(lambda corner: _covered(corner, window, (h, w)))(corners)
  covered = covered[:, cells[0]][:, :, cells[1]].astype(jnp.float32)
  return jnp.einsum("cn,cyx->nyx", drops, covered) / covered.sum(0)


def _covered(corner: Array, window: int, size: tuple[int, int]) -> Bool[Array, "h w"]:
  """Pixels that the window at a corner covers."""
  (top, left), rows, columns = corner, jnp.arange(size[0])[:, None], jnp.arange(size[1])
  return (rows >= top) & (rows < top + window) & (columns >= left) & (columns < left + window)


def _starts(side: int, window: int, stride: int) -> Array:
  """First pixels of the windows along a side; the last window ends at the edge."""
  last = side - window
  starts = jnp.arange(0, last + 1, stride)
  return starts if last % stride == 0 else jnp.append(starts, last)

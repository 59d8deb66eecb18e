"""Masks of hidden patches: of exact size, with one key per image.

A mask is bool[b n] over the patches, row by row, True where a patch is hidden. It depends on the
image's key alone, so results do not depend on how a batch is split. Sizes are exact because arrays
have fixed shapes: `kept` turns masks of equal size into indices for `encode(keep=)`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num

ATTEMPTS = 40  # blocks drawn per mask, of which those that fit are used
ASPECT = (0.3, 1 / 0.3)  # range of a block's height / width
MIN_BLOCK = 4  # smallest area drawn for a block, in patches, unless fewer remain to be hidden


def random(keys: Key[Array, "b"], patches: int, count: int) -> Bool[Array, "b n"]:
  """`count` of `patches`, all sets equally likely (He et al. 2021, arXiv 2111.06377, section 3)."""
  return _rank(_uniform(keys, patches)) < count


def blocks(
  keys: Key[Array, "b"], grid: tuple[int, int], count: Int[Array, "b"] | int
) -> Bool[Array, "b n"]:
  """Block-wise masking: hides rectangles of patches until `count` are hidden.

  A rectangle's area is uniform between 4 patches and the number left to hide, its height / width
  log-uniform in 0.3 .. 3.3, its place uniform; it is used if it hides new patches and not more than
  are left. After 40 rectangles single patches make up the rest, so that `count` is exact.

  References:
    Bao et al., BEiT, 2021 (arXiv 2106.08254), algorithm 1; Zhou et al., iBOT, 2021
    (arXiv 2111.07832), which masks in this way.

  Args:
    keys: of the images.
    grid: rows and columns of patches.
    count: hidden patches of every image; may be 0.
  """
  rows, columns = grid
  down, right = jnp.arange(rows)[:, None], jnp.arange(columns)
  low, high = (math.log(a) for a in ASPECT)

  def block(i: Int[Array, ""], carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    hidden, count, numbers = carry
    area, aspect, top, left = numbers[i]
    remaining = count - hidden.sum()
    least = jnp.minimum(MIN_BLOCK, remaining)
    area, aspect = least + area * (remaining - least), jnp.exp(low + (high - low) * aspect)
    height, width = (
      jnp.round(jnp.sqrt(a)).astype(jnp.int32) for a in (area * aspect, area / aspect)
    )
    top, left = jnp.floor(top * (rows - height + 1)), jnp.floor(left * (columns - width + 1))
    inside = (down >= top) & (down < top + height) & (right >= left) & (right < left + width)
    num_new = (inside & ~hidden).sum()
    fits = (height <= rows) & (width <= columns) & (num_new > 0) & (num_new <= remaining)
    return jnp.where(fits, hidden | inside, hidden), count, numbers

  def draw(key: Key[Array, ""], count: Int[Array, ""]) -> tuple[Array, Array]:
    block_key, score_key = jax.random.split(key)
    start = jnp.zeros(grid, bool), count, jax.random.uniform(block_key, (ATTEMPTS, 4))
    hidden = jax.lax.fori_loop(0, ATTEMPTS, block, start)[0].reshape(-1)
    return hidden, jax.random.uniform(score_key, hidden.shape)

  count = jnp.broadcast_to(jnp.asarray(count, jnp.int32), keys.shape)
  hidden, scores = jax.vmap(draw)(keys, count)
  return _rank(scores - hidden) < count[:, None]


def guided(
  keys: Key[Array, "b"], region: Bool[Array, "b n"], count: int, share: float
) -> Bool[Array, "b n"]:
  """Hides `count` patches, inside a region until `share` of it is hidden, the rest outside.

  All sets of patches inside are equally likely, as are all sets outside. If the region has less
  than `count / share` patches, the rest of `count` is drawn outside; without a region, all of it.
  More than `share` is hidden only if there are too few patches outside.

  References:
    Li et al., RGMIM: region-guided masked image modeling, 2022 (arXiv 2211.00313): the idea.

  Args:
    keys: of the images.
    region: patches that belong to the region.
    count: patches to hide.
    share: of the region's patches, 0..1.
  """
  size = region.sum(axis=1, keepdims=True)
  most = jnp.round(share * size).astype(jnp.int32)
  outside = region.shape[1] - size
  # At most `count` inside, and at least as many as do not fit outside.
  num_inside = jnp.maximum(jnp.minimum(most, count), count - outside)
  rank = _rank(_uniform(keys, region.shape[1]) + ~region)
  return jnp.where(region, rank < num_inside, rank - size < count - num_inside)


def visible(mask: Bool[Array, "b n"], count: int) -> Int[Array, "b m"]:
  """The first `count` visible patches, ascending, for `encode(keep=)`."""
  return jnp.argsort(mask, axis=1, stable=True)[:, :count].astype(jnp.int32)


def coverage(
  masks: Num[Array, "b h w 1"] | Bool[Array, "b h w 1"], size: int
) -> Float[Array, "b n"]:
  """Share of each patch of `size` x `size` pixels that a mask (0 or 1) covers."""
  b, h, w, _ = masks.shape
  cells = masks.astype(jnp.float32).reshape(b, h // size, size, w // size, size)
  return cells.mean((2, 4)).reshape(b, -1)


def _uniform(keys: Key[Array, "b"], n: int) -> Float[Array, "b n"]:
  return jax.vmap(lambda key: jax.random.uniform(key, (n,)))(keys)


def _rank(values: Float[Array, "b n"]) -> Int[Array, "b n"]:
  """Number of lower values in the row; ties, which happen among floats, are ranked in order."""
  return jnp.argsort(jnp.argsort(values, axis=1, stable=True), axis=1, stable=True)

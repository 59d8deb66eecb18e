"""Attention of the class token over a radiograph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cxrjax.core.errors import UserError


def cls_attention(
    encode: Callable[..., Any], params: Any, x: Float[Array, "n h w c"], *,
    patch_size: int | None = None, batch: int = 8,
) -> Float[Array, "n heads gh gw"]:
  """How much the class token attends to each patch in the last block, head by head.

  Each map is a part of a softmax: it sums to one less what goes to the class token itself and to
  register tokens, which are left out.

  Args:
    encode: an encoder's `encode(params, x, taps=("attn",))`, whose tap "attn" is the last block's
      softmax f32[b heads n n] over class token, registers and patches, in this order.
    params: the encoder's parameters.
    x: normalised images of one size.
    patch_size: side of a patch in pixels. Without it the number of patches is taken from
      `Features.patches` and the grid has the image's shape.
    batch: images a dispatch; the softmax of one 224-pixel image and 6 heads takes 0.9 MB.

  Returns:
    Weights of patch (row, column) of the image.

  Raises:
    UserError: the encoder has no attention to show.

  References:
    Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021
    (arXiv 2104.14294), figure 1.
  """
  n, h, w = x.shape[:3]

  @jax.jit
  def maps(params: Any, x: Float[Array, "b h w c"]) -> Float[Array, "b heads gh gw"]:
    features = encode(params, x, taps=("attn",))
    attn = features.taps.get("attn")
    if attn is None:
      raise UserError("this encoder has no attention to show; maps need a transformer")
    if patch_size is None:
      rows, columns = _grid(features.patches.shape[1], h, w)
    else:
      rows, columns = h // patch_size, w // patch_size
    patches = attn[:, :, 0, attn.shape[-1] - rows * columns:]
    return patches.reshape(*patches.shape[:2], rows, columns)

  parts = []
  for start in range(0, n, batch):
    part = x[start:start + batch]
    missing = min(batch, n) - len(part)  # the last batch is padded: one shape, one compilation
    full = jnp.pad(part, [(0, missing), *[(0, 0)] * (x.ndim - 1)])
    parts.append(maps(params, full)[:len(part)].astype(jnp.float32))
  return jnp.concatenate(parts)


def _grid(patches: int, h: int, w: int) -> tuple[int, int]:
  """Rows and columns of square patches that tile an h x w image."""
  side = (h * w / patches) ** 0.5
  rows, columns = round(h / side), round(w / side)
  if rows * columns != patches:
    raise ValueError(f"{patches} patches do not tile {h}x{w} pixels in squares")
  return rows, columns

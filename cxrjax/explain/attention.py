"""Attention maps over a radiograph: per head, and rolled out through all blocks."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from cxrjax.core.errors import UserError, suggest

FUSIONS = ("mean", "max", "min")


def tokens(network: Any, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
  """Number of tokens before the patches of a transformer, and rows and columns of patches.

  Raises:
    UserError: a network without attention over the whole image.
  """
  if not network.attention_heads:
    raise UserError(
      f"config.model.name={type(network).__module__!r} has no attention over the whole image to "
      "show; 'gradcam' and 'occlusion' explain it, attention needs cxrjax.models.vit"
    )
  return 1 + network.registers, *network.grid(image_shape)


def heads(
  network: Any, params: Any, x: Float[Array, "n h w c"], block: int = -1
) -> Float[Array, "n heads gh gw"]:
  """Attention to each patch in one block, per head.

  This is attention of the class token; for a network that averages its patches (`pool="mean"`) and
  does not use its class token, the mean attention of the patches. Each map is part of a softmax: it
  sums to one minus the attention to the class token and registers, which are left out.

  Args:
    network: a `cxrjax.models.vit.Model`.
    params: its parameters.
    x: normalised images of one size.
    block: from 0, negative from the end.

  Returns:
    Non-negative weights of patches by row and column.

  Raises:
    UserError: a network without attention, or without this block.

  References:
    Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021
    (arXiv 2104.14294), figure 1.
  """
  prefix, rows, columns = tokens(network, x.shape[1:])
  name = f"attn:{block}"
  weights = network.encode(
    params, x, intermediates=(name,), patches=network.pool == "mean"
  ).intermediates[name]
  patch_weights = _to_patches(weights, network.pool, prefix)
  return patch_weights.reshape(*patch_weights.shape[:2], rows, columns).astype(jnp.float32)


def _to_patches(
  weights: Float[Array, "n heads t t"], pool: str, prefix: int
) -> Float[Array, "n heads p"]:
  """Attention to the patches by the tokens that become the features."""
  queries = weights[:, :, prefix:].mean(2) if pool == "mean" else weights[:, :, 0]
  return queries[..., prefix:]


def rollout(
  network: Any, params: Any, x: Float[Array, "n h w c"], fusion: str = "mean", start: int = 0
) -> Float[Array, "n gh gw"]:
  """Attention rollout: attention traced back through all blocks to the patches.

  `A_L ... A_2 A_1` with `A_i = W_i / 2 + I / 2`, rows normalised to sum one, where `W_i` are the
  attention weights of block i, its heads fused, and the identity is the residual connection.

  Args:
    network: a `cxrjax.models.vit.Model`.
    params: its parameters.
    x: normalised images of one size.
    fusion: how heads are fused, one of `FUSIONS`.
    start: the first block to include.

  Returns:
    Values from 0; with mean fusion, the share of each patch in a total of one, which includes the
    class token and registers left out here.

  Raises:
    UserError: a network without attention, or an unknown fusion.

  References:
    Abnar and Zuidema, Quantifying Attention Flow in Transformers, 2020 (arXiv 2005.00928), eq. 1.
  """
  prefix, rows, columns = tokens(network, x.shape[1:])
  if fusion not in FUSIONS:
    raise UserError(f"rollout's fusion={fusion!r} is not known{suggest(fusion, FUSIONS)}")
  names = tuple(f"attn:{i}" for i in range(start, network.blocks))
  intermediates = network.encode(
    params, x, intermediates=names, patches=network.pool == "mean"
  ).intermediates

  def flow(name: str) -> Float[Array, "n t t"]:
    fused = getattr(jnp, fusion)(intermediates[name], axis=1)
    with_residual = fused + jnp.eye(fused.shape[-1])
    return with_residual / with_residual.sum(-1, keepdims=True)

  total = flow(names[0])
  for name in names[1:]:
    total = flow(name) @ total
  patch_weights = _to_patches(total[:, None], network.pool, prefix)[:, 0]
  assert patch_weights.shape[-1] == math.prod((rows, columns))
  return patch_weights.reshape(-1, rows, columns).astype(jnp.float32)

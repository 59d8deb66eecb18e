"""Attention over a radiograph, head by head, and rolled out through all blocks."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from cxrjax.core.errors import UserError, suggest

FUSIONS = ("mean", "max", "min")


def tokens(network: Any, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
  """How many tokens of a transformer stand before the patches, and the patches' rows and columns.

  Raises:
    UserError: a network without attention over all of the image.
  """
  if not hasattr(network, "attention_heads"):
    raise UserError(
      f"config.model.name={type(network).__module__!r} has no attention over the whole image to "
      "show; 'gradcam' and 'occlusion' explain it, attention needs cxrjax.models.vit"
    )
  return 1 + network.registers, *network.grid(image_shape)


def heads(
  network: Any, params: Any, x: Float[Array, "n h w c"], block: int = -1
) -> Float[Array, "n heads gh gw"]:
  """How much is attended to each patch in one block, head by head.

  Attention of the class token; of a network that averages its patches (`pool="mean"`), whose class
  token has no say, the mean attention of the patches. Each map is a part of a softmax: it sums to
  one less what goes to the class token and to registers, which are left out.

  Args:
    network: a `cxrjax.models.vit.Model`.
    params: its parameters.
    x: normalised images of one size.
    block: from 0, negative from the end.

  Returns:
    Weights from 0 of patch (row, column).

  Raises:
    UserError: a network without attention, or without such a block.

  References:
    Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021
    (arXiv 2104.14294), figure 1.
  """
  prefix, rows, columns = tokens(network, x.shape[1:])
  name = f"attn:{block}"
  attn = network.encode(
    params, x, intermediates=(name,), patches=network.pool == "mean"
  ).intermediates[name]
  seen = _of_readout(attn, network.pool, prefix)
  return seen.reshape(*seen.shape[:2], rows, columns).astype(jnp.float32)


def _of_readout(
  attn: Float[Array, "n heads t t"], pool: str, prefix: int
) -> Float[Array, "n heads p"]:
  """What the tokens that become the features attend to, of the patches."""
  queries = attn[:, :, prefix:].mean(2) if pool == "mean" else attn[:, :, 0]
  return queries[..., prefix:]


def rollout(
  network: Any, params: Any, x: Float[Array, "n h w c"], fusion: str = "mean", start: int = 0
) -> Float[Array, "n gh gw"]:
  """Attention traced back through all blocks to the patches.

  `A_L ... A_2 A_1` with `A_i = W_i / 2 + I / 2`, rows brought to sum one, where `W_i` are the
  attention weights of block i, its heads fused, and the identity is the residual connection.

  Args:
    network: a `cxrjax.models.vit.Model`.
    params: its parameters.
    x: normalised images of one size.
    fusion: of the heads, of `FUSIONS`.
    start: the first block that counts.

  Returns:
    From 0; with the mean of the heads the parts of one that come from each patch, less what comes
    from class token and registers.

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
    both = fused + jnp.eye(fused.shape[-1])
    return both / both.sum(-1, keepdims=True)

  total = flow(names[0])
  for name in names[1:]:
    total = flow(name) @ total
  seen = _of_readout(total[:, None], network.pool, prefix)[:, 0]
  assert seen.shape[-1] == math.prod((rows, columns))
  return seen.reshape(-1, rows, columns).astype(jnp.float32)

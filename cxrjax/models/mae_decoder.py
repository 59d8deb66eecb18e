"""A small vision transformer that reconstructs the patches that an encoder did not see.

References:
  He et al., Masked autoencoders are scalable vision learners, 2021 (arXiv 2111.06377), section 3.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from cxrjax.core.errors import UserError
from cxrjax.models import attention, layers, module, posembed, transformer


@dataclasses.dataclass(frozen=True)
class Decoder:
  """Predicts a vector for every patch from an encoder's class token and kept patches.

  A linear layer, mask tokens in place of dropped patches, fixed positions (sines and cosines),
  pre-norm blocks over class token and all patches, layer norm, a linear layer.

  Attributes:
    in_dim: features of the encoder.
    outputs: numbers to predict per patch.
    width: features of the decoder, a multiple of 4; 512 in the paper.
    depth: number of blocks; 8 in the paper.
    heads: attention heads per block; 16 in the paper.
    initial: kernel initializer, one of `cxrjax.models.layers.INITIALIZERS`.
    dtype: type of the activations, the encoder's.
    kernel: the attention implementation.

  Raises:
    UserError: an indivisible width, or a depth out of range.
  """

  in_dim: int
  outputs: int
  width: int = 512
  depth: int = 8
  heads: int = 16
  initial: str = "xavier"
  dtype: str = "float32"
  kernel: attention.Kernel = attention.PLAIN

  def __post_init__(self) -> None:
    if not 1 <= self.depth <= layers.MAX_DEPTH:
      raise UserError(f"a decoder's depth={self.depth} must be from 1 to {layers.MAX_DEPTH}")
    if self.width % 4 or self.width % self.heads:
      raise UserError(
        f"a decoder's width={self.width} must be a multiple of 4 and of its heads={self.heads}"
      )

  @functools.cached_property
  def _net(self) -> module.Net:
    return module.Net.of(
      _Decoder,
      in_dim=self.in_dim,
      outputs=self.outputs,
      width=self.width,
      depth=self.depth,
      heads=self.heads,
      init=self.initial,
      kernel=self.kernel,
    )

  def init(self, key: jax.Array) -> module.Params:
    """Fresh parameters."""
    return self._net.init(key)

  def apply(
    self,
    params: module.Params,
    cls: Float[Array, "b d"],
    patches: Float[Array, "b m d"],
    keep: Int[Array, "b m"],
    grid: tuple[int, int],
  ) -> Float32[Array, "b n o"]:
    """Predicts every patch, row by row.

    Args:
      params: from `init`.
      cls: the encoder's class token.
      patches: the encoder's features of the kept patches.
      keep: indices of the kept patches.
      grid: rows and columns of patches.
    """
    out = self._net.apply(
      params, cls.astype(self.dtype), patches.astype(self.dtype), keep, grid=grid
    )
    return out.astype(jnp.float32)


class _Decoder(nnx.Module):
  def __init__(self, in_dim, outputs, width, depth, heads, init, kernel, rngs):
    self.embed = layers.Linear(in_dim, width, init=init, rngs=rngs)
    self.mask_token = nnx.Param(layers.normal_init(rngs.params(), (1, width), jnp.float32))
    self.blocks = nnx.List(
      [transformer.Block(width, heads, init, rngs, kernel=kernel) for _ in range(depth)]
    )
    self.norm = layers.LayerNorm(width)
    self.out = layers.Linear(width, outputs, init=init, rngs=rngs)

  def __call__(self, cls, patches, keep, *, grid):
    n_kept = patches.shape[1]
    n = grid[0] * grid[1]
    x = self.embed(jnp.concatenate([cls[:, None], patches], axis=1))
    width = x.shape[-1]
    cls, embedded = x[:, :1], x[:, 1:]
    source_rows = jax.vmap(
      lambda indices: (
        jnp.full(n, n_kept, jnp.int32).at[indices].set(jnp.arange(n_kept, dtype=jnp.int32))
      )
    )(keep)
    x = jnp.where(
      (source_rows < n_kept)[..., None],
      take_rows(embedded, source_rows, keep),
      self.mask_token[...].astype(embedded.dtype),
    )
    x = x + posembed.sincos(grid, width).astype(x.dtype)
    x = jnp.concatenate([cls, x], axis=1)
    for block in self.blocks:
      x = block(x, None)
    return self.out(self.norm(x[:, 1:]))


@jax.custom_vjp
def take_rows(
  x: Float[Array, "b m d"], rows: Int[Array, "b n"], back: Int[Array, "b m"]
) -> Float[Array, "b n d"]:
  """Takes row `rows[i, j]` of every `x[i]`, or 0 if out of range; each row at most once.

  Its gradient is a lookup as well, where autodiff's would scatter-add row by row.

  Args:
    x: rows.
    rows: indices of rows to take; `m` or above for none.
    back: inverse indices, where each row of `x` goes; `n` or above for nowhere.
  """
  del back
  return jnp.take_along_axis(x, rows[..., None], axis=1, mode="fill", fill_value=0)


def _take_rows_fwd(x, rows, back):
  return take_rows(x, rows, back), (rows, back)


def _take_rows_bwd(residuals, dy):
  rows, back = residuals
  return take_rows(dy, back, rows), None, None


take_rows.defvjp(_take_rows_fwd, _take_rows_bwd)

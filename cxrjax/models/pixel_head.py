"""A head that predicts pixels from an encoder's patches, each on its own.

References:
  Atito et al., GMML is All you Need, 2022 (arXiv 2205.14986).
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Float32

from cxrjax.core.errors import UserError
from cxrjax.models import layers, module


@dataclasses.dataclass(frozen=True)
class PixelHead:
  """Layer norm, linear layers of equal width with GELU, and a linear layer to a patch's pixels.

  The last layer is equivalent to the papers' transposed convolution with stride equal to its kernel
  size: its bias is one number per channel.

  Attributes:
    in_dim: features of a patch.
    size: pixels per side of a patch.
    channels: image channels.
    depth: number of layers before the last; 3 in the papers.
    norm: whether to have the layer norm; in the papers it is the encoder's own.
    initial: kernel initializer, one of `cxrjax.models.layers.INITIALIZERS`.
    dtype: type of the activations, the encoder's.
  """

  in_dim: int
  size: int
  channels: int = 1
  depth: int = 3
  norm: bool = True
  initial: str = "normal"
  dtype: str = "float32"

  def __post_init__(self) -> None:
    if not 0 <= self.depth <= layers.MAX_DEPTH:
      raise UserError(f"a pixel head's depth={self.depth} must be from 0 to {layers.MAX_DEPTH}")

  @functools.cached_property
  def _net(self) -> module.Net:
    return module.Net.of(
      _PixelHead,
      in_dim=self.in_dim,
      pixels=self.size**2,
      channels=self.channels,
      depth=self.depth,
      norm=self.norm,
      init=self.initial,
    )

  def init(self, key: jax.Array) -> module.Params:
    """Fresh parameters."""
    return self._net.init(key)

  def apply(
    self, params: module.Params, patches: Float[Array, "b n d"], grid: tuple[int, int]
  ) -> Float32[Array, "b h w c"]:
    """Predicts images.

    Args:
      params: from `init`.
      patches: patch features, row by row.
      grid: rows and columns of patches.
    """
    x = rearrange(patches, "b n d -> (b n) d").astype(self.dtype)
    x = self._net.apply(params, x).astype(jnp.float32)
    return rearrange(
      x,
      "(b rows cols) (i j c) -> b (rows i) (cols j) c",
      rows=grid[0],
      cols=grid[1],
      i=self.size,
      j=self.size,
    )


class _PixelHead(nnx.Module):
  def __init__(self, in_dim, pixels, channels, depth, norm, init, rngs):
    self.norm = layers.LayerNorm(in_dim) if norm else None
    self.layers = nnx.List(
      [layers.Linear(in_dim, in_dim, init=init, rngs=rngs) for _ in range(depth)]
    )
    self.out = layers.Linear(in_dim, pixels * channels, bias=False, init=init, rngs=rngs)
    self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))

  def __call__(self, x):
    x = x if self.norm is None else self.norm(x)
    for layer in self.layers:
      x = layers.gelu(layer(x))
    bias = self.bias[...].astype(x.dtype)
    return (self.out(x).reshape(len(x), -1, len(bias)) + bias).reshape(len(x), -1)

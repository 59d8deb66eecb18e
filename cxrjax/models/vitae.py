"""ViTAEv2 (Zhang et al. 2022, arXiv:2202.10108): a transformer with convolutional inductive bias.

Reduction cells halve the map (the first one quarters it), with parallel dilated convolutions for
several scales. Normal cells are transformer blocks. In both, a second branch of plain convolutions
in parallel to attention adds local context. There is no position embedding and no class token.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from cxrjax.core.errors import UserError, suggest
from cxrjax.models import attention, cnn, layers, module
from cxrjax.models.conv import BatchNorm, Conv

WINDOW = 7  # cells per side
STRIDES = (4, 2, 2, 2)
KERNELS = (7, 3, 3, 3)  # of the dilated convolutions
DILATIONS = ((1, 2, 3, 4), (1, 2, 3), (1, 2), (1, 2))
WINDOWED = (True, True, False, False)  # attention within windows, else over the whole map
REDUCTION_GROUPS = (1, 16, 32, 64)
NORMAL_GROUPS = (1, 32, 64, 128)


@dataclasses.dataclass(frozen=True)
class _Variant:
  width: int  # of the first stage's tokens; it doubles from stage to stage
  embed: tuple[int, ...]  # channels of every dilated convolution
  depths: tuple[int, ...]  # normal cells per stage
  heads: tuple[int, ...]  # of normal cells
  reduction_heads: tuple[int, ...]


VARIANTS = {
  "S": _Variant(64, (64, 64, 128, 256), (2, 2, 8, 2), (1, 2, 4, 8), (1, 1, 2, 4)),
  "48M": _Variant(96, (64, 64, 192, 384), (2, 2, 11, 2), (1, 2, 4, 8), (1, 1, 2, 4)),
  "B": _Variant(128, (96, 96, 256, 512), (2, 2, 12, 2), (1, 4, 8, 16), (1, 1, 4, 8)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(cnn.Cnn):
  """ViTAEv2 for images of any size.

  Maps are zero-padded to divisible sizes as in the authors' code: below and on the right before a
  reduction, and on all sides, after the layer norm and without a mask, into whole windows.

  Attributes:
    variant: "S" (19 M parameters), "48M" or "B".
    drop_path: rate in the last normal cell, rising linearly from 0 in the first; each of the three
      branches of a cell drops independently. Used where `encode` is given keys.
    initial: initializer of linear layers, as in `cxrjax.models.vit.Model`.
    width: width of the first stage's tokens; all other widths scale in proportion.
    depths: normal cells of the four stages.
    attention: as in `cxrjax.models.vit.Model`.
  """

  variant: str = "S"
  drop_path: float = 0.1
  initial: str = "normal"
  width: int | None = None
  depths: tuple[int, ...] | None = None
  attention: str = "auto"

  layer_names = ("layers/0/", "layers/1/", "layers/2/", "layers/3/")

  def __post_init__(self):
    super().__post_init__()
    object.__setattr__(self, "attention", self.target.attention(self.attention, self.dtype))
    if self.variant not in VARIANTS:
      raise UserError(
        f"config.model.variant={self.variant!r} is not known{suggest(self.variant, VARIANTS)}"
      )
    if self.width is not None and (self.width < 16 or self.width % 16):
      raise UserError(f"config.model.width={self.width} is not a multiple of 16")
    if self.depths is not None and (
      len(self.depths) != 4 or not 1 <= min(self.depths) <= max(self.depths) <= layers.MAX_DEPTH
    ):
      raise UserError(
        f"config.model.depths={self.depths} is not four numbers from 1 to {layers.MAX_DEPTH}"
      )
    if not 0 <= self.drop_path < 1:
      raise UserError(f"config.model.drop_path={self.drop_path} must be in [0, 1)")
    if self.initial not in ("normal", "xavier"):
      raise UserError(
        f"config.model.initial={self.initial!r} is not known; valid: 'normal', 'xavier'"
      )

  @property
  def _dims(self) -> _Variant:
    variant = VARIANTS[self.variant]
    width = self.width or variant.width
    embed = tuple(dim * width // variant.width for dim in variant.embed)
    return dataclasses.replace(
      variant, width=width, embed=embed, depths=self.depths or variant.depths
    )

  @property
  def features(self) -> int:
    return 8 * self._dims.width

  @property
  def _steps(self) -> tuple[tuple[int, int, int], ...]:
    return tuple((1, stride, 0) for stride in STRIDES)

  @functools.cached_property
  def _net(self) -> module.Net:
    return module.Net.of(
      _ViTAE,
      dims=self._dims,
      channels=self.channels,
      drop_path=self.drop_path,
      init=self.initial,
      kernel=attention.Kernel(self.attention, self.target.mesh),
    )


class _Local(nnx.Module):
  """The convolutional branch: three 3x3 convolutions with batch norm and SiLU in between."""

  def __init__(self, dims: tuple[int, ...], strides: tuple[int, ...], groups: int, rngs: nnx.Rngs):
    self.convs = nnx.List(
      [
        Conv(a, b, 3, stride=s, groups=groups, bias=True, init="torch", rngs=rngs)
        for (a, b), s in zip(itertools.pairwise(dims), strides, strict=True)
      ]
    )
    self.norms = nnx.List([BatchNorm(dim) for dim in dims[1:-1]])

  def __call__(self, x, train):
    for conv, norm in zip(self.convs, self.norms, strict=False):
      x = jax.nn.silu(norm(conv(x), train=train))
    return self.convs[-1](x)


class _Attention(nnx.Module):
  """Self-attention of the cells of a map `[b h w in_dim]`, within windows or over the whole map."""

  def __init__(
    self,
    in_dim: int,
    dim: int,
    heads: int,
    init: str,
    rngs: nnx.Rngs,
    kernel: attention.Kernel,
    *,
    windowed: bool,
    bias: bool = True,
    skip: bool = False,
  ):
    self.qkv = layers.Linear(in_dim, 3 * dim, bias=bias, init=init, parts=3, rngs=rngs)
    self.proj = layers.Linear(dim, dim, init=init, rngs=rngs)
    self.config = (heads, kernel, windowed, skip)

  def __call__(self, x):
    heads, kernel, windowed, skip = self.config
    shape = x.shape[:3]
    x = _into_windows(x) if windowed else x.reshape(shape[0], -1, x.shape[-1])
    qkv = self.qkv(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:2], -1)
    y = attention.attend(qkv, heads, kernel)[:, : qkv.shape[1]]
    y = _from_windows(y, shape) if windowed else y.reshape(*shape, -1)
    y = self.proj(y.reshape(-1, y.shape[-1]))
    return y + qkv[..., -y.shape[-1] :].reshape(y.shape) if skip else y


def _into_windows(x):
  """Pads maps [b h w d] and splits them into windows [b * windows, WINDOW^2, d]."""
  _, h, w, _ = x.shape
  padding = [(-n % WINDOW // 2, -n % WINDOW - -n % WINDOW // 2) for n in (h, w)]
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  return rearrange(x, "b (rows i) (cols j) d -> (b rows cols) (i j) d", i=WINDOW, j=WINDOW)


def _from_windows(x, shape):
  """Inverts `_into_windows` for maps of `shape` (b, h, w)."""
  b, h, w = shape
  x = rearrange(
    x, "(b rows cols) (i j) d -> b (rows i) (cols j) d", b=b, rows=-(-h // WINDOW), i=WINDOW
  )
  top, left = (-n % WINDOW // 2 for n in (h, w))
  return x[:, top : top + h, left : left + w]


class _Mlp(nnx.Module):
  def __init__(self, dim: int, ratio: int, init: str, rngs: nnx.Rngs):
    self.fc1 = layers.Linear(dim, ratio * dim, init=init, rngs=rngs)
    self.fc2 = layers.Linear(ratio * dim, dim, init=init, rngs=rngs)

  def __call__(self, x):
    return self.fc2(layers.gelu(self.fc1(x)))


class _Reduction(nnx.Module):
  """Dilated convolutions, then attention and convolutions in parallel, then an MLP.

  Attention over the whole map has no bias in queries, keys and values, and adds the values to its
  output, as in the published code; as its input has another width, there is no skip connection.
  """

  def __init__(
    self,
    stage: int,
    in_dim: int,
    embed: int,
    dim: int,
    heads: int,
    init: str,
    rngs: nnx.Rngs,
    attend: attention.Kernel,
  ):
    kernel, stride, dilations = KERNELS[stage], STRIDES[stage], DILATIONS[stage]
    self.PRM = nnx.List(
      [
        Conv(
          in_dim,
          embed,
          kernel,
          stride=stride,
          dilation=d,
          bias=True,
          init="torch",
          rngs=rngs,
          padding=math.ceil(((kernel - 1) * d + 1 - stride) / 2),
        )
        for d in dilations
      ]
    )
    windowed = WINDOWED[stage]
    self.norm1 = layers.LayerNorm(embed * len(dilations), epsilon=1e-5)
    self.attn = _Attention(
      embed * len(dilations),
      dim,
      heads,
      init,
      rngs,
      attend,
      windowed=windowed,
      bias=windowed,
      skip=not windowed,
    )
    self.norm2 = layers.LayerNorm(dim, epsilon=1e-5)
    self.mlp = _Mlp(dim, 1, init, rngs)
    strides = (2, 2, 1) if stride == 4 else (2, 1, 1)
    self.PCM = _Local(
      (in_dim, embed, embed, dim), strides, min(REDUCTION_GROUPS[stage], max(1, embed // 4)), rngs
    )
    self.stride = stride

  def __call__(self, x, train):
    x = jnp.pad(x, ((0, 0), *[(0, -n % self.stride) for n in x.shape[1:3]], (0, 0)))
    multiscale = jnp.concatenate([layers.gelu(conv(x)) for conv in self.PRM], axis=-1)
    flat = multiscale.reshape(-1, multiscale.shape[-1])
    local = self.PCM(x, train)
    y = self.attn(self.norm1(flat).reshape(multiscale.shape)) + local.reshape(-1, local.shape[-1])
    y = y + self.mlp(self.norm2(y))
    return y.reshape(local.shape)


class _Normal(nnx.Module):
  """A transformer block with a convolutional branch in parallel to attention."""

  def __init__(
    self, stage: int, dim: int, heads: int, init: str, rngs: nnx.Rngs, attend: attention.Kernel
  ):
    self.norm1 = layers.LayerNorm(dim)
    self.attn = _Attention(dim, dim, heads, init, rngs, attend, windowed=WINDOWED[stage])
    self.norm2 = layers.LayerNorm(dim)
    self.mlp = _Mlp(dim, 4, init, rngs)
    self.PCM = _Local(
      (dim, 4 * dim, dim, dim), (1, 1, 1), min(NORMAL_GROUPS[stage], max(1, dim // 4)), rngs
    )

  def __call__(self, x, train, keep):
    b, *_, dim = x.shape
    flat = x.reshape(-1, dim)

    def drop(branch, branch_index):
      if keep is None:
        return branch
      return (branch.reshape(b, -1) * keep[:, branch_index, None]).reshape(branch.shape)

    y = flat + drop(self.attn(self.norm1(flat).reshape(x.shape)), 0)
    y = y + drop(self.PCM(x, train).reshape(-1, dim), 1)
    return (y + drop(self.mlp(self.norm2(y)), 2)).reshape(x.shape)


class _Stage(nnx.Module):
  def __init__(
    self,
    stage: int,
    in_dim: int,
    dims: _Variant,
    init: str,
    rngs: nnx.Rngs,
    attend: attention.Kernel,
  ):
    dim = dims.width * 2**stage
    self.RC = _Reduction(
      stage, in_dim, dims.embed[stage], dim, dims.reduction_heads[stage], init, rngs, attend
    )
    self.NC = nnx.List(
      [
        _Normal(stage, dim, dims.heads[stage], init, rngs, attend)
        for _ in range(dims.depths[stage])
      ]
    )


class _ViTAE(nnx.Module):
  def __init__(self, dims: _Variant, channels, drop_path, init, kernel, rngs):
    self.layers = nnx.List(
      [
        _Stage(i, dims.width * 2 ** (i - 1) if i else channels, dims, init, rngs, kernel)
        for i in range(4)
      ]
    )
    self.drop_path = drop_path

  def __call__(self, x, *, keys: Any, train: bool, add: Any):
    cells = sum(len(stage.NC) for stage in self.layers)
    drop_factors = iter(_drop_path_factors(keys, cells, self.drop_path, x.dtype))
    maps = []
    for i, stage in enumerate(self.layers):
      x = stage.RC(x, train)
      for cell in stage.NC:
        x = cell(x, train, next(drop_factors))
      x = add(i, x)
      maps.append(x)
    return maps


def _drop_path_factors(keys, cells, rate, dtype):
  """Factors per normal cell: 0 or 1/(1 - rate) per image and branch, [b 3], or None."""
  if keys is None or not rate:
    return [None] * cells
  rates = jnp.linspace(0.0, rate, cells)

  def draw(key):
    uniform = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (3,)))(
      jnp.arange(cells)
    )
    return (uniform >= rates[:, None]) / (1.0 - rates[:, None])

  return list(jax.vmap(draw, out_axes=1)(keys).astype(dtype))

"""InceptionV3 (Szegedy et al. 2016, arXiv:1512.00567)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cxrjax.core.errors import UserError
from cxrjax.models import cnn, module
from cxrjax.models.conv import BatchNorm, Conv, avg_pool, max_pool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(cnn.Cnn):
  """InceptionV3 without its auxiliary classifier, as torchvision's and timm's `inception_v3`.

  Most of its stride-2 convolutions have no padding: the last map has 8 x 8 cells for images of 299
  pixels and 5 x 5 for 224 pixels; see `grid`. Images need at least 75 pixels.

  Attributes:
    width: channels of the stem's first convolution; all others scale in proportion. The published
      network has 32.
  """

  width: int = 32

  layer_names = ("Conv2d_[12]", "Conv2d_[34]", "Mixed_5", "Mixed_6", "Mixed_7")

  def __post_init__(self):
    super().__post_init__()
    if self.width < 2 or self.width % 2:
      raise UserError(f"config.model.width={self.width} must be an even number")

  @property
  def features(self) -> int:
    return 2048 * self.width // 32

  @property
  def _steps(self) -> tuple[tuple[int, int, int], ...]:
    return (3, 2, 0), (3, 1, 0), (3, 2, 0), (3, 1, 0), (3, 2, 0), (3, 2, 0), (3, 2, 0)

  @functools.cached_property
  def _net(self) -> module.Net:
    return module.Net.of(_Inception, width=self.width, channels=self.channels)


class _ConvNorm(nnx.Module):
  """Convolution, batch norm and ReLU."""

  def __init__(self, in_dim: int, out_dim: int, size, rngs: nnx.Rngs, **options: Any):
    self.conv = Conv(in_dim, out_dim, size, init="normal", rngs=rngs, **options)
    self.bn = BatchNorm(out_dim, epsilon=1e-3)

  def __call__(self, x, train):
    return jax.nn.relu(self.bn(self.conv(x), train=train))


class _Cell(nnx.Module):
  """Parallel branches whose outputs are concatenated.

  Args:
    in_dim: channels of the input.
    layers: (name, input, channels, size, options) of every convolution.
    outputs: names of the layers to concatenate, in order; "pool" is the input after 3x3
      max-pooling of stride 2.

  A layer's input is "" (the cell's), "mean" (the cell's, averaged over 3x3) or another layer.
  """

  def __init__(self, in_dim: int, layers, outputs: tuple[str, ...], rngs: nnx.Rngs):
    dims = {"": in_dim, "mean": in_dim, "pool": in_dim}
    for name, source, out_dim, size, options in layers:
      setattr(self, name, _ConvNorm(dims[source], out_dim, size, rngs, **options))
      dims[name] = out_dim
    self.layers = tuple((name, source) for name, source, *_ in layers)
    self.outputs = outputs
    self.out_dim = sum(dims[name] for name in outputs)

  def __call__(self, x, train):
    maps = {"": x}
    for name, source in self.layers:
      if source == "mean":
        maps[source] = avg_pool(x, 3, 1, 1)
      maps[name] = getattr(self, name)(maps[source], train)
    if "pool" in self.outputs:
      maps["pool"] = max_pool(x, 3, 2)
    return jnp.concatenate([maps[name] for name in self.outputs], axis=-1)


_STRIDE_2 = {"stride": 2, "padding": 0}


def _mixed_35x35(in_dim, pool, rngs, n):
  """Figure 5, with 5x5 as in the published code."""
  return _Cell(
    in_dim,
    [
      ("branch1x1", "", n(64), 1, {}),
      ("branch5x5_1", "", n(48), 1, {}),
      ("branch5x5_2", "branch5x5_1", n(64), 5, {}),
      ("branch3x3dbl_1", "", n(64), 1, {}),
      ("branch3x3dbl_2", "branch3x3dbl_1", n(96), 3, {}),
      ("branch3x3dbl_3", "branch3x3dbl_2", n(96), 3, {}),
      ("branch_pool", "mean", n(pool), 1, {}),
    ],
    ("branch1x1", "branch5x5_2", "branch3x3dbl_3", "branch_pool"),
    rngs,
  )


def _reduce_to_17x17(in_dim, rngs, n):
  """Figure 10: halves the size."""
  return _Cell(
    in_dim,
    [
      ("branch3x3", "", n(384), 3, _STRIDE_2),
      ("branch3x3dbl_1", "", n(64), 1, {}),
      ("branch3x3dbl_2", "branch3x3dbl_1", n(96), 3, {}),
      ("branch3x3dbl_3", "branch3x3dbl_2", n(96), 3, _STRIDE_2),
    ],
    ("branch3x3", "branch3x3dbl_3", "pool"),
    rngs,
  )


def _mixed_17x17(in_dim, mid, rngs, n):
  """Figure 6: 7x7 factorized into rows and columns."""
  row, column, mid = (1, 7), (7, 1), n(mid)
  return _Cell(
    in_dim,
    [
      ("branch1x1", "", n(192), 1, {}),
      ("branch7x7_1", "", mid, 1, {}),
      ("branch7x7_2", "branch7x7_1", mid, row, {}),
      ("branch7x7_3", "branch7x7_2", n(192), column, {}),
      ("branch7x7dbl_1", "", mid, 1, {}),
      ("branch7x7dbl_2", "branch7x7dbl_1", mid, column, {}),
      ("branch7x7dbl_3", "branch7x7dbl_2", mid, row, {}),
      ("branch7x7dbl_4", "branch7x7dbl_3", mid, column, {}),
      ("branch7x7dbl_5", "branch7x7dbl_4", n(192), row, {}),
      ("branch_pool", "mean", n(192), 1, {}),
    ],
    ("branch1x1", "branch7x7_3", "branch7x7dbl_5", "branch_pool"),
    rngs,
  )


def _reduce_to_8x8(in_dim, rngs, n):
  """Halves the size."""
  return _Cell(
    in_dim,
    [
      ("branch3x3_1", "", n(192), 1, {}),
      ("branch3x3_2", "branch3x3_1", n(320), 3, _STRIDE_2),
      ("branch7x7x3_1", "", n(192), 1, {}),
      ("branch7x7x3_2", "branch7x7x3_1", n(192), (1, 7), {}),
      ("branch7x7x3_3", "branch7x7x3_2", n(192), (7, 1), {}),
      ("branch7x7x3_4", "branch7x7x3_3", n(192), 3, _STRIDE_2),
    ],
    ("branch3x3_2", "branch7x7x3_4", "pool"),
    rngs,
  )


def _mixed_8x8(in_dim, rngs, n):
  """Figure 7: widened branches."""
  row, column = (1, 3), (3, 1)
  return _Cell(
    in_dim,
    [
      ("branch1x1", "", n(320), 1, {}),
      ("branch3x3_1", "", n(384), 1, {}),
      ("branch3x3_2a", "branch3x3_1", n(384), row, {}),
      ("branch3x3_2b", "branch3x3_1", n(384), column, {}),
      ("branch3x3dbl_1", "", n(448), 1, {}),
      ("branch3x3dbl_2", "branch3x3dbl_1", n(384), 3, {}),
      ("branch3x3dbl_3a", "branch3x3dbl_2", n(384), row, {}),
      ("branch3x3dbl_3b", "branch3x3dbl_2", n(384), column, {}),
      ("branch_pool", "mean", n(192), 1, {}),
    ],
    (
      "branch1x1",
      "branch3x3_2a",
      "branch3x3_2b",
      "branch3x3dbl_3a",
      "branch3x3dbl_3b",
      "branch_pool",
    ),
    rngs,
  )


class _Inception(nnx.Module):
  def __init__(self, width, channels, rngs):
    def n(published: int) -> int:
      return published * width // 32

    self.Conv2d_1a_3x3 = _ConvNorm(channels, n(32), 3, rngs, **_STRIDE_2)
    self.Conv2d_2a_3x3 = _ConvNorm(n(32), n(32), 3, rngs, padding=0)
    self.Conv2d_2b_3x3 = _ConvNorm(n(32), n(64), 3, rngs)
    self.Conv2d_3b_1x1 = _ConvNorm(n(64), n(80), 1, rngs)
    self.Conv2d_4a_3x3 = _ConvNorm(n(80), n(192), 3, rngs, padding=0)
    dim = n(192)
    for name, make in (
      ("5b", lambda d: _mixed_35x35(d, 32, rngs, n)),
      ("5c", lambda d: _mixed_35x35(d, 64, rngs, n)),
      ("5d", lambda d: _mixed_35x35(d, 64, rngs, n)),
      ("6a", lambda d: _reduce_to_17x17(d, rngs, n)),
      ("6b", lambda d: _mixed_17x17(d, 128, rngs, n)),
      ("6c", lambda d: _mixed_17x17(d, 160, rngs, n)),
      ("6d", lambda d: _mixed_17x17(d, 160, rngs, n)),
      ("6e", lambda d: _mixed_17x17(d, 192, rngs, n)),
      ("7a", lambda d: _reduce_to_8x8(d, rngs, n)),
      ("7b", lambda d: _mixed_8x8(d, rngs, n)),
      ("7c", lambda d: _mixed_8x8(d, rngs, n)),
    ):
      cell = make(dim)
      setattr(self, f"Mixed_{name}", cell)
      dim = cell.out_dim

  def __call__(self, x, *, keys: Any, train: bool, add: Any):
    del keys
    x = self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x, train), train)
    x = max_pool(self.Conv2d_2b_3x3(x, train), 3, 2)
    x = add(0, self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x, train), train))
    maps = [x]
    x = max_pool(x, 3, 2)
    for i, stage in enumerate(("5b 5c 5d", "6a 6b 6c 6d 6e", "7a 7b 7c"), 1):
      for name in stage.split():
        x = getattr(self, f"Mixed_{name}")(x, train)
      x = add(i, x)
      maps.append(x)
    return maps

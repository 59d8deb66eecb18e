"""Residual networks (He et al. 2016, arXiv:1512.03385) with strides in the 3x3 convolutions."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from flax import nnx

from cxrjax.core.errors import UserError
from cxrjax.models import cnn, module
from cxrjax.models.conv import BatchNorm, Conv, max_pool

BLOCKS = {  # blocks per stage; bottlenecks from 50 layers on
  18: (2, 2, 2, 2),
  34: (3, 4, 6, 3),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(cnn.Cnn):
  """A residual network, as torchvision's and timm's ("v1.5": Goyal et al. 2017, arXiv:1706.02677).

  Attributes:
    depth: 18, 34, 50, 101 or 152 layers.
    width: channels after the stem; 64 in the published networks.
    small_stem: for images of up to 64 pixels: a 3x3 stem of stride 1 and no max-pooling, so that
      the stride is 8, not 32 (as Chen et al. 2020, arXiv:2002.05709, appendix B.9, for CIFAR).
    zero_init: start every block as the identity, with its last batch norm's scale 0 (Goyal et al.).
  """

  depth: int = 50
  width: int = 64
  small_stem: bool = False
  zero_init: bool = False

  layer_names = ("(conv1|bn1)/", "layer1/", "layer2/", "layer3/", "layer4/")

  def __post_init__(self):
    super().__post_init__()
    if self.depth not in BLOCKS:
      raise UserError(
        f"config.model.depth={self.depth} is not known; valid: {', '.join(map(str, BLOCKS))}"
      )
    if self.width < 1:
      raise UserError(f"config.model.width={self.width} must be at least 1")

  @property
  def features(self) -> int:
    return 8 * self.width * (4 if self.depth >= 50 else 1)

  @property
  def _steps(self) -> tuple[tuple[int, int, int], ...]:
    stem = () if self.small_stem else ((7, 2, 3), (3, 2, 1))
    return (*stem, *[(3, 2, 1)] * 3)

  @functools.cached_property
  def _net(self) -> module.Net:
    return module.Net.of(
      _ResNet,
      depth=self.depth,
      width=self.width,
      channels=self.channels,
      small_stem=self.small_stem,
      zero_init=self.zero_init,
    )


class _Basic(nnx.Module):
  """Two 3x3 convolutions."""

  expansion = 1

  def __init__(self, in_dim: int, width: int, stride: int, zero_init: bool, rngs: nnx.Rngs):
    self.conv1 = Conv(in_dim, width, 3, stride=stride, rngs=rngs)
    self.bn1 = BatchNorm(width)
    self.conv2 = Conv(width, width, 3, rngs=rngs)
    self.bn2 = BatchNorm(width, scale=0.0 if zero_init else 1.0)
    self.downsample = _build_shortcut(in_dim, width, stride, rngs)

  def __call__(self, x, train):
    y = jax.nn.relu(self.bn1(self.conv1(x), train=train))
    y = self.bn2(self.conv2(y), train=train)
    return jax.nn.relu(y + _apply_shortcut(self.downsample, x, train))


class _Bottleneck(nnx.Module):
  """1x1, 3x3 and 1x1 convolutions, the 3x3 on a quarter of the channels."""

  expansion = 4

  def __init__(self, in_dim: int, width: int, stride: int, zero_init: bool, rngs: nnx.Rngs):
    self.conv1 = Conv(in_dim, width, 1, rngs=rngs)
    self.bn1 = BatchNorm(width)
    self.conv2 = Conv(width, width, 3, stride=stride, rngs=rngs)
    self.bn2 = BatchNorm(width)
    self.conv3 = Conv(width, 4 * width, 1, rngs=rngs)
    self.bn3 = BatchNorm(4 * width, scale=0.0 if zero_init else 1.0)
    self.downsample = _build_shortcut(in_dim, 4 * width, stride, rngs)

  def __call__(self, x, train):
    y = jax.nn.relu(self.bn1(self.conv1(x), train=train))
    y = jax.nn.relu(self.bn2(self.conv2(y), train=train))
    y = self.bn3(self.conv3(y), train=train)
    return jax.nn.relu(y + _apply_shortcut(self.downsample, x, train))


def _build_shortcut(in_dim, out_dim, stride, rngs):
  if stride == 1 and in_dim == out_dim:
    return None
  return nnx.List([Conv(in_dim, out_dim, 1, stride=stride, rngs=rngs), BatchNorm(out_dim)])


def _apply_shortcut(shortcut, x, train):
  return x if shortcut is None else shortcut[1](shortcut[0](x), train=train)


class _ResNet(nnx.Module):
  def __init__(self, depth, width, channels, small_stem, zero_init, rngs):
    size, stride = (3, 1) if small_stem else (7, 2)
    self.conv1 = Conv(channels, width, size, stride=stride, rngs=rngs)
    self.bn1 = BatchNorm(width)
    self.pool = not small_stem
    block = _Bottleneck if depth >= 50 else _Basic
    in_dim = width
    for i, count in enumerate(BLOCKS[depth]):
      blocks = []
      for j in range(count):
        stride = 2 if i > 0 and j == 0 else 1
        blocks.append(block(in_dim, width * 2**i, stride, zero_init, rngs))
        in_dim = width * 2**i * block.expansion
      setattr(self, f"layer{i + 1}", nnx.List(blocks))

  def __call__(self, x, *, keys: Any, train: bool, add: Any):
    del keys
    x = jax.nn.relu(self.bn1(self.conv1(x), train=train))
    if self.pool:
      x = max_pool(x, 3, 2, 1)
    maps = []
    for i in range(4):
      for block in getattr(self, f"layer{i + 1}"):
        x = block(x, train)
      x = add(i, x)
      maps.append(x)
    return maps

"""Densely connected networks (Huang et al. 2017, arXiv:1608.06993).

DenseNet-121 is CheXNet's (Rajpurkar et al. 2017, arXiv:1711.05225).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cxrjax.core.errors import UserError
from cxrjax.models import cnn, module
from cxrjax.models.conv import BatchNorm, Conv, avg_pool, max_pool, moments

BLOCKS = {  # layers per block
  121: (6, 12, 24, 16),
  169: (6, 12, 32, 32),
  201: (6, 12, 48, 32),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(cnn.Cnn):
  """A densely connected network with bottlenecks and compression (DenseNet-BC).

  The intermediates "stage:0" to "stage:2" are the outputs of the dense blocks, before the
  transition halves channels and size; "stage:3" is the last map, after batch norm and ReLU.

  Attributes:
    depth: 121, 169 or 201 layers.
    growth: channels that each layer adds; 32 in the published networks. The stem has twice as many.
  """

  depth: int = 121
  growth: int = 32

  layer_names = (
    "(conv0|norm0)/",
    "(denseblock|transition)1/",
    "(denseblock|transition)2/",
    "(denseblock|transition)3/",
    "(denseblock4|norm5)/",
  )

  def __post_init__(self):
    super().__post_init__()
    if self.depth not in BLOCKS:
      raise UserError(
        f"config.model.depth={self.depth} is not known; valid: {', '.join(map(str, BLOCKS))}"
      )
    if self.growth < 1:
      raise UserError(f"config.model.growth={self.growth} must be at least 1")

  @property
  def features(self) -> int:
    return _dims(self.depth, self.growth)[-1][1]

  @property
  def _steps(self) -> tuple[tuple[int, int, int], ...]:
    return (7, 2, 3), (3, 2, 1), *[(2, 2, 0)] * 3

  @functools.cached_property
  def _net(self) -> module.Net:
    return module.Net.of(_DenseNet, depth=self.depth, growth=self.growth, channels=self.channels)


def _dims(depth: int, growth: int) -> list[tuple[int, int]]:
  """Input and output channels of every block."""
  dims, dim = [], 2 * growth
  for count in BLOCKS[depth]:
    dims.append((dim, dim + count * growth))
    dim = dims[-1][1] // 2
  return dims


class _DenseMap:
  """A map that grows by channels, with batch statistics that are computed only once.

  Every layer normalizes all earlier maps: means and variances are the same each time, only scale
  and bias belong to the layer.
  """

  def __init__(self, x, train):
    self.parts, self.stats, self.train = [x], [], train

  def append(self, x):
    self.parts.append(x)

  def map(self):
    return jnp.concatenate(self.parts, axis=-1)

  def apply(self, function):
    """Replaces the map by the result of `function`."""
    old = self.map()
    new = function(old)
    if new is not old:
      ends = list(itertools.accumulate(part.shape[-1] for part in self.parts))
      self.parts = jnp.split(new, ends[:-1], axis=-1)

  def normalised(self, norm: BatchNorm):
    """`relu(norm(map))`."""
    batch = None
    if self.train:
      ends = itertools.accumulate(part.shape[-1] for part in self.parts)
      for part, end in list(zip(self.parts, ends, strict=True))[len(self.stats) :]:
        self.stats.append(moments(part, norm.running_mean[...][end - part.shape[-1] : end]))
      means, variances = zip(*self.stats, strict=True)
      batch = jnp.concatenate(means), jnp.concatenate(variances)
    return jax.nn.relu(norm(self.map(), train=self.train, batch=batch))


class _Layer(nnx.Module):
  """Output of one layer: 1x1 to 4 `growth` channels, 3x3 to `growth`."""

  def __init__(self, in_dim: int, growth: int, rngs: nnx.Rngs):
    self.norm1 = BatchNorm(in_dim)
    self.conv1 = Conv(in_dim, 4 * growth, 1, init="fan_in", rngs=rngs)
    self.norm2 = BatchNorm(4 * growth)
    self.conv2 = Conv(4 * growth, growth, 3, init="fan_in", rngs=rngs)

  def __call__(self, dense_map):
    x = self.conv1(dense_map.normalised(self.norm1))
    return self.conv2(jax.nn.relu(self.norm2(x, train=dense_map.train)))


class _Block(nnx.Module):
  def __init__(self, in_dim: int, count: int, growth: int, rngs: nnx.Rngs):
    for i in range(count):
      setattr(self, f"denselayer{i + 1}", _Layer(in_dim + i * growth, growth, rngs))
    self.count = count

  def __call__(self, x, train):
    dense_map = _DenseMap(x, train)
    for i in range(self.count):
      dense_map.append(getattr(self, f"denselayer{i + 1}")(dense_map))
    return dense_map


class _Transition(nnx.Module):
  """Halves channels and size."""

  def __init__(self, in_dim: int, out_dim: int, rngs: nnx.Rngs):
    self.norm = BatchNorm(in_dim)
    self.conv = Conv(in_dim, out_dim, 1, init="fan_in", rngs=rngs)

  def __call__(self, dense_map):
    # Pooling and a 1x1 convolution commute; the paper's order costs four times the products.
    return self.conv(avg_pool(dense_map.normalised(self.norm), 2, 2))


class _DenseNet(nnx.Module):
  denseblock4: _Block  # set by name, like the others

  def __init__(self, depth, growth, channels, rngs):
    self.conv0 = Conv(channels, 2 * growth, 7, stride=2, init="fan_in", rngs=rngs)
    self.norm0 = BatchNorm(2 * growth)
    for i, (count, (start, end)) in enumerate(
      zip(BLOCKS[depth], _dims(depth, growth), strict=True)
    ):
      setattr(self, f"denseblock{i + 1}", _Block(start, count, growth, rngs))
      if i < 3:
        setattr(self, f"transition{i + 1}", _Transition(end, end // 2, rngs))
    self.norm5 = BatchNorm(end)

  def __call__(self, x, *, keys: Any, train: bool, add: Any):
    del keys
    x = jax.nn.relu(self.norm0(self.conv0(x), train=train))
    x = max_pool(x, 3, 2, 1)
    maps = []
    for i in range(1, 4):
      dense_map = getattr(self, f"denseblock{i}")(x, train)
      dense_map.apply(functools.partial(add, i - 1))
      maps.append(dense_map.map())
      x = getattr(self, f"transition{i}")(dense_map)
    return [*maps, add(3, self.denseblock4(x, train).normalised(self.norm5))]

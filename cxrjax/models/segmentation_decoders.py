"""Decoders that predict a segmentation mask from an encoder's features.

References:
  Ronneberger et al., U-Net, 2015 (arXiv 1505.04597).
  Hatamizadeh et al., UNETR, 2021 (arXiv 2103.10504), section 3.1.
  Zheng et al., SETR, 2020 (arXiv 2012.15840), section 3.2: progressive upsampling.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from cxrjax.core.errors import UserError, suggest
from cxrjax.models import conv, layers, module
from cxrjax.models.features import Features, standardize
from cxrjax.models.pixel_head import PixelHead

KINDS = ("auto", "linear", "upsample", "unetr", "unet")
MAX_WIDTH_FACTOR = 16  # maximum channels of a map, as a multiple of those at full size
_PROBE = 256  # image side for measuring the shapes of an encoder's maps


@dataclasses.dataclass(frozen=True)
class Decoder:
  """One logit per pixel, from an encoder's features.

  `linear`: layer norm and a linear map from each patch to its pixels. `upsample`: the map of
  patches, repeatedly doubled and convolved up to the image's size. `unet`: the maps after every
  stage of a convolutional encoder; the smallest is repeatedly doubled, concatenated with the
  encoder's map of that size, finally with the image itself, and convolved twice. `unetr`: the same
  for a ViT, whose tokens after evenly spaced blocks are enlarged to such maps. A map of half the
  size has twice the channels.

  The papers upsample with transposed convolutions; these decoders with bilinear interpolation
  before a convolution, which fits maps of any size.

  Attributes:
    encoder: the encoder of the features, see `cxrjax.models.vit.Model`.
    kind: `auto` is `unetr` for a network with blocks and `unet` for one with stages.
    width: channels at the image's size.

  Raises:
    UserError: an unknown decoder, or one that does not fit this encoder.
  """

  encoder: Any
  kind: str = "auto"
  width: int = 16

  def __post_init__(self) -> None:
    if self.kind not in KINDS:
      raise UserError(
        f"config.method.decoder={self.kind!r} is not a decoder{suggest(str(self.kind), KINDS)}"
      )
    if isinstance(self.width, bool) or not isinstance(self.width, int) or self.width < 1:
      raise UserError(f"config.method.width={self.width!r} must be a whole number of channels")
    tapped, needed = self._tapped, {"unetr": "block", "unet": "stage"}.get(self.kind, "")
    if needed and needed != tapped:
      alternative = "unetr" if tapped == "block" else "unet" if tapped else "upsample"
      raise UserError(
        f"config.method.decoder={self.kind!r} needs an encoder with {needed}s, and "
        f"config.model.name={type(self.encoder).__module__!r} has none; choose {alternative!r}, "
        "'upsample' or 'linear'"
      )
    if self.chosen == "unetr" and 2 ** self._log2(self.encoder.stride) != self.encoder.stride:
      raise UserError(
        f"config.model.patch_size={self.encoder.stride} must be a power of two for "
        "config.method.decoder='unetr'; change it, or choose 'upsample' or 'linear'"
      )

  @property
  def _tapped(self) -> str:
    """Kind of the encoder's intermediates: `block`, `stage`, or ""."""
    return "block" if self.encoder.blocks else "stage" if self.encoder.stages else ""

  @property
  def chosen(self) -> str:
    """`kind`, with "auto" resolved for this encoder."""
    if self.kind != "auto":
      return self.kind
    return {"block": "unetr", "stage": "unet"}.get(self._tapped, "upsample")

  @functools.cached_property
  def intermediates(self) -> tuple[str, ...]:
    """Intermediates to request from `encode`, the finest map first."""
    if self.chosen == "unet":
      return tuple(f"stage:{i}" for i in range(self.encoder.stages))
    if self.chosen == "unetr":  # the patches after the last block are the coarsest map
      count, depth = self._log2(self.encoder.stride), self.encoder.blocks
      return tuple(f"block:{max(depth * i // count - 1, 0)}" for i in range(1, count))
    return ()

  @staticmethod
  def _log2(stride: float) -> int:
    return round(math.log2(stride))

  @functools.cached_property
  def _skips(self) -> tuple[tuple[int, int], ...]:
    """Measured level (log2 of the stride) and channels of every map, the finest first."""
    if self.chosen == "unetr":
      enlarged = [(i, self._width(i)) for i in range(1, len(self.intermediates) + 1)]
      return (*enlarged, (self._log2(self.encoder.stride), self.encoder.features))
    if self.chosen == "upsample":
      return ((self._log2(self.encoder.stride), self.encoder.features),)
    side = _PROBE // self.encoder.stride * self.encoder.stride
    image = jax.ShapeDtypeStruct((1, side, side, self.encoder.channels), jnp.float32)
    maps = jax.eval_shape(
      lambda x: (
        self.encoder.encode(
          self.encoder.init(jax.random.key(0)), x, intermediates=self.intermediates
        ).intermediates
      ),
      image,
    )
    shapes = [maps[tap].shape for tap in self.intermediates]
    return tuple((self._log2(side / shape[1]), shape[-1]) for shape in shapes)

  def _width(self, level: int) -> int:
    return self.width * min(2**level, MAX_WIDTH_FACTOR)

  @functools.cached_property
  def _net(self) -> Any:
    if self.chosen == "linear":
      return PixelHead(
        in_dim=self.encoder.features,
        size=self.encoder.stride,
        depth=0,
        initial="xavier",
        dtype=self.encoder.dtype,
      )
    skips = self._skips if self.chosen == "upsample" else ((0, self.encoder.channels), *self._skips)
    top = self._skips[-1][0]
    return module.Net.of(
      _UNet,
      skips=skips,
      widths=tuple(self._width(i) for i in range(top)),
      tokens=self.encoder.features if self.chosen == "unetr" else 0,
      twice=self.chosen != "upsample",
    )

  def init(self, key: jax.Array) -> module.Params:
    """Fresh parameters, including running statistics."""
    return self._net.init(key)

  def apply(
    self,
    params: module.Params,
    images: Float[Array, "b h w c"],
    features: Features,
    *,
    train: bool = False,
  ) -> tuple[Float32[Array, "b h w 1"], module.Params]:
    """Predicts logits per pixel; also returns new running statistics ({} without training).

    Args:
      params: from `init`.
      images: the encoded images.
      features: `encoder.encode(params, images, intermediates=decoder.intermediates)`.
      train: batch norm normalizes by the batch.
    """
    b, h, w, _ = images.shape
    grid = self.encoder.grid((h, w))
    if self.chosen == "linear":
      x = self._net.apply(params, features.patches, grid)
      return _resize(x[:, :h, :w], (h, w)), {}
    dtype = self.encoder.dtype
    if self.chosen == "unet":
      maps = [features.intermediates[tap] for tap in self.intermediates]
    else:
      assert features.patches is not None  # `encode` omits them only with patches=False
      count = features.patches.shape[1]  # class token and registers come before the patches
      tokens = [features.intermediates[tap][:, -count:] for tap in self.intermediates]
      maps = [x.reshape(b, *grid, -1) for x in [*tokens, features.patches]]
    if self.chosen != "upsample":
      maps = [standardize(images) if self.encoder.standardize else images, *maps]
    net = self._net.bind(params)
    x = net([x.astype(dtype) for x in maps], size=(h, w), train=train)
    return x.astype(jnp.float32), module.running_stats(net) if train else {}


class _Conv(nnx.Module):
  """3x3 convolution, batch norm, ReLU."""

  def __init__(self, in_dim: int, out_dim: int, rngs: nnx.Rngs):
    self.conv = conv.Conv(in_dim, out_dim, 3, rngs=rngs)
    self.norm = conv.BatchNorm(out_dim)

  def __call__(self, x, train):
    return jax.nn.relu(self.norm(self.conv(x), train=train))


class _UNet(nnx.Module):
  """Decodes maps at several levels (0: the image's size, 1: half of it, ...) to a level-0 channel.

  Args:
    skips: level and channels of every input map, in ascending order.
    widths: channels of the output at every level below the last map's.
    tokens: channels of the maps between the first and the last if they are inputs of one size that
      have to be enlarged to the sizes of `skips`; 0 if they already have these sizes.
    twice: two convolutions per level instead of one.
    rngs: random keys of the kernels.
  """

  def __init__(self, skips, widths, tokens, twice, rngs):
    top, dim = skips[-1]
    channels = dict(skips)
    first, second = {}, {}
    for level in reversed(range(top)):
      first[str(level)] = _Conv(dim + channels.get(level, 0), widths[level], rngs)
      second[str(level)] = _Conv(widths[level], widths[level], rngs) if twice else None
      dim = widths[level]
    self.first = nnx.Dict(first)
    self.second = nnx.Dict(second) if twice else None
    grow = {}
    if tokens:
      for level, width in skips[1:-1]:
        dims = (tokens, *[width] * (top - level))
        grow[str(level)] = nnx.List([_Conv(a, b, rngs) for a, b in itertools.pairwise(dims)])
    self.grow = nnx.Dict(grow) if grow else None
    self.out = layers.Linear(dim, 1, init="xavier", rngs=rngs)
    self.levels = tuple(level for level, _ in skips)

  def __call__(self, maps, *, size, train):
    map_at_level = dict(zip(self.levels, maps, strict=True))
    if self.grow is not None:
      for level, steps in self.grow.items():
        for i, step in enumerate(steps):
          side = _side(size, self.levels[-1] - 1 - i)
          map_at_level[int(level)] = step(_resize(map_at_level[int(level)], side), train)
    x = maps[-1]
    for level in reversed(range(self.levels[-1])):
      skip = map_at_level.get(level)
      x = _resize(x, _side(size, level) if skip is None else skip.shape[1:3])
      x = x if skip is None else jnp.concatenate([x, skip], axis=-1)
      x = self.first[str(level)](x, train)
      x = x if self.second is None else self.second[str(level)](x, train)
    return self.out(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:3], 1)


def _side(size, level):
  """Height and width of a map at a level."""
  return tuple(-(-n // 2**level) for n in size)


def _resize(x, side):
  """Resizes a map bilinearly."""
  shape = (x.shape[0], *side, x.shape[-1])
  return x if x.shape == shape else jax.image.resize(x, shape, "bilinear", antialias=False)

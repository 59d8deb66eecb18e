"""Base class of convolutional encoders: everything except the network."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cxrjax.core.errors import UserError
from cxrjax.core.target import CPU, Target
from cxrjax.models import crops, module
from cxrjax.models.base import Encoder
from cxrjax.models.features import Features, standardize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cnn(Encoder):
  """An encoder whose features come from its last map.

  Subclasses define `features`, `_net` and `_steps`. `_net` is called with maps [b h w c], `keys`,
  `train` and `add(stage, map)`, whose result replaces the map; it returns those of all stages.

  Attributes:
    channels: image channels; 1 for radiographs.
    standardize: bring every image to mean 0 and standard deviation 1 first, as in `vit.Model`.
    dtype: type of the activations; "auto" is bfloat16 on accelerators, float32 on CPU.
    target: the devices that it will run on, set by the program.
  """

  channels: int = 1
  standardize: bool = False
  dtype: str = "auto"
  target: Target = CPU

  stages = 4
  takes_target = True

  def __post_init__(self):
    object.__setattr__(self, "dtype", self.target.dtype(self.dtype))

  @property
  @abc.abstractmethod
  def _net(self) -> module.Net: ...

  @property
  @abc.abstractmethod
  def _steps(self) -> tuple[tuple[int, int, int], ...]:
    """Kernel size, stride and padding of every layer that changes the map's size, in order."""

  @property
  def stride(self) -> int:
    """Pixels per side of a cell of the grid of `Features.patches`."""
    return math.prod(stride for _, stride, _ in self._steps)

  def grid(self, image_shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of `Features.patches` for an image of (height, width, ...) pixels."""
    height, width = image_shape[:2]
    return self._size(height), self._size(width)

  def _size(self, n: int) -> int:
    for kernel, stride, padding in self._steps:
      n = (n + 2 * padding - kernel) // stride + 1 if n + 2 * padding >= kernel else 0
    return n

  def init(self, key: jax.Array) -> module.Params:
    """Fresh parameters, including running statistics."""
    return self._net.init(key)

  def encode(
    self,
    params: module.Params,
    x: Float[Array, "b h w c"] | Sequence[Float[Array, "_ _ _ _"]],
    *,
    keys: Any = None,
    intermediates: tuple[str, ...] = (),
    patches: bool = True,
    train: bool = False,
    add_at: Mapping[str, Float[Array, "b y x d"]] | None = None,
  ) -> Any:
    """Encodes a batch, or several batches of different image sizes, one after the other.

    Args:
      params: from `init`.
      x: normalized images, f32[b h w c]; or a sequence of such batches.
      keys: one PRNG key per image ([b], or a sequence like `x`), for networks with drop path;
        None: no drop path.
      intermediates: "stage:I", the map [b h w d] after stage I (from 0, negative from the end).
      patches: False omits the patch features.
      train: batch norm normalizes by each batch, and `stats` of every `Features` holds the running
        statistics after all of them.
      add_at: offsets to add to the intermediates of a single batch. The gradient with respect to a
        zero offset is the gradient there.

    Returns:
      `Features`, or a tuple of them where `x` is a sequence: `patches` is the last map, row by
      row, and `cls` its mean.

    Raises:
      UserError: images too small or with other channels, or an unknown tap.
      ValueError: `add_at` for several batches.
    """
    is_sequence = isinstance(x, Sequence)
    if add_at and is_sequence:
      raise ValueError(f"add_at={tuple(add_at)} is of one batch, not of a sequence")
    batches = crops.by_size(x, keys)
    for batch in batches:
      self._check(batch.images.shape[1:])
    stage_of_tap = {tap: self._tap(tap) for tap in intermediates}
    shifts = {self._tap(tap): shift for tap, shift in (add_at or {}).items()}

    def add(stage: int, maps: Float[Array, "b y x d"]) -> Float[Array, "b y x d"]:
      return maps + shifts[stage].astype(maps.dtype) if stage in shifts else maps

    net = self._net.bind(params)
    features = []
    for batch in batches:
      images = standardize(batch.images) if self.standardize else batch.images
      maps = net(images.astype(self.dtype), keys=batch.keys, train=train, add=add)
      taps = {tap: maps[i] for tap, i in stage_of_tap.items()}
      features.append(_summarize(maps[-1].astype(jnp.float32), taps, patches))
    stats = (module.running_stats(net) or None) if train else None
    results = tuple(batch._replace(stats=stats) for batch in features)
    return results if is_sequence else results[0]

  def _check(self, shape: tuple[int, ...]) -> None:
    if shape[2] != self.channels:
      raise UserError(f"images have {shape[2]} channels, config.model.channels={self.channels}")
    if not all(self.grid(shape)):
      smallest = next(n for n in range(1, 1000) if self._size(n))
      raise UserError(
        f"images of {shape[0]}x{shape[1]} pixels are too small for config.model, which needs "
        f"{smallest}x{smallest}; make the crops larger or choose another model"
      )

  def _tap(self, tap: str) -> int:
    kind, _, index = tap.partition(":")
    if not (
      kind == "stage" and index.lstrip("-").isdigit() and -self.stages <= int(index) < self.stages
    ):
      raise UserError(
        f"tap {tap!r} is not known; valid: 'stage:I' with I from {-self.stages} to "
        f"{self.stages - 1}"
      )
    return int(index) % self.stages


def _summarize(
  last_map: Float[Array, "b h w d"], intermediates: dict[str, Array], patches: bool
) -> Features:
  cells = last_map.reshape(last_map.shape[0], -1, last_map.shape[-1]) if patches else None
  return Features(last_map.mean((1, 2)), cells, intermediates)

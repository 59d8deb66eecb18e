"""Group masked model learning: restores images from copies with many corrupted rectangles.

There are no mask tokens: rectangles of pixels are replaced by noise or by another image's pixels,
all patches go through the encoder, and a small head restores the pixels of each patch separately,
so that all context has to come from the encoder.

References:
  Atito et al., GMML is All you Need, 2022 (arXiv 2205.14986).
  Anwar et al., SPCXR: Self-supervised Pretraining using Chest X-rays, 2022 (arXiv 2211.12944): on
  radiographs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from cxrjax.config.instantiate import check_keywords
from cxrjax.core.errors import UserError
from cxrjax.losses import reconstruction
from cxrjax.methods import base
from cxrjax.methods.base import (
  Batch,
  Metrics,
  Params,
  check_spread,
  feature_health,
  flatten_views,
  image_keys,
  join_stats,
  split_stats,
)
from cxrjax.models import layers
from cxrjax.models.features import standardize
from cxrjax.models.pixel_head import PixelHead
from cxrjax.views.corruption import CONFIG_KEY, Corruption


class Corrupted(NamedTuple):
  """Large crops in the order of `flatten_views`, before and after corruption."""

  clean: Float[Array, "n h w c"]
  images: Float[Array, "n h w c"]
  mask: Bool[Array, "n h w 1"]


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  """GMML; see `cxrjax.methods.base.Method` for what the functions do.

  Other images' pixels come from the global batch, with gradient accumulation from the microbatch;
  everything else that is random about an image depends on that image only.

  Attributes:
    encoder: a ViT, or a network with a final feature map for the head.
    corruption: options of `cxrjax.views.corruption.Corruption`, whose defaults are the paper's.
    layers: of a ViT: the head's input is the mean of the patches after these shares of its blocks,
      rounded up, normalised by the encoder's last layer norm; GMML: after 6, 8, 10 and 12 of 12.
    head_depth: number of layers of the head before the last.
  """

  corruption: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  layers: tuple[float | int, ...] = (1 / 2, 2 / 3, 5 / 6, 1)
  head_depth: int = 3

  def __post_init__(self) -> None:
    if not self.layers or not all(0 < layer <= 1 for layer in self.layers):
      raise UserError(
        f"config.method.layers={self.layers!r} must be shares of the encoder's blocks, above 0 and "
        "at most 1"
      )
    if self.head_depth < 0:
      raise UserError(f"config.method.head_depth={self.head_depth} must be at least 0")
    _ = self.corrupt, self.schedules  # raise for misspelt options now, not at the first step

  @functools.cached_property
  def corrupt(self) -> Corruption:
    check_keywords(Corruption, self.corruption, CONFIG_KEY)
    return Corruption(**self.corruption)

  @functools.cached_property
  def head(self) -> PixelHead:
    return PixelHead(
      in_dim=self.encoder.features,
      size=self.encoder.stride,
      channels=self.encoder.channels,
      depth=self.head_depth,
      norm=not self.intermediates,
      initial=self.encoder.initial or "torch",
      dtype=self.encoder.dtype,
    )

  @functools.cached_property
  def intermediates(self) -> tuple[str, ...]:
    """The encoder's intermediates that the head uses; none to use its final feature map."""
    blocks = self.encoder.blocks
    indices = {math.ceil(blocks * layer - 1e-6) - 1 for layer in self.layers}
    return tuple(f"block:{i}" for i in sorted(indices)) if blocks else ()

  def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of the patch grid of images [... h w c]."""
    *_, height, width, _ = shape
    size = self.encoder.stride
    if height % size or width % size:
      raise UserError(
        f"config.views.global_size={height} is not a multiple of the {size} pixels that the "
        "encoder makes one patch of; change it or the model"
      )
    return height // size, width // size

  def init(
    self, key: Key[Array, ""], batch_spec: Mapping[str, jax.ShapeDtypeStruct]
  ) -> tuple[Params, Params]:
    self.grid(batch_spec["global"].shape)
    encoder_key, head_key = jax.random.split(key)
    encoder, stats = split_stats(self.encoder.init(encoder_key))
    return {"encoder": encoder, "pixels": self.head.init(head_key)}, {"stats": stats}

  def corrupted(self, batch: Batch, key: Key[Array, ""]) -> Corrupted:
    """The batch's large crops, corrupted."""
    views = batch["global"].shape[0]
    clean = flatten_views(batch["global"])
    # Level and contrast that the encoder standardises away cannot be restored.
    clean = standardize(clean) if self.encoder.standardize else clean
    # Adding 0 times the images shards the keys like them: each device corrupts its own images.
    position = batch["position"] + 0 * batch["global"][0, :, 0, 0, 0].astype(jnp.int32)
    return Corrupted(clean, *self.corrupt(image_keys(key, position, views), clean, views))

  def restore(
    self, params: Params, features: Any, shape: tuple[int, ...]
  ) -> Float[Array, "n h w c"]:
    """Restores images of this shape from features with `intermediates`."""
    rows, columns = self.grid(shape)
    patches = features.patches
    if self.intermediates:
      mean = sum(features.intermediates[tap] for tap in self.intermediates) / len(
        self.intermediates
      )
      norm, flat = params["encoder"]["norm"], mean.reshape(-1, mean.shape[-1])
      patches = layers.layer_norm(flat, norm["scale"], norm["bias"], 1e-6).reshape(mean.shape)
    return self.head.apply(params["pixels"], patches[:, -rows * columns :], (rows, columns))

  def loss(
    self, params: Params, state: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
  ) -> tuple[Float[Array, ""], tuple[Params, Metrics]]:
    del step
    views = batch["global"].shape[0]
    corrupt_key, drop_key = jax.random.split(key)
    crops = self.corrupted(batch, corrupt_key)
    features = self.encoder.encode(
      join_stats(params["encoder"], state["stats"]),
      crops.images,
      intermediates=self.intermediates,
      train=True,
      keys=image_keys(drop_key, batch["position"], views),
    )
    restored = self.restore(params, features, crops.clean.shape)
    loss = reconstruction.l1(restored, crops.clean, crops.mask)
    metrics = {
      "explained": explained(loss, crops, reconstruction.l1),
      **feature_health(features.cls[::views]),
    }
    return loss, ({**state, "stats": features.stats or {}}, metrics)

  def check_collapse(self, metrics: Mapping[str, float]) -> str | None:
    return check_spread(
      metrics,
      "lower config.optimizer.lr, lengthen its warmup, or raise config.method.corruption.share",
    )


def explained(loss: Float[Array, ""], seen: Corrupted, error: Any) -> Float[Array, ""]:
  """Share of the error of predicting each image's mean gray level that a reconstruction removes."""
  gray = jnp.broadcast_to(seen.clean.mean((1, 2, 3), keepdims=True), seen.clean.shape)
  flat = error(gray, seen.clean, seen.mask)
  return 1 - jax.lax.stop_gradient(loss) / jnp.maximum(flat, 1e-6)

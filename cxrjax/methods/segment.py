"""Lung segmentation: an encoder, from scratch or pretrained, and a decoder that predicts the mask.

References:
  Ronneberger et al., U-Net, 2015 (arXiv 1505.04597); Hatamizadeh et al., UNETR, 2021
  (arXiv 2103.10504); Isensee et al., nnU-Net, 2018 (arXiv 1809.10486), for the loss.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Key

from cxrjax.core.errors import UserError
from cxrjax.losses import segmentation as losses
from cxrjax.methods import base
from cxrjax.methods.base import (
  Batch,
  Metrics,
  Params,
  feature_health,
  flatten_views,
  image_keys,
  join_stats,
  split_stats,
)
from cxrjax.models.segmentation_decoders import Decoder


@dataclasses.dataclass(frozen=True)
class Method(base.SupervisedMethod):
  """Segmentation; see `cxrjax.methods.base.Method` for what the functions do.

  Images without a mask have weight 0 in the loss. With gradient accumulation all microbatches have
  equal weight, however many of their images have masks.

  Attributes:
    decoder: `linear`, `upsample`, `unetr`, `unet`, or `auto`; see `models.segmentation_decoders`.
    width: the decoder's channels at full resolution.
    dice: weight of the soft Dice loss.
    cross_entropy: weight of the cross-entropy.
    components: number of largest components of a predicted mask that are kept; 0 keeps all.
  """

  learns_from: ClassVar[str] = "masks"

  decoder: str = "auto"
  width: int = 16
  dice: float = 1.0
  cross_entropy: float = 1.0
  components: int = 0

  def __post_init__(self) -> None:
    if min(self.dice, self.cross_entropy) < 0 or self.dice + self.cross_entropy <= 0:
      raise UserError(
        f"config.method.dice={self.dice} and config.method.cross_entropy={self.cross_entropy} are "
        "weights; give at least one above 0 and none below"
      )
    if self.components < 0:
      raise UserError(f"config.method.components={self.components} must be 0 (all) or more")
    self.drawer  # noqa: B018 - raises for a decoder that does not fit

  @functools.cached_property
  def drawer(self) -> Decoder:
    """The mask decoder."""
    return Decoder(self.encoder, self.decoder, self.width)

  def init(
    self, key: Key[Array, ""], batch_spec: Mapping[str, jax.ShapeDtypeStruct]
  ) -> tuple[Params, Params]:
    if "global_mask" not in batch_spec:
      raise UserError(
        "segmentation learns from lung masks; set config.data.masks='own', with a source that "
        "has lung masks"
      )
    encoder_key, decoder_key = jax.random.split(key)
    params, stats = split_stats(
      {"encoder": self.encoder.init(encoder_key), "decoder": self.drawer.init(decoder_key)}
    )
    return params, {"stats": stats}

  def loss(
    self, params: Params, state: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
  ) -> tuple[Float[Array, ""], tuple[Params, Metrics]]:
    del step
    views = batch["global"].shape[0]
    images, target = flatten_views(batch["global"]), flatten_views(batch["global_mask"])
    weights = jnp.repeat(batch["has_mask"], views).astype(jnp.float32)
    networks = join_stats(params, state["stats"])
    features = self.encoder.encode(
      networks["encoder"],
      images,
      keys=image_keys(key, batch["position"], views),
      intermediates=self.drawer.intermediates,
      train=True,
    )
    logits, decoder_stats = self.drawer.apply(networks["decoder"], images, features, train=True)
    dice = losses.weighted_mean(losses.soft_dice(logits, target), weights)
    cross_entropy = losses.weighted_mean(losses.cross_entropy(logits, target), weights)
    stats = {"encoder": features.stats, "decoder": decoder_stats}
    state = {"stats": {name: tree for name, tree in stats.items() if tree}}
    predicted = jax.lax.stop_gradient(logits) > 0
    metrics = {
      "soft_dice_loss": dice,
      "cross_entropy": cross_entropy,
      "called_lung": predicted.mean(),
      "masked_images": weights.mean(),
      **feature_health(features.cls[::views]),
    }
    return self.dice * dice + self.cross_entropy * cross_entropy, (state, metrics)

  def network_params(self, params: Params, state: Params) -> Params:
    """Parameters for `predict`: `encoder` and `decoder`, running statistics included."""
    return join_stats(params, state["stats"])

  def predict(self, params: Params, images: Float[Array, "b h w c"]) -> Float32[Array, "b h w 1"]:
    """Per-pixel lung probabilities of normalised images."""
    features = self.encoder.encode(
      params["encoder"], images, intermediates=self.drawer.intermediates
    )
    return jax.nn.sigmoid(self.drawer.apply(params["decoder"], images, features)[0])

  def check_collapse(self, metrics: Mapping[str, float]) -> str | None:
    share = metrics["called_lung"]
    if 1e-3 < share < 1 - 1e-3:
      return None
    return (
      f"{share:.1%} of the pixels are called lung: all images get the same mask; lower "
      "config.optimizer.lr or lengthen its warmup, and look at the masks on the page"
    )

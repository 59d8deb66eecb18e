"""Masked autoencoder: an encoder sees a few patches, a small decoder predicts the others.

Three quarters of the patches are dropped before the encoder, which therefore takes a third of the
time; a light decoder fills them in from the encoded visible patches and a mask token, and is
discarded after training.

References:
  He et al., Masked Autoencoders Are Scalable Vision Learners, 2021 (arXiv 2111.06377).
  Xiao et al., Delving into Masked Autoencoders for Multi-Label Thorax Disease Classification, 2022
  (arXiv 2210.12843), "Medical MAE": radiographs, 90 % masked.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from cxrjax.core.errors import UserError
from cxrjax.losses import collapse
from cxrjax.losses import mae as losses
from cxrjax.methods import base
from cxrjax.methods.base import Batch, Metrics, Params, check_spread, flatten_views, image_keys
from cxrjax.models.features import standardize
from cxrjax.models.mae_decoder import Decoder
from cxrjax.views import masking


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  """MAE; see `cxrjax.methods.base.Method` for what the functions do.

  Attributes:
    encoder: a ViT; networks that cannot drop patches are rejected.
    mask_ratio: share of every image's patches that are hidden, rounded up to whole patches. The
      paper: 0.75, Medical MAE: 0.9.
    norm_pixels: normalise each patch's target pixels to mean 0 and variance 1 (the paper's better
      target; not used by Medical MAE).
    decoder_width, decoder_depth, decoder_heads: of the decoder; the paper: 512, 8, 16; Medical MAE
      with ViT-S: 512, 2, 16.
  """

  mask_ratio: float = 0.75
  norm_pixels: bool = True
  decoder_width: int = 512
  decoder_depth: int = 8
  decoder_heads: int = 16

  def __post_init__(self) -> None:
    if not self.encoder.drops_patches:
      raise UserError(
        f"config.model.name={type(self.encoder).__module__!r} cannot drop patches, which masked "
        "autoencoders need; choose 'cxrjax.models.vit'"
      )
    if not 0 < self.mask_ratio < 1:
      raise UserError(f"config.method.mask_ratio={self.mask_ratio} must be between 0 and 1")
    for name in ("decoder_width", "decoder_depth", "decoder_heads"):
      if int(getattr(self, name)) < 1:
        raise UserError(f"config.method.{name}={getattr(self, name)} must be at least 1")
    if self.decoder_width % 4 or self.decoder_width % self.decoder_heads:
      raise UserError(
        f"config.method.decoder_width={self.decoder_width} must be a multiple of 4 and of "
        f"config.method.decoder_heads={self.decoder_heads}"
      )

  @functools.cached_property
  def decoder(self) -> Decoder:
    return Decoder(
      in_dim=self.encoder.features,
      outputs=self.encoder.patch_size**2 * self.encoder.channels,
      width=self.decoder_width,
      depth=self.decoder_depth,
      heads=self.decoder_heads,
      initial="xavier",
      dtype=self.encoder.dtype,
      kernel=self.encoder.kernel,
    )

  def init(
    self, key: Key[Array, ""], batch_spec: Mapping[str, jax.ShapeDtypeStruct]
  ) -> tuple[Params, Params]:
    self._visible_patches(batch_spec["global"].shape)
    encoder_key, decoder_key = jax.random.split(key)
    params = {"encoder": self.encoder.init(encoder_key), "decoder": self.decoder.init(decoder_key)}
    return params, {}

  def _visible_patches(self, shape: tuple[int, ...]) -> tuple[tuple[int, int], int]:
    """Patch grid of views [v b h w c], and the number of patches that the encoder sees."""
    size = self.encoder.patch_size
    grid = shape[2] // size, shape[3] // size
    patches = grid[0] * grid[1]
    visible = int(patches * (1 - self.mask_ratio) + 1e-6)
    if not 0 < visible < patches:
      raise UserError(
        f"config.method.mask_ratio={self.mask_ratio} leaves {visible} of {patches} patches; change "
        "it, or make config.model.patch_size smaller"
      )
    return grid, visible

  def mask(
    self, keys: Key[Array, "n"], batch: Batch, patches: int, count: int
  ) -> Bool[Array, "n p"]:
    """Draws the `count` hidden patches of every view."""
    del batch
    return masking.random(keys, patches, count)

  def loss(
    self, params: Params, state: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
  ) -> tuple[Float[Array, ""], tuple[Params, Metrics]]:
    del step
    views = batch["global"].shape[0]
    images = flatten_views(batch["global"])
    grid, visible = self._visible_patches(batch["global"].shape)
    patches = grid[0] * grid[1]
    mask_key, drop_key = jax.random.split(key)
    keys = image_keys(mask_key, batch["position"], views)
    # The barrier keeps XLA from redrawing the masks wherever they are used.
    mask = jax.lax.optimization_barrier(self.mask(keys, batch, patches, patches - visible))
    keep = masking.visible(mask, visible)
    features = self.encoder.encode(
      params["encoder"],
      images,
      keys=image_keys(drop_key, batch["position"], views),
      keep=keep,
      train=True,
    )
    prediction = self.decoder.apply(params["decoder"], features.cls, features.patches, keep, grid)
    # Level and contrast that the encoder standardises away cannot be predicted.
    images = standardize(images) if self.encoder.standardize else images
    target = losses.patches(images, self.encoder.patch_size)
    target = losses.normalised(target) if self.norm_pixels else target
    loss = losses.masked_mse(prediction, target, mask)
    patch_means = jnp.broadcast_to(target.mean(-1, keepdims=True), target.shape)
    baseline = losses.masked_mse(patch_means, target, mask)  # error of predicting each patch's mean
    first_view = jax.lax.stop_gradient(features.cls[::views])
    metrics = {
      "explained": 1 - loss / jnp.maximum(baseline, 1e-6),
      "feature_std": collapse.spread(first_view),
      "effective_rank": collapse.participation_ratio(first_view),
    }
    return loss, (state, metrics)

  def check_collapse(self, metrics: Mapping[str, float]) -> str | None:
    return check_spread(
      metrics, "lower config.optimizer.lr, lengthen its warmup, or raise config.method.mask_ratio"
    )

"""Masked autoencoder: an encoder sees a few patches, a small decoder draws the rest.

Three quarters of the patches are dropped before the encoder, which therefore takes a third of the
time; a light decoder fills them in from what the encoder made of the others and a mask token, and
is thrown away.

References:
  He et al., Masked Autoencoders Are Scalable Vision Learners, 2021 (arXiv 2111.06377).
  Xiao et al., Delving into Masked Autoencoders for Multi-Label Thorax Disease Classification, 2022
  (arXiv 2210.12843), "Medical MAE": radiographs, 90 % masked.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from cxrjax.core import durations as clocks
from cxrjax.core.errors import UserError
from cxrjax.losses import collapse
from cxrjax.losses import mae as losses
from cxrjax.methods.base import Batch, Metrics, Params, check_spread, flatten_views, image_keys
from cxrjax.models.features import standardize
from cxrjax.models.mae_decoder import Decoder
from cxrjax.views import masking


@dataclasses.dataclass(frozen=True)
class Method:
  """MAE; see `cxrjax.methods.base.Method` for what the functions do.

  Attributes:
    encoder: a ViT; networks without patches to drop are refused.
    clock: length of the run and of an epoch.
    mask_ratio: share of the patches that are hidden; so many of every image, rounded up. The
      paper: 0.75, Medical MAE: 0.9.
    norm_pixels: predict each patch's pixels at mean 0 and variance 1 (the paper's better target;
      Medical MAE goes without).
    decoder_width, decoder_depth, decoder_heads: of the decoder; the paper: 512, 8, 16; Medical MAE
      with ViT-S: 512, 2, 16.
  """

  encoder: Any
  clock: clocks.Clock
  mask_ratio: float = 0.75
  norm_pixels: bool = True
  decoder_width: int = 512
  decoder_depth: int = 8
  decoder_heads: int = 16

  def __post_init__(self) -> None:
    if "keep" not in inspect.signature(self.encoder.encode).parameters:
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
  def schedules(self) -> dict[str, clocks.Schedule]:
    return {}

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
    self._counts(batch_spec["global"].shape)
    encoder_key, decoder_key = jax.random.split(key)
    params = {"encoder": self.encoder.init(encoder_key), "decoder": self.decoder.init(decoder_key)}
    return params, {}

  def _counts(self, shape: tuple[int, ...]) -> tuple[tuple[int, int], int]:
    """The grid of patches of views [v b h w c], and how many the encoder sees."""
    size = self.encoder.patch_size
    grid = shape[2] // size, shape[3] // size
    patches = grid[0] * grid[1]
    kept = int(patches * (1 - self.mask_ratio) + 1e-6)
    if not 0 < kept < patches:
      raise UserError(
        f"config.method.mask_ratio={self.mask_ratio} leaves {kept} of {patches} patches; change "
        "it, or make config.model.patch_size smaller"
      )
    return grid, kept

  def mask(
    self, keys: Key[Array, "n"], batch: Batch, patches: int, count: int
  ) -> Bool[Array, "n p"]:
    """Which `count` patches of every view are hidden."""
    del batch
    return masking.random(keys, patches, count)

  def loss(
    self, params: Params, extra: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
  ) -> tuple[Float[Array, ""], tuple[Params, Metrics]]:
    del step
    views = batch["global"].shape[0]
    images = flatten_views(batch["global"])
    grid, kept = self._counts(batch["global"].shape)
    patches = grid[0] * grid[1]
    mask_key, drop_key = jax.random.split(key)
    keys = image_keys(mask_key, batch["position"], views)
    # The barrier keeps XLA from drawing the masks again wherever one is used.
    mask = jax.lax.optimization_barrier(self.mask(keys, batch, patches, patches - kept))
    keep = masking.kept(mask, kept)
    features = self.encoder.encode(
      params["encoder"],
      images,
      keys=image_keys(drop_key, batch["position"], views),
      keep=keep,
      train=True,
    )
    prediction = self.decoder.apply(params["decoder"], features.cls, features.patches, keep, grid)
    # What the encoder standardises is gone from what it sees, and cannot be predicted either.
    images = standardize(images) if self.encoder.standardize else images
    target = losses.patches(images, self.encoder.patch_size)
    target = losses.normalised(target) if self.norm_pixels else target
    loss = losses.masked_mse(prediction, target, mask)
    level = jnp.broadcast_to(target.mean(-1, keepdims=True), target.shape)
    flat = losses.masked_mse(level, target, mask)  # of a guess that knows each patch's mean
    first = jax.lax.stop_gradient(features.cls[::views])
    metrics = {
      "explained": 1 - loss / jnp.maximum(flat, 1e-6),
      "feature_std": collapse.spread(first),
      "effective_rank": collapse.participation_ratio(first),
    }
    return loss, (extra, metrics)

  def after_update(self, params: Params, extra: Params, step: Int[Array, ""]) -> Params:
    del params, step
    return extra

  def encoder_params(self, params: Params, extra: Params) -> Params:
    del extra
    return params["encoder"]

  def flops(self, batch_spec: Mapping[str, jax.ShapeDtypeStruct]) -> float:
    views, _, *shape = batch_spec["global"].shape
    (rows, columns), kept = self._counts(batch_spec["global"].shape)
    forward = self.encoder.flops(tuple(shape), keep=kept) + self.decoder.flops(rows * columns, kept)
    return 3.0 * views * forward  # a backward pass costs two forward passes

  def check_collapse(self, metrics: Mapping[str, float]) -> str | None:
    return check_spread(
      metrics, "lower config.optimizer.lr, lengthen its warmup, or raise config.method.mask_ratio"
    )

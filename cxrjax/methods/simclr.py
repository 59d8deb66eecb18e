"""SimCLR: pulls two views of an image together and pushes views of different images apart.

References:
  Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020
  (arXiv 2002.05709).
  Chen et al., Big Self-Supervised Models are Strong Semi-Supervised Learners, 2020
  (arXiv 2006.10029): SimCLRv2's head of three layers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
from jaxtyping import Array, Float, Int, Key

from cxrjax.core.errors import UserError
from cxrjax.losses import collapse, contrastive
from cxrjax.methods import base
from cxrjax.methods.base import (
  Batch,
  Metrics,
  Params,
  check_spread,
  diagnose_chance,
  flatten_views,
  image_keys,
  join_stats,
  split_stats,
)
from cxrjax.models.heads import Projector


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  """SimCLR; see `cxrjax.methods.base.Method` for what the functions do.

  The encoder is evaluated without the projector, whose input is a better representation than its
  output (section 4.2).

  Batch norm in encoder and projector takes its statistics over both views of the global batch
  together, and all other views of it are negatives. With gradient accumulation "the batch" is a
  microbatch: fewer negatives make a different, easier task.

  Attributes:
    hidden, dim, head_layers: the projector, `d -> hidden -> ... -> dim`; the paper has 2048, 128
      and 2 layers, SimCLRv2 3 layers.
    batch_norm: in the projector, after every layer (after the last without a bias).
    temperature: tau; the paper: 0.1 at large batches, 0.5 at CIFAR's size.
  """

  hidden: int = 2048
  dim: int = 128
  head_layers: int = 2
  batch_norm: bool = True
  temperature: float = 0.1

  def __post_init__(self) -> None:
    for name in ("hidden", "dim", "head_layers"):
      if int(getattr(self, name)) < 1:
        raise UserError(f"config.method.{name}={getattr(self, name)} must be at least 1")
    if self.temperature <= 0:
      raise UserError(f"config.method.temperature={self.temperature} must be above 0")
    if self.clock.batch_size < 2:
      raise UserError(
        f"config.batch_size={self.clock.batch_size} leaves SimCLR no negatives; use at least 2"
      )

  @functools.cached_property
  def projector(self) -> Projector:
    return Projector(
      in_dim=self.encoder.features,
      dims=(*[self.hidden] * (self.head_layers - 1), self.dim),
      batch_norm=self.batch_norm,
      final_norm="batch_no_bias" if self.batch_norm else "none",
      dtype=self.encoder.dtype,
    )

  def init(
    self, key: Key[Array, ""], batch_spec: Mapping[str, jax.ShapeDtypeStruct]
  ) -> tuple[Params, Params]:
    views = batch_spec["global"].shape[0]
    if views != 2:
      raise UserError(f"SimCLR contrasts two views: set config.views.global_crops=2, not {views}")
    encoder_key, head_key = jax.random.split(key)
    encoder, stats = split_stats(self.encoder.init(encoder_key))
    return {"encoder": encoder, "projector": self.projector.init(head_key)}, {"stats": stats}

  def loss(
    self, params: Params, state: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
  ) -> tuple[Float[Array, ""], tuple[Params, Metrics]]:
    del step
    images = batch["global"].shape[1]
    features = self.encoder.encode(
      join_stats(params["encoder"], state["stats"]),
      flatten_views(batch["global"]),
      keys=image_keys(key, batch["position"], 2),
      patches=False,
      train=True,
    )
    z = self.projector.apply(params["projector"], features.cls).reshape(images, 2, self.dim)
    loss, accuracy = contrastive.nt_xent(z[:, 0], z[:, 1], self.temperature)
    first = jax.lax.stop_gradient(features.cls.reshape(images, 2, -1)[:, 0])
    metrics = {
      "accuracy": accuracy,
      "feature_std": collapse.spread(first),
      "effective_rank": collapse.participation_ratio(first),
    }
    return loss, ({"stats": features.stats or {}}, metrics)

  def check_collapse(self, metrics: Mapping[str, float]) -> str | None:
    diagnosis = check_spread(
      metrics, "lower config.optimizer.lr, or raise config.method.temperature"
    )
    return diagnosis or diagnose_chance(metrics, 2 * self.clock.batch_size - 1)

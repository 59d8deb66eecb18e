"""SiT: GMML plus a contrastive loss of the class token against a moving average's.

A student restores corrupted views. Its projected class token is also matched to its own image among
the batch's class tokens of the teacher, the student's moving average, which sees another, clean
view.

References:
  Atito et al., SiT: Self-supervised vIsion Transformer, 2021 (arXiv 2104.03602).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from cxrjax.core import durations as clocks
from cxrjax.core.errors import UserError
from cxrjax.losses import contrastive, reconstruction
from cxrjax.methods import gmml
from cxrjax.methods.base import (
  Batch,
  Metrics,
  Params,
  check_spread,
  diagnose_chance,
  ema,
  encode_each_view,
  feature_health,
  flatten_views,
  image_keys,
  join_stats,
  require_two_views,
)
from cxrjax.models.heads import Projector


@dataclasses.dataclass(frozen=True)
class Method(gmml.Method):
  """SiT; options besides those of `cxrjax.methods.gmml.Method`.

  Negatives are the teacher's other images of the global batch, with gradient accumulation of the
  microbatch. Batch norm in the head takes its statistics from both views together.

  Attributes:
    hidden, dim: the head of the class token, `d -> hidden -> hidden -> dim`; the paper's code:
      4096 and 256.
    temperature: tau.
    momentum: of the teacher's moving average, a schedule.
    weight: lambda, of the reconstruction loss; the paper's code: 1, more on small datasets.
    layers: only the last block by default, as in the paper's code.
  """

  layers: tuple[float | int, ...] = (1,)
  hidden: int = 4096
  dim: int = 256
  temperature: float = 0.2
  momentum: Any = dataclasses.field(default_factory=lambda: {"start": 0.996, "end": 1.0})
  weight: float = 1.0

  def __post_init__(self) -> None:
    super().__post_init__()
    for name in ("hidden", "dim"):
      if int(getattr(self, name)) < 1:
        raise UserError(f"config.method.{name}={getattr(self, name)} must be at least 1")
    if self.temperature <= 0:
      raise UserError(f"config.method.temperature={self.temperature} must be above 0")
    if self.weight < 0:
      raise UserError(f"config.method.weight={self.weight} must be at least 0")
    if self.clock.batch_size < 2:
      raise UserError("config.batch_size=1 leaves SiT no negatives; use at least 2")

  @functools.cached_property
  def schedules(self) -> dict[str, clocks.Schedule]:
    key = "config.method.momentum"
    return {"momentum": clocks.from_config(self.momentum, self.clock, key)}

  @functools.cached_property
  def projector(self) -> Projector:
    return Projector(
      in_dim=self.encoder.features,
      dims=(self.hidden, self.hidden, self.dim),
      activation=("relu", "gelu"),
      final_norm="batch_no_affine",
      dtype=self.encoder.dtype,
    )

  def init(
    self, key: Key[Array, ""], batch_spec: Mapping[str, jax.ShapeDtypeStruct]
  ) -> tuple[Params, Params]:
    require_two_views(batch_spec, "SiT")
    restore_key, head_key = jax.random.split(key)
    params, state = super().init(restore_key, batch_spec)
    shared = {"encoder": params["encoder"], "projector": self.projector.init(head_key)}
    return {**params, **shared}, {**state, "teacher": jax.tree.map(jnp.copy, shared)}

  def loss(
    self, params: Params, state: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
  ) -> tuple[Float[Array, ""], tuple[Params, Metrics]]:
    del step
    corrupt_key, drop_key = jax.random.split(key)
    crops = self.corrupted(batch, corrupt_key)
    teacher, stats = state["teacher"], state["stats"]
    target = encode_each_view(self.encoder, join_stats(teacher["encoder"], stats), batch)
    features = self.encoder.encode(
      join_stats(params["encoder"], stats),
      crops.images,
      intermediates=self.intermediates,
      train=True,
      keys=image_keys(drop_key, batch["position"], 2),
    )

    def project(weights: Params, cls: Float[Array, "n d"]) -> list[Array]:
      z = self.projector.apply(weights["projector"], cls)
      return [z[0::2], z[1::2]]

    teacher_keys = project(teacher, flatten_views(jnp.stack([f.cls for f in target])))
    pairs = zip(project(params, features.cls), reversed(teacher_keys), strict=True)
    losses, hits = zip(
      *(contrastive.info_nce(a, b, self.temperature) for a, b in pairs), strict=True
    )
    contrastive_loss = 2 * self.temperature * sum(losses)
    restored = self.restore(params, features, crops.clean.shape)
    l1 = reconstruction.l1(restored, crops.clean, crops.mask)
    metrics = {
      "contrastive": contrastive_loss,
      "reconstruction": l1,
      "accuracy": sum(hits) / 2,
      "explained": gmml.explained(l1, crops, reconstruction.l1),
      **feature_health(target[0].cls),
    }
    return contrastive_loss + self.weight * l1, (
      {**state, "stats": target[-1].stats or {}},
      metrics,
    )

  def after_update(self, params: Params, state: Params, step: Int[Array, ""]) -> Params:
    shared = {name: params[name] for name in state["teacher"]}
    return {**state, "teacher": ema(state["teacher"], shared, self.schedules["momentum"](step))}

  def encoder_params(self, params: Params, state: Params) -> Params:
    """The teacher's, as it is the one that has seen intact images."""
    return join_stats(state["teacher"]["encoder"], state["stats"])

  def check_collapse(self, metrics: Mapping[str, float]) -> str | None:
    diagnosis = check_spread(
      metrics, "lower config.optimizer.lr, or raise config.method.momentum.start"
    )
    return diagnosis or diagnose_chance(metrics, self.clock.batch_size)

"""BYOL: a network predicts its moving average's projection of another view; no negatives.

References:
  Grill et al., Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning, 2020
  (arXiv 2006.07733).
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
from cxrjax.losses import collapse, cosine
from cxrjax.methods import base
from cxrjax.methods.base import (
  Batch,
  Metrics,
  Params,
  check_spread,
  ema,
  encode_each_view,
  feature_health,
  join_stats,
  require_two_views,
  split_stats,
)
from cxrjax.models.heads import Projector

Vectors = list[Float[Array, "b d"]]


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  """BYOL; see `cxrjax.methods.base.Method` for what the functions do.

  The online encoder is evaluated, which is all that the paper keeps (section 3.1).

  The online network is encoder, projector and predictor; the target is a moving average of the
  first two. All batch norm takes its statistics view by view over the global batch (with
  accumulation: the microbatch). In the heads it keeps BYOL from collapsing: leave it on.

  Attributes:
    encoder: online and target network.
    hidden, dim, head_layers: the projector, `d -> hidden -> ... -> dim`; the paper has 4096, 256
      and 2 layers.
    predictor_hidden: the predictor is `dim -> predictor_hidden -> dim`; the paper: 4096.
    batch_norm: in the hidden layers of both heads.
    momentum: of the target's moving average, a schedule; the paper: 0.996 to 1 in 1000 epochs,
      from 0.99 in 300, 0.97 in 40.
  """

  hidden: int = 4096
  dim: int = 256
  head_layers: int = 2
  predictor_hidden: int = 4096
  batch_norm: bool = True
  momentum: Any = dataclasses.field(default_factory=lambda: {"start": 0.996, "end": 1.0})

  def __post_init__(self) -> None:
    for name in ("hidden", "dim", "head_layers", "predictor_hidden"):
      if int(getattr(self, name)) < 1:
        raise UserError(f"config.method.{name}={getattr(self, name)} must be at least 1")
    _ = self.schedules  # raise for a misspelt schedule now, not at the first step

  @functools.cached_property
  def schedules(self) -> dict[str, clocks.Schedule]:
    key = "config.method.momentum"
    return {"momentum": clocks.from_config(self.momentum, self.clock, key)}

  @functools.cached_property
  def projector(self) -> Projector:
    return Projector(
      in_dim=self.encoder.features,
      dims=(*[self.hidden] * (self.head_layers - 1), self.dim),
      batch_norm=self.batch_norm,
      bias=False,
      dtype=self.encoder.dtype,
    )

  @functools.cached_property
  def predictor(self) -> Projector:
    return Projector(
      in_dim=self.dim,
      dims=(self.predictor_hidden, self.dim),
      batch_norm=self.batch_norm,
      bias=False,
      dtype=self.encoder.dtype,
    )

  def init(
    self, key: Key[Array, ""], batch_spec: Mapping[str, jax.ShapeDtypeStruct]
  ) -> tuple[Params, Params]:
    require_two_views(batch_spec, "a predictive method")
    keys = jax.random.split(key, 3)
    encoder, stats = split_stats(self.encoder.init(keys[0]))
    shared = {"encoder": encoder, "projector": self.projector.init(keys[1])}
    params = {**shared, "predictor": self.predictor.init(keys[2])}
    return params, {"teacher": jax.tree.map(jnp.copy, shared), "stats": stats}

  def loss(
    self, params: Params, state: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
  ) -> tuple[Float[Array, ""], tuple[Params, Metrics]]:
    del step

    def project(weights: Params, key: Key[Array, ""] | None) -> tuple[list[Any], Vectors]:
      encoder = join_stats(weights["encoder"], state["stats"])
      features = encode_each_view(self.encoder, encoder, batch, key)
      return features, [self.projector.apply(weights["projector"], f.cls) for f in features]

    features, projections = project(params, key)
    predictions = [self.predictor.apply(params["predictor"], z) for z in projections]
    _, targets = project(state["teacher"], None)
    targets = jax.lax.stop_gradient(targets)
    loss, metrics = self.objective(predictions, projections, targets)
    metrics |= {"projection_std": collapse.spread(targets[0]), **feature_health(features[0].cls)}
    return loss, ({**state, "stats": features[-1].stats or {}}, metrics)

  def objective(
    self, predictions: Vectors, projections: Vectors, targets: Vectors
  ) -> tuple[Float[Array, ""], Metrics]:
    """Loss and metrics from each view's online prediction, online projection and target.

    BYOL's is equation 2 both ways: each view's prediction is compared with the other's target.
    """
    del projections
    pairs = zip(predictions, reversed(targets), strict=True)
    loss = sum((cosine.distance(q, z) for q, z in pairs), start=jnp.zeros(()))
    return loss, {"cosine": 1 - jax.lax.stop_gradient(loss) / 4}

  def after_update(self, params: Params, state: Params, step: Int[Array, ""]) -> Params:
    shared = {name: params[name] for name in ("encoder", "projector")}
    return {**state, "teacher": ema(state["teacher"], shared, self.schedules["momentum"](step))}

  def check_collapse(self, metrics: Mapping[str, float]) -> str | None:
    advice = (
      "lower config.optimizer.lr, raise config.method.momentum.start, or keep "
      "config.method.batch_norm=True"
    )
    return check_spread(metrics, advice) or check_spread(metrics, advice, "projection")

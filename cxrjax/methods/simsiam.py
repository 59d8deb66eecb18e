"""SimSiam: a network predicts its own projection of another view; no negatives, no teacher.

References:
  Chen and He, Exploring Simple Siamese Representation Learning, 2020 (arXiv 2011.10566).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
from jaxtyping import Array, Float, Int, Key

from cxrjax.core.errors import UserError
from cxrjax.losses import collapse, cosine
from cxrjax.methods import base
from cxrjax.methods.base import (
  Batch,
  Metrics,
  Params,
  check_spread,
  encode_each_view,
  feature_health,
  join_stats,
  require_two_views,
  split_stats,
)
from cxrjax.models.heads import Projector


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  """SimSiam; see `cxrjax.methods.base.Method` for what the functions do.

  The encoder is evaluated without the heads, as in the paper.

  Batch norm takes its statistics view by view over the global batch (with accumulation: the
  microbatch). The stop-gradient on the target and the predictor keep it from collapsing; the paper
  trains the predictor with a constant learning rate (`config.optimizer.lr_constant`).

  Attributes:
    hidden, dim, head_layers: the projector, `d -> hidden -> ... -> dim`; the paper has 2048, 2048
      and 3 layers (2 on CIFAR).
    predictor_hidden: the predictor is `dim -> predictor_hidden -> dim`, a bottleneck; the paper: a
      quarter of dim.
    batch_norm: after every layer of the projector (the last without scale and bias) and in the
      predictor's hidden layer. Without it images are not separated, the paper finds (section 4.4).
  """

  hidden: int = 2048
  dim: int = 2048
  head_layers: int = 3
  predictor_hidden: int = 512
  batch_norm: bool = True

  def __post_init__(self) -> None:
    for name in ("hidden", "dim", "head_layers", "predictor_hidden"):
      if int(getattr(self, name)) < 1:
        raise UserError(f"config.method.{name}={getattr(self, name)} must be at least 1")

  @functools.cached_property
  def projector(self) -> Projector:
    return Projector(
      in_dim=self.encoder.features,
      dims=(*[self.hidden] * (self.head_layers - 1), self.dim),
      batch_norm=self.batch_norm,
      final_norm="batch_no_affine" if self.batch_norm else "none",
      dtype=self.encoder.dtype,
    )

  @functools.cached_property
  def predictor(self) -> Projector:
    return Projector(
      in_dim=self.dim,
      dims=(self.predictor_hidden, self.dim),
      batch_norm=self.batch_norm,
      dtype=self.encoder.dtype,
    )

  def init(
    self, key: Key[Array, ""], batch_spec: Mapping[str, jax.ShapeDtypeStruct]
  ) -> tuple[Params, Params]:
    require_two_views(batch_spec, "SimSiam")
    keys = jax.random.split(key, 3)
    encoder, stats = split_stats(self.encoder.init(keys[0]))
    params = {
      "encoder": encoder,
      "projector": self.projector.init(keys[1]),
      "predictor": self.predictor.init(keys[2]),
    }
    return params, {"stats": stats}

  def loss(
    self, params: Params, state: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
  ) -> tuple[Float[Array, ""], tuple[Params, Metrics]]:
    """Equation 3; ranges from -1, where the views agree, to 1."""
    del step
    features = encode_each_view(
      self.encoder, join_stats(params["encoder"], state["stats"]), batch, key
    )
    z = [self.projector.apply(params["projector"], f.cls) for f in features]
    p = [self.predictor.apply(params["predictor"], x) for x in z]
    agreement = (cosine.similarity(p[0], z[1]) + cosine.similarity(p[1], z[0])) / 2
    metrics = {
      "cosine": jax.lax.stop_gradient(agreement),
      "projection_std": collapse.spread(jax.lax.stop_gradient(z[0])),
      **feature_health(features[0].cls),
    }
    return -agreement, ({"stats": features[-1].stats or {}}, metrics)

  def check_collapse(self, metrics: Mapping[str, float]) -> str | None:
    advice = "lower config.optimizer.lr, or keep config.method.batch_norm=True"
    return check_spread(metrics, advice) or check_spread(metrics, advice, "projection")

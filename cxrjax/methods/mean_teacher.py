"""Mean teacher: a network agrees with its own moving average on another view of the image.

References:
  Tarvainen and Valpola, Mean teachers are better role models, 2017 (arXiv 1703.01780).
  Liu et al., Self-supervised Mean Teacher for Semi-supervised Chest X-ray Classification, 2021
  (arXiv 2103.03629): S2MTS2, which fine-tunes pretrained networks this way.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Float, Int, Key

from cxrjax.core import durations as clocks
from cxrjax.core.errors import UserError
from cxrjax.losses.consistency import squared_difference
from cxrjax.methods import classify
from cxrjax.methods.base import (
  Batch,
  Metrics,
  Params,
  feature_health,
  join_stats,
  require_two_views,
  split_stats,
)


@dataclasses.dataclass(frozen=True)
class Method(classify.Method):
  """Classification plus consistency; see `cxrjax.methods.classify.Method` for the rest.

  The student sees the first of two views. It learns the labels of labelled images and, for all
  images, the probabilities that the teacher gives the second view. The teacher is the moving
  average of the student, without drop path and dropout, and is the network that is evaluated.

  Attributes:
    momentum: of the teacher; above 0.
    consistency: weight of the mean squared difference of probabilities, a number or schedule.
  """

  momentum: Any = 0.999
  consistency: Any = 100.0

  def __post_init__(self) -> None:
    super().__post_init__()
    if not self._averages:
      raise UserError("config.method.momentum=0 leaves mean teacher no teacher; give 0.99 or so")
    if self.mixup:
      raise UserError(
        f"config.method.mixup={self.mixup} mixes what the student sees, but not what the teacher "
        "sees; set it to 0"
      )

  @functools.cached_property
  def schedules(self) -> dict[str, clocks.Schedule]:
    return {
      **super().schedules,
      "consistency": clocks.from_config(self.consistency, self.clock, "config.method.consistency"),
    }

  def init(
    self, key: Key[Array, ""], batch_spec: Mapping[str, jax.ShapeDtypeStruct]
  ) -> tuple[Params, Params]:
    require_two_views(batch_spec, "mean teacher")
    params, state = super().init(key, batch_spec)
    return params, {**state, "teacher_stats": state["stats"]}

  def loss(
    self, params: Params, state: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
  ) -> tuple[Float[Array, ""], tuple[Params, Metrics]]:
    outputs = self.forward(params, state, {**batch, "global": batch["global"][:1]}, key)
    supervised, metrics = self.supervise(outputs)
    teacher = state["average"]
    features = self.encoder.encode(teacher["encoder"], batch["global"][1], train=True)
    target = self.probability(self._logits(teacher["head"], features.cls))
    difference = squared_difference(self.probability(outputs.logits), target)
    metrics |= {"supervised": supervised, "difference": difference, **feature_health(features.cls)}
    return supervised + self.schedules["consistency"](step) * difference, (
      {**state, "stats": outputs.stats, "teacher_stats": features.stats or {}},
      metrics,
    )

  def after_update(self, params: Params, state: Params, step: Int[Array, ""]) -> Params:
    state = super().after_update(params, state, step)
    # The teacher's running statistics come from its own features.
    trained, _ = split_stats(state["average"]["encoder"])
    encoder = join_stats(trained, state["teacher_stats"])
    return {**state, "average": {**state["average"], "encoder": encoder}}

"""Batch knowledge ensembling: images also learn from the predictions for similar images.

References:
  Ge et al., Self-distillation with Batch Knowledge Ensembling Improves ImageNet Classification,
  2021 (arXiv 2104.13298): BAKE.
  Li et al., Boosting Automatic COVID-19 Detection Performance with Self-Supervised Learning and
  Batch Knowledge Ensembling, 2022 (arXiv 2212.09281): BKE, on pretrained networks and few labels.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from jaxtyping import Array, Float, Int, Key

from cxrjax.core import durations as clocks
from cxrjax.core.errors import UserError
from cxrjax.losses import ensembling
from cxrjax.methods import classify
from cxrjax.methods.base import Batch, Metrics, Params


@dataclasses.dataclass(frozen=True)
class Method(classify.Method):
  """Classification plus `weight T^2 KL(Q || P)`; see `cxrjax.methods.classify.Method` for the rest.

  P are the network's predictions at temperature T, Q soft targets from those of the whole batch.
  Labelled and unlabelled images are treated alike. Findings each have their own P and Q. "The
  batch" is the global one; with gradient accumulation it is a microbatch.

  Attributes:
    weight: of the soft targets, a number or schedule.
    omega: weight of other images in the targets, from 0 to below 1.
    temperature: T, of the predictions.
    affinity_temperature: of the similarity of images; 1 in the papers. Cosines differ by 2 at most,
      so at 1 all images of a batch count nearly alike; at lower values the most similar dominate.
  """

  weight: Any = 1.0
  omega: float = 0.5
  temperature: float = 4.0
  affinity_temperature: float = 1.0

  def __post_init__(self) -> None:
    super().__post_init__()
    if not 0 <= self.omega < 1:
      raise UserError(f"config.method.omega={self.omega} must be from 0 to below 1")
    for name in ("temperature", "affinity_temperature"):
      if getattr(self, name) <= 0:
        raise UserError(f"config.method.{name}={getattr(self, name)} must be above 0")
    if self.mixup:
      raise UserError(
        f"config.method.mixup={self.mixup} mixes labelled images with others, whose labels are "
        "unknown; set it to 0"
      )
    if self.clock.batch_size < 2:
      raise UserError(
        f"config.batch_size={self.clock.batch_size} leaves no other image; use at least 2"
      )

  @functools.cached_property
  def schedules(self) -> dict[str, clocks.Schedule]:
    return {
      **super().schedules,
      "weight": clocks.from_config(self.weight, self.clock, "config.method.weight"),
    }

  def loss(
    self, params: Params, state: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
  ) -> tuple[Float[Array, ""], tuple[Params, Metrics]]:
    outputs = self.forward(params, state, batch, key)
    supervised, metrics = self.supervise(outputs, batch["global"].shape[0])
    logits = outputs.logits / self.temperature
    target = ensembling.propagate(
      ensembling.affinity(outputs.features, self.affinity_temperature),
      self.probability(logits),
      self.omega,
    )
    kl = ensembling.softmax_kl if self.labels.exclusive else ensembling.sigmoid_kl
    ensembled = self.temperature**2 * kl(target, logits)
    return supervised + self.schedules["weight"](step) * ensembled, (
      {**state, "stats": outputs.stats},
      {**metrics, "supervised": supervised, "ensembled": ensembled},
    )

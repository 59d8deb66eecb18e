"""DINO: self-distillation with no labels.

A student sees all crops; the teacher, its exponential moving average, sees the large ones. The
student predicts the teacher's centred and sharpened prototype assignments across crops.

References:
  Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021 (arXiv 2104.14294).
  Shakouri et al., DINO-CXR, 2023 (arXiv 2308.00475): the same on radiographs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from cxrjax.core import durations as clocks
from cxrjax.core.errors import UserError
from cxrjax.losses import collapse
from cxrjax.losses import dino as losses
from cxrjax.methods import base
from cxrjax.methods.base import (
  Batch,
  Metrics,
  Params,
  check_spread,
  ema,
  feature_health,
  flatten_views,
  image_keys,
  join_stats,
  split_stats,
)
from cxrjax.models.heads import DinoHead


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  """DINO; see `cxrjax.methods.base.Method` for what the functions do.

  Attributes:
    encoder: student and teacher network.
    prototypes: K, number of outputs of the head.
    hidden, bottleneck, head_layers: the projector, `d -> hidden -> ... -> bottleneck -> K`.
    batch_norm: in the head; for short runs, see `cxrjax.models.heads.DinoHead`.
    norm_last_layer: fix the prototypes' norm at 1 (safer; the paper's choice for all but ViT-S).
    student_temp: tau_s.
    teacher_temp: tau_t, a schedule; the paper: 0.04, or 0.04 to 0.07 over 30 epochs.
    momentum: of the teacher's moving average, a schedule; 0.996 to 1, 0.9995 for small batches.
    center_momentum: of the centre's moving average.
  """

  prototypes: int = 65536
  hidden: int = 2048
  bottleneck: int = 256
  head_layers: int = 3
  batch_norm: bool = False
  norm_last_layer: bool = True
  student_temp: float = 0.1
  teacher_temp: Any = 0.04
  momentum: Any = dataclasses.field(default_factory=lambda: {"start": 0.996, "end": 1.0})
  center_momentum: float = 0.9

  def __post_init__(self) -> None:
    for name in ("prototypes", "hidden", "bottleneck", "head_layers"):
      if int(getattr(self, name)) < 1:
        raise UserError(f"config.method.{name}={getattr(self, name)} must be at least 1")
    if self.student_temp <= 0:
      raise UserError(f"config.method.student_temp={self.student_temp} must be above 0")
    if not 0 <= self.center_momentum < 1:
      raise UserError(f"config.method.center_momentum={self.center_momentum} must be in [0, 1)")
    _ = self.schedules  # raise for a misspelt schedule now, not at the first step

  @functools.cached_property
  def schedules(self) -> dict[str, clocks.Schedule]:
    key = "config.method"
    return {
      "momentum": clocks.from_config(self.momentum, self.clock, f"{key}.momentum"),
      "teacher_temp": clocks.from_config(self.teacher_temp, self.clock, f"{key}.teacher_temp"),
    }

  @functools.cached_property
  def head(self) -> DinoHead:
    return DinoHead(
      in_dim=self.encoder.features,
      prototypes=self.prototypes,
      hidden=self.hidden,
      bottleneck=self.bottleneck,
      layers=self.head_layers,
      norm_last_layer=self.norm_last_layer,
      batch_norm=self.batch_norm,
      initial=self.encoder.initial or "normal",
      dtype=self.encoder.dtype,
    )

  def init(
    self, key: Key[Array, ""], batch_spec: Mapping[str, jax.ShapeDtypeStruct]
  ) -> tuple[Params, Params]:
    if "global" not in batch_spec or batch_spec["global"].shape[0] < 2:
      raise UserError("DINO compares two large crops; set config.views.global_crops=2")
    encoder_key, head_key = jax.random.split(key)
    encoder, stats = split_stats(self.encoder.init(encoder_key))
    params = {"encoder": encoder, "head": self.head.init(head_key)}
    # A copy: a teacher that shares the student's buffers follows it exactly, and the loss collapses
    # to ln K.
    teacher = jax.tree.map(jnp.copy, params)
    center = jnp.zeros((self.prototypes,), jnp.float32)
    return params, {"teacher": teacher, "center": center, "stats": stats}

  def loss(
    self, params: Params, state: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
  ) -> tuple[Float[Array, ""], tuple[Params, Metrics]]:
    images, num_large = batch["global"].shape[1], batch["global"].shape[0]
    views, keys = self.crops(batch, key)
    teacher, stats = state["teacher"], state["stats"]
    encode = functools.partial(self.encoder.encode, patches=False, train=True)
    target = encode(join_stats(teacher["encoder"], stats), views[:1])
    target_logits = self.logits(teacher["head"], target, images)
    temperature = self.schedules["teacher_temp"](step)
    probabilities = losses.teacher_probabilities(target_logits, state["center"], temperature)
    features = encode(join_stats(params["encoder"], stats), views, keys=keys)
    logits = self.logits(params["head"], features, images)
    loss = losses.cross_entropy(logits, probabilities, self.student_temp)

    center = losses.update_center(state["center"], target_logits, self.center_momentum)
    entropy = collapse.entropy(probabilities).mean()
    metrics = {
      "teacher_entropy": entropy,
      "batch_entropy": collapse.entropy(probabilities.mean((0, 1))),
      "kl": loss - entropy,
      **feature_health(target[0].cls[::num_large]),
    }
    stats = target[-1].stats or {}
    return loss, ({**state, "center": center, "stats": stats}, metrics)

  def crops(self, batch: Batch, key: Key[Array, ""]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Large and small crops `f32[n h w 1]`, in the order of `flatten_views`, with keys for each."""
    crops = [batch[name] for name in ("global", "local") if name in batch]
    firsts = (0, crops[0].shape[0])
    keys = tuple(
      image_keys(key, batch["position"], x.shape[0], first)
      for x, first in zip(crops, firsts, strict=False)
    )
    return tuple(flatten_views(x) for x in crops), keys

  def logits(self, head: Params, features: Sequence[Any], images: int) -> Float[Array, "b v K"]:
    """Head outputs for the class tokens of all crops of each image, the large ones first."""
    cls = jnp.concatenate([f.cls.reshape(images, -1, f.cls.shape[-1]) for f in features], axis=1)
    logits = self.head.apply(head, cls.reshape(-1, cls.shape[-1]))
    return logits.reshape(images, -1, self.prototypes)

  def after_update(self, params: Params, state: Params, step: Int[Array, ""]) -> Params:
    momentum = self.schedules["momentum"](step)
    return {**state, "teacher": ema(state["teacher"], params, momentum)}

  def encoder_params(self, params: Params, state: Params) -> Params:
    """The teacher's, which is better than the student throughout training (section 5.1)."""
    return join_stats(state["teacher"]["encoder"], state["stats"])

  def check_collapse(self, metrics: Mapping[str, float]) -> str | None:
    uniform = math.log(self.prototypes)
    if metrics["teacher_entropy"] > 0.999 * uniform:
      return (
        f"the teacher's entropy is {metrics['teacher_entropy']:.4f} of at most "
        f"ln {self.prototypes} = {uniform:.4f}: every image gets the uniform answer; lower "
        "config.method.teacher_temp or config.optimizer.lr, or raise config.method.momentum.start"
      )
    diagnosis = check_spread(
      metrics,
      "lower config.optimizer.lr, lower config.method.center_momentum, or raise "
      "config.method.momentum.start",
    )
    if diagnosis:
      return diagnosis
    if metrics["batch_entropy"] < 0.01 * uniform:
      return (
        f"the batch's mean assignment has entropy {metrics['batch_entropy']:.4f}: one prototype "
        "takes every image; raise config.method.teacher_temp, or lower "
        "config.method.center_momentum"
      )
    return None

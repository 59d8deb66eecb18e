"""MC-SSL: GMML, plus a teacher's pseudo-labels for the image and for each of its patches.

A student sees corrupted large crops and clean small ones; the teacher, its moving average, sees the
clean large ones. Three losses are summed: DINO's between class tokens of different crops; the same
between corresponding patches of student and teacher; the squared error of restored pixels.

References:
  Atito et al., MC-SSL0.0: Towards Multi-Concept Self-Supervised Learning, 2021 (arXiv 2111.15340).
  Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021 (arXiv 2104.14294).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from cxrjax.core.errors import UserError
from cxrjax.losses import collapse, ibot, reconstruction
from cxrjax.losses import dino as losses
from cxrjax.methods import dino, gmml
from cxrjax.methods.base import Batch, Metrics, Params, ema, feature_health, join_stats


@dataclasses.dataclass(frozen=True)
class Method(dino.Method):
  """MC-SSL; options besides those of `cxrjax.methods.dino.Method`.

  Class tokens and patches each have their own head and centre. Every patch gets a pseudo-label,
  corrupted or not; the published description does not say which should.

  Attributes:
    corruption, layers, head_depth: of `cxrjax.methods.gmml.Method`.
    data_weight: of the loss on the patches' pseudo-labels; the paper's code: 1.
    pixel_weight: of the reconstruction loss; the paper's code: 1.
  """

  prototypes: int = 8192
  corruption: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  layers: tuple[float | int, ...] = (1 / 2, 2 / 3, 5 / 6, 1)
  head_depth: int = 3
  data_weight: float = 1.0
  pixel_weight: float = 1.0

  def __post_init__(self) -> None:
    super().__post_init__()
    for name in ("data_weight", "pixel_weight"):
      if getattr(self, name) < 0:
        raise UserError(f"config.method.{name}={getattr(self, name)} must be at least 0")
    _ = self.restorer

  @functools.cached_property
  def restorer(self) -> gmml.Method:
    """The GMML method that corrupts and restores images."""
    return gmml.Method(
      encoder=self.encoder,
      clock=self.clock,
      corruption=self.corruption,
      layers=self.layers,
      head_depth=self.head_depth,
    )

  def init(
    self, key: Key[Array, ""], batch_spec: Mapping[str, jax.ShapeDtypeStruct]
  ) -> tuple[Params, Params]:
    class_key, data_key, pixel_key = jax.random.split(key, 3)
    params, state = super().init(class_key, batch_spec)
    self.restorer.grid(batch_spec["global"].shape)
    params |= {"data_head": self.head.init(data_key), "pixels": self.restorer.head.init(pixel_key)}
    teacher = {**state["teacher"], "data_head": jax.tree.map(jnp.copy, params["data_head"])}
    return params, {**state, "teacher": teacher, "data_center": jnp.zeros_like(state["center"])}

  def loss(
    self, params: Params, state: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
  ) -> tuple[Float[Array, ""], tuple[Params, Metrics]]:
    corrupt_key, drop_key = jax.random.split(key)
    corrupted = self.restorer.corrupted(batch, corrupt_key)
    num_large, images = batch["global"].shape[:2]
    views, keys = self.crops(batch, drop_key)
    teacher, stats = state["teacher"], state["stats"]
    temperature = self.schedules["teacher_temp"](step)
    encode = functools.partial(self.encoder.encode, train=True)
    target = encode(join_stats(teacher["encoder"], stats), views[:1])
    logits = self.logits(teacher["head"], target, images)
    data_logits = self._patch_logits(teacher, target[0])
    features = encode(
      join_stats(params["encoder"], stats),
      (corrupted.images, *views[1:]),
      keys=keys,
      intermediates=self.restorer.intermediates,
    )

    probabilities = losses.teacher_probabilities(logits, state["center"], temperature)
    class_loss = losses.cross_entropy(
      self.logits(params["head"], features, images), probabilities, self.student_temp
    )
    patch_probabilities = losses.teacher_probabilities(
      data_logits, state["data_center"], temperature
    )
    weights = jnp.full(patch_probabilities.shape[:1], 1 / patch_probabilities.shape[0])
    data_loss = ibot.cross_entropy(
      self._patch_logits(params, features[0]), patch_probabilities, weights, self.student_temp
    )
    restored = self.restorer.restore(params, features[0], corrupted.clean.shape)
    mse = reconstruction.mse(restored, corrupted.clean, corrupted.mask)

    entropy = collapse.entropy(probabilities).mean()
    data_entropy = collapse.entropy(patch_probabilities).mean()
    metrics = {
      "class_loss": class_loss,
      "data_loss": data_loss,
      "reconstruction": mse,
      "teacher_entropy": entropy,
      "batch_entropy": collapse.entropy(probabilities.mean((0, 1))),
      "kl": class_loss - entropy,
      "data_kl": data_loss - data_entropy,
      "data_entropy": data_entropy,
      "explained": gmml.explained(mse, corrupted, reconstruction.mse),
      **feature_health(target[0].cls[::num_large]),
    }
    state = {
      **state,
      "center": losses.update_center(state["center"], logits, self.center_momentum),
      "data_center": losses.update_center(
        state["data_center"], data_logits[None], self.center_momentum
      ),
      "stats": target[-1].stats or {},
    }
    loss = class_loss + self.data_weight * data_loss + self.pixel_weight * mse
    return loss, (state, metrics)

  def _patch_logits(self, params: Params, features: Any) -> Float[Array, "n K"]:
    patches = features.patches.reshape(-1, features.patches.shape[-1])
    return self.head.apply(params["data_head"], patches)

  def after_update(self, params: Params, state: Params, step: Int[Array, ""]) -> Params:
    shared = {name: params[name] for name in state["teacher"]}
    return {**state, "teacher": ema(state["teacher"], shared, self.schedules["momentum"](step))}

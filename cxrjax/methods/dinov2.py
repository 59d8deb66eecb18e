"""DINOv2: DINO on class tokens, iBOT on masked patches, KoLeo; each can be switched off.

A student sees large crops, some with blocks of patches replaced by a mask token, and small ones.
Its class tokens predict the assignments of the teacher, its moving average, for the other large
crop; its masked patches predict the assignments of the teacher, which sees these patches.

References:
  Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, 2023
  (arXiv 2304.07193), section 4.
  Zhou et al., iBOT: Image BERT Pre-Training with Online Tokenizer, 2021 (arXiv 2111.07832).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from cxrjax.core.errors import UserError, suggest
from cxrjax.losses import collapse, ibot
from cxrjax.losses import dino as class_losses
from cxrjax.losses.koleo import koleo
from cxrjax.losses.sinkhorn import sinkhorn_knopp
from cxrjax.methods import dino
from cxrjax.methods.base import Batch, Metrics, Params, feature_health, image_keys, join_stats
from cxrjax.views import masking

CENTERINGS = ("center", "sinkhorn")


@dataclasses.dataclass(frozen=True)
class Method(dino.Method):
  """DINOv2; options besides those of `cxrjax.methods.dino.Method`.

  `class_weight=1, patch_weight=0, koleo_weight=0, centering="center"` is DINO, and with
  `patch_weight=1` iBOT. Only the patch loss needs a network that can mask patches (a ViT with
  `mask_token=True`); without it nothing is masked.

  Sinkhorn and nearest neighbours span the global batch (with accumulation: the microbatch).

  Attributes:
    class_weight: of DINO's loss; 0: off.
    patch_weight: of iBOT's loss; 0: off.
    koleo_weight: of KoLeo on the student's class tokens, summed over the large crops; 0: off.
    centering: of the teacher: "center", DINO's moving average (with a separate centre for patches),
      or "sinkhorn".
    sinkhorn_iterations: of "sinkhorn".
    separate_head: whether patches have their own head, of the same size.
    mask_prob: share of the large crops that are masked, met as nearly as possible for every image
      by a random choice of its crops (with 0.5 and two crops: one). The paper draws them from the
      batch; no term of the loss depends on two crops' masks, so its mean is the same, while half
      as many patches need room.
    mask_ratio: range of the hidden share of a masked crop's patches, uniform.
    norm_last_layer: False here, as in the paper's code.
  """

  norm_last_layer: bool = False
  momentum: Any = dataclasses.field(default_factory=lambda: {"start": 0.992, "end": 1.0})
  class_weight: float = 1.0
  patch_weight: float = 1.0
  koleo_weight: float = 0.1
  centering: str = "center"
  sinkhorn_iterations: int = 3
  separate_head: bool = False
  mask_prob: float = 0.5
  mask_ratio: tuple[float, float] = (0.1, 0.5)

  def __post_init__(self) -> None:
    super().__post_init__()
    for name in ("class_weight", "patch_weight", "koleo_weight"):
      if not getattr(self, name) >= 0:
        raise UserError(f"config.method.{name}={getattr(self, name)} must be 0 (off) or above")
    if not (self.class_weight or self.patch_weight):
      raise UserError(
        "config.method.class_weight=0 and patch_weight=0 leave nothing to learn; set one to 1"
      )
    if self.centering not in CENTERINGS:
      raise UserError(
        f"config.method.centering={self.centering!r} is unknown"
        f"{suggest(self.centering, CENTERINGS)}"
      )
    if self.sinkhorn_iterations < 1:
      raise UserError(
        f"config.method.sinkhorn_iterations={self.sinkhorn_iterations} must be at least 1"
      )
    if not 0 < self.mask_prob <= 1:
      raise UserError(f"config.method.mask_prob={self.mask_prob} must be above 0, at most 1")
    if len(self.mask_ratio) != 2 or not 0 < self.mask_ratio[0] <= self.mask_ratio[1] <= 1:
      raise UserError(
        f"config.method.mask_ratio={self.mask_ratio} must be a least and a most share, 0..1"
      )
    if self.patch_weight and not self.encoder.masks_patches:
      raise UserError(
        f"config.model.name={type(self.encoder).__module__!r} cannot mask patches, which iBOT's "
        "loss needs; choose 'cxrjax.models.vit', or set config.method.patch_weight=0"
      )
    if self.patch_weight and not self.encoder.mask_token:
      raise UserError(
        "iBOT's loss needs config.model.mask_token=True; or set config.method.patch_weight=0"
      )

  @property
  def _patch_head(self) -> str:
    return "patch_head" if self.separate_head else "head"

  def init(
    self, key: Key[Array, ""], batch_spec: Mapping[str, jax.ShapeDtypeStruct]
  ) -> tuple[Params, Params]:
    params, state = super().init(key, batch_spec)
    if self.patch_weight and self.separate_head:
      params["patch_head"] = self.head.init(jax.random.fold_in(key, 1))
      state["teacher"]["patch_head"] = jax.tree.map(jnp.copy, params["patch_head"])
    if self.centering == "sinkhorn":
      del state["center"]
    elif self.patch_weight:
      state["patch_center"] = jnp.zeros_like(state["center"])
    return params, state

  def _grid(self, shape: tuple[int, ...]) -> tuple[tuple[int, int], int]:
    """Patch grid of crops [v b h w c], and the most patches that are masked in one crop."""
    size = self.encoder.patch_size
    grid = shape[2] // size, shape[3] // size
    return grid, max(1, int(grid[0] * grid[1] * self.mask_ratio[1] + 1e-6))

  def _max_masked(self, shape: tuple[int, ...]) -> int:
    """The most patches that are masked in all of one image's crops [v b h w c]."""
    return math.ceil(shape[0] * self.mask_prob - 1e-6) * self._grid(shape)[1]

  def masks(
    self, key: Key[Array, ""], position: Int[Array, "b"], shape: tuple[int, ...]
  ) -> Bool[Array, "b v n"]:
    """Patches of the large crops, of shape [v b h w c], that are hidden from the student."""
    crops = shape[0]
    grid, most = self._grid(shape)
    patches = grid[0] * grid[1]

    def draw(key: Key[Array, ""]) -> tuple[Int[Array, "v"], Key[Array, "v"]]:
      order_key, start_key, ratio_key, block_key = jax.random.split(key, 4)
      # Systematic sampling: each crop takes a step of mask_prob on a line, in random order and from
      # a random start, and is masked if the step passes a whole number.
      rank = jax.random.permutation(order_key, crops)
      offset = rank * self.mask_prob + jax.random.uniform(start_key)
      masked = jnp.floor(offset + self.mask_prob) > jnp.floor(offset)
      low, high = self.mask_ratio
      share = jax.random.uniform(ratio_key, (crops,), minval=low, maxval=high)
      count = jnp.clip(jnp.floor(share * patches), 1, most)
      return jnp.where(masked, count, 0).astype(jnp.int32), jax.random.split(block_key, crops)

    counts, keys = jax.vmap(draw)(image_keys(key, position, 1))
    return masking.blocks(keys.reshape(-1), grid, counts.reshape(-1)).reshape(
      *counts.shape, patches
    )

  def loss(
    self, params: Params, state: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
  ) -> tuple[Float[Array, ""], tuple[Params, Metrics]]:
    shape = batch["global"].shape
    crops, images = shape[:2]
    drop_key, mask_key = jax.random.split(key)
    views, keys = self.crops(batch, drop_key)
    encode = functools.partial(self.encoder.encode, patches=self.patch_weight > 0, train=True)
    options, mask = {}, None
    if self.patch_weight:
      # The barrier keeps XLA from redrawing the masks wherever they are used.
      mask = jax.lax.optimization_barrier(self.masks(mask_key, batch["position"], shape))
      options["mask"] = (mask.reshape(images * crops, -1), None)[: len(views)]
    teacher, stats = state["teacher"], state["stats"]
    target = encode(join_stats(teacher["encoder"], stats), views[:1])
    features = encode(join_stats(params["encoder"], stats), views, keys=keys, **options)
    temperature = self.schedules["teacher_temp"](step)

    loss = jnp.zeros(())
    new_centers: dict[str, Array] = {}
    metrics: Metrics = {}
    if self.class_weight:
      value, center, health = self._class_loss(
        (params, teacher), (features, target), images, state.get("center"), temperature
      )
      loss += self.class_weight * value
      new_centers |= {} if center is None else {"center": center}
      metrics |= {"class_loss": value, **health}
    if mask is not None:
      value, center, health = self._patch_loss(
        (params, teacher),
        (features[0], target[0]),
        mask,
        self._max_masked(shape),
        state.get("patch_center"),
        temperature,
      )
      loss += self.patch_weight * value
      new_centers |= {} if center is None else {"patch_center": center}
      metrics |= {
        "patch_loss": value,
        **{f"patch_{name}": x for name, x in health.items()},
        "masked": mask.mean(),
      }
    if self.koleo_weight:
      cls = features[0].cls.reshape(images, crops, -1)
      value = sum((koleo(cls[:, v]) for v in range(crops)), start=jnp.zeros(()))
      loss += self.koleo_weight * value
      metrics |= {"koleo": value / crops}
    metrics |= feature_health(target[0].cls[::crops])
    return loss, ({**state, **new_centers, "stats": target[-1].stats or {}}, metrics)

  def _class_loss(
    self,
    weights: tuple[Params, Params],
    features: tuple[Sequence[Any], Sequence[Any]],
    images: int,
    center: Float[Array, "K"] | None,
    temperature: Float[Array, ""],
  ) -> tuple[Float[Array, ""], Float[Array, "K"] | None, Metrics]:
    """DINO's loss, the teacher's next centre, and metrics.

    Args:
      weights: of student and teacher.
      features: of all crops from the student, and of the large ones from the teacher.
      images: number of images.
      center: the teacher's centre, if it has one.
      temperature: the teacher's.
    """
    (student, teacher), (student_features, teacher_features) = weights, features
    logits = self.logits(teacher["head"], teacher_features, images)
    probabilities, center = self._teacher_probabilities(
      logits.reshape(-1, self.prototypes), center, temperature, None
    )
    value = class_losses.cross_entropy(
      self.logits(student["head"], student_features, images),
      probabilities.reshape(logits.shape),
      self.student_temp,
    )
    uniform = jnp.full(len(probabilities), 1 / len(probabilities))
    return value, center, _health(value, probabilities, uniform)

  def _patch_loss(
    self,
    weights: tuple[Params, Params],
    features: tuple[Any, Any],
    mask: Bool[Array, "b v n"],
    room: int,
    center: Float[Array, "K"] | None,
    temperature: Float[Array, ""],
  ) -> tuple[Float[Array, ""], Float[Array, "K"] | None, Metrics]:
    """iBOT's loss on masked patches, as `_class_loss` of features of large crops.

    `mask` has at most `room` patches of an image.
    """
    (student, teacher), (student_features, teacher_features) = weights, features
    images = len(mask)
    index, patch_weights = self._masked_patches(mask, room)

    def logits(params: Params, features: Any) -> Float[Array, "m K"]:
      patches = features.patches.reshape(images, -1, features.patches.shape[-1])
      masked = jnp.take_along_axis(patches, index[..., None], axis=1)
      return self.head.apply(params[self._patch_head], masked.reshape(-1, masked.shape[-1]))

    probabilities, center = self._teacher_probabilities(
      logits(teacher, teacher_features), center, temperature, patch_weights > 0
    )
    value = ibot.cross_entropy(
      logits(student, student_features), probabilities, patch_weights, self.student_temp
    )
    return value, center, _health(value, probabilities, patch_weights)

  def _masked_patches(
    self, mask: Bool[Array, "b v n"], room: int
  ) -> tuple[Int[Array, "b r"], Float[Array, "m"]]:
    """Indices of each image's masked patches among those of its crops, and their weights.

    There are `room` of each; an image with fewer is padded with other patches of weight 0.
    """
    flat = mask.reshape(mask.shape[0], -1)
    index = masking.visible(~flat, room)
    weights = ibot.patch_weights(mask).reshape(flat.shape)
    return index, jnp.take_along_axis(weights, index, axis=1).reshape(-1)

  def _teacher_probabilities(
    self,
    logits: Float[Array, "m K"],
    center: Float[Array, "K"] | None,
    temperature: Float[Array, ""],
    valid: Bool[Array, "m"] | None,
  ) -> tuple[Float[Array, "m K"], Float[Array, "K"] | None]:
    """The teacher's probabilities, and its next centre if it has one."""
    if center is None:
      return sinkhorn_knopp(logits, temperature, self.sinkhorn_iterations, valid), None
    probabilities = class_losses.teacher_probabilities(logits, center, temperature)
    valid = jnp.ones(len(logits), bool) if valid is None else valid
    return probabilities, ibot.update_center(center, logits, valid, self.center_momentum)

  def check_collapse(self, metrics: Mapping[str, float]) -> str | None:
    for prefix in (["patch_"] if self.patch_weight else []) + ([""] if self.class_weight else []):
      names = ("teacher_entropy", "batch_entropy")
      diagnosis = super().check_collapse(
        {**metrics, **{name: metrics[prefix + name] for name in names}}
      )
      if diagnosis:
        return f"of the masked patches, {diagnosis}" if prefix else diagnosis
    return None


def _health(
  loss: Float[Array, ""], probabilities: Float[Array, "m K"], weights: Float[Array, "m"]
) -> Metrics:
  """The teacher's entropies and the student's distance to it, over weighted samples."""
  total = jnp.maximum(weights.sum(), 1e-9)
  entropy = (weights * collapse.entropy(probabilities)).sum() / total
  return {
    "teacher_entropy": entropy,
    "batch_entropy": collapse.entropy(weights @ probabilities / total),
    "kl": loss / total - entropy,
  }

"""PIRL: match an image and its pretext transform to the image's entry in a memory bank.

The pretext task is a jigsaw puzzle, nine patches in random order, or a rotation by a multiple of 90
degrees. Features are trained to be invariant to it, where the tasks' own networks predict it.

References:
  Misra and van der Maaten, Self-Supervised Learning of Pretext-Invariant Representations, 2019
  (arXiv 1912.01991).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from cxrjax.core.errors import UserError, suggest
from cxrjax.losses import collapse
from cxrjax.losses.contrastive import unit
from cxrjax.losses.nce import nce
from cxrjax.methods import base
from cxrjax.methods.base import (
  Batch,
  Metrics,
  Params,
  check_spread,
  feature_health,
  flatten_views,
  image_keys,
  join_stats,
  split_stats,
)
from cxrjax.models.heads import Projector

# For each task: name and number of its views, and the recipe that makes them.
TASKS = {
  "jigsaw": ("patches", 9, "cxrjax.views.pretext.Jigsaw"),
  "rotation": ("rotated", 1, "cxrjax.views.pretext.Rotation"),
}


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  """PIRL; see `cxrjax.methods.base.Method` for what the functions do.

  The encoder is evaluated without the heads, as in the paper.

  The bank has a row for every image of the data, initially a random direction. After a step the
  rows of its images move towards the embeddings that their image views had in it,
  `m <- unit(momentum m + (1 - momentum) f)`; an image that is in a batch twice moves
  towards the embeddings' mean.

  All images of a step are compared with the same rows, drawn anew in every step from its key; an
  image's own row is not among its negatives. Neither the bank nor the draw depends on devices or on
  gradient accumulation: embeddings are collected in `state["fresh"]`, each in the place of its
  image in the whole batch, until all microbatches are done.

  Batch norm takes its statistics from all image views and from all pretext views of the global
  batch (with accumulation: the microbatch). The encoder's running statistics are of image views
  alone, as it is evaluated on these; the authors' are of both.

  Attributes:
    clock: length of the run and number of images in the data.
    task: "jigsaw" or "rotation"; `config.views` must be the recipe of that name from
      `cxrjax.views.pretext`.
    dim: of the embeddings and of the bank; the paper: 128.
    batch_norm: normalise the embeddings over the batch (without scale and bias). The paper does
      not; it keeps images apart where all look alike to an untrained network, as radiographs do,
      and training is short.
    temperature: tau.
    negatives: rows drawn from the bank; all other rows if the data has no more.
    momentum: weight of the old row in its update.
    pretext_weight: lambda, of the pretext view's term; the image view's has 1 - lambda.
  """

  task: str = "jigsaw"
  dim: int = 128
  batch_norm: bool = False
  temperature: float = 0.07
  negatives: int = 32000
  momentum: float = 0.5
  pretext_weight: float = 0.5

  def __post_init__(self) -> None:
    if self.task not in TASKS:
      raise UserError(f"config.method.task={self.task!r} is unknown{suggest(self.task, TASKS)}")
    for name in ("dim", "negatives"):
      if int(getattr(self, name)) < 1:
        raise UserError(f"config.method.{name}={getattr(self, name)} must be at least 1")
    if self.temperature <= 0:
      raise UserError(f"config.method.temperature={self.temperature} must be above 0")
    if not 0 <= self.momentum < 1:
      raise UserError(f"config.method.momentum={self.momentum} must be in [0, 1)")
    if not 0 <= self.pretext_weight <= 1:
      raise UserError(f"config.method.pretext_weight={self.pretext_weight} must be in [0, 1]")
    if self.clock.num_examples < 2:
      raise UserError("config.data.source has a single image, which leaves PIRL no negatives")

  @functools.cached_property
  def projector(self) -> Projector:
    """f for an image view's features; with other weights also g for a rotated view's."""
    return self._head(self.encoder.features, last=True)

  @functools.cached_property
  def patch_projector(self) -> Projector:
    """First part of g for the puzzle: projects every patch's features."""
    return self._head(self.encoder.features, last=False)

  @functools.cached_property
  def merger(self) -> Projector:
    """Second part of g for the puzzle: merges the patches' projections, in their order."""
    return self._head(TASKS["jigsaw"][1] * self.dim, last=True)

  def _head(self, in_dim: int, last: bool) -> Projector:
    has_final_norm = last and self.batch_norm
    return Projector(
      in_dim=in_dim,
      dims=(self.dim,),
      final_norm="batch_no_affine" if has_final_norm else "none",
      dtype=self.encoder.dtype,
    )

  def init(
    self, key: Key[Array, ""], batch_spec: Mapping[str, jax.ShapeDtypeStruct]
  ) -> tuple[Params, Params]:
    self._check(batch_spec)
    keys = jax.random.split(key, 5)
    encoder, stats = split_stats(self.encoder.init(keys[0]))
    pretext = (
      {"projector": self.projector.init(keys[2])}
      if self.task == "rotation"
      else {"projector": self.patch_projector.init(keys[2]), "merger": self.merger.init(keys[3])}
    )
    params = {"encoder": encoder, "projector": self.projector.init(keys[1]), "pretext": pretext}
    batch_size = self.clock.batch_size
    state = {
      "stats": stats,
      "bank": unit(jax.random.normal(keys[4], (self.clock.num_examples, self.dim))),
      # Of the step's images: their rows, as floats (exact up to 2^24), and the embeddings that the
      # rows move towards.
      "fresh": {"rows": jnp.zeros((batch_size,)), "embeddings": jnp.zeros((batch_size, self.dim))},
    }
    return params, state

  def _check(self, batch_spec: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    name, count, recipe = TASKS[self.task]
    if name not in batch_spec or batch_spec[name].shape[0] != count:
      raise UserError(
        f"PIRL with config.method.task={self.task!r} needs config.views.name={recipe!r}"
      )
    side, cell = batch_spec[name].shape[2], self.encoder.patch_size
    if side % cell:
      raise UserError(
        f"config.views.local_size={side} is not a multiple of config.model.patch_size={cell}; "
        f"set it to {max(side // cell, 1) * cell}"
      )

  def loss(
    self, params: Params, state: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
  ) -> tuple[Float[Array, ""], tuple[Params, Metrics]]:
    """Equation 5, with both terms against the bank as it was before the step."""
    del step
    drop_key, draw_key = jax.random.split(key)
    name, count, _ = TASKS[self.task]
    encode = functools.partial(
      self.encoder.encode, join_stats(params["encoder"], state["stats"]), patches=False, train=True
    )
    views = (batch["global"][0], flatten_views(batch[name]))
    keys = (
      image_keys(drop_key, batch["position"], 1),
      image_keys(drop_key, batch["position"], count, 1),
    )
    if state["stats"]:  # a single call would mix both views in the running statistics
      features, pretext = (encode(x, keys=k) for x, k in zip(views, keys, strict=True))
    else:
      features, pretext = encode(views, keys=keys)
    embedding = self.projector.apply(params["projector"], features.cls)
    head = params["pretext"]
    if self.task == "rotation":
      pretext_embedding = self.projector.apply(head["projector"], pretext.cls)
    else:
      patches = self.patch_projector.apply(head["projector"], pretext.cls)
      pretext_embedding = self.merger.apply(head["merger"], patches.reshape(-1, count * self.dim))

    positives = state["bank"][batch["index"]]
    negatives, left_out = self._negatives(state["bank"], batch["index"], draw_key)
    image_loss, accuracy = nce(embedding, positives, negatives, self.temperature, left_out)
    pretext_loss, pretext_accuracy = nce(
      pretext_embedding, positives, negatives, self.temperature, left_out
    )
    weight = self.pretext_weight
    loss = weight * pretext_loss + (1 - weight) * image_loss
    metrics = {
      "image_loss": image_loss,
      "pretext_loss": pretext_loss,
      "accuracy": accuracy,
      "pretext_accuracy": pretext_accuracy,
      "projection_std": collapse.spread(jax.lax.stop_gradient(embedding)),
      **feature_health(features.cls),
    }
    # `fresh` is averaged over microbatches: each fills its own places, scaled by their number.
    share = self.clock.batch_size / embedding.shape[0]
    fresh = {
      name: jnp.zeros_like(state["fresh"][name]).at[batch["position"]].set(share * value)
      for name, value in (
        ("rows", batch["index"].astype(jnp.float32)),
        ("embeddings", unit(jax.lax.stop_gradient(embedding))),
      )
    }
    return loss, ({**state, "stats": features.stats or {}, "fresh": fresh}, metrics)

  def _negatives(
    self, bank: Float[Array, "n d"], index: Int[Array, "b"], key: Key[Array, ""]
  ) -> tuple[Float[Array, "K d"], Bool[Array, "b K"]]:
    """Negative rows of a step, and a mask of those to leave out because they are an image's own."""
    size = self.clock.num_examples
    if size - 1 <= self.negatives:
      return bank, index[:, None] == jnp.arange(size)
    rows = jax.random.choice(key, size, (self.negatives + 1,), replace=False)
    # Images whose own row was not drawn leave out the last, so that all have equally many.
    is_own = index[:, None] == rows
    spare = jnp.arange(rows.shape[0]) == self.negatives
    return bank[rows], is_own | (~is_own.any(1, keepdims=True) & spare)

  def after_update(self, params: Params, state: Params, step: Int[Array, ""]) -> Params:
    del params, step
    bank, embeddings = state["bank"], state["fresh"]["embeddings"]
    rows = jnp.round(state["fresh"]["rows"]).astype(jnp.int32)
    same = (rows[:, None] == rows).astype(jnp.float32)
    mean = jnp.einsum("ij,jd->id", same, embeddings, precision=jax.lax.Precision.HIGHEST)
    mean /= same.sum(1, keepdims=True)
    moved = unit(self.momentum * bank[rows] + (1 - self.momentum) * mean)
    return {**state, "bank": bank.at[rows].set(moved)}

  def check_collapse(self, metrics: Mapping[str, float]) -> str | None:
    # Chance accuracy is not a sign of collapse: the first epochs compare with a random bank, and an
    # image is matched among all others late, although well before the features are good.
    advice = "lower config.optimizer.lr, or set config.method.batch_norm=True"
    return check_spread(metrics, advice) or check_spread(metrics, advice, "projection")

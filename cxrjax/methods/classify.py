"""Classification: an encoder, from scratch or pretrained, and a linear head on its features.

References:
  Touvron et al., DeiT, 2020 (arXiv 2012.12877); He et al., MAE, 2021 (arXiv 2111.06377), table 9:
  fine-tuning with layer-wise learning rates, drop path, label smoothing and mixup.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Key

from cxrjax.core import durations as clocks
from cxrjax.core.errors import UserError, suggest
from cxrjax.losses import classification as losses
from cxrjax.methods import base
from cxrjax.methods.base import (
  Batch,
  Labels,
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
from cxrjax.models import heads
from cxrjax.views.mixing import mixup
from cxrjax.views.resample import center_crop

WEIGHTS = ("none", "balanced")


class Outputs(NamedTuple):
  """Outputs of the network in training for a batch's views, in the order of `flatten_views`.

  Attributes:
    logits: of every class.
    labels: 1, 0 or NaN; mixed like the images.
    features: input of the head.
    stats: new running statistics of batch norm.
  """

  logits: Float[Array, "n k"]
  labels: Float[Array, "n k"]
  features: Float[Array, "n d"]
  stats: Params


@dataclasses.dataclass(frozen=True)
class Method(base.SupervisedMethod):
  """Classification; see `cxrjax.methods.base.Method` for what the functions do.

  Softmax over mutually exclusive classes, else a sigmoid for each finding; unknown labels do not
  count. With a moving average of all parameters, `state["average"]` holds it, and it is what is
  evaluated.

  Attributes:
    labels: of the training data.
    smoothing: of labels, 0 to 1.
    class_weights: "none"; "balanced", every class (or presence and absence of every finding) with
      the same total weight; or numbers, one for each class (for findings: of its presence).
    mixup: alpha of the Beta distribution of mixing shares; 0 for none.
    dropout: share of the features that are dropped before the head in training.
    test_scales: sides of the central crops that `predict` averages over, as shares of an image's
      side.
    test_flip: whether to average over mirror images, too.
    momentum: of the moving average, a number or schedule; 0 for none. It is at most
      `(1 + step) / (10 + step)`, so that the average of a short run forgets its start.
  """

  labels: Labels
  smoothing: float = 0.0
  class_weights: Any = "none"
  mixup: float = 0.0
  dropout: float = 0.0
  test_scales: tuple[float, ...] = (1.0,)
  test_flip: bool = False
  momentum: Any = 0.0

  def __post_init__(self) -> None:
    if len(self.labels.classes) < (2 if self.labels.exclusive else 1):
      named = ", ".join(self.labels.classes)
      raise UserError(
        "config.data.source has "
        + (
          f"one class only, {named}, and two are needed to learn to tell them apart; give a source "
          "with both"
          if named
          else f"no labels; {self.labels.advice or 'give a labelled source'}"
        )
      )
    for name in ("smoothing", "dropout"):
      if not 0 <= getattr(self, name) < 1:
        raise UserError(f"config.method.{name}={getattr(self, name)} must be in [0, 1)")
    if self.mixup < 0:
      raise UserError(f"config.method.mixup={self.mixup} must be 0 (off) or above")
    if not self.test_scales or not all(0.1 <= scale <= 1 for scale in self.test_scales):
      raise UserError(f"config.method.test_scales={self.test_scales} must be numbers from 0.1 to 1")
    self._weights, self.schedules  # noqa: B018 - raise for invalid options

  @functools.cached_property
  def schedules(self) -> dict[str, clocks.Schedule]:
    if not self._averages:
      return {}
    return {"momentum": clocks.from_config(self.momentum, self.clock, "config.method.momentum")}

  @property
  def classes(self) -> tuple[str, ...]:
    return self.labels.classes

  @property
  def _averages(self) -> bool:
    return isinstance(self.momentum, Mapping) or self.momentum != 0

  @functools.cached_property
  def _weights(self) -> Float32[np.ndarray, "k 2"]:
    """Weights of each class if absent and if present; their mean over the training labels is 1."""
    num_classes, setting = len(self.labels.classes), self.class_weights
    if isinstance(setting, str):
      if setting not in WEIGHTS:
        raise UserError(
          f"config.method.class_weights={setting!r} is unknown{suggest(setting, WEIGHTS)}"
        )
      if setting == "none":
        return np.ones((num_classes, 2), np.float32)
      positive, known = (np.asarray(getattr(self.labels, n), float) for n in ("positive", "known"))
      counts = np.stack([known - positive, positive], 1)
      if self.labels.exclusive:  # a class without images has weight 0, which is never used
        present = counts[:, 1] > 0
        weights = np.where(present, known / np.maximum(present.sum() * counts[:, 1], 1), 0.0)
        return np.stack([weights, weights], 1).astype(np.float32)
      return np.where(
        (counts > 0).all(1, keepdims=True), known[:, None] / np.maximum(2 * counts, 1), 1.0
      ).astype(np.float32)
    numbers = [w for w in setting if isinstance(w, int | float) and w >= 0]
    if len(numbers) != len(setting) or len(setting) != num_classes:
      raise UserError(
        f"config.method.class_weights={setting!r} must be {num_classes} numbers from 0, for "
        f"{', '.join(self.labels.classes)}"
      )
    return np.stack([np.ones(num_classes), np.asarray(setting, float)], 1).astype(np.float32)

  @functools.cached_property
  def head(self) -> heads.Projector:
    """A linear layer from features to logits."""
    return heads.Projector(
      in_dim=self.encoder.features,
      dims=(len(self.labels.classes),),
      initial="normal",
      dtype="float32",
    )

  def init(
    self, key: Key[Array, ""], batch_spec: Mapping[str, jax.ShapeDtypeStruct]
  ) -> tuple[Params, Params]:
    del batch_spec
    encoder_key, head_key = jax.random.split(key)
    encoder, stats = split_stats(self.encoder.init(encoder_key))
    params = {"encoder": encoder, "head": self.head.init(head_key)["layers"]["0"]}
    state = {"stats": stats}
    if self._averages:
      state["average"] = self._joined_params(params, state)
    return params, state

  def loss(
    self, params: Params, state: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
  ) -> tuple[Float[Array, ""], tuple[Params, Metrics]]:
    del step
    outputs = self.forward(params, state, batch, key)
    value, metrics = self.supervise(outputs, batch["global"].shape[0])
    return value, ({**state, "stats": outputs.stats}, metrics)

  def forward(self, params: Params, state: Params, batch: Batch, key: Key[Array, ""]) -> Outputs:
    """Runs the network in training mode (mixup, drop path, dropout) on all large crops."""
    views = batch["global"].shape[0]
    images, labels = flatten_views(batch["global"]), jnp.repeat(batch["labels"], views, axis=0)
    drop_key, mix_key, out_key = jax.random.split(key, 3)
    if self.mixup:
      images, labels = mixup(
        image_keys(mix_key, batch["position"], views), images, labels, self.mixup
      )
    features = self.encoder.encode(
      join_stats(params["encoder"], state["stats"]),
      images,
      keys=image_keys(drop_key, batch["position"], views),
      train=True,
    )
    logits = self._logits(
      params["head"], features.cls, image_keys(out_key, batch["position"], views)
    )
    return Outputs(logits, labels, features.cls, features.stats or {})

  def supervise(self, seen: Outputs, views: int = 1) -> tuple[Float[Array, ""], Metrics]:
    """Mean loss over known labels, and metrics, for `views` views of each image."""
    value, known = self.supervised(seen.logits, seen.labels)
    return value, {
      "accuracy": self._accuracy(seen.logits, seen.labels),
      "known_labels": known,
      **feature_health(seen.features[::views]),
    }

  def supervised(
    self, logits: Float[Array, "n k"], labels: Float[Array, "n k"]
  ) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean loss over known labels, and the share of labels that are known."""
    weights = jnp.asarray(self._weights)
    if self.labels.exclusive:
      value, known = losses.softmax(logits, labels, weights[:, 1], self.smoothing)
    else:
      value, known = losses.sigmoid(logits, labels, weights, self.smoothing)
    return losses.mean_of_known(value, known), known.mean()

  def _logits(
    self, head: Params, features: Float[Array, "n d"], keys: Key[Array, "n"] | None = None
  ) -> Float[Array, "n k"]:
    """Logits of the head; with keys, dropout is applied as in training."""
    if self.dropout and keys is not None:
      keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.dropout, features.shape[1:]))(
        keys
      )
      features = jnp.where(keep, features / (1 - self.dropout), 0.0)
    return self.head.apply({"layers": {"0": head}}, features).astype(jnp.float32)

  def _accuracy(self, logits: Float[Array, "n k"], labels: Float[Array, "n k"]) -> Float[Array, ""]:
    """Share of known labels that the batch's own logits get right; informative only."""
    if self.labels.exclusive:
      known = ~jnp.isnan(labels).any(1)
      correct = logits.argmax(1) == jnp.where(known[:, None], labels, 0.0).argmax(1)
    else:
      known = ~jnp.isnan(labels)
      correct = (logits > 0) == (labels > 0.5)
    return losses.mean_of_known(jnp.where(known, correct, 0.0), known.astype(jnp.float32))

  def after_update(self, params: Params, state: Params, step: Int[Array, ""]) -> Params:
    if not self._averages:
      return state
    momentum = jnp.minimum(self.schedules["momentum"](step), (1 + step) / (10 + step))
    return {**state, "average": ema(state["average"], self._joined_params(params, state), momentum)}

  def _joined_params(self, params: Params, state: Params) -> Params:
    return {**params, "encoder": join_stats(params["encoder"], state["stats"])}

  def network_params(self, params: Params, state: Params) -> Params:
    """Parameters for `predict`: `encoder` and `head`, running statistics included."""
    return state["average"] if self._averages else self._joined_params(params, state)

  def predict(self, params: Params, images: Float[Array, "b h w c"]) -> Float32[Array, "b k"]:
    """Class probabilities of normalised images."""

    def predict_view(x: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
      return self.probability(
        self._logits(params["head"], self.encoder.encode(params["encoder"], x).cls)
      )

    flips = (False, True) if self.test_flip else (False,)
    views = [center_crop(images, scale, flip) for scale in self.test_scales for flip in flips]
    if len(views) == 1:
      return predict_view(views[0])
    # vmap instead of a loop, in which convolutions are several times slower on CPUs.
    return jax.vmap(predict_view)(jnp.stack(views)).mean(0)

  def probability(self, logits: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """Probabilities of the classes."""
    return jax.nn.softmax(logits) if self.labels.exclusive else jax.nn.sigmoid(logits)

  def check_collapse(self, metrics: Mapping[str, float]) -> str | None:
    return check_spread(
      metrics, "lower config.optimizer.lr, lengthen its warmup, or check the labels"
    )

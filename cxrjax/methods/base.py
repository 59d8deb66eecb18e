"""Base classes of methods, and helpers that several of them share."""

from __future__ import annotations

import abc
import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Float32, Int, Key, Shaped

from cxrjax.core.durations import Clock, Schedule
from cxrjax.core.errors import UserError
from cxrjax.losses import collapse
from cxrjax.models.module import RUNNING

Params = Any  # a nested dict of arrays
Batch = Mapping[str, Array]
Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Labels:
  """The training labels of a supervised method, as far as they are known.

  Attributes:
    classes: names of the columns.
    exclusive: whether every image has exactly one class, instead of any number of findings.
    positive: number of images with each class.
    known: number of images for which each class is known, present or absent.
    advice: how to obtain labels for data without them.
  """

  classes: tuple[str, ...]
  exclusive: bool
  positive: tuple[int, ...]
  known: tuple[int, ...]
  advice: str = ""


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
  """A training method: a frozen dataclass of options; all that changes is in `params` and `state`.

  `params` are trained; `state` is the rest: teacher, centre, queue, running statistics. Subclasses
  define `init` and `loss`; the defaults of the rest are those of a method without schedules and
  teacher, whose network is `params["encoder"]`.

  `batch` holds the recipe's views (`f32[views b h w 1]` each), `labels` `f32[b k]`, `position`
  `i32[b]`: each image's place in the global batch, from which random numbers must be derived,
  and `index` `i32[b]`: its row in the data, of `clock.num_examples`. With `config.data.masks` there
  are `global_mask` `bool[views b h w 1]` and `has_mask` `bool[b]`: whether the image has one.

  Every mean over the batch in `loss` is a mean over the *global* batch: arrays are global, `jit`
  adds the communication. With gradient accumulation `loss` sees a microbatch, always with the
  same `state`; the float leaves of the returned `state` are averaged over microbatches.

  Networks with batch norm: `params` holds what is trained, `state["stats"]` the running statistics
  of the network that is evaluated (`split_stats`, `join_stats`). All networks run on statistics of
  the batch (`encode(train=True)`), in which the running ones have no part.

  Attributes:
    encoder: the network, a `cxrjax.models.base.Encoder`; given by the program, as `clock`.
    clock: length of the run and of an epoch.
    learns_from: "images", "labels" (it is then also given `labels`, a `Labels`) or "masks".
  """

  encoder: Any
  clock: Clock

  learns_from: ClassVar[str] = "images"

  @property
  def schedules(self) -> Mapping[str, Schedule]:
    """Schedules by name, for the report."""
    return {}

  @abc.abstractmethod
  def init(
    self, key: Key[Array, ""], batch_spec: Mapping[str, jax.ShapeDtypeStruct]
  ) -> tuple[Params, Params]:
    """Fresh `params` and `state`."""

  @abc.abstractmethod
  def loss(
    self, params: Params, state: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
  ) -> tuple[Float[Array, ""], tuple[Params, Metrics]]:
    """The loss, the new state, and metrics with those of `feature_health`; pure and traceable."""

  def after_update(self, params: Params, state: Params, step: Int[Array, ""]) -> Params:
    """State after the optimizer's update of `params`: here a teacher or a queue moves."""
    del params, step
    return state

  def encoder_params(self, params: Params, state: Params) -> Params:
    """Parameters of the encoder that is evaluated."""
    return join_stats(params["encoder"], state.get("stats", {}))

  def check_collapse(self, metrics: Mapping[str, float]) -> str | None:
    """Diagnosis and advice if (averaged) metrics show a collapse, else None."""
    return check_spread(metrics, "lower config.optimizer.lr, or lengthen its warmup")


class SupervisedMethod(Method):
  """A method whose network predicts what it learns from: class probabilities, or masks."""

  learns_from: ClassVar[str] = "labels"

  @property
  def classes(self) -> tuple[str, ...]:
    """Names of the classes in the order of the probabilities; empty where masks are predicted."""
    return ()

  def encoder_params(self, params: Params, state: Params) -> Params:
    return self.network_params(params, state)["encoder"]

  @abc.abstractmethod
  def network_params(self, params: Params, state: Params) -> Params:
    """Parameters for `predict`: `encoder` and others, running statistics included."""

  @abc.abstractmethod
  def predict(self, params: Params, images: Float[Array, "b h w c"]) -> Float32[Array, "..."]:
    """Predictions for normalized images."""


def with_params(encoder: Any, params: Params) -> Any:
  """A copy of the encoder whose `init` returns these parameters."""
  initialized = copy.copy(encoder)
  object.__setattr__(initialized, "init", lambda key: params)
  return initialized


def split_stats(params: Params) -> tuple[Params, Params]:
  """Splits a network into trained parameters and running statistics (batch norm), as two trees.

  Without batch norm the second tree is `{}`.
  """
  trained: Params = {}
  stats: Params = {}
  for name, value in params.items():
    if isinstance(value, Mapping):
      nested, running = split_stats(value)
      trained[name] = nested
      if running:
        stats[name] = running
    elif name in RUNNING:
      stats[name] = value
    else:
      trained[name] = value
  return trained, stats


def join_stats(trained: Params, stats: Params) -> Params:
  """Inverse of `split_stats`."""
  if not stats:
    return trained
  joined = dict(trained)
  for name, value in stats.items():
    joined[name] = join_stats(trained.get(name, {}), value) if isinstance(value, Mapping) else value
  return joined


def ema(old: Params, new: Params, momentum: Float[Array, ""]) -> Params:
  """`m old + (1 - m) new`, leaf by leaf, in float32."""
  return jax.tree.map(lambda o, n: o + (1 - momentum) * (n - o), old, new)


def flatten_views(x: Shaped[Array, "v b *rest"]) -> Shaped[Array, "n *rest"]:
  """Views as one batch, image by image: `[b * v, ...]`, view varying fastest.

  In this order a batch that is split over devices stays split. The other order would spread the
  views of one device's images over the mesh, and XLA would gather the whole batch everywhere.
  """
  return rearrange(x, "v b ... -> (b v) ...")


def image_keys(
  key: Key[Array, ""], position: Int[Array, "b"], views: int, first: int = 0
) -> Key[Array, "n"]:
  """One key for every view of every image in the order of `flatten_views`.

  They do not depend on how the batch is split; `first` is the number of the first view.
  """

  def view_keys(i: Int[Array, ""]) -> Key[Array, "v"]:
    image_key = jax.random.fold_in(key, i)
    return jax.vmap(lambda v: jax.random.fold_in(image_key, v))(first + jnp.arange(views))

  return jax.vmap(view_keys)(position).reshape(-1)


def require_two_views(batch_spec: Mapping[str, jax.ShapeDtypeStruct], name: str) -> None:
  """Raises a UserError unless there are two large crops of each image."""
  views = batch_spec["global"].shape[0] if "global" in batch_spec else 0
  if views != 2:
    raise UserError(f"{name} compares two views: set config.views.global_crops=2, not {views}")


def encode_each_view(
  encoder: Any, params: Params, batch: Batch, key: Key[Array, ""] | None = None
) -> list[Any]:
  """`Features` of every large crop, encoded one view after the other.

  Batch norm takes its statistics from one view of the global batch at a time, as if the network
  were called once per view; the last view's `stats` include all views.

  Args:
    encoder: the network.
    params: its parameters, running statistics included.
    batch: with `global` and `position`.
    key: for drop path; None for a network without it (a teacher).
  """
  views = tuple(batch["global"])
  keys = (
    None
    if key is None
    else tuple(image_keys(key, batch["position"], 1, v) for v in range(len(views)))
  )
  return list(encoder.encode(params, views, keys=keys, patches=False, train=True))


def feature_health(features: Float[Array, "b d"]) -> Metrics:
  """Metrics that every method must report, of one view's features of the evaluated network."""
  features = jax.lax.stop_gradient(features)
  return {
    "feature_std": collapse.spread(features),
    "effective_rank": collapse.participation_ratio(features),
  }


def check_spread(metrics: Mapping[str, float], advice: str, of: str = "feature") -> str | None:
  """Diagnosis with advice if all images get the same features, else None.

  Args:
    metrics: with `feature_std`, or `{of}_std`.
    advice: what to change.
    of: the vectors that are checked, e.g. "projection".
  """
  spread = metrics[f"{of}_std"]
  if spread >= 0.02:
    return None
  return f"the {of}s' spread is {spread:.4f} of about 1: all images get the same {of}s; {advice}"


def diagnose_chance(metrics: Mapping[str, float], candidates: int) -> str | None:
  """Diagnosis if a contrastive `accuracy` is no better than chance, else None."""
  if metrics["accuracy"] * candidates >= 1.5:
    return None
  return (
    f"an image's other view is found among {candidates} in {metrics['accuracy']:.2%} of cases, as "
    "by chance; raise or lower config.optimizer.lr, lengthen its warmup, make the views more alike "
    "(config.views.global_scale), or set config.model.standardize=True"
  )

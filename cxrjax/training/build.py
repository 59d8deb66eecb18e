"""Builds network, method, optimiser and training step from a config, without the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import Mesh

from cxrjax.config.instantiate import build, check_keywords, freeze, locate
from cxrjax.core.durations import Clock
from cxrjax.core.target import Target
from cxrjax.methods.base import Labels
from cxrjax.models.build import build_encoder
from cxrjax.models.cnn import Cnn
from cxrjax.training import sharding
from cxrjax.training.optimizer import Optimizer
from cxrjax.training.train_step import TrainStep


def learns_from(spec: Mapping[str, Any]) -> str:
  """The kind of data that a method declares to learn from: "images", "labels" or "masks"."""
  factory: Any = locate(spec.get("name", ""), "Method", "config.method.name")
  return str(factory.learns_from)


def build_method(spec: Mapping[str, Any], encoder: Any, clock: Clock, labels: Labels) -> Any:
  """Builds the method of a config; one that learns from labels is given `labels`."""
  options = {"labels": labels} if spec.get("name") and learns_from(spec) == "labels" else {}
  return build(spec, "Method", "config.method", encoder=encoder, clock=clock, **options)


def build_train_step(
  config: Mapping[str, Any],
  mesh: Mesh,
  *,
  examples: int,
  labels: Labels,
  fetch: Callable[[Any, Any], Any],
  resident: bool,
  target: Target | None = None,
) -> TrainStep:
  """Builds the training step of a config for a mesh, whose devices need not be attached.

  Args:
    config: of a run.
    mesh: over which the batch is split.
    examples: number of training images.
    labels: what is known of their labels.
    fetch: see `TrainStep`.
    resident: whether the images are on the devices, so that one dispatch can take several steps.
    target: decides types and kernels; by default the mesh's devices.

  Raises:
    UserError: options are invalid, or do not go together.
  """
  target = target or Target.of(mesh)
  recipe = build(config["views"], "Recipe", "config.views")
  recipe.check(config["data"]["size"])
  clock = Clock.start(config["duration"], examples, config["batch_size"])
  encoder = build_encoder(config["model"], target)
  method = build_method(config["method"], encoder, clock, labels)
  options = freeze(config["optimizer"])
  check_keywords(Optimizer, options, "config.optimizer", hidden=["clock", "layer_names"])
  optimizer = Optimizer(clock=clock, layer_names=encoder.layer_names, **options)
  # On CPUs convolutions inside a loop of steps are several times slower than outside.
  slow = isinstance(encoder, Cnn) and target.platform == "cpu"
  return TrainStep(
    method=method,
    recipe=recipe,
    optimizer=optimizer,
    fetch=fetch,
    mesh=mesh,
    seed=config["seed"],
    accumulate=config["accumulate"],
    block=config["block"] if resident and not slow else 1,
    rules=sharding.check_rules(freeze(config["mesh"]["rules"])),
  )

"""A training run before its first step: data, train step and evaluators, built from the config."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax

from cxrjax.config.instantiate import build
from cxrjax.core.durations import tabulate
from cxrjax.core.errors import UserError
from cxrjax.evals.base import Evaluator, Result
from cxrjax.evals.eval_splits import Data
from cxrjax.models.module import param_count
from cxrjax.tasks import leakage_checks, training_data
from cxrjax.training import init_params, sharding, step_flops
from cxrjax.training.build import build_train_step, learns_from
from cxrjax.training.train_step import State


class Run:
  """All components of a training run, built from its config."""

  def __init__(self, config: Mapping[str, Any], progress: bool = True) -> None:
    self.config = config
    self.progress = progress and jax.process_index() == 0
    if config["batch_size"] < 1:
      raise UserError(f"config.batch_size={config['batch_size']} must be at least 1")
    self.mesh = sharding.make_mesh(config["mesh"]["fsdp"])
    self.recipe = build(config["views"], "Recipe", "config.views")  # first, as it fails cheaply
    self.recipe.check(config["data"]["size"])
    self.training_data = training_data.load(config, self.recipe, self.mesh, self.progress)
    self.loader = self.training_data.loader
    train_step = build_train_step(
      config,
      self.mesh,
      examples=self.loader.num_examples,
      labels=self.training_data.labels,
      fetch=self.loader.fetch,
      resident=self.loader.storage == "resident",
    )
    self.method, self.optimizer = train_step.method, train_step.optimizer
    self.encoder, self.clock = self.method.encoder, self.optimizer.clock
    initial_params, self.init_facts = init_params.start(config, self.encoder)
    self.train_step = dataclasses.replace(train_step, start=initial_params)
    self.spec = self.train_step.batch_spec(self.loader.data, self.loader[0])
    self.log_every = self.interval(config["log_every"], "config.log_every")
    self.save_every = self.interval(config["checkpoint"]["every"], "config.checkpoint.every")
    self.evaluators: dict[str, Evaluator] = {
      name: build(spec, "Evaluator", f"config.evals.{name}")
      for name, spec in config["evals"].items()
    }

  def interval(self, duration: str, key: str) -> int:
    """Steps of a duration at `key` of the config, at least 1."""
    return max(1, self.clock.steps(duration, key))

  @functools.cached_property
  def eval_data(self) -> dict[str, Any]:
    """Decoded images of every evaluator, in every process, as all compute every result."""
    cache = self.config["data"]["cache_dir"] or None
    return {
      name: e.load(cache_dir=cache, progress=self.progress) for name, e in self.evaluators.items()
    }

  def encode(self, params: Any, x: jax.Array) -> jax.Array:
    """Class-token features, `[b d]`."""
    return self.encoder.encode(params, x).cls

  def predict(self, params: Any, x: jax.Array) -> jax.Array:
    """Predictions of the method's network."""
    return self.method.predict(params, x)

  def evaluate(self, name: str, state: State) -> Result:
    """Runs an evaluator on the encoder's features or on the method's predictions."""
    evaluator, data = self.evaluators[name], self.eval_data[name]
    if evaluator.judges == "features":
      function, params = self.encode, self.method.encoder_params
    else:
      function, params = self.predict, self.method.network_params
    return evaluator.run(
      function, params(state["params"], state["method_state"]), data, mesh=self.mesh
    )

  def describe(self) -> dict[str, Any]:
    """Facts for the report and for the summary printed before the run."""
    evals = {name: e.describe(self.eval_data[name]) for name, e in self.evaluators.items()}
    shapes = self.train_step.abstract(self.spec)
    encoder = self.method.encoder_params(shapes["params"], shapes["method_state"])
    device = self.mesh.devices.flat[0]
    schedules = {
      name: tabulate(schedule, self.clock.total_steps)
      for name, schedule in {**self.optimizer.schedules, **self.method.schedules}.items()
    }
    return {
      "device": {
        "platform": device.platform,
        "kind": device.device_kind,
        "devices": self.mesh.size,
        "processes": jax.process_count(),
      },
      "model": {
        "name": self.config["model"]["name"],
        "variant": self.config["model"].get("variant", ""),
        "parameters": param_count(encoder),
        "trained_parameters": param_count(shapes["params"]),
        "flops_per_image": self._flops_per_image(),
      },
      "method": self.config["method"]["name"].rpartition(".")[2],
      "learns_from": learns_from(self.config["method"]),
      "data": {"train": self.training_data.describe(self._leakage()), **evals},
      "steps": self.clock.total_steps,
      "epochs": self.clock.epoch(self.clock.total_steps),
      "batch_size": self.clock.batch_size,
      "schedules": {n: {"step": step, "value": value} for n, (step, value) in schedules.items()},
      **self.init_facts,
    }

  def _flops_per_image(self) -> float:
    """FLOPs of a training step per image, NaN where a user's method hides them from the count."""
    try:
      return step_flops.training(self.config, self.loader.num_examples, self.training_data.labels)
    except ValueError:
      return math.nan

  def _leakage(self) -> list[str]:
    """Remarks on patients and images shared by training and evaluation."""
    data = self.config["data"]
    evaluations = {
      name: eval_data for name, eval_data in self.eval_data.items() if isinstance(eval_data, Data)
    }
    choice = data.get("shared_patients", "error")
    path = (self.config.get("init") or {}).get("path", "")
    # Validation images only choose the checkpoint: pretraining may have seen them, unlabelled.
    tests = {
      name: eval_data
      for name, eval_data in evaluations.items()
      if self.evaluators[name].part == "test"
    }
    threshold = data.get("near_duplicates", 0)
    return [
      *leakage_checks.shared_patients(self.training_data.source, evaluations, choice),
      *leakage_checks.seen_in_pretraining(path, tests, choice, data["cache_dir"] or None),
      *leakage_checks.near_duplicates(self.loader, evaluations, threshold),
    ]

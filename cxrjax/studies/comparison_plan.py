"""Plan of a comparison: one command for each method and seed, all with the same budget."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from cxrjax import data as sources
from cxrjax.config import overrides
from cxrjax.config.instantiate import freeze
from cxrjax.core.durations import Clock
from cxrjax.core.errors import UserError
from cxrjax.studies import launcher
from cxrjax.training import step_flops

_EPOCHS = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*epochs?\s*", re.I)
# Set by the comparison, or without influence on training.
_IGNORED_KEYS = ("duration", "evals", "checkpoint", "log_every")


@dataclasses.dataclass(frozen=True)
class Job(launcher.Job):
  """One run.

  Attributes:
    method: its name in the comparison.
    seed: of the run.
    steps: number of updates.
    batch_size: images per update.
    examples: number of training images.
    flops_per_image: forward, in matrix products.
    budget: forward FLOPs of the whole run; `steps` is rounded to fit it.
  """

  method: str
  seed: int
  steps: int
  batch_size: int
  examples: int
  flops_per_image: float
  budget: float


def plan(config: Mapping[str, Any]) -> list[Job]:
  """Plans the runs of a comparison: methods in order, the seeds of each together.

  Args:
    config: `methods` (name, config file in `folder` and config argument of each), `seeds`,
      `points`, `budget` and, if the budget is a multiple of a method's, `measure`, like an item of
      `methods`; as made by `configs/compare.py`.

  Raises:
    UserError: an invalid value, an invalid recipe of a method, or data that cannot be opened.
  """
  folder = pathlib.Path(os.path.relpath(config["folder"]))
  seeds = [launcher.seed(text) for text in config["seeds"]]
  points = config["points"]
  if isinstance(points, bool) or not isinstance(points, int) or points < 1:
    raise UserError(f"config.points={points!r} must be a whole number of evaluations from 1")
  recipes = {name: _load_recipe(folder / file, arg) for name, file, arg in config["methods"]}
  if not recipes:
    raise UserError("config.methods is empty; give --config=configs/compare.py:methods=dino+mae")
  unit = None
  if config["measure"]:
    name, file, arg = config["measure"]
    unit = recipes.get(name) or _load_recipe(folder / file, arg)
  budget = _parse_budget(config["budget"], unit)
  jobs = []
  for name, file, method_arg in config["methods"]:
    recipe = recipes[name]
    batch = recipe.config["batch_size"]
    steps = round(budget / (recipe.flops_per_image * batch))
    if not steps:
      raise UserError(
        f"config.budget={config['budget']!r} is less than one step of {name}, "
        f"{recipe.flops_per_image * batch:.3g} FLOPs"
      )
    changes = epochs_as_shares(recipe.config, recipe.examples) | averages_as_shares(
      recipe.config, recipe.examples, steps
    )
    for seed in seeds:
      eval_every = math.ceil(steps / points)
      arg = f"{method_arg},seed={seed},duration={steps} steps,eval_every={eval_every} steps"
      flags = [f"--config={folder / file}:{arg}"]
      for path, value in changes.items():
        flags.append(f"--config.{path}={value if isinstance(value, str) else repr(value)}")
      jobs.append(
        Job(
          f"{name}-seed{seed}",
          tuple(flags),
          name,
          seed,
          steps,
          batch,
          recipe.examples,
          recipe.flops_per_image,
          budget,
        )
      )
  return jobs


@dataclasses.dataclass(frozen=True)
class _Recipe:
  """A method's own recipe, before the budget sets its duration."""

  config: dict[str, Any]
  examples: int
  flops_per_image: float


def _load_recipe(path: pathlib.Path, arg: str) -> _Recipe:
  config = overrides.resolve([f"--config={path}:{arg}"])
  data = config["data"]
  keys = ("source", "split", "subset", "fold", "split_seed", "options")
  examples = _count_images(
    json.dumps({k: data.get(k) for k in keys}, default=lambda item: item.to_dict())
  )
  return _Recipe(config, examples, step_flops.forward(config, examples))


@functools.lru_cache(maxsize=4)
def _count_images(data: str) -> int:
  """Number of images of a data set, which is opened and, if need be, prepared."""
  spec = json.loads(data)
  return len(
    sources.open_source(
      freeze(spec["source"]),
      split=spec["split"],
      subset=spec["subset"] or None,
      fold=spec["fold"] or None,
      split_seed=spec["split_seed"] or 0,
      **freeze(spec["options"] or {}),
    )
  )


def _parse_budget(text: Any, unit: _Recipe | None) -> float:
  """Forward FLOPs of each run, from a number or a length such as `100 epochs of dino`."""
  try:
    value = float(text)
  except (TypeError, ValueError):
    length = str(text).rpartition(" of ")[0]
    if not unit or not length:
      raise UserError(
        f"config.budget={text!r} is no budget; give forward FLOPs, 1e13, or '100 epochs of dino'"
      ) from None
    batch = unit.config["batch_size"]
    clock = Clock.start(length, unit.examples, batch, "config.budget")
    value = unit.flops_per_image * batch * clock.total_steps
  if not value > 0 or not math.isfinite(value):
    raise UserError(f"config.budget={text!r} must be above 0")
  return value


def epochs_as_shares(config: Mapping[str, Any], examples: int) -> dict[str, Any]:
  """Converts durations in epochs to shares of the recipe's own duration: `{path: new value}`.

  A warm-up of 10 of 300 epochs is 3.333 % of a run of any length. A value in a
  tuple is replaced along with the tuple.
  """
  batch = config["batch_size"]
  clock = Clock.start(config["duration"], examples, batch)
  shares: dict[str, Any] = {}

  def as_share(value: Any) -> Any:
    if isinstance(value, str) and (match := _EPOCHS.fullmatch(value)) and float(match[1]):
      return f"{100 * float(match[1]) * clock.steps_per_epoch / clock.total_steps:.4g} %"
    if isinstance(value, list | tuple):
      return type(value)(as_share(v) for v in value)
    return value

  def walk(tree: Mapping[str, Any], path: str) -> None:
    for key, value in tree.items():
      if not path and key in _IGNORED_KEYS:
        continue
      if isinstance(value, Mapping):
        walk(value, f"{path}{key}.")
      elif as_share(value) != value:
        shares[f"{path}{key}"] = as_share(value)

  walk(config, "")
  return shares


def averages_as_shares(config: Mapping[str, Any], examples: int, steps: int) -> dict[str, float]:
  """Rescales the momenta of weight averages to a run of another length: `{path: new value}`.

  An average keeps its length as a share of the run: `m ** (steps of the recipe / steps)`. Unscaled,
  one over 250 updates would in a run of 400 consist mostly of the untrained network.

  Args:
    config: a recipe; `method.momentum` is a schedule if it has such an average.
    examples: number of training images.
    steps: of the run.
  """
  momentum = config["method"].get("momentum")
  if not isinstance(momentum, Mapping):  # that of a memory bank, updated once per epoch
    return {}
  recipe = Clock.start(config["duration"], examples, config["batch_size"]).total_steps
  return {
    f"method.momentum.{end}": round(momentum[end] ** (recipe / steps), 6)
    for end in ("start", "end")
    if 0 < momentum.get(end, 1) < 1
  }

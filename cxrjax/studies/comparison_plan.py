"""What a comparison will run: one command for each method and seed, all of one budget."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cxrjax import data as sources
from cxrjax.config import overrides
from cxrjax.config.instantiate import freeze
from cxrjax.core import flops
from cxrjax.core.durations import Clock
from cxrjax.core.errors import UserError
from cxrjax.core.target import CPU
from cxrjax.studies import launcher
from cxrjax.training import compile_ahead, sharding
from cxrjax.training.build import build_trainer

_EPOCHS = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*epochs?\s*", re.I)
# The comparison sets these, or they do not change what is learnt.
_NOT_RECIPE = ("duration", "evals", "checkpoint", "log_every")


@dataclasses.dataclass(frozen=True)
class Job(launcher.Job):
  """One run.

  Attributes:
    method: its name in the comparison.
    seed: of the run.
    steps: updates.
    batch_size: images of each.
    examples: images of the data.
    flops_per_image: forward, in matrix products.
    budget: of the whole run, forward; the steps are the nearest whole number.
  """

  method: str
  seed: int
  steps: int
  batch_size: int
  examples: int
  flops_per_image: float
  budget: float


def plan(config: Mapping[str, Any]) -> list[Job]:
  """The runs of a comparison, methods in their order, the seeds of each together.

  Args:
    config: `methods` (of each its name, its config file in `folder` and the argument of that),
      `seeds`, `points`, `budget` and, where that is so much of a method, `measure` like one of
      `methods`, as `configs/compare.py` makes them.

  Raises:
    UserError: a mistake in any of them or in the recipe of a method; data that cannot be opened.
  """
  folder = pathlib.Path(os.path.relpath(config["folder"]))
  seeds = [launcher.seed(text) for text in config["seeds"]]
  points = config["points"]
  if isinstance(points, bool) or not isinstance(points, int) or points < 1:
    raise UserError(f"config.points={points!r} must be a whole number of evaluations from 1")
  drafts = {name: _draft(folder / file, arg) for name, file, arg in config["methods"]}
  if not drafts:
    raise UserError("config.methods is empty; give --config=configs/compare.py:methods=dino+mae")
  measure = None
  if config["measure"]:
    name, file, arg = config["measure"]
    measure = drafts.get(name) or _draft(folder / file, arg)
  budget = _budget(config["budget"], measure)
  jobs = []
  for name, file, own in config["methods"]:
    draft = drafts[name]
    batch = draft.config["batch_size"]
    steps = round(budget / (draft.flops_per_image * batch))
    if not steps:
      raise UserError(
        f"config.budget={config['budget']!r} is less than one step of {name}, "
        f"{draft.flops_per_image * batch:.3g} FLOPs"
      )
    changes = epochs_as_shares(draft.config, draft.examples) | averages_as_shares(
      draft.config, draft.examples, steps
    )
    for seed in seeds:
      arg = f"{own},seed={seed},duration={steps} steps,eval_every={math.ceil(steps / points)} steps"
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
          draft.examples,
          draft.flops_per_image,
          budget,
        )
      )
  return jobs


@dataclasses.dataclass(frozen=True)
class _Draft:
  """A method's own recipe, before the budget decides how long it is."""

  config: dict[str, Any]
  examples: int
  flops_per_image: float


def _draft(path: pathlib.Path, arg: str) -> _Draft:
  config = overrides.resolve([f"--config={path}:{arg}"])
  data = config["data"]
  keys = ("source", "split", "subset", "fold", "split_seed", "options")
  examples = _examples(
    json.dumps({k: data.get(k) for k in keys}, default=lambda item: item.to_dict())
  )
  return _Draft(config, examples, forward_flops(config, examples))


@functools.lru_cache(maxsize=4)
def _examples(data: str) -> int:
  """Images of a pool; it is opened, and prepared where this has not been done yet."""
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


def forward_flops(config: Mapping[str, Any], examples: int) -> float:
  """Forward FLOPs of a method's loss for one image, in matrix products; nothing is computed.

  Everything that the loss runs forward counts: student, teacher, heads, decoder, similarities.

  Args:
    config: of a training run.
    examples: images of the data.
  """
  loss, shapes = abstract_loss(config, examples)
  return flops.count(loss, *shapes) / config["batch_size"]


def abstract_loss(
  config: Mapping[str, Any], examples: int
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
  """The loss of a config's method, and the shapes of all that it takes."""
  # For a CPU, which has no kernels that hide their products.
  trainer = build_trainer(
    config,
    sharding.make_mesh(),
    examples=examples,
    labels=compile_ahead.LABELS,
    resident=False,
    fetch=lambda data, batch: batch,
    target=CPU,
  )
  batch = trainer.batch_spec({}, compile_ahead.fetched(config))
  params, extra = jax.eval_shape(lambda: trainer.method.init(jax.random.key(0), batch))
  key = jax.eval_shape(lambda: jax.random.key(0))
  return trainer.method.loss, (params, extra, batch, key, jax.ShapeDtypeStruct((), jnp.int32))


def _budget(text: Any, measure: _Draft | None) -> float:
  """Forward FLOPs of each run, from a number or so much of `measure`, `100 epochs of dino`."""
  try:
    value = float(text)
  except (TypeError, ValueError):
    length = str(text).rpartition(" of ")[0]
    if not measure or not length:
      raise UserError(
        f"config.budget={text!r} is no budget; give forward FLOPs, 1e13, or '100 epochs of dino'"
      ) from None
    batch = measure.config["batch_size"]
    clock = Clock.start(length, measure.examples, batch, "config.budget")
    value = measure.flops_per_image * batch * clock.total_steps
  if not value > 0 or not math.isfinite(value):
    raise UserError(f"config.budget={text!r} must be above 0")
  return value


def epochs_as_shares(config: Mapping[str, Any], examples: int) -> dict[str, Any]:
  """What a recipe states in epochs, as shares of its own duration: `{path: new value}`.

  A warm-up of 10 of 300 epochs is 3.333 % of a run of any length. Values in tuples are replaced
  with the whole tuple.
  """
  batch = config["batch_size"]
  clock = Clock.start(config["duration"], examples, batch)
  found: dict[str, Any] = {}

  def shared(value: Any) -> Any:
    if isinstance(value, str) and (match := _EPOCHS.fullmatch(value)) and float(match[1]):
      return f"{100 * float(match[1]) * clock.steps_per_epoch / clock.total_steps:.4g} %"
    if isinstance(value, list | tuple):
      return type(value)(shared(v) for v in value)
    return value

  def walk(tree: Mapping[str, Any], path: str) -> None:
    for key, value in tree.items():
      if not path and key in _NOT_RECIPE:
        continue
      if isinstance(value, Mapping):
        walk(value, f"{path}{key}.")
      elif shared(value) != value:
        found[f"{path}{key}"] = shared(value)

  walk(config, "")
  return found


def averages_as_shares(config: Mapping[str, Any], examples: int, steps: int) -> dict[str, float]:
  """Momenta of moving averages of networks for a run of another length: `{path: new value}`.

  An average keeps its length as a share of the run, `m ** (steps of the recipe / steps)`. As it is,
  one over 250 updates would in a run of 400 have little but the untrained network in it.

  Args:
    config: a recipe, with a `method.momentum` that is a schedule where it has such an average.
    examples: images of the data.
    steps: of the run.
  """
  momentum = config["method"].get("momentum")
  if not isinstance(momentum, Mapping):  # of a memory bank, which is updated once an epoch
    return {}
  recipe = Clock.start(config["duration"], examples, config["batch_size"]).total_steps
  return {
    f"method.momentum.{end}": round(momentum[end] ** (recipe / steps), 6)
    for end in ("start", "end")
    if 0 < momentum.get(end, 1) < 1
  }

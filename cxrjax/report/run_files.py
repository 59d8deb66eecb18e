"""Reads a workdir for the page and the terminal, even if files are missing or broken."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import io
import math
import os
import pathlib
import platform
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64

from cxrjax.core import files
from cxrjax.core.version import VERSION
from cxrjax.report import run_writer
from cxrjax.report.html.format import Estimate

TRAINED, RANDOM, FLOOR = "trained", "random", "floor"


@dataclasses.dataclass(frozen=True)
class Curve:
  """One training metric over the run; `value` is NaN where none was finite."""

  step: Float64[np.ndarray, "n"]
  epoch: Float64[np.ndarray, "n"]
  value: Float64[np.ndarray, "n"]


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Metrics of one evaluator for one encoder at one step."""

  step: int
  epoch: float
  evaluator: str
  encoder: str
  metrics: dict[str, Estimate]


@dataclasses.dataclass(frozen=True)
class Run:
  """A workdir in memory.

  Attributes:
    workdir: where it was read from.
    config: contents of `config.json`, empty where missing.
    facts: contents of `run.json`, empty where missing.
    curves: training metrics by name, in the order they first appeared.
    evaluations: ordered by step; of repeated ones the last written.
    problems: what could not be read, one sentence each.
  """

  workdir: pathlib.Path
  config: dict[str, Any]
  facts: dict[str, Any]
  curves: dict[str, Curve]
  evaluations: tuple[Evaluation, ...]
  problems: list[str]

  def fact(self, *path: str) -> Any:
    """The fact at a path of keys, or None."""
    return lookup(self.facts, *path)

  def mapping(self, *path: str) -> Mapping[str, Any]:
    """The mapping at a path of keys; empty where there is none."""
    value = self.fact(*path)
    return value if isinstance(value, Mapping) else {}

  def items(self, *path: str) -> list[Any]:
    """The list at a path of keys; empty where there is none."""
    value = self.fact(*path)
    return value if isinstance(value, list) else []

  def evaluators(self) -> list[str]:
    """Names of the evaluators that have results."""
    return list(dict.fromkeys(e.evaluator for e in self.evaluations))

  def only(self, evaluator: str) -> Run:
    """The run with the results of one evaluator."""
    evaluations = tuple(e for e in self.evaluations if e.evaluator == evaluator)
    return dataclasses.replace(self, evaluations=evaluations)

  def latest(self) -> dict[str, dict[str, Estimate]]:
    """The last results of every encoder: `{encoder: {metric: Estimate}}`."""
    metrics: dict[str, dict[str, Estimate]] = {}
    for evaluation in self.evaluations:
      metrics.setdefault(evaluation.encoder, {}).update(evaluation.metrics)
    return metrics

  def first(self) -> dict[str, Estimate]:
    """The first results of the trained encoder, where there were several."""
    trained = [e for e in self.evaluations if e.encoder == TRAINED]
    return trained[0].metrics if len(trained) > 1 else {}

  def arrays(self, name: str) -> dict[str, np.ndarray]:
    """The arrays of `figures/<name>.npz`; empty where the file is missing or broken."""
    path = self.workdir / run_writer.FIGURES / f"{name}.npz"
    if not path.exists():
      return {}
    try:
      return files.read_npz(path)
    except (OSError, files.Damaged) as error:
      self.problems.append(f"{run_writer.FIGURES}/{path.name} cannot be read ({error})")
      return {}


def read(workdir: str | os.PathLike[str]) -> Run:
  """Reads a workdir; never fails for missing or broken files, but lists them in `problems`."""
  workdir = pathlib.Path(workdir)
  problems: list[str] = []
  config = _read_mapping(workdir / "config.json", problems)
  facts = _read_mapping(workdir / run_writer.FACTS, problems)
  train: dict[int, dict[str, Any]] = {}
  evaluations: dict[tuple[int, str, str], Evaluation] = {}
  for record in _read_records(workdir / run_writer.METRICS, problems):
    step = int(record["step"])
    if record["kind"] == "train":
      train[step] = record
    elif record["kind"] == "eval":
      evaluation = _evaluation(record)
      evaluations[step, evaluation.evaluator, evaluation.encoder] = evaluation
  return Run(
    workdir=workdir,
    config=config,
    facts=facts,
    curves=_curves(train),
    evaluations=tuple(sorted(evaluations.values(), key=lambda e: e.step)),
    problems=problems,
  )


def environment() -> dict[str, Any]:
  """Facts about this program and the machine: `{"versions": {...}, "machine": {...}}`."""
  versions = {"python": platform.python_version(), "cxrjax": VERSION}
  for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[name] = importlib.metadata.version(name)
  try:
    cores = len(os.sched_getaffinity(0))  # available to this process, not all of the machine
  except AttributeError:
    cores = os.cpu_count() or 1
  machine = {"system": f"{platform.system()} {platform.machine()}", "cores": cores}
  return {"versions": versions, "machine": machine}


def lookup(tree: Any, *path: str) -> Any:
  """The value at a path of keys through nested mappings, or None."""
  for key in path:
    if not isinstance(tree, Mapping):
      return None
    tree = tree.get(key)
  return tree


def number(value: Any) -> float:
  """A JSON value as a float; NaN for null and everything else that is not a number."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return math.nan
  return float(value)


def _read_mapping(path: pathlib.Path, problems: list[str]) -> dict[str, Any]:
  try:
    return files.read_mapping(path)
  except FileNotFoundError:
    problems.append(f"{path.name} is missing")
  except (OSError, files.Damaged) as error:
    problems.append(f"{path.name} cannot be read ({error})")
  return {}


def _read_records(path: pathlib.Path, problems: list[str]) -> Iterator[dict[str, Any]]:
  try:
    file = io.TextIOWrapper(files.open_regular(path), encoding="utf-8", errors="replace")
  except files.Damaged as error:
    problems.append(f"{path.name} cannot be read ({error})")
    return
  except OSError:
    problems.append(f"{path.name} is missing")
    return
  n_bad = 0
  with file:
    for line in file:
      try:
        record = files.parse_json(line)
        int(record["step"]), record["kind"]
      except (ValueError, OverflowError, KeyError, TypeError):
        n_bad += bool(line.strip())
        continue
      yield record
  if n_bad:
    lines = "1 line is" if n_bad == 1 else f"{n_bad} lines are"
    problems.append(f"{path.name}: {lines} invalid and left out")


def _evaluation(record: Mapping[str, Any]) -> Evaluation:
  metrics = record.get("metrics")
  metrics = metrics if isinstance(metrics, Mapping) else {}
  return Evaluation(
    step=int(record["step"]),
    epoch=number(record.get("epoch")),
    evaluator=str(record.get("evaluator", "")),
    encoder=str(record.get("encoder", TRAINED)),
    metrics={str(name): estimate(value) for name, value in metrics.items()},
  )


def estimate(value: Any) -> Estimate:
  """A number or an interval of a JSON file; NaN where it has none."""
  if not isinstance(value, Mapping):
    return Estimate(number(value))
  n = number(value.get("n"))
  return Estimate(
    number(value.get("value")),
    number(value.get("low")),
    number(value.get("high")),
    int(n) if math.isfinite(n) else None,
    str(value.get("method") or ""),
    str(value.get("undefined") or ""),
  )


def _curves(train: Mapping[int, Mapping[str, Any]]) -> dict[str, Curve]:
  steps = sorted(train)
  names = dict.fromkeys(
    name
    for step in steps
    for name, value in train[step].items()
    if name not in ("step", "epoch", "kind") and (value is None or _is_number(value))
  )
  curves = {}
  for name in names:
    recorded = [step for step in steps if name in train[step]]
    curves[name] = Curve(
      np.array(recorded, np.float64),
      np.array([number(train[step].get("epoch")) for step in recorded], np.float64),
      np.array([number(train[step][name]) for step in recorded], np.float64),
    )
  return curves


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)

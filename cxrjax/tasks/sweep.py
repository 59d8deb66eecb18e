"""Sweep: runs a config with all combinations of some values, and tests the best in validation."""

from __future__ import annotations

import functools
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cxrjax.config import overrides
from cxrjax.core.command import say
from cxrjax.core.errors import UserError
from cxrjax.report.html import format
from cxrjax.report.run_files import TRAINED, Run, lookup
from cxrjax.studies import engine, launcher, transfer_results
from cxrjax.studies import sweep_page as page
from cxrjax.tasks.run_evaluation import CHOSEN
from cxrjax.training import workdir as workdirs

PLATFORM = "cpu"  # of this process; the runs use the accelerator


def run(
  config: Mapping[str, Any],
  workdir: pathlib.Path,
  command: str = "",
  say: Callable[[str], None] = say,
) -> int:
  """Runs a sweep; returns the exit status.

  The workdir then holds a folder for each run, `report.html`, `table.csv` (a line for each run,
  evaluator and metric) and all facts in `run.json`.

  Returns:
    0; 1 where a run failed; 128 + signal where one stopped it.

  Raises:
    UserError: an invalid sweep, or a workdir of another one.
  """
  # Values and seeds can be added to a sweep; everything else must not change.
  extensible = ("grid", "seeds", "launcher", "folder")
  workdirs.settle_config(workdir, {k: v for k, v in config.items() if k not in extensible})
  jobs = plan(config, workdir)
  show = launcher.Reporting(
    key="sweep",
    begins=lambda job: f"{job.name} begins",
    ended=lambda job, why: f"{job.name}: {f'failed: {why}' if why else 'finished'}",
    collect=lambda failed: collect(config, jobs, workdir, failed),
    rows=lambda facts: engine.table(facts["rows"]),
    page=page,
  )
  opening = [f"runs      {len(jobs)}", f"workdir   {workdir}", ""]
  return launcher.run_jobs(
    jobs, workdir, show, command=command, opening=opening, say=say, start=config["launcher"]
  )


def plan(config: Mapping[str, Any], workdir: pathlib.Path) -> list[engine.ConfigJob]:
  """Lists the runs: every combination and seed, without test images; then the best one, with them.

  Raises:
    UserError: a mistake in `grid`, `seeds` or `score`, or in the config of a run.
  """
  seeds = [launcher.seed(text) for text in config["seeds"]]
  keys = [key for key, _ in config["grid"]]
  file = pathlib.Path(os.path.relpath(config["folder"])) / config["file"]
  file = file if file.is_file() else pathlib.Path(config["file"])
  candidates: list[engine.ConfigJob] = []
  whole: dict[str, Mapping[str, Any]] = {}
  for values in itertools.product(*(values for _, values in config["grid"])):
    factors = dict(zip(keys, values, strict=True))
    for seed in seeds:
      items = [config["arg"], *(f"{k}={v}" for k, v in factors.items()), f"seed={seed}"]
      resolved = overrides.resolve([f"--config={file}:{','.join(filter(None, items))}"])
      metric(config, resolved)  # raises before anything runs
      words = [*(f"{k}-{v}" for k, v in factors.items()), f"seed{seed}"]
      name = re.sub(r"[^\w.-]+", "-", "_".join(words))
      evals = {k: v for k, v in resolved["evals"].items() if v["every"] != CHOSEN}
      whole[name] = resolved
      candidates.append(
        engine.job(
          name, functools.partial(dict, resolved, evals=evals), workdir, factors | {"seed": seed}
        )
      )
  if len(whole) < len(candidates):
    raise UserError("config.grid or config.seeds has a value twice; give every one once")

  def best(seed: int) -> Mapping[str, Any]:
    chosen = choose(config, candidates, workdir)
    job = next(j for j in candidates if j.factors == {**chosen, "seed": seed})
    return whole[job.name]

  return [
    *candidates,
    *(
      engine.job(
        f"chosen-seed{seed}", functools.partial(best, seed), workdir, {"chosen": True, "seed": seed}
      )
      for seed in seeds
    ),
  ]


def metric(config: Mapping[str, Any], resolved: Mapping[str, Any]) -> tuple[str, str]:
  """The evaluator and metric by which a run is judged.

  Raises:
    UserError: no evaluator judges validation images, or there is no score.
  """
  name = config["score"] or resolved["checkpoint"]["score"]
  evaluators = [k for k, v in resolved["evals"].items() if v.get("part") == "val"]
  if not name or not evaluators:
    raise UserError(
      f"config.score={name!r}: {config['file']} needs a score and an evaluator of validation "
      "images, part='val', as configs/finetune.py has them"
    )
  return evaluators[0], name


def choose(
  config: Mapping[str, Any], jobs: Sequence[engine.ConfigJob], workdir: pathlib.Path
) -> dict[str, Any]:
  """The factors, without the seed, with the best score on validation images over all seeds.

  Raises:
    UserError: a run has not finished, other than by divergence, or none has a score.
  """
  runs = transfer_results.read(jobs, workdir)
  for name, finished in runs.items():
    status = str(finished.fact("status"))
    if status != "finished" and not status.startswith("diverged"):
      raise UserError(f"{name} has not finished; the best is chosen after all of them")
  ranked = [point for point in points(config, jobs, runs) if point["complete"]]
  if not ranked:
    raise UserError("no values have a finished run for every seed; see the runs' logs, NAME.log")
  return dict(ranked[0]["factors"])


def points(
  config: Mapping[str, Any], jobs: Sequence[engine.ConfigJob], runs: Mapping[str, Run]
) -> list[dict[str, Any]]:
  """Score in validation of every combination over its seeds, the best first."""
  grouped: dict[tuple[Any, ...], dict[str, Any]] = {}
  for job in jobs:
    factors = {k: v for k, v in job.factors.items() if k != "seed"}
    evaluator, name = metric(config, job.config)
    value = validation(runs[job.name], evaluator).get(name)
    if runs[job.name].fact("status") == "finished" and value is None:
      raise UserError(f"config.score={name!r} is no metric of {evaluator} in {job.name}")
    point = grouped.setdefault(
      tuple(factors.values()), {"factors": factors, "metric": name, "values": []}
    )
    point["values"].append(transfer_results.interval(value))

  def finish(point: dict[str, Any]) -> dict[str, Any]:
    values = point.pop("values")
    complete = all(v is not None and np.isfinite(v["value"]) for v in values)
    return point | {"score": transfer_results.over_seeds(values), "complete": complete}

  finished = [finish(point) for point in grouped.values()]

  def rank(point: Mapping[str, Any]) -> float:
    sign = 1 if point["metric"] in format.LOWER_IS_BETTER else -1
    return sign * point["score"]["value"] if point["complete"] else np.inf

  return sorted(finished, key=rank)


def validation(run: Run, evaluator: str) -> Mapping[str, Any]:
  """Metrics of the step whose checkpoint is kept: the best by the run's own score, or the last."""
  if run.fact("status") != "finished":
    return {}
  judged = [e.metrics for e in run.only(evaluator).evaluations if e.encoder == TRAINED]
  score = lookup(run.config, "checkpoint", "score")
  sign = -1 if score in format.LOWER_IS_BETTER else 1
  scored = [m for m in judged if score in m and np.isfinite(m[score].value)]
  if scored:
    return max(scored, key=lambda m: sign * m[score].value)
  return judged[-1] if judged else {}


def collect(
  config: Mapping[str, Any],
  jobs: Sequence[engine.ConfigJob],
  workdir: pathlib.Path,
  failed: Mapping[str, str],
) -> dict[str, Any]:
  """Facts of a sweep: a row for every run, a point for every combination, the chosen one."""
  runs = transfer_results.read(jobs, workdir)
  candidates = [job for job in jobs if "chosen" not in job.factors]
  evaluator, name = metric(config, candidates[0].config)
  rows: list[dict[str, Any]] = []
  sets: dict[str, Any] = {}
  for job in jobs:
    finished = runs[job.name]
    row = transfer_results.run_facts(job, finished, workdir, failed.get(job.name))
    row |= {"factors": dict(job.factors), "results": {}}
    if row["status"] == "finished":
      found = {m: transfer_results.interval(v) for m, v in validation(finished, evaluator).items()}
      row["results"][evaluator] = {"set": "val", "metrics": found}
      if "chosen" in job.factors:
        sets |= transfer_results.test_sets(finished)
        row["results"] |= {
          test: {"set": "test", "metrics": metrics}
          for test, metrics in transfer_results.test_scores(finished).items()
        }
    rows.append(row)
  try:
    chosen = choose(config, candidates, workdir)
  except UserError:
    chosen = None
  return {
    "metric": name,
    "evaluator": evaluator,
    "points": points(config, candidates, runs),
    "chosen": chosen,
    "seeds": list(dict.fromkeys(job.factors["seed"] for job in jobs)),
    "sets": sets,
    "rows": rows,
  }

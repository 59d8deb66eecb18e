"""Curriculum: trains in stages, each from an earlier stage's network, and shows the gain of each.

Every stage has its own config, folder and process. The last stages are those from which no other
one starts: they evaluate the curriculum. They can be repeated from scratch and from every earlier
stage on their path, all with the same network.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cxrjax.config import overrides
from cxrjax.config.instantiate import freeze
from cxrjax.core.command import say
from cxrjax.core.errors import UserError
from cxrjax.report.html import format
from cxrjax.report.naming import model_name
from cxrjax.report.run_files import Run
from cxrjax.studies import comparison_results, launcher, results_table, transfer_results
from cxrjax.studies import curriculum_page as page
from cxrjax.training import workdir as workdirs

PLATFORM = "cpu"  # of this process; the runs use the accelerator
SCRATCH, WEIGHTS = "scratch", "weights"  # starts other than stages
KEYS = {"name", "config", "flags", "init", "scratch"}  # of a stage


@dataclasses.dataclass(frozen=True)
class Job(launcher.Job):
  """One run of the curriculum.

  Attributes:
    stage: name of the stage.
    start: initial network: a stage, `scratch` or `weights`.
    last: whether no other stage starts from it.
    seed: of a last stage.
  """

  stage: str
  start: str
  last: bool = False
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class _Stage:
  """Parsed entry of `config.stages`."""

  name: str
  file: pathlib.Path
  arg: str
  flags: tuple[str, ...]
  scratch: tuple[str, ...]
  init: str  # name of an earlier stage, or ""
  path: str  # initial weights that are no stage's, or ""


def run(
  config: Mapping[str, Any],
  workdir: pathlib.Path,
  command: str = "",
  say: Callable[[str], None] = say,
) -> int:
  """Runs the stages; returns the exit status.

  The workdir then holds a folder for each, `report.html`, `table.csv` (a line for each run, test
  set and metric) and all facts in `run.json`. After a stage failed, the same command resumes there;
  a stage whose config was changed after it began has to be removed by hand.

  Returns:
    0; 1 where a stage failed; 128 + signal where one stopped it.

  Raises:
    UserError: invalid stages.
  """
  jobs = plan(config, workdir)
  # Every stage checks its own config in its folder, so finished stages are kept.
  workdirs.settle_config(workdir, {"task": config["task"]})
  show = launcher.Reporting(
    key="stages",
    begins=lambda job: f"{job.name} begins with {job.start}",
    ended=lambda job, why: _end_line(job, workdir, why),
    collect=lambda failed: collect(jobs, workdir, failed),
    rows=results_table.of_curriculum,
    page=page,
  )
  earlier, last = (
    [*dict.fromkeys(job.stage for job in jobs if job.last == is_last)] for is_last in (False, True)
  )
  opening = [
    f"stages    {' > '.join([*earlier, ' + '.join(last)])}",
    f"starts    {', '.join(dict.fromkeys(job.start for job in jobs if job.last))}",
    f"workdir   {workdir}",
    "",
  ]
  return launcher.run_jobs(jobs, workdir, show, command=command, opening=opening, say=say)


def plan(config: Mapping[str, Any], workdir: pathlib.Path) -> list[Job]:
  """Lists the stages in their order, then the last stages from other starts.

  Args:
    config: `stages`, each with `name`, `config` (`FILE:ARGUMENT`, the file in `folder`), `flags`,
      `init` ("previous", the name of an earlier stage, a path, or "" for none) and `scratch`,
      more flags for repeating it from scratch; `each`, `seeds`.
    workdir: of the curriculum.

  Raises:
    UserError: a mistake in any of these or in the config of a stage.
  """
  if "," in str(workdir):
    raise UserError(f"--workdir={workdir} has a comma, which separates options; choose another")
  seeds = [launcher.seed(text) for text in config["seeds"]]
  stages = _read_stages(config)
  used_as_start = {stage.init for stage in stages.values()}
  jobs: list[Job] = []
  repeated: list[Job] = []
  for stage in stages.values():
    if stage.name in used_as_start:
      start = stage.init or (WEIGHTS if stage.path else SCRATCH)
      jobs.append(
        Job(
          stage.name,
          _flags(stage, workdir),
          stage.name,
          start,
          needs=(stage.init,) if stage.init else (),
        )
      )
      continue
    own_start, *others = _starts(stage, stages)
    for seed in seeds:
      for start, path in [own_start, *(others if config["each"] else [])]:
        suffix = "" if (start, path) == own_start else f"-from-{start}"
        flags = _flags(stage, workdir, f"seed={seed}")
        if suffix:  # same network, different weights
          flags += (f"--config.init.path={workdir / start if start in stages else path}",)
          flags += stage.scratch if start == SCRATCH else ()
        needs = dict.fromkeys(n for n in (stage.init, start) if n in stages)
        job = Job(
          f"{stage.name}{suffix}-seed{seed}",
          flags,
          stage.name,
          start,
          True,
          seed,
          needs=tuple(needs),
        )
        (repeated if suffix else jobs).append(job)
  return [*jobs, *repeated]


def _read_stages(config: Mapping[str, Any]) -> dict[str, _Stage]:
  folder = pathlib.Path(os.path.relpath(config["folder"]))
  stages: dict[str, _Stage] = {}
  for i, spec in enumerate(freeze([dict(s) for s in config["stages"]])):
    key, name, init = f"config.stages[{i}]", str(spec.get("name", "")), spec.get("init", "")
    if set(spec) - KEYS or not spec.get("config"):
      raise UserError(f"{key} has {sorted(spec)}; it takes {', '.join(sorted(KEYS))}")
    if not re.fullmatch(r"[\w.-]+", name) or name in (*stages, SCRATCH, WEIGHTS, "previous"):
      raise UserError(f"{key}.name={name!r} must be a new name of letters, digits, - and _")
    if init == "previous":
      if not stages:
        raise UserError(f"{key}.init='previous', but no stage is before it; give a path or ''")
      init = list(stages)[-1]
    path = "" if init in stages else init
    if path and not pathlib.Path(path).expanduser().exists():
      raise UserError(
        f"{key}.init={path!r} is no stage before it, no run's workdir and no file; "
        f"stages before it: {', '.join(stages) or 'none'}"
      )
    file, _, arg = spec["config"].partition(":")
    config_file = folder / file if (folder / file).is_file() else pathlib.Path(file)
    flags, scratch_flags = (tuple(spec.get(k) or ()) for k in ("flags", "scratch"))
    # Raises on a mistake before anything runs.
    overrides.resolve([f"--config={config_file}:{arg}", *flags, *scratch_flags])
    stages[name] = _Stage(
      name, config_file, arg, flags, scratch_flags, init if init in stages else "", path
    )
  if not stages:
    raise UserError("config.stages is empty; see configs/curriculum.py")
  return stages


def _flags(stage: _Stage, workdir: pathlib.Path, *options: str) -> tuple[str, ...]:
  init = str(workdir / stage.init) if stage.init else stage.path
  items = [stage.arg, f"init={init}" if init else "", *options]
  return (f"--config={stage.file}:{','.join(filter(None, items))}", *stage.flags)


def _starts(stage: _Stage, stages: Mapping[str, _Stage]) -> list[tuple[str, str]]:
  """Names and paths of a last stage's possible starts: its own, then the others from scratch on."""
  ancestors, path, current = [], stage.path, stage
  while current.init:
    current = stages[current.init]
    ancestors.append((current.name, ""))
    path = current.path
  starts = [(SCRATCH, "")] + ([(WEIGHTS, path)] if path else [])
  starts += reversed(ancestors)
  return [starts[-1], *starts[:-1]]


def collect(
  jobs: Sequence[Job], workdir: pathlib.Path, failed: Mapping[str, str]
) -> dict[str, Any]:
  """Facts of a curriculum: a row for every run, a point for every start, common facts."""
  runs = transfer_results.read(jobs, workdir)
  run_rows, sets = [], {}
  finished: dict[tuple[str, str], dict[int, Run]] = {}
  for job in jobs:
    run = runs[job.name]
    row = transfer_results.row(job, run, workdir, failed.get(job.name)) | {
      "stage": job.stage,
      "begins": job.start,
      "last": job.last,
      "seed": job.seed,
    }
    if row["status"] == "finished":
      row |= {
        "model": model_name(run),
        "parameters": run.fact("model", "parameters"),
        "data": run.fact("data", "train", "name"),
        "device": run.fact("device"),
      }
      if job.last:
        finished.setdefault((job.stage, job.start), {})[job.seed] = run
        sets[job.stage] = transfer_results.test_sets(run)
      else:
        row["features"] = {
          name: comparison_results.features(run, name) for name in run.evaluators()
        }
    run_rows.append(row)
  points = []
  for stage in dict.fromkeys(job.stage for job in jobs if job.last):
    names = [job.start for job in jobs if job.last and job.stage == stage]
    order = [*dict.fromkeys(names[1:] + names[:1])]  # its own start comes first in the jobs
    order.sort(key=lambda name: _start_index(name, jobs))
    points += [
      _point(stage, order, i, finished) for i in range(len(order)) if (stage, order[i]) in finished
    ]
  return {
    "order": list(dict.fromkeys(job.stage for job in jobs)),
    "sets": sets,
    "seeds": list(dict.fromkeys(job.seed for job in jobs if job.last)),
    "points": points,
    "rows": run_rows,
  }


def _start_index(start: str, jobs: Sequence[Job]) -> int:
  order = [SCRATCH, WEIGHTS, *(job.stage for job in jobs if not job.last)]
  return order.index(start)


def _point(
  stage: str, order: Sequence[str], i: int, finished: Mapping[tuple[str, str], Mapping[int, Run]]
) -> dict[str, Any]:
  """Results of a last stage from one start, over seeds; gains over scratch and the start before."""
  runs = finished[stage, order[i]]
  results = [transfer_results.test_scores(run) for run in runs.values()]
  references = {"gains": SCRATCH, "steps": order[i - 1] if i else SCRATCH}
  return {
    "stage": stage,
    "start": order[i],
    "before": references["steps"],
    "sets": {
      name: {
        metric: transfer_results.over_seeds(
          [result.get(name, {}).get(metric) for result in results]
        )
        for metric in metrics
      }
      for name, metrics in results[0].items()
    },
    **{
      key: transfer_results.gains(runs, finished.get((stage, reference), {}))
      for key, reference in references.items()
      if reference != order[i]
    },
  }


def _end_line(job: Job, workdir: pathlib.Path, why: str | None) -> str:
  """Log line at the end of a run."""
  if why:
    return f"{job.name}: failed: {why}"
  run = transfer_results.read([job], workdir)[job.name]
  row = transfer_results.row(job, run, workdir, why)
  values = {m: v for metrics in row.get("sets", {}).values() for m, v in metrics.items()}
  parts = [
    f"{m} {format.decimal(values[m]['value'])}"
    for m in ("auroc", "accuracy", "dice")
    if m in values
  ]
  return ", ".join([f"{job.name}: {format.duration(row.get('total_s')) or 'finished'}", *parts])

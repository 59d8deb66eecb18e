"""Runs stage after stage, each beginning with an earlier one's network; shows what each brought.

A stage is a config of its own in a folder and a process of its own. Stages with which no other one
begins are the last ones: they judge. They can be repeated from scratch and from every earlier stage
on their way, all with the same network.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cxrjax.config import overrides
from cxrjax.config.instantiate import freeze
from cxrjax.core.command import say
from cxrjax.core.errors import UserError
from cxrjax.report.html import format
from cxrjax.report.naming import model_name
from cxrjax.report.run_files import Run
from cxrjax.studies import comparison_results, launcher, transfer_results
from cxrjax.studies import curriculum_page as page
from cxrjax.studies.transfer_results import cell
from cxrjax.training import workdir as workdirs

PLATFORM = "cpu"  # of this process; the runs have the accelerator
SCRATCH, WEIGHTS = "scratch", "weights"  # starts that are no stages
KEYS = {"name", "config", "flags", "init", "scratch"}  # of a stage


@dataclasses.dataclass(frozen=True)
class Job(launcher.Job):
  """One run.

  Attributes:
    stage: its name.
    start: what it begins with: a stage, `scratch` or `weights`.
    last: whether no other stage begins with it.
    seed: of a last stage.
  """

  stage: str
  start: str
  last: bool = False
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class _Stage:
  """One of `config.stages`, read."""

  name: str
  file: pathlib.Path
  arg: str
  flags: tuple[str, ...]
  scratch: tuple[str, ...]
  init: str  # a stage before it, or ""
  path: str  # or a path, or ""


def run(
  config: Mapping[str, Any],
  workdir: pathlib.Path,
  command: str = "",
  say: Callable[[str], None] = say,
) -> int:
  """Runs the stages; returns the exit status.

  The workdir then holds a folder for each, `report.html`, `table.csv` (a line for each run, test
  set and metric) and all facts in `run.json`. Where a stage failed, the same command goes on there;
  one whose config was changed after it began has to be removed by hand.

  Returns:
    0; 1 where a stage failed; 128 + signal where one stopped it.

  Raises:
    UserError: stages that cannot be.
  """
  jobs = plan(config, workdir)
  # Every stage's folder holds its own config against this one; what is done stays done.
  workdirs.settle_config(workdir, {"task": config["task"]})
  show = launcher.Show(
    key="stages",
    begins=lambda job: f"{job.name} begins with {job.start}",
    ended=lambda job, why: _said(job, workdir, why),
    collect=lambda failed: collect(jobs, workdir, failed),
    rows=rows,
    page=page,
  )
  before, last = (
    [*dict.fromkeys(job.stage for job in jobs if job.last == end)] for end in (False, True)
  )
  opening = [
    f"stages    {' > '.join([*before, ' + '.join(last)])}",
    f"starts    {', '.join(dict.fromkeys(job.start for job in jobs if job.last))}",
    f"workdir   {workdir}",
    "",
  ]
  return launcher.take(jobs, workdir, show, command=command, opening=opening, say=say)


def plan(config: Mapping[str, Any], workdir: pathlib.Path) -> list[Job]:
  """The stages in their order, then the last ones from other starts.

  Args:
    config: `stages`, of each `name`, `config` (`FILE:ARGUMENT`, the file in `folder`), `flags`,
      `init` ("previous", the name of an earlier stage, a path, or "" for none) and `scratch`,
      more flags for when it is repeated from scratch; `each`, `seeds`.
    workdir: of the whole.

  Raises:
    UserError: a mistake in any of these, or in the config of a stage.
  """
  if "," in str(workdir):
    raise UserError(f"--workdir={workdir} has a comma, which separates options; choose another")
  seeds = [launcher.seed(text) for text in config["seeds"]]
  stages = _read(config)
  begun = {stage.init for stage in stages.values()}
  jobs: list[Job] = []
  repeated: list[Job] = []
  for stage in stages.values():
    if stage.name in begun:
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
    own, *others = _starts(stage, stages)
    for seed in seeds:
      for start, path in [own, *(others if config["each"] else [])]:
        where = "" if (start, path) == own else f"-from-{start}"
        flags = _flags(stage, workdir, f"seed={seed}")
        if where:  # the same network, other weights
          flags += (f"--config.init.path={workdir / start if start in stages else path}",)
          flags += stage.scratch if start == SCRATCH else ()
        needs = dict.fromkeys(n for n in (stage.init, start) if n in stages)
        job = Job(
          f"{stage.name}{where}-seed{seed}",
          flags,
          stage.name,
          start,
          True,
          seed,
          needs=tuple(needs),
        )
        (repeated if where else jobs).append(job)
  return [*jobs, *repeated]


def _read(config: Mapping[str, Any]) -> dict[str, _Stage]:
  folder = pathlib.Path(os.path.relpath(config["folder"]))
  found: dict[str, _Stage] = {}
  for i, spec in enumerate(freeze([dict(s) for s in config["stages"]])):
    key, name, init = f"config.stages[{i}]", str(spec.get("name", "")), spec.get("init", "")
    if set(spec) - KEYS or not spec.get("config"):
      raise UserError(f"{key} has {sorted(spec)}; it takes {', '.join(sorted(KEYS))}")
    if not re.fullmatch(r"[\w.-]+", name) or name in (*found, SCRATCH, WEIGHTS, "previous"):
      raise UserError(f"{key}.name={name!r} must be a new name of letters, digits, - and _")
    if init == "previous":
      if not found:
        raise UserError(f"{key}.init='previous', but no stage is before it; give a path or ''")
      init = list(found)[-1]
    path = "" if init in found else init
    if path and not pathlib.Path(path).expanduser().exists():
      raise UserError(
        f"{key}.init={path!r} is no stage before it, no run's workdir and no file; "
        f"stages before it: {', '.join(found) or 'none'}"
      )
    file, _, arg = spec["config"].partition(":")
    where = folder / file if (folder / file).is_file() else pathlib.Path(file)
    flags, alone = (tuple(spec.get(k) or ()) for k in ("flags", "scratch"))
    overrides.resolve(
      [f"--config={where}:{arg}", *flags, *alone]
    )  # a mistake is said before anything runs
    found[name] = _Stage(name, where, arg, flags, alone, init if init in found else "", path)
  if not found:
    raise UserError("config.stages is empty; see configs/curriculum.py")
  return found


def _flags(stage: _Stage, workdir: pathlib.Path, *more: str) -> tuple[str, ...]:
  init = str(workdir / stage.init) if stage.init else stage.path
  items = [stage.arg, f"init={init}" if init else "", *more]
  return (f"--config={stage.file}:{','.join(filter(None, items))}", *stage.flags)


def _starts(stage: _Stage, stages: Mapping[str, _Stage]) -> list[tuple[str, str]]:
  """What a last stage can begin with, its own first, then from scratch on: names and paths."""
  way, path, at = [], stage.path, stage
  while at.init:
    at = stages[at.init]
    way.append((at.name, ""))
    path = at.path
  first = [(SCRATCH, "")] + ([(WEIGHTS, path)] if path else [])
  whole = [*first, *way[::-1]]
  return [whole[-1], *whole[:-1]]


def collect(
  jobs: Sequence[Job], workdir: pathlib.Path, failed: Mapping[str, str]
) -> dict[str, Any]:
  """All of a curriculum: a row for every run, what every start came to, what is common."""
  read = transfer_results.read(jobs, workdir)
  listed, sets = [], {}
  ended: dict[tuple[str, str], dict[int, Run]] = {}
  for job in jobs:
    run = read[job.name]
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
        ended.setdefault((job.stage, job.start), {})[job.seed] = run
        sets[job.stage] = transfer_results.sets(run)
      else:
        row["features"] = {
          name: comparison_results.features(run, name) for name in run.evaluators()
        }
    listed.append(row)
  points = []
  for stage in dict.fromkeys(job.stage for job in jobs if job.last):
    names = [job.start for job in jobs if job.last and job.stage == stage]
    order = [*dict.fromkeys(names[1:] + names[:1])]  # its own start comes first in the jobs
    order.sort(key=lambda name: _place(name, jobs))
    points += [
      _point(stage, order, i, ended) for i in range(len(order)) if (stage, order[i]) in ended
    ]
  return {
    "order": list(dict.fromkeys(job.stage for job in jobs)),
    "sets": sets,
    "seeds": list(dict.fromkeys(job.seed for job in jobs if job.last)),
    "points": points,
    "rows": listed,
  }


def _place(start: str, jobs: Sequence[Job]) -> int:
  order = [SCRATCH, WEIGHTS, *(job.stage for job in jobs if not job.last)]
  return order.index(start)


def _point(
  stage: str, order: Sequence[str], i: int, ended: Mapping[tuple[str, str], Mapping[int, Run]]
) -> dict[str, Any]:
  """What all seeds of a last stage came to from one start; gains over none and the start before."""
  of_seed = ended[stage, order[i]]
  each = [transfer_results.judged(run) for run in of_seed.values()]
  against = {"gains": SCRATCH, "steps": order[i - 1] if i else SCRATCH}
  return {
    "stage": stage,
    "start": order[i],
    "before": against["steps"],
    "sets": {
      name: {
        metric: transfer_results.over_seeds([one.get(name, {}).get(metric) for one in each])
        for metric in metrics
      }
      for name, metrics in each[0].items()
    },
    **{
      key: transfer_results.gains(of_seed, ended.get((stage, other), {}))
      for key, other in against.items()
      if other != order[i]
    },
  }


def _said(job: Job, workdir: pathlib.Path, why: str | None) -> str:
  """A run's end in a line."""
  if why:
    return f"{job.name}: failed: {why}"
  run = transfer_results.read([job], workdir)[job.name]
  row = transfer_results.row(job, run, workdir, why)
  known = {m: v for found in row.get("sets", {}).values() for m, v in found.items()}
  parts = [
    f"{m} {format.decimal(known[m]['value'])}" for m in ("auroc", "accuracy", "dice") if m in known
  ]
  return ", ".join([f"{job.name}: {format.duration(row.get('total_s')) or 'finished'}", *parts])


def rows(found: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
  """A header and a line for every run, test set and metric; a run that failed has one line."""
  yield (
    "stage",
    "begins_with",
    "seed",
    "status",
    "images",
    "epochs",
    "data",
    "metric",
    "value",
    "low",
    "high",
    "total_s",
    "why",
    "command",
    "run",
  )
  for row in found["rows"]:
    start = [
      row["stage"],
      row["begins"],
      row["seed"],
      row["status"],
      cell(row.get("images")),
      cell(row.get("epochs")),
    ]
    end = [cell(row.get("total_s")), row["why"] or "", row["command"], row["name"]]
    lines = [
      (name, metric, value)
      for name, judged in (row.get("sets") or {}).items()
      for metric, value in judged.items()
    ]
    lines += [
      (name, f"{head}/auroc", found["trained"])
      for name, heads in (row.get("features") or {}).items()
      for head, found in heads.items()
    ]
    for name, metric, value in lines or [("", "", {})]:
      yield [*start, name, metric, *(cell(value.get(k)) for k in ("value", "low", "high")), *end]

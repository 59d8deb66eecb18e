"""Label efficiency: fine-tunes from several starts on several shares of the labels."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cxrjax.config import overrides
from cxrjax.core.command import say
from cxrjax.core.errors import UserError
from cxrjax.report.html import format
from cxrjax.report.naming import model_name
from cxrjax.report.run_files import Run
from cxrjax.studies import label_efficiency_page as page
from cxrjax.studies import launcher, results_table, transfer_results
from cxrjax.training import workdir as workdirs

PLATFORM = "cpu"  # of this process; the runs use the accelerator


@dataclasses.dataclass(frozen=True)
class Job(launcher.Job):
  """One run of the sweep.

  Attributes:
    init: name of the start.
    method: supervised method; empty for the pretraining of a start.
    fraction: share of the labels, `10 %`.
    seed: of the run and of the drawn labels.
    fold: of a cross-validation, `2 of 5`.
  """

  init: str
  method: str = ""
  fraction: str = ""
  seed: int = 0
  fold: str = ""

  @property
  def curve(self) -> str:
    """Name of the line in the plot: the start, and the method unless it is plain fine-tuning."""
    return self.init if self.method == "finetune" else f"{self.init}, {self.method}"


def run(
  config: Mapping[str, Any],
  workdir: pathlib.Path,
  command: str = "",
  say: Callable[[str], None] = say,
) -> int:
  """Runs a sweep; returns the exit status.

  The workdir then holds a folder for each run, `report.html`, `table.csv` (a line for each run,
  test set and metric) and all facts in `run.json`.

  Returns:
    0; 1 where a run failed; 128 + signal where one stopped it.

  Raises:
    UserError: an invalid sweep, or a workdir of another one.
  """
  # Starts, shares and seeds can be added to a sweep; training options must not change.
  extensible = ("fractions", "seeds", "inits", "methods", "folder")
  workdirs.settle_config(workdir, {k: v for k, v in config.items() if k not in extensible})
  jobs = plan(config, workdir)
  show = launcher.Reporting(
    key="sweep",
    begins=lambda job: f"{job.name} begins",
    ended=lambda job, why: _end_line(job, workdir, why),
    collect=lambda failed: collect(jobs, workdir, failed),
    rows=results_table.of_label_efficiency,
    page=page,
  )
  finetunings = [job for job in jobs if job.method]
  n_pretrainings = len(jobs) - len(finetunings)
  opening = [
    f"starts    {', '.join(dict.fromkeys(job.init for job in finetunings))}",
    f"labels    {', '.join(dict.fromkeys(job.fraction for job in finetunings))}",
    f"runs      {len(finetunings)}"
    + (f", after {n_pretrainings} pretraining" if n_pretrainings else ""),
    f"workdir   {workdir}",
    "",
  ]
  return launcher.run_jobs(jobs, workdir, show, command=command, opening=opening, say=say)


@dataclasses.dataclass(frozen=True)
class Start:
  """Initial weights of the fine-tunings of a curve.

  Attributes:
    name: in the plot.
    path: workdir of a run or file of weights; empty to train from scratch.
    arg: options of the fine-tunings.
    pretraining: the run that makes it, where that is part of the sweep.
  """

  name: str
  path: str
  arg: str = ""
  pretraining: Job | None = None

  @property
  def is_run(self) -> bool:
    """Whether its network is known from a run."""
    config = pathlib.Path(self.path).expanduser() / "config.json"
    return self.pretraining is not None or (bool(self.path) and config.is_file())


@dataclasses.dataclass(frozen=True)
class Method:
  """A supervised method: its name, config, options, and the option that takes a share of labels."""

  name: str
  file: pathlib.Path
  arg: str
  share_option: str


def plan(config: Mapping[str, Any], workdir: pathlib.Path) -> list[Job]:
  """Lists the runs of a sweep: pretrainings, then all shares and starts of every seed and fold.

  Raises:
    UserError: a mistake in `inits`, `fractions`, `seeds`, `folds`, `methods` or of the runs.
  """
  folder = pathlib.Path(os.path.relpath(config["folder"]))
  seeds = [launcher.seed(text) for text in config["seeds"]]
  fractions = [fraction(text) for text in config["fractions"]]
  folds = folds_of(config["folds"])
  if "," in str(workdir):
    raise UserError(f"--workdir={workdir} has a comma, which separates options; choose another")
  starts = _starts(config["inits"], folder, workdir)
  network_start = next((start for start in starts if start.is_run), None)
  methods = [
    _method(name, folder / file, arg, config["arg"]) for name, file, arg in config["methods"]
  ]
  pretrainings = [start.pretraining for start in starts if start.pretraining]
  finetunings = [
    _finetuning(config["arg"], method, start, network_start, share, seed, fold)
    for seed, fold, share, method, start in itertools.product(
      seeds, folds, fractions, methods, starts
    )
  ]
  return [*pretrainings, *finetunings]


def _starts(
  inits: Sequence[tuple[str, str, str]], folder: pathlib.Path, workdir: pathlib.Path
) -> list[Start]:
  """The starts of a sweep; a config among them is pretrained in `workdir` first."""
  starts: dict[str, Start] = {}
  for name, path, arg in inits:
    if not re.fullmatch(r"[\w.-]+", name) or name in starts or (path == "") != (name == "scratch"):
      raise UserError(
        f"config.inits has {f'{name}={path}'!r}; write them like "
        "scratch+dino=runs/dino+gmml=gmml.py, every name once"
      )
    if path.endswith(".py"):
      file = folder / path if (folder / path).is_file() else pathlib.Path(path)
      job = Job(f"pretrain-{name}", (f"--config={file}:{arg}",), name)
      _ = job.config  # raises on a mistake before anything runs
      starts[name] = Start(name, str(workdir / job.name), pretraining=job)
      continue
    if path and not pathlib.Path(path).expanduser().exists():
      raise UserError(
        f"config.inits has {name}={path}, which is neither a run's workdir nor a "
        "file of weights nor a config"
      )
    starts[name] = Start(name, path, arg)
  return list(starts.values())


def _method(name: str, file: pathlib.Path, arg: str, common_arg: str) -> Method:
  config = overrides.resolve([f"--config={file}:{','.join(filter(None, [common_arg, arg]))}"])
  # Semi-supervised methods keep all images and get labels of a share of them.
  share_option = "data.labelled" if "labelled" in config["data"] else "subset"
  return Method(name, file, arg, share_option)


def _finetuning(
  common_arg: str,
  method: Method,
  start: Start,
  network_start: Start | None,
  share: str,
  seed: int,
  fold: str,
) -> Job:
  """One fine-tuning; from scratch with the network of `network_start`, without its weights."""
  origin = start if start.path else network_start
  options = [
    common_arg,
    method.arg,
    start.arg,
    f"init={origin.path}" if origin else "",
    "" if (method.share_option, share) == ("subset", "100 %") else f"{method.share_option}={share}",
    f"data.fold={fold}" if fold else "",
    f"seed={seed}",
    f"data.split_seed={seed}",
  ]
  flags = [f"--config={method.file}:{','.join(filter(None, options))}"]
  if origin and not start.path:
    flags.append("--config.init.path=")
  words = [
    *([] if method.name == "finetune" else [method.name]),
    start.name,
    re.sub(r"\s*%", "pct", share).replace(" ", "-"),
    f"seed{seed}",
    *([f"fold{fold.split()[0]}"] if fold else []),
  ]
  needs = (origin.pretraining.name,) if origin and origin.pretraining else ()
  return Job("-".join(words), tuple(flags), start.name, method.name, share, seed, fold, needs=needs)


def fraction(text: Any) -> str:
  """Normalizes a share of the labels: `10` and `10 %` to `10 %`; keeps `16 per class`."""
  match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%?\s*", str(text))
  if match and 0 < float(match[1]) <= 100:
    return f"{float(match[1]):g} %"
  if re.fullmatch(r"\s*[1-9]\d*\s+per\s+class\s*", str(text)):
    return " ".join(str(text).split())
  raise UserError(
    f"config.fractions={text!r} is no share of the labels; write them like "
    "1+10+100 (percent) or 16 per class"
  )


def folds_of(text: Any) -> list[str]:
  """Expands `5` to `1 of 5`, `2 of 5`, ..., also `5 by image`; empty: one run on the splits."""
  match = re.fullmatch(r"\s*(\d+)((?:\s+by\s+image)?)\s*", str(text))
  if match and int(match[1]) > 1:
    return [
      f"{k} of {match[1]}{' by image' if match[2] else ''}" for k in range(1, int(match[1]) + 1)
    ]
  if not text:
    return [""]
  raise UserError(f"config.folds={text!r} is no number of folds; write it like 5, or 5 by image")


def collect(
  jobs: Sequence[Job], workdir: pathlib.Path, failed: Mapping[str, str]
) -> dict[str, Any]:
  """Facts of a sweep: a row for every run, a point for every curve and share, common facts."""
  runs = transfer_results.read(jobs, workdir)
  run_rows: list[dict[str, Any]] = []
  common: dict[str, Any] = {}
  sets: dict[str, Any] = {}
  finished: dict[tuple[str, str], dict[tuple[int, str], Run]] = {}
  for job in jobs:
    run = runs[job.name]
    row = transfer_results.row(job, run, workdir, failed.get(job.name)) | {
      "curve": job.curve if job.method else "",
      "init": job.init,
      "fraction": job.fraction,
      "seed": job.seed,
      **({"fold": job.fold} if job.fold else {}),
    }
    run_rows.append(row)
    if job.method and row["status"] == "finished":
      finished.setdefault((job.curve, job.fraction), {})[job.seed, job.fold] = run
      sets |= {k: v for k, v in transfer_results.test_sets(run).items() if k not in sets}
      common = common or {
        "model": model_name(run),
        "parameters": run.fact("model", "parameters"),
        "image_size": run.config.get("model", {}).get("image_size"),
        "device": run.fact("device"),
        "data": run.fact("data", "train", "name"),
      }
  finetunings = [job for job in jobs if job.method]
  reference = finetunings[0].curve
  points = []
  for curve in dict.fromkeys(job.curve for job in finetunings):
    for share in dict.fromkeys(job.fraction for job in finetunings):
      if (curve, share) in finished:
        points.append(_point(curve, share, finished, reference))
  return {
    "reference": reference,
    "curves": list(dict.fromkeys(job.curve for job in finetunings)),
    "fractions": list(dict.fromkeys(job.fraction for job in finetunings)),
    "seeds": list(dict.fromkeys(job.seed for job in finetunings)),
    "folds": len({job.fold for job in finetunings} - {""}),
    "by_image": any(job.fold.endswith("by image") for job in finetunings),
    "sets": sets,
    **common,
    "points": points,
    "rows": run_rows,
  }


def _point(
  curve: str,
  share: str,
  finished: Mapping[tuple[str, str], Mapping[tuple[int, str], Run]],
  reference: str,
) -> dict[str, Any]:
  """Results of all seeds and folds of a curve at one share of the labels."""
  runs = finished[curve, share]
  results = [transfer_results.test_scores(run) for run in runs.values()]
  labelled = [n for run in runs.values() if (n := transfer_results.labelled(run)) is not None]
  has_folds = any(fold for _, fold in runs)
  sets: dict[str, dict[str, Any]] = {}
  for name, metrics in results[0].items():
    for metric in metrics:
      value = transfer_results.over_seeds([result.get(name, {}).get(metric) for result in results])
      if value and has_folds:  # the range over folds reflects their small test sets
        value |= dict.fromkeys(("low", "high"), math.nan)
        if metric in transfer_results.PAIRED:
          value |= transfer_results.interval(transfer_results.mean(name, metric, [*runs.values()]))
      sets.setdefault(name, {})[metric] = value
  return {
    "curve": curve,
    "fraction": share,
    "labelled": sum(labelled) / len(labelled) if labelled else None,
    "sets": sets,
    "gains": {}
    if curve == reference
    else transfer_results.gains(runs, finished.get((reference, share), {})),
    "ensembles": _ensemble_metrics(runs, list(sets)),
  }


def _ensemble_metrics(runs: Mapping[tuple[int, str], Run], names: Sequence[str]) -> dict[str, Any]:
  """`{evaluator: {metric: interval}}` of the ensemble of seeds; empty for one seed or folds."""
  if len(runs) < 2 or any(fold for _, fold in runs):
    return {}  # folds differ between seeds
  results = {name: transfer_results.ensemble(name, [*runs.values()]) for name in names}
  return {
    name: {metric: transfer_results.interval(value) for metric, value in metrics.items()}
    for name, metrics in results.items()
    if metrics
  }


def _end_line(job: Job, workdir: pathlib.Path, why: str | None) -> str:
  """Log line at the end of a run."""
  if why:
    return f"{job.name}: failed: {why}"
  run = transfer_results.read([job], workdir)[job.name]
  row = transfer_results.row(job, run, workdir, why)
  parts = [
    f"{metric} {format.decimal(metrics[metric]['value'])}"
    for metrics in row.get("sets", {}).values()
    for metric in ("auroc", "accuracy")
    if metric in metrics
  ]
  took = format.duration(row.get("total_s")) or "finished"
  return f"{job.name}: {took}; {', '.join(parts)}" if parts else f"{job.name}: {took}"

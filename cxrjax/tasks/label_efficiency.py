"""Fine-tunes from several starts with several shares of the labels, and draws what came of it."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cxrjax.config import overrides
from cxrjax.core.command import say
from cxrjax.core.errors import UserError
from cxrjax.report.html import format
from cxrjax.report.naming import model_name
from cxrjax.report.run_files import Run
from cxrjax.studies import label_efficiency_page as page
from cxrjax.studies import launcher, transfer_results
from cxrjax.studies.transfer_results import cell
from cxrjax.training import workdir as workdirs

PLATFORM = "cpu"  # of this process; the runs have the accelerator


@dataclasses.dataclass(frozen=True)
class Job(launcher.Job):
  """One run.

  Attributes:
    init: the start's name.
    method: that learns from labels; nothing for the pretraining of a start.
    fraction: of the labels, `10 %`.
    seed: of the run, and of the labels that are drawn.
    fold: of a cross-validation, `2 of 5`.
  """

  init: str
  method: str = ""
  fraction: str = ""
  seed: int = 0
  fold: str = ""

  @property
  def curve(self) -> str:
    """What is drawn as one line: a start, and the method unless that is plain fine-tuning."""
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
    UserError: a sweep that cannot be, or a workdir of another one.
  """
  # Starts, shares and seeds can be added to a sweep; how it learns must stay.
  several = ("fractions", "seeds", "inits", "methods", "folder")
  workdirs.settle_config(workdir, {k: v for k, v in config.items() if k not in several})
  jobs = plan(config, workdir)
  show = launcher.Show(
    key="sweep",
    begins=lambda job: f"{job.name} begins",
    ended=lambda job, why: _said(job, workdir, why),
    collect=lambda failed: collect(jobs, workdir, failed),
    rows=rows,
    page=page,
  )
  tuned = [job for job in jobs if job.method]
  first = len(jobs) - len(tuned)
  opening = [
    f"starts    {', '.join(dict.fromkeys(job.init for job in tuned))}",
    f"labels    {', '.join(dict.fromkeys(job.fraction for job in tuned))}",
    f"runs      {len(tuned)}" + (f", after {first} pretraining" if first else ""),
    f"workdir   {workdir}",
    "",
  ]
  return launcher.take(jobs, workdir, show, command=command, opening=opening, say=say)


def plan(config: Mapping[str, Any], workdir: pathlib.Path) -> list[Job]:
  """The runs of a sweep: pretrainings, then every seed and fold with all its shares and starts.

  Raises:
    UserError: a mistake in `inits`, `fractions`, `seeds`, `folds`, `methods` or what is handed on.
  """
  folder = pathlib.Path(os.path.relpath(config["folder"]))
  seeds = [launcher.seed(text) for text in config["seeds"]]
  fractions = [fraction(text) for text in config["fractions"]]
  folds = folds_of(config["folds"])
  if "," in str(workdir):
    raise UserError(f"--workdir={workdir} has a comma, which separates options; choose another")
  before: list[Job] = []
  paths: dict[str, str] = {}
  args: dict[str, str] = {}  # of the fine-tunings of a start
  for name, path, arg in config["inits"]:
    if not re.fullmatch(r"[\w.-]+", name) or name in paths or (path == "") != (name == "scratch"):
      raise UserError(
        f"config.inits has {f'{name}={path}'!r}; write them like "
        "scratch+dino=runs/dino+gmml=gmml.py, every name once"
      )
    paths[name] = path
    if path.endswith(".py"):
      file = folder / path if (folder / path).is_file() else pathlib.Path(path)
      job = Job(f"pretrain-{name}", (f"--config={file}:{arg}",), name)
      _ = job.config  # a mistake is said before anything runs
      before.append(job)
      paths[name] = str(workdir / job.name)
      continue
    args[name] = arg
    if path and not pathlib.Path(path).expanduser().exists():
      raise UserError(
        f"config.inits has {name}={path}, which is neither a run's workdir nor a "
        "file of weights nor a config"
      )
  begin = {job.init: (job.name,) for job in before}
  # The network that scratch has as well.
  like = next(
    (
      n
      for n, p in paths.items()
      if n in begin or (pathlib.Path(p).expanduser() / "config.json").is_file()
    ),
    "",
  )
  methods = []
  for name, file, own in config["methods"]:
    whole = overrides.resolve(
      [f"--config={folder / file}:{','.join(filter(None, [config['arg'], own]))}"]
    )
    # What learns from images without labels, too, has all of them.
    option = "labelled" if "labelled" in whole["data"] else "subset"
    methods.append((name, folder / file, own, option))
  jobs = []
  for seed, fold, share, of, init in itertools.product(seeds, folds, fractions, methods, paths):
    method, file, own, option = of
    path = paths[init]
    start = path or paths.get(like, "")
    items = [
      config["arg"],
      own,
      args.get(init, ""),
      f"init={start}" if start else "",
      "" if (option, share) == ("subset", "100 %") else f"{option}={share}",
      f"fold={fold}" if fold else "",
      f"seed={seed}",
      f"split_seed={seed}",
    ]
    flags = [f"--config={file}:{','.join(filter(None, items))}"]
    if start and not path:
      flags.append("--config.init.path=")  # the network, not its weights
    name = "-".join(
      [
        *([] if method == "finetune" else [method]),
        init,
        re.sub(r"\s*%", "pct", share).replace(" ", "-"),
        f"seed{seed}",
        *([f"fold{fold.split()[0]}"] if fold else []),
      ]
    )
    jobs.append(
      Job(
        name,
        tuple(flags),
        init,
        method,
        share,
        seed,
        fold,
        needs=begin.get(init if path else like, ()),
      )
    )
  return [*before, *jobs]


def fraction(text: Any) -> str:
  """`10` and `10 %` as `10 %`; `16 per class` as it is."""
  found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%?\s*", str(text))
  if found and 0 < float(found[1]) <= 100:
    return f"{float(found[1]):g} %"
  if re.fullmatch(r"\s*[1-9]\d*\s+per\s+class\s*", str(text)):
    return " ".join(str(text).split())
  raise UserError(
    f"config.fractions={text!r} is no share of the labels; write them like "
    "1+10+100 (percent) or 16 per class"
  )


def folds_of(text: Any) -> list[str]:
  """`5` as `1 of 5`, `2 of 5`, ...; `5 by image` likewise; nothing as one run on the splits."""
  found = re.fullmatch(r"\s*(\d+)((?:\s+by\s+image)?)\s*", str(text))
  if found and int(found[1]) > 1:
    return [
      f"{k} of {found[1]}{' by image' if found[2] else ''}" for k in range(1, int(found[1]) + 1)
    ]
  if not text:
    return [""]
  raise UserError(f"config.folds={text!r} is no number of folds; write it like 5, or 5 by image")


def collect(
  jobs: Sequence[Job], workdir: pathlib.Path, failed: Mapping[str, str]
) -> dict[str, Any]:
  """All of a sweep: a row for every run, a point for every curve and share, what is common."""
  read = transfer_results.read(jobs, workdir)
  listed: list[dict[str, Any]] = []
  common: dict[str, Any] = {}
  sets: dict[str, Any] = {}
  ended: dict[tuple[str, str], dict[tuple[int, str], Run]] = {}
  for job in jobs:
    run = read[job.name]
    row = transfer_results.row(job, run, workdir, failed.get(job.name)) | {
      "curve": job.curve if job.method else "",
      "init": job.init,
      "fraction": job.fraction,
      "seed": job.seed,
      **({"fold": job.fold} if job.fold else {}),
    }
    listed.append(row)
    if job.method and row["status"] == "finished":
      ended.setdefault((job.curve, job.fraction), {})[job.seed, job.fold] = run
      sets |= {k: v for k, v in transfer_results.sets(run).items() if k not in sets}
      common = common or {
        "model": model_name(run),
        "parameters": run.fact("model", "parameters"),
        "image_size": run.config.get("model", {}).get("image_size"),
        "device": run.fact("device"),
        "data": run.fact("data", "train", "name"),
      }
  tuned = [job for job in jobs if job.method]
  reference = tuned[0].curve
  points = []
  for curve in dict.fromkeys(job.curve for job in tuned):
    for share in dict.fromkeys(job.fraction for job in tuned):
      if (curve, share) in ended:
        points.append(_point(curve, share, ended, reference))
  return {
    "reference": reference,
    "curves": list(dict.fromkeys(j.curve for j in tuned)),
    "fractions": list(dict.fromkeys(j.fraction for j in tuned)),
    "seeds": list(dict.fromkeys(j.seed for j in tuned)),
    "folds": len({j.fold for j in tuned} - {""}),
    "by_image": any(j.fold.endswith("by image") for j in tuned),
    "sets": sets,
    **common,
    "points": points,
    "rows": listed,
  }


def _point(
  curve: str,
  share: str,
  ended: Mapping[tuple[str, str], Mapping[tuple[int, str], Run]],
  reference: str,
) -> dict[str, Any]:
  """What all seeds and folds of a curve came to with one share of the labels."""
  found = ended[curve, share]
  each = [transfer_results.judged(run) for run in found.values()]
  labelled = [n for run in found.values() if (n := transfer_results.labelled(run)) is not None]
  folds = any(fold for _, fold in found)
  sets: dict[str, dict[str, Any]] = {}
  for name, metrics in each[0].items():
    for metric in metrics:
      value = transfer_results.over_seeds([one.get(name, {}).get(metric) for one in each])
      if value and folds:  # whose range is that of small test sets
        value |= dict.fromkeys(("low", "high"), math.nan)
        if metric in transfer_results.PAIRED:
          value |= transfer_results.interval(transfer_results.mean(name, metric, [*found.values()]))
      sets.setdefault(name, {})[metric] = value
  return {
    "curve": curve,
    "fraction": share,
    "labelled": sum(labelled) / len(labelled) if labelled else None,
    "sets": sets,
    "gains": {}
    if curve == reference
    else transfer_results.gains(found, ended.get((reference, share), {})),
    "ensembles": _ensembles(found, list(sets)),
  }


def _ensembles(found: Mapping[tuple[int, str], Run], names: Sequence[str]) -> dict[str, Any]:
  """`{evaluator: {metric: interval}}` of the seeds together; nothing of one, nor of folds."""
  if len(found) < 2 or any(fold for _, fold in found):
    return {}  # another seed divides into other folds
  made = {name: transfer_results.ensemble(name, [*found.values()]) for name in names}
  return {
    name: {metric: transfer_results.interval(value) for metric, value in judged.items()}
    for name, judged in made.items()
    if judged
  }


def _said(job: Job, workdir: pathlib.Path, why: str | None) -> str:
  """A run's end in a line."""
  if why:
    return f"{job.name}: failed: {why}"
  run = transfer_results.read([job], workdir)[job.name]
  row = transfer_results.row(job, run, workdir, why)
  parts = [
    f"{metric} {format.decimal(found[metric]['value'])}"
    for found in row.get("sets", {}).values()
    for metric in ("auroc", "accuracy")
    if metric in found
  ]
  took = format.duration(row.get("total_s")) or "finished"
  return f"{job.name}: {took}; {', '.join(parts)}" if parts else f"{job.name}: {took}"


def rows(found: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
  """A header and a line for every run, test set and metric; a run that failed has one line."""
  yield (
    "curve",
    "init",
    "fraction",
    "labelled",
    "seed",
    "fold",
    "status",
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
  for point in found["points"]:
    for name, judged in point["ensembles"].items():
      for metric, value in judged.items():
        yield [
          point["curve"],
          "",
          point["fraction"],
          cell(point["labelled"]),
          "ensemble",
          "",
          "finished",
          name,
          metric,
          *(cell(value.get(k)) for k in ("value", "low", "high")),
          "",
          "",
          "",
          "",
        ]
  for row in found["rows"]:
    start = [
      row["curve"],
      row["init"],
      row["fraction"],
      cell(row.get("labelled")),
      row["seed"],
      row.get("fold", ""),
      row["status"],
    ]
    end = [cell(row.get("total_s")), row["why"] or "", row["command"], row["name"]]
    lines = [
      (name, metric, value)
      for name, judged in (row.get("sets") or {}).items()
      for metric, value in judged.items()
    ]
    for name, metric, value in lines or [("", "", {})]:
      yield [*start, name, metric, *(cell(value.get(k)) for k in ("value", "low", "high")), *end]

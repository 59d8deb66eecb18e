"""Results of a comparison: facts for the page, log lines and rows of the table."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cxrjax.evals import classification_metrics
from cxrjax.report import run_files as runs
from cxrjax.report.html import format
from cxrjax.report.naming import model_name, total_seconds
from cxrjax.report.run_files import FLOOR, RANDOM, TRAINED, Run, lookup, number
from cxrjax.report.terminal import sort_metrics
from cxrjax.studies.comparison_plan import Job
from cxrjax.studies.transfer_results import interval, run_facts


def collect(
  jobs: Sequence[Job], workdir: pathlib.Path, failed: Mapping[str, str]
) -> dict[str, Any]:
  """Collects a comparison: common facts, the data sets, and a row for every run."""
  rows: list[dict[str, Any]] = []
  sets: dict[str, dict[str, Any]] = {}
  common: dict[str, Any] = {}
  for job in jobs:
    run = runs.read(workdir / job.name)
    if run.fact("status") == "finished":
      sets |= {name: _set_facts(run, name) for name in run.evaluators() if name not in sets}
      common = common or _common_facts(run)
    rows.append(_row(job, run, workdir, failed.get(job.name)))
  return {
    "budget": jobs[0].budget,
    "examples": jobs[0].examples,
    "sets": sets,
    **common,
    "rows": rows,
  }


def _common_facts(run: Run) -> dict[str, Any]:
  """Facts that all runs share, read from one of them."""
  train = run.fact("data", "train")
  return {
    "model": model_name(run),
    "parameters": run.fact("model", "parameters"),
    "image_size": lookup(run.config, "model", "image_size"),
    "batch_size": run.fact("batch_size"),
    "device": run.fact("device"),
    "data": {k: lookup(train, k) for k in ("name", "split", "n", "patients", "fingerprint")},
    "notes": lookup(train, "notes"),
  }


def _set_facts(run: Run, name: str) -> dict[str, Any]:
  """Facts of an evaluation data set: its test split and the thumbnail floor."""
  floor_scores = run.only(name).latest().get(FLOOR, {})
  return {
    "test": run.fact("data", name, "test"),
    "train": run.fact("data", name, "train", "n"),
    "floor": interval(floor_scores.get("linear/auroc")),
  }


def _row(job: Job, run: Run, workdir: pathlib.Path, why: str | None) -> dict[str, Any]:
  """Facts of a run: its plan and cost, and scores on each data set."""
  images = job.steps * job.batch_size
  row = run_facts(job, run, workdir, why) | {
    "method": job.method,
    "seed": job.seed,
    "flops_per_image": job.flops_per_image,
    "steps": job.steps,
    "images": images,
    "epochs": images / job.examples,
  }
  if row["status"] != "finished":
    return row
  rate = number(run.fact("timing", "images_per_s"))
  row |= {
    "training_flops_per_image": run.fact("model", "flops_per_image"),
    "images_per_s": rate,
    "training_s": images / rate if rate > 0 else None,
    "total_s": total_seconds(run),
    "compile_s": run.fact("timing", "compile_s"),
    "memory": run.fact("memory"),
    "sets": {},
  }
  for name in run.evaluators():
    row["sets"][name] = _scores(job, run, name)
  return row


def heads(metrics: Mapping[str, Any]) -> dict[str, str]:
  """Compared AUROCs by head: kNN with the most neighbours, plain and whitened, and linear probe."""
  names = [m.split("/")[0] for m in sort_metrics(set(metrics)) if m.endswith("/auroc")]
  compared = []
  for kind in ("knn", "whitened", "linear"):
    compared += [name for name in names if name.startswith(kind)][-1:]
  return {name: f"{name}/auroc" for name in compared}


def features(run: Run, name: str) -> dict[str, Any]:
  """Scores on one data set by head: the trained encoder, the untrained one, and the gain."""
  latest = run.only(name).latest()
  scores = {e: run.arrays(f"scores_{name}_{e}") for e in (TRAINED, RANDOM)}
  return {
    head: {
      "trained": interval(latest[TRAINED][metric]),
      "random": interval(latest.get(RANDOM, {}).get(metric)),
      "gain": _paired_difference(scores[TRAINED], scores[RANDOM], head, head),
    }
    for head, metric in heads(latest.get(TRAINED, {})).items()
  }


def _scores(job: Job, run: Run, name: str) -> dict[str, Any]:
  """Scores of `features`, with their course over the run and the probe's gain over the floor."""
  scores = features(run, name)
  for head, metric in heads(run.only(name).latest().get(TRAINED, {})).items():
    course = [
      (e.step, e.metrics[metric])
      for e in run.only(name).evaluations
      if e.encoder in (RANDOM, TRAINED) and metric in e.metrics
    ]
    scores[head]["course"] = [
      [step * job.batch_size * job.flops_per_image, v.value, v.low, v.high] for step, v in course
    ]
  if "linear" in scores:
    trained, floor = (run.arrays(f"scores_{name}_{e}") for e in (TRAINED, FLOOR))
    scores["linear"]["over_floor"] = _paired_difference(trained, floor, "linear", "linear")
  return scores


def _paired_difference(
  a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], head: str, other: str
) -> dict[str, Any] | None:
  """Paired AUROC difference; None unless both have scores of the same images."""
  if head not in a or other not in b or not np.array_equal(a["labels"], b["labels"], True):
    return None
  return interval(
    classification_metrics.difference(
      a[head], b[other], a["labels"], a["patient"], bool(a["exclusive"])
    )
  )


def summary_line(job: Job, workdir: pathlib.Path, why: str | None) -> str:
  """Log line about how a run ended."""
  if why:
    return f"{job.name}: failed: {why}"
  row = _row(job, runs.read(workdir / job.name), workdir, why)
  results = []
  for name, scores_by_head in row.get("sets", {}).items():
    for head, scores in scores_by_head.items():
      gain = scores["gain"]
      change = f" ({gain['value']:+.3f})" if gain and math.isfinite(gain["value"]) else ""
      results.append(f"{name} {head} {format.decimal(scores['trained']['value'])}{change}")
  duration = format.duration(row.get("total_s"))
  return f"{job.name}: {duration or 'finished'}; {', '.join(results)}"

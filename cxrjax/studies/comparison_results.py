"""What the runs of a comparison came to, as facts for the page and lines for the table."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cxrjax.evals import classification_metrics
from cxrjax.report import run_files as runs
from cxrjax.report.html import format
from cxrjax.report.naming import model_name, total_seconds
from cxrjax.report.run_files import FLOOR, RANDOM, TRAINED, Run, lookup, number
from cxrjax.report.terminal import sort_metrics
from cxrjax.studies.comparison_plan import Job
from cxrjax.studies.transfer_results import cell, interval


def collect(
  jobs: Sequence[Job], workdir: pathlib.Path, failed: Mapping[str, str]
) -> dict[str, Any]:
  """All of a comparison: what was common, the data sets, and a row for every run."""
  rows: list[dict[str, Any]] = []
  sets: dict[str, dict[str, Any]] = {}
  common: dict[str, Any] = {}
  for job in jobs:
    run = runs.read(workdir / job.name)
    if run.fact("status") == "finished":
      sets |= {name: _set(run, name) for name in run.evaluators() if name not in sets}
      common = common or _common(run)
    rows.append(_row(job, run, workdir, failed.get(job.name)))
  return {
    "budget": jobs[0].budget,
    "examples": jobs[0].examples,
    "sets": sets,
    **common,
    "rows": rows,
  }


def _common(run: Run) -> dict[str, Any]:
  """What all runs share, told by one of them."""
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


def _set(run: Run, name: str) -> dict[str, Any]:
  """A data set that judges: its test split and the thumbnail floor."""
  own = run.only(name).latest().get(FLOOR, {})
  return {
    "test": run.fact("data", name, "test"),
    "train": run.fact("data", name, "train", "n"),
    "floor": interval(own.get("linear/auroc")),
  }


def _row(job: Job, run: Run, workdir: pathlib.Path, why: str | None) -> dict[str, Any]:
  finished = run.fact("status") == "finished" and not why
  rate = number(run.fact("timing", "images_per_s"))
  images = job.steps * job.batch_size
  row: dict[str, Any] = {
    "name": job.name,
    "method": job.method,
    "seed": job.seed,
    "command": job.command(workdir),
    "status": "finished" if finished else "failed" if why else "waiting",
    "why": why,
    "flops_per_image": job.flops_per_image,
    "steps": job.steps,
    "images": images,
    "epochs": images / job.examples,
  }
  if not finished:
    return row
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
    row["sets"][name] = _judged(job, run, name)
  return row


def heads(metrics: Mapping[str, Any]) -> dict[str, str]:
  """The AUROCs that are compared: kNN with the most neighbours, plain and whitened, and probe."""
  found = [m.split("/")[0] for m in sort_metrics(set(metrics)) if m.endswith("/auroc")]
  last = [[h for h in found if h.startswith(kind)][-1:] for kind in ("knn", "whitened", "linear")]
  return {h: f"{h}/auroc" for kind in last for h in kind}


def features(run: Run, name: str) -> dict[str, Any]:
  """Of one data set, for each head: the trained encoder, that before training, and the gain."""
  latest = run.only(name).latest()
  scores = {e: run.arrays(f"scores_{name}_{e}") for e in (TRAINED, RANDOM)}
  return {
    head: {
      "trained": interval(latest[TRAINED][metric]),
      "random": interval(latest.get(RANDOM, {}).get(metric)),
      "gain": _difference(scores[TRAINED], scores[RANDOM], head, head),
    }
    for head, metric in heads(latest.get(TRAINED, {})).items()
  }


def _judged(job: Job, run: Run, name: str) -> dict[str, Any]:
  """The same with the course of the run, and how far the probe is above the floor."""
  found = features(run, name)
  for head, metric in heads(run.only(name).latest().get(TRAINED, {})).items():
    course = [
      (e.step, e.metrics[metric])
      for e in run.only(name).evaluations
      if e.encoder in (RANDOM, TRAINED) and metric in e.metrics
    ]
    found[head]["course"] = [
      [step * job.batch_size * job.flops_per_image, v.value, v.low, v.high] for step, v in course
    ]
  if "linear" in found:
    trained, floor = (run.arrays(f"scores_{name}_{e}") for e in (TRAINED, FLOOR))
    found["linear"]["over_floor"] = _difference(trained, floor, "linear", "linear")
  return found


def _difference(
  a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], head: str, other: str
) -> dict[str, Any] | None:
  """Paired, where both have scores of the same images."""
  if head not in a or other not in b or not np.array_equal(a["labels"], b["labels"], True):
    return None
  return interval(
    classification_metrics.difference(
      a[head], b[other], a["labels"], a["patient"], bool(a["exclusive"])
    )
  )


# Lines.


def said(job: Job, workdir: pathlib.Path, why: str | None) -> str:
  """A run's end in a line."""
  if why:
    return f"{job.name}: failed: {why}"
  row = _row(job, runs.read(workdir / job.name), workdir, why)
  parts = []
  for name, found in row.get("sets", {}).items():
    for head, judged in found.items():
      gain = judged["gain"]
      up = f" ({gain['value']:+.3f})" if gain and math.isfinite(gain["value"]) else ""
      parts.append(f"{name} {head} {format.decimal(judged['trained']['value'])}{up}")
  took = format.duration(row.get("total_s"))
  return f"{job.name}: {took or 'finished'}; {', '.join(parts)}"


NUMBERS = (
  "steps",
  "images",
  "epochs",
  "flops_per_image",
  "training_flops_per_image",
  "images_per_s",
  "training_s",
  "total_s",
  "compile_s",
)


def rows(found: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
  """A header and a line for every run, data set and head; a run that failed has one line."""
  compared = ("trained", "random", "gain", "over_floor")
  yield (
    "method",
    "seed",
    "status",
    "data",
    "head",
    *(f"{what}{end}" for what in compared for end in ("", "_low", "_high")),
    "floor",
    *NUMBERS,
    "peak_rss_bytes",
    "peak_device_bytes",
    "why",
    "command",
  )
  for row in found["rows"]:
    numbers = [cell(row.get(key)) for key in NUMBERS]
    memory = row.get("memory") or {}
    end = [
      *numbers,
      *(cell(memory.get(f"peak_{k}_bytes")) for k in ("rss", "device")),
      row["why"] or "",
      row["command"],
    ]
    start = [row["method"], row["seed"], row["status"]]
    if not row.get("sets"):
      yield [*start, "", "", *[""] * (3 * len(compared) + 1), *end]
    for name, judged in row.get("sets", {}).items():
      floor = (found["sets"][name]["floor"] or {}).get("value")
      for head, values in judged.items():
        cells = [
          cell((values.get(what) or {}).get(key))
          for what in compared
          for key in ("value", "low", "high")
        ]
        yield [*start, name, head, *cells, cell(floor), *end]

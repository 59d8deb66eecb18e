"""What runs that learn from labels came to on test images, and the paired gains between them."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cxrjax.metrics import ranking, segmentation
from cxrjax.metrics.intervals import Interval, undefined
from cxrjax.report import run as runs
from cxrjax.report import terminal
from cxrjax.report.about import total_seconds
from cxrjax.report.run import TRAINED, Estimate, Run
from cxrjax.tasks.runs import Job

PAIRED = ("auroc", "accuracy", "dice", "iou")  # of these there are differences, images paired


def row(job: Job, run: Run, workdir: pathlib.Path, why: str | None) -> dict[str, Any]:
  """A run: its end, what it learnt from, how it started, what it came to on each test set."""
  finished = run.fact("status") == "finished" and not why
  found: dict[str, Any] = {
    "name": job.name, "command": job.command(workdir), "why": why,
    "status": "finished" if finished else "failed" if why else "waiting"}
  if finished:
    found |= {
      "images": run.fact("data", "train", "n"), "labelled": labelled(run),
      "steps": run.fact("steps"), "epochs": run.fact("epochs"), "total_s": total_seconds(run),
      "method": run.fact("method"),
      "start": {k: run.fact("init", k) for k in ("path", "source", "summary")}
      if run.fact("init") else None, "sets": judged(run)}
  return found


def labelled(run: Run) -> int | None:
  """How many images had labels to learn from; of several findings the one known most often."""
  known = run.fact("data", "train", "class_known") or {}
  return max(known.values(), default=run.fact("data", "train", "n"))


def tests(run: Run) -> list[str]:
  """The evaluators that judged the chosen checkpoint; of a run that chose none all."""
  chosen = run.fact("chosen", "evaluators")
  return [name for name in run.evaluators() if not chosen or name in chosen]


def judged(run: Run) -> dict[str, dict[str, Any]]:
  """`{evaluator: {metric: interval}}` on test images, those of single classes left out."""
  found = {}
  for name in tests(run):
    own = run.only(name).latest().get(TRAINED, {})
    metrics = terminal.sort_metrics({m for m in own if "/" not in m})
    found[name] = {m: interval(own[m]) for m in metrics}
  return found


def sets(run: Run) -> dict[str, Any]:
  """The test images of each evaluator."""
  found = {}
  for name in tests(run):
    facts = run.fact("data", name) or {}
    found[name] = {"test": facts.get("test") or facts}
  return found


def interval(value: Estimate | Interval | None) -> dict[str, Any] | None:
  """As `run.json` holds it."""
  if value is None:
    return None
  found = {"value": value.value, "low": value.low, "high": value.high, "n": value.n}
  return found | ({"undefined": value.undefined} if value.undefined else {})


def over_seeds(found: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
  """The mean of a metric over seeds, from the lowest to the highest; of one seed its interval."""
  values = [v["value"] for v in found if v and math.isfinite(v["value"])]
  if not values:
    return None
  if len(found) == 1:
    return {**found[0], "seeds": 1}
  return {"value": float(np.mean(values)), "low": min(values), "high": max(values),
          "seeds": len(values)}


def gain(evaluator: str, metric: str, ours: Sequence[Run], others: Sequence[Run]) -> Interval:
  """By how much `metric` is above the other runs', the same test images paired.

  Args:
    evaluator: whose test images.
    metric: one of `PAIRED`.
    ours: a run for each seed.
    others: the same seeds, in that order.

  Returns:
    The mean over the seeds; its interval speaks of other test images, not of other seeds.
    Undefined where the runs have no predictions of the same images.
  """
  pairs = [[run.arrays(f"scores_{evaluator}_{TRAINED}") for run in pair]
           for pair in zip(ours, others, strict=True)]
  key = "probability" if metric in ("auroc", "accuracy") else f"{metric}_all"
  names = "id" if key == "probability" else "id_all"
  if not pairs or any(key not in side or names not in side for pair in pairs for side in pair):
    return undefined("predictions of single images are not there")
  first = pairs[0][0]
  if any(not np.array_equal(side[names], first[names]) for pair in pairs for side in pair):
    return undefined("not judged on the same images")
  patients = [str(p) for p in first["patient" if key == "probability" else "patient_all"]]
  if key != "probability":
    return segmentation.mean(np.mean([a[key] - b[key] for a, b in pairs], 0), patients)
  labels = first["labels"]
  k, exclusive = labels.shape[1], bool(first["exclusive"])
  if metric == "accuracy":
    hits = [[_hits(side, exclusive) for side in pair] for pair in pairs]
    return segmentation.mean(np.mean([a - b for a, b in hits], 0), patients)
  part = slice(1, None) if exclusive and k == 2 else slice(None)
  # Columns are averaged and their correlation kept: classes, and here seeds as well.
  a, b = (np.hstack([pair[i][key][:, part] for pair in pairs]) for i in (0, 1))
  return ranking.auroc_difference(a, b, np.tile(labels[:, part], (1, len(pairs))), patients)


def _hits(side: Mapping[str, np.ndarray], exclusive: bool) -> np.ndarray:
  """Of every image whether it was called right, or the share of its findings; NaN if unknown."""
  p, labels = side["probability"], side["labels"].astype(np.float64)
  thresholds = side.get("threshold", np.full(p.shape[1], 0.5))
  thresholds = np.broadcast_to(np.asarray(thresholds, np.float64).reshape(-1), (p.shape[1],))
  if not exclusive:
    right = np.where(np.isnan(labels), np.nan, (p >= thresholds) == (labels == 1))
    known = (~np.isnan(labels)).sum(1)
    return np.where(known > 0, np.nansum(right, 1) / np.maximum(known, 1), np.nan)
  called = p[:, 1] >= thresholds[1] if p.shape[1] == 2 else p.argmax(1)
  return np.where(np.isnan(labels).any(1), np.nan, called == labels.argmax(1))


def gains(
    ours: Mapping[int, Run], others: Mapping[int, Run]) -> dict[str, dict[str, dict[str, Any]]]:
  """`{evaluator: {metric: interval, with "least" and "most" of the seeds}}`.

  Args:
    ours: runs by their seed.
    others: those they are held against; seeds that only one side has do not count.
  """
  seeds = [s for s in ours if s in others]
  found: dict[str, dict[str, dict[str, Any]]] = {}
  for name in tests(ours[seeds[0]]) if seeds else []:
    for metric in PAIRED:
      if metric not in judged(ours[seeds[0]]).get(name, {}):
        continue
      whole = gain(name, metric, [ours[s] for s in seeds], [others[s] for s in seeds])
      each = [gain(name, metric, [ours[s]], [others[s]]).value for s in seeds]
      found.setdefault(name, {})[metric] = {
        **interval(whole), "seeds": len(seeds), "least": min(each), "most": max(each)}
  return found


def cell(value: Any) -> str:
  """A number with the digits that mean something; nothing for what is not known."""
  if value is None or (isinstance(value, float) and not math.isfinite(value)):
    return ""
  return f"{value:.6g}" if isinstance(value, float) else str(value)


def read(jobs: Sequence[Job], workdir: pathlib.Path) -> dict[str, Run]:
  """The runs by name, as far as they got."""
  return {job.name: runs.read(workdir / job.name) for job in jobs}

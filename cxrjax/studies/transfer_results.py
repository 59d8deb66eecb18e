"""What runs that learn from labels came to on test images, and the paired gains between them."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from jaxtyping import Float64

from cxrjax.evals import classification_metrics
from cxrjax.metrics import roc, segmentation
from cxrjax.metrics.intervals import Interval, undefined
from cxrjax.report import run_files as runs
from cxrjax.report import terminal
from cxrjax.report.html.format import Estimate
from cxrjax.report.naming import total_seconds
from cxrjax.report.run_files import TRAINED, Run
from cxrjax.studies.launcher import Job

PAIRED = ("auroc", "accuracy", "dice", "iou")  # of these there are differences, images paired


def row(job: Job, run: Run, workdir: pathlib.Path, why: str | None) -> dict[str, Any]:
  """A run: its end, what it learnt from, how it started, what it came to on each test set."""
  finished = run.fact("status") == "finished" and not why
  found: dict[str, Any] = {
    "name": job.name,
    "command": job.command(workdir),
    "why": why,
    "status": "finished" if finished else "failed" if why else "waiting",
  }
  if finished:
    found |= {
      "images": run.fact("data", "train", "n"),
      "labelled": labelled(run),
      "steps": run.fact("steps"),
      "epochs": run.fact("epochs"),
      "total_s": total_seconds(run),
      "method": run.fact("method"),
      "start": {k: run.fact("init", k) for k in ("path", "source", "summary")}
      if run.fact("init")
      else None,
      "sets": judged(run),
    }
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


@overload
def interval(value: Estimate | Interval) -> dict[str, Any]: ...
@overload
def interval(value: None) -> None: ...
@overload
def interval(value: Estimate | Interval | None) -> dict[str, Any] | None: ...
def interval(value: Estimate | Interval | None) -> dict[str, Any] | None:
  """As `run.json` holds it."""
  if value is None:
    return None
  found = {"value": value.value, "low": value.low, "high": value.high, "n": value.n}
  return found | ({"undefined": value.undefined} if value.undefined else {})


def over_seeds(found: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
  """The mean of a metric over seeds, from the lowest to the highest; of one seed its interval."""
  known = [v for v in found if v and math.isfinite(v["value"])]
  if not known:
    return None
  if len(found) == 1:
    return {**known[0], "seeds": 1}
  values = [v["value"] for v in known]
  return {
    "value": float(np.mean(values)),
    "low": min(values),
    "high": max(values),
    "seeds": len(values),
  }


class _Side(NamedTuple):
  """What a run gave its test images: one value each, or one and a label for each class."""

  ids: list[str]
  patients: list[str]
  values: Float64[np.ndarray, "n c"]
  labels: Float64[np.ndarray, "n c"] | None


def gain(evaluator: str, metric: str, ours: Sequence[Run], others: Sequence[Run]) -> Interval:
  """By how much `metric` is above the other runs', the same test images paired.

  Args:
    evaluator: whose test images.
    metric: one of `PAIRED`.
    ours: a run for each seed and fold.
    others: of the same seeds and folds, in that order.

  Returns:
    The mean over the runs; its interval speaks of other test images, not of other seeds.
    Undefined where the runs have no predictions of the same images.
  """
  first, second = (_sides(each, evaluator, metric) for each in (ours, others))
  if not first or not second:
    return undefined("predictions of single images are not there")
  if any(one.ids != other.ids for one, other in zip(first, second, strict=True)):
    return undefined("not judged on the same images")
  (patients, a, labels), (_, b, _) = _joined(first), _joined(second)
  if labels is not None:  # of the AUROC alone
    return roc.auroc_difference(a, b, labels, patients)
  return segmentation.mean(_known_mean(a - b), patients)


def mean(evaluator: str, metric: str, ours: Sequence[Run]) -> Interval:
  """`metric`, the mean over runs; its interval speaks of other test images, not of other seeds.

  Args:
    evaluator: whose test images.
    metric: one of `PAIRED`.
    ours: the runs, of several seeds and folds.
  """
  sides = _sides(ours, evaluator, metric)
  if not sides:
    return undefined("predictions of single images are not there")
  patients, values, labels = _joined(sides)
  if labels is not None:  # of the AUROC alone
    return roc.macro_auroc(values, labels, patients)
  return segmentation.mean(_known_mean(values), patients)


def ensemble(evaluator: str, ours: Sequence[Run]) -> dict[str, Interval]:
  """What the runs' mean probabilities come to on their test images; nothing of other runs' masks.

  Thresholds are the mean of theirs, as of `cxrjax.inference.ensemble.Ensemble`.
  """
  found = [run.arrays(f"scores_{evaluator}_{TRAINED}") for run in ours]
  first = found[0]
  if any("probability" not in one or not np.array_equal(one["id"], first["id"]) for one in found):
    return {}
  p = np.mean([one["probability"] for one in found], 0)
  thresholds = np.mean([_thresholds(one) for one in found], 0)
  return classification_metrics.judge(
    "",
    p,
    first["labels"].astype(np.float64),
    [*map(str, first["patient"])],
    [str(k) for k in range(p.shape[1])],
    bool(first["exclusive"]),
    thresholds,
    classification_metrics.ALL,
    (),
  )


def _side(run: Run, evaluator: str, metric: str) -> _Side | None:
  arrays = run.arrays(f"scores_{evaluator}_{TRAINED}")
  one_value = metric not in ("auroc", "accuracy")
  key, end = (f"{metric}_all", "_all") if one_value else ("probability", "")
  if key not in arrays or f"id{end}" not in arrays:
    return None
  ids, patients = ([str(v) for v in arrays[f"{name}{end}"]] for name in ("id", "patient"))
  if metric != "auroc":
    values = arrays[key] if one_value else _hits(arrays)
    return _Side(ids, patients, np.asarray(values, np.float64)[:, None], None)
  labels = arrays["labels"].astype(np.float64)
  part = slice(1, None) if bool(arrays["exclusive"]) and labels.shape[1] == 2 else slice(None)
  return _Side(ids, patients, arrays[key][:, part].astype(np.float64), labels[:, part])


def _sides(ours: Sequence[Run], evaluator: str, metric: str) -> list[_Side]:
  """What every run gave its test images; nothing where one of them has no predictions."""
  found = [side for run in ours if (side := _side(run, evaluator, metric)) is not None]
  return found if len(found) == len(ours) else []


def _joined(
  sides: Sequence[_Side],
) -> tuple[list[str], Float64[np.ndarray, "n c"], np.ndarray | None]:
  """Patients, values and labels of all images, columns for each run; NaN where it had not that one.

  So the columns of runs on the same images are correlated and those of folds are not.
  """
  owner = {
    name: patient for side in sides for name, patient in zip(side.ids, side.patients, strict=True)
  }
  row = {name: i for i, name in enumerate(owner)}

  def laid(blocks: Sequence[np.ndarray]) -> np.ndarray:
    found = []
    for side, block in zip(sides, blocks, strict=True):
      found.append(np.full((len(row), block.shape[1]), np.nan))
      found[-1][[row[name] for name in side.ids]] = block
    return np.hstack(found)

  labels = [side.labels for side in sides if side.labels is not None]
  values = laid([side.values for side in sides])
  return [*owner.values()], values, laid(labels) if labels else None


def _known_mean(values: Float64[np.ndarray, "n c"]) -> Float64[np.ndarray, "n"]:
  """Means over what is known; NaN where nothing is."""
  known = (~np.isnan(values)).sum(1)
  return np.where(known > 0, np.nansum(values, 1) / np.maximum(known, 1), np.nan)


def _thresholds(side: Mapping[str, np.ndarray]) -> Float64[np.ndarray, "k"]:
  k = side["probability"].shape[1]
  found = np.asarray(side.get("threshold", 0.5), np.float64).reshape(-1)
  return np.array(np.broadcast_to(found, (k,)))


def _hits(side: Mapping[str, np.ndarray]) -> Float64[np.ndarray, "n"]:
  """Of every image whether it was called right, or the share of its findings; NaN if unknown."""
  p, labels = side["probability"], side["labels"].astype(np.float64)
  thresholds, exclusive = _thresholds(side), bool(side["exclusive"])
  if not exclusive:
    return _known_mean(np.where(np.isnan(labels), np.nan, (p >= thresholds) == (labels == 1)))
  called = p[:, 1] >= thresholds[1] if p.shape[1] == 2 else p.argmax(1)
  return np.where(np.isnan(labels).any(1), np.nan, called == labels.argmax(1))


def gains(
  ours: Mapping[Any, Run], others: Mapping[Any, Run]
) -> dict[str, dict[str, dict[str, Any]]]:
  """`{evaluator: {metric: interval, with "least" and "most" of the runs}}`.

  Args:
    ours: runs by their seed, and fold.
    others: those they are held against; seeds and folds that only one side has do not count.
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
        **interval(whole),
        "seeds": len(seeds),
        "least": min(each),
        "most": max(each),
      }
  return found


def cell(value: Any) -> str:
  """A number with the digits that mean something; nothing for what is not known."""
  if value is None or (isinstance(value, float) and not math.isfinite(value)):
    return ""
  return f"{value:.6g}" if isinstance(value, float) else str(value)


def read(jobs: Sequence[Job], workdir: pathlib.Path) -> dict[str, Run]:
  """The runs by name, as far as they got."""
  return {job.name: runs.read(workdir / job.name) for job in jobs}

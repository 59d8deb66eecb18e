"""Test results of runs that learn from labels, and the paired gains between runs."""

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

PAIRED = ("auroc", "accuracy", "dice", "iou")  # metrics with differences paired by image


def run_facts(job: Job, run: Run, workdir: pathlib.Path, why: str | None) -> dict[str, Any]:
  """Facts of a run of any study: name, command, status, and why it failed."""
  finished = run.fact("status") == "finished" and not why
  return {
    "name": job.name,
    "command": job.command(workdir),
    "why": why,
    "status": "finished" if finished else "failed" if why else "waiting",
  }


def row(job: Job, run: Run, workdir: pathlib.Path, why: str | None) -> dict[str, Any]:
  """Facts of a run: status, training data, initial weights, and scores on each test set."""
  facts = run_facts(job, run, workdir, why)
  if facts["status"] != "finished":
    return facts
  start = {k: run.fact("init", k) for k in ("path", "source", "summary")}
  return facts | {
    "images": run.fact("data", "train", "n"),
    "labelled": labelled(run),
    "steps": run.fact("steps"),
    "epochs": run.fact("epochs"),
    "total_s": total_seconds(run),
    "method": run.fact("method"),
    "start": start if run.fact("init") else None,
    "sets": test_scores(run),
  }


def labelled(run: Run) -> int | None:
  """Number of labelled training images; of several findings, that of the most often labelled."""
  known = run.fact("data", "train", "class_known") or {}
  return max(known.values(), default=run.fact("data", "train", "n"))


def test_evaluators(run: Run) -> list[str]:
  """Names of the evaluators of the chosen checkpoint; all if the run chose none."""
  chosen = run.fact("chosen", "evaluators")
  return [name for name in run.evaluators() if not chosen or name in chosen]


def test_scores(run: Run) -> dict[str, dict[str, Any]]:
  """`{evaluator: {metric: interval}}` on test images, without metrics of single classes."""
  scores = {}
  for name in test_evaluators(run):
    latest = run.only(name).latest().get(TRAINED, {})
    metrics = terminal.sort_metrics({m for m in latest if "/" not in m})
    scores[name] = {m: interval(latest[m]) for m in metrics}
  return scores


def test_sets(run: Run) -> dict[str, Any]:
  """Facts about the test images of each evaluator."""
  test_sets = {}
  for name in test_evaluators(run):
    facts = run.fact("data", name) or {}
    test_sets[name] = {"test": facts.get("test") or facts}
  return test_sets


@overload
def interval(value: Estimate | Interval) -> dict[str, Any]: ...
@overload
def interval(value: None) -> None: ...
@overload
def interval(value: Estimate | Interval | None) -> dict[str, Any] | None: ...
def interval(value: Estimate | Interval | None) -> dict[str, Any] | None:
  """Converts an interval to the form that `run.json` holds."""
  if value is None:
    return None
  facts = {"value": value.value, "low": value.low, "high": value.high, "n": value.n}
  return facts | ({"undefined": value.undefined} if value.undefined else {})


def over_seeds(intervals: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
  """Mean of a metric over seeds with the range as its bounds; of one seed its own interval."""
  defined = [v for v in intervals if v and math.isfinite(v["value"])]
  if not defined:
    return None
  if len(intervals) == 1:
    return {**defined[0], "seeds": 1}
  values = [v["value"] for v in defined]
  return {
    "value": float(np.mean(values)),
    "low": min(values),
    "high": max(values),
    "seeds": len(values),
  }


class _TestValues(NamedTuple):
  """Values of a run's test images: one column, or one per class along with labels."""

  ids: list[str]
  patients: list[str]
  values: Float64[np.ndarray, "n c"]
  labels: Float64[np.ndarray, "n c"] | None


def gain(evaluator: str, metric: str, ours: Sequence[Run], others: Sequence[Run]) -> Interval:
  """Gain in `metric` over the other runs, paired by test image.

  Args:
    evaluator: its test images are compared.
    metric: one of `PAIRED`.
    ours: a run for each seed and fold.
    others: runs of the same seeds and folds, in the same order.

  Returns:
    The mean over the runs; its interval is over test images, not over seeds. Undefined if the
    runs lack predictions of the same images.
  """
  a_by_run, b_by_run = (_all_test_values(side, evaluator, metric) for side in (ours, others))
  if not a_by_run or not b_by_run:
    return undefined("predictions of single images are not there")
  if any(x.ids != y.ids for x, y in zip(a_by_run, b_by_run, strict=True)):
    return undefined("not judged on the same images")
  (patients, a, labels), (_, b, _) = _aligned(a_by_run), _aligned(b_by_run)
  if labels is not None:  # of the AUROC alone
    return roc.auroc_difference(a, b, labels, patients)
  return segmentation.mean(_nan_mean(a - b), patients)


def mean(evaluator: str, metric: str, ours: Sequence[Run]) -> Interval:
  """Mean of `metric` over runs; its interval is over test images, not over seeds.

  Args:
    evaluator: its test images are used.
    metric: one of `PAIRED`.
    ours: the runs, of several seeds and folds.
  """
  values_by_run = _all_test_values(ours, evaluator, metric)
  if not values_by_run:
    return undefined("predictions of single images are not there")
  patients, values, labels = _aligned(values_by_run)
  if labels is not None:  # of the AUROC alone
    return roc.macro_auroc(values, labels, patients)
  return segmentation.mean(_nan_mean(values), patients)


def ensemble(evaluator: str, ours: Sequence[Run]) -> dict[str, Interval]:
  """Metrics of the mean probabilities of classifiers; {} for segmentation runs.

  Thresholds are the means of theirs, as in `cxrjax.inference.ensemble.Ensemble`.
  """
  predictions = [run.arrays(f"scores_{evaluator}_{TRAINED}") for run in ours]
  first = predictions[0]
  for arrays in predictions:
    if "probability" not in arrays or not np.array_equal(arrays["id"], first["id"]):
      return {}
  probabilities = np.mean([arrays["probability"] for arrays in predictions], 0)
  thresholds = np.mean([_thresholds(arrays) for arrays in predictions], 0)
  return classification_metrics.evaluate(
    "",
    probabilities,
    first["labels"].astype(np.float64),
    [*map(str, first["patient"])],
    [str(k) for k in range(probabilities.shape[1])],
    bool(first["exclusive"]),
    thresholds,
    classification_metrics.ALL,
    (),
  )


def _test_values(run: Run, evaluator: str, metric: str) -> _TestValues | None:
  arrays = run.arrays(f"scores_{evaluator}_{TRAINED}")
  single = metric not in ("auroc", "accuracy")
  key, suffix = (f"{metric}_all", "_all") if single else ("probability", "")
  if key not in arrays or f"id{suffix}" not in arrays:
    return None
  ids, patients = ([str(v) for v in arrays[f"{name}{suffix}"]] for name in ("id", "patient"))
  if metric != "auroc":
    values = arrays[key] if single else _correct(arrays)
    return _TestValues(ids, patients, np.asarray(values, np.float64)[:, None], None)
  labels = arrays["labels"].astype(np.float64)
  columns = slice(1, None) if bool(arrays["exclusive"]) and labels.shape[1] == 2 else slice(None)
  return _TestValues(ids, patients, arrays[key][:, columns].astype(np.float64), labels[:, columns])


def _all_test_values(ours: Sequence[Run], evaluator: str, metric: str) -> list[_TestValues]:
  """Test values of every run; empty if one of them has no predictions."""
  values = [_test_values(run, evaluator, metric) for run in ours]
  known = [run_values for run_values in values if run_values is not None]
  return known if len(known) == len(ours) else []


def _aligned(
  values_by_run: Sequence[_TestValues],
) -> tuple[list[str], Float64[np.ndarray, "n c"], np.ndarray | None]:
  """Patients, values and labels of all images, with columns per run; NaN for images it has not.

  Columns of runs on the same images are thus correlated, those of folds are not.
  """
  patients = {
    name: patient
    for run in values_by_run
    for name, patient in zip(run.ids, run.patients, strict=True)
  }
  index = {name: i for i, name in enumerate(patients)}

  def laid_out(blocks: Sequence[np.ndarray]) -> np.ndarray:
    columns = []
    for run, block in zip(values_by_run, blocks, strict=True):
      columns.append(np.full((len(index), block.shape[1]), np.nan))
      columns[-1][[index[name] for name in run.ids]] = block
    return np.hstack(columns)

  labels = [run.labels for run in values_by_run if run.labels is not None]
  values = laid_out([run.values for run in values_by_run])
  return [*patients.values()], values, laid_out(labels) if labels else None


def _nan_mean(values: Float64[np.ndarray, "n c"]) -> Float64[np.ndarray, "n"]:
  """Row means that ignore NaN; NaN for rows without any value."""
  known = (~np.isnan(values)).sum(1)
  return np.where(known > 0, np.nansum(values, 1) / np.maximum(known, 1), np.nan)


def _thresholds(arrays: Mapping[str, np.ndarray]) -> Float64[np.ndarray, "k"]:
  k = arrays["probability"].shape[1]
  thresholds = np.asarray(arrays.get("threshold", 0.5), np.float64).reshape(-1)
  return np.array(np.broadcast_to(thresholds, (k,)))


def _correct(arrays: Mapping[str, np.ndarray]) -> Float64[np.ndarray, "n"]:
  """Whether each image is called correctly, or its share of correct findings; NaN if unlabelled."""
  probabilities, labels = arrays["probability"], arrays["labels"].astype(np.float64)
  thresholds, exclusive = _thresholds(arrays), bool(arrays["exclusive"])
  if not exclusive:
    is_correct = (probabilities >= thresholds) == (labels == 1)
    return _nan_mean(np.where(np.isnan(labels), np.nan, is_correct))
  binary = probabilities.shape[1] == 2
  called = probabilities[:, 1] >= thresholds[1] if binary else probabilities.argmax(1)
  return np.where(np.isnan(labels).any(1), np.nan, called == labels.argmax(1))


def gains(
  ours: Mapping[Any, Run], others: Mapping[Any, Run]
) -> dict[str, dict[str, dict[str, Any]]]:
  """`{evaluator: {metric: interval, with "least" and "most" of the runs}}`.

  Args:
    ours: runs by their seed, and fold.
    others: runs to compare with; seeds and folds that only one side has are ignored.
  """
  seeds = [s for s in ours if s in others]
  intervals: dict[str, dict[str, dict[str, Any]]] = {}
  for name in test_evaluators(ours[seeds[0]]) if seeds else []:
    for metric in PAIRED:
      if metric not in test_scores(ours[seeds[0]]).get(name, {}):
        continue
      overall = gain(name, metric, [ours[s] for s in seeds], [others[s] for s in seeds])
      by_seed = [gain(name, metric, [ours[s]], [others[s]]).value for s in seeds]
      intervals.setdefault(name, {})[metric] = {
        **interval(overall),
        "seeds": len(seeds),
        "least": min(by_seed),
        "most": max(by_seed),
      }
  return intervals


def read(jobs: Sequence[Job], workdir: pathlib.Path) -> dict[str, Run]:
  """Reads the runs of all jobs, by name, finished or not."""
  return {job.name: runs.read(workdir / job.name) for job in jobs}

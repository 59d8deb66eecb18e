"""Accuracy, balanced accuracy and F1 of class decisions, with intervals; choosing a threshold.

All are functions of a confusion matrix, so a patient's contribution to them is a few counts and
the bootstrap over patients (`intervals.bootstrap`) resamples those.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Num

from cxrjax.metrics import intervals
from cxrjax.metrics.intervals import Interval, undefined

Patients = Sequence[str] | np.ndarray | None
CRITERIA = ("balanced_accuracy", "f1", "accuracy")


def confusion(
    predicted: Integer[np.ndarray, "n"], truth: Integer[np.ndarray, "n"], classes: int
) -> Int[np.ndarray, "k k"]:
  """Counts of images, rows the true class, columns the predicted one."""
  flat = np.bincount(truth * classes + predicted, minlength=classes * classes)
  return flat.reshape(classes, classes)


def accuracy(
    predicted: Integer[np.ndarray, "n"],
    truth: Integer[np.ndarray, "n"],
    patients: Patients = None,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
  """Share of images given their true class.

  The interval is Wilson's where every patient has one image, else a bootstrap over patients.

  Args:
    predicted: class index of each image.
    truth: true class index.
    patients: one id per image, or None.
    level: confidence.
    seed: of the bootstrap.

  Returns:
    The share; undefined without images.
  """
  n = len(truth)
  if n == 0:
    return undefined("no image has a known label")
  right = (predicted == truth).astype(np.float64)
  cluster, count = intervals.clusters(patients, n)
  value = float(right.mean())
  if count == n:
    return Interval(value, *intervals.wilson(value, n, level), n, "Wilson")
  table = np.stack([np.bincount(cluster, right, count), np.bincount(cluster, minlength=count)], 1)
  return _bootstrapped(
    value, table, lambda t: t[:, 0] / t[:, 1], n, count, level, seed)


def balanced_accuracy(
    predicted: Integer[np.ndarray, "n"],
    truth: Integer[np.ndarray, "n"],
    classes: int = 2,
    patients: Patients = None,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
  """Mean over classes of the share of that class's images that are found (recall).

  For two classes this is the mean of sensitivity and specificity. Interval: bootstrap over
  patients.

  Args:
    predicted: class index of each image.
    truth: true class index.
    classes: number of classes.
    patients: one id per image, or None.
    level: confidence.
    seed: of the bootstrap.

  Returns:
    The mean; undefined when some class has no image.
  """
  n = len(truth)
  missing = sorted(set(range(classes)) - set(truth.tolist()))
  if missing:
    return undefined(f"no image of class {missing[0]}", n)
  table, cluster = _tables(predicted, truth, classes, patients)

  def statistic(totals: np.ndarray) -> np.ndarray:
    matrix = totals.reshape(-1, classes, classes)
    with np.errstate(invalid="ignore"):
      return (np.einsum("rii->ri", matrix) / matrix.sum(2)).mean(1)

  value = float(statistic(table.sum(0, keepdims=True))[0])
  trials = min(len(np.unique(cluster[truth == c])) for c in range(classes))
  return _bootstrapped(value, table, statistic, n, trials, level, seed)


def f1(
    predicted: Integer[np.ndarray, "n"],
    truth: Integer[np.ndarray, "n"],
    classes: int = 2,
    patients: Patients = None,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
  """F1, 2 TP / (2 TP + FP + FN): of class 1 for two classes, the mean over classes for more.

  Args:
    predicted: class index of each image.
    truth: true class index.
    classes: number of classes; for 2, class 1 is the positive one.
    patients: one id per image, or None.
    level: confidence.
    seed: of the bootstrap over patients.

  Returns:
    F1; undefined when a class that counts has no image (it would be 0 whatever the predictions).
  """
  n = len(truth)
  counted = [1] if classes == 2 else list(range(classes))
  for c in counted:
    if not np.any(truth == c):
      return undefined("no positive image" if classes == 2 else f"no image of class {c}", n)
  table, cluster = _tables(predicted, truth, classes, patients)

  def statistic(totals: np.ndarray) -> np.ndarray:
    matrix = totals.reshape(-1, classes, classes)
    hit = np.einsum("rii->ri", matrix)[:, counted]
    both = (matrix.sum(1) + matrix.sum(2))[:, counted]
    real = matrix.sum(2)[:, counted]
    with np.errstate(invalid="ignore", divide="ignore"):
      return np.where(real > 0, 2 * hit / both, np.nan).mean(1)

  value = float(statistic(table.sum(0, keepdims=True))[0])
  trials = min(len(np.unique(cluster[truth == c])) for c in counted)
  return _bootstrapped(value, table, statistic, n, trials, level, seed)


def findings(
    measure: str,
    predicted: Bool[np.ndarray, "n k"],
    labels: Float[np.ndarray, "n k"],
    patients: Patients = None,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
  """Mean over findings, several of which an image may have, of a two-class measure.

  Args:
    measure: "accuracy", "balanced_accuracy" or "f1", each as for two classes.
    predicted: whether each finding is called.
    labels: 1, 0 or NaN (unknown, left out for that finding).
    patients: one id per image, or None.
    level: confidence.
    seed: of the bootstrap over patients, which resamples all findings of a patient together.

  Returns:
    The mean over the findings that define the measure; undefined when none does.
  """
  if measure not in CRITERIA:
    raise ValueError(f"measure={measure!r}; valid: {', '.join(CRITERIA)}")
  n, k = labels.shape
  cluster, count = intervals.clusters(patients, n)
  table = np.zeros((count, k, 4))  # true negative, false positive, false negative, true positive
  known = ~np.isnan(labels)
  for value in (0, 1):
    for call in (0, 1):
      hit = known & (labels == value) & (predicted == bool(call))
      np.add.at(table[:, :, 2 * value + call], cluster, hit)

  def each(totals: np.ndarray) -> np.ndarray:
    tn, fp, fn, tp = np.moveaxis(totals.reshape(-1, k, 4), 2, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
      if measure == "accuracy":
        return (tn + tp) / (tn + fp + fn + tp)
      if measure == "balanced_accuracy":
        return (tp / (tp + fn) + tn / (tn + fp)) / 2
      return np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan)

  table = table.reshape(count, -1)
  values = each(table.sum(0, keepdims=True))[0]
  defined = ~np.isnan(values)
  used = int(known.any(1).sum())
  if not defined.any():
    return undefined("no finding has the images that define it", used)
  return _bootstrapped(
    float(values[defined].mean()), table, lambda t: each(t)[:, defined].mean(1), used,
    len(np.unique(cluster[known.any(1)])), level, seed)


def best_threshold(
    scores: Float[np.ndarray, "n"],
    labels: Num[np.ndarray, "n"],
    criterion: str = "balanced_accuracy",
) -> float:
  """The threshold that does best on these (validation) images.

  An image is called positive when its score is at least the threshold. Candidates are the middles
  between neighbouring scores. Of several equally good ones the middle one is taken, which lies
  furthest from either mistake.

  Args:
    scores: higher means more positive.
    labels: 1 positive, 0 negative, NaN unknown (left out).
    criterion: "balanced_accuracy" (Youden's J, blind to prevalence), "f1" or "accuracy".

  Returns:
    The threshold; NaN when there is one class only or a score is not finite.

  References:
    Youden 1950, Cancer 3:32.
  """
  if criterion not in CRITERIA:
    raise ValueError(f"criterion={criterion!r}; valid: {', '.join(CRITERIA)}")
  known = ~np.isnan(labels.astype(np.float64))
  scores, positive = scores[known].astype(np.float64), labels[known] == 1
  p, q = int(positive.sum()), int((~positive).sum())
  if p == 0 or q == 0 or not np.all(np.isfinite(scores)):
    return math.nan
  levels, index = np.unique(scores, return_inverse=True)
  # tp[i], fp[i]: counts at or above levels[i]; the last entry calls everything negative.
  tp = np.append(np.cumsum(np.bincount(index[positive], minlength=len(levels))[::-1])[::-1], 0)
  fp = np.append(np.cumsum(np.bincount(index[~positive], minlength=len(levels))[::-1])[::-1], 0)
  value = {
    "balanced_accuracy": (tp / p + (q - fp) / q) / 2,
    "f1": 2 * tp / (tp + fp + p),
    "accuracy": (tp + q - fp) / (p + q),
  }[criterion]
  best = np.flatnonzero(value >= value.max() - 1e-12)
  i = int(best[len(best) // 2])
  if i == 0:
    return float(levels[0])
  if i == len(levels):
    return float(np.nextafter(levels[-1], np.inf))
  return float((levels[i - 1] + levels[i]) / 2)


def _tables(
    predicted: np.ndarray, truth: np.ndarray, classes: int, patients: Patients
) -> tuple[Float[np.ndarray, "p c"], Int[np.ndarray, "n"]]:
  """One flattened confusion matrix a patient, and the patient of every image."""
  cluster, count = intervals.clusters(patients, len(truth))
  cell = cluster * classes**2 + truth * classes + predicted
  table = np.bincount(cell, minlength=count * classes**2).reshape(count, classes**2)
  return table.astype(np.float64), cluster


def _bootstrapped(
    value: float, table: np.ndarray, statistic, n: int, trials: int, level: float, seed: int
) -> Interval:
  """The bootstrap interval, or Wilson's where every replicate agrees and it has no width."""
  low, high = intervals.bootstrap(table, statistic, level=level, seed=seed)
  if math.isnan(low):
    return Interval(value, math.nan, math.nan, n, "none: too few patients to resample")
  if high - low < 1e-12:
    return Interval(value, *intervals.wilson(value, trials, level), n,
                    f"Wilson over {trials} patients")
  return Interval(value, low, high, n, "bootstrap over patients")

"""Metrics of decisions (accuracy, sensitivity, F1, ...) with intervals, and choice of thresholds.

All are functions of a confusion matrix, so a patient contributes a few counts to them, which the
bootstrap over patients (`patient_bootstrap.interval`) resamples.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Num

from cxrjax.metrics import intervals, patient_bootstrap
from cxrjax.metrics.intervals import Interval, Patients
from cxrjax.metrics.patient_bootstrap import PatientSums, nothing

CRITERIA = ("balanced_accuracy", "f1", "accuracy")
MEASURES = (*CRITERIA, "sensitivity", "specificity", "hm")


def confusion(
  predicted: Integer[np.ndarray, "n"], truth: Integer[np.ndarray, "n"], classes: int
) -> Int[np.ndarray, "k k"]:
  """Confusion matrix of image counts: rows are true classes, columns predicted ones."""
  flat = np.bincount(truth * classes + predicted, minlength=classes * classes)
  return flat.reshape(classes, classes)


def decisions(
  measure: str,
  predicted: Integer[np.ndarray, "n"],
  truth: Integer[np.ndarray, "n"],
  classes: int = 2,
  patients: Patients = None,
  of: int | None = None,
) -> PatientSums:
  """A measure of decisions between exclusive classes, for functions of `patient_bootstrap`.

  accuracy: share of images whose predicted class is the true one.
  balanced_accuracy: mean over classes of recall, the share of a class's images that are detected.
    For two classes this is the mean of sensitivity and specificity.
  f1: 2 TP / (2 TP + FP + FN).
  sensitivity: TP / (TP + FN), the share of positive images that are called positive.
  specificity: TN / (TN + FP), the share of negative images that are called negative.
  hm: harmonic mean of sensitivity and specificity, 0 where both are 0.

  The last four are those of class 1 for two classes, the mean over classes, one against the rest,
  for more, or those of the class `of`.

  Args:
    measure: one of `MEASURES`.
    predicted: class index of each image.
    truth: true class index.
    classes: number of classes.
    patients: one id per image, or None.
    of: a class to judge against the rest.

  Returns:
    Its counts; undefined where a class it depends on has no image (it would be 0 or 1 whatever the
    predictions).

  References:
    Li et al. 2021, arXiv 2104.02864 (HM); Brodersen et al. 2010, ICPR, p. 3121 (balanced accuracy).
  """
  if measure not in MEASURES:
    raise ValueError(f"measure={measure!r}; valid: {', '.join(MEASURES)}")
  if of is not None and measure != "accuracy":
    called, actual = ((x == of).astype(np.int64) for x in (predicted, truth))
    return decisions(measure, called, actual, 2, patients)
  if reason := _why_undefined(measure, truth, classes):
    return nothing(reason, len(truth))
  if measure == "accuracy":
    return _proportion(predicted == truth, np.ones(len(truth), bool), patients)
  if classes == 2 and measure in ("sensitivity", "specificity"):
    return _proportion(predicted == truth, truth == (measure == "sensitivity"), patients)
  table, cluster = _confusion_per_patient(predicted, truth, classes, patients)
  judged_classes = [1] if classes == 2 and measure != "balanced_accuracy" else list(range(classes))

  def statistic(totals: np.ndarray) -> np.ndarray:
    cells = _against_the_rest(totals.reshape(-1, classes, classes))
    values = _measure("sensitivity" if measure == "balanced_accuracy" else measure, *cells)
    return values[:, judged_classes].mean(1)

  deciding_classes = judged_classes if measure == "f1" else list(range(classes))
  trials = min(len(np.unique(cluster[truth == c])) for c in deciding_classes)
  return PatientSums(table, statistic, len(truth), trials)


def _why_undefined(measure: str, truth: Integer[np.ndarray, "n"], classes: int) -> str:
  """Why these classes do not define a measure; empty where they do."""
  if not len(truth):
    return "no image has a known label"
  if measure == "accuracy":
    return ""
  present = np.bincount(truth, minlength=classes) > 0
  if classes > 2 or measure == "balanced_accuracy":
    return "" if present.all() else f"no image of class {int(np.argmin(present))}"
  if not present[1] and measure != "specificity":
    return "no positive image"
  return "" if present[0] or measure not in ("specificity", "hm") else "no negative image"


def _against_the_rest(matrix: Float[np.ndarray, "r k k"]) -> tuple[Float[np.ndarray, "r k"], ...]:
  """True negatives, false positives, false negatives and true positives of each class."""
  hit = np.einsum("rii->ri", matrix)
  actual, called = matrix.sum(2), matrix.sum(1)
  n_images = actual.sum(1, keepdims=True)
  return n_images - actual - called + hit, called - hit, actual - hit, hit


def _proportion(hit: np.ndarray, included: np.ndarray, patients: Patients) -> PatientSums:
  """The share of hits among the included images."""
  cluster, count = intervals.clusters(patients, len(hit))
  cluster, hit = cluster[included], hit[included].astype(np.float64)
  table = np.stack([np.bincount(cluster, hit, count), np.bincount(cluster, minlength=count)], 1)

  def statistic(totals: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
      return totals[:, 0] / totals[:, 1]

  return PatientSums(table, statistic, len(hit), len(np.unique(cluster)), proportion=True)


def _measure(
  measure: str, tn: np.ndarray, fp: np.ndarray, fn: np.ndarray, tp: np.ndarray
) -> np.ndarray:
  """A measure of two-class decisions from the four counts; NaN where undefined."""
  with np.errstate(invalid="ignore", divide="ignore"):
    sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
    if measure == "accuracy":
      return (tn + tp) / (tn + fp + fn + tp)
    if measure == "balanced_accuracy":
      return (sensitivity + specificity) / 2
    if measure == "f1":
      return np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan)
    if measure == "hm":
      return np.where(
        sensitivity + specificity == 0,
        0.0,
        2 * sensitivity * specificity / (sensitivity + specificity),
      )
    return {"sensitivity": sensitivity, "specificity": specificity}[measure]


def score(
  measure: str,
  predicted: Integer[np.ndarray, "n"],
  truth: Integer[np.ndarray, "n"],
  classes: int = 2,
  patients: Patients = None,
) -> Interval:
  """A measure of decisions between exclusive classes, with its interval; see `decisions`."""
  return patient_bootstrap.interval(decisions(measure, predicted, truth, classes, patients))


def findings(
  measure: str,
  predicted: Bool[np.ndarray, "n k"],
  labels: Float[np.ndarray, "n k"],
  patients: Patients = None,
) -> PatientSums:
  """Mean over findings, of which an image may have several, of a two-class measure.

  Args:
    measure: one of `MEASURES`, each as for two classes.
    predicted: whether each finding is called.
    labels: 1, 0 or NaN (unknown, left out for that finding).
    patients: one id per image, or None; all findings of a patient are resampled together.

  Returns:
    The mean over the findings that define the measure; undefined when none does.
  """
  if measure not in MEASURES:
    raise ValueError(f"measure={measure!r}; valid: {', '.join(MEASURES)}")
  n, k = labels.shape
  cluster, count = intervals.clusters(patients, n)
  cells = np.zeros((count, k, 4))  # true negative, false positive, false negative, true positive
  known = ~np.isnan(labels)
  for value in (0, 1):
    for call in (0, 1):
      in_cell = known & (labels == value) & (predicted == bool(call))
      np.add.at(cells[:, :, 2 * value + call], cluster, in_cell)

  def per_finding(totals: np.ndarray) -> np.ndarray:
    return _measure(measure, *np.moveaxis(totals.reshape(-1, k, 4), 2, 0))

  table = cells.reshape(count, -1)
  defined = ~np.isnan(per_finding(table.sum(0, keepdims=True))[0])
  used = int(known.any(1).sum())
  if not defined.any():
    return nothing("no finding has the images needed to define it", used)
  return PatientSums(
    table,
    lambda totals: per_finding(totals)[:, defined].mean(1),
    used,
    len(np.unique(cluster[known.any(1)])),
  )


def best_threshold(
  scores: Float[np.ndarray, "n"], labels: Num[np.ndarray, "n"], criterion: str = "balanced_accuracy"
) -> float:
  """Chooses the threshold that does best on these (validation) images.

  An image is called positive when its score is at least the threshold. Candidates are the middles
  between neighbouring scores. Of equally good ones the middle one is taken, furthest from either
  mistake.

  Args:
    scores: higher means more positive.
    labels: 1 positive, 0 negative, NaN unknown (left out).
    criterion: "balanced_accuracy" (Youden's J, blind to prevalence), "f1" or "accuracy".

  Returns:
    The threshold; NaN where there is one class only, or a score is not finite.

  References:
    Youden 1950, Cancer 3:32.
  """
  if criterion not in CRITERIA:
    raise ValueError(f"criterion={criterion!r}; valid: {', '.join(CRITERIA)}")
  known = ~np.isnan(labels.astype(np.float64))
  scores, positive = scores[known].astype(np.float64), labels[known] == 1
  n_positive, n_negative = int(positive.sum()), int((~positive).sum())
  if n_positive == 0 or n_negative == 0 or not np.all(np.isfinite(scores)):
    return math.nan
  levels, level_of = np.unique(scores, return_inverse=True)
  # tp[i], fp[i]: counts at or above levels[i]; the last entry calls everything negative.
  tp = np.append(np.cumsum(np.bincount(level_of[positive], minlength=len(levels))[::-1])[::-1], 0)
  fp = np.append(np.cumsum(np.bincount(level_of[~positive], minlength=len(levels))[::-1])[::-1], 0)
  value = {
    "balanced_accuracy": (tp / n_positive + (n_negative - fp) / n_negative) / 2,
    "f1": 2 * tp / (tp + fp + n_positive),
    "accuracy": (tp + n_negative - fp) / (n_positive + n_negative),
  }[criterion]
  best = np.flatnonzero(value >= value.max() - 1e-12)
  index = int(best[len(best) // 2])
  if index == 0:
    return float(levels[0])
  if index == len(levels):
    return float(np.nextafter(levels[-1], np.inf))
  return float((levels[index - 1] + levels[index]) / 2)


def _confusion_per_patient(
  predicted: np.ndarray, truth: np.ndarray, classes: int, patients: Patients
) -> tuple[Float[np.ndarray, "p c"], Int[np.ndarray, "n"]]:
  """One flattened confusion matrix per patient, and the patient of every image."""
  cluster, count = intervals.clusters(patients, len(truth))
  cell = cluster * classes**2 + truth * classes + predicted
  table = np.bincount(cell, minlength=count * classes**2).reshape(count, classes**2)
  return table.astype(np.float64), cluster

"""Area under the precision-recall curve, with its interval, and the curve itself."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Num

from cxrjax.metrics import intervals
from cxrjax.metrics.intervals import Difference, Interval, Patients, undefined
from cxrjax.metrics.roc import why_undefined

WORK = 100_000_000  # images times resamples: larger sets get fewer resamples, at least LEAST
LEAST = 500


def auprc(
  scores: Float[np.ndarray, "n k"],
  labels: Float[np.ndarray, "n k"],
  patients: Patients = None,
  level: float = 0.95,
  seed: int = 0,
) -> Interval:
  """Area under the precision-recall curve (average precision), mean over classes.

  The sum over thresholds of precision times the gain in recall, without interpolation. The area of
  uninformative scores is the share of positives, so areas are not comparable between sets with
  different shares. Interval: bootstrap over patients.

  Args:
    scores: one column per class, higher means more positive.
    labels: 1, 0 or NaN (unknown, left out for that class).
    patients: one id per image, or None.
    level: confidence.
    seed: of the bootstrap.

  Returns:
    The mean over the classes that have positives and negatives; `method` says how many these are.

  References:
    Davis and Goadrich 2006, ICML, p. 233 (why there is no interpolation); Boyd, Eng and Page 2013,
    ECML PKDD, p. 451 (estimates and intervals).
  """
  ranked = _Ranked(scores, labels, patients)
  if not ranked.classes:
    return undefined(ranked.reason, ranked.n)
  value = float(ranked.areas(np.ones((1, ranked.count), np.float32))[0])
  low, high = intervals.percentiles(_resampled(ranked.areas, ranked, seed), level)
  method = "bootstrap over patients"
  if len(ranked.classes) < labels.shape[1]:
    method += f", mean of classes ({len(ranked.classes)} of {labels.shape[1]} defined)"
  if math.isnan(low):
    method = "none: too few patients to resample"
  elif high - low < 1e-9:
    # With perfect (or constant) scores no resample differs. Precision is a proportion.
    low, high = intervals.wilson(value, ranked.positives, level)
    method = f"Wilson over {ranked.positives} patients"
  return Interval(value, low, high, ranked.n, method)


def difference(
  a: Float[np.ndarray, "n k"],
  b: Float[np.ndarray, "n k"],
  labels: Float[np.ndarray, "n k"],
  patients: Patients = None,
  level: float = 0.95,
  seed: int = 0,
) -> Difference:
  """Paired difference in area, `a` minus `b`, on the same images, resampling both together.

  Args:
    a: one column per class.
    b: other scores of the same images.
    labels: 1, 0 or NaN for every class.
    patients: one id per image, or None.
    level: confidence.
    seed: of the bootstrap.
  """
  first, second = (_Ranked(x, labels, patients) for x in (a, b))
  if first.classes != second.classes or not first.classes:
    return Difference(**vars(undefined(first.reason or second.reason, first.n)))

  def area_difference(weights: np.ndarray) -> np.ndarray:
    return first.areas(weights) - second.areas(weights)

  value = float(area_difference(np.ones((1, first.count), np.float32))[0])
  return intervals.difference(value, _resampled(area_difference, first, seed), first.n, level)


def curve(
  scores: Float[np.ndarray, "n"], labels: Num[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "t"], Float[np.ndarray, "t"], Float[np.ndarray, "t"]]:
  """Corners of the precision-recall curve.

  Args:
    scores: higher means more positive.
    labels: 1 positive, 0 negative, NaN unknown (left out).

  Returns:
    Recalls (ascending to 1), the precision at each, and descending thresholds; all empty where
    there is no positive image.
  """
  known = ~np.isnan(labels.astype(np.float64))
  scores, positive = scores[known].astype(np.float64), labels[known] == 1
  if not positive.any():
    return np.zeros(0), np.zeros(0), np.zeros(0)
  order = np.argsort(-scores, kind="stable")
  scores, positive = scores[order], positive[order]
  last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
  true = np.cumsum(positive)[last]
  return true / positive.sum(), true / (last + 1), scores[last]


class _Ranked:
  """Images sorted by the scores of every class, for computing areas with any patient weights."""

  def __init__(self, scores: np.ndarray, labels: np.ndarray, patients: Patients):
    self.n = int((~np.isnan(labels)).any(1).sum())
    cluster, self.count = intervals.clusters(patients, len(labels))
    self.classes: list[int] = []
    self.reason = "no class"
    self._areas: list[Callable[[np.ndarray], np.ndarray]] = []
    positive_patients: list[int] = []
    for c in range(labels.shape[1]):
      rows = np.flatnonzero(~np.isnan(labels[:, c]))
      class_scores = scores[rows, c].astype(np.float64)
      if reason := why_undefined(class_scores, labels[rows, c]):
        self.reason = reason
        continue
      order = np.argsort(-class_scores, kind="stable")
      class_scores, rows = class_scores[order], rows[order]
      positive = labels[rows, c] == 1
      last = np.append(class_scores[1:] != class_scores[:-1], True)
      # Only thresholds that gain a positive matter: sums run over the stretches that end there.
      group = np.cumsum(last) - last
      gains = np.bincount(group, positive) > 0
      ends = np.flatnonzero(last)[gains] + 1
      self.classes.append(c)
      self._areas.append(functools.partial(_area, cluster[rows], positive, ends))
      positive_patients.append(len(np.unique(cluster[rows[positive]])))
    self.positives = min(positive_patients, default=0)

  def areas(self, weights: np.ndarray) -> np.ndarray:
    """The mean area for each row of weights f32[r patients]."""
    return np.mean([area(weights) for area in self._areas], 0)


def _area(
  cluster: np.ndarray, positive: np.ndarray, ends: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """Average precision of images sorted by descending score, with weights f32[r patients]."""
  stop = int(ends[-1])
  starts = np.append(0, ends[:-1])
  w = weights[:, cluster[:stop]]
  # Weights are small integers, which f32 adds exactly.
  called = np.cumsum(np.add.reduceat(w, starts, axis=1), 1, dtype=np.float64)
  gained = np.add.reduceat(w * positive[:stop], starts, axis=1).astype(np.float64)
  total = gained.sum(1)
  with np.errstate(invalid="ignore", divide="ignore"):
    precision = np.where(called > 0, np.cumsum(gained, 1) / called, 0.0)
    return (precision * gained).sum(1) / total


def _resampled(
  statistic: Callable[[np.ndarray], np.ndarray], ranked: _Ranked, seed: int
) -> np.ndarray:
  """Replicates of a statistic of patient weights, for patients drawn with replacement."""
  replicates = int(np.clip(WORK // (ranked.n * len(ranked.classes)), LEAST, intervals.REPLICATES))
  rng, count = np.random.default_rng(seed), ranked.count
  chunk = max(1, 4_000_000 // max(ranked.n, count))
  values: list[np.ndarray] = []
  for start in range(0, replicates, chunk):
    rows = min(chunk, replicates - start)
    drawn = rng.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
    weights = np.bincount(drawn.reshape(-1), minlength=rows * count).reshape(rows, count)
    values.append(statistic(weights.astype(np.float32)))
  return np.concatenate(values)

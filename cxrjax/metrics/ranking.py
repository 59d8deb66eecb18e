"""How well scores order images: the area under the ROC curve, with its interval."""

from __future__ import annotations

import math

import numpy as np
import scipy.special
import scipy.stats
from jaxtyping import Float, Integer, Num

from cxrjax.metrics import intervals
from cxrjax.metrics.intervals import Difference, Interval, Patients, undefined


def auroc(
    scores: Float[np.ndarray, "n"],
    labels: Num[np.ndarray, "n"],
    patients: Patients = None,
    level: float = 0.95,
) -> Interval:
  """Area under the ROC curve with a DeLong interval on the logit scale.

  The area is the chance that a positive image scores above a negative one, ties counting half.
  Where images share a patient the variance is Obuchowski's, which sums DeLong's structural
  components within patients and equals DeLong's when every patient has one image.

  The interval is logit(A) +- z sd(A) / (A (1 - A)), mapped back, so it stays inside [0, 1]. Where
  the variance is zero or not estimable (perfect separation, constant scores, a single positive),
  min(positives, negatives) disjoint pairs are independent trials with success chance A, and
  Wilson's interval over them is given instead of one of zero width.

  Args:
    scores: higher means more positive.
    labels: 1 positive, 0 negative, NaN unknown (left out).
    patients: one id per image, or None.
    level: confidence.

  Returns:
    The area; undefined (NaN, with the reason) for one class only or a score that is not finite.

  References:
    DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837; Sun and Xu 2014, IEEE Signal Process.
    Lett. 21:1389 (midranks); Obuchowski 1997, Biometrics 53:567, eq. 2-5 (patients); Pepe 2003,
    The Statistical Evaluation of Medical Tests, section 5.2 (logit).
  """
  known = ~np.isnan(labels.astype(np.float64))
  cluster, _ = intervals.clusters(patients, len(labels))
  cluster, scores, labels = cluster[known], scores[known].astype(np.float64), labels[known]
  reason = why_undefined(scores, labels)
  if reason:
    return undefined(reason, len(labels))
  positive = labels == 1
  value, v10, v01 = structural_components(scores, positive)
  variance = _variance(value, v10, v01, cluster[positive], cluster[~positive])
  clustered = len(np.unique(cluster)) < len(cluster)
  method = "DeLong, patients as clusters (Obuchowski)" if clustered else "DeLong"
  pairs = min(len(np.unique(cluster[positive])), len(np.unique(cluster[~positive])))
  return _logit_interval(value, variance, pairs, len(labels), method, level)


def macro_auroc(
    scores: Float[np.ndarray, "n k"],
    labels: Float[np.ndarray, "n k"],
    patients: Patients = None,
    level: float = 0.95,
) -> Interval:
  """Mean over classes of the one-against-the-rest AUROC.

  The classes' areas are measured on the same images and so are correlated. Each image's influence
  on every area (its centred structural component) is averaged over the classes before squaring,
  which keeps that correlation; patients are clusters as in `auroc`.

  Args:
    scores: one column a class.
    labels: 1, 0 or NaN (unknown) for every class.
    patients: one id per image, or None.
    level: confidence.

  Returns:
    The mean over the classes that have both positives and negatives; `method` says how many were
    left out. Undefined when there is none.
  """
  n, k = labels.shape
  cluster, count = intervals.clusters(patients, n)
  values, influence, pairs = [], np.zeros(count), []
  for c in range(k):
    rows = np.flatnonzero(~np.isnan(labels[:, c]))
    column = scores[rows, c].astype(np.float64)
    if why_undefined(column, labels[rows, c]):
      continue
    positive = labels[rows, c] == 1
    value, v10, v01 = structural_components(column, positive)
    np.add.at(influence, cluster[rows[positive]], (v10 - value) / len(v10))
    np.add.at(influence, cluster[rows[~positive]], (v01 - value) / len(v01))
    values.append(value)
    pairs.append(min(len(np.unique(cluster[rows[positive]])),
                     len(np.unique(cluster[rows[~positive]]))))
  if not values:
    return undefined("no class has both positive and negative images with finite scores", n)
  value = float(np.mean(values))
  seen = int(np.sum(np.bincount(cluster[~np.isnan(labels).all(1)], minlength=count) > 0))
  variance = math.nan if seen < 2 else (
    float(np.sum((influence / len(values)) ** 2)) * seen / (seen - 1))
  method = "DeLong, mean of classes"
  if len(values) < k:
    method += f" ({len(values)} of {k} defined)"
  used = int(np.sum(~np.isnan(labels).all(1)))
  return _logit_interval(value, variance, min(pairs), used, method, level)


def auroc_difference(
    a: Float[np.ndarray, "n k"],
    b: Float[np.ndarray, "n k"],
    labels: Float[np.ndarray, "n k"],
    patients: Patients = None,
    level: float = 0.95,
) -> Difference:
  """How much larger `a`'s mean area is than `b`'s on the same images, with a paired interval.

  DeLong's comparison of two correlated areas: what an image adds to one area is subtracted from
  what it adds to the other before squaring, so that what is hard for both does not count as doubt.
  Classes and patients as in `macro_auroc`.

  Args:
    a: one column a class, higher means more positive.
    b: other scores of the same images.
    labels: 1, 0 or NaN (unknown) for every class.
    patients: one id per image, or None.
    level: confidence.

  Returns:
    The difference, -1 to 1, and the p value of DeLong's test that there is none: that of
    z = difference / sd. Undefined where no class has an area by both scores; the p value of equal
    areas is 1, and NaN where areas differ and no image adds doubt.

  References:
    DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837; Obuchowski 1997, Biometrics 53:567.
  """
  n, k = labels.shape
  cluster, count = intervals.clusters(patients, n)
  differences, influence, reason = [], np.zeros(count), "no class"
  for c in range(k):
    rows = np.flatnonzero(~np.isnan(labels[:, c]))
    positive = labels[rows, c] == 1
    both = [x[rows, c].astype(np.float64) for x in (a, b)]
    reason = next(filter(None, (why_undefined(x, labels[rows, c]) for x in both)), "")
    if reason:
      continue
    (first, v10, v01), (second, w10, w01) = (structural_components(x, positive) for x in both)
    np.add.at(influence, cluster[rows[positive]], (v10 - w10 - (first - second)) / len(v10))
    np.add.at(influence, cluster[rows[~positive]], (v01 - w01 - (first - second)) / len(v01))
    differences.append(first - second)
  if not differences:
    return Difference(**vars(undefined(reason, n)))
  value = float(np.mean(differences))
  used = ~np.isnan(labels).all(1)
  seen = len(np.unique(cluster[used]))
  sd = math.sqrt(float(np.sum((influence / len(differences)) ** 2)) * seen / max(seen - 1, 1))
  half = intervals.quantile(level) * sd
  p = float(2 * scipy.special.ndtr(-abs(value) / sd)) if sd > 1e-12 else (
    1.0 if value == 0 else math.nan)
  return Difference(value, max(value - half, -1.0), min(value + half, 1.0), int(used.sum()),
                    "DeLong, paired", p=p)


def roc_curve(
    scores: Float[np.ndarray, "n"], labels: Num[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "t"], Float[np.ndarray, "t"], Float[np.ndarray, "t"]]:
  """The ROC curve's corners.

  Args:
    scores: higher means more positive.
    labels: 1 positive, 0 negative, NaN unknown (left out).

  Returns:
    False positive rates, true positive rates (both rise from 0 to 1; NaN where there is no image
    of that class) and the thresholds, falling from +inf: an image is called positive when its
    score is at least the threshold.
  """
  known = ~np.isnan(labels.astype(np.float64))
  scores, positive = scores[known].astype(np.float64), labels[known] == 1
  order = np.argsort(-scores, kind="stable")
  scores, positive = scores[order], positive[order]
  last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else (
    np.zeros(0, int))
  true = np.append(0, np.cumsum(positive)[last]).astype(np.float64)
  false = np.append(0, np.cumsum(~positive)[last]).astype(np.float64)
  with np.errstate(invalid="ignore"):
    return (false / np.float64(np.sum(~positive)), true / np.float64(np.sum(positive)),
            np.append(np.inf, scores[last]))


def structural_components(
    scores: Float[np.ndarray, "n"], positive: np.ndarray
) -> tuple[float, Float[np.ndarray, "m"], Float[np.ndarray, "q"]]:
  """DeLong's structural components from midranks, in O(n log n).

  Args:
    scores: finite.
    positive: bool[n], with at least one True and one False.

  Returns:
    The area; for every positive the share of negatives it beats (ties half); for every negative
    the share of positives that beat it.
  """
  x, y = scores[positive], scores[~positive]
  rank = scipy.stats.rankdata(scores)
  v10 = (rank[positive] - scipy.stats.rankdata(x)) / len(y)
  v01 = 1 - (rank[~positive] - scipy.stats.rankdata(y)) / len(x)
  return float(np.mean(v10)), v10, v01


def _variance(
    value: float, v10: np.ndarray, v01: np.ndarray, cluster10: Integer[np.ndarray, "m"],
    cluster01: Integer[np.ndarray, "q"]) -> float:
  """Obuchowski's variance of the area; DeLong's where no two images share a patient."""
  m, q = len(v10), len(v01)
  count = int(max(cluster10.max(), cluster01.max())) + 1
  sum10 = np.bincount(cluster10, v10 - value, count)
  sum01 = np.bincount(cluster01, v01 - value, count)
  i10, i01 = len(np.unique(cluster10)), len(np.unique(cluster01))
  i = len(np.unique(np.concatenate([cluster10, cluster01])))
  if i10 < 2 or i01 < 2:
    return math.nan
  s10 = i10 / (i10 - 1) / m * np.sum(sum10**2)
  s01 = i01 / (i01 - 1) / q * np.sum(sum01**2)
  s11 = i / (i - 1) * np.sum(sum10 * sum01)
  return float(s10 / m + s01 / q + 2 * s11 / (m * q))


def _logit_interval(
    value: float, variance: float, pairs: int, n: int, method: str, level: float) -> Interval:
  """The interval on the logit scale, or Wilson's over disjoint pairs where that has no width."""
  if not 0 < value < 1 or not variance > 1e-15:
    low, high = intervals.wilson(value, pairs, level)
    return Interval(value, low, high, n, f"Wilson over {pairs} disjoint pairs")
  half = intervals.quantile(level) * math.sqrt(variance) / (value * (1 - value))
  logit = math.log(value / (1 - value))
  low, high = (float(scipy.special.expit(t)) for t in (logit - half, logit + half))
  return Interval(value, low, high, n, method)


def why_undefined(scores: np.ndarray, labels: np.ndarray) -> str:
  """Why there is no area for these; empty where there is one."""
  if len(labels) == 0:
    return "no image has a known label"
  if not np.all((labels == 0) | (labels == 1)):
    raise ValueError("labels must be 0, 1 or NaN")
  if not np.all(np.isfinite(scores)):
    return "a score is not finite"
  if np.all(labels == 1):
    return "no negative image"
  if np.all(labels == 0):
    return "no positive image"
  return ""

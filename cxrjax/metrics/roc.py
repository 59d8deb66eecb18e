"""Area under the ROC curve, with DeLong intervals and paired differences, and the curve itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

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

  The area is the probability that a positive image scores above a negative one, ties counting half.
  Where images share a patient the variance is Obuchowski's, which sums DeLong's structural
  components within patients and equals DeLong's when every patient has one image.

  The interval is logit(A) +- z sd(A) / (A (1 - A)), mapped back, so it stays inside [0, 1]. Where
  the variance is zero or cannot be estimated (perfect separation, constant scores, one positive),
  min(positives, negatives) disjoint pairs are independent trials with success probability A, and
  Wilson's interval over them replaces one of zero width.

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
  contribution = _contribution(v10, v01, cluster, positive, value * (1 - value))
  variance = _variance([contribution], int(cluster.max()) + 1)
  clustered = len(np.unique(cluster)) < len(cluster)
  method = "DeLong, patients as clusters (Obuchowski)" if clustered else "DeLong"
  return _logit_interval(
    value,
    variance if contribution.pairs > 1 else math.nan,
    contribution.pairs,
    len(labels),
    method,
    level,
  )


def macro_auroc(
  scores: Float[np.ndarray, "n k"],
  labels: Float[np.ndarray, "n k"],
  patients: Patients = None,
  level: float = 0.95,
) -> Interval:
  """Mean over classes of the one-against-the-rest AUROC, with its interval.

  The classes' areas are measured on the same images and so are correlated. A patient's
  contributions to all areas (centred structural components) are averaged over the classes before
  squaring, which keeps that correlation. For one class the variance is that of `auroc`. Where the
  positives (or negatives) of a class are of one patient, variance between patients cannot be
  estimated: the largest variance of a value between 0 and 1 with this mean is used instead.

  Args:
    scores: one column per class.
    labels: 1, 0 or NaN (unknown) for every class.
    patients: one id per image, or None.
    level: confidence.

  Returns:
    The mean over the classes that have both positives and negatives; `method` says how many were
    left out. Undefined where there is none.
  """
  n, k = labels.shape
  cluster, count = intervals.clusters(patients, n)
  values, contributions = [], []
  for c in range(k):
    rows = np.flatnonzero(~np.isnan(labels[:, c]))
    column = scores[rows, c].astype(np.float64)
    if why_undefined(column, labels[rows, c]):
      continue
    positive = labels[rows, c] == 1
    value, v10, v01 = structural_components(column, positive)
    contributions.append(_contribution(v10, v01, cluster[rows], positive, value * (1 - value)))
    values.append(value)
  if not values:
    return undefined("no class has both positive and negative images with finite scores", n)
  value, pairs = float(np.mean(values)), [contribution.pairs for contribution in contributions]
  variance = _variance(contributions, count) if max(pairs) > 1 else math.nan
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
  """Paired difference in mean area, `a` minus `b`, on the same images, with its interval.

  DeLong's test of two correlated areas: an image's contributions to both areas are subtracted
  before squaring, so that images which are hard for both add no variance. Classes and patients as
  in `macro_auroc`.

  Args:
    a: one column per class, higher means more positive.
    b: other scores of the same images.
    labels: 1, 0 or NaN (unknown) for every class.
    patients: one id per image, or None.
    level: confidence.

  Returns:
    The difference, -1 to 1, and the p value of DeLong's test of no difference, from
    z = difference / sd. Undefined where no class has an area by both scores. Where the variance is
    zero, p is 1 for equal areas and NaN otherwise.

  References:
    DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837; Obuchowski 1997, Biometrics 53:567.
  """
  n, k = labels.shape
  cluster, count = intervals.clusters(patients, n)
  differences, contributions, reason = [], [], "no class"
  for c in range(k):
    rows = np.flatnonzero(~np.isnan(labels[:, c]))
    positive = labels[rows, c] == 1
    columns = [x[rows, c].astype(np.float64) for x in (a, b)]
    reason = next(filter(None, (why_undefined(x, labels[rows, c]) for x in columns)), "")
    if reason:
      continue
    (first, v10, v01), (second, w10, w01) = (structural_components(x, positive) for x in columns)
    max_variance = sum(math.sqrt(area * (1 - area)) for area in (first, second)) ** 2
    contributions.append(_contribution(v10 - w10, v01 - w01, cluster[rows], positive, max_variance))
    differences.append(first - second)
  if not differences:
    return Difference(**vars(undefined(reason, n)))
  value = float(np.mean(differences))
  used = ~np.isnan(labels).all(1)
  sd = math.sqrt(_variance(contributions, count))
  half = intervals.quantile(level) * sd
  if sd > 1e-12:
    p = float(2 * scipy.special.ndtr(-abs(value) / sd))
  else:
    p = 1.0 if value == 0 else math.nan
  return Difference(
    value, max(value - half, -1.0), min(value + half, 1.0), int(used.sum()), "DeLong, paired", p=p
  )


def roc_curve(
  scores: Float[np.ndarray, "n"], labels: Num[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "t"], Float[np.ndarray, "t"], Float[np.ndarray, "t"]]:
  """Corners of the ROC curve.

  Args:
    scores: higher means more positive.
    labels: 1 positive, 0 negative, NaN unknown (left out).

  Returns:
    False positive rates, true positive rates (both ascending from 0 to 1; NaN where there is no
    image of that class) and thresholds, descending from +inf: an image is called positive when its
    score is at least the threshold.
  """
  known = ~np.isnan(labels.astype(np.float64))
  scores, positive = scores[known].astype(np.float64), labels[known] == 1
  order = np.argsort(-scores, kind="stable")
  scores, positive = scores[order], positive[order]
  last_of_ties = np.zeros(0, int)
  if len(scores):
    last_of_ties = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
  true = np.append(0, np.cumsum(positive)[last_of_ties]).astype(np.float64)
  false = np.append(0, np.cumsum(~positive)[last_of_ties]).astype(np.float64)
  with np.errstate(invalid="ignore"):
    return (
      false / np.float64(np.sum(~positive)),
      true / np.float64(np.sum(positive)),
      np.append(np.inf, scores[last_of_ties]),
    )


def structural_components(
  scores: Float[np.ndarray, "n"], positive: np.ndarray
) -> tuple[float, Float[np.ndarray, "m"], Float[np.ndarray, "q"]]:
  """DeLong's structural components from midranks, in O(n log n).

  Args:
    scores: finite.
    positive: bool[n], with at least one True and one False.

  Returns:
    The area; for every positive the share of negatives below it (ties count half); for every
    negative the share of positives above it.
  """
  x, y = scores[positive], scores[~positive]
  rank = scipy.stats.rankdata(scores)
  v10 = (rank[positive] - scipy.stats.rankdata(x)) / len(y)
  v01 = 1 - (rank[~positive] - scipy.stats.rankdata(y)) / len(x)
  return float(np.mean(v10)), v10, v01


class _Contribution(NamedTuple):
  """Patients' contributions to an area, or to a difference of two.

  Attributes:
    from_positives, from_negatives: contribution of each patient's positive (negative) images.
    patients: number with positive images, with negative ones, and with either.
    max_variance: the largest variance that one component can have.
  """

  from_positives: Float[np.ndarray, "p"]
  from_negatives: Float[np.ndarray, "p"]
  patients: tuple[int, int, int]
  max_variance: float

  @property
  def pairs(self) -> int:
    """Number of disjoint pairs of a patient with positive and one with negative images."""
    return min(self.patients[:2])


def _contribution(
  v10: Float[np.ndarray, "m"],
  v01: Float[np.ndarray, "q"],
  cluster: Integer[np.ndarray, "n"],
  positive: np.ndarray,
  max_variance: float,
) -> _Contribution:
  count = int(cluster.max()) + 1
  by_label = cluster[positive], cluster[~positive]
  from_positives, from_negatives = (
    np.bincount(of, v - v.mean(), count) / len(v)
    for of, v in zip(by_label, (v10, v01), strict=True)
  )
  positives, negatives, either = (len(np.unique(x)) for x in (*by_label, cluster))
  return _Contribution(from_positives, from_negatives, (positives, negatives, either), max_variance)


def _variance(contributions: Sequence[_Contribution], count: int) -> float:
  """Variance of the mean of areas, or of differences in area, over `count` patients.

  Obuchowski's variance is a I10 / (I10 - 1) + b I01 / (I01 - 1) + 2 c I / (I - 1), where a, b and c
  are sums over patients of `from_positives` squared, of `from_negatives` squared and of their
  product, and the I are numbers of patients; with one image each it is DeLong's. It is computed as
  a sum of three squares, which stays positive for a mean of classes as well.
  """

  def factor(patients: int) -> float:
    return patients / (patients - 1) if patients > 1 else 0.0

  terms, max_variances = np.zeros((3, count)), 0.0
  for contribution in contributions:
    positive_factor, negative_factor, either_factor = map(factor, contribution.patients)
    own_terms = terms[:, : len(contribution.from_positives)]
    own_terms[0] += math.sqrt(either_factor) * (
      contribution.from_positives + contribution.from_negatives
    )
    own_terms[1] += (
      math.sqrt(max(positive_factor - either_factor, 0.0)) * contribution.from_positives
    )
    own_terms[2] += (
      math.sqrt(max(negative_factor - either_factor, 0.0)) * contribution.from_negatives
    )
    max_variances += contribution.max_variance * sum(
      patients < 2 for patients in contribution.patients[:2]
    )
  return (float(np.sum(terms**2)) + max_variances) / len(contributions) ** 2


def _logit_interval(
  value: float, variance: float, pairs: int, n: int, method: str, level: float
) -> Interval:
  """The interval on the logit scale, or Wilson's over disjoint pairs where that has zero width."""
  if not 0 < value < 1 or not variance > 1e-15:
    low, high = intervals.wilson(value, pairs, level)
    return Interval(value, low, high, n, f"Wilson over {pairs} disjoint pairs")
  half = intervals.quantile(level) * math.sqrt(variance) / (value * (1 - value))
  logit = math.log(value / (1 - value))
  low, high = (float(scipy.special.expit(t)) for t in (logit - half, logit + half))
  return Interval(value, low, high, n, method)


def why_undefined(scores: np.ndarray, labels: np.ndarray) -> str:
  """Why these data define no area; empty where they do."""
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

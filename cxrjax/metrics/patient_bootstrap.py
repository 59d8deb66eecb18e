"""Bootstrap over patients: intervals and paired differences of metrics of summed counts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from cxrjax.metrics import intervals
from cxrjax.metrics.intervals import Difference, Interval, undefined

Statistic = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class PatientSums:
  """A metric as a function of sums over patients.

  Attributes:
    counts: contribution of each patient to the sums, one row per patient.
    statistic: sums f[r c] -> the metric f[r]; NaN where sums do not define it.
    n: number of images it is computed from.
    trials: number of patients for Wilson's interval, used where no resample differs.
    proportion: whether the metric is the first sum divided by the second, successes by trials.
    undefined: why the data do not define the metric; empty where they do.
  """

  counts: Float[np.ndarray, "p c"]
  statistic: Statistic
  n: int
  trials: int = 1
  proportion: bool = False
  undefined: str = ""

  @property
  def value(self) -> float:
    if self.undefined:
      return math.nan
    return float(self.statistic(self.counts.sum(0, keepdims=True))[0])


def nothing(reason: str, n: int = 0) -> PatientSums:
  """A metric that the data do not define."""
  return PatientSums(np.zeros((0, 1)), lambda totals: totals[:, 0], n, undefined=reason)


def interval(of: PatientSums, level: float = 0.95, seed: int = 0, bounded: bool = True) -> Interval:
  """The metric with a bootstrap interval over patients.

  The interval is Wilson's for a proportion with one trial per patient, and where all resamples
  agree, as with perfect decisions, so that a bootstrap interval would have zero width.

  Args:
    of: the metric.
    level: confidence.
    seed: of the bootstrap.
    bounded: whether the metric lies between 0 and 1.
  """
  if of.undefined:
    return undefined(of.undefined, of.n)
  value = of.value
  if of.proportion and of.counts[:, 1].max() <= 1:
    return Interval(value, *intervals.wilson(value, of.n, level), of.n, "Wilson")
  low, high = intervals.bootstrap(of.counts, of.statistic, level=level, seed=seed)
  if math.isnan(low):
    return Interval(value, math.nan, math.nan, of.n, "none: too few patients to resample")
  if bounded and high - low < 1e-12:
    return Interval(
      value, *intervals.wilson(value, of.trials, level), of.n, f"Wilson over {of.trials} patients"
    )
  return Interval(value, low, high, of.n, "bootstrap over patients")


def difference(a: PatientSums, b: PatientSums, level: float = 0.95, seed: int = 0) -> Difference:
  """Paired difference `a` minus `b` on the same images, resampling both together.

  Args:
    a: a metric.
    b: the same metric of other predictions, with rows for the same patients.
    level: confidence.
    seed: of the bootstrap.

  Returns:
    The difference with its interval and p value (see `intervals.p_value`).
  """
  if reason := a.undefined or b.undefined:
    return Difference(**vars(undefined(reason, a.n)))
  if len(a.counts) != len(b.counts):
    raise ValueError(f"{len(a.counts)} and {len(b.counts)} patients; give the same images")
  split = a.counts.shape[1]
  replicates = intervals.resampled(
    np.concatenate([a.counts, b.counts], 1),
    lambda t: a.statistic(t[:, :split]) - b.statistic(t[:, split:]),
    seed=seed,
  )
  return intervals.difference(a.value - b.value, replicates, a.n, level)


def mean(values: Float[np.ndarray, "n c"], patients: intervals.Patients = None) -> PatientSums:
  """Mean over columns of the mean over images; NaN and columns of NaN are left out."""
  known = ~np.isnan(values)
  used = known.any(0)
  if not used.any():
    return nothing("no image has a known label")
  cluster, count = intervals.clusters(patients, len(values))
  k = int(used.sum())
  table = np.zeros((count, 2 * k))
  sums_and_counts = np.concatenate([np.where(known, values, 0)[:, used], known[:, used]], 1)
  np.add.at(table, cluster, sums_and_counts)

  def statistic(totals: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
      return (totals[:, :k] / totals[:, k:]).mean(1)

  return PatientSums(table, statistic, int(known.any(1).sum()))

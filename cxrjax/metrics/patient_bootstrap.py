"""Metrics that are functions of sums over patients: their interval, and the paired difference."""

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
class Counted:
  """What each patient adds to the sums that a metric is made of.

  Attributes:
    counts: one row a patient.
    statistic: sums f[r c] -> the metric f[r]; NaN where sums do not define it.
    n: images it rests on.
    trials: patients that decide; Wilson's interval where no resample differs.
    proportion: the metric is the first sum divided by the second, successes by trials.
    undefined: why these data do not define it; empty where they do.
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


def nothing(reason: str, n: int = 0) -> Counted:
  """A metric that the data do not define."""
  return Counted(np.zeros((0, 1)), lambda totals: totals[:, 0], n, undefined=reason)


def interval(of: Counted, level: float = 0.95, seed: int = 0, bounded: bool = True) -> Interval:
  """The metric with a bootstrap interval over patients.

  Of a proportion with one trial a patient it is Wilson's. So it is where every resample agrees, as
  with perfect decisions, and the bootstrap's would have no width.

  Args:
    of: the metric.
    level: confidence.
    seed: of the bootstrap.
    bounded: whether the metric is a share, 0 to 1.
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


def difference(a: Counted, b: Counted, level: float = 0.95, seed: int = 0) -> Difference:
  """How much larger `a` is than `b`, of the same images; both are resampled together.

  Args:
    a: a metric.
    b: the same metric of other predictions, its rows those of the same patients.
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


def mean(values: Float[np.ndarray, "n c"], patients: intervals.Patients = None) -> Counted:
  """Mean over columns of the mean over images; NaN is left out, and a column of NaN, too."""
  known = ~np.isnan(values)
  used = known.any(0)
  if not used.any():
    return nothing("no image has a known label")
  cluster, count = intervals.clusters(patients, len(values))
  k = int(used.sum())
  table = np.zeros((count, 2 * k))
  np.add.at(
    table, cluster, np.concatenate([np.where(known, values, 0)[:, used], known[:, used]], 1)
  )

  def statistic(totals: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
      return (totals[:, :k] / totals[:, k:]).mean(1)

  return Counted(table, statistic, int(known.any(1).sum()))

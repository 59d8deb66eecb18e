"""Estimates with 95 % intervals, and two general ways to compute them: Wilson and bootstrap."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import scipy.special
from jaxtyping import Float, Int

Patients = Sequence[str] | np.ndarray | None
REPLICATES = 2000


@dataclasses.dataclass(frozen=True)
class Interval:
  """An estimate and its confidence interval.

  Attributes:
    value: the estimate; NaN where it is undefined.
    low: lower end of the interval; NaN where there is none.
    high: upper end.
    n: number of images it is computed from.
    method: how the interval was computed, in words.
    undefined: why `value` is NaN; empty otherwise.
  """

  value: float
  low: float
  high: float
  n: int
  method: str
  undefined: str = ""

  def __str__(self) -> str:
    if self.undefined:
      return f"undefined ({self.undefined})"
    if math.isnan(self.low):
      return f"{self.value:.3f}"
    return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclasses.dataclass(frozen=True)
class Difference(Interval):
  """A difference of two estimates.

  Attributes:
    p: two-sided p value of no difference; NaN where unknown.
  """

  p: float = math.nan


def undefined(reason: str, n: int = 0) -> Interval:
  """A metric that these data do not define: NaN with the reason, never 0 or 1."""
  return Interval(math.nan, math.nan, math.nan, int(n), "none", reason)


def quantile(level: float) -> float:
  """The normal quantile of a two-sided interval: 1.96 for `level=0.95`."""
  if not 0 < level < 1:
    raise ValueError(f"level={level} must lie between 0 and 1")
  return float(scipy.special.ndtri((1 + level) / 2))


def wilson(value: float, n: int, level: float = 0.95) -> tuple[float, float]:
  """Wilson score interval of a proportion.

  Args:
    value: observed proportion of successes.
    n: number of independent trials, at least 1.
    level: confidence.

  Returns:
    Both ends, inside [0, 1], with positive width even for 0 and 1.

  References:
    Wilson 1927, J. Am. Stat. Assoc. 22:209; Brown, Cai and DasGupta 2001, Stat. Sci. 16:101, eq. 4.
  """
  if n < 1:
    raise ValueError(f"n={n} trials; an interval needs at least 1")
  z2 = quantile(level) ** 2
  centre = (value + z2 / (2 * n)) / (1 + z2 / n)
  half = math.sqrt(z2 * (value * (1 - value) / n + z2 / (4 * n * n))) / (1 + z2 / n)
  # Rounding would leave 1 - 1e-16 where the formula's value is exactly 0 or 1.
  low = 0.0 if value <= 0 else max(0.0, centre - half)
  high = 1.0 if value >= 1 else min(1.0, centre + half)
  return low, high


def clusters(patients: Patients, n: int) -> tuple[Int[np.ndarray, "n"], int]:
  """Numbers the patients, as clusters of images.

  Args:
    patients: one id per image, or None when every image counts as independent. An empty id is an
      unknown patient: that image stands alone.
    n: number of images.

  Returns:
    The patient number of every image, and the number of patients.
  """
  if patients is None:
    return np.arange(n), n
  if len(patients) != n:
    raise ValueError(f"{len(patients)} patients for {n} images")
  names = np.asarray([p if p else f"\0{i}" for i, p in enumerate(patients)], dtype=object)
  unique, index = np.unique(names.astype(str), return_inverse=True)
  return index.reshape(-1), len(unique)


def bootstrap(
  counts: Float[np.ndarray, "patients c"],
  statistic: Callable[[np.ndarray], np.ndarray],
  *,
  level: float = 0.95,
  replicates: int = REPLICATES,
  seed: int = 0,
) -> tuple[float, float]:
  """Percentile bootstrap over patients of a statistic of summed counts.

  Args:
    counts: what each patient adds to the totals (cells of a confusion matrix).
    statistic: totals f[r c] -> values f[r]; NaN where a replicate does not define it.
    level: confidence.
    replicates: number of resamples.
    seed: of the resampling; the same inputs always give the same interval.

  Returns:
    Both ends; NaN when fewer than half of the replicates define the statistic.

  References:
    Efron 1979, Ann. Stat. 7:1; Field and Welsh 2007, J. R. Stat. Soc. B 69:369 (clusters).
  """
  return percentiles(resampled(counts, statistic, number=replicates, seed=seed), level)


def resampled(
  counts: Float[np.ndarray, "patients c"],
  statistic: Callable[[np.ndarray], np.ndarray],
  *,
  number: int = REPLICATES,
  seed: int = 0,
) -> Float[np.ndarray, "r"]:
  """Replicates of a statistic of summed counts, for patients drawn with replacement.

  Images of one patient resemble each other, so patients are drawn, never images. Patients with
  equal counts are interchangeable: how often each *kind* is drawn is multinomial, so drawing kinds
  gives the same distribution as drawing patients, at a fraction of the cost. See `bootstrap`.
  """
  kinds, sizes = np.unique(counts, axis=0, return_counts=True)
  rng = np.random.default_rng(seed)
  chunk = max(1, 4_000_000 // len(kinds))  # bounds the drawn table to 32 MB
  values = []
  for start in range(0, number, chunk):
    draws = rng.multinomial(len(counts), sizes / len(counts), size=min(chunk, number - start))
    values.append(statistic(draws @ kinds))
  return np.concatenate(values)


def percentiles(values: Float[np.ndarray, "r"], level: float = 0.95) -> tuple[float, float]:
  """Ends of the central `level` of the replicates; NaN where over half of them are undefined."""
  known = values[~np.isnan(values)]
  if len(known) < len(values) / 2:
    return math.nan, math.nan
  tail = (1 - level) / 2
  low, high = np.quantile(known, [tail, 1 - tail])
  return float(low), float(high)


def difference(
  value: float, values: Float[np.ndarray, "r"], n: int, level: float = 0.95
) -> Difference:
  """A difference with percentile interval and p value from its bootstrap replicates."""
  low, high = percentiles(values, level)
  method = "bootstrap over patients, paired"
  if math.isnan(low):
    method = "none: too few patients to resample"
  return Difference(value, low, high, n, method, p=p_value(values))


def p_value(values: Float[np.ndarray, "r"]) -> float:
  """Two-sided p value of no difference, from bootstrap replicates of the difference.

  Twice the smaller share of replicates on either side of 0, those at 0 counting for both sides,
  with one added to each count: below 0.05 where the 95 % percentile interval excludes 0, never 0.

  References:
    Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3 (inverting intervals);
    Davison and Hinkley 1997, Bootstrap Methods, eq. 4.11 (the added one).
  """
  known = values[~np.isnan(values)]
  if len(known) < len(values) / 2 or not len(known):
    return math.nan
  smaller_side = min(int(np.sum(known <= 0)), int(np.sum(known >= 0)))
  return min(1.0, 2 * (smaller_side + 1) / (len(known) + 1))

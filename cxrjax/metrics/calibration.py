"""Calibration of probabilities: Brier score, likelihood, ECE, temperature and prevalence."""

from __future__ import annotations

import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Float

from cxrjax.metrics import intervals, patient_bootstrap
from cxrjax.metrics.intervals import Interval, Patients, undefined
from cxrjax.metrics.patient_bootstrap import PatientSums, nothing

BINS = 15  # as Guo et al.
MIN_PROBABILITY = (
  1e-12  # lower limit on probabilities in logs, lest one miss make the mean infinite
)
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
_PENALTY = 1e-3  # L2, on the scale and shifts of `bias_corrected`
_EM_ITERATIONS, _EM_TOLERANCE = 10_000, 1e-9


def brier(
  probabilities: Float[np.ndarray, "n k"],
  labels: Float[np.ndarray, "n k"],
  exclusive: bool,
  patients: Patients = None,
) -> PatientSums:
  """Mean squared error of probabilities.

  For two exclusive classes, of the last one's probability, 0 to 1; for more, the sum over classes,
  0 to 2; for findings, the mean over findings, each over its known labels.

  Args:
    probabilities: of every class.
    labels: 1, 0 or NaN; one-hot where exclusive.
    exclusive: one class per image.
    patients: one id per image, or None.

  References:
    Brier 1950, Mon. Weather Rev. 78:1.
  """
  error = (probabilities.astype(np.float64) - labels) ** 2
  if exclusive:
    error = error[:, 1:] if labels.shape[1] == 2 else error.sum(1, keepdims=True)
  return patient_bootstrap.mean(error, patients)


def nll(
  probabilities: Float[np.ndarray, "n k"],
  labels: Float[np.ndarray, "n k"],
  exclusive: bool,
  patients: Patients = None,
) -> PatientSums:
  """Mean negative log-likelihood of the labels, in nats; for findings the mean over findings.

  Probabilities are clipped at 1e-12 from below.

  Args:
    probabilities: of every class.
    labels: 1, 0 or NaN; one-hot where exclusive.
    exclusive: one class per image.
    patients: one id per image, or None.
  """
  p = probabilities.astype(np.float64)
  if exclusive:
    unknown = np.isnan(labels).any(1)
    p_truth = np.where(labels == 1, p, 0).sum(1, keepdims=True)
    p_outcome = np.where(unknown[:, None], np.nan, p_truth)
  else:
    p_outcome = np.where(labels == 1, p, np.where(labels == 0, 1 - p, np.nan))
  return patient_bootstrap.mean(-np.log(np.maximum(p_outcome, MIN_PROBABILITY)), patients)


def ece(
  probabilities: Float[np.ndarray, "n k"],
  labels: Float[np.ndarray, "n k"],
  exclusive: bool,
  patients: Patients = None,
  bins: int = BINS,
) -> PatientSums:
  """Expected calibration error: mean gap between probability and observed frequency.

  Images are binned by probability into `bins` of equal width. The gap of a bin is the difference of
  its mean probability and the share of images in which it came true, weighted by its number of
  images. `outcomes` selects the probabilities. For findings it is the mean over findings. It is
  biased upwards on small sets, where bins of few images have gaps by chance (`ece_by_chance`).

  Args:
    probabilities: of every class.
    labels: 1, 0 or NaN; one-hot where exclusive.
    exclusive: one class per image.
    patients: one id per image, or None.
    bins: of equal width.

  References:
    Guo et al. 2017, arXiv 1706.04599, eq. 3; Naeini et al. 2015, AAAI, p. 2901.
  """
  table = _bin_sums(probabilities, labels, exclusive, patients, bins)
  if table is None:
    return nothing("no image has a known label")
  shape, table = table.shape[1:], table.reshape(len(table), -1)
  used = np.flatnonzero(table.any(0))  # most bins of most sets are empty

  def statistic(totals: np.ndarray) -> np.ndarray:
    sums = np.zeros((len(totals), table.shape[1]))
    sums[:, used] = totals
    sums = sums.reshape(-1, *shape)
    with np.errstate(invalid="ignore"):
      return (np.abs(sums[..., 1]).sum(2) / sums[..., 0].sum(2)).mean(1)

  known = ~np.isnan(outcomes(probabilities, labels, exclusive)[1])
  return PatientSums(table[:, used], statistic, int(known.any(1).sum()))


def ece_by_chance(
  probabilities: Float[np.ndarray, "n k"],
  labels: Float[np.ndarray, "n k"],
  exclusive: bool,
  patients: Patients = None,
  bins: int = BINS,
  level: float = 0.95,
  seed: int = 0,
) -> tuple[float, float]:
  """The calibration error that perfectly calibrated probabilities would show on these images.

  The gap of a bin then has mean 0, and as its variance the sum over patients of their squared
  residuals.

  Args:
    probabilities: as for `ece`, as are the next four.
    labels: of the images; their clustering by patient matters.
    exclusive: one class per image.
    patients: one id per image, or None.
    bins: of equal width.
    level: of the upper end.
    seed: of the draws.

  Returns:
    Its mean, and its quantile at `level`; NaN without known labels.

  References:
    Bröcker and Smith 2007, Weather Forecast. 22:651 (consistency of reliability diagrams).
  """
  table = _bin_sums(probabilities, labels, exclusive, patients, bins)
  if table is None:
    return float("nan"), float("nan")
  sd = np.sqrt((table[..., 1] ** 2).sum(0))
  drawn = np.abs(np.random.default_rng(seed).normal(size=(intervals.REPLICATES, *sd.shape)) * sd)
  values = (drawn.sum(2) / table[..., 0].sum((0, 2))).mean(1)
  return float(values.mean()), float(np.quantile(values, level))


def ece_interval(
  probabilities: Float[np.ndarray, "n k"],
  labels: Float[np.ndarray, "n k"],
  exclusive: bool,
  patients: Patients = None,
  level: float = 0.95,
  seed: int = 0,
) -> Interval:
  """`ece` with an interval for its value in the limit of many images.

  Resamples overestimate the error of the images they are drawn from, as these overestimate the true
  one, so the distribution is reflected at the estimate (basic bootstrap). Where chance alone could
  explain the error, by `ece_by_chance`, the interval begins at 0.

  References:
    Davison and Hinkley 1997, Bootstrap Methods and their Application, section 2.4.
  """
  error = ece(probabilities, labels, exclusive, patients)
  if error.undefined:
    return undefined(error.undefined, error.n)
  low, high = intervals.percentiles(
    intervals.resampled(error.counts, error.statistic, seed=seed), level
  )
  value = error.value
  low, high = max(2 * value - high, 0.0), max(2 * value - low, value)
  chance = ece_by_chance(
    probabilities, labels, exclusive, patients, level=(1 + level) / 2, seed=seed
  )
  if value <= chance[1]:
    low = 0.0
  return Interval(value, low, high, error.n, "basic bootstrap over patients")


def _bin_sums(
  probabilities: np.ndarray, labels: np.ndarray, exclusive: bool, patients: Patients, bins: int
) -> Float[np.ndarray, "patients c bins 2"] | None:
  """Number of images, and sum of probability minus outcome, per patient, column and bin."""
  p, outcome = outcomes(probabilities, labels, exclusive)
  known = ~np.isnan(outcome)
  columns = np.flatnonzero(known.any(0))
  if not len(columns):
    return None
  cluster, count = intervals.clusters(patients, len(p))
  table = np.zeros((count, len(columns), bins, 2))
  for i, c in enumerate(columns):
    rows = np.flatnonzero(known[:, c])
    flat_bin = cluster[rows] * bins + _bin_index(p[rows, c], bins)
    for j, weight in enumerate((None, p[rows, c] - outcome[rows, c])):
      table[:, i, :, j] = np.bincount(flat_bin, weight, count * bins).reshape(count, bins)
  return table


def reliability(
  probabilities: Float[np.ndarray, "n k"],
  labels: Float[np.ndarray, "n k"],
  exclusive: bool,
  bins: int = BINS,
) -> list[dict[str, float]]:
  """Data of a reliability diagram: the non-empty bins of `ece`, findings pooled.

  Returns:
    Per bin: its limits `low` and `high`; `n` images; their mean `probability`; `came`, how many
    came true.
  """
  p, outcome = outcomes(probabilities, labels, exclusive)
  known = ~np.isnan(outcome)
  p, outcome = p[known], outcome[known]
  bin_of = _bin_index(p, bins)
  return [
    {
      "low": b / bins,
      "high": (b + 1) / bins,
      "n": int((bin_of == b).sum()),
      "probability": float(p[bin_of == b].mean()),
      "came": int(outcome[bin_of == b].sum()),
    }
    for b in np.unique(bin_of).tolist()
  ]


def outcomes(
  probabilities: Float[np.ndarray, "n k"], labels: Float[np.ndarray, "n k"], exclusive: bool
) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, "n c"]]:
  """The probabilities whose calibration is assessed, and whether they came true (NaN: unknown).

  Two exclusive classes: that of the last one. More: that of the likeliest class (as Guo et al.).
  Findings: that of each.
  """
  p = probabilities.astype(np.float64)
  if not exclusive:
    return p, labels.astype(np.float64)
  if labels.shape[1] == 2:
    return p[:, 1:], labels[:, 1:].astype(np.float64)
  predicted = p.argmax(1)
  correct = np.take_along_axis(labels, predicted[:, None], 1).astype(np.float64)
  return p.max(1, keepdims=True), np.where(np.isnan(labels).any(1)[:, None], np.nan, correct)


def temperature(
  probabilities: Float[np.ndarray, "n k"], labels: Float[np.ndarray, "n k"], exclusive: bool
) -> tuple[Float[np.ndarray, "t"], list[str]]:
  """Fits the temperature, which divides logits, to the labels of validation images.

  It minimises the negative log-likelihood, which is convex in 1 / T. It does not change the ranking
  of images by the scores of two classes or a finding. Exclusive classes share one temperature;
  each finding has its own.

  Args:
    probabilities: of a softmax, or of sigmoids.
    labels: 1, 0 or NaN; one-hot where exclusive.
    exclusive: one class per image.

  Returns:
    Temperatures, and a remark for each that is 1 because the images do not determine it: they show
    one class only, or scores separate the classes, so that confidence has no upper limit.

  References:
    Guo et al. 2017, arXiv 1706.04599, section 4.2.
  """
  if exclusive:
    known = ~np.isnan(labels).any(1)
    fitted_t, reason = _fit_temperature(_logits(probabilities[known], True), labels[known])
    remarks = [f"temperature 1, because {reason}"] if reason else []
    return np.array([fitted_t]), remarks
  temperatures, remarks = [], []
  for c in range(labels.shape[1]):
    known = ~np.isnan(labels[:, c])
    logits = _logits(probabilities[known, c : c + 1], False)
    y = labels[known, c]
    fitted_t, reason = _fit_temperature(
      np.concatenate([0 * logits, logits], 1), np.stack([1 - y, y], 1)
    )
    temperatures.append(fitted_t)
    remarks += [f"label {c}: temperature 1, because {reason}"] if reason else []
  return np.array(temperatures), remarks


def scaled(
  probabilities: Float[np.ndarray, "n k"], temperatures: Float[np.ndarray, "t"], exclusive: bool
) -> Float[np.ndarray, "n k"]:
  """Probabilities with logits divided by the temperature(s), in double precision."""
  logits = _logits(probabilities, exclusive) / temperatures
  return scipy.special.softmax(logits, 1) if exclusive else scipy.special.expit(logits)


def bias_corrected(
  probabilities: Float[np.ndarray, "n k"],
  labels: Float[np.ndarray, "n k"],
  others: Float[np.ndarray, "m k"],
) -> Float[np.ndarray, "m k"]:
  """Bias-corrected temperature scaling of exclusive classes: scales logits, shifts each class.

  Both are fitted to validation images as in `temperature`, with a slight penalty towards 1 and 0
  that makes the fit unique where classes are separated. Estimating a prevalence needs unbiased
  probabilities.

  Args:
    probabilities: of validation images.
    labels: of the same images, one-hot or NaN.
    others: the probabilities to correct.

  References:
    Alexandari, Kundaje and Shrikumar 2020, ICML (arXiv 1901.06852), section 3.
  """
  known = ~np.isnan(labels).any(1)
  logits, truth = _logits(probabilities[known], True), labels[known]

  def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
    scores = x[0] * logits + x[1:]
    log_total = scipy.special.logsumexp(scores, 1)
    error = (np.exp(scores - log_total[:, None]) - truth) / max(len(truth), 1)
    penalty_gradient = _PENALTY * (x - start)
    value = (log_total - (scores * truth).sum(1)).sum() / max(len(truth), 1)
    penalty = 0.5 * (penalty_gradient * (x - start)).sum()
    gradient = np.concatenate([[(error * logits).sum()], error.sum(0)])
    return value + penalty, gradient + penalty_gradient

  start = np.zeros(1 + labels.shape[1])
  start[0] = 1
  bounds = [(1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE)] + [(None, None)] * labels.shape[1]
  solution = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
  return scipy.special.softmax(solution[0] * _logits(others, True) + solution[1:], 1)


def prevalence(
  probabilities: Float[np.ndarray, "n k"], before: Float[np.ndarray, "k"]
) -> Float[np.ndarray, "k"]:
  """Estimates the prevalence of exclusive classes among unlabelled images.

  Maximum likelihood by expectation maximisation, under label shift: the appearance of images given
  their class is the same, and only the prevalence differs.

  Args:
    probabilities: of every class, calibrated at the prevalence `before`.
    before: prevalence of every class, above 0.

  References:
    Saerens, Latinne and Decaestecker 2002, Neural Comput. 14:21, eq. 2.
  """
  shares = np.asarray(before, np.float64) / np.sum(before)
  for _ in range(_EM_ITERATIONS):
    updated = at_prevalence(probabilities, before, shares).mean(0)
    if np.abs(updated - shares).max() < _EM_TOLERANCE:
      return updated
    shares = updated
  return shares


def at_prevalence(
  probabilities: Float[np.ndarray, "n k"],
  before: Float[np.ndarray, "k"],
  now: Float[np.ndarray, "k"],
) -> Float[np.ndarray, "n k"]:
  """Adjusts probabilities of exclusive classes to another prevalence, by Bayes' rule.

  Args:
    probabilities: of every class, calibrated at the prevalence `before`.
    before: prevalence of every class, above 0.
    now: new prevalence of every class, at least 0.

  References:
    Saerens, Latinne and Decaestecker 2002, Neural Comput. 14:21, eq. 4.
  """
  weights = (np.asarray(now, np.float64) / np.sum(now)) / (
    np.asarray(before, np.float64) / np.sum(before)
  )
  reweighted = np.maximum(probabilities.astype(np.float64), MIN_PROBABILITY) * weights
  return reweighted / reweighted.sum(1, keepdims=True)


def _logits(probabilities: np.ndarray, exclusive: bool) -> np.ndarray:
  """Logits of the probabilities, up to a constant where exclusive."""
  tiny = float(np.finfo(np.float32).tiny)
  p = np.maximum(probabilities.astype(np.float64), tiny)
  if exclusive:
    return np.log(p)
  # A float32 sigmoid rounds to 1 from a logit of 17 on; half a rounding step below 1 stands for it.
  half_step = float(np.finfo(np.float32).eps) / 4
  complement = 1 - np.minimum(p, 1.0)
  return np.log(p) - np.log(np.where(complement > 0, complement, half_step))


def _fit_temperature(logits: np.ndarray, labels: np.ndarray) -> tuple[float, str]:
  """The temperature, or 1 and the reason why the images do not determine it."""
  if not len(labels):
    return 1.0, "there are no validation images"
  if (labels.sum(0) > 0).sum() < 2:
    return 1.0, "the validation images are all of one class"
  if not np.isfinite(logits).all():
    return 1.0, "a prediction is not finite"

  def loss(log_t: float) -> float:
    scaled_logits = logits * np.exp(-log_t)
    return float(
      np.mean(scipy.special.logsumexp(scaled_logits, 1) - (scaled_logits * labels).sum(1))
    )

  low, high = np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)
  optimum = scipy.optimize.minimize_scalar(
    loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}
  )
  best = float(optimum.x)
  if best < low + 1e-3:
    return 1.0, "the validation images are classified without error"
  return float(np.exp(best)), ""


def _bin_index(p: np.ndarray, bins: int) -> np.ndarray:
  return np.clip((p * bins).astype(np.int64), 0, bins - 1)

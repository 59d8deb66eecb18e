"""Probabilities: how far they are from what happens, and one temperature that mends them."""

from __future__ import annotations

import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Float

from cxrjax.metrics import intervals, patient_bootstrap
from cxrjax.metrics.intervals import Interval, Patients, undefined
from cxrjax.metrics.patient_bootstrap import Counted, nothing

BINS = 15  # as Guo et al.
TINY = 1e-12  # no event is given a lower probability: one such miss would make the mean infinite
COLDEST, HOTTEST = 0.05, 20.0
_PULL = 1e-3
_ROUNDS, _CLOSE = 10_000, 1e-9  # of expectation maximisation


def brier(
  probabilities: Float[np.ndarray, "n k"],
  labels: Float[np.ndarray, "n k"],
  exclusive: bool,
  patients: Patients = None,
) -> Counted:
  """Mean squared error of probabilities.

  Of two exclusive classes that of the last one's probability, 0 to 1; of more the sum over classes,
  0 to 2; of findings the mean over findings, each over its known labels.

  Args:
    probabilities: of every class.
    labels: 1, 0 or NaN; one-hot where exclusive.
    exclusive: one class an image.
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
) -> Counted:
  """Mean negative log-likelihood of the labels, in nats; of findings the mean over findings.

  Probabilities below 1e-12 count as that.

  Args:
    probabilities: of every class.
    labels: 1, 0 or NaN; one-hot where exclusive.
    exclusive: one class an image.
    patients: one id per image, or None.
  """
  p = probabilities.astype(np.float64)
  if exclusive:
    unknown = np.isnan(labels).any(1)
    of_truth = np.where(labels == 1, p, 0).sum(1, keepdims=True)
    happened = np.where(unknown[:, None], np.nan, of_truth)
  else:
    happened = np.where(labels == 1, p, np.where(labels == 0, 1 - p, np.nan))
  return patient_bootstrap.mean(-np.log(np.maximum(happened, TINY)), patients)


def ece(
  probabilities: Float[np.ndarray, "n k"],
  labels: Float[np.ndarray, "n k"],
  exclusive: bool,
  patients: Patients = None,
  bins: int = BINS,
) -> Counted:
  """Expected calibration error: mean gap between a probability and how often it comes true.

  Images are put into `bins` of equal width by their probability; the gap of a bin is that between
  its mean probability and the share of images in which it came true, and counts by its images.
  What is looked at is in `outcomes`. Of findings it is the mean over findings. Small sets make it
  too large: bins of few images have gaps by chance (`ece_by_chance`).

  Args:
    probabilities: of every class.
    labels: 1, 0 or NaN; one-hot where exclusive.
    exclusive: one class an image.
    patients: one id per image, or None.
    bins: of equal width.

  References:
    Guo et al. 2017, arXiv 1706.04599, eq. 3; Naeini et al. 2015, AAAI, p. 2901.
  """
  table = _gaps(probabilities, labels, exclusive, patients, bins)
  if table is None:
    return nothing("no image has a known label")
  shape, table = table.shape[1:], table.reshape(len(table), -1)
  kept = np.flatnonzero(table.any(0))  # most bins of most sets are empty

  def statistic(totals: np.ndarray) -> np.ndarray:
    sums = np.zeros((len(totals), table.shape[1]))
    sums[:, kept] = totals
    sums = sums.reshape(-1, *shape)
    with np.errstate(invalid="ignore"):
      return (np.abs(sums[..., 1]).sum(2) / sums[..., 0].sum(2)).mean(1)

  known = ~np.isnan(outcomes(probabilities, labels, exclusive)[1])
  return Counted(table[:, kept], statistic, int(known.any(1).sum()))


def ece_by_chance(
  probabilities: Float[np.ndarray, "n k"],
  labels: Float[np.ndarray, "n k"],
  exclusive: bool,
  patients: Patients = None,
  bins: int = BINS,
  level: float = 0.95,
  seed: int = 0,
) -> tuple[float, float]:
  """The calibration error that perfect calibration would show on as many images.

  The gap of a bin then has mean 0, and the sum over patients of their squared residuals for a
  variance.

  Args:
    probabilities: as for `ece`, like the next four.
    labels: of the images; their clustering in patients matters.
    exclusive: one class an image.
    patients: one id per image, or None.
    bins: of equal width.
    level: of the upper end.
    seed: of the draws.

  Returns:
    Its mean, and what it stays below with that probability; NaN without known labels.

  References:
    Bröcker and Smith 2007, Weather Forecast. 22:651 (consistency of reliability diagrams).
  """
  table = _gaps(probabilities, labels, exclusive, patients, bins)
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
  """`ece` with an interval for what it would be of very many images.

  Resamples have larger errors than the images they are drawn from, as these have larger ones than
  there are in truth, so their distribution is reflected at the estimate (basic bootstrap). Where
  chance may have made all of it, by `ece_by_chance`, the interval begins at 0.

  References:
    Davison and Hinkley 1997, Bootstrap Methods and their Application, section 2.4.
  """
  of = ece(probabilities, labels, exclusive, patients)
  if of.undefined:
    return undefined(of.undefined, of.n)
  low, high = intervals.percentiles(intervals.resampled(of.counts, of.statistic, seed=seed), level)
  value = of.value
  low, high = max(2 * value - high, 0.0), max(2 * value - low, value)
  chance = ece_by_chance(
    probabilities, labels, exclusive, patients, level=(1 + level) / 2, seed=seed
  )
  if value <= chance[1]:
    low = 0.0
  return Interval(value, low, high, of.n, "basic bootstrap over patients")


def _gaps(
  probabilities: np.ndarray, labels: np.ndarray, exclusive: bool, patients: Patients, bins: int
) -> Float[np.ndarray, "patients c bins 2"] | None:
  """Of each patient, column and bin the images, and their probabilities less what came true."""
  p, came = outcomes(probabilities, labels, exclusive)
  known = ~np.isnan(came)
  columns = np.flatnonzero(known.any(0))
  if not len(columns):
    return None
  cluster, count = intervals.clusters(patients, len(p))
  table = np.zeros((count, len(columns), bins, 2))
  for i, c in enumerate(columns):
    rows = np.flatnonzero(known[:, c])
    cell = cluster[rows] * bins + _bin(p[rows, c], bins)
    for j, weight in enumerate((None, p[rows, c] - came[rows, c])):
      table[:, i, :, j] = np.bincount(cell, weight, count * bins).reshape(count, bins)
  return table


def reliability(
  probabilities: Float[np.ndarray, "n k"],
  labels: Float[np.ndarray, "n k"],
  exclusive: bool,
  bins: int = BINS,
) -> list[dict[str, float]]:
  """The bins of `ece` that have images, findings taken together.

  Returns:
    Of each: `low` and `high`, its limits; `n` images; `probability`, their mean; `came`, how many
    came true.
  """
  p, came = outcomes(probabilities, labels, exclusive)
  known = ~np.isnan(came)
  p, came = p[known], came[known]
  at = _bin(p, bins)
  return [
    {
      "low": b / bins,
      "high": (b + 1) / bins,
      "n": int((at == b).sum()),
      "probability": float(p[at == b].mean()),
      "came": int(came[at == b].sum()),
    }
    for b in np.unique(at).tolist()
  ]


def outcomes(
  probabilities: Float[np.ndarray, "n k"], labels: Float[np.ndarray, "n k"], exclusive: bool
) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, "n c"]]:
  """The probabilities whose calibration is looked at, and whether they came true (NaN: unknown).

  Two exclusive classes: of the last one. More: of the likeliest class, whichever it is (as Guo et
  al.). Findings: of each.
  """
  p = probabilities.astype(np.float64)
  if not exclusive:
    return p, labels.astype(np.float64)
  if labels.shape[1] == 2:
    return p[:, 1:], labels[:, 1:].astype(np.float64)
  called = p.argmax(1)
  right = np.take_along_axis(labels, called[:, None], 1).astype(np.float64)
  return p.max(1, keepdims=True), np.where(np.isnan(labels).any(1)[:, None], np.nan, right)


def temperature(
  probabilities: Float[np.ndarray, "n k"], labels: Float[np.ndarray, "n k"], exclusive: bool
) -> tuple[Float[np.ndarray, "t"], list[str]]:
  """The temperature that divides logits, fitted to the labels of validation images.

  It minimises the negative log-likelihood, which is convex in 1 / T. It changes no order of two
  classes' or a finding's scores. One for exclusive classes, else one for each finding.

  Args:
    probabilities: of a softmax, or of sigmoids.
    labels: 1, 0 or NaN; one-hot where exclusive.
    exclusive: one class an image.

  Returns:
    Temperatures, and a remark for each that the images do not determine and that is 1: they show
    one class, or scores separate them, so that no certainty is too much.

  References:
    Guo et al. 2017, arXiv 1706.04599, section 4.2.
  """
  if exclusive:
    known = ~np.isnan(labels).any(1)
    found, why = _fit(_logits(probabilities[known], True), labels[known])
    return np.array([found]), [f"temperature 1, because {why}"] if why else []
  fitted, remarks = [], []
  for c in range(labels.shape[1]):
    known = ~np.isnan(labels[:, c])
    logits = _logits(probabilities[known, c : c + 1], False)
    y = labels[known, c]
    found, why = _fit(np.concatenate([0 * logits, logits], 1), np.stack([1 - y, y], 1))
    fitted.append(found)
    remarks += [f"label {c}: temperature 1, because {why}"] if why else []
  return np.array(fitted), remarks


def scaled(
  probabilities: Float[np.ndarray, "n k"], temperatures: Float[np.ndarray, "t"], exclusive: bool
) -> Float[np.ndarray, "n k"]:
  """Probabilities after their logits are divided by the temperature(s), in double precision."""
  logits = _logits(probabilities, exclusive) / temperatures
  return scipy.special.softmax(logits, 1) if exclusive else scipy.special.expit(logits)


def bias_corrected(
  probabilities: Float[np.ndarray, "n k"],
  labels: Float[np.ndarray, "n k"],
  others: Float[np.ndarray, "m k"],
) -> Float[np.ndarray, "m k"]:
  """Probabilities of exclusive classes whose logits are scaled, and shifted for each class.

  Both are fitted to validation images as `temperature` is, with a slight pull to 1 and 0 that
  decides where classes are separated. What estimates a prevalence needs probabilities without bias.

  Args:
    probabilities: of validation images.
    labels: theirs, one-hot or NaN.
    others: the probabilities to correct.

  References:
    Alexandari, Kundaje and Shrikumar 2020, ICML (arXiv 1901.06852), section 3.
  """
  known = ~np.isnan(labels).any(1)
  logits, truth = _logits(probabilities[known], True), labels[known]

  def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
    scores = x[0] * logits + x[1:]
    of = scipy.special.logsumexp(scores, 1)
    error = (np.exp(scores - of[:, None]) - truth) / max(len(truth), 1)
    pull = _PULL * (x - start)
    value = (of - (scores * truth).sum(1)).sum() / max(len(truth), 1) + 0.5 * (
      pull * (x - start)
    ).sum()
    return value, np.concatenate([[(error * logits).sum()], error.sum(0)]) + pull

  start = np.zeros(1 + labels.shape[1])
  start[0] = 1
  bounds = [(1 / HOTTEST, 1 / COLDEST)] + [(None, None)] * labels.shape[1]
  found = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
  return scipy.special.softmax(found[0] * _logits(others, True) + found[1:], 1)


def prevalence(
  probabilities: Float[np.ndarray, "n k"], before: Float[np.ndarray, "k"]
) -> Float[np.ndarray, "k"]:
  """How frequent exclusive classes are among images without labels, of calibrated probabilities.

  The maximum of the likelihood by expectation maximisation: what images look like given their class
  is taken to be the same, and only the classes' shares to differ.

  Args:
    probabilities: of every class, calibrated where the classes have the shares `before`.
    before: of every class, above 0.

  References:
    Saerens, Latinne and Decaestecker 2002, Neural Comput. 14:21, eq. 2.
  """
  found = np.asarray(before, np.float64) / np.sum(before)
  for _ in range(_ROUNDS):
    new = at_prevalence(probabilities, before, found).mean(0)
    if np.abs(new - found).max() < _CLOSE:
      return new
    found = new
  return found


def at_prevalence(
  probabilities: Float[np.ndarray, "n k"],
  before: Float[np.ndarray, "k"],
  now: Float[np.ndarray, "k"],
) -> Float[np.ndarray, "n k"]:
  """Probabilities of exclusive classes where these have other shares, by Bayes' rule.

  Args:
    probabilities: of every class, calibrated where the classes have the shares `before`.
    before: of every class, above 0.
    now: of every class, from 0.

  References:
    Saerens, Latinne and Decaestecker 2002, Neural Comput. 14:21, eq. 4.
  """
  weights = (np.asarray(now, np.float64) / np.sum(now)) / (
    np.asarray(before, np.float64) / np.sum(before)
  )
  found = np.maximum(probabilities.astype(np.float64), TINY) * weights
  return found / found.sum(1, keepdims=True)


def _logits(probabilities: np.ndarray, exclusive: bool) -> np.ndarray:
  """What the probabilities were made from, up to a constant where exclusive."""
  smallest = float(np.finfo(np.float32).tiny)
  p = np.maximum(probabilities.astype(np.float64), smallest)
  if exclusive:
    return np.log(p)
  # A sigmoid in single precision is 1 from a logit of 17 on: as far from 1 as it can be told.
  q = 1 - np.minimum(p, 1.0)
  return np.log(p) - np.log(np.where(q > 0, q, float(np.finfo(np.float32).eps) / 4))


def _fit(logits: np.ndarray, labels: np.ndarray) -> tuple[float, str]:
  """The temperature, or 1 and why the images do not determine one."""
  if not len(labels) or (labels.sum(0) > 0).sum() < 2:
    return 1.0, "the validation images do not have both values of it" if len(labels) else (
      "there is no validation image"
    )
  if not np.isfinite(logits).all():
    return 1.0, "a prediction is not finite"

  def loss(log_t: float) -> float:
    scaled_by = logits * np.exp(-log_t)
    return float(np.mean(scipy.special.logsumexp(scaled_by, 1) - (scaled_by * labels).sum(1)))

  low, high = np.log(COLDEST), np.log(HOTTEST)
  best = float(
    scipy.optimize.minimize_scalar(
      loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}
    ).x
  )
  if best < low + 1e-3:
    return 1.0, "the validation images are told apart without a mistake"
  return float(np.exp(best)), ""


def _bin(p: np.ndarray, bins: int) -> np.ndarray:
  return np.clip((p * bins).astype(np.int64), 0, bins - 1)

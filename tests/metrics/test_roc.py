"""AUROC and its interval against brute force from the definitions, and by hand."""

import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc

from cxrjax.metrics import intervals, roc


def brute_components(scores, labels):
  """DeLong's structural components from all pairs, as in his equations 3 to 5."""
  psi = lambda x, y: 1.0 if x > y else 0.5 if x == y else 0.0  # noqa: E731
  x, y = scores[labels == 1], scores[labels == 0]
  table = np.array([[psi(a, b) for b in y] for a in x])
  return table.mean(), table.mean(1), table.mean(0)


def brute_variance(scores, labels):
  _, v10, v01 = brute_components(scores, labels)
  return np.var(v10, ddof=1) / len(v10) + np.var(v01, ddof=1) / len(v01)


def variance_of(interval):
  """The variance that a logit interval was made from."""
  a = interval.value
  logit = lambda p: math.log(p / (1 - p))  # noqa: E731
  half = (logit(interval.high) - logit(interval.low)) / 2
  return (half / intervals.quantile(0.95) * a * (1 - a)) ** 2


def data(seed, n=80, ties=False):
  rng = np.random.default_rng(seed)
  labels = (rng.random(n) < 0.4).astype(np.int64)
  scores = rng.normal(size=n) + labels
  return (np.round(scores) if ties else scores), labels


@pytest.mark.parametrize("seed,ties", [*itertools.product(range(3), (False, True))])
def test_auroc_and_delong_variance_against_brute_force(seed, ties):
  scores, labels = data(seed, ties=ties)
  got = roc.auroc(scores, labels)
  assert got.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
  assert got.value == pytest.approx(brute_components(scores, labels)[0], abs=1e-12)
  assert variance_of(got) == pytest.approx(brute_variance(scores, labels), rel=1e-9)
  assert got.low < got.value < got.high and got.n == 80 and got.method == "DeLong"


def test_auroc_by_hand():
  # Positives 3, 1; negatives 2, 0: pairs won 1, 1, 0, 1. V10 = (1, .5), V01 = (.5, 1), so the
  # variance is .125 / 2 + .125 / 2 = .125 and logit(.75) = ln 3 = 1.098612.
  got = roc.auroc(np.array([3.0, 1.0, 2.0, 0.0]), np.array([1, 1, 0, 0]))
  half = 1.959964 * math.sqrt(0.125) / (0.75 * 0.25)
  assert got.value == 0.75
  assert got.low == pytest.approx(1 / (1 + math.exp(half - 1.098612)), abs=1e-6)
  assert got.high == pytest.approx(1 / (1 + math.exp(-half - 1.098612)), abs=1e-6)


def test_clustered_variance_against_obuchowski_sums():
  rng = np.random.default_rng(3)
  patients = np.repeat(np.arange(30), 3)
  labels = (rng.random(90) < 0.5).astype(np.int64)  # patients with both kinds of image
  scores = rng.normal(size=90) + labels + np.repeat(rng.normal(size=30), 3)
  area, v10, v01 = brute_components(scores, labels)
  p10, p01 = patients[labels == 1], patients[labels == 0]
  m, n = len(v10), len(v01)
  both = ten = one = 0.0
  for p in range(30):
    a = sum(v - area for v, q in zip(v10, p10, strict=True) if q == p)
    b = sum(v - area for v, q in zip(v01, p01, strict=True) if q == p)
    ten, one, both = ten + a * a, one + b * b, both + a * b
  i10, i01 = len(set(p10)), len(set(p01))
  expected = (
    i10 / ((i10 - 1) * m) * ten / m
    + i01 / ((i01 - 1) * n) * one / n
    + 2 * (30 / 29) * both / (m * n)
  )
  got = roc.auroc(scores, labels, [f"p{p}" for p in patients])
  assert variance_of(got) == pytest.approx(expected, rel=1e-9)
  assert "Obuchowski" in got.method


def test_repeating_every_image_of_a_patient_adds_no_certainty():
  scores, labels = data(0)
  once = roc.auroc(scores, labels, [str(i) for i in range(80)])
  naive = roc.auroc(np.tile(scores, 4), np.tile(labels, 4))
  aware = roc.auroc(np.tile(scores, 4), np.tile(labels, 4), [str(i % 80) for i in range(320)])
  assert aware.value == pytest.approx(once.value)
  assert aware.high - aware.low == pytest.approx(once.high - once.low, rel=1e-6)
  assert naive.high - naive.low < 0.6 * (once.high - once.low)


def test_one_image_per_patient_is_plain_delong():
  scores, labels = data(1)
  assert roc.auroc(scores, labels, [f"{i}" for i in range(80)]) == roc.auroc(scores, labels)


def test_interval_covers():
  """95 % of intervals hold the true area, 0.760 = Phi(1 / sqrt 2)."""
  rng = np.random.default_rng(7)
  labels = np.repeat([0, 1], 40)
  hits = 0
  for _ in range(400):
    got = roc.auroc(rng.normal(size=80) + labels, labels)
    hits += got.low <= 0.760250 <= got.high
  assert 0.92 <= hits / 400 <= 0.98


def test_degenerate_areas_keep_a_width():
  labels = np.array([0, 0, 0, 1, 1])
  perfect = roc.auroc(np.arange(5.0), labels)
  assert perfect.value == 1.0 and perfect.high == 1.0
  assert perfect.low == pytest.approx(intervals.wilson(1.0, 2)[0])
  assert roc.auroc(-np.arange(5.0), labels).value == 0.0
  constant = roc.auroc(np.ones(5), labels)
  assert constant.value == 0.5 and constant.low < 0.2 and constant.high > 0.8
  single = roc.auroc(np.array([0.0, 2.0, 1.0]), np.array([0, 0, 1]))
  assert single.value == 0.5 and single.high - single.low > 0.8 and "1 disjoint" in single.method


@pytest.mark.parametrize(
  "scores,labels,reason",
  [
    ([1.0, 2.0], [1, 1], "no negative image"),
    ([1.0, 2.0], [0, 0], "no positive image"),
    ([], [], "no image has a known label"),
    ([1.0, math.nan], [0, 1], "not finite"),
    ([1.0, math.inf], [0, 1], "not finite"),
  ],
)
def test_undefined(scores, labels, reason):
  got = roc.auroc(np.array(scores, np.float64), np.array(labels, np.int64))
  assert math.isnan(got.value) and reason in got.undefined


def test_unknown_labels_are_left_out():
  scores, labels = data(2)
  with_unknown = roc.auroc(
    np.append(scores, [9.0, -9.0]), np.append(labels.astype(np.float64), [np.nan, np.nan])
  )
  assert with_unknown == roc.auroc(scores, labels)
  with pytest.raises(ValueError, match="0, 1 or NaN"):
    roc.auroc(scores, labels + 1)


def test_macro_auroc():
  rng = np.random.default_rng(5)
  truth = rng.integers(0, 3, 120)
  labels = np.eye(3)[truth]
  scores = rng.normal(size=(120, 3)) + labels
  got = roc.macro_auroc(scores, labels)
  each = [roc.auroc(scores[:, c], labels[:, c]) for c in range(3)]
  assert got.value == pytest.approx(np.mean([e.value for e in each]))
  assert got.value == pytest.approx(roc_auc_score(labels, scores, average="macro"), abs=1e-12)
  alone = roc.macro_auroc(scores[:, :1], labels[:, :1])
  assert (alone.value, alone.low, alone.high) == pytest.approx(
    (each[0].value, each[0].low, each[0].high), abs=1e-12
  )
  # The same column three times is no more certain than once; independent ones are.
  copies = roc.macro_auroc(np.repeat(scores[:, :1], 3, 1), np.repeat(labels[:, :1], 3, 1))
  assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=1e-9)
  assert got.high - got.low < 0.8 * (alone.high - alone.low)


def brute_covariance(columns, labels):
  """DeLong's covariance matrix of several scores' areas of the same images."""
  _, v10, v01 = zip(*(brute_components(column, labels) for column in columns), strict=True)
  return np.cov(v10) / len(v10[0]) + np.cov(v01) / len(v01[0])


@pytest.mark.parametrize("positives", [2, 5, 30])
def test_macro_variance_is_delongs_covariance_summed(positives):
  rng = np.random.default_rng(positives)
  labels = np.arange(60) < positives
  scores = np.round(rng.normal(size=(60, 3)) + rng.normal(size=(60, 1)) + labels[:, None], 1)
  got = roc.macro_auroc(scores, np.repeat(labels[:, None], 3, 1).astype(np.float64))
  expected = brute_covariance(scores.T, labels).sum() / 9
  assert variance_of(got) == pytest.approx(expected, rel=1e-9)


def test_a_class_with_one_positive_does_not_count_as_certain():
  """Its share is the largest that it can be; alone it has the interval of `auroc`."""
  rng = np.random.default_rng(8)
  labels = np.stack([np.arange(50) < 20, np.arange(50) == 7], 1).astype(np.float64)
  scores = rng.normal(size=(50, 2)) + labels
  got, each = (
    roc.macro_auroc(scores, labels),
    [roc.auroc(scores[:, c], labels[:, c]) for c in range(2)],
  )
  a = each[1].value
  assert 0 < a < 1 and variance_of(got) > a * (1 - a) / 4
  alone = roc.macro_auroc(scores[:, 1:], labels[:, 1:])
  assert (alone.low, alone.high) == (each[1].low, each[1].high)
  gain = roc.auroc_difference(
    labels[:, 1:] + rng.normal(size=(50, 1)), scores[:, 1:], labels[:, 1:]
  )
  assert gain.p > 0.1


def test_macro_interval_against_resampling():
  rng = np.random.default_rng(6)
  labels = (rng.random((150, 2)) < 0.5).astype(np.float64)
  scores = rng.normal(size=(150, 2)) + labels + rng.normal(size=(150, 1))
  got = roc.macro_auroc(scores, labels)
  values = []
  for _ in range(600):
    rows = rng.integers(0, 150, 150)
    values.append(np.mean([roc_auc_score(labels[rows, c], scores[rows, c]) for c in range(2)]))
  assert variance_of(got) == pytest.approx(np.var(values), rel=0.2)


def test_macro_leaves_out_undefined_classes_and_unknown_labels():
  labels = np.array([[0, 1], [1, 1], [0, 1], [1, np.nan]], np.float64)
  scores = np.array([[0.1, 0], [0.9, 0], [0.4, 0], [0.3, 0]], np.float64)
  got = roc.macro_auroc(scores, labels)
  assert got.value == 0.75 and "1 of 2" in got.method
  assert "no class" in roc.macro_auroc(scores[:, 1:], labels[:, 1:]).undefined


@pytest.mark.parametrize("ties", [False, True])
def test_roc_curve_against_sklearn(ties):
  scores, labels = data(4, ties=ties)
  false, true, thresholds = roc.roc_curve(scores, labels)
  expected = sklearn_roc(labels, scores, drop_intermediate=False)
  np.testing.assert_allclose(false, expected[0])
  np.testing.assert_allclose(true, expected[1])
  np.testing.assert_allclose(thresholds, expected[2])
  assert np.trapezoid(true, false) == pytest.approx(roc.auroc(scores, labels).value)


def test_roc_curve_without_a_class_is_nan():
  false, true, _ = roc.roc_curve(np.array([1.0, 2.0]), np.array([1, 1]))
  assert np.isnan(false).all() and true.tolist() == [0, 0.5, 1]


def test_a_difference_is_obuchowskis_for_patients():
  rng = np.random.default_rng(5)
  patients = rng.integers(0, 25, 60)
  labels = (rng.random(60) < 0.4).astype(np.float64)
  common = rng.normal(size=60)
  a, b = (np.round(common + shift * labels + 0.7 * rng.normal(size=60), 1) for shift in (1.5, 0.8))
  (first, v10, v01), (second, w10, w01) = brute_components(a, labels), brute_components(b, labels)
  ten, one = v10 - w10 - (first - second), v01 - w01 - (first - second)
  p10, p01 = patients[labels == 1], patients[labels == 0]
  sums = [(ten[p10 == p].sum() / len(ten), one[p01 == p].sum() / len(one)) for p in range(25)]
  i10, i01, i = len(set(p10)), len(set(p01)), len(set(patients))
  variance = sum(
    i10 / (i10 - 1) * x * x + i01 / (i01 - 1) * y * y + 2 * i / (i - 1) * x * y for x, y in sums
  )
  names = [f"p{p}" for p in patients]
  found = roc.auroc_difference(a[:, None], b[:, None], labels[:, None], names)
  assert found.value == pytest.approx(first - second, abs=1e-12)
  half = intervals.quantile(0.95) * math.sqrt(variance)
  assert (found.high - found.low) / 2 == pytest.approx(half, rel=1e-9)
  back = roc.auroc_difference(b[:, None], a[:, None], labels[:, None], names)
  assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_a_differences_interval_is_the_bootstraps_over_patients():
  rng = np.random.default_rng(6)
  patient = np.repeat(np.arange(80), 3)
  labels = np.stack([rng.random(240) < p for p in (0.4, 0.6)], 1).astype(np.float64)
  labels[::7, 1] = np.nan
  common = rng.normal(size=(80, 1)).repeat(3, 0) + 0.5 * rng.normal(size=(240, 1))
  shown = np.nan_to_num(labels)
  a, b = (common + shift * shown + rng.normal(size=(240, 2)) for shift in (1.2, 0.9))
  found = roc.auroc_difference(a, b, labels, [str(p) for p in patient])
  means = [roc.macro_auroc(x, labels, [str(p) for p in patient]).value for x in (a, b)]
  assert found.value == pytest.approx(means[0] - means[1], abs=1e-12)

  def drawn():
    rows = (3 * rng.integers(80, size=80)[:, None] + np.arange(3)).ravel()
    return np.subtract(
      *(np.mean([roc.auroc(x[rows, c], labels[rows, c]).value for c in range(2)]) for x in (a, b))
    )

  spread = np.std([drawn() for _ in range(300)])
  assert (found.high - found.low) / 2 / 1.96 == pytest.approx(spread, rel=0.15)


def test_a_difference_of_the_same_scores_and_of_none():
  scores, labels = np.arange(6.0)[:, None], np.array([0.0, 1, 0, 1, 1, 0])[:, None]
  same = roc.auroc_difference(scores, scores, labels)
  assert (same.value, same.low, same.high) == (0, 0, 0)
  assert roc.auroc_difference(scores, scores, labels * 0).undefined == "no positive image"
  assert roc.auroc_difference(scores, scores * np.nan, labels).undefined == (
    "a score is not finite"
  )

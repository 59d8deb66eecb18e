"""Decisions' metrics against scikit-learn and by hand."""

import math

import numpy as np
import pytest
import sklearn.metrics as sk

from cxrjax.metrics import classification as c
from cxrjax.metrics import intervals, patient_bootstrap


def data(seed=0, classes=2, n=90):
  rng = np.random.default_rng(seed)
  truth = rng.integers(0, classes, n)
  predicted = np.where(rng.random(n) < 0.7, truth, rng.integers(0, classes, n))
  return predicted, truth


@pytest.mark.parametrize("classes", [2, 4])
def test_against_sklearn(classes):
  predicted, truth = data(classes, classes)
  np.testing.assert_array_equal(
    c.confusion(predicted, truth, classes), sk.confusion_matrix(truth, predicted)
  )
  assert c.score("accuracy", predicted, truth).value == pytest.approx(
    sk.accuracy_score(truth, predicted)
  )
  balanced = c.score("balanced_accuracy", predicted, truth, classes)
  assert balanced.value == pytest.approx(sk.balanced_accuracy_score(truth, predicted))
  f1 = c.score("f1", predicted, truth, classes)
  average = "binary" if classes == 2 else "macro"
  assert f1.value == pytest.approx(sk.f1_score(truth, predicted, average=average))
  for got in (balanced, f1):
    assert got.low < got.value < got.high and got.n == 90


def test_by_hand():
  # True positives 2, false negatives 1, false positives 1, true negatives 4.
  truth = np.array([1, 1, 1, 0, 0, 0, 0, 0])
  predicted = np.array([1, 1, 0, 1, 0, 0, 0, 0])
  assert c.score("accuracy", predicted, truth).value == 6 / 8
  assert c.score("balanced_accuracy", predicted, truth).value == pytest.approx((2 / 3 + 4 / 5) / 2)
  assert c.score("f1", predicted, truth).value == pytest.approx(4 / 6)
  got = c.score("accuracy", predicted, truth)
  assert (got.low, got.high) == intervals.wilson(0.75, 8) and got.method == "Wilson"


def test_patients_widen_the_interval():
  predicted, truth = data()
  patients = [str(i % 90) for i in range(360)]
  many = (np.tile(predicted, 4), np.tile(truth, 4))
  for measure in c.CRITERIA:
    once, naive = c.score(measure, predicted, truth), c.score(measure, *many)
    aware = c.score(measure, *many, patients=patients)
    assert aware.value == pytest.approx(once.value)
    assert aware.high - aware.low == pytest.approx(once.high - once.low, rel=0.1)
    assert naive.high - naive.low < 0.6 * (aware.high - aware.low)
    assert aware == c.score(measure, *many, patients=patients)  # deterministic


def test_perfect_decisions_keep_a_width():
  truth = np.array([0, 0, 0, 1, 1])
  patients = ["a", "a", "b", "c", "d"]
  for measure, trials in (("accuracy", 4), ("balanced_accuracy", 2), ("f1", 2)):
    got = c.score(measure, truth, truth, patients=patients)
    assert got.value == got.high == 1.0
    assert got.low == pytest.approx(intervals.wilson(1.0, trials)[0])
    assert f"{trials} patients" in got.method


def test_undefined():
  ones = np.ones(3, np.int64)
  empty = np.zeros(0, np.int64)
  assert "known label" in c.score("accuracy", empty, empty).undefined
  assert c.score("balanced_accuracy", ones, ones).undefined == "no image of class 0"
  assert c.score("f1", 0 * ones, 0 * ones).undefined == "no positive image"
  assert math.isnan(c.score("f1", ones, 0 * ones).value)
  assert c.score("f1", ones, ones, 3).undefined == "no image of class 0"
  assert (
    c.score("f1", 0 * ones, ones).value == 0.0
  )  # positives exist and none is found: that is a zero


def test_findings():
  rng = np.random.default_rng(1)
  labels = (rng.random((70, 3)) < 0.4).astype(np.float64)
  calls = np.where(rng.random((70, 3)) < 0.75, labels, 1 - labels) == 1
  labels[rng.random((70, 3)) < 0.2] = np.nan
  known = ~np.isnan(labels)
  for measure, metric in (
    ("accuracy", sk.accuracy_score),
    ("balanced_accuracy", sk.balanced_accuracy_score),
    ("f1", sk.f1_score),
  ):
    expected = np.mean([metric(labels[known[:, k], k], calls[known[:, k], k]) for k in range(3)])
    got = patient_bootstrap.interval(c.findings(measure, calls, labels))
    assert got.value == pytest.approx(expected)
    assert got.low < got.value < got.high
  # A finding nobody has defines no F1; the others still do.
  labels[:, 0] = np.where(known[:, 0], 0, np.nan)
  expected = np.mean([sk.f1_score(labels[known[:, k], k], calls[known[:, k], k]) for k in (1, 2)])
  assert c.findings("f1", calls, labels).value == pytest.approx(expected)
  assert "no finding" in c.findings("f1", calls, np.full((70, 3), np.nan)).undefined
  with pytest.raises(ValueError, match="valid: balanced_accuracy"):
    c.findings("recall", calls, labels)


@pytest.mark.parametrize(
  "criterion,metric",
  [
    ("balanced_accuracy", sk.balanced_accuracy_score),
    ("f1", sk.f1_score),
    ("accuracy", sk.accuracy_score),
  ],
)
def test_best_threshold_is_best_of_all(criterion, metric):
  rng = np.random.default_rng(2)
  labels = (rng.random(60) < 0.3).astype(np.int64)
  scores = np.round(rng.normal(size=60) + labels, 1)
  threshold = c.best_threshold(scores, labels, criterion)
  tried = [metric(labels, scores >= t) for t in [*np.unique(scores), 99.0]]
  assert metric(labels, scores >= threshold) == pytest.approx(max(tried))


def test_best_threshold_ends_and_refusals():
  scores = np.array([1.0, 2.0, 3.0, 4.0])
  assert c.best_threshold(scores, np.array([0, 0, 1, 1])) == 2.5
  assert c.best_threshold(scores, np.array([0, 0, np.nan, 1])) == 3.0
  assert math.isnan(c.best_threshold(scores, np.ones(4, np.int64)))
  assert math.isnan(c.best_threshold(scores * np.nan, np.array([0, 0, 1, 1])))
  # Accuracy of useless scores with rare positives: call nobody, which needs a threshold above all.
  assert c.best_threshold(scores[::-1].copy(), np.array([0, 0, 0, 1]), "accuracy") > 4.0
  # And with rare negatives: call everybody.
  assert c.best_threshold(scores[::-1].copy(), np.array([0, 1, 1, 1]), "accuracy") <= 1.0
  with pytest.raises(ValueError, match="criterion"):
    c.best_threshold(scores, np.array([0, 0, 1, 1]), "recall")

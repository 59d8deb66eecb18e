"""Average precision and its bootstrap against scikit-learn, brute force and by hand."""

import itertools
import math

import numpy as np
import pytest
import sklearn.metrics as sk

from cxrjax.metrics import intervals, precision_recall


def made(seed=0, n=90, k=1, ties=False):
  rng = np.random.default_rng(seed)
  labels = (rng.random((n, k)) < 0.3).astype(np.float64)
  scores = rng.normal(size=(n, k)) + labels
  return (np.round(scores, 1) if ties else scores), labels


@pytest.mark.parametrize("seed,ties", [*itertools.product(range(3), (False, True))])
def test_against_sklearn(seed, ties):
  scores, labels = made(seed, ties=ties)
  got = precision_recall.auprc(scores, labels)
  assert got.value == pytest.approx(sk.average_precision_score(labels[:, 0], scores[:, 0]))
  assert got.low < got.value < got.high and got.n == 90
  recall, share, thresholds = precision_recall.curve(scores[:, 0], labels[:, 0])
  p, r, t = sk.precision_recall_curve(labels[:, 0], scores[:, 0], drop_intermediate=False)
  np.testing.assert_allclose(recall[::-1], r[:-1])
  np.testing.assert_allclose(share[::-1], p[:-1])
  np.testing.assert_allclose(thresholds[::-1], t)


def test_by_hand():
  # Positives rank first and third: (1/1 + 2/3) / 2.
  scores, labels = np.array([[4.0], [3.0], [2.0], [1.0]]), np.array([[1.0], [0], [1], [0]])
  assert precision_recall.auprc(scores, labels).value == pytest.approx((1 + 2 / 3) / 2)
  # One score for all: the share of positives.
  assert precision_recall.auprc(np.ones((4, 1)), labels).value == 0.5


def test_classes_and_unknown_labels():
  scores, labels = made(1, k=3)
  labels[np.random.default_rng(5).random(labels.shape) < 0.2] = np.nan
  known = ~np.isnan(labels)
  each = [
    sk.average_precision_score(labels[known[:, c], c], scores[known[:, c], c]) for c in range(3)
  ]
  assert precision_recall.auprc(scores, labels).value == pytest.approx(np.mean(each))
  labels[:, 0] = 0
  found = precision_recall.auprc(scores, labels)
  assert found.value == pytest.approx(np.mean(each[1:])) and "2 of 3 defined" in found.method
  alone = precision_recall.auprc(scores[:, :1], labels[:, :1])
  assert math.isnan(alone.value) and alone.undefined == "no positive image"


def test_the_interval_is_a_patient_bootstrap():
  scores, labels = made(2, n=80)
  patients = [f"p{i // 2}" for i in range(80)]
  got = precision_recall.auprc(scores, labels, patients)
  rng, values = np.random.default_rng(1), []
  for _ in range(2000):
    rows = np.concatenate([[2 * q, 2 * q + 1] for q in rng.integers(0, 40, 40)])
    values.append(sk.average_precision_score(labels[rows, 0], scores[rows, 0]))
  low, high = np.quantile(values, [0.025, 0.975])
  assert got.low == pytest.approx(low, abs=0.015) and got.high == pytest.approx(high, abs=0.015)
  assert got == precision_recall.auprc(scores, labels, patients)


def test_perfect_scores_keep_a_width():
  labels = np.array([[0.0], [0], [1], [1], [1]])
  got = precision_recall.auprc(np.arange(5.0)[:, None], labels)
  assert got.value == got.high == 1.0
  assert got.low == pytest.approx(intervals.wilson(1.0, 3)[0])


def test_difference_is_paired():
  scores, labels = made(3, n=150)
  worse = scores + np.random.default_rng(0).normal(size=scores.shape)
  gain = precision_recall.difference(scores, worse, labels)
  a, b = (precision_recall.auprc(x, labels) for x in (scores, worse))
  assert gain.value == pytest.approx(a.value - b.value)
  assert 0 < gain.p <= 1
  same = precision_recall.difference(scores, scores, labels)
  assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
  # Nearly the same scores: the pairing leaves little doubt, unpaired intervals much.
  near = precision_recall.difference(scores, scores + 0.01 * worse, labels)
  assert near.high - near.low < 0.3 * (a.high - a.low)
  assert math.isnan(precision_recall.difference(scores, worse, 0 * labels).value)


def test_large_sets_are_resampled_less(monkeypatch):
  scores, labels = made(4, n=200)
  asked = []
  original = np.random.default_rng

  class Counting:
    def __init__(self, seed):
      self.rng = original(seed)

    def integers(self, low, high, shape):
      asked.append(shape[0])
      return self.rng.integers(low, high, shape)

  monkeypatch.setattr(np.random, "default_rng", Counting)
  monkeypatch.setattr(precision_recall, "WORK", 200 * 700)
  precision_recall.auprc(scores, labels)
  assert sum(asked) == 700
  asked.clear()
  monkeypatch.setattr(precision_recall, "WORK", 200)
  precision_recall.auprc(scores, labels)
  assert sum(asked) == precision_recall.LEAST

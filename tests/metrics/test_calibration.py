"""Brier, ECE, log loss and temperature against scikit-learn, brute force and by hand."""

import math

import numpy as np
import pytest
import scipy.special
import sklearn.metrics as sk

from cxrjax.metrics import calibration as c
from cxrjax.metrics import patient_bootstrap


def made(classes, n=200, seed=0, sharp=1.0):
  """Labels drawn from the probabilities, which are then made `sharp` times as sure."""
  rng = np.random.default_rng(seed)
  logits = 1.5 * rng.normal(size=(n, classes))
  p = scipy.special.softmax(logits, 1)
  truth = (rng.random(n)[:, None] > p.cumsum(1)).sum(1)
  labels = np.eye(classes, dtype=np.float32)[truth]
  return scipy.special.softmax(sharp * logits, 1), labels, truth


def made_findings(n=300, k=3, seed=0):
  rng = np.random.default_rng(seed)
  p = 0.02 + 0.96 * rng.random((n, k))
  labels = (rng.random((n, k)) < p).astype(np.float32)
  labels[rng.random((n, k)) < 0.2] = np.nan
  return p, labels


def brute_ece(p, came, bins=15):
  total = 0.0
  for b in range(bins):
    inside = [
      i for i, v in enumerate(p) if b / bins <= v < (b + 1) / bins or (b == bins - 1 and v == 1)
    ]
    if inside:
      total += (
        abs(np.mean([p[i] for i in inside]) - np.mean([came[i] for i in inside]))
        * len(inside)
        / len(p)
      )
  return total


def test_two_classes_against_sklearn():
  p, labels, truth = made(2)
  assert c.brier(p, labels, True).value == pytest.approx(sk.brier_score_loss(truth, p[:, 1]))
  assert c.nll(p, labels, True).value == pytest.approx(sk.log_loss(truth, p))
  assert c.ece(p, labels, True).value == pytest.approx(brute_ece(p[:, 1], truth))


def test_many_classes():
  p, labels, truth = made(4)
  assert c.brier(p, labels, True).value == pytest.approx(np.mean(((p - labels) ** 2).sum(1)))
  assert c.nll(p, labels, True).value == pytest.approx(sk.log_loss(truth, p))
  assert c.ece(p, labels, True).value == pytest.approx(brute_ece(p.max(1), p.argmax(1) == truth))
  labels[:50] = np.nan
  assert c.nll(p, labels, True).value == pytest.approx(
    sk.log_loss(truth[50:], p[50:], labels=range(4))
  )
  assert c.brier(p, labels, True).n == c.ece(p, labels, True).n == 150


def test_findings_are_means_over_findings():
  p, labels = made_findings()
  known = ~np.isnan(labels)
  for measure, one in (
    (c.brier, sk.brier_score_loss),
    (c.nll, sk.log_loss),
    (c.ece, lambda y, q: brute_ece(q, y)),
  ):
    each = [one(labels[known[:, k], k].astype(int), p[known[:, k], k]) for k in range(3)]
    assert measure(p, labels, False).value == pytest.approx(np.mean(each))
  labels[:, 1] = np.nan
  assert c.brier(p, labels, False).value == pytest.approx(
    np.mean([sk.brier_score_loss(labels[known[:, k], k], p[known[:, k], k]) for k in (0, 2)])
  )
  assert "known label" in c.ece(p, np.full_like(p, np.nan), False).undefined
  assert math.isnan(c.ece_by_chance(p, np.full_like(p, np.nan), False)[0])


def test_by_hand():
  # Two images at .9 of which one is positive, two at .2 of which none is.
  p = np.array([0.9, 0.9, 0.2, 0.2])
  p, labels = np.stack([1 - p, p], 1), np.eye(2)[[1, 0, 0, 0]]
  assert c.ece(p, labels, True).value == pytest.approx((2 * 0.4 + 2 * 0.2) / 4)
  assert c.brier(p, labels, True).value == pytest.approx((0.01 + 0.81 + 0.04 + 0.04) / 4)
  assert c.nll(p, labels, True).value == pytest.approx(
    -(math.log(0.9) + math.log(0.1) + 2 * math.log(0.8)) / 4
  )
  bins = c.reliability(p, labels, True)
  assert [(b["n"], b["came"], round(b["probability"], 6)) for b in bins] == [
    (2, 0, 0.2),
    (2, 1, 0.9),
  ]
  assert bins[0]["low"] <= 0.2 < bins[0]["high"]
  # An impossible event that happens costs no more than 12 log 10.
  sure = np.array([[1.0, 0.0]])
  assert c.nll(sure, np.array([[0.0, 1.0]]), True).value == pytest.approx(12 * math.log(10))


@pytest.mark.parametrize("classes", [2, 4])
def test_temperature_finds_what_made_it_too_sure(classes):
  p, labels, truth = made(classes, n=4000, sharp=2.5)
  t, remarks = c.temperature(p, labels, True)
  assert t[0] == pytest.approx(2.5, rel=0.08) and not remarks
  # No other temperature has a lower loss.
  loss = lambda u: sk.log_loss(truth, c.scaled(p, np.array([u]), True))  # noqa: E731
  assert loss(t[0]) < min(loss(0.98 * t[0]), loss(1.02 * t[0]), loss(1.0))
  np.testing.assert_allclose(c.scaled(p, np.array([1.0]), True), p, rtol=1e-9)


def test_temperatures_of_findings():
  p, labels = made_findings(n=4000, k=2)
  sure = scipy.special.expit(3 * scipy.special.logit(p))
  t, remarks = c.temperature(sure, labels, False)
  assert t == pytest.approx([3, 3], rel=0.12) and not remarks
  np.testing.assert_allclose(c.scaled(sure, np.array([3.0, 3.0]), False), p, rtol=1e-6)
  labels[:, 1] = 1
  t, remarks = c.temperature(sure, labels, False)
  assert t[1] == 1 and "label 1" in remarks[0] and "all of one class" in remarks[0]


@pytest.mark.parametrize("now", [(0.2, 0.8), (0.5, 0.5), (0.97, 0.03)])
def test_the_prevalence_of_two_gaussians_is_found(now):
  rng = np.random.default_rng(0)
  y = rng.random(20_000) < now[1]
  x = rng.normal(np.where(y, 1.0, -1.0))

  def posterior(prior):
    odds = prior[1] / prior[0] * np.exp(2 * x)  # of N(1, 1) against N(-1, 1)
    return np.stack([1 / (1 + odds), odds / (1 + odds)], 1)

  before = np.array([0.3, 0.7])
  p = posterior(before)
  found = c.prevalence(p, before)
  np.testing.assert_allclose(found, now, atol=0.02)
  np.testing.assert_allclose(c.at_prevalence(p, before, np.array(now)), posterior(now), rtol=1e-9)

  # The likelihood of these probabilities is nowhere larger.
  def likelihood(share):
    return np.log(p @ (np.array([1 - share, share]) / before)).mean()

  assert likelihood(found[1]) >= max(likelihood(found[1] + d) for d in (-1e-3, 1e-3))


def test_a_bias_of_the_logits_is_found():
  true, labels, _ = made(3, n=20_000)
  biased = scipy.special.softmax(2 * np.log(true) + [1.0, 0.0, -1.5], 1)
  found = c.bias_corrected(biased, labels, biased)
  np.testing.assert_allclose(found, true, atol=0.02)
  sure, one_hot = np.array([[1.0, 0.0], [0.0, 1.0]]), np.eye(2)
  assert np.isfinite(c.bias_corrected(sure, one_hot, sure)).all()  # classes that are separated
  nothing = np.full((2, 2), np.nan)
  np.testing.assert_allclose(
    c.bias_corrected(sure, nothing, true[:, :2] / true[:, :2].sum(1, keepdims=True)),
    true[:, :2] / true[:, :2].sum(1, keepdims=True),
    atol=1e-9,
  )


def test_what_determines_no_temperature():
  p = np.array([[0.6, 0.4], [0.7, 0.3], [0.3, 0.7]])
  t, remarks = c.temperature(p, np.eye(2)[[0, 0, 1]], True)
  assert t == [1.0] and "without error" in remarks[0]
  t, remarks = c.temperature(p, np.eye(2)[[0, 0, 0]], True)
  assert t == [1.0] and "all of one class" in remarks[0]
  t, remarks = c.temperature(p, np.full((3, 2), np.nan), True)
  assert t == [1.0] and "no validation image" in remarks[0]


def test_sure_predictions_stay_apart():
  """A softmax in single precision: 1 to all digits for one class, small numbers for the other."""
  p = np.array([[1.0, 1e-12], [1.0, 1e-9], [1.0, 1e-10]], np.float32)
  found = c.scaled(p, np.ones(1), True)[:, 1]
  assert np.argsort(found).tolist() == [0, 2, 1]
  assert np.isfinite(c.scaled(np.array([[1.0, 0.0]]), np.ones(1), True)).all()
  assert np.isfinite(c.scaled(np.array([[1.0], [0.0]]), np.ones(1), False)).all()


def test_chance_makes_an_ece_of_calibrated_predictions():
  found, chance = [], []
  for seed in range(40):
    p, labels, _ = made(2, n=120, seed=seed)
    found.append(c.ece_interval(p, labels, True))
    chance.append(c.ece_by_chance(p, labels, True))
  mean, most = np.mean(chance, 0)
  assert np.mean([f.value for f in found]) == pytest.approx(mean, rel=0.12)
  assert np.mean([f.value > most for f in found]) <= 0.15
  # The true error is 0: most intervals begin there, and all reach above their estimate or to it.
  assert np.mean([f.low == 0 for f in found]) >= 0.9
  assert all(f.low <= f.value <= f.high for f in found)


def test_an_error_that_is_there_is_covered():
  p, labels, _ = made(2, n=200_000, seed=99, sharp=2.0)
  true = c.ece(p, labels, True).value
  found = [c.ece_interval(*made(2, n=400, seed=s, sharp=2.0)[:2], True) for s in range(40)]
  assert np.mean([f.low <= true <= f.high for f in found]) >= 0.85
  assert np.mean([f.low > 0 for f in found]) >= 0.8


def test_patients_widen_intervals():
  p, labels, _ = made(2, n=80)
  patients = [str(i % 80) for i in range(320)]
  many = (np.tile(p, (4, 1)), np.tile(labels, (4, 1)))
  for measure in (c.brier, c.nll):
    once = patient_bootstrap.interval(measure(p, labels, True), bounded=False)
    aware = patient_bootstrap.interval(measure(*many, True, patients), bounded=False)
    naive = patient_bootstrap.interval(measure(*many, True), bounded=False)
    assert aware.value == pytest.approx(once.value)
    assert aware.high - aware.low == pytest.approx(once.high - once.low, rel=0.1)
    assert naive.high - naive.low < 0.6 * (aware.high - aware.low)
  assert c.ece_by_chance(*many, True, patients)[0] == pytest.approx(
    c.ece_by_chance(p, labels, True)[0], rel=0.05
  )

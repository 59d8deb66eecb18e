"""The linear probe against scikit-learn's optimum."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from cxrjax.evals import linear


def data(n=300, d=20, classes=2, seed=0):
  rng = np.random.default_rng(seed)
  mix = rng.normal(size=(d, d)) * np.exp(-np.arange(d) / 3)[:, None]  # spread over many scales
  x = (rng.normal(size=(n, d)) @ mix + 3).astype(np.float32)
  logits = (x - 3) @ rng.normal(size=(d, classes)) * 0.6
  y = np.argmax(logits + rng.gumbel(size=logits.shape), 1)
  return x, y, np.eye(classes, dtype=np.float32)[y]


def sklearn(x, y, l2, n):
  return LogisticRegression(C=1 / (l2 * n), solver="newton-cg", tol=1e-9, max_iter=500).fit(x, y)


@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
def test_two_classes(l2):
  x, y, labels = data()
  probe = linear.fit(x, labels, True, (l2,))[0]
  scaler = StandardScaler().fit(x.astype(np.float64))
  expected = sklearn(scaler.transform(x.astype(np.float64)), y, l2, 300)
  np.testing.assert_allclose(
    probe.weight[:, 1] - probe.weight[:, 0], expected.coef_[0], rtol=1e-4, atol=1e-5
  )
  test = data(seed=1)[0].astype(np.float64)
  np.testing.assert_allclose(
    probe.scores(test), expected.predict_proba(scaler.transform(test)), atol=5e-5
  )


@pytest.mark.parametrize("l2", [1e-3, 1e-1])
def test_multinomial(l2):
  x, y, labels = data(classes=4)
  probe = linear.fit(x, labels, True, (l2,))[0]
  scaler = StandardScaler().fit(x.astype(np.float64))
  expected = sklearn(scaler.transform(x.astype(np.float64)), y, l2, 300)
  np.testing.assert_allclose(
    probe.scores(x), expected.predict_proba(scaler.transform(x.astype(np.float64))), atol=1e-5
  )


def test_findings_with_unknown_labels():
  x, _, labels = data(classes=3)
  labels = np.concatenate([labels, 1 - labels[:, :1]], 1)
  labels[np.random.default_rng(0).random(labels.shape) < 0.2] = np.nan
  labels[:, 2] = np.where(np.isnan(labels[:, 2]), np.nan, 0)  # a finding never seen
  probe = linear.fit(x, labels, False, (1e-2,))[0]
  scaled = StandardScaler().fit_transform(x.astype(np.float64))
  scores = probe.scores(x)
  for c in (0, 1, 3):
    known = ~np.isnan(labels[:, c])
    expected = sklearn(scaled[known], labels[known, c], 1e-2, known.sum())
    np.testing.assert_allclose(scores[:, c], expected.predict_proba(scaled)[:, 1], atol=1e-5)
  assert np.isnan(scores[:, 2]).all() and probe.fitted.tolist() == [True, True, False, True]


def test_path_equals_single_fits_in_any_order():
  x, _, labels = data()
  grid = (1.0, 1e-4, 1e-2)
  for l2, probe in zip(grid, linear.fit(x, labels, True, grid), strict=True):
    alone = linear.fit(x, labels, True, (l2,))[0]
    np.testing.assert_allclose(probe.weight, alone.weight, atol=1e-4)


def test_separable_wide_constant_and_copied_features():
  rng = np.random.default_rng(0)
  y = np.arange(30) % 2
  x = rng.normal(size=(30, 100)).astype(np.float32)  # more features than images: separable
  x[:, 1] = x[:, 0]
  x[:, 2] = 7.3
  probe = linear.fit(x, np.eye(2, dtype=np.float32)[y], True, (1e-5,))[0]
  assert ((probe.scores(x)[:, 1] > 0.5) == y).all()
  assert np.isfinite(probe.weight).all() and abs(probe.weight[2, 1]) < 1e-12
  # Equal at the minimum; where L-BFGS stops depends on the order of additions.
  np.testing.assert_allclose(probe.weight[0], probe.weight[1], atol=1e-4)


def test_collapsed_features_give_the_prevalence():
  labels = np.eye(2, dtype=np.float32)[[0, 1, 1, 1]]
  probe = linear.fit(np.ones((4, 3), np.float32), labels, True, (1e-2,))[0]
  np.testing.assert_allclose(probe.scores(np.ones((2, 3), np.float32))[:, 1], 0.75, atol=1e-6)


def test_an_exclusive_class_missing_in_training_has_no_score():
  x, _, labels = data(classes=3)
  kept = labels[:, 1] == 0
  probe = linear.fit(x[kept], labels[kept], True, (1e-2,))[0]
  scores = probe.scores(x)
  assert np.isnan(scores[:, 1]).all()
  np.testing.assert_allclose(scores[:, [0, 2]].sum(1), 1, atol=1e-6)


def test_choose_takes_the_best_on_validation():
  x, _, labels = data(n=60, d=40, seed=3)
  choice = linear.choose(x[:40], labels[:40], x[40:], labels[40:], True)
  best = max(area for _, area, _ in choice.table)
  picked = {l2: area for l2, area, _ in choice.table}
  assert picked[choice.l2] == pytest.approx(best, abs=1e-6)
  assert [l2 for l2, _, _ in choice.table] == list(linear.GRID)
  again = linear.choose(x[:40], labels[:40], x[40:], labels[40:], True)
  np.testing.assert_array_equal(again.probe.weight, choice.probe.weight)


def test_choose_by_log_loss_where_validation_has_one_class():
  x, y, labels = data(n=120)
  one = y[80:] == 1
  choice = linear.choose(x[:80], labels[:80], x[80:][one], labels[80:][one], True)
  losses = {l2: loss for l2, _, loss in choice.table}
  assert all(np.isnan(area) for _, area, _ in choice.table)
  assert choice.l2 == min(losses, key=losses.get)


def test_log_loss_by_hand():
  got = linear.log_loss(np.array([[0.5], [0.25]]), np.array([[1.0], [0.0]]))
  assert got == pytest.approx((np.log(2) - np.log(0.75)) / 2)
  assert np.isnan(linear.log_loss(np.array([[0.5]]), np.array([[np.nan]])))

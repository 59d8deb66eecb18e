"""Differences of counted metrics, their p values, and DeLong's test."""

import math

import numpy as np
import pytest
import scipy.stats

from cxrjax.metrics import classification as c
from cxrjax.metrics import intervals, patient_bootstrap, roc


def made(seed=0, n=150, right=(0.8, 0.7)):
  rng = np.random.default_rng(seed)
  truth = rng.integers(0, 2, n)
  calls = [np.where(rng.random(n) < p, truth, 1 - truth) for p in right]
  return truth, *calls


def rates(call, truth):
  """Sensitivity, specificity and accuracy, along the last axis."""
  hit = call == truth
  found = (hit & (truth == 1)).sum(-1) / (truth == 1).sum(-1)
  left = (hit & (truth == 0)).sum(-1) / (truth == 0).sum(-1)
  return {"sensitivity": found, "hm": 2 * found * left / (found + left), "accuracy": hit.mean(-1)}


@pytest.mark.parametrize("measure", ["sensitivity", "hm", "accuracy"])
def test_a_difference_is_a_paired_bootstrap(measure):
  truth, a, b = made()
  patients = [f"p{i // 3}" for i in range(150)]
  got = patient_bootstrap.difference(*(c.decisions(measure, x, truth, 2, patients) for x in (a, b)))

  def gain(rows):
    return rates(a[rows], truth[rows])[measure] - rates(b[rows], truth[rows])[measure]

  assert got.value == pytest.approx(gain(slice(None)))
  drawn = np.random.default_rng(1).integers(0, 50, (4000, 50, 1))
  low, high = np.quantile(gain((3 * drawn + np.arange(3)).reshape(4000, -1)), [0.025, 0.975])
  assert got.low == pytest.approx(low, abs=0.02) and got.high == pytest.approx(high, abs=0.02)
  assert (got.p < 0.05) == (got.low > 0 or got.high < 0)


def test_p_values():
  values = np.arange(-5, 95) + 0.5  # 5 of 100 below 0
  assert intervals.p_value(values) == pytest.approx(2 * 6 / 101)
  assert intervals.p_value(np.zeros(99)) == 1.0
  assert intervals.p_value(np.full(99, 3.0)) == pytest.approx(2 / 100)
  assert math.isnan(intervals.p_value(np.full(99, np.nan)))


def test_p_values_are_uniform_where_there_is_no_difference():
  rng = np.random.default_rng(3)
  ps, areas = [], []
  for seed in range(150):
    truth, a, b = made(seed, n=120, right=(0.75, 0.75))
    ps.append(
      patient_bootstrap.difference(*(c.decisions("balanced_accuracy", x, truth) for x in (a, b))).p
    )
    scores = rng.normal(size=(120, 2)) + truth[:, None]
    areas.append(roc.auroc_difference(scores[:, :1], scores[:, 1:], truth[:, None].astype(float)).p)
  assert 0.01 <= np.mean(np.array(ps) < 0.05) <= 0.1
  assert 0.01 <= np.mean(np.array(areas) < 0.05) <= 0.1
  assert scipy.stats.kstest(areas, "uniform").pvalue > 0.01


# Albumin, total protein, K-G score and whether an operation helped, of 43 patients of DeLong,
# DeLong and Clarke-Pearson 1988, as the example on ROC curves in SAS/STAT's manual has them.
OPERATED = np.fromstring(
  """
  3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0
  1.6 5.6 5 1  3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1
  4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1
  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1
  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1
  3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1
  3.6 6.6 5 1""",
  sep=" ",
).reshape(-1, 4)


def test_delongs_own_example():
  """Areas, deviations of the differences and p values as published."""
  albumin, protein, kg, helped = OPERATED.T[..., None]
  test = lambda a, b: roc.auroc_difference(a, b, helped)  # noqa: E731
  areas = [roc.auroc(x[:, 0], helped[:, 0]).value for x in (albumin, protein, 10 - kg)]
  assert areas == pytest.approx([0.7366, 0.6478, 0.7258], abs=5e-5)
  found = test(protein, 10 - kg)
  assert found.p == pytest.approx(0.4561, abs=5e-5)
  assert (found.high - found.low) / 2 / intervals.quantile(0.95) == pytest.approx(0.1046, abs=5e-5)


@pytest.mark.parametrize("positives", [2, 5, 15, 28])
def test_delong_test_by_brute_force(positives):
  """z from the covariance of all pairs' placement values, DeLong's equations 3 to 6."""
  rng = np.random.default_rng(0)
  y = (np.arange(70) < positives).astype(float)
  a = rng.normal(size=70) + 1.2 * y
  b = a + rng.normal(size=70)
  psi = lambda u, v: 1.0 if u > v else 0.5 if u == v else 0.0  # noqa: E731
  v10, v01, area = [], [], []
  for s in (a, b):
    table = np.array([[psi(u, v) for v in s[y == 0]] for u in s[y == 1]])
    v10.append(table.mean(1))
    v01.append(table.mean(0))
    area.append(table.mean())
  m, n = len(v10[0]), len(v01[0])
  s = np.cov(v10) / m + np.cov(v01) / n
  z = (area[0] - area[1]) / math.sqrt(s[0, 0] + s[1, 1] - 2 * s[0, 1])
  got = roc.auroc_difference(a[:, None], b[:, None], y[:, None])
  assert got.value == pytest.approx(area[0] - area[1])
  assert got.p == pytest.approx(2 * scipy.stats.norm.sf(abs(z)), abs=1e-9)
  alone = roc.auroc_difference(a[:, None], b[:, None], y[:, None], [str(i) for i in range(70)])
  assert alone == got
  same = roc.auroc_difference(a[:, None], a[:, None], y[:, None])
  assert (same.value, same.p) == (0.0, 1.0)
  apart = roc.auroc_difference(y[:, None], -y[:, None], y[:, None])
  assert apart.value == 1.0 and math.isnan(apart.p)


def test_what_is_undefined_stays_so():
  truth, a, b = made()
  found = patient_bootstrap.difference(*(c.decisions("sensitivity", x, 0 * truth) for x in (a, b)))
  assert math.isnan(found.value) and math.isnan(found.p)
  assert found.undefined == "no positive image"
  with pytest.raises(ValueError, match="same images"):
    patient_bootstrap.difference(
      c.decisions("accuracy", a, truth), c.decisions("accuracy", b[1:], truth[1:])
    )


def test_rates_by_hand():
  # True positives 2, false negatives 1, false positives 1, true negatives 4.
  truth = np.array([1, 1, 1, 0, 0, 0, 0, 0])
  calls = np.array([1, 1, 0, 1, 0, 0, 0, 0])
  found = {m: c.decisions(m, calls, truth) for m in ("sensitivity", "specificity", "hm")}
  assert found["sensitivity"].value == pytest.approx(2 / 3) and found["sensitivity"].n == 3
  assert found["specificity"].value == pytest.approx(4 / 5)
  assert found["hm"].value == pytest.approx(2 * (2 / 3) * 0.8 / (2 / 3 + 0.8))
  got = patient_bootstrap.interval(found["specificity"])
  assert (got.low, got.high) == intervals.wilson(0.8, 5) and got.method == "Wilson"
  assert c.decisions("hm", 1 - truth, truth).value == 0.0  # all calls wrong
  nobody = c.decisions("hm", calls, 0 * truth)
  assert nobody.undefined == "no positive image" and math.isnan(nobody.value)
  assert c.decisions("specificity", calls, 1 + 0 * truth).undefined == "no negative image"


def test_one_class_against_the_rest():
  rng = np.random.default_rng(2)
  truth, calls = rng.integers(0, 4, 120), rng.integers(0, 4, 120)
  for measure in ("sensitivity", "specificity", "hm", "f1"):
    each = [c.decisions(measure, calls, truth, 4, of=k).value for k in range(4)]
    two = [
      c.decisions(measure, (calls == k).astype(int), (truth == k).astype(int)).value
      for k in range(4)
    ]
    assert each == two
    assert c.decisions(measure, calls, truth, 4).value == pytest.approx(np.mean(each))
  with pytest.raises(ValueError, match="valid: balanced_accuracy"):
    c.decisions("recall", calls, truth)

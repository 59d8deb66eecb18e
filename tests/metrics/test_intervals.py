"""Intervals against hand-checked values and simulation."""

import math

import numpy as np
import pytest

from cxrjax.metrics import intervals


def test_wilson_hand_checked():
  # 81 of 263 from Newcombe 1998 (Stat. Med. 17:857, table I): 0.2553 to 0.3662.
  low, high = intervals.wilson(81 / 263, 263)
  assert low == pytest.approx(0.2553, abs=5e-5)
  assert high == pytest.approx(0.3662, abs=5e-5)
  # 0 of 20 and 1 of 29, the same table: 0 to 0.1611, 0.0061 to 0.1718.
  assert intervals.wilson(0.0, 20) == (0.0, pytest.approx(0.1611, abs=5e-5))
  assert intervals.wilson(1 / 29, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_wilson_has_width_at_the_ends_and_rejects_no_trials():
  low, high = intervals.wilson(1.0, 10)
  assert high == 1.0 and low == pytest.approx(1 - intervals.wilson(0.0, 10)[1])
  with pytest.raises(ValueError, match="at least 1"):
    intervals.wilson(0.5, 0)


def test_quantile():
  assert intervals.quantile(0.95) == pytest.approx(1.959964, abs=1e-6)
  with pytest.raises(ValueError, match="between 0 and 1"):
    intervals.quantile(1.0)


def test_undefined_is_nan_with_a_reason():
  u = intervals.undefined("no positive image", 3)
  assert math.isnan(u.value) and math.isnan(u.low) and math.isnan(u.high)
  assert u.n == 3 and u.undefined == "no positive image"
  assert "no positive image" in str(u)
  assert str(intervals.Interval(0.5, 0.25, 0.75, 9, "x")) == "0.500 (0.250 to 0.750)"


def test_clusters():
  index, count = intervals.clusters(["b", "a", "b", "", ""], 5)
  assert count == 4 and index[0] == index[2] and len(set(index.tolist())) == 4
  index, count = intervals.clusters(None, 3)
  assert count == 3 and index.tolist() == [0, 1, 2]
  with pytest.raises(ValueError, match="2 patients for 3 images"):
    intervals.clusters(["a", "b"], 3)


def test_bootstrap_is_a_patient_bootstrap():
  """Drawing kinds of patients gives the distribution of drawing patients one by one."""
  rng = np.random.default_rng(0)
  images = rng.integers(1, 5, 60)
  right = rng.binomial(images, rng.beta(2, 1, 60))
  counts = np.stack([right, images], 1).astype(np.float64)
  ratio = lambda t: t[:, 0] / t[:, 1]  # noqa: E731
  low, high = intervals.bootstrap(counts, ratio, replicates=20000)
  draws = rng.integers(0, 60, (20000, 60))
  naive = counts[draws].sum(1)
  expected = np.quantile(ratio(naive), [0.025, 0.975])
  assert (low, high) == pytest.approx(tuple(expected), abs=0.006)


def test_bootstrap_is_deterministic_and_seeded():
  counts = np.stack([np.sqrt(np.arange(20.0)), 5 + np.arange(20.0) % 3], 1)
  ratio = lambda t: t[:, 0] / t[:, 1]  # noqa: E731
  first = intervals.bootstrap(counts, ratio)
  assert first == intervals.bootstrap(counts, ratio)
  assert first == intervals.bootstrap(counts[::-1].copy(), ratio)
  assert first != intervals.bootstrap(counts, ratio, seed=1)


def test_bootstrap_of_a_rarely_defined_statistic_is_nan():
  counts = np.eye(3)
  never = lambda t: np.full(len(t), np.nan)  # noqa: E731
  assert all(math.isnan(v) for v in intervals.bootstrap(counts, never))

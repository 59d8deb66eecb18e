"""Spread and effective rank, by hand and by SVD."""

import math

import numpy as np
import pytest

from cxrjax.evals import effective_rank


def test_effective_rank_is_rankme():
  rng = np.random.default_rng(0)
  for shape in ((60, 16), (10, 40)):
    x = rng.normal(size=shape) @ np.diag(np.exp(-np.arange(shape[1]) / 5))
    singular = np.linalg.svd(x, compute_uv=False)
    p = singular / singular.sum() + 1e-7
    assert effective_rank.effective_rank(x) == pytest.approx(
      np.exp(-(p * np.log(p)).sum()), rel=1e-4
    )


def test_effective_rank_by_hand():
  assert effective_rank.effective_rank(np.eye(8)) == pytest.approx(8, rel=1e-4)
  assert effective_rank.effective_rank(np.ones((20, 8))) == pytest.approx(1, abs=1e-3)
  assert effective_rank.effective_rank(np.zeros((20, 8))) == 1.0
  # Singular values 3 and 1: entropy of (3/4, 1/4).
  expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
  assert effective_rank.effective_rank(np.diag([3.0, 1.0])) == pytest.approx(expected, rel=1e-5)


def test_spread():
  rng = np.random.default_rng(0)
  assert effective_rank.spread(rng.normal(size=(5000, 32))) == pytest.approx(1, abs=0.02)
  assert effective_rank.spread(np.ones((50, 32))) == pytest.approx(0, abs=1e-7)
  # Unit vectors +-e1: deviation 1 in one of two dimensions, so the mean 1/2 times sqrt 2.
  assert effective_rank.spread(np.array([[2.0, 0], [-5, 0]])) == pytest.approx(math.sqrt(2) / 2)


def test_not_finite_is_nan():
  got = effective_rank.health(np.array([[1.0, np.nan]]))
  assert math.isnan(got["feature_std"]) and math.isnan(got["effective_rank"])

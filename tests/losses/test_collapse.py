"""Numbers that must tell collapse from health."""

import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.losses import collapse


def test_entropy_of_known_distributions():
  p = jnp.array([[0.25] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0]])
  np.testing.assert_allclose(collapse.entropy(p), [np.log(4), 0, np.log(2)], atol=1e-6)


def test_spread_is_one_for_features_everywhere_and_zero_for_one_feature():
  x = np.random.default_rng(0).normal(size=(4000, 32)).astype(np.float32)
  assert collapse.spread(jnp.asarray(x)) == pytest.approx(1, abs=0.02)
  assert collapse.spread(jnp.ones((10, 32))) == pytest.approx(0, abs=1e-5)
  assert collapse.spread(jnp.asarray(1 + 1e-3 * x[:10])) < 0.02


def test_participation_ratio_counts_dimensions():
  x = np.random.default_rng(1).normal(size=(2000, 16)).astype(np.float32)
  assert collapse.participation_ratio(jnp.asarray(x)) == pytest.approx(16, rel=0.05)
  x[:, 3:] = 0
  assert collapse.participation_ratio(jnp.asarray(x)) == pytest.approx(3, rel=0.05)
  # As the eigenvalues of the covariance have it.
  eigenvalues = np.linalg.eigvalsh(np.cov(x.T))
  want = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
  assert collapse.participation_ratio(jnp.asarray(x)) == pytest.approx(want, rel=1e-3)

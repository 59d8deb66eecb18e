"""KoLeo against a loop over pairs in float64, by hand, and against differences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.losses.koleo import koleo

X = np.random.default_rng(0).normal(size=(7, 4))


def reference(x):
  unit = [v / np.linalg.norm(v) for v in x]
  nearest = [
    min(np.linalg.norm(a - b) for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)
  ]
  return -np.mean(np.log(nearest))


def test_is_the_mean_over_nearest_neighbours():
  for scale in (1.0, 30.0):  # lengths have no part
    got = koleo(jnp.asarray(scale * X, jnp.float32))
    assert float(got) == pytest.approx(reference(X), rel=1e-5)


def test_by_hand():
  # Opposite: distance 2. At right angles: sqrt 2.
  assert float(koleo(jnp.array([[3.0, 0], [-1, 0]]))) == pytest.approx(-math.log(2), rel=1e-6)
  assert float(koleo(jnp.eye(3))) == pytest.approx(-0.5 * math.log(2), rel=1e-6)
  # The third is at 2 sin 30 = 1 from the second, which the first is sqrt 2 from at 90 degrees.
  third = [math.cos(math.radians(150)), math.sin(math.radians(150))]
  got = koleo(jnp.array([[1.0, 0.0], [0.0, 1.0], third]))
  assert float(got) == pytest.approx(-(0.5 * math.log(2) + 0 + 0) / 3, abs=1e-6)


def test_gradients_are_those_of_differences():
  grad = np.asarray(jax.grad(koleo)(jnp.asarray(X, jnp.float32)))
  for place in np.ndindex(X.shape):
    step = np.zeros_like(X)
    step[place] = 1e-6
    slope = (reference(X + step) - reference(X - step)) / 2e-6
    assert grad[place] == pytest.approx(slope, abs=2e-5)


def test_descent_parts_near_ones():
  x = jnp.asarray([[1.0, 0.0, 0.0], [1.0, 0.01, 0.0], [0.0, 0.0, 1.0]])
  moved = x - 1e-4 * jax.grad(koleo)(x)
  assert float(moved[1, 1] - moved[0, 1]) > 0.02 * 0.9


def test_equal_features_are_finite():
  value, grad = jax.value_and_grad(koleo)(jnp.ones((4, 3)))
  assert float(value) > 10 and np.isfinite(grad).all()
  value, grad = jax.value_and_grad(koleo)(jnp.zeros((4, 3)))
  assert np.isfinite(value) and np.isfinite(grad).all()


def test_one_image_has_no_neighbour():
  with pytest.raises(UserError, match=r"config\.method\.koleo_weight=0"):
    koleo(jnp.ones((1, 3)))

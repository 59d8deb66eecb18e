"""Cosine losses against a loop over rows in float64, by hand, and against differences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.losses import cosine

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 6, 5))


def distance(a, b):
  """As the papers write it: between rows that were brought to length 1."""
  rows = [
    np.sum((x / math.sqrt(sum(x**2)) - y / math.sqrt(sum(y**2))) ** 2)
    for x, y in zip(a, b, strict=True)
  ]
  return sum(rows) / len(rows)


def f32(x):
  return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_is_the_squared_distance_of_unit_rows(scale):
  assert float(cosine.distance(f32(scale * A), f32(B))) == pytest.approx(distance(A, B), rel=1e-6)
  got = float(cosine.similarity(f32(A), f32(scale * B)))
  assert got == pytest.approx(1 - distance(A, B) / 2, abs=1e-6)


def test_gradients_are_those_of_differences_and_none_reaches_the_target():
  to_prediction, to_target = jax.grad(cosine.distance, argnums=(0, 1))(f32(A), f32(B))
  np.testing.assert_array_equal(to_target, 0)
  for place in np.ndindex(A.shape):
    step = np.zeros_like(A)
    step[place] = 1e-5
    want = (distance(A + step, B) - distance(A - step, B)) / 2e-5
    assert float(to_prediction[place]) == pytest.approx(want, abs=3e-6)


def test_by_hand():
  e = jnp.eye(2)
  assert float(cosine.distance(e, 3 * e)) == 0
  assert float(cosine.distance(e, e[::-1])) == 2
  assert float(cosine.distance(e, -e)) == 4
  # One row at 60 degrees, one at 180.
  prediction = jnp.array([[1.0, math.sqrt(3)], [0.0, -5.0]])
  assert float(cosine.similarity(prediction, e)) == pytest.approx((0.5 - 1) / 2, rel=1e-6)


def test_zeros_are_finite():
  value, gradient = jax.value_and_grad(cosine.distance)(jnp.zeros((2, 3)), jnp.ones((2, 3)))
  assert value == 2
  assert np.isfinite(gradient).all()

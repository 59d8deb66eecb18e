"""Reconstruction losses against loops, small cases and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.losses import reconstruction

RNG = np.random.default_rng(0)


def test_a_case_by_hand():
  target = jnp.zeros((2, 1, 2, 1))
  prediction = jnp.asarray([1.0, 50.0, -3.0, 2.0]).reshape(2, 1, 2, 1)
  mask = jnp.asarray([True, False, True, True]).reshape(2, 1, 2, 1)
  assert float(reconstruction.l1(prediction, target, mask)) == pytest.approx(2.0)
  assert float(reconstruction.mse(prediction, target, mask)) == pytest.approx(14 / 3)
  assert float(reconstruction.l1(prediction, target, jnp.zeros_like(mask))) == 0.0


@pytest.mark.parametrize("name, error", [("l1", np.abs), ("mse", np.square)])
def test_against_a_loop_and_gradients_against_differences(name, error):
  prediction, target = RNG.normal(size=(2, 3, 5, 4, 2))
  mask = RNG.random((3, 5, 4, 1)) < 0.6
  want = np.mean(
    [
      error(prediction[i] - target[i])
      for i in np.argwhere(mask[..., 0]).tolist()
      for i in [tuple(i)]
    ]
  )
  f = lambda p: getattr(reconstruction, name)(p, jnp.asarray(target), jnp.asarray(mask))  # noqa: E731
  value, gradient = jax.value_and_grad(f)(jnp.asarray(prediction, jnp.float32))
  assert float(value) == pytest.approx(want, rel=1e-5)
  direction = RNG.normal(size=prediction.shape).astype(np.float32)
  direction *= np.abs(prediction - target) > 0.05  # an absolute value has a corner
  change = [
    np.mean(
      error((prediction + s * 1e-3 * direction - target)[np.broadcast_to(mask, target.shape)])
    )
    for s in (1, -1)
  ]
  assert float((gradient * direction).sum()) == pytest.approx(
    (change[0] - change[1]) / 2e-3, rel=1e-3
  )
  assert not np.asarray(gradient)[~np.broadcast_to(mask, gradient.shape)].any()

"""The masked autoencoder's loss against loops, small cases and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.losses import mae

RNG = np.random.default_rng(0)


def test_patches_are_cut_row_by_row():
  images = np.arange(2 * 4 * 6).reshape(2, 4, 6, 1).astype(np.float32)
  found = mae.patches(jnp.asarray(images), 2)
  assert found.shape == (2, 6, 4)
  np.testing.assert_array_equal(found[0, 0], [0, 1, 6, 7])
  np.testing.assert_array_equal(found[0, 1], [2, 3, 8, 9])
  np.testing.assert_array_equal(found[1, 5], images[1, 2:, 4:].ravel())


def test_normalised_patches():
  x = RNG.normal(3, 5, (2, 3, 16)).astype(np.float32)
  want = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, ddof=1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(mae.normalised(jnp.asarray(x)), want, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(mae.normalised(jnp.full((1, 1, 4), 7.0)), 0.0)  # a blank patch


def test_the_error_of_hidden_patches_alone_counts():
  target = jnp.zeros((1, 3, 2))
  prediction = jnp.asarray([[[1.0, 3.0], [100.0, 100.0], [2.0, 0.0]]])
  mask = jnp.asarray([[True, False, True]])
  assert float(mae.masked_mse(prediction, target, mask)) == pytest.approx(((1 + 9) / 2 + 2) / 2)


def test_against_a_loop_and_its_gradient_against_differences():
  prediction, target = RNG.normal(size=(2, 3, 5, 4))
  mask = RNG.random((3, 5)) < 0.6
  errors = [
    np.mean((prediction[i, j] - target[i, j]) ** 2)
    for i in range(3)
    for j in range(5)
    if mask[i, j]
  ]
  with jax.enable_x64(True):
    f = lambda p: mae.masked_mse(p, jnp.asarray(target), jnp.asarray(mask))  # noqa: E731
    value, gradient = map(np.asarray, jax.value_and_grad(f)(jnp.asarray(prediction)))
    np.testing.assert_allclose(value, np.mean(errors), rtol=1e-12)
    direction = RNG.normal(size=prediction.shape)
    change = [float(f(jnp.asarray(prediction + s * 1e-5 * direction))) for s in (1, -1)]
  np.testing.assert_allclose(
    (gradient * direction).sum(), (change[0] - change[1]) / 2e-5, rtol=1e-7
  )
  assert not gradient[~mask].any()

"""iBOT's loss against a loop over crops and patches in float64, by hand, against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.losses import ibot

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, 4, 6, 5))
MASK = RNG.random((4, 6)) < 0.4
MASK[2] = False
P = np.exp(TEACHER) / np.exp(TEACHER).sum(-1, keepdims=True)


def reference(student, probabilities, mask, temperature):
  """Crop by crop: the mean over its masked patches, 0 without any; the mean over all crops."""
  crops = []
  for crop in range(len(student)):
    found = []
    for patch in np.flatnonzero(mask[crop]):
      z = student[crop, patch] / temperature
      log_q = z - np.log(np.exp(z).sum())
      found.append(-(probabilities[crop, patch] * log_q).sum())
    crops.append(np.mean(found) if found else 0.0)
  return np.mean(crops)


def loss(student, mask=MASK, temperature=0.3):
  flat = [jnp.asarray(x, jnp.float32).reshape(-1, 5) for x in (student, P)]
  weights = ibot.patch_weights(jnp.asarray(mask)).reshape(-1)
  return ibot.cross_entropy(*flat, weights, temperature)


def test_is_the_mean_over_crops_of_the_mean_over_patches():
  assert float(loss(STUDENT)) == pytest.approx(reference(STUDENT, P, MASK, 0.3), rel=1e-5)
  assert float(loss(STUDENT, np.zeros_like(MASK))) == 0


def test_gradients_are_those_of_differences():
  grad = np.asarray(jax.grad(loss)(jnp.asarray(STUDENT, jnp.float32)))
  np.testing.assert_array_equal(grad[~MASK], 0)  # what is seen is not predicted
  for place in [(0, np.flatnonzero(MASK[0])[0], 1), (3, np.flatnonzero(MASK[3])[-1], 4)]:
    step = np.zeros_like(STUDENT)
    step[place] = 1e-5
    slope = reference(STUDENT + step, P, MASK, 0.3) - reference(STUDENT - step, P, MASK, 0.3)
    assert grad[place] == pytest.approx(slope / 2e-5, abs=2e-6)


def test_weights_by_hand():
  mask = jnp.array(
    [[[True, True, False], [False, False, False]], [[False, True, False], [True, True, True]]]
  )
  want = [[[1 / 8, 1 / 8, 0], [0, 0, 0]], [[0, 1 / 4, 0], [1 / 12, 1 / 12, 1 / 12]]]
  np.testing.assert_allclose(ibot.patch_weights(mask), want, rtol=1e-6)


def test_loss_by_hand():
  # Two patches of weight 1/2: logits that tell nothing cost ln 2, a certain right answer nothing.
  student = jnp.array([[0.0, 0.0], [50.0, 0.0]])
  teacher = jnp.array([[0.3, 0.7], [1.0, 0.0]])
  got = ibot.cross_entropy(student, teacher, jnp.array([0.5, 0.5]), 0.1)
  assert float(got) == pytest.approx(0.5 * np.log(2), rel=1e-6)


def test_center_is_a_moving_average_over_masked_patches():
  logits = jnp.array([[1.0, 2.0], [100.0, 100.0], [3.0, 6.0]])
  center, valid = jnp.array([10.0, 20.0]), jnp.array([True, False, True])
  got = ibot.update_center(center, logits, valid, 0.9)
  np.testing.assert_allclose(got, [9.2, 18.4], rtol=1e-6)
  np.testing.assert_array_equal(ibot.update_center(center, logits, ~valid & False, 0.9), center)
  assert not jax.grad(lambda x: ibot.update_center(center, x, valid, 0.9).sum())(logits).any()

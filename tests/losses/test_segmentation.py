"""Losses of masks against loops, small cases and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.losses import segmentation

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (3, 4, 5, 1))
TARGET = RNG.random((3, 4, 5, 1)) < 0.4


def loops(logits, target):
  """Dice loss and cross-entropy of one image, pixel by pixel."""
  both = either = nats = 0.0
  for x, t in zip(logits.ravel().tolist(), target.ravel().tolist(), strict=True):
    p = 1 / (1 + np.exp(-x))
    both += p * t
    either += p + t
    nats -= np.log(p if t else 1 - p)
  return 1 - (2 * both + 1) / (either + 1), nats / logits.size


@pytest.mark.parametrize(("name", "which"), [("soft_dice", 0), ("cross_entropy", 1)])
def test_against_loops_and_finite_differences(name, which):
  loss = getattr(segmentation, name)
  weights = RNG.normal(size=3)
  with jax.enable_x64(True):
    target = jnp.asarray(TARGET)
    np.testing.assert_allclose(
      loss(jnp.asarray(LOGITS), target),
      [loops(x, t)[which] for x, t in zip(LOGITS, TARGET, strict=True)],
      rtol=1e-12,
    )
    f = lambda x: (weights * loss(x, target)).sum()  # noqa: E731
    gradient = np.asarray(jax.grad(f)(jnp.asarray(LOGITS)))
    direction = RNG.normal(size=LOGITS.shape)
    change = [float(f(jnp.asarray(LOGITS + s * 1e-5 * direction))) for s in (1, -1)]
  np.testing.assert_allclose(
    (gradient * direction).sum(), (change[0] - change[1]) / 2e-5, rtol=1e-7
  )


def test_a_sure_answer():
  target = jnp.asarray(TARGET)
  right, wrong = (jnp.where(target, s, -s) for s in (80.0, -80.0))
  np.testing.assert_allclose(segmentation.soft_dice(right, target), 0, atol=1e-6)
  size = TARGET.sum((1, 2, 3))
  np.testing.assert_allclose(segmentation.soft_dice(wrong, target), 1 - 1 / 21, rtol=1e-6)
  assert (size > 0).all()
  np.testing.assert_allclose(segmentation.cross_entropy(right, target), 0, atol=1e-6)
  np.testing.assert_allclose(segmentation.cross_entropy(wrong, target), 80, rtol=1e-6)
  none = jnp.zeros_like(target)
  np.testing.assert_allclose(
    segmentation.soft_dice(jnp.full(target.shape, -80.0), none), 0, atol=1e-6
  )


def test_images_of_weight_0_take_no_part():
  values = jnp.asarray([1.0, 100.0, 4.0])
  assert float(segmentation.weighted_mean(values, jnp.asarray([1.0, 0.0, 1.0]))) == 2.5
  assert float(segmentation.weighted_mean(values, jnp.asarray([1.0, 0.0, 3.0]))) == 3.25
  none = lambda v: segmentation.weighted_mean(v, jnp.zeros(3))  # noqa: E731
  assert float(none(values)) == 0.0
  np.testing.assert_array_equal(jax.grad(none)(values), 0.0)

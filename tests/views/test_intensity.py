"""Against loops in NumPy that follow torchvision's definitions one operation at a time."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from cxrjax.views import intensity


def adjust_brightness(x, factor):
  """torchvision: blend with black, clamp."""
  return np.clip(x * factor + 0.0 * (1 - factor), 0, 1)


def adjust_contrast(x, factor):
  """torchvision: blend with the mean of the gray image, clamp."""
  return np.clip(factor * x + (1 - factor) * x.mean(), 0, 1)


@pytest.mark.parametrize("brightness_first", [True, False])
def test_jitter_is_two_operations_in_order(drawn, brightness_first):
  x = drawn.astype(np.float64) / 255
  b, c = np.asarray([0.6, 1.0, 1.4, 1.2]), np.asarray([1.4, 0.7, 1.0, 1.3])
  found = intensity.jitter(
    jnp.asarray(x, jnp.float32),
    jnp.asarray(b, jnp.float32),
    jnp.asarray(c, jnp.float32),
    jnp.full(4, brightness_first),
  )
  for image, bi, ci, jittered in zip(x, b, c, found, strict=True):
    if brightness_first:
      wanted = adjust_contrast(adjust_brightness(image, bi), ci)
    else:
      wanted = adjust_brightness(adjust_contrast(image, ci), bi)
    np.testing.assert_allclose(jittered, wanted, atol=2e-6)


def test_jitter_by_hand():
  """[.2 .6] x 1.5 -> [.3 .9], mean .6, contrast .5 -> [.45 .75]; the other way [.3 .5] x 1.5."""
  x = jnp.asarray([[0.2, 0.6]])
  both = [
    intensity.jitter(x, jnp.asarray(1.5), jnp.asarray(0.5), jnp.asarray(first))
    for first in (True, False)
  ]
  np.testing.assert_allclose(both[0], [[0.45, 0.75]], atol=1e-6)
  np.testing.assert_allclose(both[1], [[0.45, 0.75]], atol=1e-6)
  clipped = intensity.jitter(x, jnp.asarray(2.0), jnp.asarray(1.0), jnp.asarray(True))
  np.testing.assert_allclose(clipped, [[0.4, 1.0]], atol=1e-6)


def test_factors_of_one_change_nothing(drawn):
  x = jnp.asarray(drawn, jnp.float32) / 255
  for first in (True, False):
    found = intensity.jitter(x, jnp.ones(4), jnp.ones(4), jnp.full(4, first))
    np.testing.assert_array_equal(found, x)


def test_blur_is_a_gaussian_filter(drawn):
  x = drawn[:3].astype(np.float64) / 255
  sigmas = np.asarray([0.1, 0.8, 2.0])
  found = intensity.blur(jnp.asarray(x, jnp.float32), jnp.asarray(sigmas, jnp.float32))
  for image, sigma, blurred in zip(x, sigmas, found, strict=True):
    wanted = scipy.ndimage.gaussian_filter(image, sigma, truncate=6)
    inside = np.s_[14:-14, 14:-14]  # the edges are normalised, not reflected
    np.testing.assert_allclose(blurred[inside], wanted[inside], atol=2e-5)


def test_no_blur_is_the_image(drawn):
  x = jnp.asarray(drawn, jnp.float32) / 255
  np.testing.assert_allclose(intensity.blur(x, jnp.zeros(4)), x, atol=1e-6)


def test_solarize_inverts_the_bright():
  x = jnp.asarray([[[0.0, 0.49, 0.5, 1.0]]] * 2)
  found = intensity.solarize(x, 0.5, jnp.asarray([True, False]))
  np.testing.assert_allclose(found[0], [[0.0, 0.49, 0.5, 0.0]], atol=1e-6)
  np.testing.assert_array_equal(found[1], x[1])

"""Local contrast: what it takes away, and what it keeps."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from cxrjax.data import Images, SourceInfo, Table, descriptors


def images(n=3, size=48, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (n, size, size, 1)).astype(np.uint8)


def test_small_averages_cells_and_takes_rows():
  x = images()
  expected = x[[2, 0], ..., 0].reshape(2, 12, 4, 12, 4).mean((2, 4))
  np.testing.assert_allclose(descriptors.downsample(x, 12, np.array([2, 0])), expected, atol=1e-4)
  assert descriptors.downsample(x[:0], 12).shape == (0, 12, 12)


def test_small_shows_16_bits_through_their_window():
  x = images().astype(np.uint16) * 100
  table = Table(("a", "b", "c"), ("",) * 3, ("",) * 3, np.zeros((3, 0), np.float32))
  info = SourceInfo("x", "all", (), True, {}, "f")
  windows = np.array([[0, 25500], [5000, 20000], [0, 65535]], np.float32)
  got = descriptors.downsample(Images(pixels=x, table=table, info=info, windows=windows), 12)
  shown = [
    np.clip((x[i, ..., 0] - low) / (high - low), 0, 1) * 255
    for i, (low, high) in enumerate(windows)
  ]
  expected = np.stack(shown).reshape(3, 12, 4, 12, 4).mean((2, 4))
  np.testing.assert_allclose(got, expected, atol=0.02)


def test_blur_is_a_gaussian_whose_border_keeps_its_weight():
  x = images()[..., 0].astype(np.float32)
  weight = ndimage.gaussian_filter(np.ones((48, 48)), 3, mode="constant", truncate=16)
  expected = [ndimage.gaussian_filter(i, 3, mode="constant", truncate=16) / weight for i in x]
  np.testing.assert_allclose(descriptors.blur(jnp.asarray(x), 3.0), expected, atol=0.01)


@pytest.mark.parametrize("gain, offset", [(0.5, 40), (2, -100), (0.01, 0)])
def test_local_contrast_does_not_see_brightness_and_contrast(gain, offset):
  x = images()[..., 0].astype(np.float32)
  a, b = (
    np.asarray(descriptors.local_contrast(jnp.asarray(v), 4.0)) for v in (x, gain * x + offset)
  )
  np.testing.assert_allclose(a, b, atol=0.002)
  np.testing.assert_allclose(descriptors.local_contrast(jnp.asarray(-x), 4.0), -a, atol=0.002)


def test_unit_vectors_and_blank_images():
  x = images()[..., 0].astype(np.float32)
  x[1] = 77
  u = np.asarray(descriptors.unit(descriptors.local_contrast(jnp.asarray(x), 4.0)))
  np.testing.assert_allclose(u.mean(1), 0, atol=1e-6)
  np.testing.assert_allclose(np.linalg.norm(u, axis=1), [1, 0, 1], atol=1e-5)


@pytest.mark.parametrize("n", [0, 1, 5, 8])
def test_batches_are_filled_up_and_cut_off_again(n):
  sizes = []

  def double(x, y):
    sizes.append(len(x))
    return 2 * x, x + y

  x = np.arange(3 * n, dtype=np.float32).reshape(n, 3)
  a, b = descriptors.batched(double, x, x + 1, size=5)
  np.testing.assert_array_equal(a, 2 * x)
  np.testing.assert_array_equal(b, 2 * x + 1)
  assert set(sizes) == {5} and len(sizes) == max(1, -(-n // 5))

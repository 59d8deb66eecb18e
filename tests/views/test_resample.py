"""Matrices against PIL's own resampling, and the few things that must hold exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest
import scipy.ndimage

from cxrjax.core.errors import UserError
from cxrjax.views import resample

crop_matrix = jax.jit(resample.crop_matrix, static_argnames=("in_size", "out_size", "kernel"))
resize = jax.jit(resample.resize, static_argnums=1)


def boxes(rng, height, width, count):
  """(top, left, height, width) from a twentieth of the area to all of it, not on pixel borders."""
  h = height * rng.uniform(0.2, 1.0, count)
  w = width * rng.uniform(0.2, 1.0, count)
  found = np.stack(
    [rng.uniform(0, 1, count) * (height - h), rng.uniform(0, 1, count) * (width - w), h, w], -1
  )
  found[0] = 0, 0, height, width
  return found


def crop(image, box, size, flip=False, kernel="bicubic"):
  """The crop by matrices, in gray levels, clipped."""
  top, left, h, w = box
  rows = crop_matrix(top, h, image.shape[0], size, kernel=kernel)
  columns = crop_matrix(left, w, image.shape[1], size, flip, kernel)
  return np.clip(np.asarray(rows) @ image.astype(np.float32) @ np.asarray(columns).T, 0, 255)


def pil(image, box, size, kernel=PIL.Image.Resampling.BICUBIC):
  """The same box by PIL; the mode (8 bits or float) follows the array."""
  top, left, h, w = box
  found = PIL.Image.fromarray(image).resize((size, size), kernel, (left, top, left + w, top + h))
  return np.asarray(found).astype(np.float32)


@pytest.mark.parametrize("size", [24, 96, 200])
def test_crop_is_pil_in_floats(drawn, size):
  rng = np.random.default_rng(size)
  for image in drawn[:2].astype(np.float32):
    for box in boxes(rng, *image.shape, 4):
      wanted = np.clip(pil(image, box, size), 0, 255)
      np.testing.assert_allclose(crop(image, box, size), wanted, atol=0.02)


def test_crop_is_pil_on_radiographs(radiographs):
  """PIL rounds to 8 bits after each of its two passes, hence up to two gray levels."""
  rng = np.random.default_rng(1)
  for image in radiographs:
    for box in boxes(rng, *image.shape, 3):
      for size in (96, 224):
        difference = np.abs(crop(image, box, size) - pil(image, box, size))
        assert difference.mean() < 0.5
        assert difference.max() < 3.0


def test_bilinear_is_pil(drawn):
  image = drawn[0].astype(np.float32)
  for box in boxes(np.random.default_rng(2), *image.shape, 3):
    wanted = pil(image, box, 64, PIL.Image.Resampling.BILINEAR)
    np.testing.assert_allclose(crop(image, box, 64, kernel="bilinear"), wanted, atol=0.02)


def test_flip_is_the_mirrored_crop(drawn):
  box = (11.3, 20.7, 77.1, 90.2)
  straight = crop(drawn[0], box, 64)
  np.testing.assert_allclose(crop(drawn[0], box, 64, flip=True), straight[:, ::-1], atol=1e-3)
  there = crop_matrix(0.0, 50.0, 50, 50, True)
  np.testing.assert_allclose(there @ there, np.eye(50), atol=1e-6)


def test_whole_box_at_its_own_size_is_the_identity():
  np.testing.assert_allclose(crop_matrix(0.0, 31.0, 31, 31), np.eye(31), atol=1e-6)


def test_rows_sum_to_one_wherever_the_box_is():
  starts = jnp.asarray([-80.0, -3.0, 0.0, 17.4, 30.0, 90.0])
  lengths = jnp.asarray([20.0, 50.0, 40.0, 0.01, 25.0, 30.0])
  matrix = crop_matrix(starts, lengths, 40, 16)
  assert matrix.shape == (6, 16, 40)
  np.testing.assert_allclose(matrix.sum(-1), 1.0, atol=1e-5)
  np.testing.assert_allclose(matrix[0, :, 0], 1.0, atol=0.15)  # far outside: the edge, repeated
  np.testing.assert_allclose(matrix[5, :, -1], 1.0, atol=0.15)


def test_kernel_values():
  """Keys 1981: 1, 9/16, 0, -1/16, 0 at 0, 1/2, 1, 3/2, 2."""
  x = jnp.asarray([0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
  np.testing.assert_allclose(resample.bicubic(x), [1, 9 / 16, 0, -1 / 16, 0, 0], atol=1e-6)
  np.testing.assert_allclose(resample.bicubic(-x), resample.bicubic(x))


@pytest.mark.parametrize("flip", [False, True])
def test_the_middle_is_pils(drawn, flip):
  image = drawn[0].astype(np.float32)
  expected = pil(image, (16.0, 16.0, 128.0, 128.0), 160, PIL.Image.Resampling.BILINEAR)
  x = jnp.asarray(image[None, ..., None])
  found = resample.center_crop(x, 0.8, flip)[0, ..., 0]
  np.testing.assert_allclose(found[:, ::-1] if flip else found, expected, atol=0.02)
  np.testing.assert_array_equal(resample.center_crop(x, 1.0, flip), x[:, :, ::-1] if flip else x)


def test_unknown_kernel_is_named():
  with pytest.raises(UserError, match=r"bicubc.*did you mean 'bicubic'"):
    resample.crop_matrix(0.0, 1.0, 4, 4, kernel="bicubc")


def test_blur_matrix_is_a_gaussian():
  matrix = np.asarray(resample.blur_matrix(jnp.asarray([0.0, 0.7, 2.0]), 41))
  np.testing.assert_allclose(matrix[0], np.eye(41), atol=1e-6)
  np.testing.assert_allclose(matrix.sum(-1), 1.0, atol=1e-5)
  line = np.zeros(41)
  line[20] = 1.0
  for i, sigma in ((1, 0.7), (2, 2.0)):
    np.testing.assert_allclose(
      matrix[i] @ line, scipy.ndimage.gaussian_filter1d(line, sigma, truncate=8), atol=1e-5
    )


def test_blur_is_close_to_pil(drawn):
  """PIL's GaussianBlur is three box filters of the same variance; the edges differ."""
  for sigma in (0.5, 1.0, 2.0):
    matrix = np.asarray(resample.blur_matrix(sigma, 160))
    wanted = PIL.Image.fromarray(drawn[0]).filter(PIL.ImageFilter.GaussianBlur(sigma))
    found = matrix @ drawn[0] @ matrix.T
    difference = np.abs(found - np.asarray(wanted))[8:-8, 8:-8]
    assert difference.mean() < 1.5
    before = np.abs(drawn[0] - np.asarray(wanted).astype(float))[8:-8, 8:-8]
    assert difference.mean() < 0.3 * before.mean()


def test_resize_is_pil(drawn):
  found = resize(jnp.asarray(drawn[..., None]), 64) * 255
  assert found.shape == (4, 64, 64, 1)
  wanted = [pil(image, (0, 0, 160, 160), 64) for image in drawn.astype(np.float32)]
  np.testing.assert_allclose(found[..., 0], np.clip(wanted, 0, 255), atol=0.02)
  # In 8 bits PIL also clips between its two passes, which shows at edges from black to white.
  wanted = [pil(image, (0, 0, 160, 160), 64) for image in drawn]
  difference = np.abs(found[..., 0] - np.stack(wanted))
  assert difference.mean() < 0.5
  assert np.quantile(difference, 0.99) < 1.5


def test_resize_squashes_other_shapes(drawn):
  image = drawn[0][:100]
  found = resize(jnp.asarray(image[None, ..., None]), 48)[0, ..., 0] * 255
  assert np.abs(found - pil(image, (0, 0, 100, 160), 48)).mean() < 0.5


@pytest.mark.parametrize("size", [160, 64])
def test_resize_takes_any_pixel_type(drawn, size):
  bytes_ = resize(jnp.asarray(drawn[..., None]), size)
  words = resize(jnp.asarray(drawn[..., None].astype(np.uint16) * 257), size)
  floats = resize(jnp.asarray(drawn[..., None] / np.float32(255)), size)
  np.testing.assert_allclose(words, bytes_, atol=1e-5)
  np.testing.assert_allclose(floats, bytes_, atol=1e-5)
  assert float(bytes_.min()) >= 0 and float(bytes_.max()) <= 1


def test_rotate_by_nothing_is_the_centre(drawn):
  x = jnp.asarray(drawn, jnp.float32)
  np.testing.assert_allclose(resample.rotate(x, jnp.zeros(4), 100), x[:, 30:130, 30:130], atol=1e-3)


def test_rotate_by_a_right_angle(drawn):
  x = jnp.asarray(drawn, jnp.float32)
  found = resample.rotate(x, jnp.full(4, np.pi / 2), 160)
  np.testing.assert_allclose(found, np.rot90(drawn, axes=(1, 2)), atol=0.05)


def test_rotate_is_scipys(drawn):
  angles = np.asarray([-0.2, 0.05, 0.3, 0.1])
  found = jax.jit(lambda x, a: resample.rotate(x, a, 128))(
    jnp.asarray(drawn, jnp.float32), jnp.asarray(angles, jnp.float32)
  )
  for image, angle, rotated in zip(drawn.astype(float), angles, found, strict=True):
    wanted = scipy.ndimage.rotate(image, np.degrees(angle), reshape=False, order=1, mode="nearest")
    np.testing.assert_allclose(rotated, wanted[16:-16, 16:-16], atol=0.1)


@pytest.mark.parametrize("degrees", [1.0, 10.0, 45.0, 120.0])
def test_rotation_margin_leaves_nothing_out(degrees):
  for size in (16, 96, 224):
    whole = size + 2 * resample.rotation_margin(size, degrees)
    angles = np.radians(np.linspace(0, degrees, 50))
    corner = (np.abs(np.cos(angles)) + np.abs(np.sin(angles))).max() * (size - 1) / 2
    assert corner <= (whole - 1) / 2
    assert whole <= 1.45 * size + 4

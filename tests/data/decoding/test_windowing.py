import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cxrjax.core.errors import UserError
from cxrjax.data.decoding import percentiles, windowing
from cxrjax.data.decoding.decode import BadImage

BICUBIC = Image.Resampling.BICUBIC


@pytest.fixture
def gray(texture):
  return texture(40, 56)[..., None]


@pytest.fixture
def deep(gray):
  """12 bits in 16, as from a detector: most of the range is empty."""
  noise = np.random.default_rng(0).integers(0, 9, gray.shape)
  return (gray.astype(np.uint16) * 9 + 800 + noise).astype(np.uint16)


# Which levels are shown.


@pytest.mark.parametrize("n", [256, 257, 1000, 4099])
def test_percentiles_are_numpys(n):
  rng = np.random.default_rng(n)
  for high in (3, 300, 65536):
    image = rng.integers(0, high, (n, 1, 1)).astype(np.uint16)
    for tails in (windowing.TAILS, (0, 100), (50, 33.3)):
      assert windowing.percentiles(image, tails) == tuple(np.percentile(image, tails))


def test_percentiles_of_more_pixels_than_are_counted_at_once(monkeypatch, deep):
  expected = windowing.percentiles(deep, windowing.TAILS)
  monkeypatch.setattr(percentiles, "_BLOCK", 100)
  assert windowing.percentiles(deep, windowing.TAILS) == expected


def test_the_window_that_came_with_the_image_comes_first(gray, deep):
  assert windowing.choose_window(deep, (900, 2000)) == (900.0, 2000.0)
  assert windowing.choose_window(deep) == tuple(np.percentile(deep, (0.5, 99.5)))
  assert windowing.choose_window(gray) == (0.0, 255.0)
  assert windowing.choose_window(gray, (40.0, 200.0)) == (40.0, 200.0)


@pytest.mark.parametrize(
  "given",
  [
    (5.0, 5.0),
    (9.0, 2.0),
    (float("nan"), 9.0),
    (0.0, float("inf")),
    (0.0, 100.0),
    (60000.0, 65e3),
    (1000.0, 1000.00001),
  ],
)
def test_a_given_window_that_shows_nothing_is_not_taken(given, deep):
  assert windowing.choose_window(deep, given) == windowing.choose_window(deep)


def test_one_hot_pixel_does_not_blacken_the_rest(deep):
  deep[0, 0] = 65535
  assert windowing.choose_window(deep)[1] < 4096


def test_an_image_that_differs_in_its_tails_only():
  image = np.full((40, 40, 1), 700, np.uint16)
  image[0, 0] = 710
  assert windowing.choose_window(image) == (700.0, 710.0)


def test_windows_of_the_users(gray, deep):
  assert windowing.choose_window(deep, (900, 2000), "full") == (0.0, 65535.0)
  assert windowing.choose_window(gray, None, "full") == (0.0, 255.0)
  assert windowing.choose_window(deep, (900, 2000), (1000.0, 1500.0)) == (1000.0, 1500.0)
  assert windowing.choose_window(gray, None, (1000.0, 1500.0)) == (0.0, 255.0)
  with pytest.raises(BadImage, match=r"config.data.window=\(9000.0, 9500.0\) leaves nothing"):
    windowing.choose_window(deep, None, (9000.0, 9500.0))


@pytest.mark.parametrize(
  "value, expected",
  [
    ("auto", "auto"),
    ("full", "full"),
    ((1, 5), (1.0, 5.0)),
    ([0.5, 9], (0.5, 9.0)),
    ("100, 3000", (100.0, 3000.0)),
    ("(100,3000)", (100.0, 3000.0)),
  ],
)
def test_windows_as_configs_and_flags_write_them(value, expected):
  assert windowing.check_window(value) == expected


@pytest.mark.parametrize(
  "value",
  ["wide", "", None, 7, (1,), (1, 2, 3), (5, 5), (9, 1), ("a", "b"), (0, float("nan")), {"low": 1}],
)
def test_what_is_no_window(value):
  with pytest.raises(UserError, match=r"config\.data\.window=.* is not a window; give 'auto'"):
    windowing.check_window(value)


@pytest.mark.parametrize("value, dtype", [(0, np.uint8), (255, np.uint8), (700, np.uint16)])
@pytest.mark.parametrize("window", ["auto", "full", (600.0, 800.0)])
def test_blank_images_are_bad(value, dtype, window):
  with pytest.raises(BadImage, match=f"blank: every pixel is {value}"):
    windowing.choose_window(np.full((20, 20, 1), value, dtype), None, window)


# Windowed.


def test_to_uint8_by_the_formula(deep):
  low, high = 812.25, 2700.5
  found = windowing.to_uint8(deep, (low, high))
  exact = np.clip((deep.astype(np.float64) - low) / (high - low), 0, 1) * 255
  assert found.dtype == np.uint8 and np.abs(found - exact).max() <= 0.5 + 1e-3
  assert (found == 0).any() and (found == 255).any()


def test_eight_bits_shown_whole_are_left_as_they_are(gray):
  assert windowing.to_uint8(gray, (0.0, 255.0)) is gray
  narrow = windowing.to_uint8(gray, (50.0, 150.0))
  assert narrow[gray <= 50].max() == 0 and narrow[gray >= 150].min() == 255


def test_to_unit_on_the_host_and_in_a_jitted_step(deep):
  images = np.stack([deep[:40, :40], deep[:40, 10:50]])
  windows = np.array([[812.25, 2700.5], [0, 65535]], np.float32)
  host = windowing.to_unit(images, windows)
  low, high = (windows.astype(np.float64)[:, i, None, None, None] for i in (0, 1))
  exact = np.clip((images - low) / (high - low), 0, 1)
  assert host.dtype == np.float32 and host.min() >= 0 and host.max() <= 1
  np.testing.assert_allclose(host, exact, atol=1e-6)
  device = jax.jit(windowing.to_unit)(jnp.asarray(images), jnp.asarray(windows))
  np.testing.assert_allclose(device, host, atol=1e-6)
  # At 8 bits it is what `to_uint8` gives.
  shown = windowing.to_uint8(images[0], (812.25, 2700.5)).astype(int)
  assert np.abs(np.rint(host[0] * 255) - shown).max() <= 1


def test_more_levels_than_eight_bits_survive():
  ramp = np.arange(1000, 3000, dtype=np.uint16).reshape(40, 50, 1)[:, :40]
  unit = windowing.to_unit(ramp, np.array([1000, 3000], np.float32))
  assert len(np.unique(unit)) == ramp.size


# Squares.


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_resize_fits(dtype):
  image = np.zeros((40, 80, 1), dtype)
  image[:, 40:] = 200
  squash, pad, crop = (
    windowing.resize(image, 20, fit)[..., 0] for fit in ("squash", "pad", "crop")
  )
  plane = image[..., 0].astype(np.uint8)
  np.testing.assert_allclose(
    np.minimum(squash, 255), np.asarray(Image.fromarray(plane).resize((20, 20), BICUBIC)), atol=1
  )
  assert (pad[:5] == 0).all() and (pad[15:] == 0).all()
  assert pad[10, 1] == 0 and pad[10, -2] == 200
  half = np.asarray(Image.fromarray(plane[:, 20:60]).resize((20, 20), BICUBIC))
  np.testing.assert_allclose(np.minimum(crop, 255), half, atol=1)
  assert squash.dtype == pad.dtype == crop.dtype == dtype


def test_eight_bits_are_pils_own(gray):
  found = windowing.resize(gray, 24)[..., 0]
  np.testing.assert_array_equal(found, Image.fromarray(gray[..., 0]).resize((24, 24), BICUBIC))


def test_sixteen_bits_are_resampled_in_floats_and_stay_in_range(deep):
  found = windowing.resize(deep, 24)
  plane = Image.fromarray(deep[..., 0].astype(np.float64).astype(np.float32))
  exact = np.asarray(plane.resize((24, 24), BICUBIC))
  assert found.dtype == np.uint16 and np.abs(found[..., 0] - exact).max() <= 0.5
  edge = np.zeros((32, 32, 1), np.uint16)
  edge[:, 16:] = 65535
  over = windowing.resize(edge, 48)  # the kernel overshoots: 65536 must not become 0
  assert over[:, 30:].min() > 60000 and over[:, :18].max() < 5000
  np.testing.assert_array_equal(windowing.resize(deep[:40, :40], 40), deep[:40, :40])


def test_masks_stay_masks(texture):
  mask = (texture(50, 70) > 128).astype(np.uint8)[..., None]
  assert set(np.unique(windowing.resize(mask, 33, nearest=True))) == {0, 1}

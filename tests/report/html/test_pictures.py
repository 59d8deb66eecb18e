import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from cxrjax.report.html import pictures


def decode(img):
  (data,) = re.findall(r"base64,([^\"]*)", img)
  return Image.open(io.BytesIO(base64.b64decode(data)))


def lab(rgb):
  """CIE 1976 L*a*b* of sRGB, D65; another colour space than the map is built in."""
  x = rgb / 255
  x = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
  xyz = (
    x
    @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    / np.array([0.9505, 1.0, 1.089])
  )
  f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
  return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], -1)


def test_white_and_gray_of_oklab():
  rgb = pictures.oklab_to_srgb(np.array([[1.0, 0, 0], [0, 0, 0], [0.5, 0, 0]]))
  np.testing.assert_allclose(rgb[0], 1, atol=1e-4)
  np.testing.assert_allclose(rgb[1], 0, atol=1e-6)
  np.testing.assert_allclose(rgb[2], rgb[2, 0], atol=1e-4)  # 0.5^3 linear
  np.testing.assert_allclose(rgb[2, 0], 1.055 * 0.125 ** (1 / 2.4) - 0.055, atol=1e-4)


def test_colour_map_is_perceptually_uniform():
  colours = pictures.colour_map()
  assert colours.shape == (256, 3) and colours.dtype == np.uint8
  lightness = lab(colours)[:, 0]
  smooth = lightness[::8]  # rounding to 8 bits makes single steps uneven
  assert (np.diff(smooth) > 0).all()
  assert lightness[0] < 8 and lightness[-1] > 90
  steps = np.linalg.norm(np.diff(oklab(colours[::8]), axis=0), axis=1)
  assert steps.max() / steps.min() < 1.25


def oklab(rgb):
  """sRGB to Oklab, the way back from the code's, with the published forward matrices."""
  to_lms = np.array(
    [
      [0.4122214708, 0.5363325363, 0.0514459929],
      [0.2119034982, 0.6806995451, 0.1073969566],
      [0.0883024619, 0.2817188376, 0.6299787005],
    ]
  )
  to_lab = np.array(
    [
      [0.2104542553, 0.7936177850, -0.0040720468],
      [1.9779984951, -2.4285922050, 0.4505937099],
      [0.0259040371, 0.7827717662, -0.8086757660],
    ]
  )
  x = rgb / 255
  linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
  return np.cbrt(linear @ to_lms.T) @ to_lab.T


def test_heat_map_is_one_exact_pixel_a_patch():
  heat = np.array([[0.0, 0.5, 1.0], [np.nan, 2.0, -1.0]])
  image = decode(pictures.heat_map(heat, "x"))
  assert image.size == (3, 2) and image.mode == "P"
  colours = pictures.colour_map()
  np.testing.assert_array_equal(
    np.asarray(image.convert("RGB")), colours[np.array([[0, 128, 255], [0, 255, 0]])]
  )


def test_overlay_leaves_the_radiograph_where_nothing_is_attended_to():
  image = np.random.default_rng(0).integers(0, 256, (32, 48), dtype=np.uint8)
  same = pictures.overlay(image, np.zeros((4, 6)))
  np.testing.assert_array_equal(same, np.repeat(image[..., None], 3, -1))
  heat = np.zeros((4, 6))
  heat[0, 0] = 1
  marked = pictures.overlay(image, heat).astype(int)
  change = np.abs(marked - image[..., None]).sum(-1)
  assert change[:6, :6].mean() > 30 and change[20:, 30:].max() == 0


def test_pictures_are_bounded_jpegs():
  image = np.random.default_rng(0).integers(0, 256, (2000, 1000), dtype=np.uint8)
  out = decode(pictures.picture(image, "x", 200))
  assert out.size == (100, 200) and out.format == "JPEG"


def test_gray():
  np.testing.assert_array_equal(
    pictures.gray(np.array([[0.0, 2.0], [np.nan, 1.0]])), [[0, 255], [0, 128]]
  )
  same = np.array([[3, 7]], np.uint8)
  np.testing.assert_array_equal(pictures.gray(same[..., None]), same)
  with pytest.raises(ValueError, match="two axes"):
    pictures.gray(np.zeros(3))

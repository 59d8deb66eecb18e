"""Inverted and blank images: found in any number, drawn and real."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from cxrjax.audit import polarity
from cxrjax.data.sources import phantom


@pytest.fixture(scope="module")
def drawn():
  source = phantom.Source(split="test", n=60, size=96, seed=5)
  return np.stack([source[i].image for i in range(60)])


@pytest.mark.parametrize("inverted", [0, 1, 20, 30, 59, 60])
def test_inverted_ones_are_found_whatever_their_share(drawn, inverted):
  pixels = drawn.copy()
  pixels[:inverted] = 255 - pixels[:inverted]
  (r,) = polarity.agreement(polarity.describe(pixels)[0])
  np.testing.assert_array_equal(r <= polarity.INVERTED, np.arange(60) < inverted)
  assert np.abs(r).min() > polarity.UNLIKE


def test_sets_are_judged_together(drawn):
  described = polarity.describe(drawn)[0]
  (whole,) = polarity.agreement(described)
  a, b, none = polarity.agreement(described[:20], described[20:], described[:0])
  np.testing.assert_allclose(np.concatenate([a, b, none]), whole, atol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_one_image_alone(drawn, sign):
  pixels = drawn[:1] if sign > 0 else 255 - drawn[:1]
  (r,) = polarity.agreement(polarity.describe(pixels)[0])
  assert r[0] * sign > 0.3


def test_what_is_no_chest_is_unlike_or_flat(drawn):
  rng = np.random.default_rng(0)
  noise = rng.integers(100, 130, (1, 96, 96, 1)).astype(np.uint8)
  ramp = np.broadcast_to(np.linspace(0, 255, 96)[None, None, :, None], (1, 96, 96, 1))
  dot = np.full((1, 96, 96, 1), 40, np.uint8)
  dot[0, 0, 0] = 255
  x, spread = polarity.describe(np.concatenate([drawn, noise, ramp.astype(np.uint8), dot]))
  (r,) = polarity.agreement(x)
  assert (np.flatnonzero(spread < polarity.FLAT) == [60, 62]).all()
  assert abs(r[61]) < polarity.UNLIKE and np.isfinite(r).all()


def test_real_radiographs(test_data):
  """Three of the radiography archive are inverted, as one sees; and all of a sample, once
  inverted, are found."""
  archive = test_data / "COVID-19_Radiography_subset.zip"
  if not archive.is_file():
    pytest.skip(f"no {archive.name} in CXRJAX_TEST_DATA")
  wrong = (7771, 8594, 9232)
  with zipfile.ZipFile(archive) as files:
    names = sorted(n for n in files.namelist() if "/Normal/images/" in n)
    chosen = [
      *names[::25],
      *(f"COVID-19_Radiography_Dataset/Normal/images/Normal-{k}.jpg" for k in wrong),
    ]
    pixels = np.stack(
      [
        np.asarray(Image.open(io.BytesIO(files.read(n))).convert("L"))
        for n in dict.fromkeys(chosen)
      ]
    )[..., None]
  (r,) = polarity.agreement(polarity.describe(pixels)[0])
  assert np.flatnonzero(r <= polarity.INVERTED).tolist() == [len(r) - 3, len(r) - 2, len(r) - 1]
  (r,) = polarity.agreement(polarity.describe(255 - pixels[:-3])[0])
  assert len(r) > 300 and (r <= polarity.INVERTED).mean() > 0.98

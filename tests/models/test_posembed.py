"""Positions for other grids, against the code of those whose way each one is."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from cxrjax.core.errors import UserError
from cxrjax.models import posembed, vit

SIZES = [
  ((5, 5), (3, 8)),
  ((14, 14), (6, 6)),
  ((4, 4), (2, 2)),
  ((7, 7), (7, 16)),
  ((3, 3), (1, 9)),
]


def grid(old):
  return np.random.default_rng(0).normal(size=(*old, 2)).astype(np.float32)


def ours(old, new, interpolation):
  found = posembed.resample(jnp.asarray(grid(old).reshape(-1, 2)), old, new, interpolation)
  return np.asarray(found).reshape(*new, 2)


def cubic(d, a=-0.75):
  d = abs(d)
  if d <= 1:
    return (a + 2) * d**3 - (a + 3) * d**2 + 1
  return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def point(image, y, x):
  """One bicubic sample; what lies beyond an edge is the edge."""
  total = 0.0
  for i in range(math.floor(y) - 1, math.floor(y) + 3):
    for j in range(math.floor(x) - 1, math.floor(x) + 3):
      here = image[min(max(i, 0), len(image) - 1), min(max(j, 0), image.shape[1] - 1)]
      total = total + cubic(y - i) * cubic(x - j) * here
  return total


@pytest.mark.parametrize("old, new", SIZES)
@pytest.mark.parametrize("interpolation, more", [("dino", 0.1), ("torch", 0.0)])
def test_dino_and_torch_by_hand(interpolation, more, old, new):
  places = [
    [(i + 0.5) * o / (n + more) - 0.5 for i in range(n)] for o, n in zip(old, new, strict=True)
  ]
  image = grid(old).astype(np.float64)
  want = [[point(image, y, x) for x in places[1]] for y in places[0]]
  np.testing.assert_allclose(ours(old, new, interpolation), want, atol=1e-5)


@pytest.mark.parametrize("old, new", SIZES)
def test_timm_is_pillow(old, new):
  """torch's antialiased interpolation has the same kernel."""
  want = [
    np.asarray(
      Image.fromarray(np.ascontiguousarray(channel)).resize(new[::-1], Image.Resampling.BICUBIC)
    )
    for channel in grid(old).transpose(2, 0, 1)
  ]
  np.testing.assert_allclose(ours(old, new, "timm"), np.stack(want, -1), atol=1e-5)


@pytest.mark.parametrize("old, new", SIZES[:3])
def test_big_vision_is_scipys_zoom(old, new):
  factors = [n / o for o, n in zip(old, new, strict=True)]
  want = scipy.ndimage.zoom(grid(old), (*factors, 1), order=1)
  np.testing.assert_allclose(ours(old, new, "big_vision"), want, atol=1e-5)


# torch.nn.functional.interpolate(mode="bicubic") of a row of five unit vectors, to three.
TORCH = {
  "dino": [
    [0.7141, 0.3347, -0.0488, 0, 0],
    [-0.0045, 0.0696, 0.986, -0.0511, 0],
    [0, 0, -0.0873, 0.5511, 0.5363],
  ],
  "torch": [[0.6852, 0.3704, -0.0556, 0, 0], [0, 0, 1, 0, 0], [0, 0, -0.0556, 0.3704, 0.6852]],
  "timm": [
    [0.5846, 0.4462, 0, -0.0308, 0],
    [-0.0372, 0.2465, 0.5814, 0.2465, -0.0372],
    [0, -0.0308, 0, 0.4462, 0.5846],
  ],
}


@pytest.mark.parametrize("interpolation", TORCH)
def test_numbers_are_torchs(interpolation):
  """`scale_factor=3.1 / 5`; `size=3`; `size=3, antialias=True`."""
  np.testing.assert_allclose(posembed.weights(5, 3, interpolation), TORCH[interpolation], atol=6e-5)


def test_the_same_grid_is_left_alone():
  old = jnp.asarray(grid((4, 4)).reshape(-1, 2))
  assert posembed.resample(old, (4, 4), (4, 4)) is old


def test_another_word():
  with pytest.raises(UserError, match=r"config\.model\.interpolation='dinno'.*'dino'"):
    vit.Model(interpolation="dinno")

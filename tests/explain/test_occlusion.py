import jax.numpy as jnp
import numpy as np
import pytest
from small import full

from cxrjax.explain.occlusion import occlusion


class Linear:
  """An encoder whose only feature is a weighted sum of the pixels: what hiding costs is known."""

  def __init__(self, weight):
    self.weight = weight

  def encode(self, params, x):
    del params
    return type("F", (), {"cls": (x[..., 0] * self.weight).sum((1, 2))[:, None]})


def by_hand(x, weight, window, stride):
  """Window by window, pixel by pixel."""
  h, w = weight.shape
  drop, count = np.zeros((len(x), h, w)), np.zeros((h, w))
  tops = sorted({*range(0, h - window + 1, stride), h - window})
  lefts = sorted({*range(0, w - window + 1, stride), w - window})
  for i, image in enumerate(x):
    for top in tops:
      for left in lefts:
        part = np.s_[top : top + window, left : left + window]
        lost = ((image[part] - image.mean()) * weight[part]).sum()
        drop[i][part] += lost
        count[part] += i == 0
  return drop / count


@pytest.mark.parametrize(
  ("shape", "window", "stride"),
  [full((8, 12), 4, 2), full((8, 12), 4, 4), ((9, 11), 4, 2), full((6, 6), 3, 1)],
)
def test_against_loops(shape, window, stride):
  rng = np.random.default_rng(0)
  x, weight = rng.standard_normal((2, *shape)), rng.standard_normal(shape)
  maps = occlusion(
    Linear(jnp.asarray(weight)), None, jnp.asarray(x)[..., None], lambda f: f[:, 0], window, stride
  )
  expected = by_hand(x, weight, window, stride)
  rows, columns = (np.minimum(np.arange(0, n, stride) + stride // 2, n - 1) for n in shape)
  np.testing.assert_allclose(maps, expected[:, rows][:, :, columns], rtol=1e-3, atol=1e-4)


def test_only_what_counts_shows():
  weight = np.zeros((16, 16))
  weight[4:6, 10:12] = 1
  x = np.zeros((1, 16, 16, 1))
  x[0, 4:6, 10:12] = 1
  maps = np.asarray(occlusion(Linear(jnp.asarray(weight)), None, jnp.asarray(x), lambda f: f[:, 0]))
  assert maps.shape == (1, 16, 16)
  assert np.unravel_index(maps[0].argmax(), (16, 16)) in [(y, x) for y in (4, 5) for x in (10, 11)]
  assert maps[0, 12:].max() == 0


def test_windows_that_do_not_fit():
  with pytest.raises(ValueError, match="divide"):
    occlusion(Linear(jnp.zeros((8, 8))), None, jnp.zeros((1, 8, 8, 1)), lambda f: f[:, 0], 4, 3)
  with pytest.raises(ValueError, match="fit"):
    occlusion(Linear(jnp.zeros((8, 8))), None, jnp.zeros((1, 8, 8, 1)), lambda f: f[:, 0], 9, 9)

"""Corrupted rectangles: how many, how large, where, filled with what, against NumPy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.views import corruption
from cxrjax.views.corruption import Corruption

SIZE, N = 40, 240
KEYS = jax.random.split(jax.random.key(0), N)
IMAGES = jax.random.normal(jax.random.key(1), (N, SIZE, SIZE, 1)) + 10.0


def corrupt(options, keys=KEYS, images=IMAGES, views=1):
  found, mask = jax.jit(lambda k, x: Corruption(**options)(k, x, views))(keys, images)
  return np.asarray(found), np.asarray(mask)


@pytest.mark.parametrize("align", [1, 8])
def test_rectangles_are_used_in_order_until_the_area_is_reached(align):
  rng = np.random.default_rng(align)
  numbers = jnp.asarray(rng.random((12, 4, corruption.MAX_BOXES)), jnp.float32)
  boxes = np.asarray(Corruption(align=align).boxes(numbers, SIZE, 48))
  area = np.array([0.1, 1, 64, 65, 300.5, 600, 900, 1200, 1440, 1700, 1900, 1e9], np.float32)
  first, mask = jax.jit(corruption._cover, static_argnums=(2, 3))(
    jnp.asarray(boxes), jnp.asarray(area), SIZE, 48
  )
  for i in range(12):
    order = np.full((SIZE, 48), corruption.MAX_BOXES)
    want, used = np.zeros((SIZE, 48), bool), 0
    for j in range(corruption.MAX_BOXES):
      top, bottom, left, right = boxes[:, i, j]
      part = order[top:bottom, left:right]
      part[part == corruption.MAX_BOXES] = j
      if want.sum() < area[i]:
        want[top:bottom, left:right] = True
        used += 1
    np.testing.assert_array_equal(first[i], order)
    np.testing.assert_array_equal(mask[i], want)
    assert area[i] == 1e9 or used < corruption.MAX_BOXES


@pytest.mark.parametrize("align, longest", [(1, 11), (8, 8), (16, 16), (4, 11)])
def test_sides_and_places_of_rectangles(align, longest):
  """0.3 x 40 - 1 = 11 pixels at most, but never less than `align`."""
  rng = np.random.default_rng(0)
  numbers = rng.random((50, 4, corruption.MAX_BOXES)).astype(np.float32)
  top, bottom, left, right = np.asarray(
    Corruption(align=align).boxes(jnp.asarray(numbers), SIZE, SIZE)
  )
  for start, end, place, length in (
    (top, bottom, numbers[:, 0], numbers[:, 2]),
    (left, right, numbers[:, 1], numbers[:, 3]),
  ):
    steps = SIZE // align
    np.testing.assert_array_equal(start, (place * steps).astype(int) * align)
    pixels = align + (length * (longest - align + 1)).astype(int)  # whole, both ends included
    assert pixels.min() == align and pixels.max() == longest
    rounded = np.floor(pixels / align + 0.5).astype(int) * align
    np.testing.assert_array_equal(end, np.minimum(start + rounded, SIZE))
    assert (start % align == 0).all() and ((end % align == 0) | (end == SIZE)).all()


@pytest.mark.parametrize("share, align", [(0.75, 1), (0.5, 1), (0.75, 8), (0.9, 1)])
def test_the_drawn_share_is_covered(share, align):
  _, mask = corrupt({"share": share, "alien": 0.0, "align": align})
  covered = mask.mean((1, 2, 3))
  over = max(11, align) ** 2 / SIZE**2  # at most the last rectangle is too much
  low = min(0.5, share)
  assert covered.min() >= low and covered.max() < share + over
  # Uniform between, and half a typical rectangle more.
  assert low + (share - low) / 2 <= covered.mean() <= low + (share - low) / 2 + over
  if share > 0.5:
    assert covered.std() > 0.8 * (share - low) / 12**0.5
  if align == 8:
    cells = mask.reshape(N, 5, 8, 5, 8)
    np.testing.assert_array_equal(cells.any((2, 4)), cells.all((2, 4)))


@pytest.mark.parametrize(
  "options", [{}, {"fill": "zeros"}, {"fill": ("copy",)}, {"fill": ("noise", "zeros", "copy")}]
)
def test_clean_pixels_stay_and_others_change(options):
  found, mask = corrupt(options)
  np.testing.assert_array_equal(found[~mask], np.asarray(IMAGES)[~mask])
  assert (found[mask] != np.asarray(IMAGES)[mask]).mean() > 0.99


def test_noise_is_normal_and_zeros_are_zero():
  found, mask = corrupt({"alien": 0.0})
  noise = found[mask]
  assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
  pairs = found[0][mask[0] & mask[1]], found[1][mask[0] & mask[1]]
  assert abs(np.corrcoef(*pairs)[0, 1]) < 0.15  # each image has its own
  found, mask = corrupt({"fill": ("zeros",), "alien": 0.0})
  assert not found[mask].any()


def test_an_aliens_pixels_are_another_images_in_the_same_place_and_view():
  """The pixels say which radiograph and view they are of."""
  views, count = 2, N // 2
  number = jnp.repeat(jnp.arange(count), views) + 1000.0 * jnp.tile(jnp.arange(views), count)
  place = jnp.arange(SIZE * SIZE).reshape(SIZE, SIZE, 1) / 4096.0
  images = number[:, None, None, None] + 1.0 + place
  found, mask = corrupt({"fill": ("zeros",)}, images=images, views=views)
  aliens, others = 0, []
  for i in range(N):
    pixels = found[i][mask[i]]
    if not pixels.any():
      assert mask[i].mean() >= 0.5
      continue
    aliens += 1
    np.testing.assert_allclose(pixels % 1, np.asarray(place)[mask[i]], atol=2e-4)
    (source,) = set(np.floor(pixels).astype(int) - 1)
    assert source // 1000 == i % views and source % 1000 != i // views
    others.append((source % 1000 - i // views) % count)
    assert 0.3 <= mask[i].mean() < 0.3 + 121 / 1600
  assert abs(aliens / N - 0.5) < 0.12  # one of two things to draw
  assert len(set(others)) > 40 and max(others) > 0.9 * count and min(others) < 0.1 * count


def test_every_filling_is_as_likely():
  found, mask = corrupt({"fill": ("noise", "zeros")}, images=jnp.full((N, SIZE, SIZE, 1), 7.0))
  kinds = [np.unique(found[i][mask[i]]) for i in range(N)]
  zeros = sum(k.tolist() == [0.0] for k in kinds)
  aliens = sum(k.tolist() == [7.0] for k in kinds)
  noise = sum(len(k) > 2 for k in kinds)
  assert zeros + aliens + noise == N
  assert max(abs(x / N - 1 / 3) for x in (zeros, aliens, noise)) < 0.12


def test_copies_are_rectangles_of_the_same_image():
  """The pixels say where they are from: neighbours stay neighbours, but at the seams."""
  place = jnp.arange(SIZE * SIZE, dtype=jnp.float32).reshape(SIZE, SIZE, 1)
  images = place + 10000.0 * jnp.arange(8)[:, None, None, None]
  found, mask = corrupt({"fill": ("copy",), "alien": 0.0}, KEYS[:8], images)
  assert (found // 10000 == np.arange(8)[:, None, None, None]).all()
  both = mask[:, :, 1:] & mask[:, :, :-1]
  steps = (found[:, :, 1:] - found[:, :, :-1])[both]
  assert (steps == 1).mean() > 0.6
  sources = (found % 10000)[mask]
  assert sources.max() - sources.min() > 0.95 * SIZE**2


def test_rectangles_lie_everywhere():
  share = corrupt({"alien": 0.0, "share": 0.5})[1].mean(0)[..., 0]
  inner = share[4:, 4:]
  assert inner.min() > 0.25 and inner.max() < 0.85
  assert abs(share[:20].mean() - share[20:].mean()) < 0.25


@pytest.mark.parametrize("fill", [("noise",), ("zeros",), ("copy",)])
def test_an_image_is_corrupted_alike_in_any_batch(fill):
  options = {"fill": fill, "alien": 0.0}
  whole = corrupt(options, KEYS[:20], IMAGES[:20])
  part = corrupt(options, KEYS[12:17], IMAGES[12:17])
  for a, b in zip(whole, part, strict=True):
    np.testing.assert_array_equal(a[12:17], b)
  assert len(np.unique(whole[1].reshape(20, -1), axis=0)) == 20


def test_with_aliens_what_another_image_decides_is_its_pixels_alone():
  whole, masks = corrupt({}, KEYS[:20], IMAGES[:20])
  part, part_masks = corrupt({}, KEYS[12:17], IMAGES[12:17])
  np.testing.assert_array_equal(masks[12:17], part_masks)
  alien = part_masks.mean((1, 2, 3)) < 0.49
  np.testing.assert_array_equal(whole[12:17][~alien], part[~alien])


@pytest.mark.parametrize(
  "options, words",
  [
    ({"share": 0.0}, r"config\.method\.corruption\.share=0.0 must be above 0"),
    ({"share": 1.0}, "at most 0.95"),
    ({"alien": -0.1}, r"corruption\.alien=-0.1"),
    ({"fill": ()}, "one or more of noise, zeros, copy"),
    ({"fill": "noize"}, "has 'noize'.*did you mean 'noise'"),
    ({"align": 0}, r"corruption\.align=0"),
    ({"largest": 0.0}, r"corruption\.largest=0.0"),
  ],
)
def test_mistakes(options, words):
  with pytest.raises(UserError, match=words):
    Corruption(**options)


def test_mistakes_that_the_images_show():
  with pytest.raises(UserError, match="the \\(micro\\)batch has one"):
    Corruption()(KEYS[:2], IMAGES[:2], 2)
  with pytest.raises(UserError, match="align=64 is larger than views of 40x40"):
    Corruption(align=64)(KEYS[:2], IMAGES[:2])

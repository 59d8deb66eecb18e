"""Masks of patches: exact sizes, where they lie, and that only the image's key decides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.views import masking

KEYS = jax.random.split(jax.random.key(0), 64)
GRID = 14, 14


def make(name, keys=KEYS, *args):
  return np.asarray(
    jax.jit(getattr(masking, name), static_argnums=range(1, 1 + len(args)))(keys, *args)
  )


def test_random_masks_are_exact_and_fair():
  keys = jax.random.split(jax.random.key(1), 4000)
  found = make("random", keys, 16, 12)
  assert (found.sum(1) == 12).all()
  np.testing.assert_allclose(found.mean(0), 0.75, atol=0.04)  # five standard deviations
  pairs = (found.astype(float).T @ found / 4000)[~np.eye(16, dtype=bool)]
  np.testing.assert_allclose(pairs, 12 * 11 / (16 * 15), atol=0.05)


def test_kept_are_the_others_in_order():
  found = make("random", KEYS, 49, 37)
  keep = np.asarray(masking.visible(jnp.asarray(found), 12))
  assert keep.dtype == np.int32
  for mask, kept in zip(found, keep, strict=True):
    np.testing.assert_array_equal(kept, np.flatnonzero(~mask))


@pytest.mark.parametrize("count", [0, 1, 59, 98, 195])
def test_blocks_are_exact(count):
  assert (make("blocks", KEYS, GRID, count).sum(1) == count).all()


def test_every_image_may_have_its_own_number_of_patches():
  counts = jnp.arange(64) * 3
  found = jax.jit(lambda keys: masking.blocks(keys, GRID, counts))(KEYS)
  np.testing.assert_array_equal(found.sum(1), counts)


def test_blocks_hang_together_and_singles_do_not():
  def neighbours(masks):  # how often a hidden patch's right neighbour is hidden too
    masks = masks.reshape(-1, *GRID)
    return masks[:, :, 1:][masks[:, :, :-1]].mean()

  assert neighbours(make("random", KEYS, 196, 59)) < 0.35
  assert neighbours(make("blocks", KEYS, GRID, 59)) > 0.7


def test_blocks_lie_everywhere():
  keys = jax.random.split(jax.random.key(2), 2000)
  share = make("blocks", keys, (8, 8), 32).mean(0).reshape(8, 8)
  assert share.min() > 0.1  # rectangles favour the middle
  np.testing.assert_allclose(share, share[::-1], atol=0.08)
  np.testing.assert_allclose(share, share.T, atol=0.08)


def regions(sizes):
  """Regions of these sizes among 64 patches."""
  return jnp.stack([jnp.roll(jnp.arange(64) < n, 5 * i) for i, n in enumerate(sizes)])


def test_guided_masks_are_dense_inside():
  region = regions([20, 40, 1, 10])
  found = masking.guided(KEYS[:4], region, 32, 0.9)
  assert (found.sum(1) == 32).all()
  # 90 % of each region; of the large one no more than are to be hidden.
  np.testing.assert_array_equal((found & region).sum(1), [18, 32, 1, 9])


def test_where_lungs_are_large_all_is_inside_and_without_lungs_nothing_is():
  region = regions([20, 20, 0, 64])
  found = masking.guided(KEYS[:4], region, 14, 0.75)
  np.testing.assert_array_equal(found.sum(1), 14)
  np.testing.assert_array_equal((found & region).sum(1), [14, 14, 0, 14])


def test_what_does_not_fit_outside_goes_inside():
  region = regions([60])
  found = masking.guided(KEYS[:1], region, 48, 0.5)
  assert (int(found.sum()), int((found & region).sum())) == (48, 44)


def test_guided_masks_are_fair_on_both_sides():
  keys = jax.random.split(jax.random.key(3), 4000)
  region = jnp.broadcast_to(jnp.arange(16) < 6, (4000, 16))
  share = np.asarray(masking.guided(keys, region, 8, 0.84)).mean(0)
  np.testing.assert_allclose(share[:6], 5 / 6, atol=0.04)
  np.testing.assert_allclose(share[6:], 3 / 10, atol=0.04)


@pytest.mark.parametrize("name, args", [("random", (196, 147)), ("blocks", (GRID, 60))])
def test_an_image_has_its_mask_in_any_batch(name, args):
  whole = make(name, KEYS, *args)
  np.testing.assert_array_equal(make(name, KEYS[10:20], *args), whole[10:20])
  assert len(np.unique(whole, axis=0)) == 64


def test_coverage_is_the_share_of_a_patch():
  masks = np.zeros((2, 4, 6, 1), np.uint8)
  masks[1, :2, :3] = 1
  np.testing.assert_allclose(
    masking.coverage(jnp.asarray(masks), 2), [[0] * 6, [1, 0.5, 0, 0, 0, 0]]
  )

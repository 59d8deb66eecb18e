"""Views of pretext tasks: a puzzle's patches lie in their cells, turns are turns."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from cxrjax.core.errors import UserError
from cxrjax.views import multicrop, pretext
from cxrjax.views.multicrop import DRAWS

KEY = jax.random.key(7)
PLAIN = {"flip": 0.0, "brightness": 0.0, "contrast": 0.0}
SIZES = {"global_size": 48, "local_size": 16}
ROTATION = {"global_size": 48}

make = jax.jit(lambda recipe, *args, **kw: recipe(*args, **kw), static_argnums=0)


@pytest.fixture(scope="module")
def batch(drawn):
  """u8[8 160 160 1]."""
  return np.concatenate([drawn, drawn[:, ::-1]])[..., None]


def draws(recipe, n=4000, height=160, width=160):
  numbers = np.random.default_rng(1).uniform(size=(n, 9, DRAWS)).astype(np.float32)
  draw = jax.jit(recipe.draw, static_argnums=(1, 2, 3))
  return jax.tree.map(np.asarray, draw(numbers, height, width, True))


RECIPES = {
  "jigsaw": (pretext.Jigsaw(**SIZES), {"patches": (9, 8, 16, 16, 1)}),
  "rotation": (pretext.Rotation(**ROTATION), {"rotated": (1, 8, 48, 48, 1)}),
}
both = pytest.mark.parametrize(("recipe", "shapes"), RECIPES.values(), ids=RECIPES)


@both
def test_shapes_and_names(recipe, shapes, batch):
  views = make(recipe, KEY, batch)
  assert {k: v.shape for k, v in views.items()} == {"global": (1, 8, 48, 48, 1), **shapes}
  for view in views.values():
    assert view.dtype == jnp.float32
    assert float(jnp.abs(view).max()) <= 2 + 1e-5  # (x - .5) / .25 of x in 0..1
    assert float(view.std()) > 0.2


@both
def test_views_do_not_depend_on_the_split_of_the_batch(recipe, shapes, batch):
  whole = make(recipe, KEY, batch)
  for part in (slice(0, 4), slice(5, 6)):
    some = make(recipe, KEY, batch[part], index=jnp.arange(8)[part])
    for name, view in whole.items():
      np.testing.assert_allclose(some[name], view[:, part], atol=2e-4)


@both
def test_another_key_gives_other_views(recipe, shapes, batch):
  one, other = make(recipe, KEY, batch), make(recipe, jax.random.key(8), batch)
  for name, view in one.items():
    assert float(jnp.abs(other[name] - view).mean()) > 0.05


def test_patches_lie_in_the_cells_of_one_crop_each_in_another():
  recipe = pretext.Jigsaw(ratio=(1.0, 1.0), **SIZES)
  d = draws(recipe)
  # Nine squares of 64/255 of a crop's side: what the paper cuts out of 255 pixels.
  side = d.height[:, :1] * 255 / 64
  np.testing.assert_allclose(d.height, np.broadcast_to(d.height[:, :1], d.height.shape))
  np.testing.assert_allclose(d.width, d.height, rtol=1e-5)
  share = (side[:, 0] / 160) ** 2
  assert 0.6 <= share.min() < 0.61 and 0.99 < share.max() <= 1.0001
  # The crop begins no later than its first patch, and no more than a cell's slack, 21/255, before.
  for start in (d.top, d.left):
    first = start.min(1)
    assert (first >= -1e-4).all()
    # Of every cell there is one patch in each of the other direction's three cells.
    order = np.sort(start, axis=1).reshape(-1, 3, 3)
    gaps = (order[:, 1:] - order[:, :-1]).min((1, 2))
    assert (gaps > side[:, 0] * (85 - 21 - 1) / 255 - side[:, 0] * 21 / 255).all()
    assert (start.max(1) + d.height[:, 0] <= 160 + 1e-3).all()
  # Row and column of each patch: where it begins, in cells, is at most 21/85 beyond a whole number.
  known = pretext.Jigsaw(ratio=(1.0, 1.0), local_scale=(1.0, 1.0), **SIZES)
  d = draws(known)
  row, column = d.top / 160 * 3, d.left / 160 * 3
  for cells in (row, column):
    beyond = (cells + 1e-5) % 1
    assert beyond.max() <= 21 / 85 + 1e-4 and beyond.max() > 0.24
    assert abs(beyond.mean() - 21 / 170) < 0.003
  cell = np.floor(row + 1e-5) * 3 + np.floor(column + 1e-5)
  assert (np.sort(cell, axis=1) == np.arange(9)).all()
  # Every cell is in every place equally often: 1/9, to four standard errors.
  for place in range(9):
    counts = np.bincount(cell[:, place].astype(int), minlength=9) / len(cell)
    assert abs(counts - 1 / 9).max() < 4 * (8 / 81 / len(cell)) ** 0.5


def test_every_patch_is_flipped_and_jittered_by_itself():
  d = draws(pretext.Jigsaw(**SIZES))
  assert abs(d.flip.mean() - 0.5) < 0.02
  assert 0.001 < (d.flip.all(1) | ~d.flip.any(1)).mean() < 0.008  # 2 / 512
  for factor in (d.brightness, d.contrast):
    assert factor.min() < 0.61 and factor.max() > 1.39
    assert abs(np.corrcoef(factor[:, 0], factor[:, 1])[0, 1]) < 0.06


def test_patches_show_what_was_drawn(batch):
  recipe = pretext.Jigsaw(**SIZES, **PLAIN)
  views = make(recipe, KEY, batch)["patches"]
  numbers = np.stack(
    [jax.random.uniform(jax.random.fold_in(KEY, i), (10, DRAWS)) for i in range(8)]
  )[:, 1:]
  d = jax.tree.map(np.asarray, recipe.draw(jnp.asarray(numbers), 160, 160, True))
  for i in range(8):
    image = PIL.Image.fromarray(batch[i, ..., 0].astype(np.float32))
    for v in range(9):
      box = (d.left[i, v], d.top[i, v], d.left[i, v] + d.width[i, v], d.top[i, v] + d.height[i, v])
      want = np.asarray(image.resize((16, 16), PIL.Image.Resampling.BICUBIC, box=box)) / 255
      got = views[v, i, ..., 0] * 0.25 + 0.5
      np.testing.assert_allclose(got, want.clip(0, 1), atol=2e-3)


def test_quarter_turns():
  x = np.random.default_rng(0).normal(size=(2, 4, 5, 5, 1)).astype(np.float32)
  got = pretext.quarter_turns(jnp.asarray(x), jnp.arange(4))
  for k in range(4):
    np.testing.assert_array_equal(got[:, k], np.rot90(x[:, k], k, axes=(1, 2)))


def test_rotations_are_turned_crops_of_the_image(batch):
  # With the whole image as the crop nothing is left but the turn.
  recipe = pretext.Rotation(**ROTATION, **PLAIN, global_scale=(1.0, 1.0), ratio=(1.0, 1.0))
  seen = []
  for seed in range(4):
    views = jax.tree.map(np.asarray, make(recipe, jax.random.key(seed), batch))
    for image, rotated in zip(views["global"][0], views["rotated"][0], strict=True):
      gaps = [np.abs(np.rot90(image, k) - rotated).max() for k in range(4)]
      assert np.sort(gaps)[0] < 1e-5 < 0.5 < np.sort(gaps)[1]
      seen.append(int(np.argmin(gaps)))
  assert set(seen) == {0, 1, 2, 3}
  # Each view is another crop, in general.
  views = make(pretext.Rotation(**ROTATION, **PLAIN), KEY, batch)
  assert all(
    np.abs(np.rot90(views["global"][0], k, (1, 2)) - views["rotated"][0]).max() > 0.5
    for k in range(4)
  )


def test_the_image_view_is_multi_crops(batch):
  options = {
    **SIZES,
    "global_scale": (0.08, 1.0),
    "jitter_prob": 1.0,
    "blur_prob": 0.0,
    "solarize_prob": 0.0,
    "global_crops": 1,
    "local_crops": 0,
  }
  want = make(multicrop.Recipe(**options), KEY, batch)["global"]
  got = make(pretext.Jigsaw(**SIZES), KEY, batch)["global"]
  np.testing.assert_allclose(got, want, atol=2e-4)


def test_mistakes():
  with pytest.raises(UserError, match=r"config\.views\.local_share=0\.5 must be a number in"):
    pretext.Jigsaw(local_share=0.5)
  with pytest.raises(UserError, match=r"config\.views\.local_size=0 must be a whole number"):
    pretext.Jigsaw(local_size=0)
  with pytest.raises(UserError, match=r"config\.views\.local_size=64 is larger than the images"):
    pretext.Jigsaw(global_size=32).check(48)

"""The recipe: what it draws, that it does what it drew, and that nothing else changes a view."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import scipy.ndimage
from small import full

from cxrjax.config import instantiate
from cxrjax.core.errors import UserError
from cxrjax.views import multicrop
from cxrjax.views.multicrop import DRAWS, Recipe

KEY = jax.random.key(7)
SMALL = {"global_size": 48, "local_size": 24, "local_crops": 2}
PLAIN = {"flip": 0.0, "jitter_prob": 0.0, "blur_prob": 0.0, "solarize_prob": 0.0}

make = jax.jit(lambda recipe, *args, **kw: recipe(*args, **kw), static_argnums=0)


@pytest.fixture(scope="module")
def batch():
  """u8[8 64 64 1], every image different."""
  rng = np.random.default_rng(3)
  noise = scipy.ndimage.gaussian_filter(rng.standard_normal((8, 64, 64)), (0, 2, 2)) * 400 + 128
  return np.clip(noise, 0, 255).astype(np.uint8)[..., None]


@pytest.fixture(scope="module")
def views(batch):
  return make(Recipe(**SMALL), KEY, batch)


def draws(recipe, n=20000, views=1, local=False, height=256, width=256):
  """`n` draws of each view."""
  numbers = np.random.default_rng(1).uniform(size=(n, views, DRAWS)).astype(np.float32)
  return drawn_by(recipe, numbers, height, width, local)


def drawn_by(recipe, numbers, height, width, local):
  """The recipe's draw as NumPy arrays."""
  draw = jax.jit(recipe.draw, static_argnums=(1, 2, 3))
  return jax.tree.map(np.asarray, draw(numbers, height, width, local))


def numbers_of(images, count):
  """The uniform numbers that belong to the first `images` images."""
  return np.stack(
    [jax.random.uniform(jax.random.fold_in(KEY, i), (count, DRAWS)) for i in range(images)]
  )


def test_gamma_is_a_power_of_the_gray_levels(batch):
  whole = {
    **PLAIN,
    "global_size": 64,
    "global_scale": (1.0, 1.0),
    "ratio": (1.0, 1.0),
    "local_crops": 0,
    "mean": 0.0,
    "std": 1.0,
  }
  plain, bent = (
    np.asarray(make(Recipe(**whole, gamma=g), KEY, batch)["global"], np.float64) for g in (0.0, 0.5)
  )
  inside = (plain > 0.1) & (plain < 0.9)
  one = np.where(inside, plain, 0.5)
  powers = np.where(inside, np.log(np.where(inside, bent, 0.5)) / np.log(one), np.nan)
  found = np.nanmean(powers, (2, 3, 4))
  assert np.nanmax(np.nanstd(powers, (2, 3, 4))) < 1e-3  # one power a view
  assert np.ptp(found) > 0.3 and found.min() > np.exp(-0.5) and found.max() < np.exp(0.5)
  d = draws(Recipe(gamma=0.5))
  np.testing.assert_allclose(np.log(d.gamma).mean(), 0, atol=0.01)
  np.testing.assert_allclose(np.quantile(np.log(d.gamma), [0, 1]), [-0.5, 0.5], atol=0.01)


def test_shapes_and_names(views, batch):
  assert set(views) == {"global", "local"}
  assert views["global"].shape == (2, 8, 48, 48, 1)
  assert views["local"].shape == (2, 8, 24, 24, 1)
  assert all(v.dtype == jnp.float32 and bool(jnp.isfinite(v).all()) for v in views.values())
  without = jax.eval_shape(Recipe(**SMALL | {"local_crops": 0}), KEY, batch)
  assert set(without) == {"global"}


def test_values_stay_in_range(views):
  for view in views.values():  # (0 - .5) / .25 .. (1 - .5) / .25
    assert float(view.min()) >= -2.0 - 1e-5 and float(view.max()) <= 2.0 + 1e-5
    assert float(view.std()) > 0.2


def test_every_view_is_another(views):
  flat = np.asarray(views["global"]).reshape(16, -1)
  assert len(np.unique(flat.round(3), axis=0)) == 16


def test_views_do_not_depend_on_the_split_of_the_batch(views, batch):
  recipe = Recipe(**SMALL)
  for part in (slice(0, 4), slice(4, 8), slice(5, 6)):
    some = make(recipe, KEY, batch[part], index=jnp.arange(8)[part])
    for name, view in views.items():
      np.testing.assert_allclose(some[name], view[:, part], atol=2e-5)


def test_views_do_not_depend_on_how_many_there_are(views, batch):
  fewer = make(Recipe(**SMALL | {"local_crops": 1}), KEY, batch)
  np.testing.assert_allclose(fewer["global"], views["global"], atol=2e-5)
  np.testing.assert_allclose(fewer["local"], views["local"][:1], atol=2e-5)


def test_same_key_same_views_other_key_other_views(views, batch):
  recipe = Recipe(**SMALL)
  again, other = make(recipe, KEY, batch), make(recipe, jax.random.key(8), batch)
  for name, view in views.items():
    np.testing.assert_array_equal(again[name], view)
    assert float(jnp.abs(other[name] - view).mean()) > 0.05


def test_any_pixel_type(views, batch):
  recipe = Recipe(**SMALL)
  for images in (batch.astype(np.uint16) * 257, batch / np.float32(255)):
    found = make(recipe, KEY, images)
    for name, view in views.items():
      # Solarisation is a threshold: a pixel on it may go either way.
      assert float((jnp.abs(found[name] - view) < 1e-4).mean()) > 0.9999


@pytest.mark.parametrize("rotate", [0.0, 15.0])
def test_a_constant_image_stays_constant(rotate):
  recipe = Recipe(**SMALL, rotate=rotate, jitter_prob=0.0, solarize_prob=0.0)
  images = jnp.full((2, 64, 64, 1), 51, jnp.uint8)
  for view in make(recipe, KEY, images).values():
    np.testing.assert_allclose(view, (0.2 - 0.5) / 0.25, atol=1e-4)


def test_mean_and_std(views, batch):
  scaled = make(Recipe(**SMALL, mean=0.3, std=0.2), KEY, batch)
  for name, view in views.items():
    np.testing.assert_allclose(scaled[name], (view * 0.25 + 0.5 - 0.3) / 0.2, atol=1e-4)


def test_flipping_always_mirrors(batch):
  never = make(Recipe(**SMALL | PLAIN), KEY, batch)
  always = make(Recipe(**SMALL | PLAIN | {"flip": 1.0}), KEY, batch)
  for name, view in never.items():
    np.testing.assert_allclose(always[name], view[:, :, :, ::-1], atol=1e-4)


def reference(recipe, image, draw, size):
  """One view, step by step: PIL's crop and plain NumPy, at the draw's parameters."""
  box = (draw.left, draw.top, draw.left + draw.width, draw.top + draw.height)
  x = PIL.Image.fromarray(image).resize((size, size), PIL.Image.Resampling.BICUBIC, box)
  x = np.asarray(x) / 255.0
  x = x[:, ::-1] if draw.flip else x
  steps = [
    lambda x: np.clip(draw.brightness * x, 0, 1),
    lambda x: np.clip(draw.contrast * x + (1 - draw.contrast) * x.mean(), 0, 1),
  ]
  for step in steps if draw.brightness_first else steps[::-1]:
    x = step(x)
  if draw.sigma > 0:
    blur = {"sigma": draw.sigma, "mode": "constant", "truncate": 6}
    x = scipy.ndimage.gaussian_filter(x, **blur) / scipy.ndimage.gaussian_filter(x * 0 + 1, **blur)
  if draw.solarize:
    x = np.where(x >= recipe.solarize_threshold, 1 - x, x)
  return x


def check_against_reference(recipe, images):
  """Every view of `images` u8[b h w] within a gray level of the reference, nearly everywhere."""
  views = make(recipe, KEY, images[..., None])
  count = recipe.global_crops + recipe.local_crops
  numbers = numbers_of(len(images), count)
  split = recipe.global_crops
  for name, own, local in (
    ("global", numbers[:, :split], False),
    ("local", numbers[:, split:], True),
  ):
    draw = drawn_by(recipe, own, *images.shape[1:3], local)
    size = views[name].shape[2]
    for i, image in enumerate(images):
      for v in range(own.shape[1]):
        one = jax.tree.map(lambda a, i=i, v=v: a[i, v].item(), draw)
        wanted = reference(recipe, image, one, size)
        found = np.asarray(views[name][v, i, ..., 0]) * recipe.std + recipe.mean
        difference = np.abs(found - wanted) * 255
        # Solarised pixels at the threshold flip with a hundredth of a gray level.
        assert np.median(difference) < 0.5, one
        assert np.quantile(difference, 0.97) < 2.0, one


def test_views_are_what_was_drawn(drawn):
  check_against_reference(
    Recipe(global_size=96, local_size=40, local_crops=4, solarize_prob=(0.0, 0.5, 0.3)), drawn
  )


def test_views_of_real_radiographs_are_what_was_drawn(radiographs):
  shape = radiographs[0].shape
  images = np.stack([r for r in radiographs if r.shape == shape][:4])
  check_against_reference(Recipe(local_crops=2), images)


def test_boxes_follow_the_recipe():
  recipe = Recipe()
  for local, (low, high) in ((False, recipe.global_scale), (True, recipe.local_scale)):
    d = draws(recipe, local=local)
    area, ratio = d.height * d.width / 256**2, d.width / d.height
    assert low - 1e-4 <= area.min() and area.max() <= high + 1e-4
    assert ratio.min() >= 0.75 - 1e-4 and ratio.max() <= 4 / 3 + 1e-4
    assert d.top.min() >= 0 and (d.top + d.height).max() <= 256 + 1e-3
    assert d.left.min() >= 0 and (d.left + d.width).max() <= 256 + 1e-3
    assert abs(np.log(ratio).mean()) < 0.01
  assert abs(area.mean() - 0.225) < 0.002  # small crops always fit: uniform
  assert abs(area.std() - 0.35 / math.sqrt(12)) < 0.002
  place = d.top / (256 - d.height)
  assert abs(place.mean() - 0.5) < 0.01 and abs(place.std() - 1 / math.sqrt(12)) < 0.005


def torchvision_box(rng, height, width, scale, ratio):
  """RandomResizedCrop.get_params, without rounding: (area, ratio) of one box."""
  for _ in range(10):
    area = height * width * rng.uniform(*scale)
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
    if w <= width and h <= height:
      return h * w / (height * width), w / h
  whole = width / height
  if whole < ratio[0]:
    w, h = width, width / ratio[0]
  elif whole > ratio[1]:
    w, h = height * ratio[1], height
  else:
    w, h = width, height
  return h * w / (height * width), w / h


@pytest.mark.parametrize("shape", [(256, 256), (200, 320), (100, 400)])
def test_boxes_have_torchvisions_distribution(shape):
  rng = np.random.default_rng(0)
  wanted = np.asarray(
    [torchvision_box(rng, *shape, (0.4, 1.0), (3 / 4, 4 / 3)) for _ in range(10000)]
  )
  d = draws(Recipe(), 10000, height=shape[0], width=shape[1])
  found = np.stack([d.height * d.width / math.prod(shape), d.width / d.height], -1)[:, 0]
  for q in (0.05, 0.25, 0.5, 0.75, 0.95):
    np.testing.assert_allclose(
      np.quantile(found, q, axis=0), np.quantile(wanted, q, axis=0), atol=0.03
    )


def test_where_no_box_fits_the_largest_central_one_is_taken():
  d = draws(Recipe(global_scale=(1.0, 1.0)), 10, height=100, width=400)
  np.testing.assert_allclose(d.height, 100, rtol=1e-5)
  np.testing.assert_allclose(d.width, 400 / 3, rtol=1e-5)
  np.testing.assert_allclose(d.left, (400 - 400 / 3) / 2, rtol=1e-5)
  d = draws(Recipe(global_scale=(1.0, 1.0)), 10, height=100, width=40)
  np.testing.assert_allclose(d.height, 40 / 0.75, rtol=1e-5)
  np.testing.assert_allclose(d.top, (100 - 40 / 0.75) / 2, rtol=1e-5)


def test_a_box_may_be_larger_than_the_image_which_then_lies_anywhere_in_it(batch):
  d = draws(Recipe(global_scale=(1.5, 3.0), ratio=(1.0, 1.0)), height=100, width=100)
  area = d.height * d.width / 1e4
  assert np.allclose(d.height, d.width, rtol=1e-5) and 1.5 <= area.min() < 1.52
  assert 2.98 < area.max() <= 3.001 and abs(area.mean() - 2.25) < 0.02
  end = d.top + d.height
  assert (d.top <= 1e-4).all() and (end >= 100 - 1e-4).all()
  place = -d.top / (d.height - 100)
  assert abs(place.mean() - 0.5) < 0.02 and place.std() == pytest.approx(12**-0.5, rel=0.03)
  # Four times the area shows all of it at half its size, and its edge around it.
  recipe = Recipe(
    global_size=64,
    global_crops=1,
    local_crops=0,
    global_scale=(4.0, 4.0),
    ratio=(1.0, 1.0),
    mean=0.0,
    std=1.0,
    **PLAIN,
  )
  found = np.asarray(make(recipe, KEY, batch)["global"])[0, ..., 0]
  half = batch[..., 0].reshape(8, 32, 2, 32, 2).mean((2, 4)) / 255
  for view, small in zip(found, half, strict=True):
    apart = [
      np.abs(view[i : i + 32, j : j + 32] - small).mean() for i in range(33) for j in range(33)
    ]
    assert np.min(apart) < 0.3 * np.median(apart)  # but for the part of a pixel that it lies off


def test_probabilities_and_ranges():
  d = draws(Recipe(rotate=10.0, brightness=0.3), views=3)
  near = {"atol": 0.015}
  np.testing.assert_allclose(d.flip.mean(0), 0.5, **near)
  np.testing.assert_allclose((d.brightness != 1).mean(0), 0.8, **near)
  np.testing.assert_array_equal(d.brightness != 1, d.contrast != 1)  # both or neither
  np.testing.assert_allclose(d.brightness_first.mean(0), 0.5, **near)
  np.testing.assert_allclose((d.sigma > 0).mean(0), [1.0, 0.1, 1.0], **near)  # in turn
  np.testing.assert_allclose(d.solarize.mean(0), [0.0, 0.2, 0.0], **near)
  for values, low, high in (
    (d.brightness[d.brightness != 1], 0.7, 1.3),
    (d.contrast[d.contrast != 1], 0.6, 1.4),
    (d.sigma[d.sigma > 0], 0.1, 2.0),
    (d.angle, -math.radians(10), math.radians(10)),
  ):
    assert low <= values.min() and values.max() <= high
    np.testing.assert_allclose(values.mean(), (low + high) / 2, atol=0.015)
    np.testing.assert_allclose(values.std(), (high - low) / math.sqrt(12), rtol=0.03)
  local = draws(Recipe(), views=3, local=True)
  np.testing.assert_allclose((local.sigma > 0).mean(0), 0.5, **near)
  assert not local.solarize.any()
  # No two of the parameters are drawn from the same numbers.
  columns = [
    local.top / (256 - local.height),
    local.left / (256 - local.width),
    local.height,
    local.flip,
    local.brightness,
    local.contrast,
    local.brightness_first,
    local.sigma,
  ]
  correlation = np.corrcoef(np.stack([c[:, 0] for c in columns]).astype(np.float64))
  assert np.abs(correlation - np.eye(len(columns))).max() < 0.03


def test_rotation_turns_what_the_crop_sees():
  """A bar through the middle, cropped whole: its direction is the angle drawn."""
  y, x = np.mgrid[:128, :128] - 63.5
  image = (np.abs(y) < 3).astype(np.uint8)[None, ..., None] * 255
  recipe = Recipe(
    global_size=96,
    global_crops=6,
    local_crops=0,
    global_scale=(1.0, 1.0),
    ratio=(1.0, 1.0),
    rotate=30.0,
    mean=0.0,
    std=1.0,
    **PLAIN,
  )
  views = np.asarray(make(recipe, KEY, image)["global"])[:, 0, ..., 0]
  angles = drawn_by(recipe, numbers_of(1, 6), 128, 128, False).angle[0]
  assert np.ptp(angles) > 0.3
  y, x = np.mgrid[:96, :96] - 47.5
  inside = np.hypot(x, y) < 40
  for view, angle in zip(views, angles, strict=True):
    w = view * inside
    direction = 0.5 * np.arctan2(2 * (w * x * y).sum(), (w * (x * x - y * y)).sum())
    assert abs(-direction - angle) < 0.01  # y points down


def flops(recipe, batch):
  return jax.jit(recipe).lower(KEY, batch).cost_analysis()["flops"]


def test_products_in_bfloat16_change_no_more_than_a_gray_level_or_two(drawn, monkeypatch):
  """As accelerators draw views, beside the views that the other tests hold."""
  recipe = Recipe(
    global_size=96, local_size=48, local_crops=4, mean=0.0, std=1.0, solarize_prob=0.0
  )
  found = []
  for platform in ("cpu", "default"):
    monkeypatch.setattr(
      jax.lax,
      "platform_dependent",
      lambda *operands, platform=platform, **to: to[platform](*operands),
    )
    found.append(jax.jit(lambda x: recipe(jax.random.key(0), x))(drawn[..., None]))
  for name in ("global", "local"):
    off = np.abs(np.asarray(found[0][name]) - np.asarray(found[1][name]))
    assert 0 < off.max() < 2 / 255 and off.mean() < 0.3 / 255, (name, off.max(), off.mean())


@pytest.mark.parametrize("rotate", [full(0.0), 15.0])
def test_masks_are_cut_where_the_images_are(batch, rotate):
  masks = (batch > 128).astype(np.uint8)
  recipe = Recipe(**SMALL, **PLAIN | {"flip": 0.5}, rotate=rotate, mean=0.0, std=1.0)
  found = make(recipe, KEY, masks * np.uint8(255), masks=masks)
  assert found["global_mask"].dtype == bool
  # The picture of a mask, cut out as a picture, is brighter than half where the mask is.
  clear = np.abs(found["global"] - 0.5) > 0.05  # on the edge, rounding decides
  assert clear.mean() > 0.8
  np.testing.assert_array_equal(found["global_mask"][clear], (found["global"] > 0.5)[clear])
  plain = make(Recipe(**SMALL, rotate=rotate), KEY, batch)
  masked = make(Recipe(**SMALL, rotate=rotate), KEY, batch, masks=masks)
  assert set(masked) == {*plain, "global_mask"}
  for name in plain:
    np.testing.assert_allclose(plain[name], masked[name], atol=1e-5)


def test_cost_is_linear_in_the_crops(batch):
  kind = dict(SMALL, global_size=64)
  none, four, eight = (flops(Recipe(**kind | {"local_crops": n}), batch) for n in (0, 4, 8))
  np.testing.assert_allclose(eight - none, 2 * (four - none), rtol=0.02)
  products = (
    2
    * 8
    * 2
    * (  # both large crops: crop and blur, two products each
      64 * 64 * 64 * 2 + 64 * 64 * 64 * 2
    )
  )
  assert products < none < 2 * products
  assert flops(Recipe(**kind | PLAIN), batch) < 0.7 * flops(Recipe(**kind), batch)


def test_nothing_is_gathered_by_default(batch):
  text = jax.jit(Recipe(**SMALL)).lower(KEY, batch).as_text()
  assert "dot_general" in text
  assert not re.search(r"gather|scatter|dynamic_slice", text)


def test_built_from_a_config():
  recipe = instantiate.build(
    {"name": "cxrjax.views.multicrop", "local_crops": 2, "global_scale": [0.3, 1]},
    "Recipe",
    "config.views",
  )
  assert recipe == Recipe(local_crops=2, global_scale=(0.3, 1.0))
  assert hash(recipe) == hash(Recipe(local_crops=2, global_scale=(0.3, 1.0)))
  with pytest.raises(UserError, match=r"config\.views\.locl_crops.*did you mean 'local_crops'"):
    instantiate.build({"name": "cxrjax.views.multicrop", "locl_crops": 2}, "Recipe", "config.views")


@pytest.mark.parametrize(
  "field, value, rule",
  [
    ("global_size", 0, "a whole number, at least 1"),
    ("local_crops", -1, "a whole number, at least 0"),
    ("local_crops", True, "a whole number, at least 0"),
    ("global_scale", (0.5, 0.4), "two numbers (least, greatest) in 0.0001 .. 4"),
    ("local_scale", (0.0, 0.4), "two numbers (least, greatest) in 0.0001 .. 4"),
    ("ratio", (0.0, 1.0), "two numbers (least, greatest) in 0.01 .. 100"),
    ("flip", 1.1, "a number in 0 .. 1"),
    ("brightness", -0.1, "a number in 0 .. 1"),
    ("contrast", math.nan, "a number in 0 .. 1"),
    ("blur_prob", (0.5,), "a probability, or one for each large crop and last the small crops'"),
    ("blur_prob", (0.5, 2.0), "a probability"),
    ("blur_sigma", (-1.0, 2.0), "two numbers (least, greatest), at least 0"),
    ("rotate", 200, "a number in 0 .. 180"),
    ("std", 0, "a number above 0"),
  ],
)
def test_a_wrong_field_is_named(field, value, rule):
  with pytest.raises(UserError) as error:
    Recipe(**{field: value})
  assert str(error.value).startswith(f"config.views.{field}={value!r} must be {rule}")
  assert "\n" not in str(error.value)


def test_one_probability_serves_all_crops():
  assert Recipe(blur_prob=0.3).blur_prob == (0.3, 0.3)
  assert Recipe(solarize_prob=0).solarize_prob == (0.0, 0.0)


def test_a_crop_larger_than_the_images_is_refused():
  Recipe().check(224)
  with pytest.raises(UserError, match=r"config\.views\.global_size=224 .*stored at 128 px"):
    Recipe().check(128)
  with pytest.raises(UserError, match=r"config\.views\.local_size=96 "):
    Recipe(global_size=32).check(64)
  Recipe(global_size=32, local_crops=0).check(64)


def test_draws_leave_room():
  assert multicrop.DRAWS >= 2 * multicrop.TRIES + 11

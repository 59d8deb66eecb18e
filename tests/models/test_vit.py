"""The encoder against independent references and its promises."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import full

from cxrjax.core.errors import UserError
from cxrjax.models import vit
from cxrjax.models.build import forward_flops

DEPTH = 2
MODEL = vit.Model(variant="Mu", width=32, depth=DEPTH, heads=2, image_size=64)


@pytest.fixture(scope="module")
def params():
  params = jax.jit(MODEL.init)(jax.random.key(0))
  return jax.tree.map(  # larger than the start, so that no term hides behind a small weight
    lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), params
  )


@functools.partial(jax.jit, static_argnames=("intermediates", "model"))
def _encode(params, images, keys=None, intermediates=(), model=MODEL):
  return model.encode(params, images, keys=keys, intermediates=intermediates)


def _images(key, n, size):
  shape = (size, size) if isinstance(size, int) else size
  return jax.random.normal(jax.random.key(key), (n, *shape, 1))


def _plain_vit(params, image, keep=None, mask=None):
  """One image, one loop per layer, no tricks: tokens after the final norm."""

  def linear(p, x):
    return x @ p["kernel"] + p["bias"]

  def norm(p, x):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(var + 1e-6) * p["scale"] + p["bias"]

  rows = image.shape[0] // 16
  patches = [
    image[16 * i : 16 * i + 16, 16 * j : 16 * j + 16].reshape(-1)
    for i in range(rows)
    for j in range(image.shape[1] // 16)
  ]
  x = linear(params["patch"], jnp.stack(patches))
  if mask is not None:
    x = jnp.where(mask[:, None], params["mask_token"], x)
  x = x + params["pos"][1:]
  x = x if keep is None else x[keep]
  x = jnp.concatenate([params["cls"] + params["pos"][:1], x])
  for i in range(DEPTH):
    p = params["blocks"][str(i)]
    q, k, v = jnp.split(linear(p["attn"]["qkv"], norm(p["norm1"], x)), 3, axis=1)
    heads = []
    for h in range(2):
      at = slice(16 * h, 16 * h + 16)
      heads.append(jax.nn.softmax(q[:, at] @ k[:, at].T / 4.0) @ v[:, at])
    x = x + linear(p["attn"]["proj"], jnp.concatenate(heads, axis=1))
    hidden = jax.nn.gelu(linear(p["mlp"]["fc1"], norm(p["norm2"], x)), approximate=False)
    x = x + linear(p["mlp"]["fc2"], hidden)
  return norm(params["norm"], x)


@pytest.mark.parametrize("remat", [False, full(True)])
def test_values_and_gradients_are_those_of_plain_code(params, remat):
  model = dataclasses.replace(MODEL, remat=remat)
  images, probe = _images(1, 2, 64), jax.random.normal(jax.random.key(7), (2, 17, 32))

  def ours(p):
    f = model.encode(p, images)
    return (jnp.concatenate([f.cls[:, None], f.patches], axis=1) * probe).sum()

  def plain(p):
    return (jax.vmap(functools.partial(_plain_vit, p))(images) * probe).sum()

  (a, da), (b, db) = (jax.jit(jax.value_and_grad(f))(params) for f in (ours, plain))
  np.testing.assert_allclose(a, b, rtol=1e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4, rtol=1e-3), da, db)


MASKED = dataclasses.replace(MODEL, mask_token=True)
KEEP = np.array([[3, 0, 15], [7, 8, 1]])
MASK = np.arange(32).reshape(2, 16) % 5 < 2


def _jax(array):
  return None if array is None else jnp.asarray(array)


def _masked_params(params):
  return params | {"mask_token": jax.random.normal(jax.random.key(9), (1, 32))}


@pytest.mark.parametrize(("keep", "mask"), [full(KEEP, None), full(None, MASK), (KEEP, MASK)])
def test_kept_and_masked_patches_are_those_of_plain_code(params, keep, mask):
  params, images = _masked_params(params), _images(1, 2, 64)
  probe = jax.random.normal(jax.random.key(7), (2, 17 if keep is None else 4, 32))

  def ours(p):
    f = MASKED.encode(p, images, keep=_jax(keep), mask=_jax(mask))
    return (jnp.concatenate([f.cls[:, None], f.patches], axis=1) * probe).sum()

  def plain(p):
    tokens = jax.vmap(functools.partial(_plain_vit, p))(images, _jax(keep), _jax(mask))
    return (tokens * probe).sum()

  (a, da), (b, db) = (jax.jit(jax.value_and_grad(f))(params) for f in (ours, plain))
  np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4, rtol=1e-3), da, db)


def test_groups_are_kept_and_masked_on_their_own(params):
  params, groups = _masked_params(params), (_images(1, 2, 64), _images(2, 3, 32))
  encode = jax.jit(functools.partial(MASKED.encode, params, intermediates=("attn", "block:-1")))
  large, small = encode(groups, keep=(_jax(KEEP), None), mask=[_jax(MASK), None])
  assert large.intermediates["attn"].shape == (2, 2, 4, 4)
  assert large.intermediates["block:-1"].shape == (2, 4, 32)
  alone = encode(groups[0], keep=_jax(KEEP), mask=_jax(MASK))
  for got, want in ((large, alone), (small, encode(groups[1]))):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def test_a_mask_token_changes_nothing_else():
  params = MASKED.init(jax.random.key(0))
  assert not params.pop("mask_token").any()
  jax.tree.map(np.testing.assert_array_equal, params, MODEL.init(jax.random.key(0)))


def test_dropped_patches_cost_nothing(params):
  images, keep = _images(1, 8, 64), jnp.tile(jnp.arange(4), (8, 1))

  def cost(**options):
    def f(p):
      return MODEL.encode(p, images, **options).patches.sum()

    return jax.jit(f).lower(params).compile().cost_analysis()["flops"]

  assert cost(keep=keep) < 0.35 * cost()  # 5 of 17 tokens


def test_sines_and_cosines_say_where_a_patch_is():
  params = dataclasses.replace(MODEL, positions="sincos").init(jax.random.key(0))
  assert not params["pos"][0].any()
  row, column = 2, 3  # of 4 x 4
  frequency = np.array([10000.0 ** (-i / 8) for i in range(8)])
  want = [
    np.sin(column * frequency),
    np.cos(column * frequency),
    np.sin(row * frequency),
    np.cos(row * frequency),
  ]
  np.testing.assert_allclose(params["pos"][1 + 4 * row + column], np.concatenate(want), atol=1e-6)


@pytest.mark.full
def test_unused_patches_are_not_computed(params):
  """The last block's large products drop out where only the class token is used."""
  images = _images(1, 8, 64)

  def cost(patches):
    def f(p):
      features = MODEL.encode(p, images)
      return features.cls.sum() + (features.patches.sum() if patches else 0.0)

    return jax.jit(f).lower(params).compile().cost_analysis()["flops"]

  whole, short = cost(True), cost(False)
  assert short < whole * (1 - 0.5 / DEPTH)


def test_flops_are_those_of_the_products():
  model = vit.Model(variant="Ti")
  # DeiT-Ti: 1.26 G multiply-adds
  assert forward_flops(model, (224, 224)) == pytest.approx(2.5e9, rel=0.02)


@pytest.mark.full
def test_start_is_dinos():
  params = vit.Model(variant="Ti").init(jax.random.key(0))
  assert sum(a.size for a in jax.tree.leaves(params)) == 5_426_112  # timm's, for one channel
  kernel = params["blocks"]["3"]["mlp"]["fc1"]["kernel"]
  assert abs(float(kernel.std()) / 0.02 - 1) < 0.02
  assert abs(float(kernel.mean())) < 1e-3
  assert not params["blocks"]["3"]["attn"]["qkv"]["bias"].any()


@pytest.mark.parametrize("std", [0.02, 1e-6])
def test_the_class_token_and_registers_start_as_asked(std):
  params = dataclasses.replace(MODEL, registers=8, token_std=std).init(jax.random.key(0))
  found = np.concatenate([np.ravel(params[name]) for name in ("cls", "registers")])
  assert 0.8 * std < found.std() < 1.2 * std


def test_registers_take_part_and_are_left_out(params):
  model = dataclasses.replace(MODEL, registers=2)
  got = _encode(
    model.init(jax.random.key(0)), _images(1, 2, 64), intermediates=("attn", "block:0"), model=model
  )
  assert got.patches.shape == (2, 16, 32)
  assert got.intermediates["attn"].shape == (2, 2, 19, 19)
  assert got.intermediates["block:0"].shape == (2, 19, 32)


def test_bfloat16_is_close(params):
  images = _images(1, 2, 64)
  half = _encode(params, images, model=dataclasses.replace(MODEL, dtype="bfloat16"))
  assert half.cls.dtype == half.patches.dtype == jnp.float32
  np.testing.assert_allclose(half.cls, _encode(params, images).cls, atol=0.15)


def test_sizes_run_jointly_as_they_do_alone(params):
  large, small = _images(1, 2, 64), _images(2, 3, 32)
  keys = jax.random.split(jax.random.key(3), 2), jax.random.split(jax.random.key(4), 3)
  joint = _encode(params, (large, small), keys=keys, intermediates=("attn", "block:-1"))
  for images, key, got in zip((large, small), keys, joint, strict=True):
    alone = _encode(params, images, keys=key, intermediates=("attn", "block:-1"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), alone, got)


@pytest.mark.full
def test_class_token_alone_is_the_class_token_of_the_whole(params):
  groups = _images(1, 2, 64), _images(2, 3, 32)
  whole = _encode(params, groups)
  short = jax.jit(lambda p: MODEL.encode(p, groups, patches=False))(params)
  for a, b in zip(whole, short, strict=True):
    np.testing.assert_allclose(a.cls, b.cls, atol=1e-5)
    assert b.patches is None


@pytest.mark.parametrize("patches", [full(True), False])
def test_the_mean_of_the_patches_may_stand_for_the_image(params, patches):
  model, groups = dataclasses.replace(MODEL, pool="mean"), (_images(1, 2, 64), _images(2, 3, 32))
  want = _encode(params, groups)
  found = jax.jit(lambda p: model.encode(p, groups, patches=patches))(params)
  for a, b in zip(want, found, strict=True):
    np.testing.assert_allclose(a.patches.mean(1), b.cls, atol=1e-5)
    assert (b.patches is not None) == patches


def test_layer_scale_is_a_factor_of_each_branch(params):
  model = dataclasses.replace(MODEL, layer_scale=1e-5)
  scaled = model.init(jax.random.key(0))
  plain = MODEL.init(jax.random.key(0))
  extra = {"ls1", "ls2"}
  for i, block in scaled["blocks"].items():
    assert set(block) - set(plain["blocks"][i]) == extra
    assert all(float(block[n].min()) == float(block[n].max()) == np.float32(1e-5) for n in extra)
  # Factors of 1 change nothing, factors of 0 leave the embedding.
  x = _images(1, 2, 64)
  ones = jax.tree.map_with_path(
    lambda path, v: jnp.ones_like(v) if path[-1].key in extra else v, scaled
  )
  same = {
    **ones,
    "blocks": {
      i: {k: plain["blocks"][i].get(k, v) for k, v in b.items()} for i, b in ones["blocks"].items()
    },
  }
  same = {k: same[k] if k == "blocks" else plain[k] for k in plain}
  run = jax.jit(lambda p: model.encode(p, x, intermediates=("block:0", "block:1")))
  want = jax.jit(lambda p: MODEL.encode(p, x))(plain)
  np.testing.assert_allclose(run(same).patches, want.patches, atol=1e-5)
  np.testing.assert_allclose(run(same).cls, want.cls, atol=1e-5)
  zeros = jax.tree.map_with_path(lambda path, v: 0 * v if path[-1].key in extra else v, scaled)
  intermediates = run(zeros).intermediates
  np.testing.assert_array_equal(intermediates["block:0"], intermediates["block:1"])


@pytest.mark.parametrize("uniform", [full(False), True])
def test_drop_path_rises_from_nothing_or_is_the_same_everywhere(params, uniform):
  model = dataclasses.replace(MODEL, drop_path=0.5, drop_uniform=uniform)
  x, keys = _images(1, 8, 64), jax.random.split(jax.random.key(1), 8)
  run = jax.jit(
    lambda p, k: model.encode(p, x, intermediates=("block:0",), keys=k).intermediates["block:0"]
  )
  off = jax.jit(lambda p: model.encode(p, x, intermediates=("block:0",)).intermediates["block:0"])
  assert np.array_equal(run(params, keys), off(params)) is not uniform


def test_attention_rows_sum_to_one(params):
  attn = _encode(params, _images(1, 2, 64), intermediates=("attn",)).intermediates["attn"]
  assert attn.shape == (2, 2, 17, 17)
  np.testing.assert_allclose(attn.sum(-1), 1.0, atol=1e-5)


def test_other_and_oblong_sizes(params):
  features = _encode(params, _images(1, 2, (48, 96)))
  assert features.patches.shape == (2, 18, 32)


def test_drop_path_does_not_depend_on_the_batch(params):
  model = vit.Model(variant="Mu", width=32, depth=DEPTH, heads=2, image_size=64, drop_path=0.5)
  images, keys = _images(1, 6, 64), jax.random.split(jax.random.key(5), 6)
  whole = _encode(params, images, keys, model=model).cls
  parts = [_encode(params, images[i : i + 3], keys[i : i + 3], model=model).cls for i in (0, 3)]
  np.testing.assert_allclose(whole, jnp.concatenate(parts), atol=1e-5)
  assert not np.allclose(whole, _encode(params, images, model=model).cls, atol=1e-3)


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda p: MODEL.encode(p, _images(1, 1, 40)), "40x40"),
    (lambda p: MODEL.encode(p, jnp.zeros((1, 32, 32, 3))), "3 channels"),
    (lambda p: MODEL.encode(p, _images(1, 1, 32), intermediates=("attention",)), "'attention'"),
    (lambda p: MODEL.encode(p, _images(1, 1, 32), intermediates=("block:3",)), "-2 to 1"),
    (lambda p: MODEL.encode(p, _images(1, 2, 64), mask=_jax(MASK)), "config.model.mask_token=True"),
  ],
)
def test_bad_calls_say_what_is_wrong(params, call, words):
  with pytest.raises(UserError, match=words):
    call(params)


@pytest.mark.parametrize(
  ("options", "word"),
  [
    ({"variant": "Tiny"}, "variant"),
    ({"image_size": 100}, "patch_size"),
    ({"heads": 5}, "heads"),
    ({"depth": 10**9}, "depth"),  # which a stranger's run may have
    ({"drop_path": 1.0}, "drop_path"),
    ({"positions": "cosine"}, "positions"),
    ({"pool": "max"}, "pool"),
    ({"layer_scale": -1.0}, "layer_scale"),
    ({"positions": "sincos", "width": 66, "heads": 2}, "width"),
  ],
)
def test_bad_options_name_their_key(options, word):
  with pytest.raises(UserError, match=f"config.model.{word}"):
    vit.Model(**options)


def test_standardized_features_do_not_see_exposure_and_contrast(params):
  model = dataclasses.replace(MODEL, standardize=True)
  images = _images(3, 2, 64)
  want = _encode(params, images, model=model).cls
  bright = _encode(params, 20 * images, model=model).cls
  np.testing.assert_allclose(_encode(params, 20 * images + 3, model=model).cls, bright, atol=2e-4)
  assert np.abs(bright - want).max() < 0.2
  assert np.abs(_encode(params, 20 * images).cls - _encode(params, images).cls).max() > 0.2


@pytest.mark.parametrize("initial", [full("normal"), full("xavier")])
def test_kernels_start_as_they_say(initial):
  kernel = vit.Model(variant="S", initial=initial, depth=1).init(jax.random.key(0))["blocks"]["0"][
    "attn"
  ]["qkv"]["kernel"]
  # Xavier: uniform within sqrt(6 / (in + out)) for each of queries, keys and values.
  want = 0.02 if initial == "normal" else np.sqrt(2 / (384 + 384))
  assert np.std(kernel) == pytest.approx(want, rel=0.02)

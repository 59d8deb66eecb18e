"""ViTAEv2 against plain code, and its published size."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import made_up
import numpy as np
import pytest
from small import full

from cxrjax.core.errors import UserError
from cxrjax.methods.base import split_stats
from cxrjax.models import vitae
from cxrjax.models.build import forward_flops
from cxrjax.models.module import param_count

MODEL = vitae.Model(width=16, depths=(1, 1, 1, 1), drop_path=0.4)


@pytest.fixture(scope="module")
def params():
  return jax.tree.map(jnp.asarray, made_up.of(MODEL))


@functools.partial(jax.jit, static_argnames=("intermediates", "train", "model"))
def _encode(params, x, keys=None, intermediates=(), train=False, model=MODEL):
  return model.encode(params, x, keys=keys, intermediates=intermediates, train=train)


def _images(n, *size):
  return jnp.asarray(made_up.images(n, *size, 1))


def _expected(width, embed, depths, channels):
  """Trained parameters of the published network, layer by layer.

  Zhang et al., table 1 and the authors' code: every convolution has a bias, queries, keys and
  values have one but in the last two reduction cells, norms have two vectors.
  """

  def conv(a, b, size, groups):
    return size * size * a // groups * b + b

  def linear(a, b):
    return a * b + b

  total, before = 0, channels
  for i, dim in enumerate((width, 2 * width, 4 * width, 8 * width)):
    e = embed[i]
    size, scales = (7, 3, 3, 3)[i], (4, 3, 2, 2)[i]
    groups, normal_groups = (1, 16, 32, 64)[i], (1, 32, 64, 128)[i]
    total += scales * conv(before, e, size, 1)
    total += conv(before, e, 3, groups) + conv(e, e, 3, groups) + conv(e, dim, 3, groups) + 4 * e
    total += 2 * scales * e + scales * e * 3 * dim + (3 * dim if i < 2 else 0) + linear(dim, dim)
    total += 2 * dim + 2 * linear(dim, dim)
    total += depths[i] * (
      2 * dim
      + linear(dim, 3 * dim)
      + linear(dim, dim)
      + 2 * dim
      + linear(dim, 4 * dim)
      + linear(4 * dim, dim)
      + conv(dim, 4 * dim, 3, normal_groups)
      + conv(4 * dim, dim, 3, normal_groups)
      + conv(dim, dim, 3, normal_groups)
      + 2 * 4 * dim
      + 2 * dim
    )
    before = dim
  return total


@pytest.mark.parametrize(
  ("variant", "published", "width", "embed", "depths"),
  [
    ("S", 19.2e6, 64, (64, 64, 128, 256), (2, 2, 8, 2)),
    full("48M", 48.5e6, 96, (64, 64, 192, 384), (2, 2, 11, 2)),
    full("B", 89.7e6, 128, (96, 96, 256, 512), (2, 2, 12, 2)),
  ],
)
def test_size_is_the_published_one(variant, published, width, embed, depths):
  model = vitae.Model(variant=variant, channels=3)
  trained, _ = split_stats(made_up.shapes(model))
  assert param_count(trained) == _expected(width, embed, depths, 3)
  classifier = 1000 * model.features + 1000
  assert param_count(trained) + classifier == pytest.approx(published, rel=0.01)


@pytest.mark.full
def test_products_are_the_published_ones():
  # The paper: 5.7 billion multiply-adds for S at 224 pixels.
  assert forward_flops(vitae.Model(channels=3), (224, 224)) / 2e9 == pytest.approx(5.7, rel=0.01)


@pytest.mark.parametrize(
  ("size", "grids"),
  [
    full((224, 224), [(56, 56), (28, 28), (14, 14), (7, 7)]),
    full((96, 96), [(24, 24), (12, 12), (6, 6), (3, 3)]),
    ((50, 71), [(13, 18), (7, 9), (4, 5), (2, 3)]),
  ],
)
def test_shapes(size, grids):
  model, intermediates = vitae.Model(), tuple(f"stage:{i}" for i in range(4))
  params = made_up.shapes(model)
  image = jax.ShapeDtypeStruct((2, *size, 1), jnp.float32)
  features = jax.eval_shape(
    lambda p, x: model.encode(p, x, intermediates=intermediates), params, image
  )
  assert [features.intermediates[t].shape for t in intermediates] == [
    (2, *grid, 64 * 2**i) for i, grid in enumerate(grids)
  ]
  assert model.grid(size) == grids[-1]
  assert model.stride == 32
  assert features.cls.shape == (2, model.features) == (2, 512)
  assert features.patches.shape == (2, np.prod(grids[-1]), 512)


def _plain(params, x, train):
  """The network in the words of the paper, window by window; maps after every stage."""

  def norm(p, x, epsilon):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(var + epsilon) * p["scale"] + p["bias"]

  def linear(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)

  def conv(p, x, stride, padding, dilation=1):
    groups = x.shape[-1] // p["kernel"].shape[2]
    return (
      jax.lax.conv_general_dilated(
        x,
        p["kernel"],
        (stride, stride),
        [(padding, padding)] * 2,
        rhs_dilation=(dilation,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
      )
      + p["bias"]
    )

  def gelu(x):
    return jax.nn.gelu(x, approximate=False)

  def local(p, x, strides):
    for i, stride in enumerate(strides):
      x = conv(p["convs"][str(i)], x, stride, 1)
      if i < 2:
        n = p["norms"][str(i)]
        mean, var = n["running_mean"], n["running_var"]
        if train:
          mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        x = jax.nn.silu((x - mean) / jnp.sqrt(var + 1e-5) * n["scale"] + n["bias"])
    return x

  def attend(p, x, heads):
    """Tokens [b n d]."""
    q, k, v = jnp.split(linear(p["qkv"], x), 3, axis=-1)
    size = q.shape[-1] // heads
    out = []
    for h in range(heads):
      at = slice(size * h, size * h + size)
      scores = jnp.einsum("bqd,bkd->bqk", q[..., at], k[..., at]) / np.sqrt(size)
      out.append(jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(scores), v[..., at]))
    return linear(p["proj"], jnp.concatenate(out, -1)), v

  def windows(p, x, heads):
    b, h, w, _ = x.shape
    tall, wide = -(-h // 7) * 7, -(-w // 7) * 7
    top, left = (tall - h) // 2, (wide - w) // 2
    x = jnp.pad(x, ((0, 0), (top, tall - h - top), (left, wide - w - left), (0, 0)))
    rows = []
    for i in range(0, tall, 7):
      row = []
      for j in range(0, wide, 7):
        tokens, _ = attend(p, x[:, i : i + 7, j : j + 7].reshape(b, 49, -1), heads)
        row.append(tokens.reshape(b, 7, 7, -1))
      rows.append(jnp.concatenate(row, axis=2))
    return jnp.concatenate(rows, axis=1)[:, top : top + h, left : left + w]

  def whole(p, x, heads, skip):
    b, h, w, _ = x.shape
    y, v = attend(p, x.reshape(b, h * w, -1), heads)
    return (y + v if skip else y).reshape(b, h, w, -1)

  maps = []
  for i in range(4):
    p = params["layers"][str(i)]["RC"]
    stride, size = (4, 2, 2, 2)[i], (7, 3, 3, 3)[i]
    scales = []
    for d in range(1, (4, 3, 2, 2)[i] + 1):
      reach = (size - 1) * d + 1
      padding = -(-(reach - stride) // 2)
      scales.append(gelu(conv(p["PRM"][str(d - 1)], x, stride, padding, d)))
    y = norm(p["norm1"], jnp.concatenate(scales, -1), 1e-5)
    heads = (1, 1, 2, 4)[i]
    y = windows(p["attn"], y, heads) if i < 2 else whole(p["attn"], y, heads, True)
    y = y + local(p["PCM"], x, (2, 2, 1) if i == 0 else (2, 1, 1))
    x = y + linear(p["mlp"]["fc2"], gelu(linear(p["mlp"]["fc1"], norm(p["norm2"], y, 1e-5))))
    for p in params["layers"][str(i)]["NC"].values():
      y, heads = norm(p["norm1"], x, 1e-6), (1, 2, 4, 8)[i]
      y = windows(p["attn"], y, heads) if i < 2 else whole(p["attn"], y, heads, False)
      x = x + y + local(p["PCM"], x, (1, 1, 1))
      x = x + linear(p["mlp"]["fc2"], gelu(linear(p["mlp"]["fc1"], norm(p["norm2"], x, 1e-6))))
    maps.append(x)
  return maps


@pytest.mark.parametrize("train", [full(False), True])
def test_values_are_those_of_plain_code(params, train):
  x = _images(2, 64, 96)
  want = jax.jit(_plain, static_argnums=2)(params, x, train)
  got = _encode(params, x, intermediates=tuple(f"stage:{i}" for i in range(4)), train=train)
  for i, plain in enumerate(want):
    np.testing.assert_allclose(
      got.intermediates[f"stage:{i}"], plain, atol=1e-4 * float(jnp.abs(plain).max()), rtol=1e-4
    )
  np.testing.assert_allclose(
    got.cls, want[-1].mean((1, 2)), atol=1e-4 * float(jnp.abs(want[-1]).max())
  )


def test_gradients_reach_every_parameter():
  params, x = MODEL.init(jax.random.key(0)), _images(2, 64, 64)
  trained, stats = split_stats(params)
  del stats

  def loss(params):
    features = MODEL.encode(params, x, train=True)
    return jnp.sin(features.patches * 3).sum(), features.stats

  grads, stats = jax.jit(jax.grad(loss, has_aux=True))(params)
  grads, none = split_stats(grads)
  del trained
  for path, g in jax.tree_util.tree_leaves_with_path(grads):
    name = jax.tree_util.keystr(path)
    assert np.isfinite(g).all(), name
    # A bias before batch norm has no effect; with one cell neither queries nor keys have.
    assert np.abs(g).max() > 1e-7 or ("PCM" in name and "bias" in name), name
  assert not any(g.any() for g in jax.tree.leaves(none))
  assert len(jax.tree.leaves(stats)) == 2 * 2 * 8


def test_padding_does_not_break_small_and_odd_crops(params):
  features = _encode(params, _images(2, 41, 33))
  assert features.patches.shape == (2, 4, 128)
  assert np.isfinite(features.patches).all()


def test_drop_path_does_not_depend_on_the_batch(params):
  x, keys = _images(4, 64, 64), jax.random.split(jax.random.key(5), 4)
  whole = _encode(params, x, keys).cls
  parts = [_encode(params, x[i : i + 2], keys[i : i + 2]).cls for i in (0, 2)]
  scale = float(jnp.abs(whole).max())
  np.testing.assert_allclose(whole, jnp.concatenate(parts), atol=1e-5 * scale)
  assert np.abs(whole - _encode(params, x).cls).max() > 1e-2 * scale
  never = dataclasses.replace(MODEL, drop_path=0.0)
  np.testing.assert_array_equal(
    _encode(params, x, keys, model=never).cls, _encode(params, x, model=never).cls
  )


@pytest.mark.parametrize(
  ("options", "word"),
  [
    ({"variant": "T"}, "variant='T' is not known"),
    ({"width": 24}, "width=24"),
    ({"depths": (1, 1)}, "depths="),
    ({"drop_path": 1.0}, "drop_path"),
    ({"initial": "torch"}, "initial='torch'"),
  ],
)
def test_bad_options_name_their_key(options, word):
  with pytest.raises(UserError, match=f"config.model.{word}"):
    vitae.Model(**options)

"""The decoder of masked autoencoders against plain code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.models import posembed
from cxrjax.models.mae_decoder import Decoder, take_rows
from cxrjax.models.module import param_count

DECODER = Decoder(in_dim=12, outputs=9, width=16, depth=2, heads=2)
KEEP = jnp.array([[5, 0, 3], [1, 2, 7]])


@pytest.fixture(scope="module")
def params():
  params = DECODER.init(jax.random.key(0))
  return jax.tree.map(
    lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), params
  )


def _plain(params, cls, patches, keep):
  """One image; patch by patch."""

  def linear(p, x):
    return x @ p["kernel"] + p["bias"]

  def norm(p, x):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(var + 1e-6) * p["scale"] + p["bias"]

  rows = [params["mask_token"][0]] * 8
  for place, patch in zip(keep, patches, strict=True):
    rows[place] = linear(params["embed"], patch)
  x = jnp.stack(rows) + posembed.sincos((2, 4), 16)
  x = jnp.concatenate([linear(params["embed"], cls)[None], x])
  for i in range(2):
    p = params["blocks"][str(i)]
    q, k, v = jnp.split(linear(p["attn"]["qkv"], norm(p["norm1"], x)), 3, axis=1)
    heads = []
    for h in range(2):
      at = slice(8 * h, 8 * h + 8)
      heads.append(jax.nn.softmax(q[:, at] @ k[:, at].T / np.sqrt(8.0)) @ v[:, at])
    x = x + linear(p["attn"]["proj"], jnp.concatenate(heads, axis=1))
    hidden = jax.nn.gelu(linear(p["mlp"]["fc1"], norm(p["norm2"], x)), approximate=False)
    x = x + linear(p["mlp"]["fc2"], hidden)
  return linear(params["out"], norm(params["norm"], x))[1:]


def test_values_and_gradients_are_those_of_plain_code(params):
  cls, patches = (
    jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(2, 12), (2, 3, 12)])
  )
  probe = jax.random.normal(jax.random.key(5), (2, 8, 9))
  keep = np.asarray(KEEP).tolist()

  def ours(*args):
    return (DECODER.apply(*args, KEEP, (2, 4)) * probe).sum()

  def plain(params, cls, patches):
    out = jnp.stack([_plain(params, cls[i], patches[i], keep[i]) for i in range(2)])
    return (out * probe).sum()

  (a, da), (b, db) = (
    jax.jit(jax.value_and_grad(f, (0, 1, 2)))(params, cls, patches) for f in (ours, plain)
  )
  np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4, rtol=1e-3), da, db)


def test_rows_go_where_they_belong_and_their_gradients_back():
  x = jnp.arange(12.0).reshape(2, 3, 2)
  rows = jnp.array([[3, 1, 3, 0], [2, 3, 1, 0]])
  back = jnp.array([[3, 1, 4], [3, 2, 0]])
  found, pull = jax.vjp(lambda x: take_rows(x, rows, back), x)
  np.testing.assert_array_equal(found[0], [[0, 0], [2, 3], [0, 0], [0, 1]])
  np.testing.assert_array_equal(found[1], [[10, 11], [0, 0], [8, 9], [6, 7]])
  np.testing.assert_array_equal(pull(found + 1)[0][0], [[1, 2], [3, 4], [0, 0]])
  np.testing.assert_array_equal(pull(found + 1)[0][1], x[1] + 1)


def test_size_is_the_papers():
  # He et al.'s decoder for ViT-B/16 and colour images, whose positions are no parameters here.
  params = jax.eval_shape(
    Decoder(in_dim=768, outputs=768, width=512, depth=8, heads=16).init, jax.random.key(0)
  )
  block = 4 * 512 * 512 + 4 * 512 + 8 * 512 * 512 + 5 * 512 + 4 * 512
  assert param_count(params) == 768 * 512 + 512 + 512 + 8 * block + 2 * 512 + 512 * 768 + 768


def test_a_width_that_does_not_divide():
  with pytest.raises(UserError, match="width=30"):
    Decoder(in_dim=8, outputs=4, width=30, heads=2)
  with pytest.raises(UserError, match="depth=1000000"):
    Decoder(in_dim=8, outputs=4, depth=10**6)

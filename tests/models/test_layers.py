"""Hand-written gradients against autodiff of plain code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.models import attention, layers


def _normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def _same_value_and_gradients(ours, plain, *args, atol=2e-5):
  cotangent = _normal(99, *jax.eval_shape(plain, *args).shape)

  def both(function):
    value, pull = jax.vjp(function, *args)
    return value, *pull(cotangent)

  for fast, slow in zip(*(jax.jit(both, static_argnums=0)(f) for f in (ours, plain)), strict=True):
    np.testing.assert_allclose(fast, slow, atol=atol, rtol=1e-4)


def test_layer_norm():
  def plain(x, scale, bias):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(var + 1e-6) * scale + bias

  x = 3 * _normal(0, 7, 12) + 5
  _same_value_and_gradients(
    lambda *a: layers.layer_norm(*a, 1e-6), plain, x, _normal(1, 12), _normal(2, 12), atol=1e-4
  )


def test_gelu_is_exact():
  x = jnp.linspace(-6, 6, 101)
  _same_value_and_gradients(layers.gelu, lambda x: jax.nn.gelu(x, approximate=False), x, atol=1e-6)


@pytest.mark.parametrize("heads", [1, 3])
def test_attention(heads):
  def plain(qkv):
    b, n, c = qkv.shape
    q, k, v = jnp.split(qkv, 3, axis=-1)
    q, k, v = (x.reshape(b, n, heads, -1) for x in (q, k, v))
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(q.shape[-1]))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, n, c // 3)

  qkv = 2 * _normal(3, 2, 5, 36)
  _same_value_and_gradients(lambda x: attention.attend(x, heads), plain, qkv)


def test_one_query_is_the_first_row_of_all_queries():
  def first_row(qkv):
    return attention.attend(qkv, 3)[:, 0]

  def one(qkv):
    return attention.attend_one(qkv[:, 0, :12], qkv[:, :, 12:], 3)

  _same_value_and_gradients(one, first_row, 2 * _normal(4, 2, 5, 36))


def test_attention_survives_large_scores():
  qkv = 100 * _normal(5, 1, 6, 24)
  out, pull = jax.vjp(lambda x: attention.attend(x, 2), qkv)
  assert np.isfinite(out).all()
  assert np.isfinite(pull(jnp.ones_like(out))[0]).all()


@pytest.mark.parametrize(
  "function",
  [
    layers.gelu,
    lambda x: layers.layer_norm(x, jnp.ones(24), jnp.zeros(24), 1e-6),
    lambda x: attention.attend(x[None], 2)[0],
  ],
)
def test_bfloat16_in_and_out(function):
  x = _normal(6, 4, 24).astype(jnp.bfloat16)
  y, pull = jax.vjp(function, x)
  assert y.dtype == pull(y)[0].dtype == jnp.bfloat16
  np.testing.assert_allclose(
    y.astype(jnp.float32), function(x.astype(jnp.float32)), atol=0.05, rtol=0.05
  )

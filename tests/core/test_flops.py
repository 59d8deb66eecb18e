"""Operations counted by hand and by program."""

import functools

import jax
import jax.numpy as jnp
import pytest

from cxrjax.core import flops


def array(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def convolve(x, kernel, **options):
  return jax.lax.conv_general_dilated(
    x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
  )


def test_products():
  assert flops.count(jnp.matmul, array(3, 5), array(5, 7)) == 2 * 3 * 5 * 7
  batched = functools.partial(jnp.einsum, "bhqd,bhkd->bhqk")
  assert flops.count(batched, array(2, 3, 4, 8), array(2, 3, 5, 8)) == 2 * 2 * 3 * 4 * 5 * 8
  assert flops.count(lambda x: jnp.tanh(x).sum() + x.std(), array(9, 9)) == 0


def test_convolutions():
  # 4 x 4 outputs of 10 channels, each from a 3 x 3 window of 6
  assert flops.count(convolve, array(2, 8, 8, 6), array(3, 3, 6, 10)) == 2 * 2 * 16 * 10 * 9 * 6
  grouped = functools.partial(convolve, feature_group_count=2)
  assert flops.count(grouped, array(2, 8, 8, 6), array(3, 3, 3, 10)) == 2 * 2 * 16 * 10 * 9 * 3
  # Both gradients of a layer need as many products as the layer itself.
  forward = flops.count(convolve, array(2, 8, 8, 6), array(2, 2, 6, 10))
  both = jax.grad(lambda x, k: (convolve(x, k) ** 2).sum(), argnums=(0, 1))
  assert flops.count(both, array(2, 8, 8, 6), array(2, 2, 6, 10)) == 3 * forward


def test_what_stands_inside():
  x, w, once = array(4, 4), array(4, 4), 2 * 4**3

  def scanned(x, w):
    return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=5)[0]

  def branched(x, w):
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

  @jax.custom_vjp
  def custom(x, w):
    return jax.jit(jnp.matmul)(x, w)

  custom.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))

  assert flops.count(scanned, x, w) == 5 * once
  assert flops.count(branched, x, w) == 2 * once
  assert flops.count(jax.checkpoint(custom), x, w) == once
  both = jax.value_and_grad(lambda x, w: custom(x, w).sum(), (0, 1))
  assert flops.count(both, x, w) == 3 * once
  assert flops.count(jax.vmap(jnp.matmul, (0, None)), array(6, 4, 4), w) == 6 * once


def test_what_nobody_uses_costs_nothing():
  def function(x, w):
    unused = x @ w @ w
    return x @ w, unused.shape[0]

  assert flops.count(function, array(4, 4), array(4, 4)) == 2 * 4**3


def test_what_cannot_be_counted():
  def loop(x):
    return jax.lax.while_loop(lambda c: c.sum() < 1e9, lambda c: c @ c, x)

  with pytest.raises(ValueError, match="while loop"):
    flops.count(loop, array(4, 4))

  def kernel(x):
    from jax.experimental import pallas as pl

    def copy(source, target):
      target[...] = source[...]

    return pl.pallas_call(copy, out_shape=array(8, 128))(x)

  with pytest.raises(ValueError, match="hides its operations"):
    flops.count(kernel, array(8, 128))


def test_nothing_is_computed():
  huge = array(10**6, 10**6)
  assert flops.count(jnp.matmul, huge, huge) == 2e18

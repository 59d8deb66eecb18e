"""The kernel for TPUs, run as plain JAX, beside the products in matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.models import attention, pallas_attention
from cxrjax.training.sharding import make_mesh


def drawn(b, n, d, dtype=jnp.float32, seed=0):
  return jax.random.normal(jax.random.key(seed), (b, n, 3 * d)).astype(dtype)


@pytest.mark.parametrize(("n", "heads"), [(1, 1), (5, 2), (37, 3)])
def test_values_and_gradient_are_those_of_products(n, heads):
  qkv, d = drawn(2, n, 8 * heads), 8 * heads
  dout = jax.random.normal(jax.random.key(1), (2, n, d))
  ours, back = jax.vjp(lambda x: pallas_attention.attend(x, heads, True), qkv)
  other, expected = jax.vjp(lambda x: attention.attend(x, heads), qkv)
  np.testing.assert_allclose(ours, other, atol=2e-6)
  np.testing.assert_allclose(back(dout)[0], expected(dout)[0], atol=5e-6)


def test_bfloat16_is_as_near_to_float32_as_the_products_are():
  qkv = drawn(2, 21, 32, jnp.bfloat16)
  dout = jax.random.normal(jax.random.key(1), (2, 21, 32))

  def both(attend, x):
    out, back = jax.vjp(attend, x)
    return out, back(dout.astype(out.dtype))[0]

  exact = both(lambda x: attention.attend(x, 2), qkv.astype(jnp.float32))
  kernel = both(lambda x: pallas_attention.attend(x, 2, True), qkv)
  products = both(lambda x: attention.attend(x, 2), qkv)
  for of_kernel, of_products, truth in zip(kernel, products, exact, strict=True):
    apart = np.abs(np.asarray(of_kernel, np.float32) - truth).max()
    assert apart < 1.5 * np.abs(np.asarray(of_products, np.float32) - truth).max()
    assert apart < 0.02 * np.abs(truth).max()


def test_long_sequences_and_batches_that_do_not_divide_are_products():
  """Neither has the kernel, which this machine could not run."""
  kernel = attention.Kernel("pallas", make_mesh(1, jax.devices()[:1]))
  long = drawn(1, pallas_attention.MAX_TOKENS + 1, 8, jnp.bfloat16)
  np.testing.assert_array_equal(attention.attend(long, 1, kernel), attention.attend(long, 1))

"""What only a GPU can show: `JAX_PLATFORMS=cuda python -m pytest -m gpu`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.models import attention, vit

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("tokens", [37, 197])
def test_the_fused_kernel_agrees_with_plain_products(tokens):
  qkv = jax.random.normal(jax.random.key(0), (4, tokens, 3 * 384), jnp.bfloat16)
  plain = attention.attend(qkv.astype(jnp.float32), 6)
  np.testing.assert_allclose(attention.attend(qkv, 6).astype(jnp.float32), plain, atol=0.03)
  mean = lambda x: (attention.attend(x, 6).astype(jnp.float32) ** 2).mean()  # noqa: E731
  got, want = jax.grad(mean)(qkv), jax.grad(mean)(qkv.astype(jnp.float32))
  scale = np.abs(want).max()
  np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.03 * scale)


def test_features_in_bfloat16_are_those_in_float32():
  model = vit.Model(variant="S", dtype="bfloat16")
  params = model.init(jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (4, 224, 224, 1))
  half = model.encode(params, x).cls
  full = dataclasses.replace(model, dtype="float32").encode(params, x).cls
  cosine = (half * full).sum(-1) / np.linalg.norm(half, axis=-1) / np.linalg.norm(full, axis=-1)
  assert (cosine > 0.999).all()

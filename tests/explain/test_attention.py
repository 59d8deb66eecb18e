import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.explain.attention import cls_attention
from cxrjax.models.vit import Model


@dataclasses.dataclass
class Fake:
  patches: jax.Array
  taps: dict


def fake_encode(rows, columns, registers, heads=2):
  """Attention whose class row is 1000 * image + 100 * head + patch number, others negative."""
  def encode(params, x, taps=()):
    b, p = x.shape[0], rows * columns
    n = 1 + registers + p
    row = jnp.concatenate([-jnp.ones(1 + registers), jnp.arange(p, dtype=jnp.float32)])
    attn = -jnp.ones((b, heads, n, n))
    mark = x[:, 0, 0, :1, None] * 1000 + 100 * jnp.arange(heads)[None, :, None]
    attn = attn.at[:, :, 0].set(mark.reshape(b, heads, 1) + row)
    return Fake(jnp.zeros((b, p, 4)), {"attn": attn} if taps == ("attn",) else {})
  return encode


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("patch_size", [None, 8])
def test_takes_the_class_row_over_patches_in_image_order(registers, patch_size):
  x = jnp.broadcast_to(jnp.arange(5.0)[:, None, None, None], (5, 16, 24, 1))
  maps = cls_attention(
    fake_encode(2, 3, registers), {}, x, patch_size=patch_size, batch=2)
  assert maps.shape == (5, 2, 2, 3)
  assert maps.dtype == jnp.float32
  expected = (1000 * np.arange(5)[:, None, None, None] + 100 * np.arange(2)[:, None, None]
              + np.arange(6).reshape(2, 3))
  np.testing.assert_array_equal(maps, expected)


def test_of_a_vision_transformer():
  registers = 3
  model = Model(variant="Ti", width=24, depth=2, heads=3, patch_size=8, image_size=32,
                registers=registers)
  params = model.init(jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (3, 32, 48, 1))
  maps = cls_attention(model.encode, params, x, batch=2)
  assert maps.shape == (3, 3, 4, 6)
  full = model.encode(params, x, taps=("attn",)).taps["attn"]
  np.testing.assert_allclose(
    maps.reshape(3, 3, 24), full[:, :, 0, 1 + registers:], rtol=1e-5, atol=1e-7)
  rest = full[:, :, 0, :1 + registers].sum(-1)
  np.testing.assert_allclose(maps.sum((2, 3)) + rest, 1, rtol=1e-5)


def test_an_encoder_without_attention_is_refused():
  def encode(params, x, taps=()):
    return Fake(jnp.zeros((x.shape[0], 4, 2)), {})
  with pytest.raises(UserError, match="transformer"):
    cls_attention(encode, {}, jnp.zeros((1, 16, 16, 1)))

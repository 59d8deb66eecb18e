import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import full

from cxrjax.core.errors import UserError
from cxrjax.explain import attention
from cxrjax.models import resnet, vit

SIZE = (32, 48)  # 4 rows of 6 patches


def network(registers=0, pool="cls", depth=3):
  model = vit.Model(
    variant="Ti",
    width=24,
    depth=depth,
    heads=3,
    patch_size=8,
    image_size=32,
    registers=registers,
    pool=pool,
    initial="xavier",
    dtype="float32",
  )
  params = jax.jit(model.init)(jax.random.key(0))
  # Attention of fresh weights is uniform to three digits: sharper, so that a mix-up shows.
  params = jax.tree.map(lambda p: 3 * p if p.ndim == 2 else p, params)
  return model, params, jax.random.normal(jax.random.key(1), (3, *SIZE, 1))


heads = jax.jit(attention.heads, static_argnums=(0, 3))
rollout = jax.jit(attention.rollout, static_argnums=(0, 3))


def tapped(model, params, x, *intermediates):
  return jax.jit(lambda p, x: model.encode(p, x, intermediates=intermediates).intermediates)(
    params, x
  )


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def norm(x, p):
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  return x * p["scale"] + p["bias"]


def attention_by_hand(model, params, x):
  """Every block's attention [heads t t] of every image, from the tokens before the block."""
  intermediates = tuple(f"block:{i}" for i in range(model.blocks - 1))
  tokens = tapped(model, params, x, *intermediates)
  found = {}
  for i in range(1, model.blocks):
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["blocks"][str(i)])
    t = norm(np.asarray(tokens[f"block:{i - 1}"], np.float64), p["norm1"])
    qkv = t @ p["attn"]["qkv"]["kernel"] + p["attn"]["qkv"]["bias"]
    q, k, _ = np.split(qkv.reshape(*qkv.shape[:2], 3, 3, 8).transpose(0, 2, 3, 1, 4), 3, axis=1)
    found[i] = softmax(q[:, 0] @ k[:, 0].swapaxes(-1, -2) / np.sqrt(8))
  return found


@pytest.mark.parametrize(("block", "registers"), [(1, 4), full(1, 0), full(-1, 0), full(-1, 4)])
def test_heads_are_the_class_row_over_patches_in_image_order(registers, block):
  model, params, x = network(registers)
  maps = heads(model, params, x, block)
  assert maps.shape == (3, 3, 4, 6)
  full = attention_by_hand(model, params, x)[block % model.blocks]
  np.testing.assert_allclose(
    maps.reshape(3, 3, 24), full[:, :, 0, 1 + registers :], rtol=1e-4, atol=1e-6
  )
  rest = full[:, :, 0, : 1 + registers].sum(-1)
  np.testing.assert_allclose(maps.sum((2, 3)) + rest, 1, rtol=1e-5)


def test_heads_of_averaged_patches_are_the_patches_own():
  model, params, x = network(2, "mean")
  full = attention_by_hand(model, params, x)[2]
  np.testing.assert_allclose(
    heads(model, params, x, -1).reshape(3, 3, 24), full[:, :, 3:, 3:].mean(2), rtol=1e-4, atol=1e-6
  )


def test_all_blocks_have_attention():
  model, params, x = network()
  full = attention_by_hand(model, params, x)
  intermediates = tapped(model, params, x, "attn:1", "attn:2", "attn")
  np.testing.assert_allclose(intermediates["attn:1"], full[1], rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(intermediates["attn"], intermediates["attn:2"])


@pytest.mark.parametrize(
  ("fusion", "pool"),
  [
    *((fusion, "cls") for fusion in attention.FUSIONS),
    *(full(fusion, "mean") for fusion in attention.FUSIONS),
  ],
)
def test_rollout(fusion, pool):
  """Abnar and Zuidema's equation 1, image by image."""
  model, params, x = network(2, pool)
  maps = rollout(model, params, x, fusion)
  weights = tapped(model, params, x, "attn:0", "attn:1", "attn:2")
  for i in range(3):
    joint = np.eye(3 + 24)
    for block in range(3):
      fused = getattr(np, fusion)(np.asarray(weights[f"attn:{block}"][i], np.float64), axis=0)
      mixed = 0.5 * fused + 0.5 * np.eye(27)
      joint = (mixed / mixed.sum(1, keepdims=True)) @ joint
    seen = joint[0, 3:] if pool == "cls" else joint[3:, 3:].mean(0)
    np.testing.assert_allclose(maps[i].reshape(-1), seen, rtol=1e-4)


def test_rollout_of_the_mean_is_a_part_of_one():
  model, params, x = network()
  whole = rollout(model, params, x, "mean").sum((1, 2))
  assert ((whole > 0) & (whole < 1)).all()


def test_a_network_without_attention_is_refused():
  model = resnet.Model(depth=18, width=4)
  with pytest.raises(UserError, match="gradcam"):
    attention.heads(model, {}, jnp.zeros((1, 32, 32, 1)))


def test_an_unknown_fusion_is_refused():
  model, params, x = network()
  with pytest.raises(UserError, match="'max'"):
    attention.rollout(model, params, x, "maxx")

"""Pre-norm transformer blocks on groups of token sequences.

A group is `[images, tokens, width]`; groups differ in numbers of images and tokens (large and small
crops). No operation mixes images, so that a batch that is split over devices stays split.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from cxrjax.models import attention, layers


class _Attention(nnx.Module):
  def __init__(self, width: int, heads: int, init: str, rngs: nnx.Rngs, kernel: attention.Kernel):
    self.qkv = layers.Linear(width, 3 * width, init=init, parts=3, rngs=rngs)
    self.proj = layers.Linear(width, width, init=init, rngs=rngs)
    self.heads = heads
    self.kernel_of = kernel

  def __call__(self, x):
    b, n, _ = x.shape
    qkv, bias = self.qkv.product(x).reshape(b, n, -1), self.qkv.bias[...]
    mixed = attention.attend(qkv, self.heads, self.kernel_of, bias)
    # Drop a token that attention may have added; the sum that follows reads the others.
    return self.proj(mixed)[:, :n]


class _Mlp(nnx.Module):
  def __init__(self, width: int, init: str, rngs: nnx.Rngs, gelu: str):
    self.fc1 = layers.Linear(width, 4 * width, init=init, rngs=rngs)
    self.fc2 = layers.Linear(4 * width, width, init=init, rngs=rngs)
    self.gelu = gelu

  def __call__(self, x):
    return self.fc2(self.fc1(x, layers.GELUS[self.gelu]))


class Block(nnx.Module):
  """Pre-norm block on one group of sequences, [b n width].

  `scale` holds drop-path factors of both branches for every image, [b 2], or None. `layer_scale`
  above 0 is the initial value of learned per-channel factors of the branches (Touvron et al. 2021,
  arXiv 2103.17239). `gelu` is a key of `layers.GELUS`. `shift` [b n width] is added to attention's
  input, the tokens after their first layer norm.
  """

  def __init__(
    self,
    width: int,
    heads: int,
    init: str,
    rngs: nnx.Rngs,
    layer_scale: float = 0.0,
    gelu: str = "exact",
    kernel: attention.Kernel = attention.PLAIN,
  ):
    def init_layer_scale():
      return nnx.Param(jnp.full((width,), layer_scale, jnp.float32)) if layer_scale else None

    self.norm1 = layers.LayerNorm(width)
    self.attn = _Attention(width, heads, init, rngs, kernel)
    self.ls1 = init_layer_scale()
    self.norm2 = layers.LayerNorm(width)
    self.mlp = _Mlp(width, init, rngs, gelu)
    self.ls2 = init_layer_scale()

  def add(self, x, mixed, scale):
    """The block after attention, from its input `x` and attention's output, [b n width] each."""
    x = drop(x, _scale_channels(mixed, self.ls1), scale, 0)
    return drop(x, _scale_channels(self.mlp(self.norm2(x)), self.ls2), scale, 1)

  def read(self, x, shift=None):
    """The input of attention."""
    normalized = self.norm1(x)
    return normalized if shift is None else normalized + shift.astype(normalized.dtype)

  def qkv(self, x, shift=None):
    return self.attn.qkv(self.read(x, shift))

  def __call__(self, x, scale, shift=None):
    return self.add(x, self.attn(self.read(x, shift)), scale)

  def cls_only(self, x, scale, shift=None):
    """The class tokens [b width] after this block: all rows are read, one is computed."""
    normalized = self.read(x, shift)
    kernel, bias = (a[...].astype(x.dtype) for a in (self.attn.qkv.kernel, self.attn.qkv.bias))
    width = x.shape[-1]
    q = normalized[:, 0] @ kernel[:, :width] + bias[:width]
    kv = normalized.reshape(-1, width) @ kernel[:, width:] + bias[width:]
    kv = _row_gradient(kv).reshape(*x.shape[:-1], -1)
    mixed = self.attn.proj(attention.attend_one(q, kv, self.attn.heads))
    return self.add(x[:, :1], mixed[:, None], scale)[:, 0]


@jax.custom_vjp
def _row_gradient(x):
  """Identity on rows that forces the gradient to be stored as rows.

  XLA would lay out the gradient of keys and values with tokens last and transpose it inside the
  next product, which its GPU kernels cannot tile at most batch sizes.
  """
  return x


_row_gradient.defvjp(lambda x: (x, None), lambda _, dy: (jax.lax.optimization_barrier(dy),))


def _scale_channels(branch, factors):
  return branch if factors is None else branch * factors[...].astype(branch.dtype)


def drop(x, branch, scale, which):
  """Adds to `x` a branch [b n d] times its drop-path factors, column `which` of `scale` [b 2].

  Works on rows, so that the compiler keeps the tokens' layout.
  """
  b, n, d = x.shape
  if scale is None:
    return x + branch
  factors = jnp.broadcast_to(scale[:, which, None], (b, n)).reshape(-1, 1)
  return (x.reshape(-1, d) + branch.reshape(-1, d) * factors).reshape(b, n, d)

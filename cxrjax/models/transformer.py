"""Pre-norm transformer blocks on the flat tokens of several groups of sequences at once."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from cxrjax.models import attention, layers


class _Attention(nnx.Module):

  def __init__(self, width: int, heads: int, init: str, rngs: nnx.Rngs):
    self.qkv = layers.Linear(width, 3 * width, init=init, parts=3, rngs=rngs)
    self.proj = layers.Linear(width, width, init=init, rngs=rngs)
    self.heads = heads


class _Mlp(nnx.Module):

  def __init__(self, width: int, init: str, rngs: nnx.Rngs, gelu: str):
    self.fc1 = layers.Linear(width, 4 * width, init=init, rngs=rngs)
    self.fc2 = layers.Linear(4 * width, width, init=init, rngs=rngs)
    self.gelu = gelu

  def __call__(self, x):
    return self.fc2(layers.GELUS[self.gelu](self.fc1(x)))


class Block(nnx.Module):
  """Pre-norm block on the tokens of all groups, [tokens, width].

  `shapes` has (sequences, tokens of each) of every group; `scale` drop path's factors of the two
  branches, [tokens 2], or None. `layer_scale` above 0 is what learnt factors of the branches'
  channels start as (Touvron et al. 2021, arXiv 2103.17239). `gelu` is of `layers.GELUS`. `shift`
  [tokens, width] is added to what attention reads, the tokens after their first layer norm.
  """

  def __init__(
      self, width: int, heads: int, init: str, rngs: nnx.Rngs, layer_scale: float = 0.0,
      gelu: str = "exact"):
    def factors():
      return nnx.Param(jnp.full((width,), layer_scale, jnp.float32)) if layer_scale else None
    self.norm1 = layers.LayerNorm(width)
    self.attn = _Attention(width, heads, init, rngs)
    self.ls1 = factors()
    self.norm2 = layers.LayerNorm(width)
    self.mlp = _Mlp(width, init, rngs, gelu)
    self.ls2 = factors()

  def add(self, x, mixed, scale):
    """The block after its attention: `x` [rows width] and what was mixed for these rows."""
    x = x + drop(_times(self.attn.proj(mixed), self.ls1), scale, 0)
    return x + drop(_times(self.mlp(self.norm2(x)), self.ls2), scale, 1)

  def read(self, x, shift=None):
    """What attention reads."""
    normal = self.norm1(x)
    return normal if shift is None else normal + shift.astype(normal.dtype)

  def qkv(self, x, shapes, shift=None):
    return split(self.attn.qkv(self.read(x, shift)), shapes)

  def __call__(self, x, shapes, scale, shift=None):
    mixed = [attention.attend(qkv, self.attn.heads) for qkv in self.qkv(x, shapes, shift)]
    return self.add(x, join(mixed), scale)

  def cls_only(self, x, shapes, scale, shift=None):
    """The class tokens [groups' b, width] after this block, which read all and write one row."""
    normal = self.read(x, shift)
    kernel, bias = self.attn.qkv.kernel[...], self.attn.qkv.bias[...]
    width = x.shape[-1]
    first = first_rows(normal, shapes)
    q = first @ kernel[:, :width].astype(x.dtype) + bias[:width].astype(x.dtype)
    kv = normal @ kernel[:, width:].astype(x.dtype) + bias[width:].astype(x.dtype)
    mixed, at = [], 0
    for group in split(kv, shapes):
      b = group.shape[0]
      mixed.append(attention.attend_one(q[at:at + b], group, self.attn.heads))
      at += b
    return self.add(first_rows(x, shapes), jnp.concatenate(mixed), scale)


def _times(branch, factors):
  return branch if factors is None else branch * factors[...].astype(branch.dtype)


def join(groups):
  """[b n d] of every group as one [tokens, d]."""
  flat = [g.reshape(-1, g.shape[-1]) for g in groups]
  return flat[0] if len(flat) == 1 else jnp.concatenate(flat)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def split(x, shapes):
  """The inverse of `join`. Its gradient is one copy, where autodiff pads every group and adds."""
  groups, at = [], 0
  for b, n in shapes:
    groups.append(x[at:at + b * n].reshape(b, n, x.shape[-1]))
    at += b * n
  return tuple(groups)


split.defvjp(
    lambda x, shapes: (split(x, shapes), None), lambda shapes, _, groups: (join(groups),))


def first_rows(x, shapes):
  """The first token of every sequence, [sequences d]."""
  return jnp.concatenate([group[:, 0] for group in split(x, shapes)])


def per_row(scale, shapes, one_row):
  """Images' drop-path factors, [b 2] per group, as [rows, 2]."""
  if scale is None:
    return None
  if one_row:
    return jnp.concatenate(scale)
  return jnp.concatenate([
      jnp.broadcast_to(k[:, None], (b, n, 2)).reshape(b * n, 2)
      for k, (b, n) in zip(scale, shapes, strict=True)])


def drop(branch, scale, which):
  """A branch's rows times their drop-path factors, column `which` of `scale` [rows 2]."""
  return branch if scale is None else branch * scale[:, which, None]

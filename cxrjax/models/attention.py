"""Multi-head self-attention over one group of equally long token sequences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def attend(
    qkv: Float[Array, "b n c"], heads: int) -> Float[Array, "b n d"]:
  """`softmax(q k^T / sqrt(head_dim)) v` for every head (Vaswani et al. 2017, arXiv:1706.03762).

  Args:
    qkv: queries, keys and values side by side, c = 3 d, each `heads` blocks of d / heads.
    heads: how many heads.

  Returns:
    The heads' outputs side by side.

  On a GPU in bfloat16 cuDNN's fused kernel runs; elsewhere matrix products whose gradient keeps
  the probabilities instead of recomputing the softmax.
  """
  b, n, c = qkv.shape
  split = qkv.reshape(b, n, 3, heads, c // (3 * heads))
  if qkv.dtype == jnp.bfloat16 and jax.default_backend() == "gpu":
    q, k, v = split[:, :, 0], split[:, :, 1], split[:, :, 2]
    out = jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    return out.reshape(b, n, c // 3)
  q, k, v = split.transpose(2, 0, 3, 1, 4)
  return _attend(q, k, v).transpose(0, 2, 1, 3).reshape(b, n, c // 3)


def attend_one(
    q: Float[Array, "b d"], kv: Float[Array, "b n e"], heads: int) -> Float[Array, "b d"]:
  """`attend` for one query per sequence; `kv` holds keys and values side by side, e = 2 d."""
  b, n, e = kv.shape
  k, v = kv.reshape(b, n, 2, heads, e // (2 * heads)).transpose(2, 0, 3, 1, 4)
  out = _attend(q.reshape(b, heads, 1, e // (2 * heads)), k, v)
  return out.reshape(b, e // 2)


def probabilities(
    qkv: Float[Array, "b n c"], heads: int) -> Float[Array, "b h n n"]:
  """The attention weights of `attend`: rows (queries) sum to one, float32."""
  b, n, c = qkv.shape
  q, k, _ = qkv.reshape(b, n, 3, heads, c // (3 * heads)).transpose(2, 0, 3, 1, 4)
  return _softmax(q, k)


def _softmax(q, k):
  scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
  scores = scores * (q.shape[-1] ** -0.5)
  weights = jnp.exp(scores - scores.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


@jax.custom_vjp
def _attend(q, k, v):
  return _attend_fwd(q, k, v)[0]


def _attend_fwd(q, k, v):
  p = _softmax(q, k).astype(q.dtype)
  out = jnp.einsum("bhqk,bhkd->bhqd", p, v)
  return out, (q, k, v, p, out)


def _attend_bwd(residuals, dout):
  q, k, v, p, out = residuals
  dv = jnp.einsum("bhqk,bhqd->bhkd", p, dout)
  dp = jnp.einsum("bhqd,bhkd->bhqk", dout, v, preferred_element_type=jnp.float32)
  delta = (dout.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
  ds = (p * (dp - delta) * (q.shape[-1] ** -0.5)).astype(q.dtype)
  dq = jnp.einsum("bhqk,bhkd->bhqd", ds, k)
  dk = jnp.einsum("bhqk,bhqd->bhkd", ds, q)
  return dq, dk, dv


_attend.defvjp(_attend_fwd, _attend_bwd)

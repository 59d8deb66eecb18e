"""Multi-head self-attention over a group of token sequences of equal length."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from cxrjax.models import pallas_attention


@dataclasses.dataclass(frozen=True)
class Kernel:
  """Implementation of attention; `cxrjax.core.target.Target` chooses it by platform.

  Attributes:
    name: "plain", matrix products with a gradient that keeps the exponentials instead of
      recomputing the softmax; "cudnn", NVIDIA's fused kernel; or "pallas", ours for TPUs
      (`cxrjax.models.pallas_attention`). The fused kernels store no token-by-token matrix, and
      run in bfloat16 only.
    mesh: devices over which sequences are split, for "pallas", which XLA cannot partition itself.
  """

  name: str = "plain"
  mesh: Mesh | None = None


PLAIN = Kernel()


def attend(
  qkv: Float[Array, "b n c"],
  heads: int,
  kernel: Kernel = PLAIN,
  bias: Float[Array, "c"] | None = None,
) -> Float[Array, "b m d"]:
  """`softmax(q k^T / sqrt(head_dim)) v` for every head (Vaswani et al. 2017, arXiv:1706.03762).

  Args:
    qkv: concatenated queries, keys and values, c = 3 d, each `heads` blocks of d / heads.
    heads: number of heads.
    kernel: see `Kernel`.
    bias: added to `qkv` here, fused into its next read.

  Returns:
    The heads' concatenated outputs; for an odd number of tokens "cudnn" adds a row of zeros.
  """
  if qkv.dtype == jnp.bfloat16 and kernel.name == "cudnn":
    return _cudnn(qkv, bias, heads)
  qkv = qkv if bias is None else qkv + bias.astype(qkv.dtype)
  fits = qkv.shape[1] <= pallas_attention.MAX_TOKENS
  if qkv.dtype == jnp.bfloat16 and kernel.name == "pallas" and fits:
    return _pallas(qkv, heads, kernel.mesh)
  return _attend_packed(qkv, heads)


def attend_one(
  q: Float[Array, "b d"], kv: Float[Array, "b n e"], heads: int
) -> Float[Array, "b d"]:
  """`attend` for one query per sequence; `kv` holds concatenated keys and values, e = 2 d."""
  b, n, e = kv.shape
  head_dim = e // (2 * heads)
  k, v = jnp.unstack(kv.reshape(b, n, 2, heads, head_dim), axis=2)
  q = q.reshape(b, heads, head_dim) * head_dim**-0.5
  # With a single query these are sums, not matrix products, and cheap in the given layout.
  scores = jnp.einsum("bhd,bnhd->bhn", q, k, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  return jnp.einsum("bhn,bnhd->bhd", weights, v).reshape(b, e // 2)


def probabilities(qkv: Float[Array, "b n c"], heads: int) -> Float[Array, "b h n n"]:
  """The attention weights of `attend`: rows (queries) sum to one, float32."""
  q, k, _ = _unpack(qkv, heads)
  weights, total = _exponentials(q, k)
  return weights / total


def _cudnn(qkv, bias, heads):
  b, n, c = qkv.shape
  padded = n + n % 2
  q, k, v = (x.reshape(b, padded, heads, c // (3 * heads)) for x in _split_qkv(qkv, bias, n))
  # The kernel's gradient requires even lengths: pad with a token that no query sees.
  lengths = (
    {}
    if n == padded
    else {
      "query_seq_lengths": jnp.full(b, n, jnp.int32),
      "key_value_seq_lengths": jnp.full(b, n, jnp.int32),
    }
  )
  out = jax.nn.dot_product_attention(q, k, v, implementation="cudnn", **lengths)
  return out.reshape(b, padded, c // 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _split_qkv(qkv, bias, n):
  """Splits off queries, keys and values of `n` tokens, with bias, padded to an even number.

  The gradient concatenates the three once, and sums the bias gradient from what was just written.
  """
  qkv = qkv if bias is None else qkv + bias.astype(qkv.dtype)
  return tuple(jnp.split(jnp.pad(qkv, ((0, 0), (0, n % 2), (0, 0))), 3, axis=2))


def _split_qkv_bwd(n, bias, parts):
  dqkv = jnp.concatenate(parts, axis=2)[:, :n]
  if bias is None:
    return dqkv, None
  return dqkv, jax.lax.reduce_sum(dqkv.reshape(-1, dqkv.shape[-1]), (0,)).astype(bias.dtype)


_split_qkv.defvjp(lambda qkv, bias, n: (_split_qkv(qkv, bias, n), bias), _split_qkv_bwd)


def _pallas(qkv, heads, mesh):
  kernel = functools.partial(pallas_attention.attend, heads=heads)
  if mesh is None or mesh.size == 1:
    return kernel(qkv)
  if qkv.shape[0] % mesh.size:
    return _attend_packed(qkv, heads)
  spec = PartitionSpec(mesh.axis_names)
  return jax.shard_map(kernel, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(qkv)


def _unpack(qkv, heads):
  """Queries (scaled), keys and values, each [b heads n size]."""
  stacked = rearrange(qkv, "b n (qkv heads size) -> b n qkv heads size", qkv=3, heads=heads)
  q, k, v = (rearrange(x, "b n heads size -> b heads n size") for x in jnp.unstack(stacked, axis=2))
  return q * q.shape[-1] ** -0.5, k, v


def _exponentials(q, k):
  """Softmax's numerators [b heads n n], at most 1, and their sums [b heads n 1]; float32."""
  scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
  weights = jnp.exp(scores - scores.max(-1, keepdims=True))
  return weights, weights.sum(-1, keepdims=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _attend_packed(qkv, heads):
  return _attend_fwd(qkv, heads)[0]


def _attend_fwd(qkv, heads):
  q, k, v = _unpack(qkv, heads)
  weights, total = _exponentials(q, k)
  weights = weights.astype(q.dtype)
  # Divides the outputs instead of the weights: n x size numbers instead of n x n.
  out = jnp.einsum("bhqk,bhkd->bhqd", weights, v, preferred_element_type=jnp.float32) / total
  out = out.astype(q.dtype)
  joined = rearrange(out, "b heads n size -> b n (heads size)")
  return joined, (q, k, v, weights, total, out)


def _attend_bwd(heads, residuals, dout):
  q, k, v, weights, total, out = residuals
  dout = rearrange(dout, "b n (heads size) -> b heads n size", heads=heads)
  scaled = (dout.astype(jnp.float32) / total).astype(q.dtype)
  mean = (scaled.astype(jnp.float32) * out).sum(-1, keepdims=True)
  dv = jnp.einsum("bhqk,bhqd->bhkd", weights, scaled)
  dweights = jnp.einsum("bhqd,bhkd->bhqk", scaled, v, preferred_element_type=jnp.float32)
  dscores = (weights * (dweights - mean)).astype(q.dtype)
  dq = jnp.einsum("bhqk,bhkd->bhqd", dscores, k) * q.shape[-1] ** -0.5
  dk = jnp.einsum("bhqk,bhqd->bhkd", dscores, q)
  packed = jnp.stack([dq, dk, dv], axis=2)
  return (rearrange(packed, "b heads qkv n size -> b n (qkv heads size)"),)


_attend_packed.defvjp(_attend_fwd, _attend_bwd)

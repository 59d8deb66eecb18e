"""Attention of short sequences as a single Pallas kernel for TPUs.

A radiograph has a few hundred tokens: all logits of a head fit into a TPU core's vector memory. One
program processes all heads of an image, and reads queries, keys and values as the previous layer
wrote them; neither token-by-token matrices nor softmax statistics pass through device memory. The
gradient recomputes the softmax.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

MAX_TOKENS = 640  # tokens: five float32 token-by-token matrices fit beside inputs and outputs


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def attend(
  qkv: Float[Array, "b n c"], heads: int, interpret: bool = False
) -> Float[Array, "b n d"]:
  """See `cxrjax.models.attention.attend`.

  Args:
    qkv: up to `MOST` tokens per image.
    heads: number of heads.
    interpret: run as plain JAX, on any device.
  """
  return _attend_fwd(qkv, heads, interpret)[0]


def _attend_fwd(qkv, heads, interpret):
  b, n, c = qkv.shape
  return _call(_forward, heads, interpret, (b, n, c // 3), qkv), qkv


def _attend_bwd(heads, interpret, qkv, dout):
  return (_call(_backward, heads, interpret, qkv.shape, qkv, dout),)


attend.defvjp(_attend_fwd, _attend_bwd)


def _call(kernel, heads, interpret, shape, *arrays):
  def one_image(shape):
    return pl.BlockSpec((1, *shape[1:]), lambda image: (image, 0, 0))

  return pl.pallas_call(
    functools.partial(kernel, heads),
    grid=shape[0],
    interpret=interpret,
    in_specs=[one_image(x.shape) for x in arrays],
    out_specs=one_image(shape),
    out_shape=jax.ShapeDtypeStruct(shape, arrays[0].dtype),
  )(*arrays)


def _head(ref, heads, i):
  """Queries, keys and values of head `i`, [n size] each, and their columns."""
  width = ref.shape[-1] // 3
  head_dim = width // heads
  columns = [
    slice(part * width + i * head_dim, part * width + (i + 1) * head_dim) for part in range(3)
  ]
  return [ref[0, :, column] for column in columns], columns


def _dot(a, b, axes):
  return jax.lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=jnp.float32)


def _softmax(q, k):
  """Numerators [n n], at most 1, and their sums [n 1]; float32."""
  scores = _dot(q, k, ((1,), (1,))) * q.shape[-1] ** -0.5
  weights = jnp.exp(scores - scores.max(-1, keepdims=True))
  return weights, weights.sum(-1, keepdims=True)


def _forward(heads, qkv_ref, out_ref):
  for i in range(heads):
    (q, k, v), (columns, *_) = _head(qkv_ref, heads, i)
    weights, total = _softmax(q, k)
    out = _dot(weights.astype(v.dtype), v, ((1,), (0,))) / total
    out_ref[0, :, columns] = out.astype(out_ref.dtype)


def _backward(heads, qkv_ref, dout_ref, dqkv_ref):
  for i in range(heads):
    (q, k, v), columns = _head(qkv_ref, heads, i)
    weights, total = _softmax(q, k)
    weights = weights / total
    dout = dout_ref[0, :, columns[0]]
    dweights = _dot(dout, v, ((1,), (1,)))
    mean = (dweights * weights).sum(-1, keepdims=True)
    scaled = weights * (dweights - mean) * q.shape[-1] ** -0.5
    dscores, weights = scaled.astype(q.dtype), weights.astype(q.dtype)
    gradients = (
      _dot(dscores, k, ((1,), (0,))),
      _dot(dscores, q, ((0,), (0,))),
      _dot(weights, dout, ((0,), (0,))),
    )
    for column, gradient in zip(columns, gradients, strict=True):
      dqkv_ref[0, :, column] = gradient.astype(dqkv_ref.dtype)

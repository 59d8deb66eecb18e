"""Layers on flat tokens: `[tokens, features]`, all crops of a step in one matrix.

Gradients of layer norm and GELU are written by hand: they keep one array each and come out as few
fused passes over memory, which is what these layers cost on every backend.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

_trunc_normal = nnx.initializers.truncated_normal(0.02)  # cut at two standard deviations
_SQRT_HALF = 0.7071067811865476
_INV_SQRT_2PI = 0.3989422804014327


class Linear(nnx.Module):
  """`x @ kernel + bias` in the type of `x`; kernel [in, out] from N(0, 0.02) truncated, bias 0."""

  def __init__(self, in_dim: int, out_dim: int, *, bias: bool = True, rngs: nnx.Rngs):
    self.kernel = nnx.Param(_trunc_normal(rngs.params(), (in_dim, out_dim), jnp.float32))
    self.bias = nnx.Param(jnp.zeros((out_dim,), jnp.float32)) if bias else None

  def __call__(self, x: Float[Array, "t i"]) -> Float[Array, "t o"]:
    y = x @ self.kernel[...].astype(x.dtype)
    return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class LayerNorm(nnx.Module):
  """Layer norm over the last axis (Ba et al. 2016, arXiv:1607.06450); statistics in float32."""

  def __init__(self, dim: int, *, epsilon: float = 1e-6):
    self.scale = nnx.Param(jnp.ones((dim,), jnp.float32))
    self.bias = nnx.Param(jnp.zeros((dim,), jnp.float32))
    self.epsilon = epsilon

  def __call__(self, x: Float[Array, "t d"]) -> Float[Array, "t d"]:
    return layer_norm(x, self.scale[...], self.bias[...], self.epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "t d"], scale: Float[Array, "d"], bias: Float[Array, "d"],
    epsilon: float) -> Float[Array, "t d"]:
  """`(x - mean) / sqrt(var + epsilon) * scale + bias`, in the type of `x`."""
  return _layer_norm_fwd(x, scale, bias, epsilon)[0]


def _normalise(x, epsilon):
  x = x.astype(jnp.float32)
  mean = x.mean(-1, keepdims=True)
  centred = x - mean
  rstd = jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + epsilon)
  return centred, mean, rstd


def _layer_norm_fwd(x, scale, bias, epsilon):
  centred, mean, rstd = _normalise(x, epsilon)
  y = (centred * rstd * scale + bias).astype(x.dtype)
  return y, (x, scale, mean, rstd)


def _layer_norm_bwd(epsilon, residuals, dy):
  del epsilon
  x, scale, mean, rstd = residuals
  dy = dy.astype(jnp.float32)
  normal = (x.astype(jnp.float32) - mean) * rstd
  g = dy * scale
  dx = rstd * (g - g.mean(-1, keepdims=True) - normal * (g * normal).mean(-1, keepdims=True))
  return dx.astype(x.dtype), (dy * normal).sum(0), dy.sum(0)


layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


@jax.custom_vjp
def gelu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
  """Exact GELU, `x * Phi(x)` (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
  return _gelu_fwd(x)[0]


def _gelu_fwd(x):
  f = x.astype(jnp.float32)
  return (f * _phi(f)).astype(x.dtype), x


def _gelu_bwd(x, dy):
  # The barrier has erf computed again: without it the forward pass stores erf(x) for here, which
  # costs more in memory traffic than it saves in arithmetic.
  f = jax.lax.optimization_barrier(x).astype(jnp.float32)
  slope = _phi(f) + f * (_INV_SQRT_2PI * jnp.exp(-0.5 * f * f))
  return ((dy.astype(jnp.float32) * slope).astype(x.dtype),)


def _phi(x):
  """The standard normal distribution function."""
  return 0.5 * (1.0 + jax.lax.erf(x * _SQRT_HALF))


gelu.defvjp(_gelu_fwd, _gelu_bwd)

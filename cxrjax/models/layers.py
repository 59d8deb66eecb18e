"""Layers on the last axis of tokens, `[..., features]`.

Gradients of layer norm and GELU are written by hand: they keep one array each and come out as few
fused passes over memory, which is what these layers cost on every backend.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

# DINO's and timm's start cuts at +-2, a hundred standard deviations away: a plain normal.
start = nnx.initializers.normal(0.02)

# How a kernel starts. N(0, 0.02) is Xavier's width for about 2,500 inputs and outputs; the kernels
# of networks under 200 wide start ten times too small with it, and stay near a linear network for
# hundreds of steps.
STARTS = {
  "normal": start,
  "xavier": nnx.initializers.xavier_uniform(),
  "torch": lambda key, shape, dtype: jax.random.uniform(
    key, shape, dtype, -shape[0]**-0.5, shape[0]**-0.5),  # torch's own, of layers left alone
}
_SQRT_HALF = 0.7071067811865476
_INV_SQRT_2PI = 0.3989422804014327


class Linear(nnx.Module):
  """`x @ kernel + bias` in the type of `x`; kernel [in, out], bias 0.

  Args:
    in_dim: length of a row of `x`.
    out_dim: length of a row of the result.
    bias: whether there is one.
    init: how the kernel starts, of `STARTS`.
    parts: how many matrices of one width the kernel joins (queries, keys and values).
  """

  def __init__(
      self, in_dim: int, out_dim: int, *, bias: bool = True, init: str = "normal", parts: int = 1,
      rngs: nnx.Rngs):
    make = STARTS[init]
    kernels = [make(rngs.params(), (in_dim, out_dim // parts), jnp.float32) for _ in range(parts)]
    self.kernel = nnx.Param(jnp.concatenate(kernels, axis=1))
    self.bias = nnx.Param(jnp.zeros((out_dim,), jnp.float32)) if bias else None

  def __call__(self, x: Float[Array, "*t i"]) -> Float[Array, "*t o"]:
    kernel = self.kernel[...].astype(x.dtype)
    y = (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)
    return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class LayerNorm(nnx.Module):
  """Layer norm over the last axis (Ba et al. 2016, arXiv:1607.06450); statistics in float32."""

  def __init__(self, dim: int, *, epsilon: float = 1e-6):
    self.scale = nnx.Param(jnp.ones((dim,), jnp.float32))
    self.bias = nnx.Param(jnp.zeros((dim,), jnp.float32))
    self.epsilon = epsilon

  def __call__(self, x: Float[Array, "*t d"]) -> Float[Array, "*t d"]:
    return layer_norm(x, self.scale[...], self.bias[...], self.epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*t d"], scale: Float[Array, "d"], bias: Float[Array, "d"],
    epsilon: float) -> Float[Array, "*t d"]:
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
  axes = tuple(range(x.ndim - 1))
  return dx.astype(x.dtype), (dy * normal).sum(axes), dy.sum(axes)


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

# By the names that a model's option has for them; networks of Flax's examples have the second.
GELUS = {"exact": gelu, "tanh": functools.partial(jax.nn.gelu, approximate=True)}

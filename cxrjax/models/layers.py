"""Layers on the last axis of tokens, `[..., features]`.

Gradients of layer norm and GELU are written by hand: they keep one array each and come out as few
fused passes over memory, which is what these layers cost on every backend.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

# DINO's and timm's start cuts at +-2, a hundred standard deviations away: a plain normal.
start = nnx.initializers.normal(0.02)

MAX_DEPTH = 1000  # layers one after another; no network has more, whatever a config says

# How a kernel starts. N(0, 0.02) is Xavier's width for about 2,500 inputs and outputs; the kernels
# of networks under 200 wide start ten times too small with it, and stay near a linear network for
# hundreds of steps.
STARTS = {
  "normal": start,
  "xavier": nnx.initializers.xavier_uniform(),
  "torch": lambda key, shape, dtype: jax.random.uniform(
    key, shape, dtype, -(shape[0] ** -0.5), shape[0] ** -0.5
  ),  # torch's own, of layers left alone
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
    self,
    in_dim: int,
    out_dim: int,
    *,
    bias: bool = True,
    init: str = "normal",
    parts: int = 1,
    rngs: nnx.Rngs,
  ):
    make = STARTS[init]
    kernels = [make(rngs.params(), (in_dim, out_dim // parts), jnp.float32) for _ in range(parts)]
    self.kernel = nnx.Param(jnp.concatenate(kernels, axis=1))
    self.bias = nnx.Param(jnp.zeros((out_dim,), jnp.float32)) if bias else None

  def __call__(
    self, x: Float[Array, "*t i"], activation: Callable[..., Array] | None = None
  ) -> Float[Array, "*t o"]:
    """The layer, or `activation(x @ kernel, bias)`, an array of the same shape."""
    y = self.product(x)
    if activation is not None:
      y = activation(y, None if self.bias is None else self.bias[...])
    elif self.bias is not None:
      y = y + self.bias[...].astype(x.dtype)
    return y.reshape(*x.shape[:-1], -1)

  def product(self, x: Float[Array, "*t i"]) -> Float[Array, "n o"]:
    """The layer without its bias, in rows."""
    return x.reshape(-1, x.shape[-1]) @ self.kernel[...].astype(x.dtype)


class LayerNorm(nnx.Module):
  """Layer norm over the last axis (Ba et al. 2016, arXiv:1607.06450); statistics in float32."""

  def __init__(self, dim: int, *, epsilon: float = 1e-6):
    self.scale = nnx.Param(jnp.ones((dim,), jnp.float32))
    self.bias = nnx.Param(jnp.zeros((dim,), jnp.float32))
    self.epsilon = epsilon

  def __call__(self, x: Float[Array, "*t d"]) -> Float[Array, "*t d"]:
    y = layer_norm(x.reshape(-1, x.shape[-1]), self.scale[...], self.bias[...], self.epsilon)
    return y.reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
  x: Float[Array, "t d"], scale: Float[Array, "d"], bias: Float[Array, "d"], epsilon: float
) -> Float[Array, "t d"]:
  """`(x - mean) / sqrt(var + epsilon) * scale + bias`, in the type of `x`."""
  return _layer_norm_fwd(x, scale, bias, epsilon)[0]


def _normalise(x, epsilon):
  x = x.astype(jnp.float32)
  mean = x.mean(-1, keepdims=True)
  # Both sums in one pass over memory, as Flax has them.
  var = jnp.maximum((x * x).mean(-1, keepdims=True) - mean * mean, 0.0)
  return x - mean, mean, jax.lax.rsqrt(var + epsilon)


def _layer_norm_fwd(x, scale, bias, epsilon):
  centred, mean, rstd = _normalise(x, epsilon)
  y = (centred * rstd * scale + bias).astype(x.dtype)
  return y, (x, scale, mean, rstd)


def _layer_norm_bwd(epsilon, residuals, dy):
  del epsilon
  x, scale, mean, rstd = residuals
  dtype = x.dtype
  # The barriers have either sum computed from bfloat16 once more: without them a compiler stores
  # float32 copies of all tokens that both can use.
  g, normal = _upstream(x, dy, mean, rstd)
  dscale, dbias = (g * normal).sum(0), g.sum(0)
  g, normal = _upstream(x, dy, mean, rstd)
  g = g * scale
  dx = rstd * (g - g.mean(-1, keepdims=True) - normal * (g * normal).mean(-1, keepdims=True))
  return dx.astype(dtype), dscale, dbias


def _upstream(x, dy, mean, rstd):
  x, dy = jax.lax.optimization_barrier((x, dy))
  return dy.astype(jnp.float32), (x.astype(jnp.float32) - mean) * rstd


layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


@jax.custom_vjp
def gelu(x: Float[Array, "*s d"], bias: Float[Array, "d"] | None = None) -> Float[Array, "*s d"]:
  """Exact GELU, `x * Phi(x)` (Hendrycks and Gimpel 2016, arXiv:1606.08415), of `x + bias`.

  With the bias inside, a layer's product is stored once, for the gradient as well.
  """
  return _gelu_fwd(x, bias)[0]


def _biased(x, bias):
  x = x.astype(jnp.float32)
  return x if bias is None else x + bias.astype(jnp.float32)


def _gelu_fwd(x, bias):
  f = _biased(x, bias)
  return (f * _phi(f)).astype(x.dtype), (x, bias)


def _gelu_bwd(residuals, dy):
  x, bias = residuals
  # The barrier has erf computed again: without it the forward pass stores erf(x) for here, which
  # costs more in memory traffic than it saves in arithmetic.
  f = _biased(jax.lax.optimization_barrier(x), bias)
  slope = _phi(f) + f * (_INV_SQRT_2PI * jnp.exp(-0.5 * f * f))
  dx = (dy.astype(jnp.float32) * slope).astype(x.dtype)
  if bias is None:
    return dx, None
  return dx, jax.lax.reduce_sum(dx, tuple(range(x.ndim - 1))).astype(bias.dtype)


def _phi(x):
  """The standard normal distribution function."""
  return 0.5 * (1.0 + jax.lax.erf(x * _SQRT_HALF))


gelu.defvjp(_gelu_fwd, _gelu_bwd)


def _tanh_gelu(x, bias):
  return jax.nn.gelu(x + bias.astype(x.dtype), approximate=True)


# Of `x + bias`, by the names that a model's option has for them; networks of Flax's examples have
# the second.
GELUS = {"exact": gelu, "tanh": _tanh_gelu}

"""Layers on the last axis of tokens, `[..., features]`.

Gradients of layer norm and GELU are handwritten: they keep one array each and compile to few fused
passes over memory, which determine the cost of these layers on every backend.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

# DINO and timm truncate at +-2, a hundred standard deviations away: a plain normal.
normal_init = nnx.initializers.normal(0.02)

MAX_DEPTH = 1000  # sequential layers; an upper bound on what a config may ask for

# Kernel initializers. N(0, 0.02) has Xavier's scale for about 2,500 inputs and outputs; with it the
# kernels of networks under 200 wide start ten times too small, and the network stays nearly linear
# for hundreds of steps.
INITIALIZERS = {
  "normal": normal_init,
  "xavier": nnx.initializers.xavier_uniform(),
  "torch": lambda key, shape, dtype: jax.random.uniform(
    key, shape, dtype, -(shape[0] ** -0.5), shape[0] ** -0.5
  ),  # torch's default
}
_SQRT_HALF = 0.7071067811865476
_INV_SQRT_2PI = 0.3989422804014327


class Linear(nnx.Module):
  """`x @ kernel + bias` in the type of `x`; kernel [in, out], bias 0.

  Args:
    in_dim: features of the input.
    out_dim: features of the output.
    bias: whether to add a bias.
    init: kernel initializer, one of `STARTS`.
    parts: number of equally wide matrices that form the kernel (queries, keys and values).
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
    initializer = INITIALIZERS[init]
    kernels = [
      initializer(rngs.params(), (in_dim, out_dim // parts), jnp.float32) for _ in range(parts)
    ]
    self.kernel = nnx.Param(jnp.concatenate(kernels, axis=1))
    self.bias = nnx.Param(jnp.zeros((out_dim,), jnp.float32)) if bias else None

  def __call__(
    self, x: Float[Array, "*t i"], activation: Callable[..., Array] | None = None
  ) -> Float[Array, "*t o"]:
    """Applies the layer, or `activation(x @ kernel, bias)`, which must keep the shape."""
    y = self.product(x)
    if activation is not None:
      y = activation(y, None if self.bias is None else self.bias[...])
    elif self.bias is not None:
      y = y + self.bias[...].astype(x.dtype)
    return y.reshape(*x.shape[:-1], -1)

  def product(self, x: Float[Array, "*t i"]) -> Float[Array, "n o"]:
    """The layer without its bias, flattened to rows."""
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


def _normalize(x, epsilon):
  x = x.astype(jnp.float32)
  mean = x.mean(-1, keepdims=True)
  # Both sums in one pass over memory, as in Flax.
  var = jnp.maximum((x * x).mean(-1, keepdims=True) - mean * mean, 0.0)
  return x - mean, mean, jax.lax.rsqrt(var + epsilon)


def _layer_norm_fwd(x, scale, bias, epsilon):
  centered, mean, rstd = _normalize(x, epsilon)
  y = (centered * rstd * scale + bias).astype(x.dtype)
  return y, (x, scale, mean, rstd)


def _layer_norm_bwd(epsilon, residuals, dy):
  del epsilon
  x, scale, mean, rstd = residuals
  dtype = x.dtype
  # The barriers force both uses to recompute from bfloat16: without them a compiler stores float32
  # copies of all tokens to share.
  upstream, normalized = _recompute(x, dy, mean, rstd)
  dscale, dbias = (upstream * normalized).sum(0), upstream.sum(0)
  upstream, normalized = _recompute(x, dy, mean, rstd)
  upstream = upstream * scale
  dx = rstd * (
    upstream
    - upstream.mean(-1, keepdims=True)
    - normalized * (upstream * normalized).mean(-1, keepdims=True)
  )
  return dx.astype(dtype), dscale, dbias


def _recompute(x, dy, mean, rstd):
  x, dy = jax.lax.optimization_barrier((x, dy))
  return dy.astype(jnp.float32), (x.astype(jnp.float32) - mean) * rstd


layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


@jax.custom_vjp
def gelu(x: Float[Array, "*s d"], bias: Float[Array, "d"] | None = None) -> Float[Array, "*s d"]:
  """Exact GELU, `x * Phi(x)` (Hendrycks and Gimpel 2016, arXiv:1606.08415), of `x + bias`.

  With the bias inside, a layer's product is stored only once, which also serves the gradient.
  """
  return _gelu_fwd(x, bias)[0]


def _add_bias(x, bias):
  x = x.astype(jnp.float32)
  return x if bias is None else x + bias.astype(jnp.float32)


def _gelu_fwd(x, bias):
  f = _add_bias(x, bias)
  return (f * _phi(f)).astype(x.dtype), (x, bias)


def _gelu_bwd(residuals, dy):
  x, bias = residuals
  # The barrier forces erf to be recomputed: otherwise the forward pass stores erf(x), which costs
  # more in memory traffic than it saves in arithmetic.
  f = _add_bias(jax.lax.optimization_barrier(x), bias)
  slope = _phi(f) + f * (_INV_SQRT_2PI * jnp.exp(-0.5 * f * f))
  dx = (dy.astype(jnp.float32) * slope).astype(x.dtype)
  if bias is None:
    return dx, None
  return dx, jax.lax.reduce_sum(dx, tuple(range(x.ndim - 1))).astype(bias.dtype)


def _phi(x):
  """The cumulative distribution function of the standard normal distribution."""
  return 0.5 * (1.0 + jax.lax.erf(x * _SQRT_HALF))


gelu.defvjp(_gelu_fwd, _gelu_bwd)


def _tanh_gelu(x, bias):
  return jax.nn.gelu(x + bias.astype(x.dtype), approximate=True)


# GELUs of `x + bias`, by the values of a model's option; Flax's examples use the second.
GELUS = {"exact": gelu, "tanh": _tanh_gelu}

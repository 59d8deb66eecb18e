"""Projection heads of self-supervised methods."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from cxrjax.models import layers, module


@dataclasses.dataclass(frozen=True)
class DinoHead:
  """DINO's head: an MLP with GELU, unit length, weight-normalised prototypes.

  Attributes:
    in_dim: features of the encoder.
    prototypes: K, the number of outputs.
    hidden: width of the MLP.
    bottleneck: width before the prototypes, where vectors are brought to unit length.
    layers: linear layers of the MLP, the bottleneck included.
    batch_norm: normalise the hidden layers over the rows given (all crops of the global batch), in
      training as in evaluation. The paper's ViTs do without; it keeps images apart where all look
      alike to a fresh network, as radiographs do, and training is short.
    norm_last_layer: keep every prototype's norm at 1; else it is learnt, which may train better
      and is less stable.
    initial: how the MLP's kernels start, as in `cxrjax.models.vit.Model`.
    dtype: type of the matrix products; `"auto"` is bfloat16 on accelerators, float32 on CPU.

  References: Caron et al. 2021, arXiv:2104.14294, section 3.1 and appendix C; Salimans and Kingma
  2016, arXiv:1602.07868, equation 2 (weight normalisation).
  """

  in_dim: int
  prototypes: int = 65536
  hidden: int = 2048
  bottleneck: int = 256
  layers: int = 3
  norm_last_layer: bool = True
  batch_norm: bool = False
  initial: str = "normal"
  dtype: str = "auto"

  def init(self, key: jax.Array) -> module.Params:
    """`{"mlp": {...}, "prototypes": {"kernel" f32[bottleneck K] (, "scale" f32[K])}}`."""
    return self._net.init(key)

  def apply(self, params: module.Params, x: Float[Array, "m d"]) -> Float32[Array, "m K"]:
    """Logits: cosines of the bottleneck with every prototype (times its norm where learnt)."""
    return self._net.apply(params, x)

  @functools.cached_property
  def _net(self) -> module.Net:
    fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    return module.Net.of(_DinoHead, **fields)

  def flops(self) -> int:
    """Floating-point operations of one forward pass of one row (a multiply-add is two)."""
    dims = [self.in_dim, *[self.hidden] * (self.layers - 1), self.bottleneck, self.prototypes]
    return 2 * sum(a * b for a, b in itertools.pairwise(dims))


class _Mlp(nnx.Module):

  def __init__(self, dims: list[int], batch_norm: bool, initial: str, rngs: nnx.Rngs):
    self.layers = nnx.List([
        layers.Linear(a, b, init=initial, rngs=rngs) for a, b in itertools.pairwise(dims)])
    self.norms = nnx.List([_BatchNorm(d) for d in dims[1:-1]]) if batch_norm else None

  def __call__(self, x):
    for i, layer in enumerate(self.layers[:-1]):
      x = layer(x)
      x = layers.gelu(x if self.norms is None else self.norms[i](x))
    return self.layers[-1](x)


class _BatchNorm(nnx.Module):
  """Batch statistics always: a head is not used after training, so it keeps no running ones."""

  def __init__(self, dim: int, *, epsilon: float = 1e-5):
    self.scale = nnx.Param(jnp.ones((dim,), jnp.float32))
    self.bias = nnx.Param(jnp.zeros((dim,), jnp.float32))
    self.epsilon = epsilon

  def __call__(self, x):
    y = x.astype(jnp.float32)
    y = (y - y.mean(0)) * jax.lax.rsqrt(y.var(0) + self.epsilon)
    return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class _Prototypes(nnx.Module):

  def __init__(self, in_dim: int, number: int, norm_last_layer: bool, rngs: nnx.Rngs):
    # torch.nn.Linear's default, uniform within 1/sqrt(in_dim); only the direction matters.
    bound = in_dim**-0.5
    self.kernel = nnx.Param(jax.random.uniform(
        rngs.params(), (in_dim, number), jnp.float32, -bound, bound))
    self.scale = None if norm_last_layer else nnx.Param(jnp.ones((number,), jnp.float32))

  def __call__(self, x, dtype):
    kernel = self.kernel[...]
    norm = jax.lax.rsqrt(jnp.maximum((kernel * kernel).sum(0), 1e-24))
    # Scaling the logits instead of the kernel gives the same numbers and gradients with a kernel
    # that is read once by the product.
    logits = jax.lax.dot(
        x.astype(dtype), kernel.astype(dtype), preferred_element_type=jnp.float32) * norm
    return logits if self.scale is None else logits * self.scale[...]


class _DinoHead(nnx.Module):

  def __init__(
      self, in_dim, prototypes, hidden, bottleneck, layers, norm_last_layer, batch_norm, initial,
      dtype, rngs):
    self.mlp = _Mlp([in_dim, *[hidden] * (layers - 1), bottleneck], batch_norm, initial, rngs)
    self.prototypes = _Prototypes(bottleneck, prototypes, norm_last_layer, rngs)
    self.dtype = dtype

  def __call__(self, x):
    dtype = module.compute_dtype(self.dtype)
    x = self.mlp(x.astype(dtype)).astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24))
    return self.prototypes(x, dtype)

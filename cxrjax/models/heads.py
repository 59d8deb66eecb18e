"""Projection heads of self-supervised methods."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from cxrjax.core.errors import UserError, suggest
from cxrjax.models import layers, module

_ACTIVATIONS = {"none": lambda x: x, "relu": jax.nn.relu, "gelu": layers.gelu}
# Whether batch norm learns scale and bias.
_NORMS = {
  "none": (),
  "batch": (True, True),
  "batch_no_bias": (True, False),
  "batch_no_affine": (False, False),
}


@dataclasses.dataclass(frozen=True)
class Projector:
  """The projector or predictor MLP of contrastive and predictive methods.

  Hidden layers are linear, (batch norm), activation; the last is linear, (batch norm). Batch norm
  normalizes by the given rows, in training and evaluation: pass all rows of the global batch, in
  one call per view where the paper's statistics are per view. A layer followed by batch norm has
  no bias, which the norm would cancel.

  Attributes:
    in_dim: features of the input.
    dims: features of every layer's output; a single layer is a linear projection.
    batch_norm: use batch norm, with scale and bias, in the hidden layers.
    final_norm: norm of the output: "none", "batch", "batch_no_bias" (scale only) or
      "batch_no_affine".
    activation: of the hidden layers, "relu" or "gelu"; or one for each of them.
    bias: whether an output without batch norm has a bias.
    initial: kernel initializer, one of `cxrjax.models.layers.INITIALIZERS`.
    dtype: type of the matrix products, the encoder's.

  Raises:
    UserError: an invalid option.
  """

  in_dim: int
  dims: tuple[int, ...] = (2048, 2048, 256)
  batch_norm: bool = True
  final_norm: str = "none"
  activation: str | tuple[str, ...] = "relu"
  bias: bool = True
  initial: str = "torch"
  dtype: str = "float32"

  def __post_init__(self) -> None:
    if not self.dims or min(self.dims) < 1:
      raise UserError(f"a projector's dims={self.dims!r} must be one or more widths of at least 1")
    choices = (
      ("final_norm", (self.final_norm,), _NORMS),
      ("activation", self._activations, _ACTIVATIONS),
    )
    for name, values, valid in choices:
      for value in values:
        if value not in valid:
          raise UserError(f"a projector's {name}={value!r} is unknown{suggest(value, valid)}")
    if len(self._activations) != len(self.dims) - 1:
      raise UserError(
        f"a projector's activation={self.activation!r} must be one, or one for each of its "
        f"{len(self.dims) - 1} hidden layers"
      )

  @property
  def _activations(self) -> tuple[str, ...]:
    if isinstance(self.activation, str):
      return (self.activation,) * (len(self.dims) - 1)
    return tuple(self.activation)

  def init(self, key: jax.Array) -> module.Params:
    """`{"layers": {"0": {"kernel" f32[in out] (, "bias")}, ...} (, "norms": {"0": ...})}`."""
    return self._net.init(key)

  def apply(self, params: module.Params, x: Float[Array, "m d"]) -> Float32[Array, "m o"]:
    """Applies the MLP."""
    x = x.astype(self.dtype)
    return self._net.apply(params, x).astype(jnp.float32)

  @functools.cached_property
  def _net(self) -> module.Net:
    hidden = len(self.dims) - 1
    norms = (*("batch" if self.batch_norm else "none",) * hidden, self.final_norm)
    biases = (*(not self.batch_norm,) * hidden, self.bias and self.final_norm == "none")
    return module.Net.of(
      _Mlp,
      dims=(self.in_dim, *self.dims),
      biases=biases,
      norms=norms,
      activations=(*self._activations, "none"),
      initial=self.initial,
    )


@dataclasses.dataclass(frozen=True)
class DinoHead:
  """DINO's head: an MLP with GELU, unit length, weight-normalized prototypes.

  Attributes:
    in_dim: features of the encoder.
    prototypes: K, the number of outputs.
    hidden: width of the MLP.
    bottleneck: width before the prototypes, where vectors are scaled to unit length.
    layers: linear layers of the MLP, including the bottleneck.
    batch_norm: normalize the hidden layers over the given rows (all crops of the global batch), in
      training and evaluation. The paper's ViTs do without; it separates images that all look alike
      to a fresh network, as radiographs do, when training is short.
    norm_last_layer: fix every prototype's norm at 1; otherwise it is learned, which may train
      better but is less stable, with weight decay as for any matrix, as in the authors' code.
    initial: initializer of the MLP's kernels, as in `cxrjax.models.vit.Model`.
    dtype: type of the matrix products, the encoder's.

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
  dtype: str = "float32"

  def init(self, key: jax.Array) -> module.Params:
    """`{"mlp": {...}, "prototypes": {"kernel" f32[bottleneck K] (, "scale" f32[1 K])}}`."""
    return self._net.init(key)

  def apply(self, params: module.Params, x: Float[Array, "m d"]) -> Float32[Array, "m K"]:
    """Logits: cosines of the bottleneck and every prototype (times its norm if learned)."""
    return self._net.apply(params, x)

  @functools.cached_property
  def _net(self) -> module.Net:
    fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    return module.Net.of(_DinoHead, **fields)


class _Mlp(nnx.Module):
  """Linear layers, each followed by its norm and activation.

  Args:
    dims: features of the input and of every layer's output.
    biases: whether each layer has a bias.
    norms: key of `_NORMS` for each layer.
    activations: key of `_ACTIVATIONS` for each layer.
    initial: kernel initializer.
    rngs: random keys of the kernels.
  """

  def __init__(
    self,
    dims: Sequence[int],
    biases: Sequence[bool],
    norms: Sequence[str],
    activations: Sequence[str],
    initial: str,
    rngs: nnx.Rngs,
  ):
    self.layers = nnx.List(
      [
        layers.Linear(a, b, bias=bias, init=initial, rngs=rngs)
        for (a, b), bias in zip(itertools.pairwise(dims), biases, strict=True)
      ]
    )
    norm_layers = [
      _BatchNorm(d, *_NORMS[n]) for d, n in zip(dims[1:], norms, strict=True) if n != "none"
    ]
    self.norms = nnx.List(norm_layers) if norm_layers else None
    self.plan = tuple(zip((n != "none" for n in norms), activations, strict=True))

  def __call__(self, x):
    norms = iter(self.norms or ())
    for layer, (normed, activation) in zip(self.layers, self.plan, strict=True):
      x = layer(x)
      x = next(norms)(x) if normed else x
      x = _ACTIVATIONS[activation](x)
    return x


class _BatchNorm(nnx.Module):
  """Batch norm without running statistics, as a head is not used after training."""

  def __init__(self, dim: int, scale: bool, bias: bool, *, epsilon: float = 1e-5):
    self.scale = nnx.Param(jnp.ones((dim,), jnp.float32)) if scale else None
    self.bias = nnx.Param(jnp.zeros((dim,), jnp.float32)) if bias else None
    self.epsilon = epsilon

  def __call__(self, x):
    y = x.astype(jnp.float32)
    y = (y - y.mean(0)) * jax.lax.rsqrt(y.var(0) + self.epsilon)
    y = y if self.scale is None else y * self.scale[...]
    y = y if self.bias is None else y + self.bias[...]
    return y.astype(x.dtype)


class _Prototypes(nnx.Module):
  def __init__(self, in_dim: int, number: int, norm_last_layer: bool, rngs: nnx.Rngs):
    # torch.nn.Linear's default, uniform within 1/sqrt(in_dim); only the direction matters.
    bound = in_dim**-0.5
    self.kernel = nnx.Param(
      jax.random.uniform(rngs.params(), (in_dim, number), jnp.float32, -bound, bound)
    )
    self.scale = None if norm_last_layer else nnx.Param(jnp.ones((1, number), jnp.float32))

  def __call__(self, x, dtype):
    kernel = self.kernel[...]
    norm = jax.lax.rsqrt(jnp.maximum((kernel * kernel).sum(0), 1e-24))
    # Scaling the logits instead of the kernel gives the same values and gradients, and the product
    # reads the kernel only once.
    logits = _product(x.astype(dtype), kernel.astype(dtype)) * norm
    return logits if self.scale is None else logits * self.scale[...]


@jax.custom_vjp
def _product(x, kernel):
  """`x @ kernel` in float32; its gradient's products use the type of `x` and `kernel`."""
  return jax.lax.dot(x, kernel, preferred_element_type=jnp.float32)


def _product_bwd(residuals, dy):
  x, kernel = residuals
  dy = dy.astype(x.dtype)
  dkernel = jax.lax.dot(x.T, dy, preferred_element_type=jnp.float32)
  return dy @ kernel.T, dkernel.astype(kernel.dtype)


_product.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)), _product_bwd)


class _DinoHead(nnx.Module):
  def __init__(
    self,
    in_dim,
    prototypes,
    hidden,
    bottleneck,
    layers,
    norm_last_layer,
    batch_norm,
    initial,
    dtype,
    rngs,
  ):
    inner = layers - 1
    norms = ["batch" if batch_norm else "none"] * inner
    self.mlp = _Mlp(
      [in_dim, *[hidden] * inner, bottleneck],
      [True] * layers,
      [*norms, "none"],
      [*["gelu"] * inner, "none"],
      initial,
      rngs,
    )
    self.prototypes = _Prototypes(bottleneck, prototypes, norm_last_layer, rngs)
    self.dtype = dtype

  def __call__(self, x):
    x = self.mlp(x.astype(self.dtype)).astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24))
    return self.prototypes(x, self.dtype)

"""Convolution, batch norm and pooling of maps `[b h w c]`, with torch's semantics.

Some are formulated differently than in XLA, with the same results but faster gradients: on a CPU 3
times for 1x1 convolutions and max-pooling, 100 times for grouped convolutions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

MOMENTUM = 0.1  # of the running statistics: the weight of the newest batch
_Pair = tuple[int, int]

# Initializers of a kernel [h w in out]; fan-in is h * w * in, fan-out h * w * out.
INITIALIZERS: dict[str, Callable[..., Array]] = {
  # He et al. 2015, arXiv:1502.01852, equations 10 and 14, for ReLU.
  "fan_in": nnx.initializers.variance_scaling(2.0, "fan_in", "normal"),
  "fan_out": nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
  "torch": nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),  # torch's default
  "normal": nnx.initializers.normal(
    0.1
  ),  # Inception's; its truncation at 20 deviations has no effect
}


class Conv(nnx.Module):
  """`conv2d` with a learned kernel and an optional bias.

  Args:
    in_dim: channels of the input.
    out_dim: channels of the output.
    size: kernel size in pixels, or (height, width).
    stride: pixels from one output to the next.
    padding: zeros on every side, or (above and below, left and right); by default such that the
      size stays the same at stride 1.
    groups: number of channel groups that are convolved separately.
    dilation: pixels from one element of the kernel to the next.
    bias: whether to add a bias.
    init: kernel initializer, one of `STARTS`.
  """

  def __init__(
    self,
    in_dim: int,
    out_dim: int,
    size: int | _Pair,
    *,
    stride: int = 1,
    padding: int | _Pair | None = None,
    groups: int = 1,
    dilation: int = 1,
    bias: bool = False,
    init: str = "fan_out",
    rngs: nnx.Rngs,
  ):
    kh, kw = _pair(size)
    if padding is None:
      padding = dilation * (kh - 1) // 2, dilation * (kw - 1) // 2
    shape = (kh, kw, in_dim // groups, out_dim)
    self.kernel = nnx.Param(INITIALIZERS[init](rngs.params(), shape, jnp.float32))
    bound = (kh * kw * in_dim // groups) ** -0.5
    self.bias = (
      nnx.Param(jax.random.uniform(rngs.params(), (out_dim,), jnp.float32, -bound, bound))
      if bias
      else None
    )
    self.config = (stride, _pair(padding), groups, dilation)

  def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b y x o"]:
    stride, padding, groups, dilation = self.config
    y = conv2d(x, self.kernel[...].astype(x.dtype), stride, padding, groups, dilation)
    return y if self.bias is None else y + self.bias[...].astype(x.dtype)


def conv2d(
  x: Float[Array, "b h w i"],
  kernel: Float[Array, "kh kw i_per_group o"],
  stride: int = 1,
  padding: _Pair = (0, 0),
  groups: int = 1,
  dilation: int = 1,
) -> Float[Array, "b y x o"]:
  """Cross-correlation, as torch's `conv2d`: output i reads inputs from `i * stride - padding` on.

  Args:
    x: maps.
    kernel: in the type of `x`.
    stride: along both axes.
    padding: zeros above and below, left and right.
    groups: number of parts of the input channels, each feeding its part of the output channels.
    dilation: along both axes.
  """
  kh, kw, *_ = kernel.shape
  if (kh, kw, groups) == (1, 1, 1) and padding == (0, 0):
    if stride > 1:
      # The barrier keeps XLA from fusing the slice into the product, which a GPU could not tile.
      x = jax.lax.optimization_barrier(x[:, ::stride, ::stride])
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:3], -1)
  if groups > 1:
    return grouped_conv(x, kernel, stride, padding, groups, dilation)
  return _lax_conv(x, kernel, stride, padding, 1, dilation)


def _lax_conv(x, kernel, stride, padding, groups, dilation):
  (top, left) = padding
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    ((top, top), (left, left)),
    rhs_dilation=(dilation, dilation),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def grouped_conv(
  x: Float[Array, "b h w i"],
  kernel: Float[Array, "kh kw i_per_group o"],
  stride: int,
  padding: _Pair,
  groups: int,
  dilation: int,
) -> Float[Array, "b y x o"]:
  """`conv2d` with several groups.

  On a CPU, where XLA's gradient of grouped convolutions is a hundred times slower than that of
  ordinary ones, several groups at a time become one ordinary convolution with a block-diagonal
  kernel.
  """
  return _grouped_conv(x, kernel, (stride, padding, groups, dilation))


# `cxrjax.core.flops` identifies these two functions by name.
@functools.partial(jax.jit, static_argnums=2)
def _grouped_conv(x, kernel, options):
  return jax.lax.platform_dependent(
    x,
    kernel,
    cpu=lambda x, k: _block_diagonal_conv(x, k, *options),
    default=lambda x, k: _lax_conv(x, k, *options),
  )


@functools.partial(jax.jit, static_argnums=3)
def _grouped_conv_gradient(x, kernel, dy, options):
  def by(form):
    return lambda x, k, dy: jax.vjp(lambda x, k: form(x, k, *options), x, k)[1](dy)

  return jax.lax.platform_dependent(
    x, kernel, dy, cpu=by(_block_diagonal_conv), default=by(_lax_conv)
  )


# A custom gradient: with autodiff every platform would keep the residuals of all of them.
grouped_conv.defvjp(
  lambda x, kernel, *options: (_grouped_conv(x, kernel, options), (x, kernel)),
  lambda *args: _grouped_conv_gradient(*args[4], args[5], args[:4]),
)


def _block_diagonal_conv(x, kernel, stride, padding, groups, dilation):
  """Grouped convolution as ordinary ones, each of a few groups, with block-diagonal kernels."""
  kh, kw, cin, cout = kernel.shape
  per_part = next(n for n in range(min(groups, max(1, 32 // cin)), 0, -1) if groups % n == 0)
  parts = groups // per_part
  shape = parts, kh, kw, per_part, cin, per_part, cout // groups
  kernels = jnp.moveaxis(kernel.reshape(kh, kw, cin, *shape[:1], *shape[5:]), 3, 0)[:, :, :, None]
  row, column = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (3, 5))
  # `where`, not a product with ones and zeros: that gradient crashes in jaxlib 0.10 on CPUs.
  kernels = jnp.where(row == column, kernels, jnp.zeros((), x.dtype)).reshape(
    parts, kh, kw, per_part * cin, -1
  )
  maps = [
    _lax_conv(part, k, stride, padding, 1, dilation)
    for part, k in zip(jnp.split(x, parts, axis=-1), kernels, strict=True)
  ]
  return jnp.concatenate(maps, axis=-1)


class BatchNorm(nnx.Module):
  """Batch norm over all axes but the last (Ioffe and Szegedy 2015, arXiv:1502.03167).

  In training it normalizes by the batch, under `jit` the global batch of all devices, and moves its
  running statistics by a tenth towards those of the batch, with the unbiased variance, as torch
  does. Statistics are in float32. `module.running_stats` reads them.
  """

  def __init__(self, dim: int, *, epsilon: float = 1e-5, scale: float = 1.0):
    self.scale = nnx.Param(jnp.full((dim,), scale, jnp.float32))
    self.bias = nnx.Param(jnp.zeros((dim,), jnp.float32))
    self.running_mean = nnx.Param(jnp.zeros((dim,), jnp.float32))
    self.running_var = nnx.Param(jnp.ones((dim,), jnp.float32))
    self.epsilon = epsilon

  def __call__(
    self,
    x: Float[Array, "*b d"],
    *,
    train: bool,
    batch: tuple[Float[Array, "d"], Float[Array, "d"]] | None = None,
  ) -> Float[Array, "*b d"]:
    """`(x - mean) / sqrt(var + epsilon) * scale + bias`, in the type of `x`.

    Args:
      x: the input.
      train: normalize by the statistics of `x` instead of the running ones.
      batch: mean and variance of `x`, from `moments`, if already known.
    """
    mean, var = self.running_mean[...], self.running_var[...]
    if train:
      old_stats = jax.lax.stop_gradient((mean, var))
      mean, var = batch or moments(x, old_stats[0])
      count = x.size // x.shape[-1]
      new_stats = jax.lax.stop_gradient((mean, var * (count / max(count - 1, 1))))
      self.running_mean[...], self.running_var[...] = (
        old + MOMENTUM * (new - old) for old, new in zip(old_stats, new_stats, strict=True)
      )
    return _affine(x, mean, self.scale[...] * jax.lax.rsqrt(var + self.epsilon), self.bias[...])


@jax.custom_vjp
def moments(
  x: Float[Array, "*b d"], shift: Float[Array, "d"]
) -> tuple[Float[Array, "d"], Float[Array, "d"]]:
  """Mean and (biased) variance over all axes but the last, float32, in one pass over memory.

  Args:
    x: any type.
    shift: an estimate of the mean; the closer, the smaller the variance's rounding error.
  """
  return _moments_fwd(x, shift)[0]


def _moments_fwd(x, shift):
  axes = tuple(range(x.ndim - 1))
  centered = x.astype(jnp.float32) - shift
  mean_offset, mean_square = centered.mean(axes), (centered * centered).mean(axes)
  mean = shift + mean_offset
  return (mean, jnp.maximum(mean_square - mean_offset * mean_offset, 0.0)), (x, mean)


def _moments_bwd(residuals, cotangents):
  (x, mean), (dmean, dvar) = residuals, cotangents
  count = x.size // x.shape[-1]
  dx = dmean / count + (x.astype(jnp.float32) - mean) * (2 * dvar / count)
  return dx.astype(x.dtype), jnp.zeros_like(mean)


moments.defvjp(_moments_fwd, _moments_bwd)


@jax.custom_vjp
def _affine(x, mean, scale, bias):
  """`(x - mean) * scale + bias`; for the gradient it keeps only `x`, in its own type."""
  return ((x.astype(jnp.float32) - mean) * scale + bias).astype(x.dtype)


def _affine_bwd(residuals, dy):
  x, mean, scale = residuals
  axes = tuple(range(x.ndim - 1))
  dy = dy.astype(jnp.float32)
  dbias = dy.sum(axes)
  dscale = (dy * (x.astype(jnp.float32) - mean)).sum(axes)
  return (dy * scale).astype(x.dtype), -scale * dbias, dscale, dbias


_affine.defvjp(lambda x, *args: (_affine(x, *args), (x, *args[:2])), _affine_bwd)


def max_pool(
  x: Float[Array, "b h w c"], size: int, stride: int, padding: int = 0
) -> Float[Array, "b y x c"]:
  """The maximum of every `size` x `size` window; ties share the gradient.

  Computed over rows, then columns, as maxima of shifted maps: their gradient is elementwise, while
  that of a window reduction scatters.
  """
  pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
  x = jnp.pad(x, pads, constant_values=-jnp.inf) if padding else x
  for axis in (1, 2):
    x = functools.reduce(jnp.maximum, _windows(x, axis, size, stride))
  return x


def avg_pool(
  x: Float[Array, "b h w c"], size: int, stride: int, padding: int = 0
) -> Float[Array, "b y x c"]:
  """The mean of every `size` x `size` window, including zero padding."""
  x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0))) if padding else x
  y = x.astype(jnp.float32) / size**2
  for axis in (1, 2):
    y = sum(_windows(y, axis, size, stride))
  return y.astype(x.dtype)


def _windows(x, axis, size, stride):
  """`size` maps, of the first, second, ... element of every window along `axis`."""
  last = (x.shape[axis] - size) // stride * stride
  return [jax.lax.slice_in_dim(x, i, i + last + 1, stride, axis) for i in range(size)]


def _pair(size):
  return (size, size) if isinstance(size, int) else tuple(size)

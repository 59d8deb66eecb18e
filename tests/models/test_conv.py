"""Layers of maps against plain NumPy, lax and autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from small import program

from cxrjax.models import conv
from cxrjax.models.module import Net, running_stats


def _normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def _plain_conv(x, kernel, stride, padding, groups, dilation):
  """One output pixel at a time."""
  x = np.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))
  kh, kw, cin, cout = kernel.shape
  reach = dilation * (kh - 1) + 1, dilation * (kw - 1) + 1
  rows, cols = ((n - r) // stride + 1 for n, r in zip(x.shape[1:3], reach, strict=True))
  y = np.zeros((len(x), rows, cols, cout))
  for i in range(rows):
    for j in range(cols):
      window = x[
        :,
        stride * i : stride * i + reach[0] : dilation,
        stride * j : stride * j + reach[1] : dilation,
      ]
      for g in range(groups):
        to = slice(g * cout // groups, (g + 1) * cout // groups)
        part = window[..., g * cin : (g + 1) * cin]
        y[:, i, j, to] = np.einsum("bhwi,hwio->bo", part, kernel[..., to])
  return y


@pytest.mark.parametrize(
  ("size", "stride", "padding", "groups", "dilation"),
  [
    ((1, 1), 1, (0, 0), 1, 1),
    ((1, 1), 2, (0, 0), 1, 1),
    ((3, 3), 1, (1, 1), 1, 1),
    ((3, 3), 2, (1, 1), 1, 1),
    ((7, 7), 2, (3, 3), 1, 1),
    ((3, 3), 2, (0, 0), 1, 1),
    ((7, 7), 4, (3, 3), 1, 1),
    ((1, 7), 1, (0, 3), 1, 1),
    ((5, 2), 3, (2, 0), 1, 1),
    ((3, 3), 1, (1, 1), 2, 1),
    ((3, 3), 2, (1, 1), 4, 1),
    ((3, 3), 2, (2, 2), 1, 2),
  ],
)
@pytest.mark.parametrize("pixels", [(8, 12), (9, 7)])
def test_conv(pixels, size, stride, padding, groups, dilation):
  x, kernel = _normal(0, 2, *pixels, 4), _normal(1, *size, 4 // groups, 8)

  def ours(x, kernel):
    return conv.conv2d(x, kernel, stride, padding, groups, dilation)

  want = _plain_conv(np.asarray(x), np.asarray(kernel), stride, padding, groups, dilation)
  dy, vx, vk = _normal(2, *want.shape), _normal(3, *x.shape), _normal(4, *kernel.shape)

  @jax.jit
  def run():
    got, pull = jax.vjp(ours, x, kernel)
    dx, dkernel = pull(dy)
    return got, (dx * vx).sum(), (dkernel * vk).sum()

  got, along_x, along_kernel = run()
  np.testing.assert_allclose(got, want, atol=1e-4)
  # It is linear in both: a gradient is right where its products with directions are.
  args = (stride, padding, groups, dilation)
  np.testing.assert_allclose(
    along_x,
    (_plain_conv(np.asarray(vx), np.asarray(kernel), *args) * dy).sum(),
    rtol=1e-3,
    atol=1e-3,
  )
  np.testing.assert_allclose(
    along_kernel,
    (_plain_conv(np.asarray(x), np.asarray(vk), *args) * dy).sum(),
    rtol=1e-3,
    atol=1e-3,
  )


@pytest.mark.parametrize(
  ("cin", "cout", "groups", "stride"), [(64, 16, 4, 1), (12, 48, 3, 2), (96, 96, 24, 1)]
)
def test_groups_of_any_width(cin, cout, groups, stride):
  x, kernel = _normal(0, 2, 6, 6, cin), _normal(1, 3, 3, cin // groups, cout)

  @jax.jit
  def plain(x, kernel):
    return lax.conv_general_dilated(
      x,
      kernel,
      (stride, stride),
      [(1, 1), (1, 1)],
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=groups,
    )

  want = plain(x, kernel)
  dy, vx, vk = _normal(2, *want.shape), _normal(3, *x.shape), _normal(4, *kernel.shape)

  @jax.jit
  def run():
    got, pull = jax.vjp(lambda x, k: conv.conv2d(x, k, stride, (1, 1), groups), x, kernel)
    dx, dkernel = pull(dy)
    return got, (dx * vx).sum(), (dkernel * vk).sum()

  got, along_x, along_kernel = run()
  np.testing.assert_allclose(got, want, atol=1e-4)
  np.testing.assert_allclose(along_x, (plain(vx, kernel) * dy).sum(), rtol=1e-3, atol=1e-2)
  np.testing.assert_allclose(along_kernel, (plain(x, vk) * dy).sum(), rtol=1e-3, atol=1e-2)


def test_a_layer_keeps_the_size_and_adds_its_bias():
  layer = conv.Conv(2, 3, (3, 5), dilation=2, bias=True, rngs=nnx.Rngs(0))
  x = _normal(0, 1, 9, 9, 2)
  got = layer(x)
  assert got.shape == (1, 9, 9, 3)
  layer.bias[...] = layer.bias[...] + 1.0
  np.testing.assert_allclose(layer(x), got + 1.0, atol=1e-5)


@pytest.mark.parametrize(
  ("init", "deviation"),
  [
    ("fan_in", np.sqrt(2 / (9 * 64))),
    ("fan_out", np.sqrt(2 / (9 * 128))),
    ("torch", np.sqrt(1 / (3 * 9 * 64))),
    ("normal", 0.1),
  ],
)
def test_kernels_start_as_they_say(init, deviation):
  kernel = conv.Conv(64, 128, 3, init=init, rngs=nnx.Rngs(0)).kernel[...]
  assert np.std(kernel) == pytest.approx(deviation, rel=0.02)


class _Norm(nnx.Module):
  def __init__(self, rngs):
    self.bn = conv.BatchNorm(5)

  def __call__(self, x, train):
    return self.bn(x, train=train)


NORM = Net.of(_Norm)
PARAMS = {
  "bn": {
    "scale": 1 + 0.3 * _normal(0, 5),
    "bias": _normal(1, 5),
    "running_mean": _normal(2, 5),
    "running_var": jnp.exp(_normal(3, 5)),
  }
}


def _batch_norm(params, x, mean, var):
  p = params["bn"]
  return (x - mean) / jnp.sqrt(var + 1e-5) * p["scale"] + p["bias"]


@pytest.mark.parametrize("train", [False, True])
def test_batch_norm_values_and_gradients(train):
  x, probe = 3 * _normal(4, 2, 3, 4, 5) + 2, _normal(5, 2, 3, 4, 5)

  def plain(params, x):
    p = params["bn"]
    mean, var = (
      (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (p["running_mean"], p["running_var"])
    )
    return (_batch_norm(params, x, mean, var) * probe).sum()

  def ours(params, x):
    return (NORM.apply(params, x, train) * probe).sum()

  (a, da), (b, db) = (
    jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(PARAMS, x) for f in (ours, plain)
  )
  np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
  jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, atol=2e-4, rtol=1e-3), da, db)


def test_running_statistics_move_a_tenth_of_the_way_batch_after_batch():
  x = np.asarray(_normal(4, 2, 6, 4, 4, 5) * 3 + 2)

  @jax.jit
  def run(params):
    net = NORM.bind(params)
    for batch in x:
      net(jnp.asarray(batch), True)
    return running_stats(net)

  mean, var = (np.asarray(PARAMS["bn"][k]) for k in ("running_mean", "running_var"))
  for batch in x.reshape(2, -1, 5):
    mean = 0.9 * mean + 0.1 * batch.mean(0)
    var = 0.9 * var + 0.1 * batch.var(0, ddof=1)
  stats = run(PARAMS)
  np.testing.assert_allclose(stats["bn"].pop("running_mean"), mean, rtol=1e-5)
  np.testing.assert_allclose(stats["bn"].pop("running_var"), var, rtol=1e-5)
  assert stats == {"bn": {}}


def test_running_statistics_are_no_way_for_gradients():
  def total(params, x):
    net = NORM.bind(params)
    net(x, True)
    return sum(a.sum() for a in jax.tree.leaves(running_stats(net)))

  grads = jax.grad(total, argnums=(0, 1))(PARAMS, _normal(4, 6, 5))
  assert all((g == 0).all() for g in jax.tree.leaves(grads))


def test_variance_survives_a_large_mean_that_is_roughly_known():
  x = _normal(4, 4000, 5) + 1000.0
  want = np.asarray(x, np.float64).var(0)
  _, var = conv.moments(x, jnp.full((5,), 990.0))
  np.testing.assert_allclose(var, want, rtol=1e-3)
  _, var = conv.moments(jnp.full((64, 5), 0.1), jnp.zeros(5))
  assert (var >= 0).all()


def test_bfloat16_keeps_statistics_in_float32():
  x = (_normal(4, 8, 16, 16, 5) + 3).astype(jnp.bfloat16)
  net = NORM.bind(PARAMS)
  y = net(x, True)
  assert y.dtype == jnp.bfloat16
  stats = running_stats(net)["bn"]
  assert stats["running_mean"].dtype == jnp.float32
  want = 0.9 * PARAMS["bn"]["running_mean"] + 0.1 * x.astype(jnp.float32).mean((0, 1, 2))
  np.testing.assert_allclose(stats["running_mean"], want, rtol=1e-5)


@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 2, 1), (3, 2, 0), (2, 2, 0)])
@pytest.mark.parametrize("pixels", [(8, 11), (9, 9)])
def test_pools(pixels, size, stride, padding):
  x = _normal(0, 2, *pixels, 3)
  window = {
    "window_dimensions": (1, size, size, 1),
    "window_strides": (1, stride, stride, 1),
    "padding": ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)),
  }

  def plain_max(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, **window)

  def plain_mean(x):
    return lax.reduce_window(x, 0.0, lax.add, **window) / size**2

  for ours, plain in ((conv.max_pool, plain_max), (conv.avg_pool, plain_mean)):

    def both(f, x):
      y, pull = jax.vjp(f, x)
      return y, pull(jnp.sin(jnp.arange(float(y.size))).reshape(y.shape))[0]

    got = jax.jit(both, static_argnums=0)(lambda x, f=ours: f(x, size, stride, padding), x)
    want = jax.jit(both, static_argnums=0)(plain, x)
    for a, b in zip(got, want, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5)


SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec as P
from cxrjax.models.conv import BatchNorm, Conv
from cxrjax.models.module import Net, running_stats
from cxrjax.training.sharding import BATCH, make_mesh

class Network(nnx.Module):
  def __init__(self, rngs):
    self.conv, self.bn1, self.bn2 = Conv(1, 4, 3, stride=2, rngs=rngs), BatchNorm(4), BatchNorm(4)
  def __call__(self, x):
    return self.bn2(jax.nn.relu(self.bn1(self.conv(x), train=True)), train=True)

assert jax.device_count() == 8
net = Net.of(Network)
params = net.init(jax.random.key(0))
x = jax.random.normal(jax.random.key(1), (16, 8, 8, 1))
x = x * jnp.arange(1.0, 17.0)[:, None, None, None]  # no two devices have the same statistics

@jax.jit
def step(params, x):
  def loss(params):
    module = net.bind(params)
    y = module(x)
    return jnp.sin(3 * y).mean(), (y, running_stats(module))
  return jax.grad(loss, has_aux=True)(params)

one = step(params, x)
mesh = make_mesh(fsdp=2)
many = step(jax.device_put(params, NamedSharding(mesh, P())),
            jax.device_put(x, NamedSharding(mesh, BATCH)))
assert len(many[1][0].addressable_shards) == 8
assert many[1][0].addressable_shards[0].data.shape[0] == 2
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), many, one)
print("same statistics")
"""


@pytest.mark.full
def test_eight_devices_normalise_by_the_whole_batch():
  assert "same statistics" in program(SCRIPT)

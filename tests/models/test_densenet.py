"""DenseNets: published sizes, and numbers that timm gave with the same weights."""

import jax
import jax.numpy as jnp
import made_up
import numpy as np
import pytest
from flax import nnx
from small import full

from cxrjax.core.errors import UserError
from cxrjax.methods.base import split_stats
from cxrjax.models import densenet
from cxrjax.models.build import forward_flops
from cxrjax.models.conv import BatchNorm
from cxrjax.models.module import Net, param_count, running_stats

TIMM = [0.95828, 3.02367, 0.26952, 0.50019, 0.19263, 0.44103, 0.2533, 0.10699]


@pytest.mark.parametrize(
  ("depth", "parameters", "products"),
  [
    # torchvision's parameters, and its billions of multiply-adds at 224 pixels, classifier included
    full(121, 7_978_856, 2.83),
    full(169, 14_149_480, 3.36),
    full(201, 20_013_928, 4.29),
  ],
)
def test_size_is_the_published_one(depth, parameters, products):
  model = densenet.Model(depth=depth, channels=3)
  shapes = made_up.shapes(model)
  classifier = 1000 * model.features + 1000
  assert param_count(split_stats(shapes)[0]) + classifier == parameters
  # Pooling before the transitions' convolutions saves three quarters of these.
  dims = [shapes[f"transition{i}"]["conv"]["kernel"].shape[2:] for i in (1, 2, 3)]
  saved = sum(0.75 * (56 // 2**i) ** 2 * a * b for i, (a, b) in enumerate(dims))
  assert forward_flops(model, (224, 224)) / 2e9 + (classifier + saved) / 1e9 == pytest.approx(
    products, abs=0.006
  )


@pytest.mark.parametrize(
  ("model", "size", "maps"),
  [
    full(densenet.Model(), (224, 224), [(56, 256), (28, 512), (14, 1024), (7, 1024)]),
    full(densenet.Model(), (96, 96), [(24, 256), (12, 512), (6, 1024), (3, 1024)]),
    full(densenet.Model(), (32, 32), [(8, 256), (4, 512), (2, 1024), (1, 1024)]),
    full(densenet.Model(depth=201), (101, 101), [(26, 256), (13, 512), (6, 1792), (3, 1920)]),
    (densenet.Model(growth=8), (64, 64), [(16, 64), (8, 128), (4, 256), (2, 256)]),
  ],
)
def test_shapes(model, size, maps):
  intermediates = tuple(f"stage:{i}" for i in range(4))
  params = made_up.shapes(model)
  image = jax.ShapeDtypeStruct((2, *size, 1), jnp.float32)
  features = jax.eval_shape(
    lambda p, x: model.encode(p, x, intermediates=intermediates), params, image
  )
  assert [features.intermediates[t].shape for t in intermediates] == [(2, n, n, d) for n, d in maps]
  side, dim = maps[-1]
  assert model.grid(size) == (side, side)
  assert model.features == dim
  assert features.patches.shape == (2, side * side, dim)
  assert model.stride == 32


def test_numbers_are_timms():
  """Weights and image from `made_up`; test_timm.py compares everything where timm is there."""
  model = densenet.Model(depth=121, channels=3)
  features = jax.jit(model.encode)(made_up.of(model), jnp.asarray(made_up.images(1, 64, 64, 3)))
  np.testing.assert_allclose(features.cls[0, ::128], TIMM, rtol=1e-4, atol=1e-4 * max(TIMM))


class _Dense(nnx.Module):
  def __init__(self, rngs):
    self.block = densenet._Block(4, 3, 2, rngs)
    self.norm = BatchNorm(10)

  def __call__(self, x):
    joined = self.block(x, True)
    joined.normalised(self.norm)
    return joined.map(), running_stats(self)


def test_statistics_that_are_shared_are_those_of_each_norm():
  """Every norm's running statistics against those of the map it sees."""
  net = Net.of(_Dense)
  params = made_up.weights(jax.eval_shape(net.init, jax.random.key(0)))
  seen, stats = jax.jit(net.apply)(params, jnp.asarray(made_up.images(3, 6, 6, 4)))
  seen = np.asarray(seen).reshape(-1, 10)
  for old, new in (
    (params["block"]["denselayer2"]["norm1"], stats["block"]["denselayer2"]["norm1"]),
    (params["block"]["denselayer3"]["norm1"], stats["block"]["denselayer3"]["norm1"]),
    (params["norm"], stats["norm"]),
  ):
    n = len(new["running_mean"])
    np.testing.assert_allclose(
      new["running_mean"], 0.9 * old["running_mean"] + 0.1 * seen[:, :n].mean(0), atol=1e-5
    )
    np.testing.assert_allclose(
      new["running_var"], 0.9 * old["running_var"] + 0.1 * seen[:, :n].var(0, ddof=1), rtol=1e-4
    )


def test_too_small_images_and_bad_options():
  model = densenet.Model(growth=2)
  with pytest.raises(UserError, match=r"16x16 pixels are too small for config.model, .*29x29"):
    model.encode({}, jnp.zeros((1, 16, 16, 1)))
  with pytest.raises(UserError, match=r"config.model.depth=100 is not known; valid: 121, 169, 201"):
    densenet.Model(depth=100)

"""ResNets: published sizes, and numbers that timm gave with the same weights."""

import jax
import jax.numpy as jnp
import made_up
import numpy as np
import pytest
from small import full

from cxrjax.core.errors import UserError
from cxrjax.methods.base import split_stats
from cxrjax.models import resnet
from cxrjax.models.build import forward_flops
from cxrjax.models.module import param_count

TIMM = [282.16085, 552.43057, 1987.5981, 23.5133, 1246.50485, 30.53967, 588.91511, 313.20294]


@pytest.mark.parametrize(
  ("depth", "parameters", "products"),
  [
    # torchvision's parameters, and its billions of multiply-adds at 224 pixels, classifier included
    (18, 11_689_512, 1.81),
    full(34, 21_797_672, 3.66),
    full(50, 25_557_032, 4.09),
    full(101, 44_549_160, 7.80),
    full(152, 60_192_808, 11.51),
  ],
)
def test_size_is_the_published_one(depth, parameters, products):
  model = resnet.Model(depth=depth, channels=3)
  shapes = made_up.shapes(model)
  classifier = 1000 * model.features + 1000
  assert param_count(split_stats(shapes)[0]) + classifier == parameters
  assert forward_flops(model, (224, 224)) / 2e9 + classifier / 1e9 == pytest.approx(
    products, abs=0.006
  )


@pytest.mark.parametrize(
  ("model", "size", "maps"),
  [
    full(resnet.Model(depth=50), (224, 224), [(56, 256), (28, 512), (14, 1024), (7, 2048)]),
    full(resnet.Model(depth=18), (96, 96), [(24, 64), (12, 128), (6, 256), (3, 512)]),
    (resnet.Model(depth=18), (100, 100), [(25, 64), (13, 128), (7, 256), (4, 512)]),
    full(resnet.Model(depth=101), (32, 32), [(8, 256), (4, 512), (2, 1024), (1, 2048)]),
    (resnet.Model(depth=18, small_stem=True), (32, 32), [(32, 64), (16, 128), (8, 256), (4, 512)]),
    (resnet.Model(depth=50, width=16), (64, 64), [(16, 64), (8, 128), (4, 256), (2, 512)]),
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
  assert model.stride == (8 if model.small_stem else 32)


def test_numbers_are_timms():
  """Weights and image from `made_up`; test_timm.py compares everything where timm is there."""
  model = resnet.Model(depth=50, channels=3)
  features = jax.jit(model.encode)(made_up.of(model), jnp.asarray(made_up.images(1, 64, 64, 3)))
  np.testing.assert_allclose(features.cls[0, ::256], TIMM, rtol=1e-4, atol=1e-4 * max(TIMM))


def test_zero_init_starts_blocks_as_the_identity():
  model = resnet.Model(depth=18, width=4, small_stem=True, zero_init=True)
  x = jnp.asarray(made_up.images(2, 16, 16, 1))
  params = jax.jit(model.init)(jax.random.key(0))
  assert (params["layer1"]["0"]["bn2"]["scale"] == 0).all()
  first = jax.jit(lambda p: model.encode(p, x, intermediates=("stage:0",)).intermediates["stage:0"])
  before = first(params)
  params["layer1"]["1"]["conv2"]["kernel"] += 1.0
  np.testing.assert_array_equal(first(params), before)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"depth": 42}, "config.model.depth=42 is not known; valid: 18, 34, 50, 101, 152"),
    ({"width": 0}, "config.model.width"),
    ({"dtype": "float16"}, "config.model.dtype"),
  ],
)
def test_bad_options_name_their_key(options, words):
  with pytest.raises(UserError, match=words):
    model = resnet.Model(**options)
    forward_flops(model, (32, 32))

"""InceptionV3: published sizes, and numbers that timm gave with the same weights."""

import jax
import jax.numpy as jnp
import made_up
import numpy as np
import pytest
from small import full

from cxrjax.core.errors import UserError
from cxrjax.methods.base import split_stats
from cxrjax.models import inception
from cxrjax.models.build import forward_flops
from cxrjax.models.module import param_count

TIMM = [0.0, 0.0, 0.0, 0.07812, 0.57116, 0.04505, 0.0, 0.25535]


@pytest.mark.full
def test_size_is_the_published_one():
  model = inception.Model(channels=3)
  shapes = made_up.shapes(model)
  classifier = 1000 * 2048 + 1000
  assert param_count(split_stats(shapes)[0]) + classifier == 23_834_568  # timm's, no auxiliary head
  # torchvision: 5.71 billion multiply-adds at 299 pixels
  assert forward_flops(model, (299, 299)) / 2e9 + classifier / 1e9 == pytest.approx(5.71, abs=0.006)


@pytest.mark.parametrize(
  ("size", "sides"),
  [
    full(299, (71, 35, 17, 8)),
    full(224, (52, 25, 12, 5)),
    full(96, (20, 9, 4, 1)),
    (75, (15, 7, 3, 1)),
  ],
)
def test_shapes(size, sides):
  model, intermediates = inception.Model(), tuple(f"stage:{i}" for i in range(4))
  params = made_up.shapes(model)
  image = jax.ShapeDtypeStruct((2, size, size, 1), jnp.float32)
  features = jax.eval_shape(
    lambda p, x: model.encode(p, x, intermediates=intermediates), params, image
  )
  dims = (192, 288, 768, 2048)
  assert [features.intermediates[t].shape for t in intermediates] == [
    (2, n, n, d) for n, d in zip(sides, dims, strict=True)
  ]
  assert model.grid((size, size)) == (sides[-1],) * 2
  assert model.features == 2048
  assert model.stride == 32
  assert features.patches.shape == (2, sides[-1] ** 2, 2048)


def test_numbers_are_timms():
  """Weights and image from `made_up`; test_timm.py compares everything where timm is there."""
  model = inception.Model(channels=3)
  features = jax.jit(model.encode)(made_up.of(model), jnp.asarray(made_up.images(1, 80, 80, 3)))
  np.testing.assert_allclose(features.cls[0, ::256], TIMM, rtol=1e-4, atol=1e-4 * max(TIMM))


def test_narrow_ones_have_proportionate_channels():
  model = inception.Model(width=2)
  assert model.features == 128
  params = made_up.shapes(model)
  assert params["Mixed_7c"]["branch1x1"]["conv"]["kernel"].shape == (1, 1, 128, 20)


def test_too_small_images_and_bad_options():
  with pytest.raises(UserError, match=r"64x64 pixels are too small for config.model, .*75x75"):
    inception.Model().encode({}, jnp.zeros((1, 64, 64, 1)))
  with pytest.raises(UserError, match=r"config.model.width=3"):
    inception.Model(width=3)

"""Features: order, padding, normalisation, compiling once, a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from cxrjax.core.errors import UserError
from cxrjax.evals import features

PIXELS = np.random.default_rng(0).integers(0, 256, (23, 8, 8, 1)).astype(np.uint8)
PARAMS = {"w": np.random.default_rng(1).normal(size=(64, 5)).astype(np.float32)}


def encode(params, x):
  return jnp.tanh(x.reshape(x.shape[0], -1) @ params["w"])


def expected(mean=0.5, std=0.25):
  x = (PIXELS.reshape(23, -1).astype(np.float64) / 255 - mean) / std
  return np.tanh(x @ PARAMS["w"])


@pytest.mark.parametrize("batch", [1, 7, 23, 64])
def test_features_are_in_order_whatever_the_batch(batch):
  got = features.extract(encode, PARAMS, PIXELS, batch=batch)
  assert got.dtype == np.float32 and got.shape == (23, 5)
  np.testing.assert_allclose(got, expected(), atol=2e-5)


def test_normalisation():
  got = features.extract(encode, PARAMS, PIXELS, mean=0.1, std=0.7)
  np.testing.assert_allclose(got, expected(0.1, 0.7), atol=2e-5)


def test_compiles_once_for_all_runs():
  traced = []

  def counting(params, x):
    traced.append(x.shape)
    return encode(params, x)

  for scale in (1, 2):
    features.extract(counting, jax.tree.map(lambda w, s=scale: s * w, PARAMS), PIXELS, batch=4)
  assert traced == [(4, 8, 8, 1)]


def test_parameters_are_left_alone():
  params = jax.tree.map(jnp.asarray, PARAMS)
  features.extract(encode, params, PIXELS)
  np.testing.assert_array_equal(params["w"], PARAMS["w"])


def test_over_a_mesh():
  count = 1 << (len(jax.devices()).bit_length() - 1)  # 8 fake devices, or whatever there is
  devices = np.array(jax.devices()[:count]).reshape(-1, 2 if count > 1 else 1)
  got = features.extract(encode, PARAMS, PIXELS, batch=6, mesh=Mesh(devices, ("data", "fsdp")))
  np.testing.assert_allclose(got, expected(), atol=2e-5)


def test_no_images():
  with pytest.raises(UserError, match="no images"):
    features.extract(encode, PARAMS, PIXELS[:0])


def test_an_encoder_that_gives_patches_is_refused():
  with pytest.raises(UserError, match=r"shape \(4, 8, 8, 1\).*one vector an image"):
    features.extract(lambda p, x: x, PARAMS, PIXELS, batch=4)

"""The encoder against independent references and its promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.models import vit

MODEL = vit.Model(variant="Mu", width=32, depth=3, heads=2, image_size=64)


@pytest.fixture(scope="module")
def params():
  params = MODEL.init(jax.random.key(0))
  return jax.tree.map(  # larger than the start, so that no term hides behind a small weight
      lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), params)


def _images(key, n, size):
  shape = (size, size) if isinstance(size, int) else size
  return jax.random.normal(jax.random.key(key), (n, *shape, 1))


def test_sizes_run_jointly_as_they_do_alone(params):
  large, small = _images(1, 2, 64), _images(2, 3, 32)
  keys = jax.random.split(jax.random.key(3), 2), jax.random.split(jax.random.key(4), 3)
  joint = MODEL.encode(params, (large, small), keys=keys, taps=("attn", "block:-1"))
  for images, key, got in zip((large, small), keys, joint, strict=True):
    alone = MODEL.encode(params, images, keys=key, taps=("attn", "block:-1"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), alone, got)


def test_class_token_alone_is_the_class_token_of_the_whole(params):
  groups = _images(1, 2, 64), _images(2, 3, 32)
  whole = MODEL.encode(params, groups)
  short = MODEL.encode(params, groups, patches=False)
  for a, b in zip(whole, short, strict=True):
    np.testing.assert_allclose(a.cls, b.cls, atol=1e-5)
    assert b.patches is None


def test_attention_rows_sum_to_one(params):
  attn = MODEL.encode(params, _images(1, 2, 64), taps=("attn",)).taps["attn"]
  assert attn.shape == (2, 2, 17, 17)
  np.testing.assert_allclose(attn.sum(-1), 1.0, atol=1e-5)


def test_other_and_oblong_sizes(params):
  features = MODEL.encode(params, _images(1, 2, (48, 96)))
  assert features.patches.shape == (2, 18, 32)


def test_drop_path_does_not_depend_on_the_batch(params):
  model = vit.Model(variant="Mu", width=32, depth=3, heads=2, image_size=64, drop_path=0.5)
  images, keys = _images(1, 6, 64), jax.random.split(jax.random.key(5), 6)
  whole = model.encode(params, images, keys=keys).cls
  parts = [model.encode(params, images[i:i + 3], keys=keys[i:i + 3]).cls for i in (0, 3)]
  np.testing.assert_allclose(whole, jnp.concatenate(parts), atol=1e-5)
  assert not np.allclose(whole, model.encode(params, images).cls, atol=1e-3)


@pytest.mark.parametrize(("options", "word"), [
    ({"variant": "Tiny"}, "variant"),
    ({"image_size": 100}, "patch_size"),
    ({"heads": 5}, "heads"),
    ({"drop_path": 1.0}, "drop_path"),
])
def test_bad_options_name_their_key(options, word):
  with pytest.raises(UserError, match=f"config.model.{word}"):
    vit.Model(**options)

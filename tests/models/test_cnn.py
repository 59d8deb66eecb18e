"""What all convolutional encoders promise, on a small ResNet."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import made_up
import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.methods.base import join_stats, split_stats
from cxrjax.models import resnet

MODEL = resnet.Model(depth=18, width=8, small_stem=True)


@pytest.fixture(scope="module")
def params():
  return jax.tree.map(jnp.asarray, made_up.of(MODEL))


@functools.partial(jax.jit, static_argnames=("intermediates", "train", "model"))
def _encode(params, x, intermediates=(), train=False, model=MODEL):
  return model.encode(params, x, intermediates=intermediates, train=train)


def _images(n, *size):
  return jnp.asarray(made_up.images(n, *size, 1))


def test_last_map_and_its_mean(params):
  features = _encode(params, _images(3, 24, 40), intermediates=("stage:-1", "stage:0"))
  assert features.cls.shape == (3, MODEL.features) == (3, 64)
  assert features.patches.shape == (3, 15, 64)
  assert MODEL.grid((24, 40)) == (3, 5)
  assert MODEL.stride == 8
  np.testing.assert_allclose(
    features.intermediates["stage:-1"].reshape(3, 15, 64), features.patches, rtol=1e-5, atol=1e-5
  )
  np.testing.assert_allclose(features.cls, features.patches.mean(1), atol=1e-5)
  assert features.intermediates["stage:0"].shape == (3, 24, 40, 8)
  assert features.stats is None
  assert MODEL.encode(params, _images(3, 24, 40), patches=False).patches is None


def test_evaluation_sees_every_image_alone(params):
  x = _images(4, 16, 16)
  whole = _encode(params, x).cls
  np.testing.assert_allclose(whole[1:2], _encode(params, x[1:2]).cls, atol=1e-5)
  assert np.abs(_encode(params, x, train=True).cls - whole).max() > 0.01


def test_groups_run_one_after_the_other(params):
  large, small = _images(3, 24, 24), _images(5, 16, 16)
  first, second = _encode(params, (large, small), train=True, intermediates=("stage:1",))
  alone = _encode(params, large, train=True, intermediates=("stage:1",))
  after = _encode(
    join_stats(split_stats(params)[0], alone.stats), small, train=True, intermediates=("stage:1",)
  )
  for got, want in ((first, alone), (second, after)):
    np.testing.assert_allclose(got.cls, want.cls, atol=1e-4)
    np.testing.assert_allclose(
      got.intermediates["stage:1"], want.intermediates["stage:1"], atol=1e-4
    )
    # Both hold the statistics after all groups.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got.stats, after.stats)


def test_statistics_are_the_running_leaves_of_the_parameters(params):
  stats = _encode(params, _images(4, 16, 16), train=True).stats
  _, running = split_stats(params)
  assert jax.tree.structure(stats) == jax.tree.structure(running)
  assert all((a != b).all() for a, b in zip(*map(jax.tree.leaves, (stats, running)), strict=True))


def test_running_statistics_have_no_part_in_training(params):
  other = jax.tree.map(lambda a: a, params)
  other["bn1"] = other["bn1"] | {"running_mean": other["bn1"]["running_mean"] + 1.0}
  x = _images(4, 16, 16)
  np.testing.assert_allclose(
    _encode(params, x, train=True).cls, _encode(other, x, train=True).cls, atol=1e-4
  )


def test_standardized_features_do_not_see_exposure(params):
  model = dataclasses.replace(MODEL, standardize=True)
  x = _images(2, 16, 16)
  np.testing.assert_allclose(
    _encode(params, x, model=model).cls, _encode(params, x + 3, model=model).cls, atol=1e-4
  )


def test_bfloat16_is_close(params):
  x = _images(4, 32, 32)
  want = _encode(params, x)
  model = dataclasses.replace(MODEL, dtype="bfloat16")
  got = _encode(params, x, intermediates=("stage:0",), model=model)
  assert got.cls.dtype == got.patches.dtype == jnp.float32
  assert got.intermediates["stage:0"].dtype == jnp.bfloat16
  np.testing.assert_allclose(got.cls, want.cls, atol=0.05 * float(jnp.abs(want.cls).max()))


def test_learns_to_tell_two_images_apart():
  x, y = _images(2, 16, 16), jnp.array([-1.0, 1.0])
  trained, stats = split_stats(MODEL.init(jax.random.key(0)))

  @jax.jit
  def step(trained):
    def loss(trained):
      out = MODEL.encode(join_stats(trained, stats), x, train=True).cls.mean(-1)
      return jnp.square(out - out.mean() - y).mean()

    value, grads = jax.value_and_grad(loss)(trained)
    return value, jax.tree.map(lambda p, g: p - 0.1 * g, trained, grads)

  values = []
  for _ in range(20):
    value, trained = step(trained)
    values.append(float(value))
  assert values[-1] < 0.3 * values[0]


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda p: MODEL.encode(p, jnp.zeros((1, 32, 32, 3))), "3 channels"),
    (lambda p: MODEL.encode(p, _images(1, 32, 32), intermediates=("stage:4",)), "-4 to 3"),
    (lambda p: MODEL.encode(p, _images(1, 32, 32), intermediates=("attn",)), "'attn'"),
  ],
)
def test_bad_calls_say_what_is_wrong(params, call, words):
  with pytest.raises(UserError, match=words):
    call(params)

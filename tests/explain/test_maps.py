"""The entry point: which methods there are, what batches and classes do, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.explain import maps
from cxrjax.explain.maps import Head, explain
from cxrjax.models import resnet, vit

VIT = vit.Model(
  variant="Nu", width=16, heads=2, depth=2, patch_size=8, image_size=32, initial="xavier"
)
CNN = resnet.Model(depth=18, width=4, small_stem=True)
X = np.random.default_rng(0).standard_normal((5, 32, 32, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def head():
  rng = np.random.default_rng(1)
  return {
    n: Head(jnp.asarray(rng.standard_normal((n.features, 3)), jnp.float32), jnp.zeros(3))
    for n in (VIT, CNN)
  }


@pytest.fixture(scope="module")
def params():
  return {n: jax.jit(n.init)(jax.random.key(0)) for n in (VIT, CNN)}


def test_methods_of_networks():
  assert maps.methods_for(VIT) == maps.METHODS
  assert maps.methods_for(VIT, classes=False) == ("attention", "rollout")
  assert maps.methods_for(CNN) == ("gradcam", "gradcam++", "occlusion")
  assert maps.methods_for(CNN, classes=False) == ()


@pytest.mark.parametrize(
  ("network", "method"), [*((VIT, m) for m in maps.METHODS), (CNN, "gradcam++")]
)
def test_batches_do_not_show(network, method, params, head):
  """Two at a time with the last alone, or all at once."""
  two, all_ = (
    explain(method, network, params[network], X, head=head[network], target=1, batch=b)
    for b in (2, 8)
  )
  assert all_.shape == two.shape and two.dtype == np.float32
  scale = np.abs(all_).max()
  np.testing.assert_allclose(two, all_, rtol=1e-3, atol=1e-4 * scale)
  if method != "occlusion":
    assert (all_ >= 0).all()


@pytest.mark.parametrize(
  ("text", "names"),
  [
    ("gradcam+gradcam++", ("gradcam", "gradcam++")),
    ("gradcam++", ("gradcam++",)),
    ("gradcam++,rollout", ("gradcam++", "rollout")),
    ("", ()),
    ("gradcam+++attention+attention", ("gradcam++", "attention")),
  ],
)
def test_names(text, names):
  assert maps.parse_methods(text) == names


def test_the_likeliest_class_by_default(params, head):
  classes = maps.predicted(VIT, params[VIT], X, head[VIT], 2)
  logits = head[VIT](jax.jit(VIT.encode)(params[VIT], jnp.asarray(X)).cls)
  np.testing.assert_array_equal(classes, logits.argmax(1))
  by_default = explain("gradcam", VIT, params[VIT], X, head=head[VIT])
  np.testing.assert_array_equal(
    by_default, explain("gradcam", VIT, params[VIT], X, head=head[VIT], target=classes)
  )
  other = explain("gradcam", VIT, params[VIT], X, head=head[VIT], target=(classes + 1) % 3)
  assert not np.allclose(by_default, other)


def test_enlarging_keeps_a_ramp_and_a_constant():
  assert np.allclose(maps.enlarge(np.full((1, 2, 3), 4.0), (8, 9)), 4)
  ramp = maps.enlarge(np.arange(4.0)[None, None].repeat(2, 1), (4, 16))
  np.testing.assert_allclose(ramp[0, 0, 2:14], (np.arange(2, 14) + 0.5) / 4 - 0.5, rtol=1e-5)
  assert ramp[0, 0, 0] == 0 and ramp[0, 0, -1] == 3


@pytest.mark.parametrize("size", [(14, 21), (224, 96), (3, 2), (5, 7)])
def test_enlarging_is_jax_resizing(size):
  heat = np.random.default_rng(0).normal(size=(2, 5, 7)).astype(np.float32)
  theirs = jax.image.resize(jnp.asarray(heat), (2, *size), "linear", antialias=False)
  np.testing.assert_allclose(maps.enlarge(heat, size), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ("method", "network", "wanted"),
  [
    ("gradcan", VIT, "did you mean 'gradcam'"),
    ("attention", CNN, "needs a transformer"),
    ("rollout", CNN, "gradcam"),
  ],
)
def test_methods_that_are_none(method, network, wanted, params, head):
  with pytest.raises(UserError, match=wanted):
    explain(method, network, params[network], X, head=head[network])


def test_a_class_needs_a_head(params, head):
  with pytest.raises(UserError, match="linear probe"):
    explain("gradcam", VIT, params[VIT], X)
  with pytest.raises(ValueError, match="3"):
    explain("gradcam", VIT, params[VIT], X, head=head[VIT], target=3)
  with pytest.raises(ValueError, match="no images"):
    explain("attention", VIT, params[VIT], X[:0])

"""Class activation maps: gradients at intermediates against differences, formulas against loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import full

from cxrjax.core.errors import UserError
from cxrjax.explain import cams
from cxrjax.explain.maps import Head, explain
from cxrjax.models import densenet, inception, resnet, vit, vitae

VIT = {
  "variant": "Nu",
  "width": 16,
  "heads": 2,
  "depth": 2,
  "patch_size": 8,
  "image_size": 32,
  "registers": 1,
  "initial": "xavier",
  "dtype": "float32",
}
NETWORKS = {
  "vit": vit.Model(**VIT),
  "vit_mean": vit.Model(**VIT, pool="mean"),
  "resnet": resnet.Model(depth=18, width=4, small_stem=True, dtype="float32"),
  "densenet": densenet.Model(growth=4, dtype="float32"),
  "inception": inception.Model(width=4, dtype="float32"),
  "vitae": vitae.Model(width=16, depths=(1, 1, 1, 1), dtype="float32"),
}


@functools.cache
def setting(name):
  model = NETWORKS[name]
  size = 80 if name == "inception" else 32
  x = jax.random.normal(jax.random.key(1), (2, size, size, 1))
  kernel = jax.random.normal(jax.random.key(2), (model.features, 3))
  return model, jax.jit(model.init)(jax.random.key(0)), x, Head(kernel, jnp.arange(3.0))


@functools.cache
def at(name, tap):
  """A compiled network with a shift at a tap: the scores of class 1, and the tap."""
  model, params, x, head = setting(name)

  def encode(shift):
    found = model.encode(params, x, intermediates=(tap,), add_at={tap: shift})
    return head(found.cls)[:, 1], found.intermediates[tap]

  shape = jax.eval_shape(
    lambda: model.encode(params, x, intermediates=(tap,)).intermediates[tap]
  ).shape
  way = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
  way.setflags(write=False)
  return jax.jit(encode), way


@pytest.mark.parametrize(
  ("name", "tap"),
  [
    ("vit", "norm:-1"),
    ("vit", "block:0"),
    ("vit", "out"),
    ("vit_mean", "out"),
    ("vit_mean", "norm:-1"),
    ("resnet", "stage:-1"),
    full("resnet", "stage:1"),
    full("densenet", "stage:2"),
    full("inception", "stage:1"),
    full("vitae", "stage:2"),
  ],
)
def test_a_perturbed_tap(name, tap):
  """It has what was added, and of this image alone; what comes after it changes."""
  encode, way = at(name, tap)
  way = np.stack([way[0], np.zeros_like(way[1])])
  plain, moved = encode(np.zeros_like(way)), encode(way)
  np.testing.assert_allclose(
    moved[1] - plain[1], way, rtol=1e-3, atol=1e-4 * np.abs(plain[1]).max()
  )
  assert abs(moved[0][0] - plain[0][0]) > 1e-4
  np.testing.assert_allclose(moved[0][1], plain[0][1], rtol=1e-4)


@pytest.mark.parametrize(("name", "tap"), [("vit", "norm:-1"), ("resnet", "stage:-1")])
def test_the_gradient_at_a_tap_is_the_slope(name, tap):
  encode, way = at(name, tap)
  gradient = jax.jit(jax.grad(lambda s: encode(s)[0].sum()))(np.zeros_like(way))
  up, down = (encode(sign * 1e-2 * way)[0].sum() for sign in (1, -1))
  np.testing.assert_allclose((up - down) / 2e-2, (gradient * way).sum(), rtol=0.05)


@pytest.mark.parametrize("name", ["resnet", "vit_mean"])
def test_where_the_features_are_a_mean_the_map_adds_up_to_the_logit(name):
  """Before what is below 0 is cut off: class activation maps (Zhou et al. 2016)."""
  model, params, x, head = setting(name)
  chosen = jnp.array([0, 2])
  score = lambda f: jnp.take_along_axis(head(f), chosen[:, None], 1)[:, 0]  # noqa: E731
  maps, gradient = jax.jit(lambda p: cams.at_tap(model, p, x, score, cams.default_tap(model)))(
    params
  )
  whole = (gradient.mean((1, 2), keepdims=True) * maps).sum((1, 2, 3))
  np.testing.assert_allclose(
    whole, score(jax.jit(model.encode)(params, x).cls) - head.bias[chosen], rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(
    explain("gradcam", model, params, x, head=head, target=np.array(chosen)),
    np.maximum((np.asarray(gradient.mean((1, 2), keepdims=True) * maps)).sum(-1), 0),
    rtol=1e-4,
    atol=1e-5,
  )


def by_hand(maps, gradient, plus):
  """Equations of the papers, place by place, in double precision."""
  n, h, w, d = maps.shape
  found = np.zeros((n, h, w))
  for i in range(n):
    for k in range(d):
      a, g = maps[i, ..., k].astype(np.float64), gradient[i, ..., k].astype(np.float64)
      if plus:
        alpha = np.zeros((h, w))
        for y, x in np.ndindex(h, w):
          below = 2 * g[y, x] ** 2 + a.sum() * g[y, x] ** 3
          alpha[y, x] = g[y, x] ** 2 / below if g[y, x] else 0
        weight = (alpha * np.maximum(g, 0)).sum()
      else:
        weight = g.mean()
      found[i] += weight * a
  return np.maximum(found, 0)


@pytest.mark.parametrize("plus", [False, True])
def test_formulas(plus):
  rng = np.random.default_rng(0)
  maps = np.abs(rng.standard_normal((2, 3, 4, 5))).astype(np.float32)  # as after a ReLU
  gradient = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
  gradient[:, 0] = 0
  weigh = cams.gradcam_pp if plus else cams.gradcam
  np.testing.assert_allclose(
    weigh(jnp.asarray(maps), jnp.asarray(gradient)), by_hand(maps, gradient, plus), rtol=1e-4
  )


def test_maps_below_0_do_not_blow_up_the_weights():
  maps = -jnp.ones((1, 2, 2, 1))
  gradient = jnp.full((1, 2, 2, 1), 0.5)  # 2 g^2 + S g^3 would be 0
  assert np.isfinite(cams.gradcam_pp(maps, gradient)).all()


@pytest.mark.parametrize(
  ("name", "tap", "expected"), [("vit", "", (4, 4)), ("resnet", "stage:1", (16, 16))]
)
def test_grids(name, tap, expected):
  model, params, x, head = setting(name)
  assert explain("gradcam", model, params, x, head=head, tap=tap).shape == (2, *expected)


def test_taps_that_are_none():
  model, params, x, head = setting("resnet")
  with pytest.raises(UserError, match="stage:I"):
    explain("gradcam", model, params, x, head=head, tap="block:1")
  model, params, x, head = setting("vit")
  with pytest.raises(UserError, match="norm:I"):
    explain("gradcam", model, params, x, head=head, tap="norm:9")
  with pytest.raises(ValueError, match="one batch"):
    model.encode(params, (x, x), add_at={"out": jnp.zeros((2, 18, 16))})
  with pytest.raises(ValueError, match="norm:I"):
    model.encode(params, x, add_at={"attn:0": jnp.zeros((2, 18, 16))})

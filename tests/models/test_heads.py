"""DINO's head against its formula in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from cxrjax.core.errors import UserError
from cxrjax.models.heads import DinoHead, Projector

HEAD = DinoHead(in_dim=6, prototypes=11, hidden=8, bottleneck=5)


def _reference(params, x):
  for i in range(3):
    layer = params["mlp"]["layers"][str(i)]
    x = x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)
    if i < 2:
      x = 0.5 * x * (1 + erf(x / np.sqrt(2)))
  x = x / np.linalg.norm(x, axis=1, keepdims=True)
  weights = np.asarray(params["prototypes"]["kernel"], np.float64)
  return x @ (weights / np.linalg.norm(weights, axis=0))


def test_logits_are_the_formula():
  params = jax.tree.map(lambda a: 3 * a + 0.2, jax.jit(HEAD.init)(jax.random.key(0)))
  x = jax.random.normal(jax.random.key(1), (4, 6))
  np.testing.assert_allclose(
    HEAD.apply(params, x), _reference(params, np.asarray(x, np.float64)), atol=1e-5
  )


def test_logits_are_cosines():
  params = jax.jit(HEAD.init)(jax.random.key(0))
  logits = HEAD.apply(params, jax.random.normal(jax.random.key(1), (4, 6)))
  assert np.abs(logits).max() <= 1 + 1e-6


def test_frozen_norm_has_no_gradient_along_a_prototype():
  params = jax.jit(HEAD.init)(jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (4, 6))
  grads = jax.jit(jax.grad(lambda p: (HEAD.apply(p, x) ** 2).sum()))(params)
  along = (grads["prototypes"]["kernel"] * params["prototypes"]["kernel"]).sum(0)
  np.testing.assert_allclose(along, 0, atol=1e-5)


def test_learnt_norm_scales_the_logits():
  head = DinoHead(in_dim=6, prototypes=11, hidden=8, bottleneck=5, norm_last_layer=False)
  params = jax.jit(head.init)(jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (4, 6))
  before = head.apply(params, x)
  params["prototypes"]["scale"] = 2 * params["prototypes"]["scale"]
  np.testing.assert_allclose(head.apply(params, x), 2 * before, rtol=1e-6)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_any_depth(layers):
  head = DinoHead(in_dim=6, prototypes=11, hidden=8, bottleneck=5, layers=layers)
  params = jax.jit(head.init)(jax.random.key(0))
  assert len(params["mlp"]["layers"]) == layers
  assert head.apply(params, jnp.ones((2, 6))).shape == (2, 11)


def _projected(params, x, norms, activations, epsilon=1e-5):
  """The MLP in float64; `norms` and `activations` layer by layer."""
  affine = iter(params.get("norms", {}).get(str(i), {}) for i in range(len(norms)))
  for layer, normed, activation in zip(params["layers"].values(), norms, activations, strict=True):
    x = x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer.get("bias", 0), np.float64)
    if normed:
      p = next(affine)
      x = (x - x.mean(0)) / np.sqrt(x.var(0) + epsilon)
      x = x * np.asarray(p.get("scale", 1)) + np.asarray(p.get("bias", 0))
    if activation == "relu":
      x = np.maximum(x, 0)
    if activation == "gelu":
      x = 0.5 * x * (1 + erf(x / np.sqrt(2)))
  return x


@pytest.mark.parametrize(
  ("options", "norms", "activations", "vectors"),
  [
    ({"final_norm": "batch_no_affine"}, (1, 1, 1), ("relu", "relu", None), 4),  # SimSiam, MoCo v3
    ({"final_norm": "batch_no_bias"}, (1, 1, 1), ("relu", "relu", None), 5),  # SimCLR
    ({"final_norm": "batch", "activation": ("relu", "gelu")}, (1, 1, 1), ("relu", "gelu", None), 6),
    ({"bias": False}, (1, 1, 0), ("relu", "relu", None), 4),  # BYOL
    ({"batch_norm": False, "activation": "gelu"}, (0, 0, 0), ("gelu", "gelu", None), 3),
    ({"dims": (3,)}, (0,), (None,), 1),  # PIRL
  ],
)
def test_projector_is_the_mlp_it_names(options, norms, activations, vectors):
  head = Projector(**{"in_dim": 6, "dims": (7, 8, 3), **options})
  params = jax.jit(head.init)(jax.random.key(0))
  assert sum(a.ndim == 1 for a in jax.tree.leaves(params)) == vectors
  keys = iter(jax.random.split(jax.random.key(2), 20))
  params = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(next(keys), a.shape), params)
  x = np.random.default_rng(0).normal(size=(5, 6))
  got = head.apply(params, jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(got, _projected(params, x, norms, activations), rtol=2e-4, atol=2e-5)


def test_projector_mistakes():
  for options, message in (
    ({"final_norm": "layer"}, "final_norm='layer' is unknown"),
    ({"activation": "rellu"}, "activation='rellu' is unknown; did you mean 'relu'"),
    ({"activation": ("relu",)}, "one for each of its 2 hidden layers"),
    ({"dims": ()}, "one or more widths"),
  ):
    with pytest.raises(UserError, match=message):
      Projector(in_dim=4, **options)

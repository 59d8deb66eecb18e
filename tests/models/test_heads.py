"""DINO's head against its formula in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from cxrjax.models.heads import DinoHead
from cxrjax.models.module import param_count

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
  params = jax.tree.map(lambda a: 3 * a + 0.2, HEAD.init(jax.random.key(0)))
  x = jax.random.normal(jax.random.key(1), (4, 6))
  np.testing.assert_allclose(
      HEAD.apply(params, x), _reference(params, np.asarray(x, np.float64)), atol=1e-5)


def test_logits_are_cosines():
  logits = HEAD.apply(HEAD.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (4, 6)))
  assert np.abs(logits).max() <= 1 + 1e-6


def test_frozen_norm_has_no_gradient_along_a_prototype():
  params = HEAD.init(jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (4, 6))
  grads = jax.grad(lambda p: (HEAD.apply(p, x) ** 2).sum())(params)
  along = (grads["prototypes"]["kernel"] * params["prototypes"]["kernel"]).sum(0)
  np.testing.assert_allclose(along, 0, atol=1e-5)


def test_learnt_norm_scales_the_logits():
  head = DinoHead(in_dim=6, prototypes=11, hidden=8, bottleneck=5, norm_last_layer=False)
  params = head.init(jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (4, 6))
  before = head.apply(params, x)
  params["prototypes"]["scale"] = 2 * params["prototypes"]["scale"]
  np.testing.assert_allclose(head.apply(params, x), 2 * before, rtol=1e-6)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_any_depth(layers):
  head = DinoHead(in_dim=6, prototypes=11, hidden=8, bottleneck=5, layers=layers)
  params = head.init(jax.random.key(0))
  assert len(params["mlp"]["layers"]) == layers
  assert head.apply(params, jnp.ones((2, 6))).shape == (2, 11)


def test_flops_count_the_matrices():
  params = HEAD.init(jax.random.key(0))
  matrices = [a for a in jax.tree.leaves(params) if a.ndim == 2]
  assert HEAD.flops() == 2 * param_count(matrices)

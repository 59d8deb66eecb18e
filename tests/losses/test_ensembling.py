"""Batch knowledge ensembling against loops in float64, its own iteration, and by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.losses import ensembling

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(7, 5))
LOGITS = RNG.normal(size=(7, 3)) * 2


def affinity(features, temperature):
  """Row by row, as the paper writes it."""
  n = len(features)
  found = np.zeros((n, n))
  for i in range(n):
    for j in range(n):
      if i != j:
        a, b = features[i], features[j]
        found[i, j] = math.exp(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b) / temperature)
    found[i] /= found[i].sum()
  return found


def softmax(x):
  e = np.exp(x - x.max(1, keepdims=True))
  return e / e.sum(1, keepdims=True)


def f32(x):
  return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_affinities_are_those_of_a_loop(temperature):
  got = np.asarray(ensembling.affinity(f32(3 * FEATURES), temperature))
  np.testing.assert_allclose(got, affinity(FEATURES, temperature), rtol=1e-5, atol=1e-7)
  np.testing.assert_array_equal(np.diag(got), 0)


@pytest.mark.parametrize("omega", [0.0, 0.5, 0.9])
def test_targets_are_where_the_iteration_ends(omega):
  a, p = affinity(FEATURES, 1.0), softmax(LOGITS)
  q = p
  for _ in range(500):
    q = omega * a @ q + (1 - omega) * p
  got = np.asarray(ensembling.propagate(f32(a), f32(p), omega))
  np.testing.assert_allclose(got, q, rtol=1e-5)
  np.testing.assert_allclose(got.sum(1), 1, rtol=1e-5)
  findings = 1 / (1 + np.exp(-LOGITS))
  of_findings = np.asarray(ensembling.propagate(f32(a), f32(findings), omega))
  absent = np.asarray(ensembling.propagate(f32(a), f32(1 - findings), omega))
  np.testing.assert_allclose(of_findings + absent, 1, rtol=1e-5)


def test_two_images_by_hand():
  # Each is the other's only neighbour: (I - A / 2)^-1 / 2 = [[2, 1], [1, 2]] / 3.
  a = ensembling.affinity(f32([[1, 0], [0, 1]]))
  np.testing.assert_array_equal(a, [[0, 1], [1, 0]])
  q = ensembling.propagate(a, f32([[1, 0], [0, 1]]), 0.5)
  np.testing.assert_allclose(q, [[2 / 3, 1 / 3], [1 / 3, 2 / 3]], rtol=1e-6)


def test_divergences_are_those_of_a_loop():
  target = softmax(RNG.normal(size=(7, 3)))
  p = softmax(LOGITS)
  want = sum(q * math.log(q / r) for q, r in zip(target.flat, p.flat, strict=True)) / 7
  assert float(ensembling.softmax_kl(f32(target), f32(LOGITS))) == pytest.approx(want, rel=1e-5)
  s = 1 / (1 + np.exp(-LOGITS))
  want = np.mean(
    [
      q * math.log(q / r) + (1 - q) * math.log((1 - q) / (1 - r))
      for q, r in zip(target.flat, s.flat, strict=True)
    ]
  )
  assert float(ensembling.sigmoid_kl(f32(target), f32(LOGITS))) == pytest.approx(want, rel=1e-5)
  sure = f32([[1.0, 0.0, 0.0]])  # 0 log 0 is 0
  assert float(ensembling.softmax_kl(sure, jnp.zeros((1, 3)))) == pytest.approx(math.log(3))
  assert float(ensembling.sigmoid_kl(sure, jnp.zeros((1, 3)))) == pytest.approx(math.log(2))


@pytest.mark.parametrize(
  "kl, own",
  [(ensembling.softmax_kl, softmax), (ensembling.sigmoid_kl, lambda x: 1 / (1 + np.exp(-x)))],
)
def test_targets_are_constants_and_the_gradient_is_the_difference(kl, own):
  target = softmax(RNG.normal(size=(7, 3)))
  to_target, to_logits = jax.grad(kl, argnums=(0, 1))(f32(target), f32(LOGITS))
  np.testing.assert_array_equal(to_target, 0)
  count = 7 if own is softmax else 21
  np.testing.assert_allclose(to_logits, (own(LOGITS) - target) / count, rtol=1e-4, atol=1e-6)

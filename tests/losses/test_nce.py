"""NCE against a bank: the paper's sums over pairs in float64, by hand, against differences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.losses.nce import nce

RNG = np.random.default_rng(0)
QUERY, OWN = RNG.normal(size=(2, 6, 5))
BANK = RNG.normal(size=(9, 5))
OUT = RNG.random((6, 9)) < 0.3
TAU = 0.3


def cosine(x, y):
  return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


def reference(q, own, bank, tau, out=None):
  """Equations 3 and 4, pair by pair."""
  losses, hits = [], []
  for i in range(len(q)):
    negatives = [bank[j] for j in range(len(bank)) if out is None or not out[i, j]]
    scores = [math.exp(cosine(q[i], n) / tau) for n in negatives]
    score = math.exp(cosine(q[i], own[i]) / tau)

    total = sum(scores)
    found = score / (score + total)
    mistaken = [e / (e + total) for e in scores]
    losses.append(-math.log(found) - sum(math.log(1 - h) for h in mistaken))
    hits.append(score > max(scores))
  return np.mean(losses), np.mean(hits)


def f32(*arrays):
  return [jnp.asarray(x, jnp.float32) for x in arrays]


both = pytest.mark.parametrize("out", [None, OUT], ids=["all", "some left out"])


@both
def test_is_the_sum_over_pairs(out):
  mask = None if out is None else jnp.asarray(out)
  for scale in (1.0, 7.0):  # lengths have no part
    got = nce(*f32(scale * QUERY, OWN / scale, scale * BANK), TAU, mask)
    np.testing.assert_allclose(got, reference(QUERY, OWN, BANK, TAU, out), rtol=2e-6)


@both
def test_gradients_are_those_of_differences_and_memories_have_none(out):
  mask = None if out is None else jnp.asarray(out)
  grads = jax.grad(lambda args: nce(*args, TAU, mask)[0])(f32(QUERY, OWN, BANK))
  for place in np.ndindex(QUERY.shape):
    step = np.zeros_like(QUERY)
    step[place] = 1e-5
    plus, minus = (reference(QUERY + s * step, OWN, BANK, TAU, out)[0] for s in (1, -1))
    assert float(grads[0][place]) == pytest.approx((plus - minus) / 2e-5, abs=3e-6)
  for g in grads[1:]:
    np.testing.assert_array_equal(g, 0)


def test_by_hand():
  e = jnp.eye(2)
  # e(p) = exp(2); one negative with e(n) = 1 = C: h(p) = exp(2) / (exp(2) + 1), h(n) = 1/2.
  loss, accuracy = nce(e[:1], e[:1], e[1:], 0.5)
  assert float(loss) == pytest.approx(math.log(1 + math.exp(-2)) + math.log(2), rel=1e-6)
  assert float(accuracy) == 1
  # The other way round it is 1 against exp(2), and a negative that is left out changes nothing.
  out = jnp.array([[False, True]])
  loss, accuracy = nce(e[:1], e[1:], e, 0.5, out)
  assert float(loss) == pytest.approx(math.log(1 + math.exp(2)) + math.log(2), rel=1e-6)
  assert float(accuracy) == 0


def test_nothing_known():
  same = jnp.ones((4, 3))
  loss, accuracy = nce(same, same, jnp.ones((9, 3)), 0.07)
  assert float(loss) == pytest.approx(math.log(10) + 9 * math.log(10 / 9), rel=1e-5)
  assert float(accuracy) == 0


def test_small_temperatures_and_zeros_are_finite():
  zero = jnp.zeros((4, 3)).at[0, 0].set(1.0)
  out = jnp.eye(4, dtype=bool)
  value, grad = jax.value_and_grad(lambda x: nce(x, zero, zero, 0.001, out)[0])(zero)
  assert np.isfinite(value)
  assert np.isfinite(grad).all()

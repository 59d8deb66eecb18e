"""Contrastive losses against loops over pairs in float64, by hand, and against differences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.losses import contrastive

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 6, 5))
QUEUE = RNG.normal(size=(9, 5))
TAU = 0.3


def cosine(x, y):
  return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


def nt_xent(a, b, tau):
  """Pair by pair, as the paper's equation 1 and the sum after it."""
  z = [*a, *b]
  n = len(a)
  total = hits = 0
  for i in range(2 * n):
    j = (i + n) % (2 * n)
    others = {k: cosine(z[i], z[k]) for k in range(2 * n) if k != i}
    total -= math.log(math.exp(others[j] / tau) / sum(math.exp(s / tau) for s in others.values()))
    hits += max(others, key=others.get) == j
  return total / (2 * n), hits / (2 * n)


def info_nce(q, k, tau):
  rows = [[cosine(x, y) / tau for y in k] for x in q]
  losses = [-math.log(math.exp(r[i]) / sum(map(math.exp, r))) for i, r in enumerate(rows)]
  return np.mean(losses), np.mean([np.argmax(r) == i for i, r in enumerate(rows)])


def info_nce_queue(q, k, queue, tau, left_out=None):
  losses, hits = [], []
  for i in range(len(q)):
    own = cosine(q[i], k[i]) / tau
    others = [
      cosine(q[i], u) / tau for j, u in enumerate(queue) if left_out is None or not left_out[i, j]
    ]
    losses.append(math.log(math.exp(own) + sum(map(math.exp, others))) - own)
    hits.append(own > max(others))
  return np.mean(losses), np.mean(hits)


OUT = RNG.random((6, 9)) < 0.3
CASES = {
  "nt_xent": (contrastive.nt_xent, nt_xent, (A, B)),
  "info_nce": (contrastive.info_nce, info_nce, (A, B)),
  "queue": (contrastive.info_nce_queue, info_nce_queue, (A, B, QUEUE)),
  "queue with entries left out": (
    lambda *args: contrastive.info_nce_queue(*args, left_out=jnp.asarray(OUT)),
    lambda *args: info_nce_queue(*args, left_out=OUT),
    (A, B, QUEUE),
  ),
}
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def f32(arrays):
  return [jnp.asarray(x, jnp.float32) for x in arrays]


@each
def test_is_the_sum_over_pairs(case):
  function, reference, arrays = case
  for scale in (1.0, 7.0):  # lengths have no part
    got = function(*f32([scale * x for x in arrays]), TAU)
    np.testing.assert_allclose(got, reference(*arrays, TAU), rtol=2e-6)


@each
def test_gradients_are_those_of_differences(case):
  function, reference, arrays = case
  grads = jax.grad(lambda args: function(*args, TAU)[0])(f32(arrays))
  constants = 0 if function is contrastive.nt_xent else len(arrays) - 1
  for i, (x, g) in enumerate(zip(arrays, grads, strict=True)):
    if i >= len(arrays) - constants:
      np.testing.assert_array_equal(g, 0)
      continue
    for place in np.ndindex(x.shape):
      step = np.zeros_like(x)
      step[place] = 1e-5
      moved = [[*arrays[:i], x + s * step, *arrays[i + 1 :]] for s in (1, -1)]
      plus, minus = (reference(*args, TAU)[0] for args in moved)
      assert float(g[place]) == pytest.approx((plus - minus) / 2e-5, abs=3e-6)


def test_by_hand():
  e = jnp.eye(2)
  # Every view has its positive at cosine 1 and two negatives at 0.
  loss, accuracy = contrastive.nt_xent(e, e, 0.5)
  assert float(loss) == pytest.approx(math.log(math.exp(2) + 2) - 2, rel=1e-6)
  assert float(accuracy) == 1
  # The one negative at 0; then only it is right, at 1 against 0.
  assert float(contrastive.info_nce(e, e, 1.0)[0]) == pytest.approx(math.log(1 + math.exp(-1)))
  loss, accuracy = contrastive.info_nce(e, e[::-1], 1.0)
  assert float(loss) == pytest.approx(math.log(1 + math.exp(1)))
  assert float(accuracy) == 0
  # A queue of one negative, opposite.
  loss, _ = contrastive.info_nce_queue(e[:1], e[:1], -e[:1], 1.0)
  assert float(loss) == pytest.approx(math.log(1 + math.exp(-2)))


def test_nothing_known_is_the_logarithm_of_the_candidates():
  same = jnp.ones((4, 3))
  assert float(contrastive.nt_xent(same, same, 0.1)[0]) == pytest.approx(math.log(7), rel=1e-5)
  assert float(contrastive.info_nce(same, same, 0.1)[0]) == pytest.approx(math.log(4), rel=1e-5)
  loss = contrastive.info_nce_queue(same, same, jnp.ones((9, 3)), 0.1)[0]
  assert float(loss) == pytest.approx(math.log(10), rel=1e-5)


def test_small_temperatures_and_zeros_are_finite():
  zero = jnp.zeros((4, 3)).at[0, 0].set(1.0)
  for function in (contrastive.nt_xent, contrastive.info_nce):
    value, grad = jax.value_and_grad(lambda x, f=function: f(x, zero, 0.001)[0])(zero)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()

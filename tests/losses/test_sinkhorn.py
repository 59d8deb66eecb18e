"""Sinkhorn-Knopp against the matrix that is rescaled in NumPy, by hand, and at its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import program

from cxrjax.losses.sinkhorn import sinkhorn_knopp

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(12, 5))


def reference(logits, temperature, iterations):
  """As the papers write it: a matrix that sums to 1, its rows and columns rescaled in turn."""
  q = np.exp(logits / temperature).T
  prototypes, samples = q.shape
  q = q / q.sum()
  for _ in range(iterations):
    q = q / q.sum(1, keepdims=True) / prototypes
    q = q / q.sum(0, keepdims=True) / samples
  return (q * samples).T


@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("iterations", [0, 1, 3, 20])
def test_is_the_rescaled_matrix(temperature, iterations):
  got = sinkhorn_knopp(jnp.asarray(LOGITS, jnp.float32), temperature, iterations)
  want = reference(LOGITS, temperature, iterations)
  if not iterations:
    want = want / want.sum(1, keepdims=True)
  np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-7)


def test_by_hand():
  # Both samples lean to the first prototype, 4 : 1 and 1 : 1. Columns first: (4/5, 1/5), (1/2,
  # 1/2); then rows: 4/5 against 1/2, 1/5 against 1/2.
  logits = jnp.log(jnp.array([[4.0, 1.0], [1.0, 1.0]]))
  got = sinkhorn_knopp(logits, 1.0, 1)
  np.testing.assert_allclose(got, [[8 / 13, 5 / 13], [2 / 7, 5 / 7]], rtol=1e-6)
  np.testing.assert_allclose(sinkhorn_knopp(logits, 1.0, 0), [[0.8, 0.2], [0.5, 0.5]], rtol=1e-6)


def test_many_iterations_use_all_prototypes_alike():
  got = np.asarray(sinkhorn_knopp(jnp.asarray(LOGITS, jnp.float32), 0.3, 200))
  np.testing.assert_allclose(got.sum(1), 1, rtol=1e-5)
  np.testing.assert_allclose(got.sum(0), 12 / 5, rtol=1e-3)


def test_only_valid_samples_have_a_say():
  valid = RNG.random(12) < 0.6
  got = sinkhorn_knopp(jnp.asarray(LOGITS, jnp.float32), 0.2, 3, jnp.asarray(valid))
  np.testing.assert_allclose(
    np.asarray(got)[valid], reference(LOGITS[valid], 0.2, 3), rtol=2e-4, atol=1e-7
  )
  none = sinkhorn_knopp(jnp.asarray(LOGITS, jnp.float32), 0.2, 3, jnp.zeros(12, bool))
  np.testing.assert_allclose(none, jax.nn.softmax(LOGITS / 0.2), rtol=1e-4)


def test_no_temperature_is_too_small_and_no_gradient_flows():
  cosines = jnp.asarray(np.tanh(LOGITS), jnp.float32)
  got = np.asarray(sinkhorn_knopp(cosines, 1e-3, 3))
  assert np.isfinite(got).all()
  np.testing.assert_allclose(got.sum(1), 1, rtol=1e-5)
  assert not jax.grad(lambda x: sinkhorn_knopp(x, 0.1)[0, 0])(cosines).any()


SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from cxrjax.losses.koleo import koleo
from cxrjax.losses.sinkhorn import sinkhorn_knopp

assert jax.device_count() == 8
rows = NamedSharding(Mesh(np.asarray(jax.devices()), ("data",)), PartitionSpec("data"))
rng = np.random.default_rng(0)
x = rng.normal(size=(32, 7)).astype(np.float32)
valid = rng.random(32) < 0.5
run = jax.jit(lambda x, v: (sinkhorn_knopp(x, 0.1, 3), sinkhorn_knopp(x, 0.1, 3, v),
                            *jax.value_and_grad(koleo)(x)))
one, eight = run(x, valid), run(*jax.device_put((x, valid), rows))
assert len(eight[0].sharding.device_set) == 8
for a, b in zip(one, eight):
  np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
parts = np.concatenate([sinkhorn_knopp(p, 0.1, 3) for p in x.reshape(8, 4, 7)])
assert np.abs(parts - one[0]).max() > 0.1  # each device by itself would be something else
print("same")
"""


@pytest.mark.full
def test_eight_devices_see_all_samples():
  assert program(SCRIPT).strip() == "same"

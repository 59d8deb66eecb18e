"""The optimiser against AdamW written out in NumPy, with DINO's freezing and clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.core.clock import Clock
from cxrjax.core.errors import UserError
from cxrjax.training.optimizer import Optimizer, clip_per_tensor, path_names

CLOCK = Clock(total_steps=10, steps_per_epoch=2.0, batch_size=128)
PARAMS = {"body": {"kernel": jnp.array([[1.0, -2.0], [3.0, 4.0]]), "bias": jnp.array([0.5, -0.5])},
          "prototypes": {"kernel": jnp.array([[1.0, 1.0]])}}


def run(optimizer, steps, grads):
  params, state = PARAMS, optimizer.init(PARAMS)
  for t in range(steps):
    params, state, metrics = optimizer.update(grads(t), state, params, jnp.int32(t))
  return params, metrics


def grads(t):
  rng = np.random.default_rng(t)
  return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), PARAMS)


def adamw(p, gs, lrs, decays, first=0, b1=0.9, b2=0.999, eps=1e-8):
  """Torch's AdamW for one tensor whose gradient is None before step `first`."""
  m = v = np.zeros_like(p)
  n = 0
  for t, g in enumerate(gs):
    if t < first:
      continue
    n += 1
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    p = p * (1 - lrs[t] * decays[t])
    p = p - lrs[t] * (m / (1 - b1**n)) / (np.sqrt(v / (1 - b2**n)) + eps)
  return p


def test_is_adamw_with_no_decay_of_vectors_and_frozen_prototypes():
  optimizer = Optimizer(
    clock=CLOCK, lr={"start": 0.1, "end": 0.01}, lr_batch=256, clip=0,
    weight_decay={"start": 0.04, "end": 0.4}, freeze=(("prototypes", "1 epochs"),))
  got, _ = run(optimizer, 6, grads)
  i = np.arange(6)
  # Scaled by 128 / 256; the final value is not scaled.
  lrs = 0.01 + 0.5 * (0.05 - 0.01) * (1 + np.cos(np.pi * i / 10))
  decays = 0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * i / 10))

  def want(path, decay, first=0):
    leaf = lambda tree: np.asarray(tree[path[0]][path[1]], np.float64)  # noqa: E731
    return adamw(leaf(PARAMS), [leaf(grads(t)) for t in range(6)], lrs, decay, first)

  np.testing.assert_allclose(got["body"]["kernel"], want(("body", "kernel"), decays), rtol=1e-5)
  np.testing.assert_allclose(got["body"]["bias"], want(("body", "bias"), 0 * decays), rtol=1e-5)
  np.testing.assert_allclose(
    got["prototypes"]["kernel"], want(("prototypes", "kernel"), decays, first=2), rtol=1e-5)


def test_frozen_parameters_do_not_move():
  optimizer = Optimizer(clock=CLOCK, freeze=(("prototypes", "1 epochs"),))
  got, _ = run(optimizer, 2, grads)
  np.testing.assert_array_equal(got["prototypes"]["kernel"], PARAMS["prototypes"]["kernel"])
  got, _ = run(optimizer, 3, grads)
  assert (np.asarray(got["prototypes"]["kernel"]) != 1).all()


def test_lr_scale_by_rule():
  slow = Optimizer(clock=CLOCK, lr=0.1, lr_batch=0, clip=0, lr_scale=(("body", 0.0),))
  got, metrics = run(slow, 3, grads)
  np.testing.assert_array_equal(got["body"]["kernel"], PARAMS["body"]["kernel"])
  assert (np.asarray(got["prototypes"]["kernel"]) != 1).all()
  assert metrics["lr"] == pytest.approx(0.1)


def test_clipping_is_per_tensor():
  g = {"a": jnp.array([30.0, 40.0]), "b": jnp.array([0.3, 0.4])}
  got = clip_per_tensor(g, 3.0)
  np.testing.assert_allclose(got["a"], [1.8, 2.4], rtol=1e-5)
  np.testing.assert_array_equal(got["b"], g["b"])


def test_paths():
  assert path_names(PARAMS)["body"]["kernel"] == "body/kernel"


def test_mistakes():
  with pytest.raises(UserError, match="matches no parameter; they are named like 'body/bias'"):
    Optimizer(clock=CLOCK, freeze=(("protypes", "1 epochs"),)).check(PARAMS)
  with pytest.raises(UserError, match="is no regular expression"):
    Optimizer(clock=CLOCK, lr_scale=(("(", 1.0),))
  with pytest.raises(UserError, match=r"config\.optimizer\.name='optax\.scale_by_adm'"):
    Optimizer(clock=CLOCK, name="optax.scale_by_adm")
  with pytest.raises(UserError, match=r"config\.optimizer\.options\.beta1 is not an option"):
    Optimizer(clock=CLOCK, options={"beta1": 0.9})

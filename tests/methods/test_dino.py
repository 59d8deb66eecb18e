"""DINO as a method: its state, its averages, and that it learns without collapsing."""

import dataclasses

import jax
import jax.flatten_util
import jax.numpy as jnp
import lab
import numpy as np
import pytest

from cxrjax.core.durations import Clock
from cxrjax.core.errors import UserError
from cxrjax.losses import dino as losses
from cxrjax.methods import base
from cxrjax.methods.dino import Method
from cxrjax.models.vit import Model

CLOCK = Clock(total_steps=60, steps_per_epoch=6.0, batch_size=16)


def make(**options):
  encoder = Model(
    variant="Mu",
    width=32,
    depth=2,
    heads=2,
    patch_size=8,
    image_size=32,
    drop_path=options.pop("drop_path", 0.0),
  )
  return Method(
    **{
      "encoder": encoder,
      "clock": CLOCK,
      "prototypes": 24,
      "hidden": 32,
      "bottleneck": 16,
      **options,
    }
  )


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  return {
    "global": jnp.asarray(rng.normal(size=(2, 4, 32, 32, 1)), jnp.float32),
    "local": jnp.asarray(rng.normal(size=(3, 4, 16, 16, 1)), jnp.float32),
    "position": jnp.arange(4),
    "labels": jnp.zeros((4, 0)),
  }


def spec(batch):
  return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}


def test_the_teacher_is_a_copy_that_starts_equal(batch):
  params, state = make().init(jax.random.key(0), spec(batch))
  for p, t in zip(jax.tree.leaves(params), jax.tree.leaves(state["teacher"]), strict=True):
    np.testing.assert_array_equal(p, t)
    assert p.unsafe_buffer_pointer() != t.unsafe_buffer_pointer()


def test_the_loss_is_the_papers_on_encodings_made_view_by_view(batch):
  method = make(teacher_temp=0.05)
  params, state = method.init(jax.random.key(1), spec(batch))
  state["center"] = jnp.linspace(-1, 1, 24)
  # Make the teacher another network.
  state["teacher"] = jax.tree.map(lambda x: 1.1 * x, state["teacher"])

  def logits(weights, x):
    return method.head.apply(weights["head"], lab.encode(method.encoder, weights["encoder"], x).cls)

  student = [logits(params, v) for v in [*batch["global"], *batch["local"]]]
  teacher = [logits(state["teacher"], v) for v in batch["global"]]
  p = [jax.nn.softmax((t - state["center"]) / 0.05) for t in teacher]
  pairs = [
    -(p[i] * jax.nn.log_softmax(s / 0.1)).sum(-1).mean()
    for i in range(2)
    for j, s in enumerate(student)
    if i != j
  ]
  loss, (new, metrics) = jax.jit(method.loss)(params, state, batch, jax.random.key(2), jnp.int32(0))
  assert float(loss) == pytest.approx(np.mean(pairs), rel=1e-5)
  want = losses.update_center(state["center"], jnp.stack(teacher, 1), 0.9)
  np.testing.assert_allclose(new["center"], want, rtol=1e-4, atol=1e-6)
  assert float(metrics["kl"]) == pytest.approx(float(loss - metrics["teacher_entropy"]), abs=1e-5)


def test_drop_path_follows_the_image_not_its_place(batch):
  method = make(drop_path=0.5)
  params, state = method.init(jax.random.key(0), spec(batch))
  half = {k: v[:, 2:] if v.ndim == 5 else v[2:] for k, v in batch.items()}
  other = {k: v[:, :2] if v.ndim == 5 else v[:2] for k, v in batch.items()}
  args = params, state
  key, step = jax.random.key(3), jnp.int32(0)
  loss = jax.jit(method.loss)
  whole = loss(*args, batch, key, step)[0]
  parts = [loss(*args, part, key, step)[0] for part in (half, other)]
  assert float(whole) == pytest.approx(np.mean(parts), rel=1e-4)
  assert whole != loss(*args, batch, jax.random.key(4), step)[0]


def test_the_teacher_is_a_moving_average(batch):
  method = make(momentum={"start": 0.9, "end": 1.0})
  params, state = method.init(jax.random.key(0), spec(batch))
  params = jax.tree.map(lambda x: x + 1, params)
  new = method.after_update(params, state, jnp.int32(30))  # half way: 0.95
  old = state["teacher"]["head"]["prototypes"]
  name = next(iter(old))
  np.testing.assert_allclose(
    new["teacher"]["head"]["prototypes"][name],
    0.95 * old[name] + 0.05 * (old[name] + 1),
    rtol=1e-5,
    atol=1e-6,
  )
  assert method.encoder_params(params, new) is new["teacher"]["encoder"]


def test_views_flatten_image_by_image():
  x = jnp.arange(6.0).reshape(2, 3, 1)  # views, images
  np.testing.assert_array_equal(base.flatten_views(x)[:, 0], [0, 3, 1, 4, 2, 5])


def test_overfits_a_few_phantoms_without_collapsing_and_resumes():
  # In so few steps the centre must follow the teacher faster than over the usual ten.
  method = Method(
    encoder=lab.encoder(),
    clock=lab.clock(),
    prototypes=32,
    hidden=64,
    bottleneck=32,
    teacher_temp=0.03,
    momentum={"start": 0.99, "end": 1.0},
    center_momentum=0.5,
  )
  log = lab.assert_fits(method, loss=0.8, spread=0.3)
  # Sixteen images get answers of their own (at most ln 16 = 2.77 nats about which image it was),
  # and the student knows them from another crop.
  assert log[-1]["batch_entropy"] - log[-1]["teacher_entropy"] > 1.5
  assert log[-1]["loss"] < 0.5 * np.log(32)
  assert log[-1]["kl"] < 0.7


def test_mistakes(batch):
  with pytest.raises(UserError, match=r"config\.method\.prototypes=0"):
    make(prototypes=0)
  with pytest.raises(UserError, match=r"config\.method\.momentum\.strat is not an option"):
    make(momentum={"strat": 0.9})
  with pytest.raises(UserError, match=r"config\.views\.global_crops=2"):
    make().init(jax.random.key(0), spec({"global": batch["global"][:1]}))


def test_bfloat16_trains_as_float32_does(batch):
  """What accelerators compute in beside what the other tests hold: loss and direction."""
  found = {}
  for dtype in ("float32", "bfloat16"):
    method = make()
    encoder = dataclasses.replace(method.encoder, dtype=dtype)
    method = dataclasses.replace(method, encoder=encoder)
    state = method.init(jax.random.key(1), spec(batch))
    found[dtype] = jax.jit(jax.value_and_grad(method.loss, has_aux=True))(
      *state, batch, jax.random.key(2), jnp.int32(0)
    )
  (loss, _), gradient = found["float32"]
  (near, _), turned = found["bfloat16"]
  assert float(near) == pytest.approx(float(loss), rel=1e-2)
  a, b = (jax.flatten_util.ravel_pytree(x)[0] for x in (gradient, turned))
  assert float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b)) > 0.999

"""Segmentation as a method: it learns a few masks, leaves images without one out, resumes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import lab
import numpy as np
import pytest
from flax import nnx
from small import full

from cxrjax.core.errors import UserError
from cxrjax.methods import segment
from cxrjax.models import cnn, module
from cxrjax.models.conv import BatchNorm, Conv


class _Two(nnx.Module):
  def __init__(self, rngs):
    self.conv1, self.bn1 = Conv(1, 8, 3, stride=2, rngs=rngs), BatchNorm(8)
    self.conv2, self.bn2 = Conv(8, 16, 3, stride=2, rngs=rngs), BatchNorm(16)

  def __call__(self, x, *, keys, train, add):
    del keys
    first = add(0, jax.nn.relu(self.bn1(self.conv1(x), train=train)))
    return [first, add(1, jax.nn.relu(self.bn2(self.conv2(first), train=train)))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoStages(cnn.Cnn):
  """The least convolutional encoder with stages and batch norm."""

  stages = 2
  features = 16
  _steps = ((3, 2, 1), (3, 2, 1))
  _net = module.Net.of(_Two)


VIEWS = lab.recipe(global_crops=1)


def make(encoder=None, **options):
  encoder = lab.encoder(width=32, depth=1) if encoder is None else encoder
  return segment.Method(
    encoder=encoder, clock=lab.clock(), **{"decoder": "upsample", "width": 4, **options}
  )


def overlap(method, state, batch):
  """Mean Dice of the predicted masks."""
  params = method.network_params(state["params"], state["method_state"])
  images = (batch["image"] / 255.0 - 0.5) / 0.25
  called, truth = np.asarray(jax.jit(method.predict)(params, images)) >= 0.5, batch["mask"] > 0
  both = (called & truth).sum((1, 2, 3))
  return float(np.mean(2 * both / (called.sum((1, 2, 3)) + truth.sum((1, 2, 3)))))


@pytest.fixture(scope="module")
def batch():
  return lab.phantoms(8, masks=True)


def train(method, batch, steps, lr=1e-2):
  # Convolutions in a loop of steps are several times slower on a CPU: one step a dispatch.
  work = dataclasses.replace(lab.train_step(method, VIEWS, lr), block=1)
  state = work.init(work.batch_spec({}, batch))
  block = jax.tree.map(lambda x: x[None], batch)
  for _ in range(steps):
    state, metrics = work.run(state, {}, block, np.int32(1))
  return state, {k: float(v[0]) for k, v in metrics.items()}


@pytest.mark.parametrize(
  ("decoder", "patch", "least"),
  [("linear", 8, 0.9), full("upsample", 8, 0.85), full("unetr", 4, 0.9)],
)
def test_a_vit_learns_eight_masks(batch, decoder, patch, least):
  method = make(lab.encoder(width=32, depth=1, patch_size=patch), decoder=decoder)
  state, metrics = train(method, batch, 60)
  assert overlap(method, state, batch) > least, metrics
  assert method.check_collapse(metrics) is None
  assert metrics["masked_images"] == 1.0


def test_a_cnn_learns_eight_masks(batch):
  method = make(TwoStages(), decoder="unet")
  state, metrics = train(method, batch, 40)
  # By the running statistics, which follow those of the batches slowly.
  assert overlap(method, state, batch) > 0.85, metrics
  stats = state["method_state"]["stats"]
  assert set(stats) == {"encoder", "decoder"}
  assert float(jnp.abs(stats["decoder"]["first"]["0"]["norm"]["running_mean"]).max()) > 0
  assert "running_mean" not in state["params"]["decoder"]["first"]["0"]["norm"]


@functools.cache
def _loss_of(views=2):
  """A method, its parameters and its jitted loss."""
  method = make(decoder="linear", dice=1.0, cross_entropy=0.5)
  spec = {
    "global": jax.ShapeDtypeStruct((views, 4, 32, 32, 1), jnp.float32),
    "global_mask": jax.ShapeDtypeStruct((views, 4, 32, 32, 1), bool),
  }
  params, state = method.init(jax.random.key(0), spec)

  def loss(params, batch):
    return method.loss(params, state, batch, jax.random.key(1), jnp.int32(0))

  return method, params, jax.jit(jax.value_and_grad(loss, has_aux=True))


def _views(known):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 4, 32, 32, 1)), jnp.float32)
  mask = jnp.asarray(rng.random((2, 4, 32, 32, 1)) < 0.3)
  return {
    "global": x,
    "global_mask": mask,
    "has_mask": jnp.asarray(known),
    "labels": jnp.zeros((4, 0)),
    "position": jnp.arange(4, dtype=jnp.int32),
  }


def test_images_without_a_mask_are_left_out():
  _, params, loss = _loss_of()
  batch = _views([True, False, True, False])
  (value, (_, metrics)), gradient = loss(params, batch)
  assert float(metrics["masked_images"]) == 0.5
  other = batch | {
    "global": batch["global"].at[:, 1].add(1.0),
    "global_mask": batch["global_mask"].at[:, 3].set(True),
  }
  (same, _), still = loss(params, other)
  np.testing.assert_allclose(value, same, rtol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), gradient, still)
  moved = batch | {"global_mask": batch["global_mask"].at[:, 0].set(True)}
  assert abs(float(loss(params, moved)[0][0] - value)) > 1e-3
  (nothing, _), none = loss(params, _views([False] * 4))
  assert float(nothing) == 0.0
  assert all(not np.asarray(g).any() for g in jax.tree.leaves(none))


def test_the_loss_is_the_weighted_sum():
  _, params, loss = _loss_of()
  (value, (_, metrics)), _ = loss(params, _views([True] * 4))
  np.testing.assert_allclose(
    value, metrics["soft_dice_loss"] + 0.5 * metrics["cross_entropy"], rtol=1e-6
  )


def test_it_resumes():
  lab.assert_resumes(
    make(lab.encoder(width=32, depth=1, drop_path=0.1), decoder="linear"), VIEWS, masks=True
  )


def test_one_mask_for_all_is_noticed():
  method = make(decoder="linear")
  assert "0.0% of the pixels are called lung" in method.check_collapse({"called_lung": 0.0})
  assert "100.0% of the pixels" in method.check_collapse({"called_lung": 1.0})
  assert method.check_collapse({"called_lung": 0.3}) is None


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"decoder": "unet"}, r"decoder='unet' needs an encoder with stages"),
    ({"dice": 0.0, "cross_entropy": 0.0}, r"config\.method\.dice=0\.0 and .*at least one above 0"),
    ({"components": -1}, r"config\.method\.components=-1 must be 0 \(all\) or more"),
  ],
)
def test_mistakes(options, words):
  with pytest.raises(UserError, match=words):
    make(**options)


def test_data_without_masks():
  spec = {"global": jax.ShapeDtypeStruct((1, 4, 32, 32, 1), jnp.float32)}
  with pytest.raises(UserError, match=r"set config\.data\.masks='own'"):
    make().init(jax.random.key(0), spec)

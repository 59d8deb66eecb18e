"""PIRL: its loss, the memory bank, and that both tasks learn without collapsing."""

import dataclasses

import jax
import jax.numpy as jnp
import lab
import numpy as np
import pytest
from small import full, program

from cxrjax.config.config_files import load_config
from cxrjax.core.durations import Clock
from cxrjax.core.errors import UserError
from cxrjax.losses.contrastive import unit
from cxrjax.losses.nce import nce
from cxrjax.methods.base import join_stats
from cxrjax.methods.pirl import Method
from cxrjax.models.base import Encoder
from cxrjax.models.features import Features
from cxrjax.views import pretext

ROTATION = {"task": "rotation"}
N, B = 40, 16  # images of the data, and of a batch
INDEX = jnp.array([7, 3, 39, 0, 1, 2, 30, 31, 32, 33, 34, 35, 36, 37, 38, 20])


@dataclasses.dataclass(frozen=True)
class Blocks(Encoder):
  """An encoder that is compiled in no time: a layer on blocks of 16x16 pixels, and their mean."""

  features: int = 8

  def init(self, key):
    return {"kernel": jax.random.normal(key, (256, self.features)) / 16}

  def encode(self, params, x, **_):
    if isinstance(x, list | tuple):
      return tuple(self.encode(params, group) for group in x)
    n, h, w, _ = x.shape
    blocks = x.reshape(n, h // 16, 16, w // 16, 16).swapaxes(2, 3).reshape(n, -1, 256)
    return Features(jnp.tanh(blocks @ params["kernel"]).mean(1), None, {}, None)


def make(**options):
  return Method(
    **{
      "encoder": Blocks(),
      "dim": 16,
      "clock": Clock(total_steps=4, steps_per_epoch=N / B, batch_size=B),
      **options,
    }
  )


def noisy(key, images, index):
  """Views that are as quickly compiled."""
  noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (2, 32, 32, 1)))(index)
  views = images[None] / 255.0 + jnp.moveaxis(noise, 1, 0) / 10
  return {"global": views[:1], "rotated": pretext.quarter_turns(views[1:], index % 4)}


def alike(task):
  """Views that differ by little but the task."""
  options = {
    "global_size": 32,
    "global_scale": (0.9, 1.0),
    "ratio": (1.0, 1.0),
    "flip": 0.0,
    "jitter_prob": 0.0,
  }
  if task == "jigsaw":
    return pretext.Jigsaw(**options, local_size=16, local_scale=(1.0, 1.0))
  return pretext.Rotation(**options)


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  views = {"global": (1, B, 32, 32, 1), "patches": (9, B, 16, 16, 1), "rotated": (1, B, 32, 32, 1)}
  return {
    **{name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in views.items()},
    "position": jnp.arange(B),
    "index": INDEX,
    "labels": jnp.zeros((B, 0)),
  }


def spec(batch):
  return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}


def start(method, batch):
  return method.init(jax.random.key(0), spec(batch))


def loss(method, params, state, batch, key=1):
  return jax.jit(method.loss)(params, state, batch, jax.random.key(key), jnp.int32(0))


def linear(params, x):
  layer = params["layers"]["0"]
  return x @ layer["kernel"] + layer["bias"]


def embed(method, params, batch):
  """Embeddings of the image views and of the pretext views, one network call for each view."""

  def cls(x):
    return method.encoder.encode(params["encoder"], x).cls

  head = params["pretext"]
  image = linear(params["projector"], cls(batch["global"][0]))
  if method.task == "rotation":
    return image, linear(head["projector"], cls(batch["rotated"][0]))
  patches = [linear(head["projector"], cls(x)) for x in batch["patches"]]
  return image, linear(head["merger"], jnp.concatenate(patches, axis=1))


tasks = pytest.mark.parametrize("task", ["jigsaw", "rotation"])


@tasks
def test_the_loss_is_half_of_each_views_against_the_bank(task, batch):
  method = make(task=task)
  params, state = start(method, batch)
  value, (_, metrics) = loss(method, params, state, batch)
  bank = state["bank"]
  own = jnp.arange(N) == INDEX[:, None]  # all others are negatives
  want = [nce(x, bank[INDEX], bank, 0.07, own) for x in embed(method, params, batch)]
  assert float(value) == pytest.approx(float(want[0][0] + want[1][0]) / 2, rel=1e-4)
  assert float(metrics["image_loss"]) == pytest.approx(float(want[0][0]), rel=1e-4)
  assert float(metrics["pretext_loss"]) == pytest.approx(float(want[1][0]), rel=1e-4)
  assert float(metrics["accuracy"]) == float(want[0][1])
  assert float(metrics["pretext_accuracy"]) == float(want[1][1])
  weighted, _ = loss(make(task=task, pretext_weight=0.2), params, state, batch)
  assert float(weighted) == pytest.approx(float(0.2 * want[1][0] + 0.8 * want[0][0]), rel=1e-4)


def test_drawn_negatives_are_random_rows_of_others():
  method = make(negatives=5)
  bank = jnp.arange(float(N))[:, None] * jnp.ones(16)  # every row knows its number
  seen = np.zeros(N)
  draw = jax.jit(method._negatives)
  for seed in range(300):
    rows, left_out = draw(bank, INDEX, jax.random.key(seed))
    rows, left_out = np.asarray(rows[:, 0]), np.asarray(left_out)
    assert len(set(rows)) == 6
    assert (left_out.sum(1) == 1).all()  # five for everybody
    assert (rows != np.asarray(INDEX)[:, None])[~left_out].all()
    seen += np.isin(np.arange(N), rows[~left_out[3]])  # of the image in row 0
  assert seen[0] == 0
  expected = 300 * 5 / (N - 1)
  assert abs(seen[1:] - expected).max() < 5 * expected**0.5


def test_the_loss_with_drawn_negatives(batch):
  method = make(**ROTATION, negatives=5)
  params, state = start(method, batch)
  rows, left_out = method._negatives(state["bank"], INDEX, jax.random.split(jax.random.key(1))[1])
  want = [
    nce(x, state["bank"][INDEX], rows, 0.07, left_out)[0] for x in embed(method, params, batch)
  ]
  assert float(loss(method, params, state, batch)[0]) == pytest.approx(
    float(sum(want)) / 2, rel=1e-4
  )
  others = loss(method, params, state, batch, key=2)[0]
  assert abs(float(others) - float(sum(want)) / 2) > 1e-3


def test_heads(batch):
  params, state = start(make(), batch)
  shapes = jax.tree.map(jnp.shape, {k: v for k, v in params.items() if k != "encoder"})
  head = {"layers": {"0": {"kernel": (8, 16), "bias": (16,)}}}
  merger = {"layers": {"0": {"kernel": (144, 16), "bias": (16,)}}}
  assert shapes == {"projector": head, "pretext": {"projector": head, "merger": merger}}
  assert state["bank"].shape == (N, 16)
  np.testing.assert_allclose(jnp.linalg.norm(state["bank"], axis=1), 1, rtol=1e-5)
  params, _ = start(make(**ROTATION), batch)
  assert jax.tree.map(jnp.shape, params["pretext"]) == {"projector": head}


def test_rows_are_the_moving_average_of_their_images_embeddings(batch):
  method = make(momentum=0.25)
  params, state = start(method, batch)
  before = np.asarray(state["bank"], np.float64)
  _, (state, _) = loss(method, params, state, batch)
  np.testing.assert_array_equal(state["bank"], before.astype(np.float32))  # not in the forward pass
  state = jax.jit(method.after_update)(params, state, jnp.int32(0))
  image = np.asarray(embed(method, params, batch)[0], np.float64)
  want = before.copy()
  for row, f in zip(np.asarray(INDEX), image, strict=True):
    m = 0.25 * before[row] + 0.75 * f / np.linalg.norm(f)
    want[row] = m / np.linalg.norm(m)
  np.testing.assert_allclose(state["bank"], want, atol=2e-5)
  seen = np.isin(np.arange(N), INDEX)
  np.testing.assert_array_equal(state["bank"][~seen], before[~seen].astype(np.float32))


def test_an_image_that_is_twice_in_a_batch_counts_with_the_mean():
  method = make(momentum=0.5)
  params, state = (
    {},
    {
      "bank": jnp.eye(N, 16),
      "stats": {},
      "fresh": {
        "rows": jnp.concatenate([jnp.array([3.0, 3.0]), jnp.arange(20.0, 34.0)]),
        "embeddings": jnp.eye(B, 16),
      },
    },
  )
  bank = method.after_update(params, state, jnp.int32(0))["bank"]
  want = np.zeros(16)
  want[[0, 1, 3]] = 0.25, 0.25, 0.5
  np.testing.assert_allclose(bank[3], want / np.linalg.norm(want), rtol=1e-6)


@pytest.mark.full
def test_nothing_depends_on_accumulation():
  images = {**lab.phantoms(), "index": INDEX}
  found = []
  for accumulate in (1, 4):
    method = make(**ROTATION, negatives=9)
    work = lab.train_step(method, noisy, accumulate=accumulate)
    state, log = lab.fit(work, images, 3)
    found.append((state["method_state"]["bank"], log[-1]["loss"]))
  np.testing.assert_allclose(found[1][0], found[0][0], atol=1e-4)
  np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-4)


class Normed(lab.Normed):
  """As the convolutional networks: groups of one call all have the last one's statistics."""

  def encode(self, params, x, **options):
    found = super().encode(params, x, **options)
    if not isinstance(x, list | tuple):
      return found
    return tuple(f._replace(stats=found[-1].stats) for f in found)


def test_running_statistics_are_of_image_views(batch):
  encoder = Normed()
  method = make(**ROTATION, encoder=encoder)
  params, state = start(method, batch)
  _, (new, _) = loss(method, params, state, batch)
  want = encoder.encode(
    join_stats(params["encoder"], state["stats"]), batch["global"][0], train=True
  ).stats
  for name in ("running_mean", "running_var"):
    np.testing.assert_allclose(new["stats"]["bn1"][name], want["bn1"][name], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(
      method.encoder_params(params, new)["bn1"][name], new["stats"]["bn1"][name]
    )


def test_embeddings_can_be_normalised_over_the_batch(batch):
  method = make(batch_norm=True)
  params, state = start(method, batch)
  _, (new, _) = loss(method, params, state, batch)
  cls = method.encoder.encode(params["encoder"], batch["global"][0]).cls
  z = np.asarray(cls @ params["projector"]["layers"]["0"]["kernel"], np.float64)
  z = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)
  np.testing.assert_allclose(
    new["fresh"]["embeddings"], z / np.linalg.norm(z, axis=1, keepdims=True), atol=2e-3
  )
  assert "bias" not in params["pretext"]["merger"]["layers"]["0"]
  assert "bias" in params["pretext"]["projector"]["layers"]["0"]


@pytest.mark.parametrize("task", ["jigsaw", full("rotation")])
def test_overfits_a_few_phantoms_without_collapsing_and_resumes(task):
  method = make(task=task, clock=lab.clock(), encoder=lab.encoder(depth=2))
  log = lab.assert_fits(method, alike(task), lr=3e-3, loss=0.7, spread=0.3)
  assert log[-1]["accuracy"] > 0.9
  assert log[-1]["pretext_accuracy"] > 0.4  # of one batch, still rising; by chance: 1/16


SCRIPT = """
import dataclasses
import jax, lab, numpy as np
from jax.sharding import NamedSharding
from test_pirl import make, noisy
from cxrjax.core.durations import Clock
from cxrjax.training.sharding import BATCH, make_mesh

assert jax.device_count() == 8
# A bank that is large enough to be split over devices, and negatives drawn from it.
clock = Clock(total_steps=4, steps_per_epoch=64.0, batch_size=16)
method = make(task="rotation", clock=clock, dim=64, negatives=100)
found = []
for devices, fsdp in ((1, 1), (8, 4)):
  work = lab.train_step(method, noisy, lr=1e-4)
  work = dataclasses.replace(work, mesh=make_mesh(fsdp, jax.devices()[:devices]))
  images = {**lab.phantoms(), "index": 60 * np.arange(16, dtype=np.int32)}
  batch = jax.device_put(images, NamedSharding(work.mesh, BATCH))
  state, log = lab.fit(work, batch, 3)
  bank = state["method_state"]["bank"]
  assert bank.addressable_shards[0].data.shape == (1024 // fsdp, 64)
  found.append((log[-1]["loss"], log[-1]["accuracy"], np.asarray(bank)))
for one, eight in zip(*found, strict=True):
  np.testing.assert_allclose(eight, one, rtol=1e-3, atol=2e-3)
print("the same")
"""


@pytest.mark.full
def test_the_bank_is_the_same_split_over_eight_devices():
  assert "the same" in program(SCRIPT)


def test_a_puzzles_patches_are_whole_patches_of_a_vit():
  sizes = {(224, 16): 64, (224, 14): 70, (64, 8): 16, (32, 8): 16, (448, 16): 128}
  config = load_config("pirl_jigsaw")
  for (image, patch), side in sizes.items():
    made = config(f"paper,model=S,image_size={image},model.patch_size={patch}")
    assert made.views.local_size == side


def test_collapse_is_told():
  well = {"feature_std": 0.5, "projection_std": 0.5, "accuracy": 0.0}
  assert make().check_collapse(well) is None
  assert "all images get the same features" in make().check_collapse({**well, "feature_std": 0.01})
  assert "the projections' spread is 0.0100" in make().check_collapse(
    {**well, "projection_std": 0.01}
  )


def test_mistakes(batch):
  with pytest.raises(UserError, match=r"config\.method\.task='jigsw' is unknown; did you mean "):
    make(task="jigsw")
  for name, value in (("dim", 0), ("negatives", 0)):
    with pytest.raises(UserError, match=rf"config\.method\.{name}={value} must be at least"):
      make(**{name: value})
  for name, value in (("temperature", 0.0), ("momentum", 1.0), ("pretext_weight", 1.5)):
    with pytest.raises(UserError, match=rf"config\.method\.{name}={value} must be"):
      make(**{name: value})
  with pytest.raises(UserError, match="a single image, which leaves PIRL no negatives"):
    make(clock=Clock(total_steps=4, steps_per_epoch=1.0, batch_size=1))
  views = spec(batch)
  for task, name in (("jigsaw", "patches"), ("rotation", "rotated")):
    kind = rf"needs config\.views\.name='cxrjax\.views\.pretext\.{task.title()}'"
    with pytest.raises(UserError, match=kind):
      make(task=task).init(jax.random.key(0), {k: v for k, v in views.items() if k != name})
  views["patches"] = jax.ShapeDtypeStruct((9, B, 12, 12, 1), jnp.float32)
  with pytest.raises(
    UserError,
    match=r"local_size=12 is not a multiple of config\.model\.patch_si"
    r"ze=8; set it to 8",
  ):
    make(encoder=lab.encoder()).init(jax.random.key(0), views)


def test_rows_start_as_random_directions():
  bank = np.asarray(
    start(
      make(), {"global": jnp.zeros((1, B, 32, 32, 1)), "patches": jnp.zeros((9, B, 16, 16, 1))}
    )[1]["bank"]
  )
  cosines = bank @ bank.T - np.eye(N)
  assert abs(cosines).max() < 0.95
  assert abs(cosines.mean()) < 0.05
  np.testing.assert_allclose(bank, unit(jnp.asarray(bank)), rtol=1e-5)

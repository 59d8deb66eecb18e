"""MoCo v2 and v3: their losses, the queue, the keys' batch norm, and that they learn."""

import jax
import jax.numpy as jnp
import lab
import numpy as np
import pytest
from small import full, program

from cxrjax.core.errors import UserError
from cxrjax.losses import contrastive
from cxrjax.methods.base import join_stats
from cxrjax.methods.moco import Method
from cxrjax.models import resnet

V2 = {"version": 2, "head_layers": 2, "batch_norm": False, "momentum": 0.99, "queue": 40}


def make(**options):
  return Method(
    **{"encoder": lab.encoder(), "clock": lab.clock(4), "hidden": 32, "dim": 16, **options}
  )


@pytest.fixture(scope="module")
def batch():
  x = np.random.default_rng(0).normal(size=(2, 16, 32, 32, 1))
  return {
    "global": jnp.asarray(x, jnp.float32),
    "position": jnp.arange(16),
    "index": jnp.arange(100, 116),
    "labels": jnp.zeros((16, 0)),
  }


def spec(batch):
  return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}


def start(method, batch):
  """Parameters, and `state` with another network as teacher."""
  params, state = method.init(jax.random.key(0), spec(batch))
  return params, {**state, "teacher": jax.tree.map(lambda x: 1.1 * x + 0.01, state["teacher"])}


def loss(method, params, state, batch):
  return jax.jit(method.loss)(params, state, batch, jax.random.key(1), jnp.int32(0))


def project(method, weights, x):
  cls = lab.encode(method.encoder, weights["encoder"], x).cls
  return method.projector.apply(weights["projector"], cls)


def test_version_3_is_symmetric_behind_a_predictor(batch):
  method = make()
  params, state = start(method, batch)
  value, (_, metrics) = loss(method, params, state, batch)
  q = [
    method.predictor.apply(params["predictor"], project(method, params, x)) for x in batch["global"]
  ]
  k = [project(method, state["teacher"], x) for x in batch["global"]]
  want = [contrastive.info_nce(q[i], k[1 - i], 0.2) for i in range(2)]
  assert float(value) == pytest.approx(0.4 * sum(float(w[0]) for w in want), rel=1e-4)
  assert float(metrics["accuracy"]) == pytest.approx(np.mean([w[1] for w in want]))


def test_version_3s_heads(batch):
  params, state = make().init(jax.random.key(0), spec(batch))
  shapes = [
    p["kernel"].shape
    for head in ("projector", "predictor")
    for p in params[head]["layers"].values()
  ]
  assert shapes == [(64, 32), (32, 32), (32, 16), (16, 32), (32, 16)]
  assert not any("bias" in p for p in params["projector"]["layers"].values())
  assert "predictor" not in state["teacher"]
  assert make().predictor.final_norm == "batch_no_affine"
  assert make(predictor_norm=False).predictor.final_norm == "none"


def test_version_2_compares_with_the_queue(batch):
  method = make(**V2)
  params, state = start(method, batch)
  value, (new, metrics) = loss(method, params, state, batch)
  q = project(method, params, batch["global"][0])
  k = project(method, state["teacher"], batch["global"][1])
  want, accuracy = contrastive.info_nce_queue(q, k, state["queue"]["keys"], 0.2)
  assert float(value) == pytest.approx(float(want), rel=1e-4)
  assert float(metrics["accuracy"]) == float(accuracy)
  np.testing.assert_allclose(new["fresh"]["keys"], contrastive.unit(k), rtol=1e-4, atol=1e-5)


def test_the_queue_holds_the_last_keys_in_order(batch):
  method = make(**V2)
  params, state = method.init(jax.random.key(0), spec(batch))
  random = state["queue"]["keys"]
  pushed = []
  for i in range(4):  # 64 keys for 40 places
    state["fresh"] = {
      "keys": jnp.full((16, 16), float(i)) + jnp.arange(16)[:, None] / 100,
      "images": jnp.arange(16.0) + 16 * i,
    }
    pushed += [
      (float(k[0]), float(n))
      for k, n in zip(state["fresh"]["keys"], state["fresh"]["images"], strict=True)
    ]
    state = method.after_update(params, state, jnp.int32(i))
    held = sorted(
      zip(state["queue"]["keys"][:, 0].tolist(), state["queue"]["images"].tolist(), strict=True),
      key=lambda pair: pair[1],
    )
    assert [pair for pair in held if pair[1] >= 0] == pushed[-40:]
    if i == 0:
      np.testing.assert_array_equal(state["queue"]["keys"][16:], random[16:])
  np.testing.assert_allclose(jnp.linalg.norm(random, axis=1), 1, rtol=1e-5)


def test_an_images_own_earlier_keys_are_no_negatives(batch):
  method = make(**V2)
  params, state = start(method, batch)
  state["queue"]["images"] = (
    state["queue"]["images"].at[jnp.array([3, 7, 9])].set(jnp.array([102.0, 99.0, 115.0]))
  )
  value, _ = loss(method, params, state, batch)
  q = project(method, params, batch["global"][0])
  k = project(method, state["teacher"], batch["global"][1])
  own = np.zeros((16, 40), bool)
  own[2, 3] = own[15, 9] = True
  want, _ = contrastive.info_nce_queue(q, k, state["queue"]["keys"], 0.2, left_out=jnp.asarray(own))
  assert float(value) == pytest.approx(float(want), rel=1e-5)


@pytest.mark.full
def test_the_queue_does_not_depend_on_accumulation():
  images = lab.phantoms()
  views = lab.recipe()
  found = []
  for accumulate in (1, 2):
    work = lab.train_step(make(**V2), views, accumulate=accumulate)
    state, _ = lab.fit(work, images, 2)
    found.append(state["method_state"]["queue"])
  np.testing.assert_array_equal(found[0]["images"], found[1]["images"])
  np.testing.assert_allclose(found[0]["keys"], found[1]["keys"], atol=2e-3)


@pytest.mark.full
def test_keys_are_normalised_in_other_groups_than_queries(batch):
  encoder = resnet.Model(depth=18, width=4, small_stem=True)
  method = make(**{**V2, "encoder": encoder, "bn_groups": 4})
  params, state = start(method, batch)
  _, (new, _) = loss(method, params, state, batch)

  def normalised(weights, x):
    features = encoder.encode(join_stats(weights["encoder"], state["stats"]), x, train=True)
    return contrastive.unit(method.projector.apply(weights["projector"], features.cls))

  order = jax.random.permutation(jax.random.split(jax.random.key(1))[1], 16)
  keys = np.zeros((16, 16), np.float32)
  for part in order.reshape(4, 4):
    keys[part] = jax.jit(normalised)(state["teacher"], batch["global"][1][part])
  np.testing.assert_allclose(new["fresh"]["keys"], keys, rtol=1e-3, atol=1e-4)
  # Running statistics move a tenth of the way to the mean of the groups'.
  stem = params["encoder"]["conv1"]["kernel"]
  maps = jax.lax.conv_general_dilated(
    batch["global"][0], stem, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  np.testing.assert_allclose(
    new["stats"]["bn1"]["running_mean"], 0.1 * maps.mean((0, 1, 2)), rtol=1e-3, atol=1e-6
  )
  groups = maps.reshape(4, 4, *maps.shape[1:])
  var = groups.var((1, 2, 3), ddof=1).mean(0)
  np.testing.assert_allclose(new["stats"]["bn1"]["running_var"], 0.9 + 0.1 * var, rtol=1e-3)


@pytest.mark.parametrize(
  ("options", "loss"), [pytest.param({}, 0.5, id="v3"), full(V2, 0.5, id="v2")]
)
def test_overfits_a_few_phantoms_without_collapsing_and_resumes(options, loss):
  method = make(**{**options, "clock": lab.clock(), "momentum": 0.9})
  log = lab.assert_fits(method, lr=3e-3, loss=loss, spread=0.3)
  assert log[-1]["accuracy"] > 0.9


SCRIPT = """
import jax, lab, numpy as np
from jax.sharding import NamedSharding
from test_moco import V2, make
from cxrjax.training.sharding import BATCH

assert jax.device_count() == 8
# The queue, and batch norm in groups with shuffled keys.
method = make(**{**V2, "batch_norm": True, "bn_groups": 4})
found = []
for n in (1, 8):
  work = lab.train_step(method, lab.recipe(), lr=1e-4, devices=jax.devices()[:n])
  batch = jax.device_put(lab.phantoms(), NamedSharding(work.mesh, BATCH))
  state, log = lab.fit(work, batch, 4)
  found.append((log[-1]["loss"], log[-1]["accuracy"], *map(np.asarray, (
    state["method_state"]["queue"]["images"], state["method_state"]["queue"]["keys"]))))
for one, eight in zip(*found, strict=True):
  np.testing.assert_allclose(eight, one, rtol=1e-3, atol=2e-3)
print("the same")
"""


@pytest.mark.full
def test_the_queue_is_the_same_on_eight_devices():
  assert "the same" in program(SCRIPT)


def test_mistakes(batch):
  with pytest.raises(UserError, match=r"config\.method\.version=1 is unknown; valid: 2, 3"):
    make(version=1)
  with pytest.raises(UserError, match=r"config\.method\.queue=8 is less than config\.batch_size"):
    make(**{**V2, "queue": 8})
  with pytest.raises(UserError, match=r"config\.method\.momentum\.strat is not an option"):
    make(momentum={"strat": 0.9})
  with pytest.raises(UserError, match=r"config\.views\.global_crops=2, not 1"):
    make().init(jax.random.key(0), spec({"global": batch["global"][:1]}))
  with pytest.raises(UserError, match=r"bn_groups=5 does not divide a \(micro\)batch of 16"):
    method = make(**{**V2, "batch_norm": True, "bn_groups": 5})
    jax.eval_shape(
      method.loss,
      *method.init(jax.random.key(0), spec(batch)),
      batch,
      jax.random.key(0),
      jnp.int32(0),
    )

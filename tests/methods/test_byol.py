"""BYOL and Cross: their losses, statistics and moving average, and that they learn."""

import jax
import jax.numpy as jnp
import lab
import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.losses import cosine
from cxrjax.methods import byol, cross
from cxrjax.methods.base import join_stats

each = pytest.mark.parametrize("module", [byol, cross], ids=["byol", "cross"])


def make(module=byol, **options):
  return module.Method(
    **{
      "encoder": lab.encoder(),
      "clock": lab.clock(4),
      "hidden": 32,
      "dim": 16,
      "predictor_hidden": 32,
      "momentum": 0.9,
      **options,
    }
  )


@pytest.fixture(scope="module")
def batch():
  x = np.random.default_rng(0).normal(size=(2, 6, 32, 32, 1))
  return {
    "global": jnp.asarray(x, jnp.float32),
    "position": jnp.arange(6),
    "index": jnp.arange(6),
    "labels": jnp.zeros((6, 0)),
  }


def spec(batch):
  return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}


def start(method, batch):
  """Parameters, and `state` with another network as teacher."""
  params, state = method.init(jax.random.key(0), spec(batch))
  noise = np.random.default_rng(1)
  other = jax.tree.map(
    lambda x: x + 0.05 * noise.normal(size=x.shape).astype(np.float32), state["teacher"]
  )
  return params, {**state, "teacher": other}


def loss(method, params, state, batch):
  return jax.jit(method.loss)(params, state, batch, jax.random.key(1), jnp.int32(0))


def project(method, weights, x):
  cls = lab.encode(method.encoder, weights["encoder"], x).cls
  return method.projector.apply(weights["projector"], cls)


def test_each_prediction_is_of_the_targets_other_view(batch):
  method = make()
  params, state = start(method, batch)
  value, (_, metrics) = loss(method, params, state, batch)
  q = [
    method.predictor.apply(params["predictor"], project(method, params, x)) for x in batch["global"]
  ]
  k = [project(method, state["teacher"], x) for x in batch["global"]]
  want = cosine.distance(q[0], k[1]) + cosine.distance(q[1], k[0])
  assert float(value) == pytest.approx(float(want), rel=1e-4)
  assert float(metrics["cosine"]) == pytest.approx(1 - float(want) / 4, rel=1e-4)


def test_cross_compares_views_of_a_network_and_networks_on_a_view(batch):
  method = make(cross, view_weight=2.0, model_weight=0.5)
  params, state = start(method, batch)
  value, (_, metrics) = loss(method, params, state, batch)
  z = [project(method, params, x) for x in batch["global"]]
  q = [method.predictor.apply(params["predictor"], x) for x in z]
  k = [project(method, state["teacher"], x) for x in batch["global"]]
  view = cosine.distance(q[0], z[1]) + cosine.distance(q[1], z[0])
  model = cosine.distance(q[0], k[0]) + cosine.distance(q[1], k[1])
  assert float(metrics["view_loss"]) == pytest.approx(float(view), rel=1e-4)
  assert float(metrics["model_loss"]) == pytest.approx(float(model), rel=1e-4)
  assert float(value) == pytest.approx(float(2 * view + 0.5 * model), rel=1e-4)


@each
def test_no_gradient_through_targets(module, batch):
  method = make(module)
  params, state = start(method, batch)
  through_teacher = jax.jit(
    jax.grad(
      lambda teacher: method.loss(
        params, {**state, "teacher": teacher}, batch, jax.random.key(1), jnp.int32(0)
      )[0]
    )
  )(state["teacher"])
  assert all(float(jnp.abs(g).max()) == 0 for g in jax.tree.leaves(through_teacher))


def test_statistics_of_one_view_after_the_other(batch):
  encoder = lab.Normed()
  method = make(encoder=encoder)
  params, state = start(method, batch)
  value, (new, _) = loss(method, params, state, batch)

  def see(weights, stats, x):
    features = encoder.encode(join_stats(weights["encoder"], stats), x, train=True)
    return method.projector.apply(weights["projector"], features.cls), features.stats

  stats, q = state["stats"], []
  for x in batch["global"]:
    z, stats = see(params, stats, x)
    q.append(method.predictor.apply(params["predictor"], z))
  k = [see(state["teacher"], state["stats"], x)[0] for x in batch["global"]]
  want = cosine.distance(q[0], k[1]) + cosine.distance(q[1], k[0])
  assert float(value) == pytest.approx(float(want), rel=1e-3)
  for a, b in zip(jax.tree.leaves(new["stats"]), jax.tree.leaves(stats), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
  evaluated = method.encoder_params(params, new)
  np.testing.assert_array_equal(
    evaluated["bn1"]["running_mean"], new["stats"]["bn1"]["running_mean"]
  )


def test_heads(batch):
  params, state = make(head_layers=3).init(jax.random.key(0), spec(batch))
  shapes = [
    p["kernel"].shape
    for head in ("projector", "predictor")
    for p in params[head]["layers"].values()
  ]
  assert shapes == [(64, 32), (32, 32), (32, 16), (16, 32), (32, 16)]
  # Hidden layers have batch norm, outputs nothing; biases are the norms'.
  assert len(params["projector"]["norms"]) == 2 and len(params["predictor"]["norms"]) == 1
  assert not any("bias" in p for p in params["projector"]["layers"].values())
  assert set(state["teacher"]) == {"encoder", "projector"}
  params, _ = make(batch_norm=False).init(jax.random.key(0), spec(batch))
  assert "norms" not in params["predictor"]


def test_the_target_follows_by_its_schedule(batch):
  method = make(momentum={"start": 0.6, "end": 1.0})
  params, state = start(method, batch)
  for step, momentum in ((0, 0.6), (2, 0.8), (4, 1.0)):  # half a cosine over four steps
    new = method.after_update(params, state, jnp.int32(step))["teacher"]
    for old, student, got in zip(
      jax.tree.leaves(state["teacher"]),
      jax.tree.leaves({name: params[name] for name in new}),
      jax.tree.leaves(new),
      strict=True,
    ):
      np.testing.assert_allclose(
        got, momentum * old + (1 - momentum) * student, rtol=1e-4, atol=1e-6
      )


@each
def test_overfits_a_few_phantoms_without_collapsing_and_resumes(module):
  log = lab.assert_fits(make(module, clock=lab.clock()), loss=0.5, spread=0.3)
  assert log[-1]["projection_std"] > 0.3


def test_collapse_is_told():
  well = {"feature_std": 0.5, "projection_std": 0.5}
  assert make().check_collapse(well) is None
  assert "all images get the same features" in make().check_collapse({**well, "feature_std": 0.01})
  assert "the projections' spread is 0.0100" in make().check_collapse(
    {**well, "projection_std": 0.01}
  )


def test_mistakes(batch):
  with pytest.raises(UserError, match=r"config\.method\.predictor_hidden=0"):
    make(predictor_hidden=0)
  with pytest.raises(UserError, match=r"config\.method\.momentum\.strat is not an option"):
    make(momentum={"strat": 0.9})
  with pytest.raises(UserError, match=r"config\.views\.global_crops=2, not 1"):
    make().init(jax.random.key(0), spec({"global": batch["global"][:1]}))
  with pytest.raises(UserError, match=r"config\.method\.model_weight=-1"):
    make(cross, model_weight=-1.0)
  with pytest.raises(UserError, match=r"view_weight=0 leaves nothing"):
    make(cross, view_weight=0.0)

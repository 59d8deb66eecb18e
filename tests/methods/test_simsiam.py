"""SimSiam as a method: its loss, its statistics, and that it learns without collapsing."""

import jax
import jax.numpy as jnp
import lab
import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.methods.base import join_stats
from cxrjax.methods.simsiam import Method


def make(**options):
  return Method(
    **{
      "encoder": lab.encoder(),
      "clock": lab.clock(4),
      "hidden": 32,
      "dim": 16,
      "predictor_hidden": 8,
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


def cosines(a, b):
  return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_the_loss_is_the_papers_with_statistics_of_one_view_after_the_other(batch):
  encoder = lab.Normed()
  method = make(encoder=encoder)
  params, state = method.init(jax.random.key(0), spec(batch))
  loss, (new, metrics) = jax.jit(method.loss)(params, state, batch, jax.random.key(1), jnp.int32(0))
  stats, z, p = state["stats"], [], []
  for x in batch["global"]:
    features = encoder.encode(join_stats(params["encoder"], stats), x, train=True)
    stats = features.stats
    z.append(method.projector.apply(params["projector"], features.cls))
    p.append(np.asarray(method.predictor.apply(params["predictor"], z[-1])))
  want = -(cosines(p[0], z[1]).mean() + cosines(p[1], z[0]).mean()) / 2
  assert float(loss) == pytest.approx(float(want), abs=1e-3)
  assert float(metrics["cosine"]) == pytest.approx(-float(loss), rel=1e-6)
  for a, b in zip(jax.tree.leaves(new["stats"]), jax.tree.leaves(stats), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_targets_are_constants(batch):
  method = make()
  params, state = method.init(jax.random.key(0), spec(batch))
  # With a predictor whose output does not depend on its input only targets could carry a gradient.
  last = params["predictor"]["layers"]["1"]
  last["kernel"], last["bias"] = 0 * last["kernel"], last["bias"] + 1
  gradient = jax.jit(
    jax.grad(lambda params: method.loss(params, state, batch, jax.random.key(1), jnp.int32(0))[0])
  )(params)
  for network in ("encoder", "projector"):
    assert all(float(jnp.abs(g).max()) == 0 for g in jax.tree.leaves(gradient[network]))
  assert float(jnp.abs(gradient["predictor"]["layers"]["1"]["bias"]).max()) > 0


def test_heads(batch):
  params, state = make(head_layers=3).init(jax.random.key(0), spec(batch))
  shapes = [
    p["kernel"].shape
    for head in ("projector", "predictor")
    for p in params[head]["layers"].values()
  ]
  assert shapes == [(64, 32), (32, 32), (32, 16), (16, 8), (8, 16)]
  assert make().projector.final_norm == "batch_no_affine"
  assert "bias" in params["predictor"]["layers"]["1"]
  assert state == {"stats": {}}


def test_overfits_a_few_phantoms_without_collapsing_and_resumes():
  # The loss falls from 0 towards -1; the first that is logged is the twentieth.
  method = make(clock=lab.clock(), hidden=64, dim=64, predictor_hidden=16)
  log = lab.assert_fits(method, loss=2.0, spread=0.3, lr_constant=("^predictor/",))
  assert log[-1]["cosine"] > 0.7
  assert log[-1]["projection_std"] > 0.3


def test_collapse_is_told():
  well = {"feature_std": 0.5, "projection_std": 0.5}
  assert make().check_collapse(well) is None
  assert "all images get the same features" in make().check_collapse({**well, "feature_std": 0.01})
  assert "the projections' spread is 0.0100" in make().check_collapse(
    {**well, "projection_std": 0.01}
  )


def test_mistakes(batch):
  with pytest.raises(UserError, match=r"config\.method\.dim=0"):
    make(dim=0)
  with pytest.raises(UserError, match=r"config\.views\.global_crops=2, not 1"):
    make().init(jax.random.key(0), spec({"global": batch["global"][:1]}))

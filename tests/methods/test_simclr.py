"""SimCLR as a method: its loss, its statistics, and that it learns without collapsing."""

import jax
import jax.numpy as jnp
import lab
import numpy as np
import pytest

from cxrjax.core.durations import Clock
from cxrjax.core.errors import UserError
from cxrjax.losses import contrastive
from cxrjax.methods.base import join_stats
from cxrjax.methods.simclr import Method
from cxrjax.models import resnet


def make(**options):
  return Method(
    **{"encoder": lab.encoder(), "clock": lab.clock(4), "hidden": 32, "dim": 16, **options}
  )


@pytest.fixture(scope="module")
def batch():
  x = np.random.default_rng(0).normal(size=(2, 4, 32, 32, 1))
  return {
    "global": jnp.asarray(x, jnp.float32),
    "position": jnp.arange(4),
    "index": jnp.arange(4),
    "labels": jnp.zeros((4, 0)),
  }


def spec(batch):
  return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}


def test_the_loss_is_the_papers_with_statistics_over_both_views(batch):
  encoder = resnet.Model(depth=18, width=4, small_stem=True)
  method = make(encoder=encoder, temperature=0.5)
  params, state = method.init(jax.random.key(0), spec(batch))
  assert "running_mean" not in params["encoder"]["bn1"]
  loss, (new, metrics) = jax.jit(method.loss)(params, state, batch, jax.random.key(1), jnp.int32(0))
  # All first views, then all second ones: statistics do not mind the order.
  both = encoder.encode(
    join_stats(params["encoder"], state["stats"]), batch["global"].reshape(8, 32, 32, 1), train=True
  )
  z = method.projector.apply(params["projector"], both.cls)
  want, accuracy = contrastive.nt_xent(z[:4], z[4:], 0.5)
  assert float(loss) == pytest.approx(float(want), rel=1e-4)
  assert float(metrics["accuracy"]) == float(accuracy)
  for a, b in zip(jax.tree.leaves(new["stats"]), jax.tree.leaves(both.stats), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_heads(batch):
  params, _ = make().init(jax.random.key(0), spec(batch))
  projector = params["projector"]
  assert projector["layers"]["1"]["kernel"].shape == (32, 16)
  assert set(projector["norms"]["1"]) == {"scale"}  # no bias at the end
  params, _ = make(head_layers=3, batch_norm=False).init(jax.random.key(0), spec(batch))
  assert [p["kernel"].shape for p in params["projector"]["layers"].values()] == [
    (64, 32),
    (32, 32),
    (32, 16),
  ]
  assert "norms" not in params["projector"]


def test_overfits_a_few_phantoms_without_collapsing_and_resumes():
  log = lab.assert_fits(make(clock=lab.clock()), loss=0.5, spread=0.3)
  assert log[-1]["accuracy"] > 0.9


def test_collapse_is_told():
  well = {"accuracy": 0.5, "feature_std": 0.5}
  assert make().check_collapse(well) is None
  assert "all images get the same features" in make().check_collapse({**well, "feature_std": 0.01})
  assert "among 31 in 3.00%" in make().check_collapse({**well, "accuracy": 0.03})


def test_mistakes(batch):
  with pytest.raises(UserError, match=r"config\.method\.temperature=0"):
    make(temperature=0.0)
  with pytest.raises(UserError, match=r"config\.method\.dim=0"):
    make(dim=0)
  with pytest.raises(UserError, match=r"config\.batch_size=1 leaves SimCLR no negatives"):
    make(clock=Clock(total_steps=4, steps_per_epoch=1.0, batch_size=1))
  with pytest.raises(UserError, match=r"config\.views\.global_crops=2, not 1"):
    make().init(jax.random.key(0), spec({"global": batch["global"][:1]}))

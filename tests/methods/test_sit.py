"""SiT: which network sees what, both losses, and that it learns."""

import jax
import jax.numpy as jnp
import lab
import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.losses import contrastive, reconstruction
from cxrjax.methods.sit import Method

CORRUPTION = {"share": 0.5, "fill": ("zeros",)}


def make(**options):
  return Method(
    **{
      "encoder": lab.encoder(),
      "clock": lab.clock(4),
      "hidden": 32,
      "dim": 16,
      "corruption": CORRUPTION,
      **options,
    }
  )


@pytest.fixture(scope="module")
def batch():
  x = np.random.default_rng(0).normal(size=(2, 8, 32, 32, 1))
  return {
    "global": jnp.asarray(x, jnp.float32),
    "position": jnp.arange(8),
    "index": jnp.arange(8),
    "labels": jnp.zeros((8, 0)),
  }


def spec(batch):
  return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}


@pytest.fixture(scope="module")
def initial(batch):
  """Parameters, and `state` with another network as teacher."""
  params, state = make().init(jax.random.key(0), spec(batch))
  return params, {**state, "teacher": jax.tree.map(lambda x: 1.1 * x + 0.01, state["teacher"])}


def test_the_loss_is_contrastive_and_reconstruction(batch, initial):
  method = make(weight=5.0)
  params, state = initial
  loss, (_, metrics) = jax.jit(method.loss)(params, state, batch, jax.random.key(1), jnp.int32(0))
  seen = method.corrupted(batch, jax.random.split(jax.random.key(1))[0])

  @jax.jit
  def project(weights, images):
    cls = method.encoder.encode(weights["encoder"], images).cls
    return method.projector.apply(weights["projector"], cls)

  student = project(params, seen.images)  # of an image both views in a row
  teacher = project(state["teacher"], seen.clean)
  want = [contrastive.info_nce(student[v::2], teacher[1 - v :: 2], 0.2) for v in range(2)]
  image = jax.jit(
    lambda p, x: method.restore(
      p, method.encoder.encode(p["encoder"], x, intermediates=method.intermediates), x.shape
    )
  )(params, seen.images)
  l1 = reconstruction.l1(image, seen.clean, seen.mask)
  contrast = 2 * 0.2 * sum(float(w[0]) for w in want)
  assert float(metrics["contrastive"]) == pytest.approx(contrast, rel=1e-3)
  assert float(metrics["reconstruction"]) == pytest.approx(float(l1), rel=1e-3)
  assert float(loss) == pytest.approx(contrast + 5 * float(l1), rel=1e-3)
  assert float(metrics["accuracy"]) == pytest.approx(np.mean([w[1] for w in want]))


def test_the_teacher_follows_and_is_evaluated(batch, initial):
  method = make(momentum=0.75)
  params, state = initial
  after = method.after_update(params, state, jnp.int32(0))
  assert set(after["teacher"]) == {"encoder", "projector"}
  jax.tree.map(
    lambda new, t, s: np.testing.assert_allclose(new, 0.75 * t + 0.25 * s, rtol=1e-5, atol=1e-6),
    after["teacher"],
    state["teacher"],
    {k: params[k] for k in after["teacher"]},
  )
  assert method.encoder_params(params, after) is after["teacher"]["encoder"]


def test_it_restores_from_the_last_block(batch, initial):
  """That is from the features themselves, where GMML takes the mean of four blocks."""
  method = make(encoder=lab.encoder(depth=3))
  assert method.intermediates == ("block:2",)
  params, _ = method.init(jax.random.key(0), spec(batch))
  x = batch["global"][0]

  @jax.jit
  def both(params, x):
    features = method.encoder.encode(params["encoder"], x, intermediates=method.intermediates)
    plain = method.head.apply(params["pixels"], features.patches, method.grid(x.shape))
    return method.restore(params, features, x.shape), plain

  found, want = both(params, x)
  np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_the_head_is_the_papers():
  head = make().projector
  assert head.dims == (32, 32, 16) and head.activation == ("relu", "gelu")
  assert head.batch_norm and head.final_norm == "batch_no_affine"


def test_overfits_a_few_phantoms_without_collapsing_and_resumes():
  method = make(clock=lab.clock(), momentum=0.9, encoder=lab.encoder(depth=2))
  log = lab.assert_fits(method, lr=3e-3, loss=0.7, spread=0.2)
  assert log[-1]["accuracy"] > 0.6 and log[-1]["explained"] > 0.1


def test_mistakes(batch):
  for options, words in (
    ({"weight": -1.0}, r"config\.method\.weight=-1"),
    ({"hidden": 0}, r"config\.method\.hidden=0"),
    ({"temperature": 0.0}, r"config\.method\.temperature=0"),
    ({"momentum": {"strat": 0.9}}, r"config\.method\.momentum\.strat is not an option"),
    ({"corruption": {"shar": 1}}, r"config\.method\.corruption\.shar is not an option"),
  ):
    with pytest.raises(UserError, match=words):
      make(**options)
  with pytest.raises(UserError, match=r"config\.views\.global_crops=2, not 1"):
    make().init(jax.random.key(0), spec({"global": batch["global"][:1]}))


def test_health_is_reported(batch, initial):
  method = make()
  metrics = {"accuracy": 0.5, "feature_std": 0.5}
  assert method.check_collapse(metrics) is None
  assert "config.optimizer.lr" in method.check_collapse({**metrics, "feature_std": 0.0})
  assert "by chance" in method.check_collapse({**metrics, "accuracy": 1 / 16})

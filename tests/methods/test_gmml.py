"""GMML as a method: what is restored and from what, and that nothing collapses."""

import jax
import jax.numpy as jnp
import lab
import made_up
import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.methods.base import image_keys
from cxrjax.methods.gmml import Method
from cxrjax.models import resnet
from cxrjax.models.features import standardize


def make(model=None, **options):
  encoder = lab.encoder(**{"patch_size": 4, **(model or {})})
  return Method(**{"encoder": encoder, "clock": lab.clock(), **options})


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


def loss_of(method, batch):
  params, state = method.init(jax.random.key(0), spec(batch))
  return params, jax.jit(method.loss)(params, state, batch, jax.random.key(1), jnp.int32(0))


def test_the_loss_is_the_papers_image_by_image(batch):
  method = make({"standardize": True, "depth": 3}, corruption={"share": 0.5})
  params, _ = method.init(jax.random.key(0), spec(batch))
  norm = {"scale": 1 + 0.3 * made_up.images(64), "bias": 0.3 * made_up.images(64)}
  params["encoder"]["norm"], params["pixels"]["bias"] = norm, jnp.full(1, 0.2)
  loss, (_, metrics) = jax.jit(method.loss)(
    params, method.init(jax.random.key(0), spec(batch))[1], batch, jax.random.key(1), jnp.int32(0)
  )
  keys = image_keys(jax.random.split(jax.random.key(1))[0], batch["position"], 2)
  clean = jnp.stack(
    [standardize(batch["global"][v, i][None])[0] for i in range(6) for v in range(2)]
  )
  corrupted, masks = jax.jit(lambda k, x: method.corrupt(k, x, 2))(keys, clean)
  clean, masks = np.asarray(clean), np.asarray(masks)
  # After 6, 8, 10 and 12 of 12 blocks is after 2 and 3 of 3.
  intermediates = jax.jit(
    lambda p, x: method.encoder.encode(p, x, intermediates=("block:1", "block:2")).intermediates
  )(params["encoder"], corrupted)
  weights = jax.tree.map(np.asarray, params["pixels"])
  errors, flat = [], []
  for i in range(12):
    x = np.mean([np.asarray(tap)[i, 1:] for tap in intermediates.values()], axis=0)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * norm["scale"] + norm["bias"]  # the encoder's
    for j in "012":
      layer = weights["layers"][j]
      x = np.asarray(jax.nn.gelu(x @ layer["kernel"] + layer["bias"], approximate=False))
    x = x @ weights["out"]["kernel"] + weights["bias"]  # one number for all pixels
    image = np.zeros((32, 32))
    for patch in range(64):
      row, column = 4 * (patch // 8), 4 * (patch % 8)
      image[row : row + 4, column : column + 4] = x[patch].reshape(4, 4)
    mask = masks[i, ..., 0]
    errors.extend(np.abs(image - clean[i, ..., 0])[mask])
    flat.extend(np.abs(clean[i, ..., 0])[mask])  # the mean of a standardised image is 0
  assert float(loss) == pytest.approx(np.mean(errors), rel=1e-3)
  assert float(metrics["explained"]) == pytest.approx(1 - np.mean(errors) / np.mean(flat), abs=2e-3)


def test_the_encoder_never_sees_what_is_to_be_restored(batch):
  """Other pixels where an image is corrupted: the features stay, bit for bit."""
  method = make(corruption={"alien": 0.0})
  _, (loss, (_, metrics)) = loss_of(method, batch)
  mask = method.corrupted(batch, jax.random.split(jax.random.key(1))[0]).mask
  mask = mask.reshape(6, 2, 32, 32, 1).swapaxes(0, 1)
  assert 0.4 < float(mask.mean()) < 0.8
  changed = {**batch, "global": jnp.where(mask, batch["global"] + 5, batch["global"])}
  _, (other, (_, again)) = loss_of(method, changed)
  for name in ("feature_std", "effective_rank"):
    assert float(metrics[name]) == float(again[name])
  assert float(other) > float(loss) + 1


def test_corruption_follows_the_image_not_its_place(batch):
  method = make(corruption={"alien": 0.0, "fill": ("noise", "zeros")})
  part = {k: v[:, 2:5] if v.ndim == 5 else v[2:5] for k, v in batch.items()}
  key = jax.random.key(3)
  for whole, some in zip(method.corrupted(batch, key), method.corrupted(part, key), strict=True):
    np.testing.assert_array_equal(whole[4:10], some)


@pytest.mark.parametrize(
  "depth, intermediates",
  [(12, (5, 7, 9, 11)), (24, (11, 15, 19, 23)), (3, (1, 2)), (2, (0, 1)), (1, (0,))],
)
def test_layers_that_are_drawn_from(depth, intermediates):
  assert make({"depth": depth}).intermediates == tuple(f"block:{i}" for i in intermediates)
  assert make({"depth": depth}, layers=(1,)).intermediates == (f"block:{depth - 1}",)


def test_overfits_a_few_phantoms_without_collapsing_and_resumes():
  log = lab.assert_fits(make(), loss=0.85, lr=3e-3, spread=0.1, rank=1.3)
  assert log[-1]["explained"] > 0.2


@pytest.mark.full
def test_networks_with_batch_norm_restore_from_their_last_map(batch):
  encoder = resnet.Model(depth=18, width=4, small_stem=True)
  method = make()
  method = Method(encoder=encoder, clock=method.clock)
  assert method.intermediates == () and method.grid((32, 32, 1)) == (32 // encoder.stride,) * 2
  params, (loss, (state, _)) = loss_of(method, batch)
  assert np.isfinite(float(loss)) and state["stats"]
  joined = method.encoder_params(params, state)
  assert float(joined["bn1"]["running_var"].max()) != 1.0


def test_health_is_reported(batch):
  metrics = {k: float(v) for k, v in loss_of(make(), batch)[1][1][1].items()}
  assert make().check_collapse(metrics) is None
  assert "config.method.corruption.share" in make().check_collapse(
    {**metrics, "feature_std": 0.001}
  )


@pytest.mark.parametrize(
  "make_it, words",
  [
    (lambda: make(corruption={"shar": 0.5}), r"config\.method\.corruption\.shar is not an option"),
    (lambda: make(corruption={"share": 2.0}), r"config\.method\.corruption\.share=2\.0"),
    (lambda: make(layers=()), r"config\.method\.layers=\(\)"),
    (lambda: make(layers=(6,)), r"config\.method\.layers=\(6,\)"),
    (lambda: make(head_depth=-1), r"config\.method\.head_depth=-1"),
  ],
)
def test_mistakes(make_it, words):
  with pytest.raises(UserError, match=words):
    make_it()


def test_mistakes_that_the_data_show(batch):
  with pytest.raises(UserError, match=r"config\.views\.global_size=30 is not a multiple of the 4"):
    make().init(jax.random.key(0), spec({"global": batch["global"][:, :, :30, :30]}))

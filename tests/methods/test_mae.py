"""MAE and RGMIM as methods: what is hidden, what is learnt, and that nothing collapses."""

import jax
import jax.numpy as jnp
import lab
import numpy as np
import pytest
from small import full

from cxrjax.core.errors import UserError
from cxrjax.losses import mae as losses
from cxrjax.methods import mae, rgmim
from cxrjax.methods.base import image_keys
from cxrjax.models import features, resnet
from cxrjax.views import masking

SMALL = {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}


def make(module=mae, **options):
  encoder = lab.encoder(**{"patch_size": 4, "positions": "sincos", **options.pop("model", {})})
  return module.Method(**{"encoder": encoder, "clock": lab.clock(), **SMALL, **options})


@pytest.fixture(scope="module")
def batch():
  """Two views of six images, with lungs on the left, none in the last."""
  rng = np.random.default_rng(0)
  lungs = np.zeros((2, 6, 32, 32, 1), bool)
  lungs[:, :5, :, :12] = True  # 24 of 64 patches
  return {
    "global": jnp.asarray(rng.normal(size=(2, 6, 32, 32, 1)), jnp.float32),
    "global_mask": jnp.asarray(lungs),
    "position": jnp.arange(6),
    "index": jnp.arange(6),
    "labels": jnp.zeros((6, 0)),
  }


def spec(batch):
  return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}


def loss_of(method, batch, key=1):
  params, state = method.init(jax.random.key(0), spec(batch))
  found = jax.jit(method.loss)(params, state, batch, jax.random.key(key), jnp.int32(0))
  return params, found


@pytest.mark.parametrize("norm_pixels", [True, full(False)])
def test_the_loss_is_the_papers_image_by_image(batch, norm_pixels):
  method = make(norm_pixels=norm_pixels, model={"standardize": True})
  params, (loss, (_, metrics)) = loss_of(method, batch)
  keys = image_keys(jax.random.split(jax.random.key(1))[0], batch["position"], 2)
  masks = np.asarray(masking.random(keys, 64, 48))
  errors, flat = [], []

  @jax.jit
  def draw(image, keep):
    seen = method.encoder.encode(params["encoder"], image, keep=keep)
    return method.decoder.apply(params["decoder"], seen.cls, seen.patches, keep, (8, 8))

  for i in range(6):
    for v in range(2):
      image = features.standardize(batch["global"][v, i][None])
      mask = masks[2 * i + v]
      keep = jnp.asarray(np.flatnonzero(~mask)[None], jnp.int32)
      assert keep.shape == (1, 16)
      drawn = draw(image, keep)
      target = np.asarray(losses.patches(image, 4))
      if norm_pixels:
        target = (target - target.mean(-1, keepdims=True)) / np.sqrt(
          target.var(-1, ddof=1, keepdims=True) + 1e-6
        )
      errors.append(np.mean((np.asarray(drawn)[0, mask] - target[0, mask]) ** 2))
      flat.append(np.mean(target[0, mask].var(-1)))
  assert float(loss) == pytest.approx(np.mean(errors), rel=1e-3)
  assert float(metrics["explained"]) == pytest.approx(1 - np.mean(errors) / np.mean(flat), abs=5e-3)


@pytest.mark.parametrize("module", [mae, rgmim])
def test_the_encoder_never_sees_hidden_patches(batch, module):
  """Other pixels in hidden patches: the features stay, bit for bit."""
  method = make(module, norm_pixels=False)
  _, (loss, (_, metrics)) = loss_of(method, batch)
  keys = image_keys(jax.random.split(jax.random.key(1))[0], batch["position"], 2)
  mask = method.mask(keys, batch, 64, 48).reshape(6, 2, 8, 1, 8, 1)
  mask = jnp.broadcast_to(mask, (6, 2, 8, 4, 8, 4)).reshape(6, 2, 32, 32, 1).swapaxes(0, 1)
  changed = {**batch, "global": jnp.where(mask, batch["global"] + 1, batch["global"])}
  _, (other, (_, again)) = loss_of(method, changed)
  for name in ("feature_std", "effective_rank"):
    assert float(metrics[name]) == float(again[name])
  assert float(other) > float(loss) + 0.1


def test_masks_follow_the_image_not_its_place(batch):
  method = make()
  params, state = method.init(jax.random.key(0), spec(batch))
  parts = [
    {k: v[:, at] if v.ndim == 5 else v[at] for k, v in batch.items()}
    for at in (slice(0, 2), slice(2, 6))
  ]
  run = jax.jit(method.loss)
  whole, a, b = (run(params, state, x, jax.random.key(1), jnp.int32(0))[0] for x in (batch, *parts))
  assert float(whole) == pytest.approx((2 * float(a) + 4 * float(b)) / 6, rel=1e-5)


def test_masks_lie_in_the_lungs(batch):
  method = make(rgmim, mask_ratio=0.25, lung_ratio=0.75)
  keys = image_keys(jax.random.key(0), batch["position"], 2)
  mask = np.asarray(method.mask(keys, batch, 64, 16)).reshape(6, 2, 8, 8)
  assert (mask.sum((2, 3)) == 16).all()
  assert (mask[:5, :, :, :3].sum((2, 3)) == 16).all()
  assert mask[5, :, :, 3:].any()  # without lungs: anywhere
  dense = make(rgmim, mask_ratio=0.75, lung_ratio=0.875)
  mask = np.asarray(dense.mask(keys, batch, 64, 48)).reshape(6, 2, 8, 8)
  assert (mask[:5, :, :, :3].sum((2, 3)) == 21).all()


# Film noise is most of a small patch's deviation: what can be restored of it is a share.
@pytest.mark.parametrize(
  ("options", "loss"), [({}, 0.9), full({"mask_ratio": 0.9, "norm_pixels": False}, 0.75)]
)
def test_overfits_a_few_phantoms_without_collapsing_and_resumes(options, loss):
  log = lab.assert_fits(make(**options), loss=loss, lr=3e-3, spread=0.05, rank=1.5)
  assert log[-1]["explained"] > log[0]["explained"] + 0.1


@pytest.mark.full
def test_rgmim_overfits_a_few_phantoms_without_collapsing_and_resumes():
  log = lab.assert_fits(
    make(rgmim, mask_ratio=0.5), loss=0.95, lr=3e-3, spread=0.05, rank=1.5, masks=True
  )
  assert log[-1]["explained"] > log[0]["explained"] + 0.05


def test_health_is_reported(batch):
  metrics = {k: float(v) for k, v in loss_of(make(), batch)[1][1][1].items()}
  assert make().check_collapse(metrics) is None
  assert "config.method.mask_ratio" in make().check_collapse({**metrics, "feature_std": 0.001})


@pytest.mark.parametrize(
  "make_it, words",
  [
    (lambda: make(mask_ratio=1.0), r"config\.method\.mask_ratio=1.0 must be between"),
    (lambda: make(decoder_width=30), r"config\.method\.decoder_width=30"),
    (lambda: make(decoder_depth=0), r"config\.method\.decoder_depth=0"),
    (lambda: make(rgmim, lung_ratio=0.0), r"config\.method\.lung_ratio=0.0"),
    (
      lambda: mae.Method(encoder=resnet.Model(depth=18), clock=lab.clock()),
      r"config\.model\.name='cxrjax\.models\.resnet' cannot drop patches.*cxrjax\.models\.vit",
    ),
  ],
)
def test_mistakes(make_it, words):
  with pytest.raises(UserError, match=words):
    make_it()


def test_mistakes_that_the_data_show(batch):
  with pytest.raises(UserError, match=r"mask_ratio=0.99 leaves 0 of 64 patches"):
    make(mask_ratio=0.99).init(jax.random.key(0), spec(batch))
  with pytest.raises(UserError, match=r"config\.data\.masks='own'"):
    make(rgmim).init(jax.random.key(0), spec({"global": batch["global"]}))

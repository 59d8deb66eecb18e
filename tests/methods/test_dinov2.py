"""DINOv2 as a method: its parts as the papers have them, its masks, that it learns and resumes."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import lab
import numpy as np
import pytest
from small import full

from cxrjax.core.errors import UserError
from cxrjax.losses.koleo import koleo
from cxrjax.losses.sinkhorn import sinkhorn_knopp
from cxrjax.methods import dino
from cxrjax.methods.dinov2 import Method

HEAD = {"prototypes": 24, "hidden": 32, "bottleneck": 16}


def make(encoder=None, **options):
  return Method(
    **{
      "encoder": encoder or lab.encoder(mask_token=True, patch_size=4),
      "clock": lab.clock(4),
      "teacher_temp": 0.05,
      **HEAD,
      **options,
    }
  )


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  return {
    "global": jnp.asarray(rng.normal(size=(2, 4, 32, 32, 1)), jnp.float32),
    "local": jnp.asarray(rng.normal(size=(1, 4, 16, 16, 1)), jnp.float32),
    "position": jnp.arange(4),
    "labels": jnp.zeros((4, 0)),
  }


def spec(batch):
  return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}


def start(method, batch):
  """Parameters, and `state` with another network as teacher and centres that are not 0."""
  params, state = method.init(jax.random.key(0), spec(batch))
  noise = np.random.default_rng(1)

  def moved(x):
    return x + 0.05 * noise.normal(size=x.shape).astype(np.float32)

  params["encoder"] = jax.tree.map(moved, params["encoder"])
  return params, jax.tree.map(moved, state)


def loss(method, params, state, batch):
  return jax.jit(method.loss)(params, state, batch, jax.random.key(2), jnp.int32(0))


def masks(method, batch, key=2):
  """The masks of a step with this key."""
  return np.asarray(
    method.masks(jax.random.split(jax.random.key(key))[1], batch["position"], batch["global"].shape)
  )


@pytest.mark.parametrize(
  "centering,separate",
  [pytest.param("center", False, id="center"), full("sinkhorn", True, id="sinkhorn")],
)
def test_the_parts_are_the_papers_on_encodings_made_crop_by_crop(batch, centering, separate):
  method = make(centering=centering, separate_head=separate, patch_weight=3.0)
  params, state = start(method, batch)
  value, (new, metrics) = loss(method, params, state, batch)
  mask = masks(method, batch)
  name = "patch_head" if separate else "head"

  @jax.jit
  def encode(weights, x, mask=None):
    return method.encoder.encode(weights["encoder"], x, mask=mask)

  head = jax.jit(method.head.apply)
  teacher = [encode(state["teacher"], x) for x in batch["global"]]
  student = [encode(params, x, mask=jnp.asarray(mask[:, v])) for v, x in enumerate(batch["global"])]
  local = encode(params, batch["local"][0])

  # Class tokens: each teacher's crop against every other student's.
  logits = [head(state["teacher"]["head"], f.cls) for f in teacher]
  if centering == "center":
    p = [jax.nn.softmax((x - state["center"]) / 0.05) for x in logits]
    want = 0.9 * state["center"] + 0.1 * jnp.concatenate(logits).mean(0)
    np.testing.assert_allclose(new["center"], want, rtol=1e-4, atol=1e-6)
  else:
    p = jnp.split(sinkhorn_knopp(jnp.concatenate(logits), 0.05), 2)
    assert "center" not in state and "patch_center" not in state
  log_q = [jax.nn.log_softmax(head(params["head"], f.cls) / 0.1) for f in [*student, local]]
  pairs = [-(p[t] * log_q[s]).sum(-1).mean() for t in range(2) for s in range(3) if s != t]
  assert float(metrics["class_loss"]) == pytest.approx(float(np.mean(pairs)), rel=1e-4)

  # Patches: those masked, all of them together for the teacher, crop by crop for the loss.
  hidden = [(i, v, n) for i, v, n in np.argwhere(mask)]
  seen = jnp.stack([teacher[v].patches[i, n] for i, v, n in hidden])
  unseen = jnp.stack([student[v].patches[i, n] for i, v, n in hidden])
  logits = head(state["teacher"][name], seen)
  if centering == "center":
    p = jax.nn.softmax((logits - state["patch_center"]) / 0.05)
    want = 0.9 * state["patch_center"] + 0.1 * logits.mean(0)
    np.testing.assert_allclose(new["patch_center"], want, rtol=1e-4, atol=1e-6)
  else:
    p = sinkhorn_knopp(logits, 0.05)
  each = -(p * jax.nn.log_softmax(head(params[name], unseen) / 0.1)).sum(-1)
  want = sum(float(x) / mask[i, v].sum() for x, (i, v, _) in zip(each, hidden, strict=True)) / 8
  assert float(metrics["patch_loss"]) == pytest.approx(want, rel=1e-4)

  spread = [float(koleo(f.cls)) for f in student]
  assert float(metrics["koleo"]) == pytest.approx(np.mean(spread), rel=1e-3)
  total = metrics["class_loss"] + 3 * metrics["patch_loss"] + 0.1 * sum(spread)
  assert float(value) == pytest.approx(float(total), rel=1e-4)
  assert float(metrics["masked"]) == pytest.approx(mask.mean())


def test_without_its_parts_it_is_dino(batch):
  encoder = lab.encoder()
  method = make(encoder, patch_weight=0.0, koleo_weight=0.0, norm_last_layer=True)
  params, state = start(method, batch)
  plain = dino.Method(encoder=encoder, clock=lab.clock(4), teacher_temp=0.05, **HEAD)
  assert jax.tree.structure((params, state)) == jax.tree.structure(
    plain.init(jax.random.key(0), spec(batch))
  )
  (a, (mine, found)), (b, (dinos, expected)) = (
    loss(m, params, state, batch) for m in (method, plain)
  )
  assert float(a) == pytest.approx(float(b), rel=1e-6)
  np.testing.assert_allclose(mine["center"], dinos["center"], rtol=1e-5, atol=1e-7)
  for name, value in expected.items():
    assert float(found[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-5), name


def test_patches_alone(batch):
  method = make(class_weight=0.0, koleo_weight=0.0)
  params, state = start(method, batch)
  value, (_, metrics) = loss(method, params, state, batch)
  assert float(value) == float(metrics["patch_loss"]) > 0
  assert "teacher_entropy" not in metrics and "koleo" not in metrics


def test_half_of_every_images_crops_are_masked_by_the_ratio():
  method = make(mask_ratio=(0.2, 0.5))
  shape, seen = (2, 100, 32, 32, 1), []
  for key in range(3):
    mask = np.asarray(method.masks(jax.random.key(key), jnp.arange(100), shape))
    count = mask.sum(-1)
    assert ((count > 0).sum(1) == 1).all()  # one of two
    assert count.max() <= 32 and count[count > 0].min() >= 12  # 0.2 x 64, rounded down
    seen.append(count)
  seen = np.stack(seen)
  assert 0.4 < (seen[..., 0] > 0).mean() < 0.6  # either
  assert abs(seen[seen > 0].mean() - 0.35 * 64 + 0.5) < 1  # uniform
  # Another share: 3 crops of 4 at 0.75; at 0.3 one or two, a third of all.
  for prob, most, share in ((0.75, 3, 0.75), (0.3, 2, 0.3), (1.0, 4, 1.0)):
    found = np.asarray(
      make(mask_prob=prob).masks(jax.random.key(0), jnp.arange(100), (4, 100, 32, 32, 1))
    )
    crops = found.any(-1).sum(1)
    assert crops.max() <= most and abs(crops.mean() / 4 - share) < 0.05


def test_masks_follow_the_image_not_its_place(batch):
  method = make()
  whole = masks(method, batch)
  half = {**batch, "global": batch["global"][:, 2:], "position": batch["position"][2:]}
  np.testing.assert_array_equal(masks(method, half), whole[2:])
  assert (masks(method, batch, 3) != whole).any()


def test_the_student_alone_has_gradients(batch):
  method = make(separate_head=True)
  params, state = start(method, batch)
  key, step = jax.random.key(2), jnp.int32(0)
  grads, teacher = jax.jit(
    jax.grad(lambda p, t: method.loss(p, {**state, "teacher": t}, batch, key, step)[0], (0, 1))
  )(params, state["teacher"])
  for path, g in jax.tree_util.tree_leaves_with_path(grads):
    assert float(jnp.abs(g).max()) > 0, jax.tree_util.keystr(path)
  assert all(float(jnp.abs(g).max()) == 0 for g in jax.tree.leaves(teacher))


@pytest.mark.parametrize("centering", ["center", full("sinkhorn")])
def test_overfits_a_few_phantoms_without_collapsing_and_resumes(centering):
  method = make(
    lab.encoder(mask_token=True, depth=2),
    clock=lab.clock(),
    prototypes=32,
    hidden=64,
    bottleneck=32,
    teacher_temp=0.03,
    momentum={"start": 0.99, "end": 1.0},
    center_momentum=0.5,
    centering=centering,
  )
  log = lab.assert_fits(method, loss=0.85, spread=0.3)
  assert log[-1]["batch_entropy"] - log[-1]["teacher_entropy"] > 1.5
  assert log[-1]["kl"] < 0.9
  # Patches are told apart, and the student knows them from what is around.
  assert log[-1]["patch_batch_entropy"] - log[-1]["patch_teacher_entropy"] > 0.5
  assert log[-1]["patch_kl"] < log[0]["patch_kl"]


def test_other_backbones_without_the_patch_loss(batch):
  method = make(lab.Normed(), patch_weight=0.0)
  batch = {name: x for name, x in batch.items() if name != "local"}
  params, state = start(method, batch)
  value, (new, _) = loss(method, params, state, batch)
  assert np.isfinite(value)
  assert set(new["stats"]["bn1"]) == {"running_mean", "running_var"}


def test_collapse_is_told():
  well = {
    "teacher_entropy": 1.0,
    "batch_entropy": 2.0,
    "feature_std": 0.5,
    "patch_teacher_entropy": 1.0,
    "patch_batch_entropy": 2.0,
  }
  assert make().check_collapse(well) is None
  uniform = {**well, "patch_teacher_entropy": np.log(24)}
  assert (
    make().check_collapse(uniform).startswith("of the masked patches, the teacher's entropy is")
  )
  assert make(patch_weight=0.0).check_collapse(uniform) is None
  assert "all images get the same" in make().check_collapse({**well, "feature_std": 0.01})


@pytest.mark.parametrize(
  "options,message",
  [
    ({"koleo_weight": -1.0}, r"config\.method\.koleo_weight=-1"),
    ({"class_weight": 0.0, "patch_weight": 0.0}, "leave nothing to learn"),
    ({"centering": "sinkhorm"}, "sinkhorm.*did you mean 'sinkhorn'"),
    ({"sinkhorn_iterations": 0}, r"config\.method\.sinkhorn_iterations=0"),
    ({"mask_prob": 0.0}, r"config\.method\.mask_prob=0"),
    ({"mask_ratio": (0.5, 0.1)}, r"config\.method\.mask_ratio"),
    ({"encoder": lab.encoder()}, r"config\.model\.mask_token=True"),
    ({"encoder": lab.Normed()}, r"config\.model\.name='lab' cannot mask patches"),
  ],
)
def test_mistakes(options, message):
  with pytest.raises(UserError, match=message):
    make(**options)


def test_the_papers_learning_rates():
  path = pathlib.Path(__file__).parents[2] / "configs" / "dinov2.py"
  found = importlib.util.spec_from_file_location("config", path)
  module = importlib.util.module_from_spec(found)
  found.loader.exec_module(module)
  paper = module.get_config("paper").optimizer
  assert (paper.layer_decay, paper.lr_scale) == (0.9, (("encoder/patch/", 0.2),))
  demo = module.get_config("").optimizer
  assert (demo.layer_decay, demo.lr_scale) == (1.0, ())

"""The optimiser against AdamW written out in NumPy, with DINO's freezing and clipping."""

import importlib
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import full

from cxrjax.core.durations import Clock
from cxrjax.core.errors import UserError
from cxrjax.models.heads import DinoHead
from cxrjax.training import lars, sharding
from cxrjax.training.optimizer import Optimizer, path_names

CLOCK = Clock(total_steps=10, steps_per_epoch=2.0, batch_size=128)
PARAMS = {
  "body": {"kernel": jnp.array([[1.0, -2.0], [3.0, 4.0]]), "bias": jnp.array([0.5, -0.5])},
  "prototypes": {"kernel": jnp.array([[1.0, 1.0]])},
}


def run(optimizer, steps, grads):
  params, state = PARAMS, optimizer.init(PARAMS)
  for t in range(steps):
    params, state, metrics = optimizer.update(grads(t), state, params, jnp.int32(t))
  return params, metrics


def grads(t):
  rng = np.random.default_rng(t)
  return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), PARAMS)


def adamw(p, gs, lrs, decays, first=0, b1=0.9, b2=0.999, eps=1e-8):
  """Torch's AdamW for one tensor whose gradient is None before step `first`."""
  m = v = np.zeros_like(p)
  n = 0
  for t, g in enumerate(gs):
    if t < first:
      continue
    n += 1
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    p = p * (1 - lrs[t] * decays[t])
    p = p - lrs[t] * (m / (1 - b1**n)) / (np.sqrt(v / (1 - b2**n)) + eps)
  return p


def test_is_adamw_with_no_decay_of_vectors_and_frozen_prototypes():
  optimizer = Optimizer(
    clock=CLOCK,
    lr={"start": 0.1, "end": 0.01},
    lr_batch=256,
    clip=0,
    weight_decay={"start": 0.04, "end": 0.4},
    freeze=(("prototypes", "1 epochs"),),
  )
  got, _ = run(optimizer, 6, grads)
  i = np.arange(6)
  # Scaled by 128 / 256; the final value is not scaled.
  lrs = 0.01 + 0.5 * (0.05 - 0.01) * (1 + np.cos(np.pi * i / 10))
  decays = 0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * i / 10))

  def want(path, decay, first=0):
    leaf = lambda tree: np.asarray(tree[path[0]][path[1]], np.float64)  # noqa: E731
    return adamw(leaf(PARAMS), [leaf(grads(t)) for t in range(6)], lrs, decay, first)

  np.testing.assert_allclose(got["body"]["kernel"], want(("body", "kernel"), decays), rtol=1e-5)
  np.testing.assert_allclose(got["body"]["bias"], want(("body", "bias"), 0 * decays), rtol=1e-5)
  np.testing.assert_allclose(
    got["prototypes"]["kernel"], want(("prototypes", "kernel"), decays, first=2), rtol=1e-5
  )


def flat(tree):
  return {
    name: np.asarray(a, np.float64)
    for name, a in zip(jax.tree.leaves(path_names(tree)), jax.tree.leaves(tree), strict=True)
  }


@pytest.mark.parametrize("trust", [None, 1e-3])
def test_sgd_and_lars_put_weight_decay_into_the_gradient(trust):
  name, options = ("optax.trace", {"decay": 0.9})
  if trust:
    name, options = "cxrjax.training.lars", {"momentum": 0.9, "trust": trust}
  got, _ = run(
    Optimizer(
      clock=CLOCK,
      name=name,
      options=options,
      lr={"start": 0.2, "end": 0.0},
      lr_batch=0,
      clip=0,
      weight_decay=0.1,
      coupled_decay=True,
    ),
    5,
    grads,
  )
  got = flat(got)
  for path, p in flat(PARAMS).items():
    v = 0
    for t in range(5):
      g = flat(grads(t))[path]
      if p.ndim > 1:  # else neither weight decay nor adaptation
        g = g + 0.1 * p
        if trust:
          g = g * trust * np.linalg.norm(p) / np.linalg.norm(g)
      v = 0.9 * v + g
      p = p - 0.1 * (1 + np.cos(np.pi * t / 10)) * v
    np.testing.assert_allclose(got[path], p, rtol=1e-5, atol=1e-6)


def test_lars_moves_a_share_of_the_norm_whatever_the_gradients_size():
  p = {"kernel": jnp.array([[3.0, 4.0]]), "new": jnp.zeros((1, 2)), "idle": jnp.ones((1, 2))}
  g = {"kernel": jnp.array([[0.0, 1e-6]]), "new": jnp.ones((1, 2)), "idle": jnp.zeros((1, 2))}
  direction, _ = lars.transform(trust=0.01).update(g, lars.transform().init(p), p)
  np.testing.assert_allclose(direction["kernel"], [[0.0, 0.05]], rtol=1e-5)
  np.testing.assert_array_equal(direction["new"], g["new"])
  np.testing.assert_array_equal(direction["idle"], 0)


def test_lars_thaws():
  optimizer = Optimizer(
    clock=CLOCK,
    name="cxrjax.training.lars",
    coupled_decay=True,
    clip=0,
    freeze=(("prototypes", "1 epochs"),),
  )
  got, _ = run(optimizer, 2, grads)
  np.testing.assert_array_equal(got["prototypes"]["kernel"], PARAMS["prototypes"]["kernel"])
  got, _ = run(optimizer, 3, grads)
  assert (np.asarray(got["prototypes"]["kernel"]) != 1).all()


def test_frozen_parameters_do_not_move():
  optimizer = Optimizer(clock=CLOCK, freeze=(("prototypes", "1 epochs"),))
  got, _ = run(optimizer, 2, grads)
  np.testing.assert_array_equal(got["prototypes"]["kernel"], PARAMS["prototypes"]["kernel"])
  got, _ = run(optimizer, 3, grads)
  assert (np.asarray(got["prototypes"]["kernel"]) != 1).all()


def test_lr_scale_by_rule():
  slow = Optimizer(clock=CLOCK, lr=0.1, lr_batch=0, clip=0, lr_scale=(("body", 0.0),))
  got, metrics = run(slow, 3, grads)
  np.testing.assert_array_equal(got["body"]["kernel"], PARAMS["body"]["kernel"])
  assert (np.asarray(got["prototypes"]["kernel"]) != 1).all()
  assert metrics["lr"] == pytest.approx(0.1)


def test_some_keep_the_learning_rate_constant():
  options = {
    "clock": CLOCK,
    "lr_batch": 256,
    "clip": 0,
    "weight_decay": 0.0,
    "name": "optax.trace",
    "options": {"decay": 0.0},
  }
  falling = Optimizer(**options, lr={"start": 0.2, "end": 0.0, "warmup": "4 steps"})
  constant = Optimizer(
    **options, lr={"start": 0.2, "end": 0.0, "warmup": "4 steps"}, lr_constant=("prototypes",)
  )
  (got, _), (other, metrics) = (run(o, 10, grads) for o in (constant, falling))
  np.testing.assert_array_equal(got["body"]["kernel"], other["body"]["kernel"])
  total = sum(np.asarray(grads(t)["prototypes"]["kernel"]) for t in range(10))
  np.testing.assert_allclose(got["prototypes"]["kernel"], 1 - 0.1 * total, rtol=1e-5)
  assert metrics["lr"] < 0.01


@pytest.mark.parametrize("clip_per", ["tensor", "module"])
def test_clipping(clip_per):
  """Of each tensor, or of all of a module together; a direction that is the gradient itself."""
  g = {
    "body": {"kernel": jnp.array([[30.0, 40.0]]), "bias": jnp.array([0.3, 0.4])},
    "head": {"kernel": jnp.array([[0.3, 0.4]])},
  }
  optimizer = Optimizer(
    clock=CLOCK,
    name="optax.identity",
    lr=1.0,
    lr_batch=0,
    clip=3.0,
    clip_per=clip_per,
    weight_decay=0.0,
  )
  zeros = jax.tree.map(jnp.zeros_like, g)
  moved, _, _ = optimizer.update(g, optimizer.init(zeros), zeros, jnp.int32(0))
  norm = np.sqrt(50**2 + 0.5**2) if clip_per == "module" else 50
  np.testing.assert_allclose(moved["body"]["kernel"], [[-90 / norm, -120 / norm]], rtol=1e-5)
  small = 3 / norm if clip_per == "module" else 1
  np.testing.assert_allclose(moved["body"]["bias"], [-0.3 * small, -0.4 * small], rtol=1e-5)
  np.testing.assert_array_equal(moved["head"]["kernel"], -g["head"]["kernel"])


@pytest.mark.parametrize("limit", [1.0, 100.0])
def test_clipping_by_the_global_norm_is_that_of_optax(limit):
  optimizer = Optimizer(
    clock=CLOCK, lr=0.1, lr_batch=0, clip=limit, clip_per="global", weight_decay=0.01
  )
  chain = optax.chain(
    optax.clip_by_global_norm(limit),
    optax.scale_by_adam(),
    optax.add_decayed_weights(0.01, mask=lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree)),
    optax.scale_by_learning_rate(0.1),
  )
  got, metrics = run(optimizer, 4, grads)
  want, state = PARAMS, chain.init(PARAMS)
  for t in range(4):
    updates, state = chain.update(grads(t), state, want)
    want = optax.apply_updates(want, updates)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(grads(3))))


def test_held_parameters_gather_moments():
  """As torch's AdamW with a learning rate of 0 for that long."""
  optimizer = Optimizer(
    clock=CLOCK, lr=0.1, lr_batch=0, clip=0, weight_decay=0.04, hold=(("prototypes", "1 epochs"),)
  )
  got, _ = run(optimizer, 2, grads)
  np.testing.assert_array_equal(got["prototypes"]["kernel"], PARAMS["prototypes"]["kernel"])
  got, _ = run(optimizer, 5, grads)
  path = lambda tree: np.asarray(tree["prototypes"]["kernel"], np.float64)  # noqa: E731
  want = adamw(path(PARAMS), [path(grads(t)) for t in range(5)], [0, 0, 0.1, 0.1, 0.1], [0.04] * 5)
  np.testing.assert_allclose(got["prototypes"]["kernel"], want, rtol=1e-5)


def test_vectors_may_decay():
  optimizer = Optimizer(
    clock=CLOCK, lr=0.1, lr_batch=0, clip=0, weight_decay=0.5, decay_vectors=True
  )
  got, _ = run(optimizer, 4, grads)
  path = lambda tree: np.asarray(tree["body"]["bias"], np.float64)  # noqa: E731
  want = adamw(path(PARAMS), [path(grads(t)) for t in range(4)], [0.1] * 4, [0.5] * 4)
  np.testing.assert_allclose(got["body"]["bias"], want, rtol=1e-4)


def test_learnt_norms_of_prototypes_decay():
  """In torch they are a column, [K, 1], and DINO spares biases and what has one dimension."""
  head = DinoHead(in_dim=4, prototypes=5, hidden=3, bottleneck=2, norm_last_layer=False)
  params = head.init(jax.random.key(0))
  params["mlp"] = jax.tree.map(jnp.ones_like, params["mlp"])
  optimizer = Optimizer(clock=CLOCK, lr=0.1, lr_batch=0, weight_decay=0.5)
  still = jax.tree.map(jnp.zeros_like, params)
  moved, _, _ = optimizer.update(still, optimizer.init(params), params, jnp.int32(0))
  np.testing.assert_allclose(moved["prototypes"]["scale"].ravel(), np.full(5, 0.95), rtol=1e-6)
  np.testing.assert_array_equal(moved["mlp"]["layers"]["0"]["bias"], np.ones(3))


def test_the_learning_rate_by_the_root_of_the_batch():
  options = {"clock": CLOCK, "lr": {"start": 0.1, "end": 0.0}, "lr_batch": 512}
  assert float(Optimizer(**options).schedules["lr"](0)) == pytest.approx(0.025)
  rooted = Optimizer(**options, lr_rule="sqrt")
  assert float(rooted.schedules["lr"](0)) == pytest.approx(0.05)


def test_paths():
  assert path_names(PARAMS)["body"]["kernel"] == "body/kernel"


def test_mistakes():
  with pytest.raises(UserError, match="matches no parameter; they are named like 'body/bias'"):
    Optimizer(clock=CLOCK, freeze=(("protypes", "1 epochs"),)).check(PARAMS)
  with pytest.raises(UserError, match="is no regular expression"):
    Optimizer(clock=CLOCK, lr_scale=(("(", 1.0),))
  with pytest.raises(UserError, match="lr_constant: 'predictr' matches no parameter"):
    Optimizer(clock=CLOCK, lr_constant=("predictr",)).check(PARAMS)
  with pytest.raises(UserError, match=r"config\.optimizer\.name='optax\.scale_by_adm'"):
    Optimizer(clock=CLOCK, name="optax.scale_by_adm")
  with pytest.raises(UserError, match=r"config\.optimizer\.options\.beta1 is not an option"):
    Optimizer(clock=CLOCK, options={"beta1": 0.9})
  with pytest.raises(UserError, match=r"clip_per='all' is unknown; valid: tensor, module, global"):
    Optimizer(clock=CLOCK, clip_per="all")
  with pytest.raises(UserError, match=r"optimizer\.lr_rule='root' is unknown; valid:"):
    Optimizer(clock=CLOCK, lr_rule="root")
  with pytest.raises(UserError, match="hold: 'protypes' matches no parameter"):
    Optimizer(clock=CLOCK, hold=(("protypes", "1 epochs"),)).check(PARAMS)


@pytest.mark.parametrize(
  "options, message",
  [
    ({"lr_scale": ((1, 0.5),)}, "lr_scale: 1 is no text"),
    ({"lr_scale": {1: 0.5}}, r'lr_scale=.* must be like \(\("regex", value\)'),
    ({"lr_scale": (("^body/", -1),)}, "lr_scale has -1 for"),
    ({"lr_scale": (("^body/", "2"),)}, "lr_scale has '2' for"),
    ({"lr_scale": (("^body/", math.nan),)}, "lr_scale has nan for"),
    ({"lr_scale": (("^body/", True),)}, "lr_scale has True for"),
    ({"lr_scale": "body"}, "lr_scale='body' must be like"),
    ({"lr_scale": ("ab",)}, "must be like"),
    ({"freeze": ((1, "1 epochs"),)}, "freeze: 1 is no text"),
    ({"freeze": (("body", "sometimes"),)}, "config.optimizer.freeze='sometimes'"),
    ({"lr_constant": (1,)}, "lr_constant: 1 is no text"),
    ({"lr_constant": 3}, "lr_constant=3 must be like"),
    ({"lr": -1e-3}, "optimizer.lr has -0.001"),
    ({"lr": {"start": 1e-3, "end": -1}}, "lr has -1"),
    ({"weight_decay": -0.1}, "weight_decay has -0.1"),
  ],
)
def test_rules_and_signs(options, message):
  with pytest.raises(UserError, match=message) as error:
    Optimizer(clock=CLOCK, **options)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "rules", ["fsdp", ((1, "fsdp"),), (("(", "fsdp"),), ((".*",),), ((".*", 3),)]
)
def test_rules_of_the_mesh(rules):
  with pytest.raises(UserError, match=r"config\.mesh\.rules"):
    sharding.check_rules(rules)
  assert sharding.check_rules(((".*", "fsdp"),)) == ((".*", "fsdp"),)


def test_layers_near_the_input_learn_slower():
  params = {
    "encoder": {
      "patch": {"kernel": jnp.ones((2, 2))},
      "blocks": {"0": {"w": jnp.ones((2, 2))}, "1": {"w": jnp.ones((2, 2))}},
      "norm": {"scale": jnp.ones(2)},
    },
    "head": {"kernel": jnp.ones((2, 2))},
  }
  optimizer = Optimizer(
    clock=CLOCK,
    name="optax.identity",
    lr=0.1,
    lr_batch=0,
    clip=0,
    weight_decay=0.0,
    layer_decay=0.5,
    layer_names=("patch/", "blocks/0/", "blocks/1/"),
    lr_scale=(("blocks/1", 2.0),),
  )
  grads = jax.tree.map(jnp.ones_like, params)
  moved, _, _ = optimizer.update(grads, optimizer.init(params), params, jnp.int32(0))
  step = jax.tree.map(lambda a, b: float(jnp.abs(b - a).max()), params, moved)
  encoder = step["encoder"]
  assert step["head"]["kernel"] == pytest.approx(0.1)
  assert encoder["norm"]["scale"] == pytest.approx(0.1)
  assert encoder["blocks"]["1"]["w"] == pytest.approx(0.1 * 0.5 * 2.0)
  assert encoder["blocks"]["0"]["w"] == pytest.approx(0.1 * 0.25)
  assert encoder["patch"]["kernel"] == pytest.approx(0.1 * 0.125)
  for wrong in (0.0, 1.5):
    with pytest.raises(UserError, match="layer_decay"):
      Optimizer(clock=CLOCK, layer_decay=wrong)


@pytest.mark.parametrize(
  "name, options",
  [
    ("vit", {"variant": "Nu", "registers": 2, "mask_token": True}),
    ("resnet", {"depth": 18}),
    full("densenet", {}),
    full("inception", {}),
    full("vitae", {}),
  ],
)
def test_every_parameter_of_an_encoder_belongs_to_one_layer(name, options):
  encoder = importlib.import_module(f"cxrjax.models.{name}").Model(**options)
  params = jax.eval_shape(encoder.init, jax.random.key(0))
  for path in jax.tree.leaves(path_names(params)):
    layers = [bool(re.match(regex, path)) for regex in encoder.layer_names]
    assert sum(layers) == (0 if path.startswith("norm/") else 1), path

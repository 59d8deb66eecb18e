"""MC-SSL: which network sees what, its three losses, and that it learns."""

import jax
import jax.numpy as jnp
import lab
import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.methods.mcssl import Method

CORRUPTION = {"share": 0.5, "fill": ("zeros",)}


def make(**options):
  return Method(
    **{
      "encoder": lab.encoder(),
      "clock": lab.clock(4),
      "prototypes": 16,
      "hidden": 32,
      "bottleneck": 16,
      "corruption": CORRUPTION,
      "teacher_temp": 0.05,
      **options,
    }
  )


@pytest.fixture(scope="module")
def batch():
  x = np.random.default_rng(0).normal(size=(2, 4, 32, 32, 1))
  y = np.random.default_rng(1).normal(size=(3, 4, 16, 16, 1))
  return {
    "global": jnp.asarray(x, jnp.float32),
    "local": jnp.asarray(y, jnp.float32),
    "position": jnp.arange(4),
    "index": jnp.arange(4),
    "labels": jnp.zeros((4, 0)),
  }


def spec(batch):
  return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}


@pytest.fixture(scope="module")
def initial(batch):
  """Parameters, and `state` with another network as teacher and centres that are not 0."""
  params, state = make().init(jax.random.key(0), spec(batch))
  return params, {
    **state,
    "teacher": jax.tree.map(lambda x: 1.1 * x + 0.01, state["teacher"]),
    "center": jnp.linspace(-0.1, 0.1, 16),
    "data_center": jnp.linspace(0.2, -0.2, 16),
  }


def test_the_loss_is_the_sum_of_three(batch, initial):
  method = make(data_weight=2.0, pixel_weight=3.0)
  params, state = initial
  loss, (new, metrics) = jax.jit(method.loss)(params, state, batch, jax.random.key(1), jnp.int32(0))
  seen = method.restorer.corrupted(batch, jax.random.split(jax.random.key(1))[0])
  corrupted = np.asarray(seen.images).reshape(4, 2, 32, 32, 1)

  @jax.jit
  def logits(weights, images):
    found = method.encoder.encode(weights["encoder"], images)
    return (
      method.head.apply(weights["head"], found.cls),
      method.head.apply(weights["data_head"], found.patches.reshape(-1, 64)),
    )

  def labels(weights, images):
    """Logits of the image and of its patches."""
    return [np.asarray(x, np.float64) for x in logits(weights, jnp.asarray(images))]

  def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)

  student = [labels(params, corrupted[:, v]) for v in range(2)]
  student += [labels(params, x) for x in batch["local"]]
  teacher = [labels(state["teacher"], x) for x in batch["global"]]
  p = [softmax((t[0] - np.asarray(state["center"])) / 0.05) for t in teacher]
  of_class = np.mean(
    [
      -(p[i] * np.log(softmax(student[j][0] / 0.1))).sum(-1).mean()
      for i in range(2)
      for j in range(5)
      if i != j
    ]
  )
  q = [softmax((t[1] - np.asarray(state["data_center"])) / 0.05) for t in teacher]
  of_data = np.mean(
    [-(q[v] * np.log(softmax(student[v][1] / 0.1))).sum(-1).mean() for v in range(2)]
  )
  restorer = method.restorer
  image = np.asarray(
    jax.jit(
      lambda p, x: restorer.restore(
        p, method.encoder.encode(p["encoder"], x, intermediates=restorer.intermediates), x.shape
      )
    )(params, seen.images)
  )
  mse = np.square(image - np.asarray(seen.clean))[np.asarray(seen.mask)].mean()
  for name, want in (("class_loss", of_class), ("data_loss", of_data), ("reconstruction", mse)):
    assert float(metrics[name]) == pytest.approx(want, rel=2e-3), name
  assert float(loss) == pytest.approx(of_class + 2 * of_data + 3 * mse, rel=2e-3)
  for name, at in (("center", 0), ("data_center", 1)):
    mean = np.mean([t[at].mean(0) for t in teacher], axis=0)
    np.testing.assert_allclose(new[name], 0.9 * state[name] + 0.1 * mean, atol=1e-4)


def test_the_teacher_follows_in_all_that_it_has(batch, initial):
  method = make(momentum=0.75)
  params, state = initial
  after = method.after_update(params, state, jnp.int32(0))
  assert set(after["teacher"]) == {"encoder", "head", "data_head"}
  jax.tree.map(
    lambda new, t, s: np.testing.assert_allclose(new, 0.75 * t + 0.25 * s, rtol=1e-5, atol=1e-6),
    after["teacher"],
    state["teacher"],
    {k: params[k] for k in after["teacher"]},
  )
  assert method.encoder_params(params, after) is after["teacher"]["encoder"]


def test_overfits_a_few_phantoms_without_collapsing_and_resumes():
  method = make(clock=lab.clock(), momentum=0.9, batch_norm=True)
  log = lab.assert_fits(method, lr=3e-3, loss=0.8, spread=0.2)
  assert log[-1]["explained"] > 0.1 and log[-1]["kl"] < 0.7 * log[0]["kl"]


def test_mistakes(batch):
  for options, words in (
    ({"data_weight": -1.0}, r"config\.method\.data_weight=-1"),
    ({"corruption": {"shar": 1}}, r"config\.method\.corruption\.shar is not an option"),
    ({"layers": ()}, r"config\.method\.layers"),
    ({"prototypes": 0}, r"config\.method\.prototypes=0"),
  ):
    with pytest.raises(UserError, match=words):
      make(**options)
  with pytest.raises(UserError, match=r"config\.views\.global_crops=2"):
    make().init(jax.random.key(0), spec({"global": batch["global"][:1]}))

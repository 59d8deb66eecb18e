"""What methods that learn from labels and from images without them have in common."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.data.sources.phantom import Source
from cxrjax.data.splits import partial_labels
from cxrjax.methods import bke, mean_teacher
from cxrjax.methods.base import Labels
from cxrjax.models.base import Encoder
from cxrjax.models.features import Features
from cxrjax.training.labels import labels_of
from tests.methods import lab

TWO = Labels(("normal", "opacity"), True, (4, 4), (8, 8))
FINDINGS = Labels(("edema", "effusion", "nodule"), False, (4, 4, 0), (8, 8, 0))
KNOWN = 8  # of sixteen images
VIEWS = {"mean_teacher": 2, "bke": 1}


@dataclasses.dataclass(frozen=True)
class Linear(Encoder):
  """The least encoder: a linear map of the pixels."""

  features: int = 8

  def init(self, key):
    return {"kernel": jax.random.normal(key, (32 * 32, self.features)) / 32}

  def encode(self, params, x, **_):
    return Features(x.reshape(len(x), -1) @ params["kernel"], None, {}, None)


def method(name, labels=TWO, steps=lab.STEPS, **options):
  module = {"mean_teacher": mean_teacher, "bke": bke}[name]
  ours = {"momentum": 0.9, "consistency": 1.0} if name == "mean_teacher" else {}
  return module.Method(
    encoder=lab.encoder(depth=1), clock=lab.clock(steps), labels=labels, **{**ours, **options}
  )


def batch(labels=TWO):
  """Sixteen phantoms, of the first eight of which the labels are known."""
  k, i = len(labels.classes), np.arange(lab.IMAGES)
  if labels.exclusive:
    y = np.eye(k)[i % k]
  else:
    y = np.stack([i % 2, i // 2 % 2, np.full(lab.IMAGES, np.nan)], 1).astype(float)
  y[KNOWN:] = np.nan
  return {**lab.phantoms(), "labels": jnp.asarray(y, jnp.float32)}


def views(name, data):
  """What the loss sees of fetched images."""
  x = (data["image"] / 255.0 - 0.5) / 0.25
  moved = [x, jnp.flip(x, 2)][: VIEWS[name]]
  return {
    "global": jnp.stack(moved),
    "labels": data["labels"],
    "index": data["index"],
    "position": jnp.arange(lab.IMAGES, dtype=jnp.int32),
  }


def started(name, labels=TWO, **options):
  learner = dataclasses.replace(method(name, labels, **options), encoder=Linear())
  params, state = learner.init(jax.random.key(0), jax.eval_shape(lambda: views(name, batch())))
  params["head"]["kernel"] *= 50  # predictions that differ
  return learner, params, state


@pytest.mark.parametrize("name, labels", [("mean_teacher", FINDINGS), ("bke", TWO)])
def test_learns_few_labels_by_heart_and_resumes(name, labels):
  learner, data = method(name, labels), batch(labels)
  recipe = lab.recipe(global_crops=VIEWS[name])
  work = lab.train_step(learner, recipe, 2e-3)
  state, log = lab.fit(work, data)
  assert all(np.isfinite(list(m.values())).all() for m in log), log
  assert log[-1]["supervised"] < 0.2 and log[-1]["accuracy"] == 1
  assert log[-1]["known_labels"] == pytest.approx(0.5 if labels.exclusive else 1 / 3)
  assert learner.check_collapse(log[-1]) is None
  params = learner.network_params(state["params"], state["method_state"])
  p = np.asarray(learner.predict(params, (data["image"] / 255.0 - 0.5) / 0.25))
  y = np.asarray(data["labels"])
  known = ~np.isnan(y)
  assert ((p > 0.5) == (y == 1))[known].all()
  lab.resumes(work, data)


@pytest.mark.parametrize("name", VIEWS)
def test_the_gradient_depends_on_images_without_labels(name):
  data = batch()
  other = data | {"image": data["image"].at[KNOWN:].set(data["image"][KNOWN:][::-1] // 2)}
  learner, params, state = started(name)
  found = jax.jit(
    jax.value_and_grad(
      lambda p, x: learner.loss(p, state, x, jax.random.key(1), jnp.int32(50)), has_aux=True
    )
  )
  (loss, (_, metrics)), g = found(params, views(name, data))
  (loss2, (_, metrics2)), g2 = found(params, views(name, other))
  assert float(metrics2["supervised"]) == pytest.approx(float(metrics["supervised"]), rel=1e-5)
  assert abs(float(loss2 - loss)) > 1e-4
  apart = [
    float(jnp.abs(x - y).max())
    for x, y in zip(jax.tree.leaves(g), jax.tree.leaves(g2), strict=True)
  ]
  assert max(apart) > 1e-3 * max(float(jnp.abs(x).max()) for x in jax.tree.leaves(g))


def test_hidden_labels_leave_no_trace():
  source, rows = Source(n=32, size=32), np.array([0, 3, 4, 9, 12, 30])
  lying = Source(n=32, size=32)
  labels = np.array(source.table.labels)
  hidden = np.setdiff1d(np.arange(32), rows)
  labels[hidden] = 1 - labels[hidden]
  lying.table = dataclasses.replace(source.table, labels=labels)
  a, b = (partial_labels.Labelled(s, rows, 0.25) for s in (source, lying))
  assert a.table.ids == b.table.ids and a.info == b.info
  np.testing.assert_array_equal(a.table.labels, b.table.labels)
  np.testing.assert_array_equal(a[20].labels, [np.nan, np.nan])
  found = labels_of(a.table, a.info)
  truth = np.asarray(source.table.labels)[rows].sum(0).astype(int).tolist()
  assert found == Labels(("normal", "opacity"), True, tuple(truth), (6, 6))
  weights = method("bke", found, class_weights="balanced")._weights[:, 1]
  np.testing.assert_allclose(weights * truth, 3)


@pytest.mark.parametrize("labels", [TWO, FINDINGS], ids=["classes", "findings"])
def test_ensembling_is_the_papers_formula(labels):
  learner, params, state = started("bke", labels, omega=0.3, temperature=2.0, weight=0.7)
  data = batch(labels)
  loss, (_, metrics) = jax.jit(learner.loss)(
    params, state, views("bke", data), jax.random.key(1), jnp.int32(50)
  )
  x = views("bke", data)["global"][0]
  f = np.asarray(learner.encoder.encode(params["encoder"], x).cls, np.float64)
  z = f @ np.asarray(params["head"]["kernel"], np.float64) + np.asarray(params["head"]["bias"])

  def one(s):
    return np.exp(s) / np.exp(s).sum(1, keepdims=True) if labels.exclusive else 1 / (1 + np.exp(-s))

  unit = f / np.linalg.norm(f, axis=1, keepdims=True)
  a = np.exp(unit @ unit.T) * (1 - np.eye(lab.IMAGES))
  a /= a.sum(1, keepdims=True)
  p = one(z / 2)
  q = p
  for _ in range(200):
    q = 0.3 * a @ q + 0.7 * p
  y = np.asarray(data["labels"])
  known = ~np.isnan(y)
  if labels.exclusive:
    soft = 4 * (q * np.log(q / p)).sum(1).mean()
    hard = -np.log(one(z)[y == 1]).mean()
  else:
    soft = 4 * (q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))).mean()
    s = one(z)
    hard = -np.log(np.where(y == 1, s, 1 - s)[known]).mean()
  assert float(metrics["ensembled"]) == pytest.approx(soft, rel=1e-3)
  assert float(loss) == pytest.approx(hard + 0.7 * soft, rel=1e-4)


def test_consistency_is_the_difference_to_the_moving_average():
  learner, params, state = started(
    "mean_teacher", consistency={"kind": "sigmoid", "start": 0.0, "end": 8.0, "warmup": "100 %"}
  )
  moved = jax.tree.map(lambda x: x * 1.1 + 0.01, state["average"])
  data = views("mean_teacher", batch())
  loss, (_, metrics) = jax.jit(learner.loss)(
    params, {**state, "average": moved}, data, jax.random.key(1), jnp.int32(50)
  )
  student = np.asarray(learner.predict(params, data["global"][0]), np.float64)
  teacher = np.asarray(learner.predict(moved, data["global"][1]), np.float64)
  apart = ((student - teacher) ** 2).mean()
  y = np.asarray(data["labels"])
  hard = -np.log(student[y == 1]).mean()
  assert float(metrics["difference"]) == pytest.approx(apart, rel=1e-4)
  assert float(loss) == pytest.approx(hard + 8 * np.exp(-5 * 0.5**2) * apart, rel=1e-4)


def test_the_teacher_is_judged_and_has_running_statistics_of_its_own():
  learner = dataclasses.replace(method("mean_teacher"), encoder=lab.Normed())
  state, _ = lab.fit(lab.train_step(learner, lab.recipe(), 1e-2), batch(), 40)
  method_state = state["method_state"]
  judged = learner.network_params(state["params"], method_state)
  running = judged["encoder"]["bn1"]["running_mean"]
  np.testing.assert_array_equal(running, method_state["teacher_stats"]["bn1"]["running_mean"])
  assert jnp.abs(running - method_state["stats"]["bn1"]["running_mean"]).max() > 1e-4
  assert jnp.abs(judged["head"]["kernel"] - state["params"]["head"]["kernel"]).max() > 1e-4


@pytest.mark.parametrize(
  "name, options, words",
  [
    ("mean_teacher", {"momentum": 0.0}, "no teacher"),
    ("mean_teacher", {"mixup": 0.2}, "config.method.mixup"),
    ("bke", {"omega": 1.0}, "config.method.omega"),
    ("bke", {"temperature": 0.0}, "config.method.temperature"),
    ("bke", {"mixup": 0.2}, "config.method.mixup"),
    ("bke", {"labels": Labels((), True, (), ())}, "labelled source"),
  ],
)
def test_mistakes_are_named(name, options, words):
  with pytest.raises(UserError, match=words):
    method(name, **options)


def test_mean_teacher_needs_two_views():
  spec = {"global": jax.ShapeDtypeStruct((1, 16, 32, 32, 1), jnp.float32)}
  with pytest.raises(UserError, match=r"config\.views\.global_crops=2"):
    method("mean_teacher").init(jax.random.key(0), spec)

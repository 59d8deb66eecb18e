"""The evaluator end to end: right numbers, no state, undefined where it must be."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.config.instantiate import build
from cxrjax.core.errors import UserError
from cxrjax.evals import classification_metrics, knn, linear
from cxrjax.evals.probe import Evaluator
from cxrjax.metrics import classification, roc

PARAMS = np.random.default_rng(0).normal(size=(256, 12)).astype(np.float32) / 16


def encode(params, x):
  return jnp.tanh(x.reshape(x.shape[0], -1) @ params)


@pytest.fixture
def ready(fake, tmp_path):
  source = fake(train=fake.split("train", 160), test=fake.split("test", 80, effect=30.0))
  evaluator = Evaluator(data=source, size=16, ks=(1, 5), batch=32)
  return evaluator, evaluator.load(cache_dir=tmp_path, progress=False)


def features(data, part):
  key, rows = data.rows[part]
  x = (data.images[key].pixels[rows].astype(np.float64) / 255 - 0.5) / 0.25
  return np.tanh(x.reshape(len(x), -1) @ PARAMS).astype(np.float32)


def test_the_numbers_are_those_of_the_pieces(ready):
  evaluator, data = ready
  result = evaluator.run(encode, PARAMS, data)
  x = {part: features(data, part) for part in ("train", "val", "test")}
  y = {part: data.labels(part) for part in x}
  near = knn.knn_scores(x["train"], y["train"], x["test"], (1, 5))
  choice = linear.choose(x["train"], y["train"], x["val"], y["val"], True)
  scores = choice.probe.scores(x["test"])[:, 1]
  np.testing.assert_allclose(result.arrays["knn5"], near[5], atol=1e-4)
  np.testing.assert_allclose(result.arrays["linear"][:, 1], scores, atol=1e-3)
  truth, patients = y["test"].argmax(1), data.patients("test")
  assert result.metrics["linear/auroc"].value == pytest.approx(
    roc.auroc(scores, truth, patients).value, abs=2e-3
  )
  assert result.facts["linear"]["l2"] == choice.l2
  threshold = classification.best_threshold(choice.probe.scores(x["val"])[:, 1], y["val"][:, 1])
  assert result.facts["linear"]["threshold"] == pytest.approx([threshold], abs=1e-2)
  assert "balanced_accuracy" in result.facts["linear"]["threshold_for"]
  # Thresholds come from validation, and decide the test images' metrics.
  used = result.facts["linear"]["threshold"][0]
  called = (result.arrays["linear"][:, 1] >= used).astype(int)
  assert result.metrics["linear/f1"] == classification.score("f1", called, truth, 2, patients)
  assert set(result.metrics) == {
    f"{m}/{k}"
    for m in ("knn1", "knn5", "linear")
    for k in ("auroc", "accuracy", "f1", "balanced_accuracy")
  }
  assert result.metrics["linear/auroc"].value > 0.8
  assert result.facts["health"]["effective_rank"] > 1
  json.dumps(result.facts, allow_nan=False)
  # A checkpoint is chosen by validation images.
  votes = knn.knn_scores(x["train"], y["train"], x["val"], (1, 5))
  assert result.scores == pytest.approx(
    {
      "linear/auroc": max(area for _, area, _ in choice.table),
      **{f"knn{k}/auroc": roc.auroc(v[:, 1], y["val"][:, 1]).value for k, v in votes.items()},
    },
    abs=1e-3,
  )
  # Beside the scores stands whose they are, without names.
  assert result.arrays["classes"].tolist() == list(data.classes) and result.arrays["exclusive"]
  patient = result.arrays["patient"]
  assert patient.dtype.kind == "i" and len(set(zip(patient, patients, strict=True))) == (
    len(set(patients))
  )
  apart = classification_metrics.difference(
    result.arrays["knn5"], result.arrays["linear"], y["test"], patient, True
  )
  assert apart.value == pytest.approx(
    result.metrics["knn5/auroc"].value - result.metrics["linear/auroc"].value, abs=1e-9
  )


def test_neighbours_among_whitened_features_when_asked(ready):
  evaluator, data = ready
  result = dataclasses.replace(evaluator, whiten=True).run(encode, PARAMS, data)
  x = {part: features(data, part) for part in ("train", "test")}
  near = knn.knn_scores(
    knn.whiten(x["train"])[0], data.labels("train"), knn.whiten(x["train"], x["test"])[1], (5,)
  )[5]
  np.testing.assert_allclose(result.arrays["whitened5"], near, atol=2e-2)
  assert 0.5 < result.metrics["whitened5/auroc"].value <= 1
  assert evaluator.run(encode, PARAMS * np.nan, data).metrics.keys() == (
    evaluator.run(encode, PARAMS, data).metrics.keys()
  )


def test_running_twice_changes_nothing(ready):
  evaluator, data = ready
  params = jnp.asarray(PARAMS)
  first = evaluator.run(encode, params, data)
  evaluator.run(encode, 2 * params, data)
  again = evaluator.run(encode, params, data)
  assert first.metrics == again.metrics
  np.testing.assert_array_equal(params, PARAMS)
  for name, value in first.arrays.items():
    np.testing.assert_array_equal(value, again.arrays[name])


def test_compiles_once(ready):
  evaluator, data = ready
  traced = []

  def counting(params, x):
    traced.append(x.shape)
    return encode(params, x)

  for scale in (1, 2, 3):
    evaluator.run(counting, scale * PARAMS, data)
  assert traced == [(32, 16, 16, 1)]


def test_test_labels_decide_nothing(ready):
  evaluator, data = ready
  first = evaluator.run(encode, PARAMS, data)
  images = data.images["test"]
  images.labels[:] = images.labels[:, ::-1].copy()
  second = evaluator.run(encode, PARAMS, data)
  np.testing.assert_array_equal(first.arrays["linear"], second.arrays["linear"])
  assert first.facts["linear"] == second.facts["linear"]
  assert second.metrics["linear/auroc"].value == pytest.approx(
    1 - first.metrics["linear/auroc"].value
  )


def test_a_collapsed_encoder_is_at_chance(ready):
  evaluator, data = ready
  result = evaluator.run(lambda p, x: jnp.ones((x.shape[0], 4)), PARAMS, data)
  area = result.metrics["linear/auroc"]
  assert area.value == 0.5 and area.low < 0.45 and area.high > 0.55
  assert result.facts["health"]["feature_std"] == pytest.approx(0, abs=1e-6)


def test_an_encoder_with_nan_is_undefined_and_says_so(ready):
  evaluator, data = ready
  result = evaluator.run(encode, PARAMS * np.nan, data)
  for interval in result.metrics.values():
    assert math.isnan(interval.value) and "not finite" in interval.undefined
  assert set(result.metrics) == set(evaluator.run(encode, PARAMS, data).metrics)
  json.dumps(result.facts, allow_nan=False)


def test_floor_has_the_linear_probes_names(ready):
  evaluator, data = ready
  result = evaluator.floor(data)
  assert set(result.metrics) == {
    f"linear/{m}" for m in ("auroc", "accuracy", "f1", "balanced_accuracy")
  }
  assert result.metrics["linear/auroc"].value > 0.8  # brightness is the label here
  assert result.metrics == evaluator.floor(data).metrics


def test_describe(ready):
  evaluator, data = ready
  facts = json.loads(json.dumps(evaluator.describe(data), allow_nan=False))
  assert facts["test"]["n"] == 80 and facts["size"] == 16 and facts["shared_patients"] == 0
  assert facts["train"]["n"] + facts["val"]["n"] == 160


def test_over_a_mesh_as_on_one_device(ready):
  if len(jax.devices()) < 2:
    pytest.skip("needs several devices (XLA_FLAGS=--xla_force_host_platform_device_count=8)")
  evaluator, data = ready
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]).reshape(2, 1), ("data", "fsdp"))
  one = evaluator.run(encode, PARAMS, data)
  many = evaluator.run(encode, PARAMS, data, mesh=mesh)
  for name in ("knn1", "knn5", "linear"):
    value = one.arrays[name]
    np.testing.assert_allclose(many.arrays[name], value, atol=1e-4)


def test_many_classes_and_findings(fake, tmp_path):
  make = fake.split
  source = fake(
    train=make("train", 150, classes=3), test=make("test", 60, classes=3), classes="abc"
  )
  evaluator = Evaluator(data=source, size=16, ks=(5,))
  result = evaluator.run(encode, PARAMS, evaluator.load(tmp_path, progress=False))
  assert result.metrics["linear/auroc"].value > 0.7 and "threshold" not in result.facts["linear"]
  assert "linear/auroc/b" in result.metrics

  train, test = make("train", 150, classes=3), make("test", 60, classes=3)
  train.labels[::5, 0] = np.nan
  test.labels[:, 2] = 0  # a finding that no test image has
  evaluator = Evaluator(
    data=fake(train=train, test=test, classes="abc", exclusive=False), size=16, ks=(5,)
  )
  result = evaluator.run(encode, PARAMS, evaluator.load(tmp_path, progress=False))
  assert result.metrics["linear/auroc/c"].undefined == "no positive image"
  assert "2 of 3" in result.metrics["linear/auroc"].method
  assert len(result.facts["linear"]["threshold"]) == 3
  assert math.isfinite(result.metrics["knn5/f1"].value)


def test_built_from_a_config():
  spec = {"name": "cxrjax.evals.probe", "data": {"name": "phantom"}, "ks": [1, 3], "every": "5 %"}
  evaluator = build(spec, "Evaluator", "config.evals.probe")
  assert evaluator.ks == (1, 3) and evaluator.every == "5 %"
  with pytest.raises(UserError, match=r"config\.evals\.probe\.neighbours is not an option"):
    build(spec | {"neighbours": 3}, "Evaluator", "config.evals.probe")


@pytest.mark.parametrize(
  "option,message",
  [
    ({"ks": (0,)}, "ks"),
    ({"ks": ()}, "ks"),
    ({"l2": (0.0,)}, "l2"),
    ({"std": 0.0}, "std"),
    ({"threshold_for": "auroc"}, "valid: auto, balanced_accuracy"),
    ({"val_fraction": 1.0}, "val_fraction"),
    ({"batch": 0}, "batch"),
  ],
)
def test_bad_options(option, message):
  with pytest.raises(UserError, match=message):
    Evaluator(data={"name": "phantom"}, **option)


def test_more_neighbours_than_images(fake, tmp_path):
  source = fake(train=fake.split("train", 20), test=fake.split("test", 20))
  with pytest.raises(UserError, match="50 neighbours of"):
    Evaluator(data=source, size=16, ks=(50,)).load(tmp_path, progress=False)

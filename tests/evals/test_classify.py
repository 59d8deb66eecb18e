"""The evaluator of classifiers: what decides thresholds, what is judged, and other sets."""

import math
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk

from cxrjax.core.errors import UserError
from cxrjax.data.base import SourceInfo
from cxrjax.evals import classification_metrics, label_matching
from cxrjax.evals.classify import DECISIONS, IN_VALIDATION, Evaluator
from cxrjax.metrics import classification


def brightness(params, x):
  """Two classes by the mean gray level, steeper for larger params."""
  logit = params * (x.mean((1, 2, 3)) * 0.25 + 0.5 - 0.42)
  p = 1 / (1 + jnp.exp(-logit))
  return jnp.stack([1 - p, p], 1)


def three(params, x):
  level = x.mean((1, 2, 3))[:, None] * 0.25 + 0.5
  logits = -params * (level - jnp.array([0.35, 0.5, 0.65])) ** 2
  return jnp.exp(logits) / jnp.exp(logits).sum(1, keepdims=True)


def findings(params, x):
  level = x.mean((1, 2, 3))[:, None] * 0.25 + 0.5
  return 1 / (1 + jnp.exp(-params * (level - jnp.array([0.42, 0.5]))))


PREVALENCE = {f"{name}/prevalence" for name in DECISIONS}


def make(data, **options):
  return Evaluator(**{"data": data, "size": 16, "batch": 16, **options})


@pytest.fixture
def two(fake):
  return fake(
    **{name: fake.split(name, n) for name, n in (("train", 60), ("val", 60), ("test", 80))}
  )


def judged(evaluator, predict, params, tmp_path):
  data = evaluator.load(cache_dir=tmp_path, progress=False)
  return evaluator.run(predict, np.float32(params), data), data


def test_a_test_set_is_judged_by_what_validation_chose(two, tmp_path):
  evaluator = make(two, threshold_for="balanced_accuracy")
  result, data = judged(evaluator, brightness, 60.0, tmp_path)
  assert set(result.metrics) == {*classification_metrics.ALL, "ece/uncalibrated", *PREVALENCE}
  p, labels = result.arrays["probability"], result.arrays["labels"]
  y = labels[:, 1]
  values = {k: v.value for k, v in result.metrics.items()}
  assert values["auroc"] == pytest.approx(sk.roc_auc_score(y, p[:, 1]))
  assert values["auprc"] == pytest.approx(sk.average_precision_score(y, p[:, 1]))
  assert values["brier"] == pytest.approx(sk.brier_score_loss(y, p[:, 1]))
  assert values["nll"] == pytest.approx(sk.log_loss(y, p[:, 1].astype(np.float64)))
  called = p[:, 1] >= result.arrays["threshold"][1]
  assert values["sensitivity"] == pytest.approx(sk.recall_score(y, called))
  assert values["specificity"] == pytest.approx(sk.recall_score(1 - y, ~called))
  a, b = values["sensitivity"], values["specificity"]
  assert values["hm"] == pytest.approx(2 * a * b / (a + b))
  assert values["f1"] == pytest.approx(sk.f1_score(y, called))
  assert all(
    v.low < v.value < v.high or v.value in (v.low, v.high) for v in result.metrics.values()
  )

  # Temperature and threshold are functions of the validation images alone.
  raw = brightness(
    np.float32(60),
    jnp.asarray((data.images["val"].gray(slice(None)).astype(np.float32) / 255 - 0.5) / 0.25),
  )
  logit = np.log(np.asarray(raw, np.float64))
  t = result.facts["temperature"][0]
  scaled = np.exp(logit / t) / np.exp(logit / t).sum(1, keepdims=True)
  best = classification.best_threshold(scaled[:, 1], data.labels("val")[:, 1])
  assert result.facts["thresholds"][1] == pytest.approx(best, rel=1e-4)
  losses = [
    sk.log_loss(data.labels("val")[:, 1], np.exp(logit / u)[:, 1] / np.exp(logit / u).sum(1))
    for u in (0.97 * t, t, 1.03 * t)
  ]
  assert losses[1] == min(losses)


def test_the_likeliest_class_is_called_where_no_threshold_is_asked_for(two, tmp_path):
  result, _ = judged(make(two), brightness, 60.0, tmp_path)
  p, y = result.arrays["probability"][:, 1], result.arrays["labels"][:, 1]
  assert result.metrics["specificity"].value == pytest.approx(sk.recall_score(1 - y, p < 0.5))
  assert "threshold" not in result.arrays and "thresholds" not in result.facts
  assert result.facts["decision"] == "the likeliest class"


def test_decisions_follow_the_prevalence_among_test_images(fake, tmp_path):
  test = fake.split("test", 600, effect=20.0)
  rare = np.flatnonzero((test.labels[:, 1] == 0) | (np.arange(600) % 4 == 0))  # of the opaque
  test = type(test)(test.labels[rare], [test.patients[i] for i in rare], test.levels[rare])
  two = fake(**{name: fake.split(name, 600, effect=20.0) for name in ("train", "val")}, test=test)
  result, data = judged(make(two), brightness, 60.0, tmp_path)
  truth = data.labels("test").mean(0)
  found = result.facts["prevalence"]
  assert found["estimated"] == pytest.approx(truth, abs=0.1) and truth[1] < 0.3
  assert found["estimated"][1] < found["validation"][1] - 0.1
  plain, corrected = (result.metrics[name].value for name in ("accuracy", "accuracy/prevalence"))
  assert corrected > plain
  assert found["validation"] == pytest.approx(data.labels("val").mean(0), abs=0.01)


def test_too_sure_a_network_is_calibrated(fake, tmp_path):
  two = fake(**{name: fake.split(name, 400, effect=20.0) for name in ("train", "val", "test")})
  sure, _ = judged(make(two), brightness, 400.0, tmp_path)
  plain, _ = judged(make(two, calibrate=False), brightness, 400.0, tmp_path)
  assert sure.facts["temperature"][0] > 2 and plain.facts["temperature"] == [1.0]
  assert sure.metrics["nll"].value < plain.metrics["nll"].value
  assert sure.metrics["ece"].value < sure.metrics["ece/uncalibrated"].value
  assert plain.metrics["ece"] == plain.metrics["ece/uncalibrated"]
  assert plain.metrics["ece"] == sure.metrics["ece/uncalibrated"]
  assert sure.metrics["auroc"].value == pytest.approx(plain.metrics["auroc"].value)


def test_validation_alone_has_plain_names_and_no_fitting(two, tmp_path):
  evaluator = make(two, part="val", every="1 epochs")
  result, data = judged(evaluator, brightness, 60.0, tmp_path)
  assert set(result.metrics) == set(IN_VALIDATION) and result.arrays == {}
  assert data.ids("test")[0].startswith("val/") and len(data.labels("test")) == 60
  assert evaluator.floor(data).metrics == {}
  assert evaluator.describe(data)["split"] == "val"


def test_three_classes(fake, tmp_path):
  data = fake(
    ("a", "b", "c"),
    **{
      name: fake.split(name, n, classes=3) for name, n in (("train", 60), ("val", 60), ("test", 90))
    },
  )
  result, loaded = judged(make(data), three, 40.0, tmp_path)
  p, truth = result.arrays["probability"], result.arrays["labels"].argmax(1)
  np.testing.assert_allclose(p.sum(1), 1)
  assert set(result.metrics) == {
    *classification_metrics.ALL,
    "ece/uncalibrated",
    *PREVALENCE,
    *(f"{m}/{c}" for m in classification_metrics.PER_CLASS for c in "abc"),
  }
  for i, name in enumerate("abc"):
    assert result.metrics[f"auprc/{name}"].value == pytest.approx(
      sk.average_precision_score(truth == i, p[:, i])
    )
    assert result.metrics[f"sensitivity/{name}"].value == pytest.approx(
      sk.recall_score(truth == i, p.argmax(1) == i)
    )
  assert result.metrics["accuracy"].value == np.mean(p.argmax(1) == truth)
  assert result.metrics["nll"].value == pytest.approx(sk.log_loss(truth, p))
  assert result.facts["decision"] == "the likeliest class"
  floor = make(data).floor(loaded)
  assert (
    set(floor.metrics)
    == set(result.metrics) - {"brier", "ece", "nll", "ece/uncalibrated"} - PREVALENCE
  )


def test_findings_with_unknown_labels(fake, tmp_path):
  def split(name, n):
    made = fake.split(name, n, per_patient=1)
    rng = np.random.default_rng(n)
    second = (made.levels + rng.normal(0, 20, n) > 125).astype(np.float32)
    labels = np.stack([made.labels[:, 1], second], 1)
    labels[rng.random((n, 2)) < 0.15] = np.nan
    made.labels = labels
    return made

  data = fake(
    ("one", "two"), False, train=split("train", 60), val=split("val", 60), test=split("test", 80)
  )
  result, _ = judged(make(data), findings, 40.0, tmp_path)
  p, y = result.arrays["probability"], result.arrays["labels"]
  known = ~np.isnan(y)
  each = [sk.brier_score_loss(y[known[:, c], c], p[known[:, c], c]) for c in range(2)]
  assert result.metrics["brier"].value == pytest.approx(np.mean(each))
  areas = [sk.average_precision_score(y[known[:, c], c], p[known[:, c], c]) for c in range(2)]
  assert result.metrics["auprc"].value == pytest.approx(np.mean(areas))
  assert len(result.facts["temperature"]) == len(result.facts["thresholds"]) == 2


def test_a_class_that_is_absent_defines_nothing(fake, tmp_path):
  test = fake.split("test", 40)
  test.labels[:] = [0, 1]
  data = fake(train=fake.split("train", 60), val=fake.split("val", 60), test=test)
  result, _ = judged(make(data), brightness, 60.0, tmp_path)
  for name in ("auroc", "auprc", "specificity", "hm", "balanced_accuracy"):
    assert math.isnan(result.metrics[name].value) and result.metrics[name].undefined
  assert "normal" in result.metrics["balanced_accuracy"].undefined
  for name in ("sensitivity", "accuracy", "nll", "brier"):
    assert math.isfinite(result.metrics[name].value)


def test_validation_with_one_class_decides_nothing(fake, tmp_path):
  val = fake.split("val", 60)
  val.labels[:] = [0, 1]
  data = fake(train=fake.split("train", 60), val=val, test=fake.split("test", 40))
  result, _ = judged(make(data, threshold_for="accuracy"), brightness, 60.0, tmp_path)
  assert result.facts["temperature"] == [1.0] and result.facts["thresholds"][1] == 0.5
  assert "all of one class" in result.facts["temperature_remarks"][0]
  assert "threshold 0.5" in result.facts["threshold_remarks"][0]


def test_predictions_that_are_not_finite_define_nothing(two, tmp_path):
  good, _ = judged(make(two), brightness, 60.0, tmp_path)
  bad, _ = judged(make(two), brightness, np.nan, tmp_path)
  assert set(bad.metrics) == set(good.metrics)
  assert all("predictions are not finite" in v.undefined for v in bad.metrics.values())


def test_a_network_of_other_classes_is_refused(two, tmp_path):
  with pytest.raises(UserError, match="predicts 3 classes"):
    judged(make(two), three, 40.0, tmp_path)


@pytest.mark.parametrize(
  "options,said",
  [
    ({"part": "train"}, "part='train'"),
    ({"threshold_for": "recall"}, "threshold_for='recall'"),
    ({"subgroups": ("age", "race")}, "'race'"),
    ({"age_bands": (40, 18)}, "must ascend"),
    ({"part": "val", "fitted": {"name": "x"}}, "part='test'"),
    ({"std": 0.0}, "above 0"),
  ],
)
def test_options_that_are_none(options, said):
  with pytest.raises(UserError, match=said):
    make({"name": "phantom"}, **options)


def other(fake, monkeypatch, classes, exclusive, made):
  """A second set, "other_sets.Source", with patients named like the first's."""
  kind = type(
    "Source", (fake.source,), {"splits": {"test": made}, "classes": classes, "exclusive": exclusive}
  )
  module = types.ModuleType("other_sets")
  module.Source = kind
  monkeypatch.setitem(sys.modules, "other_sets", module)
  monkeypatch.setenv("CXRJAX_TRUST", "other_sets,fake_sets")
  return {"name": "other_sets.Source"}


def test_another_set_is_judged_by_what_the_first_chose(fake, two, tmp_path, monkeypatch):
  made = fake.split("test", 50, seed=3)
  made.labels = made.labels[:, ::-1].copy()  # its classes stand in another order
  site = other(fake, monkeypatch, ("Opacity", "NORMAL"), True, made)
  here, _ = judged(make(two, threshold_for="f1"), brightness, 60.0, tmp_path)
  there, data = judged(make(site, fitted=two, threshold_for="f1"), brightness, 60.0, tmp_path)
  assert there.facts["temperature"] == here.facts["temperature"]
  assert there.facts["thresholds"] == here.facts["thresholds"]
  assert data.classes == ("normal", "opacity") and len(data.labels("test")) == 50
  np.testing.assert_array_equal(there.arrays["labels"], made.labels[:, ::-1])
  assert there.metrics["auroc"].value > 0.9
  assert math.isfinite(make(site, fitted=two).floor(data).metrics["auroc"].value)


def test_classes_that_the_other_set_lacks_or_has_more(fake, two, tmp_path, monkeypatch):
  made = fake.split("test", 40, classes=3, seed=2)
  count = made.labels.sum(0).astype(int)
  site = other(fake, monkeypatch, ("opacity", "fracture", "nodule"), True, made)
  result, data = judged(make(site, fitted=two), brightness, 60.0, tmp_path)
  assert len(data.labels("test")) == count[0]
  assert result.metrics["auroc"].undefined == "no negative image"
  assert math.isfinite(result.metrics["sensitivity"].value)
  said = " ".join(make(site, fitted=two).describe(data)["notes"])
  assert "does not know normal" in said and f"{40 - count[0]} of 40 images" in said
  site = other(fake, monkeypatch, ("fracture", "cyst", "nodule"), True, made)
  with pytest.raises(UserError, match="none of which is among those of fake") as error:
    make(site, fitted=two).load(cache_dir=tmp_path, progress=False)
  assert "\n" not in str(error.value)


def test_matching_findings_and_classes():
  own = lambda classes, exclusive: SourceInfo("s", "test", classes, exclusive, {}, "f")  # noqa: E731
  nan = np.nan
  labels = np.array([[1, 0], [0, 1], [0, 0], [nan, 1], [1, 1]], np.float32)
  # Findings to findings: what is not known stays so.
  found = label_matching.match(labels, own(("a", "b"), False), own(("b", "c"), False), [])
  np.testing.assert_array_equal(found, [[0, nan], [1, nan], [0, nan], [1, nan], [1, nan]])
  # Findings to exclusive classes: exactly one has to be there.
  found = label_matching.match(labels, own(("a", "b"), False), own(("b", "a"), True), notes := [])
  np.testing.assert_array_equal(found, [[0, 1], [1, 0], [nan, nan], [1, 0], [nan, nan]])
  assert "2 of 5 images" in notes[0]


def test_ages_and_sites_reach_the_page(two, tmp_path):
  evaluator = make(two)
  result, _ = judged(evaluator, brightness, 60.0, tmp_path)
  assert result.facts["subgroups"] == [] and len(result.facts["subgroup_remarks"]) == 4
  assert {"age", "sex", "view", "site", "id", "patient"} <= set(result.arrays)
  bins = result.facts["reliability"]["calibrated"]
  assert sum(b["n"] for b in bins) == 80 and 0 < result.facts["ece_by_chance"][0] < 0.5

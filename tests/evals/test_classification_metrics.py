"""Names of metrics and what they are for two classes, many classes and findings."""

import math

import numpy as np
import pytest

from cxrjax.evals import classification_metrics
from cxrjax.metrics import classification, patient_bootstrap, roc

P = [f"p{i // 2}" for i in range(80)]


def data(classes, seed=0):
  rng = np.random.default_rng(seed)
  truth = rng.integers(0, classes, 80)
  labels = np.eye(classes, dtype=np.float32)[truth]
  scores = (labels + rng.normal(size=labels.shape)).astype(np.float32)
  return scores, labels, truth


def test_two_exclusive_classes():
  scores, labels, truth = data(2)
  got = classification_metrics.evaluate(
    "knn5", scores, labels, P, ("normal", "sick"), True, np.array([9.0, 0.3])
  )
  assert list(got) == [f"knn5/{m}" for m in classification_metrics.MEASURES]
  called = (scores[:, 1] >= 0.3).astype(int)
  assert got["knn5/auroc"] == roc.auroc(scores[:, 1], truth, P)
  assert got["knn5/accuracy"] == classification.score("accuracy", called, truth, 2, P)
  assert got["knn5/f1"] == classification.score("f1", called, truth, 2, P)
  assert got["knn5/balanced_accuracy"] == classification.score(
    "balanced_accuracy", called, truth, 2, P
  )


def test_many_exclusive_classes():
  scores, labels, truth = data(3)
  got = classification_metrics.evaluate("linear", scores, labels, P, ("a", "b", "c"), True)
  assert set(got) == {f"linear/{m}" for m in classification_metrics.MEASURES} | {
    f"linear/auroc/{c}" for c in "abc"
  }
  assert got["linear/auroc"] == roc.macro_auroc(scores, labels, P)
  assert got["linear/accuracy"].value == np.mean(scores.argmax(1) == truth)
  # A class without training images is never called and has no area; the others still count.
  scores[:, 1] = np.nan
  got = classification_metrics.evaluate("linear", scores, labels, P, ("a", "b", "c"), True)
  assert "training images" in got["linear/auroc/b"].undefined
  assert "2 of 3" in got["linear/auroc"].method
  assert got["linear/accuracy"].value == np.mean(
    np.where(scores[:, 0] >= scores[:, 2], 0, 2) == truth
  )


def test_findings():
  scores, labels, _ = data(3)
  labels[:10, 0] = np.nan
  got = classification_metrics.evaluate(
    "linear", scores, labels, P, ("a", "b", "c"), False, np.array([0.1, 0.2, 0.3])
  )
  calls = scores >= np.array([0.1, 0.2, 0.3])
  for measure in classification_metrics.MEASURES[1:]:
    assert got[f"linear/{measure}"] == patient_bootstrap.interval(
      classification.findings(measure, calls, labels, P)
    )
  assert got["linear/auroc/a"].n == 70
  one = classification_metrics.evaluate("linear", scores[:, :1], labels[:, :1], P, ("a",), False)
  assert set(one) == {f"linear/{m}" for m in classification_metrics.MEASURES}
  assert one["linear/auroc"].value == got["linear/auroc/a"].value


def test_unknown_exclusive_images_are_left_out():
  scores, labels, _ = data(2)
  labels[:30] = np.nan
  got = classification_metrics.evaluate("linear", scores, labels, P, ("a", "b"), True)
  assert {i.n for i in got.values()} == {50}


@pytest.mark.parametrize("classes,exclusive", [(2, True), (3, True), (3, False)])
def test_features_that_are_not_finite_define_nothing(classes, exclusive):
  scores, labels, _ = data(classes)
  names = tuple("abc"[:classes])
  good = classification_metrics.evaluate("linear", scores, labels, P, names, exclusive)
  bad = classification_metrics.evaluate("linear", scores * np.nan, labels, P, names, exclusive)
  assert set(bad) == set(good)
  for interval in bad.values():
    assert math.isnan(interval.value) and "not finite" in interval.undefined


def test_one_class_in_test_is_undefined_not_one():
  scores, labels, _ = data(2)
  labels[:] = [0, 1]
  got = classification_metrics.evaluate("linear", scores, labels, P, ("a", "b"), True)
  assert got["linear/auroc"].undefined == "no negative image"
  assert got["linear/balanced_accuracy"].undefined == "no image of class a"
  assert math.isfinite(got["linear/accuracy"].value)


def test_thresholds():
  scores, labels, _ = data(3)
  got, remarks = classification_metrics.thresholds(scores, labels, False, "f1")
  expected = [classification.best_threshold(scores[:, c], labels[:, c], "f1") for c in range(3)]
  assert got.tolist() == expected and not remarks
  assert classification_metrics.thresholds(scores, labels, True, "f1")[0].tolist() == [0.5] * 3
  labels[:, 1] = 0
  got, remarks = classification_metrics.thresholds(scores, labels, False, "f1")
  assert got[1] == 0.5 and "label 1" in remarks[0]
  two, _ = classification_metrics.thresholds(scores[:, ::2], labels[:, ::2], True, "accuracy")
  assert two[1] == classification.best_threshold(scores[:, 2], labels[:, 2], "accuracy")

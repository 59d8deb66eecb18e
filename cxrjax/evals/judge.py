"""Class scores and labels to named metrics, for exclusive classes and for several findings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cxrjax.metrics import classification, ranking
from cxrjax.metrics.intervals import Interval, undefined

MEASURES = ("auroc", "accuracy", "balanced_accuracy", "f1")


def judge(
    name: str,
    scores: Float[np.ndarray, "m k"],
    labels: Float[np.ndarray, "m k"],
    patients: Sequence[str],
    classes: Sequence[str],
    exclusive: bool,
    thresholds: Float[np.ndarray, "k"] | None = None,
) -> dict[str, Interval]:
  """`{name}/auroc`, `{name}/accuracy`, `{name}/balanced_accuracy` and `{name}/f1`.

  Two exclusive classes: the last is the positive one. More: macro AUROC of each class against the
  rest, argmax decisions, macro F1. Several findings: means over the findings. Unless two
  exclusive classes or one finding are all there is, each class's area is `{name}/auroc/{class}`.

  Args:
    name: what made the scores, e.g. `"knn5"`.
    scores: higher means more of that class.
    labels: 1, 0 or NaN; one-hot where exclusive (rows with NaN are left out).
    patients: one id per image; intervals respect it.
    classes: names of the columns.
    exclusive: one class an image.
    thresholds: a class is called when its score is at least this; 0.5 each by default. With two
      exclusive classes the last one counts; with more there are none.

  Returns:
    An interval for every name; undefined (NaN, with a reason) where the data define none.
  """
  patients = np.asarray(patients, dtype=object)
  if exclusive:
    known = ~np.isnan(labels).any(1)
    scores, labels, patients = scores[known], labels[known], patients[known]
  k = len(classes)
  thresholds = np.full(k, 0.5) if thresholds is None else thresholds
  each = k > 2 or (k == 2 and not exclusive)
  if len(scores) and not np.isfinite(scores).any():
    reason = "the encoder's features are not finite"
    result = {f"{name}/{m}": undefined(reason, len(labels)) for m in MEASURES}
    if each:
      result |= {f"{name}/auroc/{c}": undefined(reason, len(labels)) for c in classes}
    return result
  if exclusive and k == 2:
    result = {f"{name}/auroc": ranking.auroc(scores[:, 1], labels[:, 1], patients)}
  else:
    result = {f"{name}/auroc": ranking.macro_auroc(scores, labels, patients)}
    for c, title in enumerate(classes if each else ()):
      if len(scores) and not np.isfinite(scores[:, c]).all():
        area = undefined("the training images do not have both values of this label", len(labels))
      else:
        area = ranking.auroc(scores[:, c], labels[:, c], patients)
      result[f"{name}/auroc/{title}"] = area
  if exclusive:
    truth = labels.argmax(1)
    if k == 2:
      predicted = (scores[:, 1] >= thresholds[1]).astype(np.int64)
    else:
      predicted = np.where(np.isnan(scores), -np.inf, scores).argmax(1)
    result[f"{name}/accuracy"] = classification.accuracy(predicted, truth, patients)
    for measure in ("balanced_accuracy", "f1"):
      result[f"{name}/{measure}"] = getattr(classification, measure)(
        predicted, truth, k, patients)
  else:
    labels = np.where(np.isnan(scores), np.nan, labels)
    for measure in MEASURES[1:]:
      result[f"{name}/{measure}"] = classification.findings(
        measure, scores >= thresholds, labels, patients)
  return result


def difference(
    a: Float[np.ndarray, "m k"], b: Float[np.ndarray, "m k"], labels: Float[np.ndarray, "m k"],
    patients: Sequence[Any] | np.ndarray, exclusive: bool) -> Interval:
  """By how much the AUROC that `judge` gives `a` is above the one it gives `b`, images paired."""
  if exclusive and labels.shape[1] == 2:
    a, b, labels = a[:, 1:], b[:, 1:], labels[:, 1:]
  names = [str(p) for p in patients]
  return ranking.auroc_difference(a, b, labels, names)


def thresholds(
    scores: Float[np.ndarray, "v k"],
    labels: Float[np.ndarray, "v k"],
    exclusive: bool,
    criterion: str,
) -> tuple[Float[np.ndarray, "k"], list[str]]:
  """The threshold of every class that does best on validation images.

  Args:
    scores: of validation images.
    labels: theirs.
    exclusive: with more than two exclusive classes decisions are argmax and thresholds unused.
    criterion: as in `classification.best_threshold`.

  Returns:
    Thresholds, 0.5 where validation decides none (one class only), and a remark for each of those.
  """
  k = labels.shape[1]
  chosen, remarks = np.full(k, 0.5), []
  if exclusive and k > 2:
    return chosen, remarks
  for c in [1] if exclusive else range(k):
    best = classification.best_threshold(scores[:, c], labels[:, c], criterion)
    if np.isfinite(best):
      chosen[c] = best
    else:
      remarks.append(f"label {c}: threshold 0.5, because the validation images do not have both "
                     "values of it")
  return chosen, remarks

"""Named metrics from class scores and labels, for exclusive classes and for findings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from cxrjax.metrics import calibration, classification, patient_bootstrap, precision_recall, roc
from cxrjax.metrics.intervals import Difference, Interval, undefined
from cxrjax.metrics.patient_bootstrap import PatientSums

MEASURES = ("auroc", "accuracy", "balanced_accuracy", "f1")
SCORES = ("auroc", "auprc")  # threshold-free ranking metrics
PROBABILITIES = ("brier", "ece", "nll")
ALL = (
  *SCORES,
  "accuracy",
  "balanced_accuracy",
  "f1",
  "sensitivity",
  "specificity",
  "hm",
  *PROBABILITIES,
)
AUTO = "auto"
CRITERIA = (AUTO, *classification.CRITERIA)  # for choosing thresholds
PER_CLASS = (*SCORES, "sensitivity", "specificity", "hm")  # also reported per class


def evaluate(
  name: str,
  scores: Float[np.ndarray, "m k"],
  labels: Float[np.ndarray, "m k"],
  patients: Sequence[str] | np.ndarray,
  classes: Sequence[str],
  exclusive: bool,
  thresholds: Float[np.ndarray, "k"] | None = None,
  measures: Sequence[str] = MEASURES,
  of_classes: Sequence[str] = ("auroc",),
  broken: str = "the encoder's features are not finite",
) -> dict[str, Interval]:
  """Computes `{name}/auroc`, `{name}/accuracy` and the other `measures`, with intervals.

  Two exclusive classes: the last is the positive one. More: mean over classes, one against the
  rest; argmax decisions. Findings: mean over the findings. With three or more classes, or two or
  more findings, `{name}/auroc/{class}` is that of each class, likewise for all `of_classes`.

  Args:
    name: method that gave the scores, e.g. `"knn5"`; if empty, names are those of the measures.
    scores: higher means more of that class; probabilities where `measures` has `PROBABILITIES`.
    labels: 1, 0 or NaN; one-hot where exclusive (rows with NaN are left out).
    patients: one id per image; intervals respect it.
    classes: names of the columns.
    exclusive: one class per image.
    thresholds: a class is called when its score is at least this; 0.5 each by default. With two
      exclusive classes only the last one counts; with more they are not used.
    measures: of `ALL`.
    of_classes: of `OF_CLASSES`.
    broken: reason given for undefined metrics where no score is finite.

  Returns:
    An interval for every name; undefined (NaN, with a reason) where the data do not define it.
  """
  prefix = f"{name}/" if name else ""
  predictions = _known_predictions(scores, labels, patients, exclusive, thresholds)
  k = len(classes)
  has_class_metrics = k > 2 or (k == 2 and not exclusive)
  class_measures = [(m, c) for m in of_classes for c in range(k)] if has_class_metrics else []
  if len(predictions.scores) and not np.isfinite(predictions.scores).any():
    names = [*measures, *(f"{m}/{classes[c]}" for m, c in class_measures)]
    return {prefix + n: undefined(broken, len(predictions.labels)) for n in names}
  result = {prefix + m: _with_class_name(_overall(m, predictions), classes) for m in measures}
  for m, c in class_measures:
    if len(predictions.scores) and not np.isfinite(predictions.scores[:, c]).all():
      interval = undefined(
        "the training images do not have both values of this label", len(predictions.labels)
      )
    else:
      interval = _for_class(m, predictions, c)
    result[f"{prefix}{m}/{classes[c]}"] = interval
  return result


def difference(
  a: Float[np.ndarray, "m k"],
  b: Float[np.ndarray, "m k"],
  labels: Float[np.ndarray, "m k"],
  patients: Sequence[Any] | np.ndarray,
  exclusive: bool,
  measure: str = "auroc",
  thresholds: tuple[Any, Any] = (None, None),
) -> Difference:
  """Paired difference, `a` minus `b`, of a measure of `evaluate` on the same images.

  AUROC by DeLong's test; all others by resampling both together, by patient.
  """
  names = [str(p) for p in patients]
  first, second = (
    _known_predictions(x, labels, names, exclusive, t)
    for x, t in zip((a, b), thresholds, strict=True)
  )
  if not (np.isfinite(first.scores).any() and np.isfinite(second.scores).any()):
    return Difference(**vars(undefined("scores are not finite", len(first.labels))))
  if measure in SCORES:
    columns = slice(1, None) if exclusive and labels.shape[1] == 2 else slice(None)
    compare = roc.auroc_difference if measure == "auroc" else precision_recall.difference
    return compare(
      first.scores[:, columns], second.scores[:, columns], first.labels[:, columns], first.patients
    )
  return patient_bootstrap.difference(_counted(measure, first), _counted(measure, second))


def thresholds(
  scores: Float[np.ndarray, "v k"],
  labels: Float[np.ndarray, "v k"],
  exclusive: bool,
  criterion: str,
) -> tuple[Float[np.ndarray, "k"], list[str]]:
  """Chooses the threshold of every class that does best on validation images.

  Args:
    scores: of validation images.
    labels: of the same images.
    exclusive: one class per image.
    criterion: of `CRITERIA`: as in `classification.best_threshold`; or "auto", the likeliest of
      exclusive classes, and `balanced_accuracy` for findings. Of three or more exclusive classes
      the likeliest is called whatever the criterion.

  Returns:
    Thresholds, 0.5 where the likeliest is called or where validation does not determine one (one
    class only), with a remark for each of the latter.
  """
  n_classes = labels.shape[1]
  chosen = np.full(n_classes, 0.5)
  remarks: list[str] = []
  if takes_likeliest(exclusive, n_classes, criterion):
    return chosen, remarks
  criterion = best_for(criterion)
  for column in [1] if exclusive else range(n_classes):
    best = classification.best_threshold(scores[:, column], labels[:, column], criterion)
    if np.isfinite(best):
      chosen[column] = best
    else:
      remarks.append(
        f"label {column}: threshold 0.5, because the validation images do not have both values "
        "of it"
      )
  return chosen, remarks


def best_for(criterion: str) -> str:
  """The measure that chosen thresholds maximize; see `thresholds`."""
  return "balanced_accuracy" if criterion == AUTO else criterion


def takes_likeliest(exclusive: bool, classes: int, criterion: str) -> bool:
  """Whether the likeliest class is called, without thresholds; see `thresholds`."""
  return exclusive and (classes > 2 or criterion == AUTO)


def called(
  scores: Float[np.ndarray, "m k"], exclusive: bool, thresholds: Float[np.ndarray, "k"]
) -> Bool[np.ndarray, "m k"]:
  """Classes that reach their threshold; of three or more exclusive ones, the highest."""
  if not exclusive:
    return scores >= thresholds
  if scores.shape[1] == 2:
    positive = scores[:, 1] >= thresholds[1]
    return np.stack([~positive, positive], 1)
  return np.eye(scores.shape[1], dtype=bool)[np.where(np.isnan(scores), -np.inf, scores).argmax(1)]


@dataclasses.dataclass(frozen=True, eq=False)
class _Predictions:
  """Scores, labels and decisions of the images whose class is known."""

  scores: Float[np.ndarray, "m k"]
  labels: Float[np.ndarray, "m k"]
  patients: np.ndarray
  exclusive: bool
  called: Bool[np.ndarray, "m k"]


def _known_predictions(scores, labels, patients, exclusive, thresholds) -> _Predictions:
  patients = np.asarray(patients, dtype=object)
  if exclusive:
    known = ~np.isnan(labels).any(1)
    scores, labels, patients = scores[known], labels[known], patients[known]
  cutoffs = np.full(labels.shape[1], 0.5) if thresholds is None else thresholds
  return _Predictions(scores, labels, patients, exclusive, called(scores, exclusive, cutoffs))


def _overall(measure: str, predictions: _Predictions) -> Interval:
  """A measure of all classes together."""
  binary = predictions.exclusive and predictions.labels.shape[1] == 2
  if measure == "auroc":
    if binary:
      return roc.auroc(predictions.scores[:, 1], predictions.labels[:, 1], predictions.patients)
    return roc.macro_auroc(predictions.scores, predictions.labels, predictions.patients)
  if measure == "auprc":
    columns = slice(1, None) if binary else slice(None)
    return precision_recall.auprc(
      predictions.scores[:, columns], predictions.labels[:, columns], predictions.patients
    )
  if measure == "ece":
    return calibration.ece_interval(
      predictions.scores, predictions.labels, predictions.exclusive, predictions.patients
    )
  return patient_bootstrap.interval(
    _counted(measure, predictions), bounded=measure not in PROBABILITIES
  )


def _for_class(measure: str, predictions: _Predictions, c: int) -> Interval:
  """A measure of one class against the rest."""
  column = slice(c, c + 1)
  if measure == "auroc":
    return roc.auroc(predictions.scores[:, c], predictions.labels[:, c], predictions.patients)
  if measure == "auprc":
    return precision_recall.auprc(
      predictions.scores[:, column], predictions.labels[:, column], predictions.patients
    )
  known = ~np.isnan(predictions.labels[:, c])
  decision, truth = (x[known, c].astype(np.int64) for x in (predictions.called, predictions.labels))
  return classification.score(measure, decision, truth, 2, predictions.patients[known])


def _counted(measure: str, predictions: _Predictions) -> PatientSums:
  """A measure as sums over patients, for the bootstrap."""
  if measure in PROBABILITIES:
    return getattr(calibration, measure)(
      predictions.scores, predictions.labels, predictions.exclusive, predictions.patients
    )
  if predictions.exclusive:
    decision, truth = predictions.called.argmax(1), predictions.labels.argmax(1)
    return classification.decisions(
      measure, decision, truth, predictions.labels.shape[1], predictions.patients
    )
  labels = np.where(np.isnan(predictions.scores), np.nan, predictions.labels)
  return classification.findings(measure, predictions.called, labels, predictions.patients)


def _with_class_name(interval: Interval, classes: Sequence[str]) -> Interval:
  """Replaces the class number in the reason for an undefined interval by its name."""
  prefix = "no image of class "
  if not interval.undefined.startswith(prefix):
    return interval
  name = classes[int(interval.undefined.removeprefix(prefix))]
  return dataclasses.replace(interval, undefined=f"{prefix}{name}")

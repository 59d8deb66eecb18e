"""Class scores and labels to named metrics, for exclusive classes and for several findings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from cxrjax.metrics import calibration, classification, patient_bootstrap, precision_recall, roc
from cxrjax.metrics.intervals import Difference, Interval, undefined
from cxrjax.metrics.patient_bootstrap import Counted

MEASURES = ("auroc", "accuracy", "balanced_accuracy", "f1")
SCORES = ("auroc", "auprc")  # how scores order images, whatever the threshold
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
CRITERIA = (AUTO, *classification.CRITERIA)  # by which thresholds are chosen
OF_CLASSES = (*SCORES, "sensitivity", "specificity", "hm")  # that each class has too


def judge(
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
  """`{name}/auroc`, `{name}/accuracy` and the other `measures`.

  Two exclusive classes: the last is the positive one. More: mean over classes, each against the
  rest; argmax decisions. Several findings: means over the findings. Unless two exclusive classes or
  one finding are all there is, `{name}/auroc/{class}` is each class's, and so of all `of_classes`.

  Args:
    name: what made the scores, e.g. `"knn5"`; an empty one leaves the measures' names.
    scores: higher means more of that class; probabilities where `measures` has `PROBABILITIES`.
    labels: 1, 0 or NaN; one-hot where exclusive (rows with NaN are left out).
    patients: one id per image; intervals respect it.
    classes: names of the columns.
    exclusive: one class an image.
    thresholds: a class is called when its score is at least this; 0.5 each by default. With two
      exclusive classes the last one counts; with more there are none.
    measures: of `ALL`.
    of_classes: of `OF_CLASSES`.
    broken: why there are metrics of nothing, where no score is finite.

  Returns:
    An interval for every name; undefined (NaN, with a reason) where the data define none.
  """
  start = f"{name}/" if name else ""
  seen = _seen(scores, labels, patients, exclusive, thresholds)
  k = len(classes)
  each = (
    [(m, c) for m in of_classes for c in range(k)] if k > 2 or (k == 2 and not exclusive) else []
  )
  if len(seen.scores) and not np.isfinite(seen.scores).any():
    names = [*measures, *(f"{m}/{classes[c]}" for m, c in each)]
    return {start + n: undefined(broken, len(seen.labels)) for n in names}
  result = {start + m: _named(_of_all(m, seen), classes) for m in measures}
  for m, c in each:
    if len(seen.scores) and not np.isfinite(seen.scores[:, c]).all():
      found = undefined(
        "the training images do not have both values of this label", len(seen.labels)
      )
    else:
      found = _of_class(m, seen, c)
    result[f"{start}{m}/{classes[c]}"] = found
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
  """By how much the measure that `judge` gives `a` is above the one it gives `b`, images paired.

  AUROC: DeLong's test; all others: both resampled together, by patient.
  """
  names = [str(p) for p in patients]
  first, second = (
    _seen(x, labels, names, exclusive, t) for x, t in zip((a, b), thresholds, strict=True)
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
  """The threshold of every class that does best on validation images.

  Args:
    scores: of validation images.
    labels: theirs.
    exclusive: one class an image.
    criterion: of `CRITERIA`: as in `classification.best_threshold`; or "auto", the likeliest of
      exclusive classes, and `balanced_accuracy` of findings. Of three or more exclusive classes
      the likeliest is called whatever it is.

  Returns:
    Thresholds, 0.5 where the likeliest is called; and where validation decides none (one class
    only), with a remark for each of those.
  """
  k = labels.shape[1]
  chosen = np.full(k, 0.5)
  remarks: list[str] = []
  if takes_likeliest(exclusive, k, criterion):
    return chosen, remarks
  criterion = best_for(criterion)
  for c in [1] if exclusive else range(k):
    best = classification.best_threshold(scores[:, c], labels[:, c], criterion)
    if np.isfinite(best):
      chosen[c] = best
    else:
      remarks.append(
        f"label {c}: threshold 0.5, because the validation images do not have both values of it"
      )
  return chosen, remarks


def best_for(criterion: str) -> str:
  """The measure that thresholds make best, where they are chosen; see `thresholds`."""
  return "balanced_accuracy" if criterion == AUTO else criterion


def takes_likeliest(exclusive: bool, classes: int, criterion: str) -> bool:
  """Whether the likeliest class is called, whatever validation images say; see `thresholds`."""
  return exclusive and (classes > 2 or criterion == AUTO)


def called(
  scores: Float[np.ndarray, "m k"], exclusive: bool, thresholds: Float[np.ndarray, "k"]
) -> Bool[np.ndarray, "m k"]:
  """Which classes are called: those that reach their threshold; of three or more the highest."""
  if not exclusive:
    return scores >= thresholds
  if scores.shape[1] == 2:
    positive = scores[:, 1] >= thresholds[1]
    return np.stack([~positive, positive], 1)
  return np.eye(scores.shape[1], dtype=bool)[np.where(np.isnan(scores), -np.inf, scores).argmax(1)]


@dataclasses.dataclass(frozen=True, eq=False)
class _Seen:
  """What is judged: images whose class is known, and which classes are called."""

  scores: Float[np.ndarray, "m k"]
  labels: Float[np.ndarray, "m k"]
  patients: np.ndarray
  exclusive: bool
  called: Bool[np.ndarray, "m k"]


def _seen(scores, labels, patients, exclusive, thresholds) -> _Seen:
  patients = np.asarray(patients, dtype=object)
  if exclusive:
    known = ~np.isnan(labels).any(1)
    scores, labels, patients = scores[known], labels[known], patients[known]
  cut = np.full(labels.shape[1], 0.5) if thresholds is None else thresholds
  return _Seen(scores, labels, patients, exclusive, called(scores, exclusive, cut))


def _of_all(measure: str, seen: _Seen) -> Interval:
  binary = seen.exclusive and seen.labels.shape[1] == 2
  if measure == "auroc":
    if binary:
      return roc.auroc(seen.scores[:, 1], seen.labels[:, 1], seen.patients)
    return roc.macro_auroc(seen.scores, seen.labels, seen.patients)
  if measure == "auprc":
    columns = slice(1, None) if binary else slice(None)
    return precision_recall.auprc(seen.scores[:, columns], seen.labels[:, columns], seen.patients)
  if measure == "ece":
    return calibration.ece_interval(seen.scores, seen.labels, seen.exclusive, seen.patients)
  return patient_bootstrap.interval(_counted(measure, seen), bounded=measure not in PROBABILITIES)


def _of_class(measure: str, seen: _Seen, c: int) -> Interval:
  own = slice(c, c + 1)
  if measure == "auroc":
    return roc.auroc(seen.scores[:, c], seen.labels[:, c], seen.patients)
  if measure == "auprc":
    return precision_recall.auprc(seen.scores[:, own], seen.labels[:, own], seen.patients)
  known = ~np.isnan(seen.labels[:, c])
  call, truth = (x[known, c].astype(np.int64) for x in (seen.called, seen.labels))
  return patient_bootstrap.interval(
    classification.decisions(measure, call, truth, 2, seen.patients[known])
  )


def _counted(measure: str, seen: _Seen) -> Counted:
  if measure in PROBABILITIES:
    return getattr(calibration, measure)(seen.scores, seen.labels, seen.exclusive, seen.patients)
  if seen.exclusive:
    call, truth = seen.called.argmax(1), seen.labels.argmax(1)
    return classification.decisions(measure, call, truth, seen.labels.shape[1], seen.patients)
  labels = np.where(np.isnan(seen.scores), np.nan, seen.labels)
  return classification.findings(measure, seen.called, labels, seen.patients)


def _named(found: Interval, classes: Sequence[str]) -> Interval:
  """With the class's name in the reason, where it has its number."""
  start = "no image of class "
  if not found.undefined.startswith(start):
    return found
  name = classes[int(found.undefined.removeprefix(start))]
  return dataclasses.replace(found, undefined=f"{start}{name}")

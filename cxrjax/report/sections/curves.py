"""ROC and precision-recall curves and the confusion matrix, from an evaluation's test scores."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from cxrjax.metrics import classification, intervals, precision_recall, roc
from cxrjax.report.html import blocks, format, line_chart
from cxrjax.report.html.element import Html, el
from cxrjax.report.naming import STYLES
from cxrjax.report.run_files import FLOOR, RANDOM, TRAINED, Run, lookup, number

POINTS = 150  # most points of a drawn curve


def decisions(run: Run) -> Html | None:
  """ROC and precision-recall curves of trained, random and floor; the trained confusion matrix.

  Needs `figures/scores_<evaluator>_<encoder>.npz` (or `scores_<encoder>.npz`, as older runs have
  it) with `labels` f32[m k], `probability` or `linear` f[m k] and optionally `threshold`,
  `classes`, `exclusive`.
  """
  evaluator = next(iter(run.evaluators()), "")
  arrays = {
    e: run.arrays(f"scores_{evaluator}_{e}") or run.arrays(f"scores_{e}")
    for e in (TRAINED, RANDOM, FLOOR)
  }
  scores = {e: pair for e, data in arrays.items() if (pair := _scores_and_labels(data)) is not None}
  if not scores:
    return None
  first = arrays[next(iter(scores))]
  k = first["labels"].shape[1]
  classes = _class_names(run, first, k)
  exclusive = _is_exclusive(first)
  predicted = any("probability" in data for data in arrays.values())
  suffix = "" if predicted else ", linear probe"
  note = ""
  if exclusive and k == 2:
    subtitle = f"{suffix}: {classes[1]}"
    curves = [
      (format.encoder(e, ()), STYLES[e], outputs[:, 1], labels[:, 1])
      for e, (outputs, labels) in scores.items()
    ]
  else:
    outputs, labels = scores.get(TRAINED) or next(iter(scores.values()))
    subtitle = f"{suffix}, by class"
    curves = [(classes[c], f"s{c + 1}", outputs[:, c], labels[:, c]) for c in range(min(k, 4))]
    note = f"The first 4 of {k} classes." if k > 4 else ""
  figures = [roc_figure(f"ROC{subtitle}", curves, note)]
  if predicted:
    figures.append(_precision_recall_figure(f"Precision and recall{subtitle}", curves, note))
  if exclusive and TRAINED in scores and k <= 20:
    figures.append(_confusion_figure(run, arrays[TRAINED], classes, suffix))
  return el("div", figures, cls="charts")


def _scores(arrays: dict[str, np.ndarray]) -> np.ndarray | None:
  probability = arrays.get("probability")
  return arrays.get("linear") if probability is None else probability


def _scores_and_labels(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
  """Scores and labels; None where they are missing or differ in shape."""
  labels, scores = arrays.get("labels"), _scores(arrays)
  if labels is None or scores is None or labels.ndim != 2 or labels.shape != scores.shape:
    return None
  return (scores, labels) if labels.shape[1] > 0 else None


def _class_names(run: Run, arrays: dict[str, np.ndarray], k: int) -> list[str]:
  names: Any = arrays["classes"].tolist() if "classes" in arrays else None
  data = run.fact("data")
  for facts in data.values() if isinstance(data, dict) else ():
    names = names or lookup(facts, "test", "classes")
  return (
    [str(c) for c in names]
    if isinstance(names, list) and len(names) == k
    else [f"class {i}" for i in range(k)]
  )


def _is_exclusive(arrays: dict[str, np.ndarray]) -> bool:
  if "exclusive" in arrays:
    return bool(arrays["exclusive"])
  labels = arrays["labels"]
  known = labels[~np.isnan(labels).any(1)]
  return labels.shape[1] > 1 and len(known) > 0 and bool((known.sum(1) == 1).all())


def roc_figure(title: str, curves: Iterable[Any], note: str = "") -> Html:
  """A figure with a ROC curve for every (label, style, scores, labels)."""
  lines = []
  for label, style, scores, labels in curves:
    finite = np.isfinite(scores)
    fpr, tpr, _ = roc.roc_curve(scores[finite], labels[finite])
    if not len(fpr) or not np.isfinite(fpr).all() or not np.isfinite(tpr).all():
      continue
    indices = _evenly_spaced(fpr + tpr)
    lines.append(line_chart.Line(label, fpr[indices], tpr[indices], style=style))
  if not lines:
    note = "No curve: it is undefined for these labels or scores."
    lines = []
  chance = line_chart.Line("Chance", np.array([0.0, 1.0]), np.array([0.0, 1.0]), style="ref")
  return line_chart.chart(
    title,
    [*lines, chance],
    x_label="false positive rate",
    unit="true positive rate",
    y_range=(0.0, 1.0),
    note=note,
    height=300,
  )


def _precision_recall_figure(title: str, curves, note: str = "") -> Html:
  lines, shares = [], []
  for label, style, scores, labels in curves:
    finite = np.isfinite(scores)
    recall, precision, _ = precision_recall.curve(scores[finite], labels[finite])
    if not len(recall):
      continue
    indices = _evenly_spaced(
      np.cumsum(
        np.abs(np.diff(recall, prepend=0)) + np.abs(np.diff(precision, prepend=precision[0]))
      )
    )
    lines.append(line_chart.Line(label, recall[indices], precision[indices], style=style))
    shares.append(float(np.nanmean(labels)))
  if not lines:
    note = "No curve: no test image has any of the classes."
    lines = [line_chart.Line("", np.zeros(1), np.full(1, np.nan))]
  # Uninformative scores have the share of positives as their precision; drawn if curves share it.
  if lines and len(set(shares)) == 1:
    lines.append(
      line_chart.Line("Chance", np.array([0.0, 1.0]), np.full(2, shares[0]), style="ref")
    )
  return line_chart.chart(
    title,
    lines,
    x_label="recall (sensitivity)",
    unit="precision",
    y_range=(0.0, 1.0),
    note=note,
    height=300,
  )


def _evenly_spaced(distance: np.ndarray) -> np.ndarray:
  """Indices of at most `POINTS` points at even distances along a curve, ends included."""
  if len(distance) <= POINTS:
    return np.arange(len(distance))
  targets = np.linspace(distance[0], distance[-1], POINTS)
  return np.unique(np.searchsorted(distance, targets).clip(0, len(distance) - 1))


def _confusion_figure(
  run: Run, arrays: dict[str, np.ndarray], classes: list[str], suffix: str
) -> Html:
  """Counts and row shares with Wilson intervals; rows the truth, columns the decision."""
  labels, scores = arrays["labels"], _scores(arrays)
  assert scores is not None  # checked by `_scores_and_labels`
  known = ~np.isnan(labels).any(1) & np.isfinite(scores).all(1)
  labels, scores, k = labels[known], scores[known], labels.shape[1]
  if k == 2:
    threshold = _threshold(run, arrays)
    cut = 0.5 if threshold is None else threshold
    predicted = (scores[:, 1] >= cut).astype(np.int64)
    rule = (
      f"{classes[1]} where the score is at least {cut:.3g}, the threshold chosen on validation."
      if threshold is not None
      else f"{classes[1]} where the score is at least 0.5."
    )
  else:
    predicted, rule = scores.argmax(1), "The class with the highest score."
  counts = classification.confusion(predicted, labels.argmax(1), k)
  columns = blocks.columns("Truth", *(f"called {c}" for c in classes))
  rows = []
  for i, name in enumerate(classes):
    n = int(counts[i].sum())
    cells = []
    for j in range(k):
      share = counts[i, j] / n if n else math.nan
      bounds = ""
      if n:
        low, high = intervals.wilson(float(share), n)
        bounds = f"{100 * share:.0f} % ({100 * low:.0f}\N{EN DASH}{100 * high:.0f})"
      level = f"m{min(int(share * 5), 4)}" if n else None
      cells.append(
        el(
          "td",
          el("b", f"{counts[i, j]:,}"),
          el("small", bounds),
          cls=f"num cell {level} {'right' if i == j else 'wrong'}",
        )
      )
    rows.append(blocks.row(name, cells))
  note = (
    f"{rule} {format.count(len(labels), 'radiograph')}; shares of each row with Wilson 95 % "
    "intervals, treating images as independent."
  )
  return el(
    "figure",
    el("figcaption", el("b", f"Confusion matrix{suffix}")),
    blocks.note(note),
    blocks.table(columns, rows, "matrix"),
    cls="chart",
  )


def _threshold(run: Run, arrays: dict[str, np.ndarray]) -> float | None:
  threshold = arrays.get("threshold")
  if threshold is None:
    threshold = run.fact("evals", TRAINED, "linear", "threshold")
    threshold = threshold[0] if isinstance(threshold, list) and threshold else threshold
    value = number(threshold)
  else:
    value = float(np.asarray(threshold).reshape(-1)[-1]) if np.size(threshold) else math.nan
  return value if math.isfinite(value) else None

"""ROC, precision and recall, and the confusion matrix, from the test scores of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from cxrjax.metrics import classification, intervals, roc
from cxrjax.metrics import precision_recall as average
from cxrjax.report.html import format, line_chart
from cxrjax.report.html.element import Html, el
from cxrjax.report.naming import STYLES
from cxrjax.report.run_files import FLOOR, RANDOM, TRAINED, Run, lookup, number

POINTS = 150  # of a drawn ROC curve


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
  scores = {e: both for e, s in arrays.items() if (both := _judged(s)) is not None}
  if not scores:
    return None
  first = arrays[next(iter(scores))]
  k = first["labels"].shape[1]
  classes = _classes(run, first, k)
  exclusive = _exclusive(first)
  predicted = any("probability" in s for s in arrays.values())
  what = "" if predicted else ", linear probe"
  note = ""
  if exclusive and k == 2:
    of = f"{what}: {classes[1]}"
    curves = [(format.encoder(e, ()), STYLES[e], s[:, 1], y[:, 1]) for e, (s, y) in scores.items()]
  else:
    own, labels = scores.get(TRAINED) or next(iter(scores.values()))
    of = f"{what}, by class"
    curves = [(classes[c], f"s{c + 1}", own[:, c], labels[:, c]) for c in range(min(k, 4))]
    note = f"The first 4 of {k} classes." if k > 4 else ""
  figures = [roc_figure(f"ROC{of}", curves, note)]
  if predicted:
    figures.append(_precision(f"Precision and recall{of}", curves, note))
  if exclusive and TRAINED in scores and k <= 20:
    figures.append(_matrix(run, arrays[TRAINED], classes, what))
  return el("div", figures, cls="charts")


def _scores(arrays: dict[str, np.ndarray]) -> np.ndarray | None:
  found = arrays.get("probability")
  return arrays.get("linear") if found is None else found


def _judged(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
  """Scores and labels; nothing where they are missing or do not fit each other."""
  labels, scores = arrays.get("labels"), _scores(arrays)
  if labels is None or scores is None or labels.ndim != 2 or labels.shape != scores.shape:
    return None
  return (scores, labels) if labels.shape[1] > 0 else None


def _classes(run: Run, arrays: dict[str, np.ndarray], k: int) -> list[str]:
  found: Any = arrays["classes"].tolist() if "classes" in arrays else None
  data = run.fact("data")
  for facts in data.values() if isinstance(data, dict) else ():
    found = found or lookup(facts, "test", "classes")
  return (
    [str(c) for c in found]
    if isinstance(found, list) and len(found) == k
    else [f"class {i}" for i in range(k)]
  )


def _exclusive(arrays: dict[str, np.ndarray]) -> bool:
  if "exclusive" in arrays:
    return bool(arrays["exclusive"])
  labels = arrays["labels"]
  known = labels[~np.isnan(labels).any(1)]
  return labels.shape[1] > 1 and len(known) > 0 and bool((known.sum(1) == 1).all())


def roc_figure(title: str, curves: Iterable[Any], note: str = "") -> Html:
  """A figure with a ROC curve for every (label, style, scores, labels)."""
  lines = []
  for label, style, scores, labels in curves:
    kept = np.isfinite(scores)
    false, true, _ = roc.roc_curve(scores[kept], labels[kept])
    if not len(false) or not np.isfinite(false).all() or not np.isfinite(true).all():
      continue
    pick = _evenly(false + true)
    lines.append(line_chart.Line(label, false[pick], true[pick], style=style))
  if not lines:
    note = "No curve: the test labels or the scores do not define one."
    lines = []
  chance = line_chart.Line("Chance", np.array([0.0, 1.0]), np.array([0.0, 1.0]), style="ref")
  return line_chart.chart(
    title,
    [*lines, chance],
    x_label="false positive rate",
    unit="true positives",
    y_range=(0.0, 1.0),
    note=note,
    height=300,
  )


def _precision(title: str, curves, note: str = "") -> Html:
  lines, shares = [], []
  for label, style, scores, labels in curves:
    kept = np.isfinite(scores)
    recall, precision, _ = average.curve(scores[kept], labels[kept])
    if not len(recall):
      continue
    pick = _evenly(
      np.cumsum(
        np.abs(np.diff(recall, prepend=0)) + np.abs(np.diff(precision, prepend=precision[0]))
      )
    )
    lines.append(line_chart.Line(label, recall[pick], precision[pick], style=style))
    shares.append(float(np.nanmean(labels)))
  if not lines:
    note = "No curve: the test images show none of the classes."
    lines = [line_chart.Line("", np.zeros(1), np.full(1, np.nan))]
  # The share of positives is what scores that tell nothing have; of several classes each has its
  # own.
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


def _evenly(along: np.ndarray) -> np.ndarray:
  """At most `POINTS` points at even steps along a curve, ends included, by the way to each."""
  if len(along) <= POINTS:
    return np.arange(len(along))
  steps = np.linspace(along[0], along[-1], POINTS)
  return np.unique(np.searchsorted(along, steps).clip(0, len(along) - 1))


def _matrix(run: Run, arrays: dict[str, np.ndarray], classes: list[str], what: str) -> Html:
  """Counts and row shares with Wilson intervals; rows the truth, columns the decision."""
  labels, scores = arrays["labels"], _scores(arrays)
  assert scores is not None  # else there is no matrix
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
  head = el(
    "tr",
    el("th", "Truth", scope="col"),
    [el("th", f"called {c}", scope="col", cls="num") for c in classes],
  )
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
    rows.append(el("tr", el("th", name, scope="row"), cells))
  table = el("table", el("thead", head), el("tbody", rows), cls="matrix")
  note = (
    f"{rule} {format.count(len(labels), 'radiograph')}; share of each row with Wilson's 95 % "
    "interval, images taken as independent."
  )
  return el(
    "figure",
    el("figcaption", el("b", f"Confusion matrix{what}")),
    el("p", note, cls="note"),
    el("div", table, cls="scroll"),
    cls="chart",
  )


def _threshold(run: Run, arrays: dict[str, np.ndarray]) -> float | None:
  found = arrays.get("threshold")
  if found is None:
    found = run.fact("evals", TRAINED, "linear", "threshold")
    found = found[0] if isinstance(found, list) and found else found
    value = number(found)
  else:
    value = float(np.asarray(found).reshape(-1)[-1]) if np.size(found) else math.nan
  return value if math.isfinite(value) else None

"""Results of a run: the table of metrics, and charts over training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from cxrjax.report import naming
from cxrjax.report.html import blocks, format, line_chart
from cxrjax.report.html.element import Html, el
from cxrjax.report.html.format import Estimate
from cxrjax.report.naming import STYLES
from cxrjax.report.run_files import FLOOR, RANDOM, TRAINED, Run
from cxrjax.report.sections import summary
from cxrjax.report.terminal import ORDER, sort_metrics

CHARTS_SHOWN = 3  # charts over training that are always shown; further ones are folded


def table(run: Run) -> Html:
  """Metrics (rows) by encoder (columns) with intervals, the best of each row in bold."""
  latest = run.latest()
  first = run.first()
  encoders = [e for e in ORDER if latest.get(e)] + sorted(e for e in latest if e not in ORDER)
  names = sort_metrics({name for e in encoders for name in latest[e]})
  overall = [name for name in names if not format.of_class(name)]
  leading = {format.split(name)[0] for name in summary.headline(latest)}
  neighbors = [name for name in overall if format.split(name)[0].startswith(("knn", "whitened"))]
  folded = [name for name in neighbors if format.split(name)[0] not in leading]
  tables = [_table([name for name in overall if name not in folded], encoders, latest, first)]
  if folded:
    tables.append(blocks.folded("Other neighbours", _table(folded, encoders, latest, first)))
  if classes := [name for name in names if format.of_class(name)]:
    tables.append(blocks.folded("Per class", _table(classes, encoders, latest, {})))
  return el("div", tables, _note(run))


def _note(run: Run) -> Html:
  """How intervals were computed, and why values are undefined."""
  estimates = [e for metrics in run.latest().values() for e in metrics.values()]
  methods = sorted({e.method for e in estimates if e.method and e.method != "none"})
  reasons = sorted({e.undefined for e in estimates if e.undefined})
  first = None
  if run.first():
    step = next(e.step for e in run.evaluations if e.encoder == TRAINED)
    text = f" First: the trained encoder's earliest evaluation, at step {format.count(step)}."
    first = el("span", text, cls="wide")
  return blocks.note(
    "In brackets, 95 % confidence intervals. Bold: the best value in a row.",
    f" Intervals: {'; '.join(methods)}." if methods else None,
    f" n/a: {'; '.join(reasons[:5])}." if reasons else None,
    first,
  )


def _table(names, encoders, latest, first) -> Html:
  columns = blocks.columns(
    "Metric",
    *([el("i", cls=f"key {STYLES.get(e, 's4')}"), format.encoder(e, names)] for e in encoders),
  )
  if first:
    columns.append(blocks.column("First", cls="num quiet"))
  start = _scale_start(names, encoders, latest)
  if start is not None:
    columns.append(blocks.column(range_axis(start), cls="forest"))
  rows, group = [], None
  for name in names:
    prefix, measure, variant = format.split(name)
    if prefix and prefix != group:
      rows.append(blocks.group(format.head(prefix), len(columns)))
      group = prefix
    values = {e: latest[e][name] for e in encoders if name in latest[e]}
    best = _best(values.values(), measure)
    cells = [_cell(values.get(e), best) for e in encoders]
    if first:
      cells.append(_cell(first.get(name), math.nan, "quiet"))
    if start is not None:
      shown = {format.encoder(e, names): v for e, v in values.items()}
      cells.append(el("td", forest(name, shown, start, list(values)), cls="forest"))
    title = format.measure(f"{measure}/{variant}" if variant else measure)
    rows.append(blocks.row(title, cells))
  return blocks.table(columns, rows)


def _scale_start(names, encoders, latest) -> float | None:
  """Start of the scale of scores from 0 to 1: 0.5 if all are above; None where there are none."""
  scores = [latest[e][m] for e in encoders for m in names if _is_unit_score(m, latest[e].get(m))]
  bounds = [v for score in scores for v in (score.value, score.low) if math.isfinite(v)]
  return (0.5 if min(bounds) >= 0.5 else 0.0) if bounds else None


def _best(values: Iterable[Estimate], measure: str) -> float:
  """The best of several different values; else NaN."""
  finite = {v.value for v in values if math.isfinite(v.value)}
  best_of = min if measure in format.LOWER_IS_BETTER else max
  return best_of(finite) if len(finite) > 1 else math.nan


def _cell(e: Estimate | None, best: float, cls: str = "") -> Html:
  if e is None:
    return el("td", "\N{EN DASH}", cls=f"num none {cls}".strip())
  value = format.decimal(e.value)
  bounds = format.interval(e)
  method = e.method if e.method != "none" else ""
  title = ", ".join(x for x in (format.count(e.n, "image"), method, e.undefined) if x) or None
  strong = e.value == best
  return el(
    "td",
    el("b" if strong else "span", value),
    " " if bounds else None,
    el("small", f"({bounds})") if bounds else None,
    cls=f"num {'best ' if strong else ''}{cls}".strip(),
    title=title,
  )


def _is_unit_score(name: str, e: Estimate | None) -> bool:
  return e is not None and format.split(name)[1] not in format.LOWER_IS_BETTER and 0 <= e.value <= 1


FOREST = 150


def forest(
  name: str, values: Mapping[str, Estimate], start: float, encoders: Sequence[str]
) -> Html | None:
  """Draws intervals of a metric on one scale from `start` to 1, labelled as in `values`."""
  shown = [
    (label, estimate, STYLES.get(encoder, "s4"))
    for (label, estimate), encoder in zip(values.items(), encoders, strict=True)
    if _is_unit_score(name, estimate)
  ]
  if not shown:
    return None
  height = 6 + 7 * len(shown)
  marks = [
    el("line", x1=x, x2=x, y1=0, y2=height, cls="grid") for x in np.linspace(4, FOREST - 4, 5)
  ]

  def x_of(v: float) -> str:
    return f"{4 + (FOREST - 8) * min(max((v - start) / (1 - start), 0.0), 1.0):.1f}"

  for i, (label, v, style) in enumerate(shown):
    y = 6.5 + 7 * i
    if math.isfinite(v.low) and math.isfinite(v.high):
      marks.append(el("line", x1=x_of(v.low), x2=x_of(v.high), y1=y, y2=y, cls=f"whisker {style}"))
    marks.append(
      el(
        "circle",
        el("title", f"{label}: {format.estimate(v)}"),
        cx=x_of(v.value),
        cy=y,
        r=2.8,
        cls=f"dot {style}",
      )
    )
  return el(
    "svg", marks, viewbox=f"0 0 {FOREST} {height}", width=FOREST, height=height, aria_hidden="true"
  )


def range_axis(start: float) -> Html:
  """Axis of the forest plots, from `start` to 1."""
  marks = [
    el("text", label, x=x, y=10, cls="tick", text_anchor=anchor)
    for label, x, anchor in (
      (f"{start:g}", 4, "start"),
      (f"{(1 + start) / 2:g}", FOREST / 2, "middle"),
      ("1", FOREST - 4, "end"),
    )
  ]
  return el("svg", marks, viewbox=f"0 0 {FOREST} 13", width=FOREST, height=13, aria_hidden="true")


def over_time(run: Run) -> Html | None:
  """One chart per metric that was evaluated more than once during training."""
  trained = [e for e in run.evaluations if e.encoder == TRAINED]
  if len({e.step for e in trained}) < 2:
    return None
  latest = run.latest()
  names = sort_metrics({m for e in trained for m in e.metrics if not format.of_class(m)})
  main = summary.headline(latest)
  further = [m for m in names if m not in main]
  chosen = main + [m for m in further if not m.startswith("knn")] + further
  chosen = list(dict.fromkeys(chosen))
  figures = [figure for name in chosen[:6] if (figure := _course(run, name, names, main))]
  if not figures:
    return None
  others = figures[CHARTS_SHOWN:]
  return el(
    "div",
    el("div", figures[:CHARTS_SHOWN], cls="charts"),
    blocks.folded("Other metrics during training", el("div", others, cls="charts"))
    if others
    else None,
  )


def _course(run: Run, name: str, names: Sequence[str], main: Sequence[str]) -> Html | None:
  """Chart of a metric over training; None where it was evaluated once."""
  measured = [e for e in run.evaluations if e.encoder == TRAINED and name in e.metrics]
  if len(measured) < 2:
    return None
  steps, epochs = (np.array([getattr(e, k) for e in measured], float) for k in ("step", "epoch"))
  x, label = naming.time_axis(steps, epochs)
  y, low, high = (
    np.array([getattr(e.metrics[name], k) for e in measured]) for k in ("value", "low", "high")
  )
  latest, levels = run.latest(), []
  for encoder in (RANDOM, FLOOR):
    level = latest.get(encoder, {}).get(name)
    if level is None and encoder == FLOOR and name in main:
      level = summary.floor_auroc(latest)
    if level is not None:
      title, bounds = format.encoder(encoder, names), (level.value, level.low, level.high)
      levels.append(line_chart.Level(title, *bounds, style=STYLES[encoder]))
  line = line_chart.Line("Trained", x, y, low, high, points=True)
  return line_chart.chart(format.title(name), [line], x_label=label, levels=levels)

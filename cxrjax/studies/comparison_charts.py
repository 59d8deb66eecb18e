"""Charts of a comparison, and display names of its rows, data sets and heads."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from cxrjax.report.html import forest_chart, format, line_chart
from cxrjax.report.html.element import Html, el
from cxrjax.report.html.line_chart import Level, Line
from cxrjax.report.run_files import estimate, lookup, number
from cxrjax.studies.study_page import gain_chart, gain_mark, mark

Facts = Mapping[str, Any]
STYLES = {"knn": "s1", "whitened": "s2", "linear": "s4"}  # of the heads
DASHES = {"knn": "", "whitened": " dots", "linear": " dash"}
SHORT = {"knn": "kNN", "whitened": "whitened kNN", "linear": "probe"}
SETS = ("s1", "s2", "s4", "s3")


def row_name(study: Facts, row: Facts) -> str:
  """Display name of a run: its method, with the seed if there are several."""
  multiple_seeds = len({r["seed"] for r in study["rows"]}) > 1
  return f"{row['method']} {row['seed']}" if multiple_seeds else str(row["method"])


def set_name(study: Facts, name: str) -> str:
  """Display name of a data set; an evaluator called `probe` or `test` is named after its source."""
  if name in ("probe", "test"):
    source = str(lookup(study, "sets", name, "test", "name") or "").rstrip("/")
    name = re.split("[:/]", source)[-1] or "the evaluation data"
  return name.replace("_", " ")


def kind(head: str) -> str:
  """Kind of a head: `knn` of `knn20`."""
  return head.rstrip("0123456789")


def head_name(head: str) -> str:
  """Name of a head in charts."""
  if head == "linear":
    return "linear probe"
  return format.head(head).replace("kNN on whitened features", "whitened kNN")


def heads(study: Facts, name: str) -> list[str]:
  """Heads that were evaluated on a data set, nearest neighbours first."""
  return list(
    dict.fromkeys(h for row in study.get("rows", []) for h in lookup(row, "sets", name) or {})
  )


def finished(study: Facts) -> list[Facts]:
  """Rows of the runs that have results."""
  return [row for row in study.get("rows", []) if row.get("sets")]


def gains(study: Facts) -> Html | None:
  """Gain of trained over random, one chart per data set and head, colored by verdict."""
  rows = finished(study)
  figures = [
    gain_chart(
      f"{set_name(study, name)}: {head_name(head)}",
      [
        forest_chart.Row(row_name(study, row), [gain_mark(lookup(row, "sets", name, head, "gain"))])
        for row in rows
      ],
      "difference of AUROC",
    )
    for name in study.get("sets", {})
    for head in heads(study, name)
  ]
  two_columns = all(len(heads(study, name)) < 3 for name in study.get("sets", {}))
  if not rows or not figures:
    return None
  return el("div", figures, cls=f"charts {'two' if two_columns else 'three'}")


def scores(study: Facts) -> Html | None:
  """Scores of trained and random encoders, one chart per data set."""
  rows, figures = finished(study), []
  for name, test_set in study.get("sets", {}).items():
    names = heads(study, name)
    chart_rows = []
    for row in rows:
      marks = []
      for head in names:
        style = STYLES.get(kind(head), "s3")
        values = lookup(row, "sets", name, head)
        before = estimate(lookup(values, "random")).value
        marks += [
          forest_chart.Mark(before, style=style, hollow=True),
          mark(lookup(values, "trained"), style),
        ]
      chart_rows.append(forest_chart.Row(row_name(study, row), marks))
    floor = estimate(test_set.get("floor"))
    figures.append(
      forest_chart.chart(
        set_name(study, name),
        chart_rows,
        [(STYLES.get(kind(h), "s3"), head_name(h)) for h in names],
        x_label="AUROC",
        levels=[Level("thumbnail floor (probe)", floor.value, style="ref")],
      )
    )
  return el("div", figures, cls="charts two") if rows and figures else None


def courses(study: Facts) -> Html | None:
  """AUROC against the budget, one chart per run, all with the same axes."""
  rows, sets = finished(study), list(study.get("sets", {}))
  curves = {row["name"]: _course_lines(study, row, sets) for row in rows}
  values = np.concatenate([line.y for lines in curves.values() for line in lines] or [np.empty(0)])
  values = values[np.isfinite(values)]
  if not values.size:
    return None
  unit = _budget_unit(study)
  legend_lines = max(curves.values(), key=len)
  figures = [
    line_chart.chart(
      row_name(study, row),
      curves[row["name"]],
      unit="AUROC",
      legend=False,
      y_range=(float(values.min()), float(values.max())),
      height=180,
      x_label=f"forward {format.compact(unit, 'FLOP').removeprefix('1 ')}",
    )
    for row in rows
    if curves[row["name"]]
  ]
  return el("div", line_chart.lines_legend(legend_lines), el("div", figures, cls="charts"))


def _budget_unit(study: Facts) -> float:
  """Unit of the budget axis: 1e9, 1e12, ..."""
  return 10.0 ** (3 * math.floor(math.log10(max(number(study.get("budget")), 1.0)) / 3))


def _course_lines(study: Facts, row: Facts, sets: list[str]) -> list[Line]:
  """Lines of a run, colored by data set, dashed by head."""
  lines = []
  for name, style in zip(sets, SETS, strict=False):
    for head in heads(study, name):
      course = lookup(row, "sets", name, head, "course") or []
      if course:
        x, y = (np.array([number(p[i]) for p in course], np.float64) for i in range(2))
        short_name = SHORT.get(kind(head), head)
        lines.append(
          Line(
            f"{set_name(study, name)}, {short_name}",
            x / _budget_unit(study),
            y,
            style=style + DASHES.get(kind(head), ""),
            points=True,
          )
        )
  return lines

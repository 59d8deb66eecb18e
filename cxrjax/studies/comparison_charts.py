"""The charts of a comparison, and what its rows, data sets and heads are called."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from cxrjax.report.html import forest_chart, format, line_chart
from cxrjax.report.html.element import Html, el
from cxrjax.report.html.line_chart import Level, Line
from cxrjax.report.run_files import lookup, number
from cxrjax.studies.page_parts import VERDICTS, estimate, gain_mark, zero

Facts = Mapping[str, Any]
STYLES = {"knn": "s1", "whitened": "s2", "linear": "s4"}  # of the heads
DASHES = {"knn": "", "whitened": " dots", "linear": " dash"}
SHORT = {"knn": "kNN", "whitened": "whitened kNN", "linear": "probe"}
SETS = ("s1", "s2", "s4", "s3")


def row_name(found: Facts, row: Facts) -> str:
  """The method, with its seed where there are several."""
  several = len({r["seed"] for r in found["rows"]}) > 1
  return f"{row['method']} {row['seed']}" if several else str(row["method"])


def set_name(found: Facts, name: str) -> str:
  """A data set's name; of an evaluator called `probe` or `test`, that of its source."""
  if name in ("probe", "test"):
    source = str(lookup(found, "sets", name, "test", "name") or "").rstrip("/")
    name = re.split("[:/]", source)[-1] or "the evaluation data"
  return name.replace("_", " ")


def kind(head: str) -> str:
  """`knn20` is `knn`."""
  return head.rstrip("0123456789")


def head_name(head: str) -> str:
  if head == "linear":
    return "linear probe"
  return format.head(head).replace("kNN on whitened features", "whitened kNN")


def heads(found: Facts, name: str) -> list[str]:
  """What judged on a data set, neighbours first."""
  return list(
    dict.fromkeys(h for row in found.get("rows", []) for h in lookup(row, "sets", name) or {})
  )


def finished(found: Facts) -> list[Facts]:
  return [row for row in found.get("rows", []) if row.get("sets")]


def _mark(value: Any, style: str, hollow: bool = False) -> forest_chart.Mark:
  e = estimate(value)
  if hollow:
    return forest_chart.Mark(e.value, style=style, hollow=True)
  return forest_chart.Mark(e.value, e.low, e.high, style)


def gains(found: Facts) -> Html | None:
  """Trained less random, a chart for each data set and head; the sign is in the colour."""
  rows, figures = finished(found), []
  for name in found.get("sets", {}):
    for head in heads(found, name):
      shown = []
      for row in rows:
        gain = lookup(row, "sets", name, head, "gain")
        shown.append(forest_chart.Row(row_name(found, row), [gain_mark(gain)]))
      figures.append(
        forest_chart.chart(
          f"{set_name(found, name)}: {head_name(head)}",
          shown,
          VERDICTS,
          x_label="difference of AUROC",
          levels=[zero()],
        )
      )
  few = all(len(heads(found, name)) < 3 for name in found.get("sets", {}))
  return el("div", figures, cls=f"charts {'two' if few else 'three'}") if rows and figures else None


def scores(found: Facts) -> Html | None:
  """Trained and random side by side, a chart for each data set."""
  rows, figures = finished(found), []
  for name, facts in found.get("sets", {}).items():
    names = heads(found, name)
    shown = []
    for row in rows:
      marks = []
      for head in names:
        style = STYLES.get(kind(head), "s3")
        values = lookup(row, "sets", name, head)
        marks += [
          _mark(lookup(values, "random"), style, hollow=True),
          _mark(lookup(values, "trained"), style),
        ]
      shown.append(forest_chart.Row(row_name(found, row), marks))
    floor = estimate(facts.get("floor"))
    figures.append(
      forest_chart.chart(
        set_name(found, name),
        shown,
        [(STYLES.get(kind(h), "s3"), head_name(h)) for h in names],
        x_label="AUROC",
        levels=[Level("thumbnail floor (probe)", floor.value, style="ref")],
      )
    )
  return el("div", figures, cls="charts two") if rows and figures else None


def courses(found: Facts) -> Html | None:
  """AUROC over the budget, a chart for each run, all with the same axes."""
  rows, sets = finished(found), list(found.get("sets", {}))
  drawn = {row["name"]: _course(found, row, sets) for row in rows}
  values = np.concatenate([line.y for lines in drawn.values() for line in lines] or [np.empty(0)])
  values = values[np.isfinite(values)]
  if not values.size:
    return None
  unit = _unit(found)
  longest = max(drawn.values(), key=len)
  figures = [
    line_chart.chart(
      row_name(found, row),
      drawn[row["name"]],
      unit="AUROC",
      legend=False,
      y_range=(float(values.min()), float(values.max())),
      height=180,
      x_label=f"forward {format.compact(unit, 'FLOP').removeprefix('1 ')}",
    )
    for row in rows
    if drawn[row["name"]]
  ]
  return el("div", line_chart.lines_legend(longest), el("div", figures, cls="charts"))


def _unit(found: Facts) -> float:
  """1e9, 1e12, ..., in which the budget is told."""
  return 10.0 ** (3 * math.floor(math.log10(max(number(found.get("budget")), 1.0)) / 3))


def _course(found: Facts, row: Facts, sets: list[str]) -> list[Line]:
  """A colour for each data set, a dash for each head."""
  lines = []
  for name, style in zip(sets, SETS, strict=False):
    for head in heads(found, name):
      course = lookup(row, "sets", name, head, "course") or []
      if course:
        x, y = (np.array([number(p[i]) for p in course], np.float64) for i in range(2))
        by = SHORT.get(kind(head), head)
        lines.append(
          Line(
            f"{set_name(found, name)}, {by}",
            x / _unit(found),
            y,
            style=style + DASHES.get(kind(head), ""),
            points=True,
          )
        )
  return lines

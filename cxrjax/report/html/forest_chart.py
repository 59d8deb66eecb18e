"""Forest charts as SVG: points with intervals, one row per item; conventions as in `line_chart`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from cxrjax.report.html import blocks, format, line_chart
from cxrjax.report.html.element import Html, el
from cxrjax.report.html.line_chart import Level, Real

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 380, 108, 10, 8, 34
ROW, STEP = 12, 9  # height in pixels of a row without marks, and of each mark
LETTERS = 14  # most letters of a row's name


@dataclasses.dataclass(frozen=True)
class Mark:
  """A value with its interval; a `hollow` mark is a reference, drawn on the line of the next."""

  value: float
  low: float = math.nan
  high: float = math.nan
  style: str = "s1"
  hollow: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
  """A labelled row of marks."""

  label: str
  marks: Sequence[Mark]


def chart(
  title: str,
  rows: Sequence[Row],
  legend: Sequence[tuple[str, str]],
  *,
  x_label: str,
  levels: Sequence[Level] = (),
  note: str = "",
) -> Html:
  """A forest chart.

  Args:
    title: heading of the figure.
    rows: from top to bottom.
    legend: style and meaning of the marks; a style is a class of `key`.
    x_label: name of the values.
    levels: vertical references; they are in the legend.
    note: small text below the title.
  """
  caption = el("figcaption", el("b", title))
  values = [v for row in rows for m in row.marks for v in (m.value, m.low, m.high)]
  values += [v for level in levels for v in (level.y, level.low, level.high)]
  finite = np.array([v for v in values if math.isfinite(v)])
  if not finite.size:
    return el("figure", caption, el("p", "Nothing to show yet.", cls="empty"), cls="chart")
  pad = max(0.04 * float(np.ptp(finite)), 0.005)
  low, high = float(finite.min()) - pad, float(finite.max()) + pad
  ticks = line_chart.ticks(low, high, 5)

  def to_x(v: Real) -> float:
    return LEFT + (float(v) - low) / (high - low) * (WIDTH - RIGHT - LEFT)

  heights = [ROW + STEP * max(sum(not m.hollow for m in row.marks), 1) for row in rows]
  base = TOP + sum(heights)
  body = [_grid(ticks, to_x, base, x_label)]
  for level in (v for v in levels if math.isfinite(v.y)):
    if math.isfinite(level.low) and math.isfinite(level.high):
      body.append(
        el(
          "rect",
          x=f"{to_x(level.low):.1f}",
          y=TOP,
          height=base - TOP,
          width=f"{to_x(level.high) - to_x(level.low):.1f}",
          cls=f"band {level.style}",
        )
      )
    x = f"{to_x(level.y):.1f}"
    body.append(el("line", x1=x, x2=x, y1=TOP, y2=base, cls=f"level {level.style}"))
  top = TOP
  for row, height in zip(rows, heights, strict=True):
    body.append(_row(row, top, height, to_x))
    top += height
  items = [el("span", el("i", cls=f"key {style}"), text) for style, text in legend]
  items += [
    el("span", el("i", cls=f"key dashed {v.style}"), v.label)
    for v in levels
    if math.isfinite(v.y) and v.label
  ]
  svg = el("svg", body, viewbox=f"0 0 {WIDTH} {base + BOTTOM}", role="img", aria_label=title)
  return el(
    "figure",
    caption,
    el("div", items, cls="legend"),
    blocks.note(note) if note else None,
    svg,
    cls="chart",
  )


def _grid(ticks, to_x, base, x_label):
  marks = []
  for tick, label in zip(ticks, line_chart.tick_labels(ticks), strict=True):
    x = f"{to_x(tick):.1f}"
    marks.append(el("line", x1=x, x2=x, y1=TOP, y2=base, cls="grid"))
    marks.append(
      el(
        "text",
        label,
        x=x,
        y=base + 14,
        cls="tick",
        text_anchor="end" if to_x(tick) > WIDTH - RIGHT - 8 else "middle",
      )
    )
  marks.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, cls="axis"))
  marks.append(
    el(
      "text",
      x_label,
      x=(LEFT + WIDTH - RIGHT) / 2,
      y=base + BOTTOM - 4,
      cls="label",
      text_anchor="middle",
    )
  )
  return marks


def _row(row, top, height, to_x):
  name = (
    row.label
    if len(row.label) <= LETTERS
    else (row.label[: LETTERS - 1] + "\N{HORIZONTAL ELLIPSIS}")
  )
  marks = [
    el("text", name, x=LEFT - 8, y=top + height / 2, dy="0.35em", cls="tick", text_anchor="end")
  ]
  y = top + ROW / 2 + STEP / 2
  tooltip = [row.label]
  for mark in row.marks:
    if math.isfinite(mark.value):
      at_y = f"{y:.1f}"
      if math.isfinite(mark.low) and math.isfinite(mark.high):
        marks.append(
          el(
            "line",
            x1=f"{to_x(mark.low):.1f}",
            x2=f"{to_x(mark.high):.1f}",
            y1=at_y,
            y2=at_y,
            cls=f"whisker {mark.style}",
          )
        )
      marks.append(
        el(
          "circle",
          cx=f"{to_x(mark.value):.1f}",
          cy=at_y,
          r=3,
          cls=f"{'ring' if mark.hollow else 'dot'} {mark.style}",
        )
      )
      text = "random encoder " if mark.hollow else ""
      text += format.decimal(mark.value)
      if math.isfinite(mark.low):
        text += f" ({format.decimal(mark.low)} to {format.decimal(mark.high)})"
      tooltip.append(text)
    y += 0 if mark.hollow else STEP
  marks.append(
    el("rect", el("title", "\n".join(tooltip)), x=0, y=top, width=WIDTH, height=height, cls="hit")
  )
  return marks

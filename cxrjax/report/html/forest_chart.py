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
  levels = [level for level in levels if math.isfinite(level.y)]
  values = [v for row in rows for m in row.marks for v in (m.value, m.low, m.high)]
  values += [v for level in levels for v in (level.y, level.low, level.high)]
  finite = np.array([v for v in values if math.isfinite(v)])
  if not finite.size:
    return el("figure", caption, el("p", "Nothing to show yet.", cls="empty"), cls="chart")
  pad = max(0.04 * float(np.ptp(finite)), 0.005)
  low, high = float(finite.min()) - pad, float(finite.max()) + pad

  def to_x(v: Real) -> float:
    return LEFT + (float(v) - low) / (high - low) * (WIDTH - RIGHT - LEFT)

  heights = [ROW + STEP * max(sum(not m.hollow for m in row.marks), 1) for row in rows]
  tops = np.cumsum([TOP, *heights]).tolist()
  base = tops[-1]
  keys = [("key", *item) for item in legend]
  keys += [("key dashed", level.style, level.label) for level in levels if level.label]
  svg = el(
    "svg",
    _grid(line_chart.ticks(low, high, 5), to_x, base, x_label),
    [_level(level, to_x, base) for level in levels],
    [_row(row, y, h, to_x) for row, y, h in zip(rows, tops[:-1], heights, strict=True)],
    viewbox=f"0 0 {WIDTH} {base + BOTTOM}",
    role="img",
    aria_label=title,
  )
  return el(
    "figure",
    caption,
    el("div", [el("span", el("i", cls=f"{c} {style}"), t) for c, style, t in keys], cls="legend"),
    blocks.note(note) if note else None,
    svg,
    cls="chart",
  )


def _level(level, to_x, base):
  """A vertical reference, with a band where it has an interval."""
  x, marks = f"{to_x(level.y):.1f}", []
  if math.isfinite(level.low) and math.isfinite(level.high):
    left, width = to_x(level.low), f"{to_x(level.high) - to_x(level.low):.1f}"
    band = {"x": f"{left:.1f}", "y": TOP, "height": base - TOP, "width": width}
    marks.append(el("rect", **band, cls=f"band {level.style}"))
  return [*marks, el("line", x1=x, x2=x, y1=TOP, y2=base, cls=f"level {level.style}")]


def _grid(ticks, to_x, base, x_label):
  marks = []
  for tick, label in zip(ticks, line_chart.tick_labels(ticks), strict=True):
    x, anchor = f"{to_x(tick):.1f}", "end" if to_x(tick) > WIDTH - RIGHT - 8 else "middle"
    marks.append(el("line", x1=x, x2=x, y1=TOP, y2=base, cls="grid"))
    marks.append(el("text", label, x=x, y=base + 14, cls="tick", text_anchor=anchor))
  middle = {"x": (LEFT + WIDTH - RIGHT) / 2, "y": base + BOTTOM - 4}
  marks.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, cls="axis"))
  marks.append(el("text", x_label, **middle, cls="label", text_anchor="middle"))
  return marks


def _row(row, top, height, to_x):
  name, is_long = row.label, len(row.label) > LETTERS
  name = name[: LETTERS - 1] + "\N{HORIZONTAL ELLIPSIS}" if is_long else name
  marks = [
    el("text", name, x=LEFT - 8, y=top + height / 2, dy="0.35em", cls="tick", text_anchor="end")
  ]
  y = top + ROW / 2 + STEP / 2
  tooltip = [row.label]
  for mark in row.marks:
    if math.isfinite(mark.value):
      x, at_y = f"{to_x(mark.value):.1f}", f"{y:.1f}"
      if math.isfinite(mark.low) and math.isfinite(mark.high):
        left, right = (f"{to_x(v):.1f}" for v in (mark.low, mark.high))
        whisker = f"whisker {mark.style}"
        marks.append(el("line", x1=left, x2=right, y1=at_y, y2=at_y, cls=whisker))
      shape = "ring" if mark.hollow else "dot"
      marks.append(el("circle", cx=x, cy=at_y, r=3, cls=f"{shape} {mark.style}"))
      text = ("random encoder " if mark.hollow else "") + format.decimal(mark.value)
      if math.isfinite(mark.low):
        text += f" ({format.decimal(mark.low)} to {format.decimal(mark.high)})"
      tooltip.append(text)
    y += 0 if mark.hollow else STEP
  marks.append(
    el("rect", el("title", "\n".join(tooltip)), x=0, y=top, width=WIDTH, height=height, cls="hit")
  )
  return marks

"""Line charts as SVG: sensible ticks, bounded size, hover text, no script.

Colours and line styles are classes of the style sheet, so a chart follows the reader's light or
dark scheme.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from cxrjax.report.html import blocks, format
from cxrjax.report.html.element import Html, el

Real = float | int

WIDTH, HEIGHT = 380, 216
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 12, 34
BINS = 160  # lines with more points are drawn as mean and range of this many bins
HOVERS = 60  # most columns with hover text


@dataclasses.dataclass(frozen=True)
class Line:
  """A curve; `low` and `high` give a band (dense lines, or with `dots`) or whiskers (`points`)."""

  label: str
  x: Float[np.ndarray, "n"]
  y: Float[np.ndarray, "n"]
  low: Float[np.ndarray, "n"] | None = None
  high: Float[np.ndarray, "n"] | None = None
  style: str = "s1"
  points: bool = False
  dots: bool = False


@dataclasses.dataclass(frozen=True)
class Level:
  """A horizontal reference, with an interval around it where `low` and `high` are finite."""

  label: str
  y: float
  low: float = math.nan
  high: float = math.nan
  style: str = "ref"
  inside: bool = False  # name it in the chart rather than in the legend


def chart(
  title: str,
  lines: Sequence[Line],
  *,
  x_label: str,
  levels: Sequence[Level] = (),
  unit: str = "",
  note: str = "",
  log: bool = False,
  y_range: tuple[Real, Real] | None = None,
  height: int = HEIGHT,
  legend: bool = True,
  x_log: Sequence[Real] = (),
) -> Html:
  """A figure with title, legend and plot.

  Args:
    title: what is drawn.
    lines: at least one; points that are not finite break the line.
    x_label: name of the horizontal axis.
    levels: horizontal references.
    unit: of the values, after the title.
    note: small text below.
    log: logarithmic vertical axis; only used where all values are positive.
    y_range: limits that must be inside the axis.
    height: of the drawing, whose width is WIDTH.
    legend: whether to name the lines; figures that share a legend use `lines_legend`.
    x_log: ticks of a logarithmic horizontal axis, all positive; if empty, the axis is linear.
  """
  x_values = np.concatenate([line.x for line in lines])
  lines = [_bin(line) for line in lines]
  finite = [line.y[np.isfinite(line.y)] for line in lines]
  levels = [level for level in levels if math.isfinite(level.y)]
  key = lines_legend(lines, [v for v in levels if not v.inside]) if legend else None
  caption = el("figcaption", el("b", title), el("span", unit, cls="unit") if unit else None)
  if not sum(y.size for y in finite):
    return el("figure", caption, el("p", "No finite value yet.", cls="empty"), cls="chart")
  log = log and all((y > 0).all() for y in finite)
  x_ticks, x_scale = _x_axis(x_values, lines, x_log)
  top = TOP + (14 if any(level.inside for level in levels) else 0)
  y_ticks, y_scale = _axis(_extent(lines, levels, y_range), height - BOTTOM, top, 5, log=log)
  # A nested drawing clips what lies outside the axes, without ids that could clash.
  marks = [_level_marks(level, y_scale) for level in levels]
  for line in lines:
    marks += _line_marks(line, x_scale, y_scale)
  x, y, w, h = LEFT, TOP - 4, WIDTH - LEFT - RIGHT, height - TOP - BOTTOM + 8
  svg = el(
    "svg",
    _grid(x_ticks, y_ticks, x_scale, y_scale, x_label, height),
    el("svg", marks, viewbox=f"{x} {y} {w} {h}", x=x, y=y, width=w, height=h),
    [_level_label(level, y_scale) for level in levels if level.inside],
    _hover_columns(lines, x_scale, x_label, height),
    viewbox=f"0 0 {WIDTH} {height}",
    role="img",
    aria_label=f"{title} over {x_label}: {_last_values(lines)}",
  )
  return el("figure", caption, key, blocks.note(note) if note else None, svg, cls="chart")


def _last_values(lines):
  """The last finite value of every line, in words."""
  finite = [(line.label, line.y[np.isfinite(line.y)]) for line in lines]
  return "; ".join(f"{label} ends at {format.short(float(y[-1]))}" for label, y in finite if y.size)


def _x_axis(values, lines, log_ticks):
  """Ticks of the horizontal axis, by default linear, and the function from values to pixels."""
  has_points = any(line.points or line.dots for line in lines)
  margin = 8 if has_points else 0
  ticks, scale = _axis(
    values, LEFT, WIDTH - RIGHT, 6, tight=True, log=bool(log_ticks), margin=margin
  )
  ticks = list(log_ticks) or ticks
  if (values == np.round(values)).all():
    ticks = [t for t in ticks if t == round(t)] or ticks  # there is no step 1.5
  return ticks, scale


def ticks(low: Real, high: Real, n: int) -> list[Real]:
  """About `n` round numbers (1, 2, 2.5 or 5 times a power of ten) in [low, high]."""
  span = high - low
  if not (span > 0 and math.isfinite(span)):
    return [low]
  spacing = span / max(n, 1)
  power = 10.0 ** math.floor(math.log10(spacing))
  step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= spacing * 0.999)
  first = math.ceil(low / step - 1e-9)
  values = [k * step for k in range(first, first + 4 * n + 4) if k * step <= high + 1e-9 * span]
  return [0.0 if abs(t) < 1e-9 * step else t for t in values]


def log_ticks(low: Real, high: Real) -> list[Real]:
  """Powers of ten in [low, high], also times 3, or 2 and 5, where there are few."""
  decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  for factors in ((1,), (1, 3), (1, 2, 5)):
    values = [
      f * 10.0**d for d in decades for f in factors if low * 0.999 <= f * 10.0**d <= high * 1.001
    ]
    if len(values) >= 3:
      break
  if len(values) < 2:
    return ticks(low, high, 4)
  return values[:: max(1, math.ceil(len(values) / 6))]


def _extent(lines, levels, y_range):
  """Values that the vertical axis must include; rare spikes of a noisy band may lie outside."""
  values = [line.y[np.isfinite(line.y)] for line in lines]
  for line in lines:
    for bound, q in ((line.low, 2), (line.high, 98)):
      if bound is not None and np.isfinite(bound).any():
        finite = bound[np.isfinite(bound)]
        values.append(finite if line.points else np.array([np.percentile(finite, q)]))
  for level in levels:
    values.append(np.array([v for v in (level.y, level.low, level.high) if math.isfinite(v)]))
  if y_range:
    values.append(np.array(y_range))
  return np.concatenate(values)


def _axis(values, start, end, n, *, log=False, tight=False, margin=0.0):
  """Ticks, and the function that maps values to pixels."""
  finite = values[np.isfinite(values)]
  low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
  if log:
    if high / low < 1.01:
      low, high = low / 1.5, high * 1.5
    a, b = math.log(low), math.log(high)
    pad = 0.04 * (b - a)
    a, b = a - pad, b + pad
    to_pixels = _linear(a, b, start, end)
    return log_ticks(math.exp(a), math.exp(b)), lambda v: to_pixels(np.log(np.maximum(v, 1e-300)))
  if high - low <= 1e-9 * max(abs(high), abs(low), 1e-9):
    pad = 0.5 if tight else max(abs(low) * 0.05, 1e-3 if low else 0.5)
  else:
    pad = 0.0 if tight else 0.06 * (high - low)
  nonnegative = low >= 0
  low, high = low - pad, high + pad
  if nonnegative and low < 0 and not tight:
    low = 0.0
  inset = math.copysign(margin, end - start)
  return ticks(low, high, n), _linear(low, high, start + inset, end - inset)


def _linear(low, high, start, end):
  return lambda v: start + (np.asarray(v) - low) / (high - low) * (end - start)


def _bin(line: Line) -> Line:
  """At most BINS points: the mean of each bin of consecutive points, and its range as a band."""
  order = np.argsort(line.x, kind="stable")
  order = order[np.isfinite(line.x[order])]
  x, y = line.x[order], line.y[order]
  low = None if line.low is None else line.low[order]
  high = None if line.high is None else line.high[order]
  if len(x) > BINS:
    edges = np.linspace(0, len(x), BINS + 1).astype(int)[:-1]
    sizes = np.diff(np.append(edges, len(x)))
    finite = np.isfinite(y)
    counts = np.add.reduceat(finite, edges)
    sums = np.add.reduceat(np.where(finite, y, 0), edges)
    with np.errstate(invalid="ignore"):
      mean = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    low = np.minimum.reduceat(np.where(finite, y if low is None else low, np.inf), edges)
    high = np.maximum.reduceat(np.where(finite, y if high is None else high, -np.inf), edges)
    low, high = (np.where(counts > 0, v, np.nan) for v in (low, high))
    x, y = np.add.reduceat(x, edges) / sizes, mean
  return dataclasses.replace(line, x=x, y=y, low=low, high=high)


def _grid(x_ticks, y_ticks, x_scale, y_scale, x_label, height):
  marks = []
  labels = tick_labels(y_ticks)
  for tick, label in zip(y_ticks, labels, strict=True):
    y = f"{float(y_scale(tick)):.1f}"
    marks.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, cls="grid"))
    marks.append(el("text", label, x=LEFT - 6, y=y, dy="0.35em", cls="tick", text_anchor="end"))
  base = height - BOTTOM + 4
  for tick, label in zip(x_ticks, tick_labels(x_ticks), strict=True):
    x = float(x_scale(tick))
    marks.append(el("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=base, y2=base + 3, cls="axis"))
    anchor = "end" if x > WIDTH - RIGHT - 8 else "middle"
    marks.append(el("text", label, x=f"{x:.1f}", y=base + 14, cls="tick", text_anchor=anchor))
  marks.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, cls="axis"))
  marks.append(
    el(
      "text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=height - 3, cls="label", text_anchor="middle"
    )
  )
  return marks


def tick_labels(values: Sequence[Real]) -> list[str]:
  """The ticks' labels, all with the same number of decimals."""
  largest = max((abs(v) for v in values), default=0.0)
  if largest >= 1e5 or 0 < largest < 1e-3:
    return [format.short(v) for v in values]
  for digits in range(6):
    if all(abs(round(v, digits) - v) <= 1e-6 * max(largest, 1e-12) for v in values):
      if digits > 4:
        break  # too long for the margin
      return [f"{v:,.{digits}f}".replace("-", "\N{MINUS SIGN}") for v in values]
  return [format.short(v) for v in values]


def _path_data(x, y):
  """SVG path data through finite points, with gaps at the others."""
  data, command = "", "M"
  for a, b in zip(x, y, strict=True):
    is_finite = math.isfinite(a) and math.isfinite(b)
    data += f"{command}{a:.1f} {b:.1f}" if is_finite else ""
    command = "L" if is_finite else "M"
  return data


def _line_marks(line, x_scale, y_scale):
  x, y = x_scale(line.x), y_scale(line.y)
  marks = []
  if line.low is not None and not line.points:
    finite = np.isfinite(line.low) & np.isfinite(line.high)
    if finite.sum() > 1:
      outline = np.concatenate([x[finite], x[finite][::-1]])
      bounds = np.concatenate([y_scale(line.high[finite]), y_scale(line.low[finite])[::-1]])
      marks.append(el("path", d=_path_data(outline, bounds) + "Z", cls=f"band {line.style}"))
  marks.append(el("path", d=_path_data(x, y), cls=f"line {line.style}"))
  is_single = len(x) == 1
  has_whiskers = line.low is not None and (line.points or is_single)
  for i in np.flatnonzero(np.isfinite(y)) if line.points or line.dots or is_single else ():
    at = f"{x[i]:.1f}"
    if has_whiskers and math.isfinite(line.low[i]) and math.isfinite(line.high[i]):
      top, bottom = (f"{float(y_scale(v)):.1f}" for v in (line.high[i], line.low[i]))
      marks.append(el("line", x1=at, x2=at, y1=top, y2=bottom, cls=f"whisker {line.style}"))
    marks.append(el("circle", cx=at, cy=f"{y[i]:.1f}", r=3, cls=f"dot {line.style}"))
  return marks


def _level_marks(level, y_scale):
  marks = []
  if math.isfinite(level.low) and math.isfinite(level.high):
    top, bottom = float(y_scale(level.high)), float(y_scale(level.low))
    marks.append(
      el(
        "rect",
        x=LEFT,
        width=WIDTH - LEFT - RIGHT,
        y=f"{top:.1f}",
        height=f"{max(bottom - top, 0):.1f}",
        cls=f"band {level.style}",
      )
    )
  y = f"{float(y_scale(level.y)):.1f}"
  marks.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, cls=f"level {level.style}"))
  return marks


def _level_label(level, y_scale):
  y = float(y_scale(level.y))
  return el(
    "text", level.label, x=WIDTH - RIGHT - 2, y=f"{y - 5:.1f}", cls="tick named", text_anchor="end"
  )


def lines_legend(lines: Sequence[Line], levels: Sequence[Level] = ()) -> Html | None:
  """Legend of lines and levels; None where there are fewer than two."""
  if len(lines) + len(levels) < 2:
    return None
  items = [el("span", el("i", cls=f"key {line.style}"), line.label) for line in lines]
  items += [el("span", el("i", cls=f"key dashed {v.style}"), v.label) for v in levels]
  return el("div", items, cls="legend")


def _hover_columns(lines, x_scale, x_label, height):
  """Invisible columns whose tooltips show the values below the pointer."""
  longest = max(lines, key=lambda line: len(line.x))
  x = longest.x[:: max(1, math.ceil(len(longest.x) / HOVERS))]
  if not len(x):
    return None
  at = x_scale(x)
  edges = np.concatenate([[LEFT], (at[1:] + at[:-1]) / 2, [WIDTH - RIGHT]])
  columns = []
  for i, value in enumerate(x):
    text = [f"{x_label} {format.short(float(value))}"]
    for line in lines:
      j = int(np.argmin(np.abs(line.x - value)))
      bounds = ""
      if line.low is not None and math.isfinite(line.low[j]) and math.isfinite(line.high[j]):
        bounds = (
          f" ({format.short(float(line.low[j]))}\N{EN DASH}{format.short(float(line.high[j]))})"
        )
      text.append(f"{line.label}: {format.short(float(line.y[j]))}{bounds}")
    columns.append(
      el(
        "rect",
        el("title", "\n".join(text)),
        x=f"{edges[i]:.1f}",
        y=TOP,
        width=f"{max(edges[i + 1] - edges[i], 0.5):.1f}",
        height=height - TOP - BOTTOM,
        cls="hit",
      )
    )
  return columns

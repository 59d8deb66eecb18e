"""A classifier on the page: in words, its calibration, and how it does in subgroups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cxrjax.metrics import intervals
from cxrjax.report import naming
from cxrjax.report.html import format, line_chart
from cxrjax.report.html.element import Html, el
from cxrjax.report.html.format import Estimate
from cxrjax.report.run_files import FLOOR, TRAINED, Run, lookup, number

IN_WORDS = ("accuracy", "sensitivity", "specificity")


def called(run: Run) -> bool:
  """Whether a run, of one evaluator, is judged by the classes it predicts."""
  return any("auroc" in e.metrics for e in run.evaluations)


def judged(run: Run, evaluator: str) -> list[Any]:
  """How well it tells the classes apart, for the summary."""
  latest = run.latest()
  own, floor = latest.get(TRAINED, {}), latest.get(FLOOR, {}).get("auroc")
  where = run.fact("data", evaluator)
  where = lookup(where, "test") or where
  if "auroc" not in own:
    return [naming.images_named(evaluator), ": its predictions have not been judged yet."]
  area = own["auroc"]
  text: list[Any] = naming.judged_on(evaluator, area.n, where)
  if not math.isfinite(area.value):
    text.append(f" its AUROC is undefined ({area.undefined})")
  else:
    text += [
      " its AUROC is ",
      el("b", format.estimate(area), cls="nowrap"),
      " (0.5 is guessing, 1 perfect)" if evaluator != "validation" else "",
    ]
    if floor is not None and math.isfinite(floor.value):
      text += [
        " against ",
        el("span", format.estimate(floor), cls="nowrap"),
        " for a linear model of raw thumbnails",
      ]
  said = [(m, own[m]) for m in IN_WORDS if m in own and math.isfinite(own[m].value)]
  for i, (measure, value) in enumerate(said):
    text += [
      "; " if not i else " and " if i == len(said) - 1 else ", ",
      format.measure(measure).lower(),
      " ",
      el("span", format.estimate(value), cls="nowrap"),
    ]
  return [*text, ".", naming.judged_once(run, evaluator)]


def calibration(run: Run) -> Html | None:
  """The reliability diagram of the trained network, before and after its temperature."""
  evaluator = next(iter(run.evaluators()), "")
  found = run.fact("evaluation", evaluator, TRAINED)
  bins = lookup(found, "reliability", "calibrated")
  if not isinstance(bins, list) or not bins:
    return None
  temperatures = [number(t) for t in found.get("temperature") or []]
  lines = [_reliability("Calibrated", bins, "s1", True)]
  before = lookup(found, "reliability", "uncalibrated")
  mended = any(abs(t - 1) > 1e-9 for t in temperatures)
  if mended and isinstance(before, list) and before:
    lines.append(_reliability("Before", before, "s2 dash", False))
  ideal = np.array([0.0, 1.0])
  lines.append(line_chart.Line("Ideal", ideal, ideal, style="ref"))
  share = "share that came true"
  figure = line_chart.chart(
    "Reliability",
    lines,
    x_label="predicted probability",
    unit=share,
    y_range=(0.0, 1.0),
    height=300,
  )
  note = el("p", _about_calibration(run, found, temperatures, mended), cls="note")
  drawn = el("div", el("div", figure, cls="charts one"), note, cls="split")
  return el("div", el("h3", "Calibration"), drawn, cls="part")


def _reliability(label: str, bins: Sequence[Any], style: str, whiskers: bool) -> line_chart.Line:
  n, came = (np.array([number(b.get(k)) for b in bins]) for k in ("n", "came"))
  x = np.array([number(b.get("probability")) for b in bins])
  ends = np.array([intervals.wilson(c / m, int(m)) for c, m in zip(came, n, strict=True)])
  low, high = ends.T if whiskers else (None, None)
  return line_chart.Line(label, x, came / n, low, high, style=style, points=whiskers)


def _about_calibration(
  run: Run, found: Mapping[str, Any], temperatures: Sequence[float], mended: bool
) -> str:
  own = run.latest().get(TRAINED, {})
  several = len(temperatures) > 1
  text = "Radiographs by their predicted probability; bars are Wilson's 95 % intervals"
  text += ", all findings together. " if several else ". "
  if mended:
    of = ", ".join(f"{t:.2f}" for t in temperatures[:6]) + (", ..." if temperatures[6:] else "")
    text += f"Logits are divided by a temperature of {of}, fitted to the validation images. "
  elif not found.get("temperature_remarks"):
    text += "The probabilities are as the network gives them. "
  for remark in (found.get("temperature_remarks") or [])[:3]:
    text += f"{remark[:1].upper()}{remark[1:]}. "
  error, before = own.get("ece"), own.get("ece/uncalibrated")
  if error is not None and math.isfinite(error.value):
    text += f"Expected calibration error {format.estimate(error)}"
    if mended and before is not None:
      text += f", before {format.estimate(before)}"
    chance = found.get("ece_by_chance")
    if isinstance(chance, list) and len(chance) == 2:
      text += (
        f"; perfect calibration would show {format.decimal(number(chance[0]))} by chance on "
        f"so many images, and up to {format.decimal(number(chance[1]))}"
      )
    text += "."
  return text


COLUMNS = ("auroc", "sensitivity", "specificity")


def subgroups(run: Run) -> Html | None:
  """AUROC, sensitivity and specificity by age, sex, view and site."""
  evaluator = next(iter(run.evaluators()), "")
  rows = run.fact("evaluation", evaluator, TRAINED, "subgroups")
  notes = run.fact("evaluation", evaluator, TRAINED, "subgroup_remarks")
  notes = [str(n) for n in notes] if isinstance(notes, list) else []
  rows = [r for r in rows if isinstance(r, Mapping)] if isinstance(rows, list) else []
  if not rows:
    return None
  classes = list(dict.fromkeys(str(r.get("class")) for r in rows))
  whole = run.latest().get(TRAINED, {})
  tables = []
  for name in classes:
    own = [r for r in rows if str(r.get("class")) == name]
    of = {m: whole.get(f"{m}/{name}" if len(classes) > 1 else m) for m in COLUMNS}
    table = _table(own, of, name)
    tables.append(table if len(classes) == 1 else el("details", el("summary", name), table))
  said = (
    "Decisions are those of the results above. 95 % intervals speak of one group at a "
    "time; of many groups some differ by chance. n/a: fewer than five patients decide it."
  )
  remarks = f" Not shown: {'; '.join(notes)}." if notes else ""
  return el("div", el("h3", "Subgroups"), tables, el("p", said + remarks, cls="note"), cls="part")


def _table(rows: Sequence[Mapping[str, Any]], whole: Mapping[str, Any], name: str) -> Html:
  head = el(
    "tr",
    el("th", "Group", scope="col"),
    el("th", "Images", scope="col", cls="num"),
    el("th", name, scope="col", cls="num"),
    [el("th", format.measure(m), scope="col", cls="num") for m in COLUMNS],
  )
  body = []
  if all(whole.values()):
    first = [row for row in rows if row.get("by") == rows[0].get("by")]
    n, positives = (sum(number(row.get(key)) for row in first) for key in ("n", "positives"))
    known = n == whole["auroc"].n  # else some groups are not told of
    body.append(
      el(
        "tr",
        el("th", "All", scope="row"),
        [el("td", format.count(v) if known else "", cls="num") for v in (n, positives)],
        [_cell(whole[m]) for m in COLUMNS],
      )
    )
  by = None
  for row in rows:
    if row.get("by") != by:
      by = row.get("by")
      body.append(
        el(
          "tr",
          el("th", str(by).capitalize(), scope="rowgroup", colspan=3 + len(COLUMNS)),
          cls="group",
        )
      )
    body.append(
      el(
        "tr",
        el("th", str(row.get("group")), scope="row"),
        el("td", format.count(row.get("n")), cls="num"),
        el("td", format.count(row.get("positives")), cls="num"),
        [_cell(estimate(row.get(m))) for m in COLUMNS],
      )
    )
  table = el("table", el("thead", head), el("tbody", body), cls="results")
  return el("div", table, cls="scroll")


def _cell(e: Estimate) -> Html:
  bounds = format.interval(e)
  return el(
    "td",
    format.decimal(e.value),
    " " if bounds else None,
    el("small", f"({bounds})") if bounds else None,
    cls="num" if math.isfinite(e.value) else "num none",
    title=e.undefined or None,
  )


def estimate(value: Any) -> Estimate:
  mean, low, high = (number(lookup(value, k)) for k in ("value", "low", "high"))
  return Estimate(mean, low, high, undefined=str(lookup(value, "undefined") or ""))

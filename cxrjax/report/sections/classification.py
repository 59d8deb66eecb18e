"""Classifier results on the page: summary in words, calibration, and subgroups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cxrjax.metrics import intervals
from cxrjax.report import naming
from cxrjax.report.html import blocks, format, line_chart
from cxrjax.report.html.element import Html, el
from cxrjax.report.html.format import Estimate
from cxrjax.report.run_files import FLOOR, TRAINED, Run, estimate, lookup, number

IN_WORDS = ("accuracy", "sensitivity", "specificity")


def has_predictions(run: Run) -> bool:
  """Whether a run (of one evaluator) is judged by the classes that it predicts."""
  return any("auroc" in e.metrics for e in run.evaluations)


def describe(run: Run, evaluator: str) -> list[Any]:
  """Describes for the summary how well the network tells the classes apart."""
  latest = run.latest()
  metrics, floor = latest.get(TRAINED, {}), latest.get(FLOOR, {}).get("auroc")
  facts = run.fact("data", evaluator)
  facts = lookup(facts, "test") or facts
  if "auroc" not in metrics:
    return [naming.images_named(evaluator), ": its predictions have not been evaluated yet."]
  auroc = metrics["auroc"]
  sentence: list[Any] = naming.judged_on(evaluator, auroc.n, facts)
  if not math.isfinite(auroc.value):
    sentence.append(f" its AUROC is undefined ({auroc.undefined})")
  else:
    sentence += [
      " its AUROC is ",
      el("b", format.estimate(auroc), cls="nowrap"),
      " (0.5 is guessing, 1 is perfect)" if evaluator != "validation" else "",
    ]
    if floor is not None and math.isfinite(floor.value):
      sentence += [
        " against ",
        el("span", format.estimate(floor), cls="nowrap"),
        " for a linear model on raw thumbnails",
      ]
  others = [(m, metrics[m]) for m in IN_WORDS if m in metrics and math.isfinite(metrics[m].value)]
  for i, (measure, value) in enumerate(others):
    sentence += [
      "; " if not i else " and " if i == len(others) - 1 else ", ",
      format.measure(measure).lower(),
      " ",
      el("span", format.estimate(value), cls="nowrap"),
    ]
  return [*sentence, ".", naming.judged_once(run, evaluator)]


def calibration(run: Run) -> Html | None:
  """Reliability diagram of the trained network, before and after temperature scaling."""
  evaluator = next(iter(run.evaluators()), "")
  facts = run.fact("evaluation", evaluator, TRAINED)
  bins = lookup(facts, "reliability", "calibrated")
  if not isinstance(bins, list) or not bins:
    return None
  temperatures = [number(t) for t in facts.get("temperature") or []]
  lines = [_reliability_line("Calibrated", bins, "s1", True)]
  before = lookup(facts, "reliability", "uncalibrated")
  is_rescaled = any(abs(t - 1) > 1e-9 for t in temperatures)
  if is_rescaled and isinstance(before, list) and before:
    lines.append(_reliability_line("Before", before, "s2 dash", False))
  ideal = np.array([0.0, 1.0])
  lines.append(line_chart.Line("Ideal", ideal, ideal, style="ref"))
  unit = "share with the finding"
  figure = line_chart.chart(
    "Reliability", lines, x_label="predicted probability", unit=unit, y_range=(0.0, 1.0), height=300
  )
  note = blocks.note(_about_calibration(run, facts, temperatures, is_rescaled))
  content = el("div", el("div", figure, cls="charts one"), note, cls="split")
  return blocks.titled("Calibration", content, cls="part")


def _reliability_line(
  label: str, bins: Sequence[Any], style: str, whiskers: bool
) -> line_chart.Line:
  counts, positives = (np.array([number(b.get(key)) for b in bins]) for key in ("n", "came"))
  x = np.array([number(b.get("probability")) for b in bins])
  pairs = zip(positives, counts, strict=True)
  bounds = np.array([intervals.wilson(k / n, int(n)) for k, n in pairs])
  low, high = bounds.T if whiskers else (None, None)
  return line_chart.Line(label, x, positives / counts, low, high, style=style, points=whiskers)


def _about_calibration(
  run: Run, facts: Mapping[str, Any], temperatures: Sequence[float], is_rescaled: bool
) -> str:
  metrics = run.latest().get(TRAINED, {})
  is_multilabel = len(temperatures) > 1
  text = "Radiographs grouped by predicted probability; bars are Wilson 95 % intervals"
  text += ", all findings together. " if is_multilabel else ". "
  if is_rescaled:
    values = ", ".join(f"{t:.2f}" for t in temperatures[:6]) + (", ..." if temperatures[6:] else "")
    text += f"Logits are divided by a temperature of {values}, fitted on the validation images. "
  elif not facts.get("temperature_remarks"):
    text += "Probabilities are the network's own, without rescaling. "
  for remark in (facts.get("temperature_remarks") or [])[:3]:
    text += f"{remark[:1].upper()}{remark[1:]}. "
  error, before = metrics.get("ece"), metrics.get("ece/uncalibrated")
  if error is not None and math.isfinite(error.value):
    text += f"Expected calibration error {format.estimate(error)}"
    if is_rescaled and before is not None:
      text += f", before {format.estimate(before)}"
    chance = facts.get("ece_by_chance")
    if isinstance(chance, list) and len(chance) == 2:
      text += (
        f"; on this many images, perfect calibration gives {format.decimal(number(chance[0]))} "
        f"by chance, and up to {format.decimal(number(chance[1]))}"
      )
    text += "."
  return text


COLUMNS = ("auroc", "sensitivity", "specificity")


def subgroups(run: Run) -> Html | None:
  """AUROC, sensitivity and specificity by age, sex, view and site."""
  evaluator = next(iter(run.evaluators()), "")
  rows = run.items("evaluation", evaluator, TRAINED, "subgroups")
  rows = [row for row in rows if isinstance(row, Mapping)]
  notes = [str(note) for note in run.items("evaluation", evaluator, TRAINED, "subgroup_remarks")]
  if not rows:
    return None
  classes = list(dict.fromkeys(str(r.get("class")) for r in rows))
  metrics = run.latest().get(TRAINED, {})
  tables = []
  for name in classes:
    class_rows = [r for r in rows if str(r.get("class")) == name]
    overall = {m: metrics.get(f"{m}/{name}" if len(classes) > 1 else m) for m in COLUMNS}
    table = _table(class_rows, overall, name)
    tables.append(table if len(classes) == 1 else blocks.folded(name, table))
  explanation = (
    "Thresholds are those of the results above. Each 95 % interval is for one group; among many "
    "groups some differ by chance. n/a: determined by fewer than five patients."
  )
  remarks = f" Not shown: {'; '.join(notes)}." if notes else ""
  note = blocks.note(explanation + remarks)
  return blocks.titled("Subgroups", tables, note, cls="part")


def _table(rows: Sequence[Mapping[str, Any]], overall: Mapping[str, Any], name: str) -> Html:
  columns = blocks.columns("Group", "Images", name, *map(format.measure, COLUMNS))
  body = []
  if all(overall.values()):
    partition = [row for row in rows if row.get("by") == rows[0].get("by")]
    n, positives = (sum(number(row.get(key)) for row in partition) for key in ("n", "positives"))
    is_complete = n == overall["auroc"].n  # else some groups are not listed
    body.append(
      blocks.row(
        "All",
        [blocks.number(format.count(v) if is_complete else "") for v in (n, positives)],
        [_cell(overall[m]) for m in COLUMNS],
      )
    )
  by = None
  for row in rows:
    if row.get("by") != by:
      by = row.get("by")
      body.append(blocks.group(str(by).capitalize(), len(columns)))
    body.append(
      blocks.row(
        str(row.get("group")),
        blocks.number(format.count(row.get("n"))),
        blocks.number(format.count(row.get("positives"))),
        [_cell(estimate(row.get(m))) for m in COLUMNS],
      )
    )
  return blocks.table(columns, body)


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

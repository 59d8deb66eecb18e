"""`report.html` of a label-efficiency study: a self-contained page rendered from its workdir."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from cxrjax.report import naming, terminal
from cxrjax.report import run_files as runs
from cxrjax.report.html import blocks, forest_chart, format, line_chart
from cxrjax.report.html.element import Html, el
from cxrjax.report.run_files import estimate, lookup, number
from cxrjax.studies import study_page
from cxrjax.studies.comparison_charts import set_name
from cxrjax.studies.study_page import by_verdict, gain_cell, score_cell

Facts = Mapping[str, Any]
CHARTED = ("auroc", "accuracy", "balanced_accuracy")
TABLED = (*CHARTED, "f1")
PAIRED = ("auroc", "accuracy")  # metrics whose gains are tabled, too
OTHERS = ("s1", "s2", "s4", "s1 dash", "s2 dash", "s4 dash", "s1 dots", "s2 dots", "s4 dots")


def render(run: runs.Run) -> str:
  """Renders the page as HTML."""
  study = run.mapping("sweep")
  ranges = _has_seed_ranges(study)
  band = (
    "a band from the lowest to the highest seed" if ranges else "95 % intervals of the test images"
  )
  return study_page.document(
    run,
    lambda: _title(study),
    "cxrjax label efficiency",
    [lambda: _summary(study), lambda: study_page.callouts(run, study, _run_name)],
    [
      (
        "curves",
        "Score against labels",
        "Of the test images, by the number of labelled radiographs "
        f"that were learnt from (logarithmic); {'mean over seeds and ' if ranges else ''}{band}.",
        lambda: _curves(study),
      ),
      (
        "gains",
        f"Gain over {study.get('reference') or 'the first start'}",
        "AUROC less that of the first start with the same labels, on the same test images"
        + (", mean over seeds" if ranges else "")
        + "; the interval is of the difference, for other "
        "test images. Right of the line: better.",
        lambda: _gains(study),
      ),
      ("table", "In numbers", "", lambda: _tables(study)),
      ("how", "How it was done", "", lambda: _setup(run, study)),
      ("again", "Run it again", "", lambda: study_page.again(run, study, _run_name)),
    ],
  )


write = functools.partial(study_page.write, render)


def _run_name(row: Facts) -> str:
  """Name of a run: that of its folder."""
  return str(row.get("name"))


def _has_seed_ranges(study: Facts) -> bool:
  """Whether scores have ranges over seeds; those of folds, or of one seed, have intervals."""
  return len(study.get("seeds") or ()) > 1 and not study.get("folds")


def _title(study: Facts) -> str:
  model = study.get("model")
  return "Label efficiency" + (
    f": {model} from {format.join_words(study['curves'])}" if model else ""
  )


def _summary(study: Facts) -> Html:
  """The comparison in words, and with which shares of the labels a start is better."""
  curves, reference = list(study.get("curves") or ()), study.get("reference")
  finished = [row for row in study_page.with_status(study) if row.get("curve")]
  shares = study.get("fractions") or ()
  seeds = format.count(len(study.get("seeds") or ()), "seed")
  if study.get("folds"):
    seeds = f"{study['folds']} folds, {seeds}"
  paragraphs: list[Html | None] = [
    el(
      "p",
      "How much do labels bring, and how much a pretrained start? ",
      el("b", format.count(len(finished), "fine-tuning")),
      " of ",
      str(study.get("model") or "a network"),
      " from ",
      format.join_words(curves),
      ", with ",
      format.join_words(shares),
      f" of the labels, {seeds}.",
    )
  ]
  for name in study.get("sets", {}):
    paragraphs.append(_reference_scores(study, name))
    for curve in curves:
      gains = [
        (gain, f"{p['fraction']} ({study_page.signed(estimate(gain).value)})")
        for p in _points(study, curve)
        if (gain := lookup(p, "gains", name, "auroc"))
      ]
      groups = by_verdict(gains)
      text: list[Any] = []
      for outcome, word, style in (
        ("above", "above", "up"),
        ("below", "below", "down"),
        ("open", "undecided", None),
      ):
        if groups[outcome]:
          text += [
            ", " if text else "",
            el("b", word, cls=style),
            f" with {format.join_words(groups[outcome])}",
          ]
      if text:
        paragraphs.append(el("p", f"From {curve}, against {reference}: ", text, "."))
  if len(curves) > 1:
    paragraphs.append(
      blocks.note(
        "In brackets the difference of AUROCs (0.5 is guessing, 1 perfect). "
        "Undecided: its 95 % interval holds 0."
      )
    )
  return el("div", paragraphs, cls="summary")


def _reference_scores(study: Facts, name: str) -> Html | None:
  """AUROC of the reference with the fewest and with the most labels, in words."""
  points = [
    p
    for p in _points(study, str(study.get("reference")))
    if lookup(p, "sets", name, "auroc") and number(p.get("labelled")) > 0
  ]
  points = sorted(points, key=lambda p: p["labelled"])
  if not points:
    return None
  text = [
    f"{format.decimal(estimate(lookup(p, 'sets', name, 'auroc')).value)} with "
    f"{p['fraction']} of the labels ({format.count(p['labelled'], 'radiograph')})"
    for p in (points if len(points) == 1 else [points[0], points[-1]])
  ]
  n = format.count(lookup(study, "sets", name, "test", "n"), "test radiograph")
  return el(
    "p",
    "On ",
    el("b", set_name(study, name)),
    f" ({n}) the AUROC from {study['reference']} is ",
    format.join_words(text),
    ".",
  )


def _points(study: Facts, curve: str) -> list[Facts]:
  return [p for p in study.get("points", []) if p["curve"] == curve]


def _style(study: Facts, curve: str) -> str:
  """Line style of a start; the reference is gray."""
  others = [c for c in study["curves"] if c != study["reference"]]
  return "s3" if curve == study["reference"] else OTHERS[others.index(curve) % len(OTHERS)]


def _curves(study: Facts) -> Html | None:
  """One chart per test set and metric, with a line for each start."""
  figures = []
  ticks = sorted({round(n) for p in study["points"] if (n := number(p.get("labelled"))) > 0})
  for name in study.get("sets", {}):
    metrics = {m for p in study["points"] for m in p["sets"].get(name, {})}
    for metric in (m for m in CHARTED if m in metrics):
      lines = [
        line
        for i, curve in enumerate(study["curves"])
        if (line := _line(study, curve, name, metric, i))
      ]
      if lines:
        figures.append(
          line_chart.chart(
            format.measure(metric),
            lines,
            unit=set_name(study, name),
            x_log=ticks,
            x_label="labelled radiographs",
          )
        )
  return el("div", figures, cls="charts three") if figures else None


def _line(study: Facts, curve: str, name: str, metric: str, index: int) -> line_chart.Line | None:
  points = [
    (number(p.get("labelled")), estimate(lookup(p, "sets", name, metric)))
    for p in _points(study, curve)
  ]
  if len(points) > 1:
    points = sorted((x, e) for x, e in points if x > 0)
  if not points:
    return None
  ranges = _has_seed_ranges(study)
  # Shifted slightly, so that whiskers do not overlap.
  x = np.array([x for x, _ in points]) * (1 if ranges else 1.03**index)
  y, low, high = (np.array([getattr(e, k) for _, e in points]) for k in ("value", "low", "high"))
  return line_chart.Line(
    curve, x, y, low, high, style=_style(study, curve), points=not ranges, dots=ranges
  )


def _gains(study: Facts) -> Html | None:
  """One forest plot per test set and start, with a row for each share of the labels."""
  figures = []
  for name in study.get("sets", {}):
    for curve in study["curves"]:
      shown = [
        forest_chart.Row(p["fraction"], [study_page.gain_mark(gain)])
        for p in _points(study, curve)
        if (gain := lookup(p, "gains", name, "auroc"))
      ]
      title = f"{set_name(study, name)}: {curve} less {study['reference']}"
      if shown:
        figures.append(study_page.gain_chart(title, shown, "difference of AUROC"))
  return el("div", figures, cls="charts") if figures else None


def _tables(study: Facts) -> Html | None:
  """One table per test set, rows grouped by the share of the labels."""
  ranges = _has_seed_ranges(study)
  tables = []
  for name, test_set in study.get("sets", {}).items():
    known = {m for p in study["points"] for m in p["sets"].get(name, {})}
    metrics = [m for m in TABLED if m in known]
    titles = []
    for metric in metrics:
      titles.append(format.measure(metric))
      if metric in PAIRED:
        titles.append(f"gain over {study['reference']}")
    rows = [
      row
      for share in study["fractions"]
      for row in _share_rows(study, share, name, metrics, 1 + len(titles))
    ]
    columns = blocks.columns("Labels", *titles)
    tables.append(study_page.test_table(set_name(study, name), test_set, columns, rows))
  if not tables:
    return None
  note = (
    "Scores: "
    + ("mean over seeds, from the lowest to the highest. " if ranges else "with 95 % intervals. ")
    + (
      "An ensemble averages the probabilities of all seeds; its interval is of the test images. "
      if any(p.get("ensembles") for p in study["points"])
      else ""
    )
    + study_page.GAINS
    + (" They do not speak of other seeds; the ranges of the scores do." if ranges else "")
  )
  return el("div", tables, blocks.note(note))


def _share_rows(study: Facts, share: str, name: str, metrics: list[str], span: int) -> list[Html]:
  """Rows of one share of the labels: every start, and its ensemble."""
  points = [p for p in study["points"] if p["fraction"] == share]
  if not points:
    return []
  n = format.count(points[0].get("labelled"), "radiograph")
  rows = [blocks.group(f"{share}, {n}", span)]
  for point in points:
    rows.append(_table_row(point["curve"], point, name, metrics))
    if lookup(point, "ensembles", name):
      title = f"{point['curve']}, {len(study['seeds'])} seeds as an ensemble"
      rows.append(_table_row(title, {"sets": point["ensembles"]}, name, metrics))
  return rows


def _table_row(title: str, point: Facts, name: str, metrics: list[str]) -> Html:
  cells = []
  for metric in metrics:
    cells.append(score_cell(lookup(point, "sets", name, metric)))
    if metric in PAIRED:
      cells.append(gain_cell(lookup(point, "gains", name, metric)))
  return blocks.row(title, cells)


def _setup(run: runs.Run, study: Facts) -> Html:
  starts = {
    row["init"]: lookup(row, "start", "summary")
    for row in study.get("rows", [])
    if row.get("start")
  }
  rows = [
    study_page.network(study),
    (
      "Images",
      f"{format.count(study.get('image_size'))} pixels" if study.get("image_size") else "",
    ),
    ("Labels of", str(study.get("data") or "")),
    ("Seeds", ", ".join(map(str, study.get("seeds") or ()))),
    ("Device", naming.device_name(run) or study_page.device(study)),
    *((f"Start {name}", text) for name, text in starts.items()),
  ]
  sets = [
    (set_name(study, name), dict(test_set.get("test") or {}))
    for name, test_set in study.get("sets", {}).items()
  ]
  folds = ""
  if study.get("folds"):
    folds = (
      "Each fold leaves out another part of all images, which judges its run; a patient may be in "
      "both splits. "
      if study.get("by_image")
      else "Each fold leaves out another part of all patients, which judges its run. "
    )
  note = (
    "Every seed draws other labels, the same for all starts; those of smaller shares lie in "
    f"larger ones. {folds}The checkpoint is chosen on validation images, which are not "
    "divided; the test images are looked at once."
  )
  return el("div", blocks.note(note), study_page.cards(rows, sets))


def table(study: Facts) -> str:
  """Terminal tables, one per test set."""
  tables = []
  for name in study.get("sets", {}):
    lines = [
      [set_name(study, name), "labels", "AUROC", f"gain over {study['reference']}", "accuracy"]
    ]
    for point in study["points"]:
      metrics = lookup(point, "sets", name) or {}
      lines.append(
        [
          point["curve"],
          f"{point['fraction']} ({format.count(point.get('labelled'))})",
          format.estimate(estimate(metrics.get("auroc")), "-"),
          study_page.plain_gain(lookup(point, "gains", name, "auroc")),
          format.estimate(estimate(metrics.get("accuracy")), "-"),
        ]
      )
      if ensemble := lookup(point, "ensembles", name):
        auroc, accuracy = (
          format.estimate(estimate(ensemble.get(metric)), "-") for metric in ("auroc", "accuracy")
        )
        lines.append(["  as an ensemble", "", auroc, "", accuracy])
    tables.append("\n".join(terminal.aligned(lines)))
  ranges = _has_seed_ranges(study)
  note = "scores: mean (lowest - highest seed)" if ranges else "scores: 95 % intervals"
  return "\n\n".join(tables) + f"\n{note}; gains: paired 95 % intervals over test images"

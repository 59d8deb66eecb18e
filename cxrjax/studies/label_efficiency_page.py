"""`report.html` of a label-efficiency sweep: one self-contained page, a function of its workdir."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from cxrjax.report import naming
from cxrjax.report import run_files as runs
from cxrjax.report.html import forest_chart, format, line_chart
from cxrjax.report.html.element import Html, el
from cxrjax.report.run_files import lookup, number
from cxrjax.report.sections import fact_tables
from cxrjax.studies import page_parts
from cxrjax.studies.comparison_charts import set_name
from cxrjax.studies.page_parts import estimate, gain_cell, score_cell, verdict

Facts = Mapping[str, Any]
CHARTED = ("auroc", "accuracy", "balanced_accuracy")
TABLED = (*CHARTED, "f1")
OTHERS = ("s1", "s2", "s4", "s1 dash", "s2 dash", "s4 dash", "s1 dots", "s2 dots", "s4 dots")


def render(run: runs.Run) -> str:
  """The page as text."""
  found = page_parts.facts(run, "sweep")
  several = _several(found)
  band = (
    "a band from the lowest to the highest seed" if several else "95 % intervals of the test images"
  )
  return page_parts.document(
    run,
    lambda: _title(found),
    "cxrjax label efficiency",
    [lambda: _summary(found), lambda: page_parts.callouts(run, found, _name)],
    [
      (
        "curves",
        "Score against labels",
        "Of the test images, by the number of labelled radiographs "
        f"that were learnt from (logarithmic); {'mean over seeds and ' if several else ''}{band}.",
        lambda: _curves(found),
      ),
      (
        "gains",
        f"Gain over {found.get('reference') or 'the first start'}",
        "AUROC less that of the first start with the same labels, on the same test images"
        + (", mean over seeds" if several else "")
        + "; the interval is of the difference, for other "
        "test images. Right of the line: better.",
        lambda: _gains(found),
      ),
      ("table", "In numbers", "", lambda: _tables(found)),
      ("how", "How it was done", "", lambda: _how(run, found)),
      ("again", "Run it again", "", lambda: page_parts.again(run, found, _name)),
    ],
  )


write = functools.partial(page_parts.write, render)


def _name(row: Facts) -> str:
  """What a run is called: its folder."""
  return str(row.get("name"))


def _several(found: Facts) -> bool:
  """Whether scores have ranges of seeds; over folds they have intervals, as those of one seed."""
  return len(found.get("seeds") or ()) > 1 and not found.get("folds")


def _title(found: Facts) -> str:
  of = found.get("model")
  return "Label efficiency" + (f": {of} from {format.listing(found['curves'])}" if of else "")


def _summary(found: Facts) -> Html:
  """What was compared, and with how many labels a start is better, in words."""
  curves, reference = list(found.get("curves") or ()), found.get("reference")
  ended = [row for row in page_parts.with_status(found) if row.get("curve")]
  shares = found.get("fractions") or ()
  seeds = format.count(len(found.get("seeds") or ()), "seed")
  if found.get("folds"):
    seeds = f"{found['folds']} folds, {seeds}"
  said: list[Html | None] = [
    el(
      "p",
      "How much do labels bring, and how much a pretrained start? ",
      el("b", format.count(len(ended), "fine-tuning")),
      " of ",
      str(found.get("model") or "a network"),
      " from ",
      format.listing(curves),
      ", with ",
      format.listing(shares),
      f" of the labels, {seeds}.",
    )
  ]
  for name in found.get("sets", {}):
    said.append(_reached(found, name))
    for curve in curves:
      groups: dict[str, list[str]] = {"above": [], "below": [], "open": []}
      for point in _points(found, curve):
        kind = verdict(lookup(point, "gains", name, "auroc"))
        if kind:
          gain = estimate(lookup(point, "gains", name, "auroc")).value
          groups[kind].append(f"{point['fraction']} ({page_parts.signed(gain)})")
      text: list[Any] = []
      for kind, how, style in (
        ("above", "above", "up"),
        ("below", "below", "down"),
        ("open", "undecided", None),
      ):
        if groups[kind]:
          text += [
            ", " if text else "",
            el("b", how, cls=style),
            f" with {format.listing(groups[kind])}",
          ]
      if text:
        said.append(el("p", f"From {curve}, against {reference}: ", text, "."))
  if len(curves) > 1:
    said.append(
      el(
        "p",
        "In brackets the difference of AUROCs (0.5 is guessing, 1 perfect). "
        "Undecided: its 95 % interval holds 0.",
        cls="note",
      )
    )
  return el("div", said, cls="summary")


def _reached(found: Facts, name: str) -> Html | None:
  """What the reference comes to with the fewest labels and with the most."""
  points = [
    p
    for p in _points(found, str(found.get("reference")))
    if lookup(p, "sets", name, "auroc") and number(p.get("labelled")) > 0
  ]
  points = sorted(points, key=lambda p: p["labelled"])
  if not points:
    return None
  text = [
    f"{format.decimal(estimate(lookup(p, 'sets', name, 'auroc')).value)} with "
    f"{p['fraction']} of the labels ({format.count(p['labelled'], 'radiograph')})"
    for p in [points[0], *points[1:][-1:]]
  ]
  n = format.count(lookup(found, "sets", name, "test", "n"), "test radiograph")
  return el(
    "p",
    "On ",
    el("b", set_name(found, name)),
    f" ({n}) the AUROC from {found['reference']} is ",
    format.listing(text),
    ".",
  )


def _points(found: Facts, curve: str) -> list[Facts]:
  return [p for p in found.get("points", []) if p["curve"] == curve]


def _style(found: Facts, curve: str) -> str:
  """Gray for what the others are held against."""
  others = [c for c in found["curves"] if c != found["reference"]]
  return "s3" if curve == found["reference"] else OTHERS[others.index(curve) % len(OTHERS)]


def _curves(found: Facts) -> Html | None:
  """A chart for each test set and metric, a line for each start."""
  figures = []
  ticks = sorted({round(n) for p in found["points"] if (n := number(p.get("labelled"))) > 0})
  for name in found.get("sets", {}):
    metrics = {m for p in found["points"] for m in p["sets"].get(name, {})}
    for metric in (m for m in CHARTED if m in metrics):
      lines = [
        line
        for i, curve in enumerate(found["curves"])
        if (line := _line(found, curve, name, metric, i))
      ]
      if lines:
        figures.append(
          line_chart.chart(
            format.measure(metric),
            lines,
            unit=set_name(found, name),
            x_log=ticks,
            x_label="labelled radiographs",
          )
        )
  return el("div", figures, cls="charts three") if figures else None


def _line(found: Facts, curve: str, name: str, metric: str, place: int) -> line_chart.Line | None:
  points = [
    (number(p.get("labelled")), estimate(lookup(p, "sets", name, metric)))
    for p in _points(found, curve)
  ]
  points = sorted((x, e) for x, e in points if x > 0) if len(points) > 1 else points
  if not points:
    return None
  several = _several(found)
  # Side by side where whiskers would lie on one another.
  x = np.array([x for x, _ in points]) * (1 if several else 1.03**place)
  y, low, high = (np.array([getattr(e, k) for _, e in points]) for k in ("value", "low", "high"))
  return line_chart.Line(
    curve, x, y, low, high, style=_style(found, curve), points=not several, dots=several
  )


def _gains(found: Facts) -> Html | None:
  """A forest for each test set and start, a row for each share of the labels."""
  figures = []
  for name in found.get("sets", {}):
    for curve in found["curves"]:
      shown = [
        forest_chart.Row(p["fraction"], [page_parts.gain_mark(gain)])
        for p in _points(found, curve)
        if (gain := lookup(p, "gains", name, "auroc"))
      ]
      if shown:
        figures.append(
          forest_chart.chart(
            f"{set_name(found, name)}: {curve} less {found['reference']}",
            shown,
            page_parts.VERDICTS,
            x_label="difference of AUROC",
            levels=[page_parts.zero()],
          )
        )
  return el("div", figures, cls="charts") if figures else None


def _tables(found: Facts) -> Html | None:
  """A table for each test set, the starts of a share side by side."""
  several = _several(found)
  parts = []
  for name, of in found.get("sets", {}).items():
    known = {m for p in found["points"] for m in p["sets"].get(name, {})}
    metrics = [m for m in TABLED if m in known]
    head = [el("th", "Labels", scope="col")]
    for metric in metrics:
      head.append(el("th", format.measure(metric), scope="col", cls="num"))
      if metric in ("auroc", "accuracy"):
        head.append(el("th", f"gain over {found['reference']}", scope="col", cls="num"))
    body = []
    for share in found["fractions"]:
      points = [p for p in found["points"] if p["fraction"] == share]
      if not points:
        continue
      n = format.count(points[0].get("labelled"), "radiograph")
      body.append(
        el("tr", el("th", f"{share}, {n}", scope="rowgroup", colspan=len(head)), cls="group")
      )
      for point in points:
        body.append(_row(point["curve"], point, name, metrics))
        if lookup(point, "ensembles", name):
          body.append(
            _row(
              f"{point['curve']}, {len(found['seeds'])} seeds as an ensemble",
              {"sets": point["ensembles"]},
              name,
              metrics,
            )
          )
    table = el("table", el("thead", el("tr", head)), el("tbody", body), cls="results stacked")
    n = format.count(lookup(of, "test", "n"), "test radiograph")
    parts.append(
      el(
        "div",
        el("h3", ", ".join(filter(None, [set_name(found, name), n]))),
        el("div", table, cls="scroll"),
        cls="evaluator",
      )
    )
  if not parts:
    return None
  note = (
    "Scores: "
    + ("mean over seeds, from the lowest to the highest. " if several else "with 95 % intervals. ")
    + (
      "An ensemble averages the probabilities of all seeds; its interval is of the test images. "
      if any(p.get("ensembles") for p in found["points"])
      else ""
    )
    + page_parts.GAINS
    + (" They do not speak of other seeds; the ranges of the scores do." if several else "")
  )
  return el("div", parts, el("p", note, cls="note"))


def _row(title: str, point: Facts, name: str, metrics: list[str]) -> Html:
  cells = []
  for metric in metrics:
    cells.append(score_cell(lookup(point, "sets", name, metric)))
    if metric in ("auroc", "accuracy"):
      cells.append(gain_cell(lookup(point, "gains", name, metric)))
  return el("tr", el("th", title, scope="row"), cells)


def _how(run: runs.Run, found: Facts) -> Html:
  size = format.compact(found.get("parameters"))
  starts = {
    row["init"]: lookup(row, "start", "summary")
    for row in found.get("rows", [])
    if row.get("start")
  }
  rows = [
    ("Network", f"{found.get('model') or ''}, {size} parameters" if size else ""),
    (
      "Images",
      f"{format.count(found.get('image_size'))} pixels" if found.get("image_size") else "",
    ),
    ("Labels of", str(found.get("data") or "")),
    ("Seeds", ", ".join(map(str, found.get("seeds") or ()))),
    ("Device", naming.device_name(run) or page_parts.device(found)),
    *((f"Start {name}", str(text)) for name, text in starts.items() if text),
  ]
  cards = [el("div", fact_tables.pairs((k, v) for k, v in rows if v), cls="card")]
  for name, of in found.get("sets", {}).items():
    cards.append(
      el(
        "div",
        el("h3", set_name(found, name)),
        fact_tables.pairs(fact_tables.rows(dict(of.get("test") or {}))),
        cls="card",
      )
    )
  folds = (
    ""
    if not found.get("folds")
    else (
      "Each fold leaves out another part of all images, which judges its run; a patient may be on "
      "both sides. "
      if found.get("by_image")
      else "Each fold leaves out another part of all patients, which judges its run. "
    )
  )
  note = (
    "Every seed draws other labels, the same for all starts; those of smaller shares lie in "
    f"larger ones. {folds}The checkpoint is chosen on validation images, which are not "
    "divided; the test images are looked at once."
  )
  return el("div", el("p", note, cls="note"), el("div", cards, cls="cards"))


def table(found: Facts) -> str:
  """For the terminal: a table for each test set."""
  tables = []
  for name in found.get("sets", {}):
    lines = [
      [set_name(found, name), "labels", "AUROC", f"gain over {found['reference']}", "accuracy"]
    ]
    for point in found["points"]:
      judged = lookup(point, "sets", name) or {}
      lines.append(
        [
          point["curve"],
          f"{point['fraction']} ({format.count(point.get('labelled'))})",
          format.estimate(estimate(judged.get("auroc")), "-"),
          page_parts.plain_gain(lookup(point, "gains", name, "auroc")),
          format.estimate(estimate(judged.get("accuracy")), "-"),
        ]
      )
      if together := lookup(point, "ensembles", name):
        lines.append(
          [
            "  as an ensemble",
            "",
            *(
              text
              for metric in ("auroc", "accuracy")
              for text in (format.estimate(estimate(together.get(metric)), "-"), "")
            ),
          ][:5]
        )
    tables.append("\n".join(page_parts.aligned(lines)))
  several = _several(found)
  note = "scores: mean (lowest - highest seed)" if several else "scores: 95 % intervals"
  return "\n\n".join(tables) + f"\n{note}; gains: paired 95 % intervals over test images"

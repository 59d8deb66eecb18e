"""`report.html` of a curriculum: one self-contained page, a function of its workdir."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from cxrjax.report import naming
from cxrjax.report import run_files as runs
from cxrjax.report.html import forest_chart, format
from cxrjax.report.html.element import Html, el
from cxrjax.report.run_files import lookup
from cxrjax.report.sections import fact_tables
from cxrjax.studies import page_parts
from cxrjax.studies.comparison_charts import head_name, set_name
from cxrjax.studies.page_parts import estimate, gain_cell, score_cell, verdict

Facts = Mapping[str, Any]
MAIN = ("auroc", "dice")  # what a last stage is judged by first
TABLED = ("auroc", "accuracy", "balanced_accuracy", "dice", "iou", "assd", "hd95")
AGAINST = {"gains": "over scratch", "steps": "over the line above"}
PAIRED = ("auroc", "accuracy", "dice")  # in the tables with their gain


def render(run: runs.Run) -> str:
  """The page as text."""
  found = page_parts.facts(run, "stages")
  return page_parts.document(
    run,
    lambda: _title(found),
    "cxrjax curriculum",
    [lambda: _summary(found), lambda: page_parts.callouts(run, found, _name)],
    [
      (
        "brought",
        "What every stage brought",
        "The last stage, begun with nothing and with what "
        "each stage before it left; the same network, judged on the same test images. "
        "Intervals of 95 % are of these images; that of a difference is paired.",
        lambda: _brought(found),
      ),
      ("table", "In numbers", "", lambda: _tables(found)),
      ("stages", "The stages", "", lambda: _stages(found)),
      ("how", "Test images", "", lambda: _how(run, found)),
      ("again", "Run it again", "", lambda: page_parts.again(run, found, _name)),
    ],
  )


write = functools.partial(page_parts.write, render)


def _name(row: Facts) -> str:
  return str(row.get("name"))


def label(start: str) -> str:
  """What a last stage began with, as a row is called."""
  return {"scratch": "from scratch", "weights": "given weights"}.get(start, f"after {plain(start)}")


def plain(name: str) -> str:
  """A stage's name as text."""
  return name.replace("_", " ")


def _title(found: Facts) -> str:
  model = next((row["model"] for row in found["rows"] if row.get("model")), "")
  last = _last(found)
  before = [stage for stage in found["order"] if stage not in last]
  return plain(", then ".join([*before, format.listing(last)])) + (f": {model}" if model else "")


def _last(found: Facts) -> list[str]:
  return list(dict.fromkeys(row["stage"] for row in found.get("rows", []) if row["last"]))


def _points(found: Facts, stage: str) -> list[Facts]:
  return [p for p in found.get("points", []) if p["stage"] == stage]


def _metric(found: Facts, stage: str, name: str) -> str:
  known = [m for p in _points(found, stage) for m in p["sets"].get(name, {})]
  return next((m for m in MAIN if m in known), "")


def _sets(found: Facts, stage: str) -> list[str]:
  return list(lookup(found, "sets", stage) or {})


def _title_of(found: Facts, stage: str, name: str) -> str:
  """A last stage and its test set."""
  return f"{plain(stage)}, {set_name({'sets': lookup(found, 'sets', stage)}, name)}"


def _summary(found: Facts) -> Html:
  """What the last stages came to, and what was above no stage at all, in words."""
  before = [s for s in found.get("order", []) if s not in _last(found)]
  names, last = plain(", then ".join(before)), plain(format.listing(_last(found)))
  said = (
    [
      el(
        "p",
        "The network learnt first without labels, in ",
        el("b", format.count(len(before), "stage")),
        f" ({names}), then with them ({last}). What did each stage bring?",
      )
    ]
    if before
    else []
  )
  for stage in _last(found):
    for name in _sets(found, stage):
      metric, points = _metric(found, stage, name), _points(found, stage)
      if not metric:
        continue
      text: list[Any] = []
      for p in points:
        kind = verdict(lookup(p, "gains", name, metric))
        style = {"above": "up", "below": "down"}.get(kind)
        value = format.decimal(estimate(lookup(p, "sets", name, metric)).value)
        text += [", " if text else "", label(p["start"]), " ", el("b", value, cls=style)]
      sure = [
        label(p["start"]) for p in points if verdict(lookup(p, "gains", name, metric)) == "above"
      ]
      worse = [
        label(p["start"]) for p in points if verdict(lookup(p, "gains", name, metric)) == "below"
      ]
      tail = (
        f"; beyond the interval better than from scratch: {format.listing(sure)}"
        if sure
        else "; none is better than from scratch beyond the interval"
        if len(points) > 1
        else ""
      )
      tail += f"; worse: {format.listing(worse)}." if worse else "."
      said.append(
        el(
          "p",
          el("b", _title_of(found, stage, name)),
          f", {format.measure(metric)} of the test images: ",
          text,
          tail,
        )
      )
  return el("div", said, cls="summary")


def _brought(found: Facts) -> Html | None:
  """For each last stage and test set: the scores, the gain over scratch, and stage by stage."""
  parts = []
  for stage in _last(found):
    for name in _sets(found, stage):
      figures: list[Html] = []
      metric, points = _metric(found, stage, name), _points(found, stage)
      if not metric:
        continue
      of, measure = _title_of(found, stage, name), format.measure(metric)
      scores = [
        forest_chart.Row(plain(p["start"]), [_mark(lookup(p, "sets", name, metric))])
        for p in points
      ]
      figures.append(forest_chart.chart(f"{of}: {measure}", scores, [], x_label=measure))
      for key, title in (("gains", "difference from scratch"), ("steps", "what each stage added")):
        rows = [
          forest_chart.Row(plain(p["start"]), [page_parts.gain_mark(gain)])
          for p in points
          if (gain := lookup(p, key, name, metric))
        ]
        if rows and (key == "gains" or len(points) > 2):
          figures.append(
            forest_chart.chart(
              f"{of}: {title}",
              rows,
              page_parts.VERDICTS,
              x_label=f"difference of {measure}",
              levels=[page_parts.zero()],
            )
          )
      parts.append(el("div", figures, cls="charts"))
  return el("div", parts) if parts else None


def _mark(value: Any) -> forest_chart.Mark:
  e = estimate(value)
  return forest_chart.Mark(e.value, e.low, e.high)


def _tables(found: Facts) -> Html | None:
  """A table for each last stage and test set."""
  parts = []
  for stage in _last(found):
    for name in _sets(found, stage):
      points = _points(found, stage)
      known = {m for p in points for m in p["sets"].get(name, {})}
      metrics = [m for m in TABLED if m in known]
      keys = list(AGAINST)[: 1 if len(points) < 3 else 2]  # of two lines both are the same
      if not metrics:
        continue
      head = [el("th", "Begun", scope="col")]
      for m in metrics:
        head.append(el("th", format.measure(m), scope="col", cls="num"))
        if m in PAIRED and len(points) > 1:
          head += [el("th", AGAINST[key], scope="col", cls="num") for key in keys]
      body = []
      for p in points:
        cells = []
        for m in metrics:
          cells.append(score_cell(lookup(p, "sets", name, m)))
          if m in PAIRED and len(points) > 1:
            cells += [gain_cell(lookup(p, key, name, m)) for key in keys]
        body.append(el("tr", el("th", label(p["start"]), scope="row"), cells))
      table = el("table", el("thead", el("tr", head)), el("tbody", body), cls="results stacked")
      n = format.count(lookup(found, "sets", stage, name, "test", "n"), "test radiograph")
      title = ", ".join(filter(None, [_title_of(found, stage, name), n]))
      parts.append(el("div", el("h3", title), el("div", table, cls="scroll"), cls="evaluator"))
  if not parts:
    return None
  several = len(found.get("seeds") or ()) > 1
  note = (
    "Scores: mean over seeds, from the lowest to the highest. "
    if several
    else "Scores with 95 % intervals. "
  ) + page_parts.GAINS
  return el("div", parts, el("p", note, cls="note"))


def _stages(found: Facts) -> Html:
  """A line for each run: what it began with, learnt from, cost and, without labels, gave."""
  head = ["Stage", "Begun", "Radiographs", "Epochs", "Took", "Frozen features"]
  body = []
  for row in found.get("rows", []):
    if row["status"] != "finished":
      body.append(
        el(
          "tr",
          el("th", row["name"], scope="row", cls="nowrap"),
          el("td", label(row["begins"]), cls="nowrap"),
          el("td", row["status"], cls="none", colspan=len(head) - 2),
        )
      )
      continue
    epochs = row.get("epochs")
    cells = [
      format.count(row.get("images")),
      f"{epochs:,.3g}" if epochs else "",
      format.duration(row.get("total_s")),
    ]
    body.append(
      el(
        "tr",
        el("th", row["name"], scope="row", cls="nowrap"),
        el("td", label(row["begins"]), cls="nowrap"),
        [el("td", c or "\N{EN DASH}", cls="num") for c in cells],
        el("td", _features(row) or "\N{EN DASH}"),
      )
    )
  table = el(
    "table",
    el(
      "thead",
      el(
        "tr",
        [el("th", h, scope="col", cls="num" if 2 <= i < 5 else None) for i, h in enumerate(head)],
      ),
    ),
    el("tbody", body),
    cls="parts",
  )
  note = (
    "Frozen features: AUROC of test images by neighbours and by linear probe, of the network "
    "that the stage began with, and of that which it left."
  )
  return el("div", el("div", table, cls="scroll"), el("p", note, cls="note"))


def _features(row: Facts) -> list[Any]:
  """`linear probe 0.850 to 0.914`, a line for each data set and head."""
  lines: list[Any] = []
  sets = row.get("features") or {}
  for name, heads in sets.items():
    for head, found in heads.items():
      kind = verdict(found.get("gain"))
      style = {"above": "up", "below": "down"}.get(kind)
      old, new = (format.decimal(estimate(found.get(k)).value) for k in ("random", "trained"))
      where = f"{name.replace('_', ' ')}, " if len(sets) > 1 else ""
      lines.append(
        el(
          "div",
          f"{where}{head_name(head)} {old} \N{RIGHTWARDS ARROW} ",
          el("span", new, " ", page_parts.SIGNS.get(kind, ""), cls=style),
          cls="nowrap",
        )
      )
  return lines


def _how(run: runs.Run, found: Facts) -> Html:
  rows = [
    (
      "Device",
      naming.device_name(run)
      or page_parts.device(next((r for r in found.get("rows", []) if r.get("device")), {})),
    ),
    ("Seeds of the last stages", ", ".join(map(str, found.get("seeds") or ()))),
  ]
  cards = [el("div", fact_tables.pairs((k, v) for k, v in rows if v), cls="card")]
  for stage in _last(found):
    for name in _sets(found, stage):
      cards.append(
        el(
          "div",
          el("h3", _title_of(found, stage, name)),
          fact_tables.pairs(
            fact_tables.rows(dict(lookup(found, "sets", stage, name, "test") or {}))
          ),
          cls="card",
        )
      )
  return el("div", cards, cls="cards")


def table(found: Facts) -> str:
  """For the terminal: a table for each last stage and test set."""
  tables = []
  for stage in _last(found):
    for name in _sets(found, stage):
      metric = _metric(found, stage, name)
      if metric:
        lines = [[_title_of(found, stage, name), format.measure(metric), *AGAINST.values()]]
        for p in _points(found, stage):
          lines.append(
            [
              label(p["start"]),
              format.estimate(estimate(lookup(p, "sets", name, metric)), "-"),
              *(page_parts.plain_gain(lookup(p, k, name, metric)) for k in AGAINST),
            ]
          )
        tables.append("\n".join(page_parts.aligned(lines)))
  return "\n\n".join(tables) + "\n95 % intervals; gains are paired, + or - where 0 is left out"

"""`report.html` of a curriculum: a self-contained page rendered from its workdir."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from cxrjax.report import naming, terminal
from cxrjax.report import run_files as runs
from cxrjax.report.html import blocks, forest_chart, format
from cxrjax.report.html.element import Html, el
from cxrjax.report.run_files import estimate, lookup
from cxrjax.studies import study_page
from cxrjax.studies.comparison_charts import head_name, set_name
from cxrjax.studies.study_page import by_verdict, gain_cell, score_cell, verdict

Facts = Mapping[str, Any]
MAIN = ("auroc", "dice")  # of a last stage, in order of preference
TABLED = ("auroc", "accuracy", "balanced_accuracy", "dice", "iou", "assd", "hd95")
AGAINST = {"gains": "over scratch", "steps": "over the line above"}
PAIRED = ("auroc", "accuracy", "dice")  # metrics whose gains are tabled, too


def render(run: runs.Run) -> str:
  """Renders the page as HTML."""
  study = run.mapping("stages")
  return study_page.document(
    run,
    lambda: _title(study),
    "cxrjax curriculum",
    [lambda: _summary(study), lambda: study_page.callouts(run, study, _run_name)],
    [
      (
        "brought",
        "What every stage brought",
        "The last stage, begun with nothing and with what "
        "each stage before it left; the same network, judged on the same test images. "
        "Intervals of 95 % are of these images; that of a difference is paired.",
        lambda: _stage_gains(study),
      ),
      ("table", "In numbers", "", lambda: _tables(study)),
      ("stages", "The stages", "", lambda: _stages(study)),
      ("how", "Test images", "", lambda: _test_images(run, study)),
      ("again", "Run it again", "", lambda: study_page.again(run, study, _run_name)),
    ],
  )


write = functools.partial(study_page.write, render)


def _run_name(row: Facts) -> str:
  return str(row.get("name"))


def label(start: str) -> str:
  """Row label for what a last stage started from."""
  return {"scratch": "from scratch", "weights": "given weights"}.get(start, f"after {plain(start)}")


def plain(name: str) -> str:
  """A stage's name with spaces for underscores."""
  return name.replace("_", " ")


def _title(study: Facts) -> str:
  model = next((row["model"] for row in study["rows"] if row.get("model")), "")
  last = _last_stages(study)
  before = [stage for stage in study["order"] if stage not in last]
  return plain(", then ".join([*before, format.join_words(last)])) + (f": {model}" if model else "")


def _last_stages(study: Facts) -> list[str]:
  return list(dict.fromkeys(row["stage"] for row in study.get("rows", []) if row["last"]))


@dataclasses.dataclass(frozen=True)
class _Panel:
  """Results of a last stage on one set of test images.

  Attributes:
    title: the stage and the test set.
    name: of the test set.
    test: facts about its images.
    points: results by start.
  """

  title: str
  name: str
  test: Facts
  points: list[Facts]

  @property
  def metrics(self) -> set[str]:
    return {m for p in self.points for m in p["sets"].get(self.name, {})}

  @property
  def main(self) -> str:
    """The metric of charts and summary; empty if there is none."""
    return next((m for m in MAIN if m in self.metrics), "")

  def rows(self, key: str, mark: Callable[[Any], forest_chart.Mark]) -> list[forest_chart.Row]:
    """Rows of a forest chart of the main metric, or of its gains where there are any."""
    values = [(p, lookup(p, key, self.name, self.main)) for p in self.points]
    return [forest_chart.Row(plain(p["start"]), [mark(v)]) for p, v in values if v or key == "sets"]


def _panels(study: Facts) -> list[_Panel]:
  return [
    _Panel(
      f"{plain(stage)}, {set_name({'sets': sets}, name)}",
      name,
      lookup(test_set, "test") or {},
      [p for p in study.get("points", []) if p["stage"] == stage],
    )
    for stage in _last_stages(study)
    for sets in [lookup(study, "sets", stage) or {}]
    for name, test_set in sets.items()
  ]


def _main_panels(study: Facts) -> list[_Panel]:
  return [panel for panel in _panels(study) if panel.main]


def _summary(study: Facts) -> Html:
  """Scores of the last stages, and which starts are better or worse than scratch, in words."""
  before = [s for s in study.get("order", []) if s not in _last_stages(study)]
  names, last = plain(", then ".join(before)), plain(format.join_words(_last_stages(study)))
  paragraphs = (
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
  for panel in _main_panels(study):
    text: list[Any] = []
    gains = [(lookup(p, "gains", panel.name, panel.main), label(p["start"])) for p in panel.points]
    for p, (gain, start) in zip(panel.points, gains, strict=True):
      style = {"above": "up", "below": "down"}.get(verdict(gain))
      value = format.decimal(estimate(lookup(p, "sets", panel.name, panel.main)).value)
      text += [", " if text else "", start, " ", el("b", value, cls=style)]
    groups = by_verdict(gains)
    better, worse = groups["above"], groups["below"]
    tail = ""
    if better:
      tail = f"; beyond the interval better than from scratch: {format.join_words(better)}"
    elif len(gains) > 1:
      tail = "; none is better than from scratch beyond the interval"
    tail += f"; worse: {format.join_words(worse)}." if worse else "."
    measure = f", {format.measure(panel.main)} of the test images: "
    paragraphs.append(el("p", el("b", panel.title), measure, text, tail))
  return el("div", paragraphs, cls="summary")


def _stage_gains(study: Facts) -> Html | None:
  """Charts per last stage and test set: scores, gain over scratch, gain of each stage."""
  content = []
  for panel in _main_panels(study):
    measure, scores = format.measure(panel.main), panel.rows("sets", study_page.mark)
    figures = [forest_chart.chart(f"{panel.title}: {measure}", scores, [], x_label=measure)]
    for key, title in (("gains", "difference from scratch"), ("steps", "what each stage added")):
      rows = panel.rows(key, study_page.gain_mark)
      if rows and (key == "gains" or len(panel.points) > 2):
        title = f"{panel.title}: {title}"
        figures.append(study_page.gain_chart(title, rows, f"difference of {measure}"))
    content.append(el("div", figures, cls="charts"))
  return el("div", content) if content else None


def _tables(study: Facts) -> Html | None:
  """One table per last stage and test set."""
  tables = []
  for panel in _panels(study):
    metrics = [m for m in TABLED if m in panel.metrics]
    if not metrics:
      continue
    # With two rows both gains are the same; with one there is none.
    keys = list(AGAINST)[: min(len(panel.points) - 1, 2)]
    titles = []
    for m in metrics:
      titles.append(format.measure(m))
      titles += [AGAINST[key] for key in keys if m in PAIRED]
    rows = []
    for p in panel.points:
      cells = []
      for m in metrics:
        cells.append(score_cell(lookup(p, "sets", panel.name, m)))
        cells += [gain_cell(lookup(p, key, panel.name, m)) for key in keys if m in PAIRED]
      rows.append(blocks.row(label(p["start"]), cells))
    columns = blocks.columns("Begun", *titles)
    tables.append(study_page.test_table(panel.title, {"test": panel.test}, columns, rows))
  if not tables:
    return None
  multiple_seeds = len(study.get("seeds") or ()) > 1
  note = (
    "Scores: mean over seeds, from the lowest to the highest. "
    if multiple_seeds
    else "Scores with 95 % intervals. "
  ) + study_page.GAINS
  return el("div", tables, blocks.note(note))


def _stages(study: Facts) -> Html:
  """One row per run: start, training images, duration and, without labels, feature scores."""
  head = ["Stage", "Begun", "Radiographs", "Epochs", "Took", "Frozen features"]
  body = []
  for row in study.get("rows", []):
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
        [blocks.number(c or "\N{EN DASH}") for c in cells],
        el("td", _feature_scores(row) or "\N{EN DASH}"),
      )
    )
  columns = [blocks.column(h, cls="num" if 2 <= i < 5 else None) for i, h in enumerate(head)]
  note = (
    "Frozen features: AUROC of test images by neighbours and by linear probe, of the network "
    "that the stage began with, and of that which it left."
  )
  return el("div", blocks.table(columns, body, "parts"), blocks.note(note))


def _feature_scores(row: Facts) -> list[Any]:
  """Lines such as `linear probe 0.850 to 0.914`, one per data set and head."""
  lines: list[Any] = []
  sets = row.get("features") or {}
  for name, heads in sets.items():
    for head, values in heads.items():
      outcome = verdict(values.get("gain"))
      style = {"above": "up", "below": "down"}.get(outcome)
      old, new = (format.decimal(estimate(values.get(k)).value) for k in ("random", "trained"))
      where = f"{name.replace('_', ' ')}, " if len(sets) > 1 else ""
      lines.append(
        el(
          "div",
          f"{where}{head_name(head)} {old} \N{RIGHTWARDS ARROW} ",
          el("span", new, " ", study_page.SIGNS.get(outcome, ""), cls=style),
          cls="nowrap",
        )
      )
  return lines


def _test_images(run: runs.Run, study: Facts) -> Html:
  with_device: Facts = next((row for row in study.get("rows", []) if row.get("device")), {})
  rows = [
    ("Device", naming.device_name(run) or study_page.device(with_device)),
    ("Seeds of the last stages", ", ".join(map(str, study.get("seeds") or ()))),
  ]
  return study_page.cards(rows, [(panel.title, panel.test) for panel in _panels(study)])


def table(study: Facts) -> str:
  """Terminal tables, one per last stage and test set."""
  tables = []
  for panel in _main_panels(study):
    lines = [[panel.title, format.measure(panel.main), *AGAINST.values()]]
    for p in panel.points:
      value = format.estimate(estimate(lookup(p, "sets", panel.name, panel.main)), "-")
      gains = (study_page.plain_gain(lookup(p, k, panel.name, panel.main)) for k in AGAINST)
      lines.append([label(p["start"]), value, *gains])
    tables.append("\n".join(terminal.aligned(lines)))
  return "\n\n".join(tables) + "\n95 % intervals; gains are paired, + or - where 0 is left out"

"""`report.html` of runs side by side: a self-contained page rendered from its workdir."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cxrjax.report import run_files as runs
from cxrjax.report import terminal
from cxrjax.report.html import blocks, forest_chart, format
from cxrjax.report.html.element import Html, el
from cxrjax.report.run_files import estimate, lookup, number
from cxrjax.report.sections import curves, fact_tables
from cxrjax.report.sections.details import reproduction
from cxrjax.studies import study_page
from cxrjax.studies.comparison_charts import set_name

Facts = Mapping[str, Any]
SUMMARIZED = ("auroc", "accuracy", "dice")  # metrics of the summary and charts
STYLES = ("s3", "s1", "s2", "s4", "s1 dash", "s2 dash", "s4 dash")  # the reference is gray
CHANGES = 60  # most config keys that are listed per run


def render(run: runs.Run) -> str:
  """Renders the page as HTML."""
  study = run.mapping("compare_runs")
  reference = study.get("reference")
  return study_page.document(
    run,
    lambda: _title(study),
    "cxrjax comparison of runs",
    [lambda: _summary(study), lambda: _notes(run, study)],
    [
      (
        "gains",
        f"Differences from {reference}",
        f"What a run's metric is above that of {reference}, on the same test images, with the 95 % "
        "interval of the difference. Right of the line: better.",
        lambda: _gains(study),
      ),
      ("scores", "Scores", "With 95 % intervals.", lambda: _scores(study)),
      ("roc", "ROC curves", "", lambda: _roc_curves(run, study)),
      ("table", "In numbers", "", lambda: _tables(study)),
      ("runs", "The runs", "", lambda: _run_cards(study)),
      ("again", "Run it again", "", lambda: reproduction(run)),
    ],
  )


write = functools.partial(study_page.write, render)


def _other_runs(study: Facts) -> list[str]:
  return [str(r["name"]) for r in study["runs"] if r["name"] != study["reference"]]


def _title(study: Facts) -> str:
  names = [str(r["name"]) for r in study["runs"]]
  return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "") + " compared"


def _summary(study: Facts) -> Html:
  """Differences of the main metrics and their p values, in words."""
  count = format.count(len(study["runs"]), "finished run")
  paragraphs = [
    el(
      "p",
      el("b", count),
      f" judged on the same test images. All are told against {study['reference']}, the reference.",
    )
  ]
  for name, test_set in study["sets"].items():
    n = format.count(lookup(test_set, "test", "n"), "test radiograph")
    metrics = [m for m in _overall_metrics(test_set) if format.split(m)[1] in SUMMARIZED]
    for other in _other_runs(study):
      text: list[Any] = []
      for metric in metrics[:3]:
        gain = lookup(test_set, "metrics", metric, "gains", other)
        if gain is None or not math.isfinite(estimate(gain).value):
          continue
        style = {"above": "up", "below": "down"}.get(study_page.verdict(gain))
        title = format.title(metric)
        title = title if title[:2].isupper() else title[:1].lower() + title[1:]
        text += [
          ", " if text else "",
          title,
          " ",
          el("b", study_page.signed(estimate(gain).value), cls=style),
          f" ({p_text(gain.get('p'))})",
        ]
      if text:
        paragraphs.append(
          el(
            "p",
            "On ",
            el("b", set_name(study, name)),
            f" ({n}), {other} against {study['reference']}: ",
            text,
            ".",
          )
        )
  paragraphs.append(
    blocks.note(
      "p: how often a difference this large would come of chance alone, had both "
      "runs the same skill. Coloured where the 95 % interval leaves out 0."
    )
  )
  return el("div", paragraphs, cls="summary")


def _notes(run: runs.Run, study: Facts) -> list[Html]:
  notes = [*map(str, study.get("notes") or []), *run.problems]
  return [el("p", text, cls="callout") for text in notes]


def _overall_metrics(test_set: Facts) -> list[str]:
  """Names of the metrics that are not of a single class."""
  return [m for m in test_set["metrics"] if not format.of_class(m)]


def _gains(study: Facts) -> Html | None:
  """One forest plot per test set and run, of the metrics of which more is better."""
  figures = []
  for name, test_set in study["sets"].items():
    metrics = [
      m for m in _overall_metrics(test_set) if format.split(m)[1] not in format.LOWER_IS_BETTER
    ]
    for other in _other_runs(study):
      rows = [
        forest_chart.Row(_short_name(m), [study_page.gain_mark(gain)])
        for m in metrics
        if (gain := lookup(test_set, "metrics", m, "gains", other))
        and math.isfinite(estimate(gain).value)
      ]
      if rows:
        title = set_name(study, name) + (f": {other}" if len(_other_runs(study)) > 1 else "")
        figures.append(study_page.gain_chart(title, rows, "difference"))
  return _chart_grid(figures)


def _chart_grid(figures: list[Html]) -> Html | None:
  """Lays charts out: a single one in its own column, several side by side."""
  return el("div", figures, cls=f"charts {'two' if figures[1:] else 'one'}") if figures else None


def _roc_curves(run: runs.Run, study: Facts) -> Html | None:
  """ROC curves of all runs, one chart per class."""
  names, figures = [str(r["name"]) for r in study["runs"]], []
  for name in study["sets"]:
    arrays = run.arrays(f"scores_{name}")
    if not {"scores", "labels", "classes", "exclusive"} <= set(arrays):
      continue
    classes = arrays["classes"].tolist()
    shown = [1] if bool(arrays["exclusive"]) and len(classes) == 2 else range(len(classes))[:4]
    for c in shown:
      figures.append(
        curves.roc_figure(
          f"{set_name(study, name)}: {classes[c]}",
          [
            (n, STYLES[i % len(STYLES)], arrays["scores"][i, :, c], arrays["labels"][:, c])
            for i, n in enumerate(names)
          ],
        )
      )
  return _chart_grid(figures)


def _short_name(metric: str) -> str:
  """A metric's name, short enough for the margin of a forest plot."""
  head, measure, _ = format.split(metric)
  name = {"balanced_accuracy": "Bal. accuracy", "hm": "HM"}.get(measure, format.measure(measure))
  return f"{head} {name}".strip()


def _scores(study: Facts) -> Html | None:
  """Charts of the `SUMMARIZED` metrics of all runs, up to three per test set."""
  figures = []
  for name, test_set in study["sets"].items():
    for metric in [m for m in _overall_metrics(test_set) if format.split(m)[1] in SUMMARIZED][:3]:
      rows = []
      for i, r in enumerate(study["runs"]):
        value = lookup(test_set, "metrics", metric, "runs", r["name"])
        if math.isfinite(estimate(value).value):
          mark = study_page.mark(value, "s1" if i else "s3")
          rows.append(forest_chart.Row(str(r["name"]), [mark]))
      if rows:
        figures.append(
          forest_chart.chart(
            f"{set_name(study, name)}: {format.title(metric)}",
            rows,
            [("s3", f"{study['reference']}, the reference"), ("s1", "others")],
            x_label=format.title(metric),
          )
        )
  return _chart_grid(figures)


def _tables(study: Facts) -> Html:
  """One table per test set and run: both values, their difference, p."""
  content, others = [], _other_runs(study)
  for name, test_set in study["sets"].items():
    n = format.count(lookup(test_set, "test", "n"), "test radiograph")
    content.append(el("h3", f"{set_name(study, name)}, {n}"))
    per_class = [m for m in test_set["metrics"] if format.of_class(m)]
    for other in others:
      content.append(_table(study, test_set, _overall_metrics(test_set), other))
    for other in others if per_class else ():
      title = "Per class" + (f", {other}" if len(others) > 1 else "")
      content.append(blocks.folded(title, _table(study, test_set, per_class, other)))
  methods = {
    g["method"]
    for test_set in study["sets"].values()
    for m in test_set["metrics"].values()
    for g in m["gains"].values()
    if g.get("method") and g["method"] != "none"
  }
  holm = (
    " p (Holm): corrected for all runs being compared with the reference in this metric."
    if len(others) > 1
    else ""
  )
  note = (
    f"In brackets, 95 % intervals. {study_page.SIGNS['above']} the interval of the difference "
    f"lies on the better side of 0, {study_page.SIGNS['below']} on the worse one. Tests: "
    f"{'; '.join(sorted(methods))}. p values are two-sided and speak of one metric at a time;"
    " intervals and p values speak of other test images, not of other seeds." + holm
  )
  return el("div", content, blocks.note(note))


def _table(study: Facts, test_set: Facts, metrics: Sequence[str], other: str) -> Html:
  multiple = len(_other_runs(study)) > 1  # only then are p values corrected
  titles = [study["reference"], other, "Difference", "p", *(["p (Holm)"] if multiple else [])]
  p_keys = ["p", *(["p_holm"] if multiple else [])]
  body, group = [], None
  for metric in metrics:
    values = test_set["metrics"][metric]
    prefix, measure, variant = format.split(metric)
    if prefix and prefix != group:
      group = prefix
      body.append(blocks.group(format.head(prefix), 1 + len(titles)))
    gain = values["gains"].get(other)
    body.append(
      blocks.row(
        format.measure(f"{measure}/{variant}" if variant else measure),
        *(study_page.score_cell(values["runs"].get(n)) for n in (study["reference"], other)),
        study_page.gain_cell(gain, measure in format.LOWER_IS_BETTER),
        *(blocks.number(p_text(lookup(gain, key), "")) for key in p_keys),
      )
    )
  return blocks.table(blocks.columns("Metric", *titles), body, study_page.STACKED)


def p_text(value: Any, start: str = "p = ") -> str:
  """Formats a p value: `p = 0.031`, `p < 0.001`; a dash if undefined."""
  p = number(value)
  if not math.isfinite(p):
    return "\N{EN DASH}"
  if p < 0.001:
    return f"{start.replace('=', '<')}0.001" if start else "< 0.001"
  return f"{start}{p:.3f}" if p < 0.1 else f"{start}{p:.2f}"


def _run_cards(study: Facts) -> Html:
  """One card per run, and the config keys in which it differs from the reference."""
  cards = []
  for r in study["runs"]:
    start, checkpoint = r.get("start") or {}, r.get("chosen") or {}
    rows = {
      "network": " ".join(filter(None, [r.get("method"), r.get("model")])),
      "start": start.get("summary") or start.get("path") or "",
      "learnt from": f"{format.count(r.get('n'), 'radiograph')} of {r.get('train')} "
      f"({r.get('split')})",
      "steps": r.get("steps"),
      "epochs": r.get("epochs"),
      "seed": r.get("seed"),
      "judged at step": checkpoint.get("step"),
      "took": format.duration(r.get("total_s")),
      "workdir": r.get("workdir"),
    }
    command = blocks.folded("Command", study_page.command(str(r.get("command") or "")))
    cards.append(fact_tables.card(fact_tables.rows(rows), str(r["name"]), command))
  lists = []
  for name, changes in (study.get("changed") or {}).items():
    items = [el("li", el("code", str(c))) for c in changes[:CHANGES]]
    if len(changes) > CHANGES:
      items.append(el("li", f"and {len(changes) - CHANGES} more"))
    title = f"Config of {name}: " + (
      format.count(len(changes), "key differs", "keys differ") + f" from {study['reference']}'s"
    )
    lists.append(blocks.folded(title, el("ul", items or [el("li", "none")])))
  return el("div", el("div", cards, cls="cards"), lists)


def table(study: Facts) -> str:
  """Terminal tables, one per test set and run."""
  blocks = []
  for name, test_set in study["sets"].items():
    for other in _other_runs(study):
      lines = [[set_name(study, name), study["reference"], other, "difference", "p"]]
      for metric in _overall_metrics(test_set):
        values = test_set["metrics"][metric]
        gain = values["gains"].get(other)
        e = estimate(gain)
        difference = (
          f"{e.value:+.3f} ({e.low:+.3f} to {e.high:+.3f})" if math.isfinite(e.value) else "-"
        )
        p = p_text(lookup(gain, "p"), "").replace("\N{EN DASH}", "-")
        lines.append(
          [
            format.title(metric),
            *(
              format.estimate(estimate(values["runs"].get(n)), "-")
              for n in (study["reference"], other)
            ),
            difference,
            p,
          ]
        )
      blocks.append("\n".join(terminal.aligned(lines)))
  return "\n\n".join([*blocks, "95 % intervals in brackets; differences are paired, over patients"])

"""`report.html` of a sweep: a self-contained page rendered from its workdir."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from cxrjax.report import run_files as runs
from cxrjax.report import terminal
from cxrjax.report.html import blocks, forest_chart, format
from cxrjax.report.html.element import Html, el
from cxrjax.report.run_files import estimate, lookup
from cxrjax.studies import study_page
from cxrjax.studies.comparison_charts import set_name

Facts = Mapping[str, Any]


def render(run: runs.Run) -> str:
  """Renders the page as HTML."""
  study = run.mapping("sweep")
  return study_page.document(
    run,
    lambda: f"Sweep over {format.join_words(_keys(study))}",
    "cxrjax sweep",
    [lambda: _summary(study), lambda: study_page.callouts(run, study, _run_name)],
    [
      ("scores", "Scores in validation", "The best first.", lambda: _scores(study)),
      ("test", "On test images", "Of the chosen values alone.", lambda: _test(study)),
      ("again", "Run it again", "", lambda: study_page.again(run, study, _run_name)),
    ],
  )


write = functools.partial(study_page.write, render)


def _run_name(row: Facts) -> str:
  return str(row.get("name"))


def _keys(study: Facts) -> list[str]:
  return list(study["points"][0]["factors"])


def _values(factors: Facts) -> str:
  """`lr=0.002, weight_decay=0.05`."""
  return ", ".join(f"{key}={value}" for key, value in factors.items())


def _summary(study: Facts) -> Html:
  """What was chosen, and its scores on validation and test images, in words."""
  count = format.count(len(study["points"]), "combination")
  if not study.get("chosen"):
    return el("div", el("p", f"{count}; none is chosen before all have finished."), cls="summary")
  best = study["points"][0]
  score = format.estimate(estimate(best["score"]), "n/a")
  title = format.title(study["metric"])
  tested = [
    f" On the test images of {set_name(study, evaluator)}, seed {row['factors']['seed']}: "
    f"{title} {format.estimate(estimate(results['metrics'][study['metric']]), 'n/a')}."
    for row in study["rows"]
    for evaluator, results in row["results"].items()
    if results["set"] == "test" and study["metric"] in results["metrics"]
  ]
  return el(
    "div",
    el(
      "p",
      "Of ",
      count,
      ", ",
      el("b", _values(study["chosen"])),
      f" is the best on validation images: {title} {score}.",
      tested,
    ),
    blocks.note(
      "A score that was chosen as the best of several is biased upwards; that of the test images, "
      "which no other run has seen, is not."
    ),
    cls="summary",
  )


def _scores(study: Facts) -> Html:
  """Chart and table of all combinations."""
  title = format.title(study["metric"])
  shown = [p for p in study["points"] if p["score"]]
  marks = [
    forest_chart.Row(_values(p["factors"]), [study_page.mark(p["score"], "s3" if i else "s1")])
    for i, p in enumerate(shown)
  ]
  legend = [("s1", "best"), ("s3", "others")]
  chart = forest_chart.chart(title, marks, legend, x_label=title) if marks else None
  rows = [
    blocks.row(
      _values(p["factors"]), study_page.score_cell(p["score"]), blocks.number(p["complete"])
    )
    for p in study["points"]
  ]
  columns = blocks.columns("Values", title, "All seeds finished")
  seeds = len(study["seeds"]) > 1
  note = "Mean over seeds, from the lowest to the highest." if seeds else "With 95 % intervals."
  return el("div", chart, blocks.table(columns, rows, study_page.STACKED), blocks.note(note))


def _test(study: Facts) -> Html | None:
  """A table per test set, with a row for every metric and a column for every seed."""
  tables = []
  for name, test_set in study["sets"].items():
    tested = [row for row in study["rows"] if lookup(row, "results", name)]
    metrics = list(tested[0]["results"][name]["metrics"])
    columns = blocks.columns("Metric", *(f"seed {row['factors']['seed']}" for row in tested))
    rows = [
      blocks.row(
        format.title(m),
        *(study_page.score_cell(lookup(row, "results", name, "metrics", m)) for row in tested),
      )
      for m in metrics
    ]
    tables.append(study_page.test_table(set_name(study, name), test_set, columns, rows))
  return el("div", tables) if tables else None


def table(study: Facts) -> str:
  """Terminal table of all combinations and what is chosen."""
  lines = [["values", f"{format.title(study['metric'])} in validation"]]
  lines += [
    [_values(p["factors"]), format.estimate(estimate(p["score"]), "-")] for p in study["points"]
  ]
  chosen = f"chosen: {_values(study['chosen'])}" if study.get("chosen") else "none is chosen yet"
  return "\n".join([*terminal.aligned(lines), chosen])

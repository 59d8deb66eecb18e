"""`report.html` of runs side by side: one self-contained page, a function of its workdir."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cxrjax.report import run_files as runs
from cxrjax.report.html import forest_chart, format
from cxrjax.report.html.element import Html, el
from cxrjax.report.run_files import lookup, number
from cxrjax.report.sections import curves, fact_tables
from cxrjax.report.sections.details import again
from cxrjax.studies import page_parts
from cxrjax.studies.comparison_charts import set_name
from cxrjax.studies.page_parts import estimate

Facts = Mapping[str, Any]
TOLD = ("auroc", "accuracy", "dice")  # in words
STYLES = ("s3", "s1", "s2", "s4", "s1 dash", "s2 dash", "s4 dash")  # the reference is gray
CHANGES = 60  # config keys listed of each run


def render(run: runs.Run) -> str:
  """The page as text."""
  found = page_parts.facts(run, "compare_runs")
  reference = found.get("reference")
  return page_parts.document(
    run,
    lambda: _title(found),
    "cxrjax comparison of runs",
    [lambda: _summary(found), lambda: _notes(run, found)],
    [
      (
        "gains",
        f"Differences from {reference}",
        f"What a run's metric is above that of {reference}, on the same test images, with the 95 % "
        "interval of the difference. Right of the line: better.",
        lambda: _gains(found),
      ),
      ("scores", "Scores", "With 95 % intervals.", lambda: _scores(found)),
      ("roc", "ROC curves", "", lambda: _curves(run, found)),
      ("table", "In numbers", "", lambda: _tables(found)),
      ("runs", "The runs", "", lambda: _about(found)),
      ("again", "Run it again", "", lambda: again(run)),
    ],
  )


write = functools.partial(page_parts.write, render)


def _others(found: Facts) -> list[str]:
  return [str(r["name"]) for r in found["runs"] if r["name"] != found["reference"]]


def _title(found: Facts) -> str:
  names = [str(r["name"]) for r in found["runs"]]
  return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "") + " compared"


def _summary(found: Facts) -> Html:
  """The differences of the main metrics, with their p values, in words."""
  runs_of = format.count(len(found["runs"]), "finished run")
  said = [
    el(
      "p",
      el("b", runs_of),
      f" judged on the same test images. All are told against {found['reference']}, the reference.",
    )
  ]
  for name, of in found["sets"].items():
    n = format.count(lookup(of, "test", "n"), "test radiograph")
    main = [m for m in _main(of) if format.parts(m)[1] in TOLD]
    for other in _others(found):
      text: list[Any] = []
      for metric in main[:3]:
        gain = lookup(of, "metrics", metric, "gains", other)
        if gain is None or not math.isfinite(estimate(gain).value):
          continue
        style = {"above": "up", "below": "down"}.get(page_parts.verdict(gain))
        title = format.title(metric)
        title = title if title[:2].isupper() else title[:1].lower() + title[1:]
        text += [
          ", " if text else "",
          title,
          " ",
          el("b", page_parts.signed(estimate(gain).value), cls=style),
          f" ({p_text(gain.get('p'))})",
        ]
      if text:
        said.append(
          el(
            "p",
            "On ",
            el("b", set_name(found, name)),
            f" ({n}), {other} against {found['reference']}: ",
            text,
            ".",
          )
        )
  said.append(
    el(
      "p",
      "p: how often a difference this large would come of chance alone, had both "
      "runs the same skill. Coloured where the 95 % interval leaves out 0.",
      cls="note",
    )
  )
  return el("div", said, cls="summary")


def _notes(run: runs.Run, found: Facts) -> list[Html]:
  said = [*map(str, found.get("notes") or []), *run.problems]
  return [el("p", text, cls="callout") for text in said]


def _main(of: Facts) -> list[str]:
  """Metrics that are not of a single class."""
  return [m for m in of["metrics"] if not format.of_class(m)]


def _gains(found: Facts) -> Html | None:
  """A forest for each set and run, of metrics that are shares."""
  figures = []
  for name, of in found["sets"].items():
    shown = [m for m in _main(of) if format.parts(m)[1] not in format.LESS]
    for other in _others(found):
      rows = [
        forest_chart.Row(_short(m), [page_parts.gain_mark(gain)])
        for m in shown
        if (gain := lookup(of, "metrics", m, "gains", other))
        and math.isfinite(estimate(gain).value)
      ]
      if rows:
        title = set_name(found, name) + (f": {other}" if len(_others(found)) > 1 else "")
        figures.append(
          forest_chart.chart(
            title, rows, page_parts.VERDICTS, x_label="difference", levels=[page_parts.zero()]
          )
        )
  return _grid(figures)


def _grid(figures: list[Html]) -> Html | None:
  """One figure stands in a column of its own width, more beside each other."""
  return el("div", figures, cls=f"charts {'two' if figures[1:] else 'one'}") if figures else None


def _curves(run: runs.Run, found: Facts) -> Html | None:
  """ROC curves of all runs, of one class each."""
  names, figures = [str(r["name"]) for r in found["runs"]], []
  for name in found["sets"]:
    arrays = run.arrays(f"scores_{name}")
    if not {"scores", "labels", "classes", "exclusive"} <= set(arrays):
      continue
    classes = arrays["classes"].tolist()
    shown = [1] if bool(arrays["exclusive"]) and len(classes) == 2 else range(len(classes))[:4]
    for c in shown:
      figures.append(
        curves.roc_figure(
          f"{set_name(found, name)}: {classes[c]}",
          [
            (n, STYLES[i % len(STYLES)], arrays["scores"][i, :, c], arrays["labels"][:, c])
            for i, n in enumerate(names)
          ],
        )
      )
  return _grid(figures)


def _short(metric: str) -> str:
  """A metric's name for the margin of a forest."""
  head, measure, _ = format.parts(metric)
  name = {"balanced_accuracy": "Bal. accuracy", "hm": "HM"}.get(measure, format.measure(measure))
  return f"{head} {name}".strip()


def _scores(found: Facts) -> Html | None:
  """AUROC and what else is told of every run, a chart for each set."""
  figures = []
  for name, of in found["sets"].items():
    for metric in [m for m in _main(of) if format.parts(m)[1] in TOLD][:3]:
      rows = []
      for i, r in enumerate(found["runs"]):
        e = estimate(lookup(of, "metrics", metric, "runs", r["name"]))
        if math.isfinite(e.value):
          rows.append(
            forest_chart.Row(
              str(r["name"]), [forest_chart.Mark(e.value, e.low, e.high, "s3" if i == 0 else "s1")]
            )
          )
      if rows:
        figures.append(
          forest_chart.chart(
            f"{set_name(found, name)}: {format.title(metric)}",
            rows,
            [("s3", f"{found['reference']}, the reference"), ("s1", "others")],
            x_label=format.title(metric),
          )
        )
  return _grid(figures)


def _tables(found: Facts) -> Html:
  """For each set and run a table: both values, the difference, p."""
  parts, others = [], _others(found)
  for name, of in found["sets"].items():
    n = format.count(lookup(of, "test", "n"), "test radiograph")
    parts.append(el("h3", f"{set_name(found, name)}, {n}"))
    single = [m for m in of["metrics"] if format.of_class(m)]
    for other in others:
      parts.append(_table(found, of, _main(of), other))
    for other in others if single else ():
      title = "Per class" + (f", {other}" if len(others) > 1 else "")
      parts.append(el("details", el("summary", title), _table(found, of, single, other)))
  tests = {
    g["method"]
    for of in found["sets"].values()
    for m in of["metrics"].values()
    for g in m["gains"].values()
    if g.get("method") and g["method"] != "none"
  }
  holm = (
    " p (Holm): corrected for all runs being compared with the reference in this metric."
    if len(others) > 1
    else ""
  )
  note = (
    f"In brackets, 95 % intervals. {page_parts.SIGNS['above']} the interval of the difference "
    f"lies on the better side of 0, {page_parts.SIGNS['below']} on the worse one. Tests: "
    f"{'; '.join(sorted(tests))}. p values are two-sided and speak of one metric at a time;"
    " intervals and p values speak of other test images, not of other seeds." + holm
  )
  return el("div", parts, el("p", note, cls="note"))


def _table(found: Facts, of: Facts, metrics: Sequence[str], other: str) -> Html:
  several = len(_others(found)) > 1
  head = [
    el("th", "Metric", scope="col"),
    *(
      el("th", text, scope="col", cls="num")
      for text in (found["reference"], other, "Difference", "p", *(["p (Holm)"] if several else []))
    ),
  ]
  body, group = [], None
  for metric in metrics:
    values = of["metrics"][metric]
    start, measure, part = format.parts(metric)
    if start and start != group:
      group = start
      body.append(
        el("tr", el("th", format.head(start), scope="rowgroup", colspan=len(head)), cls="group")
      )
    gain = values["gains"].get(other)
    body.append(
      el(
        "tr",
        el("th", format.measure(f"{measure}/{part}" if part else measure), scope="row"),
        *(page_parts.score_cell(values["runs"].get(n)) for n in (found["reference"], other)),
        page_parts.gain_cell(gain, measure in format.LESS),
        *(
          el("td", p_text(lookup(gain, key), ""), cls="num")
          for key in ("p", *(["p_holm"] if several else []))
        ),
      )
    )
  table = el("table", el("thead", el("tr", head)), el("tbody", body), cls="results stacked")
  return el("div", table, cls="scroll")


def p_text(value: Any, start: str = "p = ") -> str:
  """`p = 0.031`, `p < 0.001`; a dash where there is none."""
  p = number(value)
  if not math.isfinite(p):
    return "\N{EN DASH}"
  if p < 0.001:
    return f"{start.replace('=', '<')}0.001" if start else "< 0.001"
  return f"{start}{p:.3f}" if p < 0.1 else f"{start}{p:.2f}"


def _about(found: Facts) -> Html:
  """A card for each run, and which keys of its config differ from the reference's."""
  cards = []
  for r in found["runs"]:
    start, chosen = r.get("start") or {}, r.get("chosen") or {}
    rows = {
      "network": " ".join(filter(None, [r.get("method"), r.get("model")])),
      "start": start.get("summary") or start.get("path") or "",
      "learnt from": f"{format.count(r.get('n'), 'radiograph')} of {r.get('train')} "
      f"({r.get('split')})",
      "steps": r.get("steps"),
      "epochs": r.get("epochs"),
      "seed": r.get("seed"),
      "judged at step": chosen.get("step"),
      "took": format.duration(r.get("total_s")),
      "workdir": r.get("workdir"),
    }
    command = el(
      "details",
      el("summary", "Command"),
      el("pre", el("code", str(r.get("command") or "")), cls="command"),
    )
    cards.append(
      el(
        "div",
        el("h3", str(r["name"])),
        fact_tables.pairs(fact_tables.rows(rows)),
        command,
        cls="card",
      )
    )
  lists = []
  for name, changes in (found.get("changed") or {}).items():
    items = [el("li", el("code", str(c))) for c in changes[:CHANGES]]
    if len(changes) > CHANGES:
      items.append(el("li", f"and {len(changes) - CHANGES} more"))
    title = f"Config of {name}: " + (
      format.count(len(changes), "key differs", "keys differ") + f" from {found['reference']}'s"
    )
    lists.append(el("details", el("summary", title), el("ul", items or [el("li", "none")])))
  return el("div", el("div", cards, cls="cards"), lists)


def table(found: Facts) -> str:
  """For the terminal: a table for each set and run."""
  blocks = []
  for name, of in found["sets"].items():
    for other in _others(found):
      lines = [[set_name(found, name), found["reference"], other, "difference", "p"]]
      for metric in _main(of):
        values = of["metrics"][metric]
        gain = values["gains"].get(other)
        e = estimate(gain)
        told = f"{e.value:+.3f} ({e.low:+.3f} to {e.high:+.3f})" if math.isfinite(e.value) else "-"
        p = p_text(lookup(gain, "p"), "").replace("\N{EN DASH}", "-")
        lines.append(
          [
            format.title(metric),
            *(
              format.estimate(estimate(values["runs"].get(n)), "-")
              for n in (found["reference"], other)
            ),
            told,
            p,
          ]
        )
      blocks.append("\n".join(page_parts.aligned(lines)))
  return "\n\n".join([*blocks, "95 % intervals in brackets; differences are paired, over patients"])

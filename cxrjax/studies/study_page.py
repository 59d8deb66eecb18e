"""What the pages of studies share: gains and their signs, callouts of failed runs, commands."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cxrjax.report import naming
from cxrjax.report import run_files as runs
from cxrjax.report.html import blocks, forest_chart, format, line_chart
from cxrjax.report.html.element import Html, el
from cxrjax.report.pages import run_page
from cxrjax.report.run_files import estimate, lookup
from cxrjax.report.sections import fact_tables
from cxrjax.report.sections.details import reproduction

Facts = Mapping[str, Any]
NAME = "report.html"
STACKED = "results stacked"  # class of a table whose intervals stand below the values
SIGNS = {
  "above": "\N{BLACK UP-POINTING TRIANGLE}",
  "below": "\N{BLACK DOWN-POINTING TRIANGLE}",
  "open": "",
}
GAINS = (
  f"Gains with 95 % intervals over test images; {SIGNS['above']} the interval lies above 0, "
  f"{SIGNS['below']} below 0."
)
VERDICTS = [("good", "better"), ("s3", "undecided"), ("bad", "worse")]  # legend of forest plots


def write(render: Callable[[runs.Run], str], workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Renders and saves the page of a workdir, whose study may still be running.

  Returns:
    The path of `report.html` in the workdir.

  Raises:
    UserError: the file cannot be written.
  """
  return run_page.save(pathlib.Path(workdir) / NAME, render(runs.read(workdir)))


def verdict(gain: Any) -> str:
  """Position of a difference's interval against 0: `above`, `below`, `open`; "" if undefined."""
  e = estimate(gain)
  if e.low > 0:
    return "above"
  if e.high < 0:
    return "below"
  return "open" if e.low <= 0 <= e.high else ""


def by_verdict(gains: Iterable[tuple[Any, str]]) -> dict[str, list[str]]:
  """Names grouped by the verdict on their gains."""
  groups: dict[str, list[str]] = {"above": [], "below": [], "open": []}
  for gain, name in gains:
    if outcome := verdict(gain):
      groups[outcome].append(name)
  return groups


def mark(value: Any, style: str = "s1") -> forest_chart.Mark:
  """Mark of a value in a forest plot."""
  e = estimate(value)
  return forest_chart.Mark(e.value, e.low, e.high, style)


def gain_mark(gain: Any) -> forest_chart.Mark:
  """Mark of a difference in a forest plot, coloured by its verdict."""
  return mark(gain, {"above": "good", "below": "bad"}.get(verdict(gain), "s3"))


def gain_chart(title: str, rows: Sequence[forest_chart.Row], x_label: str) -> Html:
  """Forest chart of differences, with a line at 0."""
  zero = line_chart.Level("", 0.0, style="zero")
  return forest_chart.chart(title, rows, VERDICTS, x_label=x_label, levels=[zero])


def signed(x: float) -> str:
  """`+0.071`, with a typographic minus sign."""
  return f"{x:+.3f}".replace("-", "\N{MINUS SIGN}") if x == x else "n/a"


def score_cell(value: Any) -> Html:
  """Table cell with a value and its interval."""
  return blocks.estimate(estimate(value))


def gain_cell(value: Any, less: bool = False) -> Html:
  """Table cell with a difference, its verdict and its interval.

  With `less`, lower values are better: sign and color are reversed.
  """
  if value is None:
    return el("td", "\N{EN DASH}", cls="num none")
  e, kind = estimate(value), verdict(value)
  if not math.isfinite(e.value):
    return el("td", "n/a", cls="num none", title=lookup(value, "undefined"))
  kind = {"above": "below", "below": "above"}.get(kind, kind) if less else kind
  style = {"above": "up", "below": "down"}.get(kind, "")
  return blocks.number(
    el("span", signed(e.value), " ", SIGNS.get(kind, ""), cls=style or None),
    " ",
    el("small", f"({signed(e.low)} to {signed(e.high)})"),
  )


def plain_gain(value: Any) -> str:
  """Terminal text `+0.071 (+0.050 to +0.092) +`; the trailing sign is the verdict."""
  if value is None:
    return "-"
  e = estimate(value)
  mark = {"above": " +", "below": " -"}.get(verdict(value), "")
  return f"{e.value:+.3f} ({e.low:+.3f} to {e.high:+.3f}){mark}"


def with_status(study: Facts, status: str = "finished") -> list[Facts]:
  """Rows of the runs with this status."""
  return [row for row in study.get("rows", []) if row["status"] == status]


def callouts(run: runs.Run, study: Facts, name: Callable[[Facts], str]) -> list[Html]:
  """Callouts of unfinished runs, failed runs with the reason, and unreadable files."""
  callouts = []
  state, why = naming.status(run)
  waiting = len(with_status(study, "waiting"))
  if waiting:
    unfinished = format.count(waiting, "run is", "runs are")
    callouts.append(
      el(
        "p",
        el("b", f"{unfinished} not finished."),
        f" {why}" if why else "",
        cls="callout" if state == "running" else "callout warn",
      )
    )
  for row in with_status(study, "failed"):
    callouts.append(
      el("p", el("b", f"{name(row)} failed: "), str(row.get("why") or ""), cls="callout bad")
    )
  return [*callouts, *run_page.problems(run)]


def again(run: runs.Run, study: Facts, name: Callable[[Facts], str]) -> Html:
  """Commands to repeat the study, and each run by itself."""
  lines = [blocks.titled(name(row), command(row["command"])) for row in study.get("rows", [])]
  return el("div", reproduction(run), blocks.folded("One run by itself", lines))


def command(text: Any) -> Html:
  """A shell command."""
  return el("pre", el("code", text), cls="command")


def test_table(title: str, test_set: Any, columns: Sequence[Html], rows: Sequence[Html]) -> Html:
  """Table of results on one set of test images, titled with their number."""
  n = format.count(lookup(test_set, "test", "n"), "test radiograph")
  heading = ", ".join(filter(None, [title, n]))
  return blocks.titled(heading, blocks.table(columns, rows, STACKED), cls="evaluator")


def cards(rows: Iterable[tuple[str, Any]], sets: Iterable[tuple[str, Facts]]) -> Html:
  """A card of facts that are known, and one for each set of test images, by its title."""
  return el(
    "div",
    fact_tables.card((k, v) for k, v in rows if v),
    [fact_tables.card(fact_tables.rows(facts), title) for title, facts in sets],
    cls="cards",
  )


def network(study: Facts) -> tuple[str, str]:
  """Row of facts about the network: its name and size."""
  size = format.compact(study.get("parameters"))
  return "Network", f"{study.get('model') or ''}, {size} parameters" if size else ""


def document(
  run: runs.Run,
  title: Callable[[], str],
  kicker: str,
  opening: Sequence[Callable[[], Any]],
  body: Sequence[tuple[str, str, str, Callable[[], Html | None]]],
) -> str:
  """Renders a whole page; `body` has key, name, note and content of each section."""
  sections = [
    (key, name, run_page.section(run, key, name, note, _of_run(render)))
    for key, name, note, render in body
  ]
  intro = [run_page.guard(_of_run(render), run) for render in opening]
  return run_page.document(run, str(run_page.guard(_of_run(title), run)), kicker, intro, sections)


def _of_run(render: Callable[[], Any]) -> Callable[[runs.Run], Any]:
  return lambda _: render()


def device(study: Facts) -> str:
  """Name of the device in the facts; empty if unknown."""
  device = study.get("device") or {}
  name = str(device.get("kind") or "")
  return name.upper() if name == "cpu" else name

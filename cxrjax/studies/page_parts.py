"""What the pages of several runs have in common: gains and their signs, what failed, commands."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cxrjax.report import naming
from cxrjax.report import run_files as runs
from cxrjax.report.html import forest_chart, format, line_chart
from cxrjax.report.html.element import Html, el
from cxrjax.report.html.format import Estimate
from cxrjax.report.pages import run_page
from cxrjax.report.run_files import lookup, number
from cxrjax.report.sections.details import again as command

Facts = Mapping[str, Any]
NAME = "report.html"
SIGNS = {
  "above": "\N{BLACK UP-POINTING TRIANGLE}",
  "below": "\N{BLACK DOWN-POINTING TRIANGLE}",
  "open": "",
}
GAINS = (
  f"Gains with 95 % intervals over test images; {SIGNS['above']} the interval lies above 0, "
  f"{SIGNS['below']} below 0."
)
VERDICTS = [("good", "better"), ("s3", "undecided"), ("bad", "worse")]  # keys of a forest of gains


def write(render: Callable[[runs.Run], str], workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Writes the page that `render` makes of a workdir, also of one that is still going.

  Returns:
    The path of `report.html` in the workdir.

  Raises:
    UserError: the file cannot be written.
  """
  return run_page.save(pathlib.Path(workdir) / NAME, render(runs.read(workdir)))


def facts(run: runs.Run, key: str) -> Facts:
  """What `run.json` says under `key`; {} where it says nothing of use."""
  found = run.fact(key)
  return found if isinstance(found, Mapping) else {}


def estimate(value: Any) -> Estimate:
  """An interval of `run.json`; NaN where there is none."""
  return Estimate(
    number(lookup(value, "value")), number(lookup(value, "low")), number(lookup(value, "high"))
  )


def verdict(gain: Any) -> str:
  """`above`, `below` or `open`: where the interval of a difference lies against 0; else ``."""
  e = estimate(gain)
  if e.low > 0:
    return "above"
  if e.high < 0:
    return "below"
  return "open" if e.low <= 0 <= e.high else ""


def gain_mark(gain: Any) -> forest_chart.Mark:
  """A difference in a forest; its colour has the verdict."""
  e = estimate(gain)
  style = {"above": "good", "below": "bad"}.get(verdict(gain), "s3")
  return forest_chart.Mark(e.value, e.low, e.high, style)


def zero() -> line_chart.Level:
  """No difference."""
  return line_chart.Level("", 0.0, style="zero")


def signed(x: float) -> str:
  """`+0.071`, with a minus sign that is one."""
  return f"{x:+.3f}".replace("-", "\N{MINUS SIGN}") if x == x else "n/a"


def score_cell(value: Any) -> Html:
  """A table's cell: the value, and its interval below."""
  e = estimate(value)
  bounds = format.interval(e)
  return el(
    "td",
    el("b", format.decimal(e.value)),
    " ",
    el("small", f"({bounds})") if bounds else None,
    cls="num",
  )


def gain_cell(value: Any, less: bool = False) -> Html:
  """A table's cell: the difference with its sign, and its interval below.

  Where the less is the better, sign and colour are the other way round.
  """
  if value is None:
    return el("td", "\N{EN DASH}", cls="num none")
  e, kind = estimate(value), verdict(value)
  if not math.isfinite(e.value):
    return el("td", "n/a", cls="num none", title=lookup(value, "undefined"))
  kind = {"above": "below", "below": "above"}.get(kind, kind) if less else kind
  style = {"above": "up", "below": "down"}.get(kind, "")
  return el(
    "td",
    el("span", signed(e.value), " ", SIGNS.get(kind, ""), cls=style or None),
    " ",
    el("small", f"({signed(e.low)} to {signed(e.high)})"),
    cls="num",
  )


def plain_gain(value: Any) -> str:
  """For the terminal: `+0.071 (+0.050 to +0.092) +`, where the last sign is the verdict's."""
  if value is None:
    return "-"
  e = estimate(value)
  mark = {"above": " +", "below": " -"}.get(verdict(value), "")
  return f"{e.value:+.3f} ({e.low:+.3f} to {e.high:+.3f}){mark}"


def with_status(found: Facts, status: str = "finished") -> list[Facts]:
  """The rows of that status."""
  return [row for row in found.get("rows", []) if row["status"] == status]


def callouts(run: runs.Run, found: Facts, name: Callable[[Facts], str]) -> list[Html]:
  """What has not finished, what failed and why, what could not be read."""
  said = []
  kind, why = naming.status(run)
  waiting = len(with_status(found, "waiting"))
  if waiting:
    left = format.count(waiting, "run is", "runs are")
    said.append(
      el(
        "p",
        el("b", f"{left} not finished."),
        f" {why}" if why else "",
        cls="callout" if kind == "running" else "callout warn",
      )
    )
  for row in with_status(found, "failed"):
    said.append(
      el("p", el("b", f"{name(row)} failed: "), str(row.get("why") or ""), cls="callout bad")
    )
  if run.problems:
    said.append(
      el("p", "Not everything could be read: ", "; ".join(run.problems), ".", cls="callout warn")
    )
  return said


def again(run: runs.Run, found: Facts, name: Callable[[Facts], str]) -> Html:
  """The command of the whole, and of each run."""
  lines = [
    el("div", el("h3", name(row)), el("pre", el("code", row["command"]), cls="command"))
    for row in found.get("rows", [])
  ]
  return el("div", command(run), el("details", el("summary", "One run by itself"), lines))


def document(
  run: runs.Run,
  title: Callable[[], str],
  kicker: str,
  opening: Sequence[Callable[[], Any]],
  body: Sequence[tuple[str, str, str, Callable[[], Html | None]]],
) -> str:
  """A whole page; of each section its key, name, note and content."""
  made = []
  for key, name, note, make in body:
    content = _guarded(make, run)
    made.append(
      (
        key,
        name,
        None
        if content is None
        else el(
          "section", el("h2", name), el("p", note, cls="note") if note else None, content, id=key
        ),
      )
    )
  said = [_guarded(make, run) for make in opening]
  return run_page.document(run, str(_guarded(title, run)), kicker, said, made)


def _guarded(make: Callable[[], Any], run: runs.Run) -> Any:
  return run_page.guard(lambda _: make(), run)


def device(found: Facts) -> str:
  """Of a fact `device`, its name."""
  device = found.get("device") or {}
  name = str(device.get("kind") or "")
  return name.upper() if name == "cpu" else name


def aligned(lines: Sequence[Sequence[str]], rules: Sequence[int] = (0,)) -> Iterator[str]:
  """A table for the terminal, with rules below these lines and at its end."""
  widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(len(lines[0]))]
  rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
  for i, line in enumerate(lines):
    yield "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=False)).rstrip()
    if i in rules or i == len(lines) - 1:
      yield rule

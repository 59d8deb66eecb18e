"""`report.html`: one self-contained page about a run, a pure function of its workdir."""

from __future__ import annotations

import importlib.resources
import io
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cxrjax.core import tables
from cxrjax.core.errors import UserError
from cxrjax.core.text import identifier
from cxrjax.report import glossary, model_card, naming
from cxrjax.report import run_files as runs
from cxrjax.report.html import format
from cxrjax.report.html.element import Html, el
from cxrjax.report.run_writer import replace
from cxrjax.report.sections import (
  classification,
  curves,
  details,
  fact_tables,
  features,
  results,
  saliency,
  segmentation,
)

NAME = "report.html"


def write(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Writes the page of a run and its model card, also of one that is still going or has failed.

  Whatever is missing or broken in the workdir is left out of the page or named on it. The page
  loads nothing: pictures, charts and style are inside.

  Returns:
    The path of `report.html` in the workdir; `MODEL_CARD.md` lies beside it.

  Raises:
    UserError: a file cannot be written.
  """
  run, workdir = runs.read(workdir), pathlib.Path(workdir)
  save(workdir / model_card.NAME, model_card.render(run))
  return save(workdir / NAME, render(run))


def save(path: pathlib.Path, text: str) -> pathlib.Path:
  """Writes a whole text file; raises a UserError where that cannot be done."""
  try:
    replace(path, text.encode("utf-8", errors="backslashreplace"))
  except OSError as error:
    raise UserError(
      f"{path} cannot be written ({error.strerror or error}); free some space, or "
      "choose another folder with --workdir"
    ) from error
  return path


def save_table(path: pathlib.Path, rows: Iterable[Iterable[Any]]) -> pathlib.Path:
  """Writes a table of names and numbers, as `save` does a text."""
  text = io.StringIO()
  tables.write(
    text, ((identifier(cell) if isinstance(cell, str) else cell for cell in row) for row in rows)
  )
  return save(path, text.getvalue())


def render(run: runs.Run) -> str:
  """The page as text."""
  title = str(guard(naming.title, run))
  body = [
    ("results", "Results", "", _results),
    ("masks", "Lung masks", "", segmentation.section),
    ("attention", "Where it looks", "", saliency.section),
    ("features", "What the features hold", "", features.section),
    ("data", "Data and splits", "", fact_tables.data),
    (
      "curves",
      "Learning",
      "How training went, step by step; a pale band shows the range where points are averaged.",
      details.learning,
    ),
    ("schedules", "Schedules", "", details.schedules),
    (
      "views",
      "What a batch sees",
      "Each row: a radiograph, and the random crops made of it in one training step.",
      details.views,
    ),
    ("speed", "Speed and size", "", details.speed),
    ("again", "Run it again", "", details.again),
  ]
  made = [(key, name, _section(run, key, name, note, make)) for key, name, note, make in body]
  about_run = [guard(results.summary, run), guard(_callouts, run)]
  return document(run, title, ["cxrjax", guard(_badge, run)], about_run, made)


def document(
  run: runs.Run, title: str, kicker: Any, opening: Any, made: Sequence[tuple[str, str, Html | None]]
) -> str:
  """A whole page: what it is about, links to its sections, the sections.

  Args:
    run: whose files it is made of.
    title: in the heading.
    kicker: above it.
    opening: below it, before the links.
    made: key, name and content of each section; those without content are left out.
  """
  shown = [(key, name, html) for key, name, html in made if html]
  if explained := glossary.section("".join([el("p", opening), *(html for *_, html in shown)])):
    name = "What the words mean"
    shown.append(("terms", name, el("section", el("h2", name), explained, id="terms")))
  links = el(
    "nav", [el("a", name, href=f"#{key}") for key, name, _ in shown], aria_label="Sections"
  )
  header = el(
    "header",
    el("p", kicker, cls="kicker"),
    el("h1", title),
    opening,
    el("p", naming.RESEARCH, cls="research"),
    links,
  )
  footer = el(
    "footer",
    el("p", naming.RESEARCH),
    el("p", "Written by cxrjax from the files of ", el("code", run.workdir.name or "."), "."),
  )
  style = importlib.resources.files("cxrjax.report.html").joinpath("style.css").read_text("utf-8")
  head = el(
    "head",
    el("meta", charset="utf-8"),
    el("meta", name_="viewport", content="width=device-width, initial-scale=1"),
    el("meta", name_="color-scheme", content="light dark"),
    el("title", f"{title} - cxrjax"),
    el("style", Html(style)),
  )
  page = el(
    "html", head, el("body", header, el("main", [html for *_, html in shown]), footer), lang="en"
  )
  return f"<!doctype html>\n{page}\n"


def _section(
  run: runs.Run, key: str, name: str, note: str, make: Callable[[runs.Run], Html | None]
) -> Html | None:
  """A section, or nothing where the run has nothing for it."""
  content = guard(make, run)
  if content is None:
    return None
  return el("section", el("h2", name), el("p", note, cls="note") if note else None, content, id=key)


def guard(make: Callable[[runs.Run], Any], run: runs.Run) -> Any:
  """What cannot be drawn is said: one broken file must not cost the page."""
  try:
    return make(run)
  except Exception as error:
    return el(
      "p", f"This part could not be drawn ({type(error).__name__}: {error}).", cls="callout warn"
    )


def _results(run: runs.Run) -> Html | None:
  if not run.evaluations:
    return None
  parts = []
  several = run.evaluators()
  for name in several:
    own = run.only(name)
    title = el("h3", naming.images_named(name)) if len(several) > 1 else None
    parts.append(
      el(
        "div",
        title,
        results.table(own),
        guard(curves.decisions, own),
        guard(classification.calibration, own),
        guard(classification.subgroups, own),
        results.over_time(own),
        cls="evaluator",
      )
    )
  return el("div", parts)


def _badge(run: runs.Run) -> Html:
  kind, _ = naming.status(run)
  return el("span", kind, cls=f"badge {kind}")


def _callouts(run: runs.Run) -> list[Html]:
  kind, why = naming.status(run)
  step, total = naming.last_step(run), run.fact("steps")
  reached = f" at step {format.count(step)}" if step is not None else ""
  if reached and format.count(total):
    reached += f" of {format.count(total)}"
  found = []
  if kind in naming.ENDED:
    was = "was stopped" if kind == "stopped" else kind
    found.append(el("p", el("b", f"This run {was}{reached}. "), why, cls="callout bad"))
  elif kind == "running":
    found.append(
      el(
        "p",
        el("b", "This run had not finished"),
        " when the page was written",
        f"; it was{reached}." if reached else ".",
        cls="callout",
      )
    )
  notes = run.fact("notes")
  notes = notes if isinstance(notes, list) else []
  found += [el("p", str(text), cls="callout") for text in notes[:10]]
  found += [el("p", text, cls="callout warn") for text in details.health_warnings(run)]
  if run.problems:
    found.append(
      el("p", "Not everything could be read: ", "; ".join(run.problems), ".", cls="callout warn")
    )
  return found

"""`report.html`: one self-contained page about a run, a pure function of its workdir."""

from __future__ import annotations

import functools
import importlib.resources
import io
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from cxrjax.config.instantiate import locate
from cxrjax.core import tables
from cxrjax.core.atomic_files import atomic_open
from cxrjax.core.text import identifier
from cxrjax.report import glossary, model_card, naming
from cxrjax.report import run_files as runs
from cxrjax.report.html import blocks, format
from cxrjax.report.html.element import Html, el
from cxrjax.report.run_writer import FACTS, Writer, user_errors
from cxrjax.report.sections import (
  classification,
  curves,
  details,
  fact_tables,
  features,
  results,
  saliency,
  segmentation,
  summary,
)

NAME = "report.html"


def write(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Writes the page and the model card of a run, which may still be running or have failed.

  Missing or broken files of the workdir are left out of the page or named on it. The page is
  self-contained: pictures, charts and style are embedded.

  Returns:
    The path of `report.html` in the workdir; `MODEL_CARD.md` lies beside it.

  Raises:
    UserError: a file cannot be written.
  """
  run, workdir = runs.read(workdir), pathlib.Path(workdir)
  save(workdir / model_card.NAME, model_card.render(run))
  return save(workdir / NAME, render(run))


def complete(workdir: pathlib.Path) -> None:
  """Writes the page of a finished run that was killed before it did, and removes leftovers."""
  page, facts = workdir / NAME, workdir / FACTS
  if not page.exists() or page.stat().st_mtime_ns < facts.stat().st_mtime_ns:
    with Writer(workdir):  # its opening and closing clean up
      pass
    write(workdir)


def save(path: pathlib.Path, text: str) -> pathlib.Path:
  """Writes a text file atomically; raises a UserError where it cannot be written."""
  with user_errors(path), atomic_open(path) as file:
    file.write(text.encode("utf-8", errors="backslashreplace"))
  return path


def save_table(path: pathlib.Path, rows: Iterable[Iterable[Any]]) -> pathlib.Path:
  """Writes a table of names and numbers; raises as `save` does."""
  text = io.StringIO()
  tables.write(
    text, ((identifier(cell) if isinstance(cell, str) else cell for cell in row) for row in rows)
  )
  return save(path, text.getvalue())


def render(run: runs.Run) -> str:
  """Renders the page as HTML."""
  title = str(guard(naming.title, run))
  builders = [
    ("results", "Results", "", _results),
    ("masks", "Lung masks", "", segmentation.section),
    ("attention", "Where it looks", "", saliency.section),
    ("features", "What the features encode", "", features.section),
    ("data", "Data and splits", "", fact_tables.data),
    (
      "curves",
      "Learning",
      "Metrics by training step; a pale band shows the range where points are averaged.",
      details.learning,
    ),
    ("schedules", "Schedules", "", details.schedules),
    (
      "views",
      "What a batch sees",
      "Each row: a radiograph and its random crops in one training step.",
      details.views,
    ),
    *_own_sections(run),
    ("speed", "Speed and size", "", details.speed),
    ("again", "Run it again", "", details.reproduction),
  ]
  sections = [
    (key, name, section(run, key, name, note, make)) for key, name, note, make in builders
  ]
  opening = [guard(summary.section, run), guard(_callouts, run)]
  return document(run, title, ["cxrjax", guard(_badge, run)], opening, sections)


def _own_sections(run: runs.Run) -> Iterator[tuple[str, str, str, Any]]:
  """Key, heading, note and function of the user's own sections, `config.sections`."""
  names = run.config.get("sections")
  for number, name in enumerate(names if isinstance(names, list) else []):
    heading = re.split("[.:]", str(name))[-1].replace("_", " ").capitalize()
    yield f"own{number}", heading, "", functools.partial(_own_section, name)


def _own_section(name: str, run: runs.Run) -> Html | None:
  make: Callable[[runs.Run], Html | None] = locate(name, "section", "config.sections")
  return make(run)


def document(
  run: runs.Run,
  title: str,
  kicker: Any,
  opening: Any,
  sections: Sequence[tuple[str, str, Html | None]],
) -> str:
  """Assembles a page: title and opening, links to its sections, the sections.

  Args:
    run: the run that the page is about.
    title: of the heading.
    kicker: above the heading.
    opening: below the heading, before the links.
    sections: key, name and content of each section; those without content are left out.
  """
  shown = [(key, name, html) for key, name, html in sections if html]
  if explained := glossary.section("".join([el("p", opening), *(html for *_, html in shown)])):
    name = "Glossary"
    shown.append(("terms", name, el("section", el("h2", name), explained, id="terms")))
  links = el(
    "nav", [el("a", name, href=f"#{key}") for key, name, _ in shown], aria_label="Sections"
  )
  header = el(
    "header",
    el("p", kicker, cls="kicker"),
    el("h1", title),
    opening,
    el("p", naming.DISCLAIMER, cls="research"),
    links,
  )
  footer = el(
    "footer",
    el("p", naming.DISCLAIMER),
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


def section(
  run: runs.Run, key: str, name: str, note: str, make: Callable[[runs.Run], Html | None]
) -> Html | None:
  """A section with its heading; None where the run has no content for it."""
  content = guard(make, run)
  if content is None:
    return None
  return el("section", el("h2", name), blocks.note(note) if note else None, content, id=key)


def guard(make: Callable[[runs.Run], Any], run: runs.Run) -> Any:
  """Runs `make`; an error becomes a callout, so that one broken file does not cost the page."""
  try:
    return make(run)
  except Exception as error:
    return el(
      "p", f"This section could not be drawn ({type(error).__name__}: {error}).", cls="callout warn"
    )


def _results(run: runs.Run) -> Html | None:
  if not run.evaluations:
    return None
  content = []
  evaluators = run.evaluators()
  for evaluator in evaluators:
    evaluated = run.only(evaluator)
    title = el("h3", naming.images_named(evaluator)) if len(evaluators) > 1 else None
    content.append(
      el(
        "div",
        title,
        results.table(evaluated),
        guard(curves.decisions, evaluated),
        guard(classification.calibration, evaluated),
        guard(classification.subgroups, evaluated),
        results.over_time(evaluated),
        cls="evaluator",
      )
    )
  return el("div", content)


def _badge(run: runs.Run) -> Html:
  status, _ = naming.status(run)
  return el("span", status, cls=f"badge {status}")


def _callouts(run: runs.Run) -> list[Html]:
  status, reason = naming.status(run)
  step, total = naming.last_step(run), run.fact("steps")
  reached = f" at step {format.count(step)}" if step is not None else ""
  if reached and format.count(total):
    reached += f" of {format.count(total)}"
  callouts = []
  if status in naming.ENDED:
    ending = "was stopped" if status == "stopped" else status
    callouts.append(el("p", el("b", f"This run {ending}{reached}. "), reason, cls="callout bad"))
  elif status == "running":
    callouts.append(
      el(
        "p",
        el("b", "This run had not finished"),
        " when the page was written",
        f"; it was{reached}." if reached else ".",
        cls="callout",
      )
    )
  callouts += [el("p", str(text), cls="callout") for text in run.items("notes")[:10]]
  callouts += [el("p", text, cls="callout warn") for text in details.health_warnings(run)]
  return [*callouts, *problems(run)]


def problems(run: runs.Run) -> list[Html]:
  """Callout of files that could not be read."""
  text = "; ".join(run.problems)
  return [el("p", "Some files could not be read: ", text, ".", cls="callout warn")] if text else []

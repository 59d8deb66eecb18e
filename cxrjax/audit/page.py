"""`audit.html`: one self-contained page about data sets, a pure function of an audit's workdir."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from cxrjax.audit import tables
from cxrjax.report import naming
from cxrjax.report import run_files as runs
from cxrjax.report.html import format
from cxrjax.report.html.element import Html, el
from cxrjax.report.pages import run_page
from cxrjax.report.sections import fact_tables
from cxrjax.report.sections.details import reproduction

NAME = "audit.html"


def write(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Writes the self-contained page of an audit.

  Returns:
    The path of `audit.html` in the workdir.

  Raises:
    UserError: the file cannot be written.
  """
  return run_page.save(pathlib.Path(workdir) / NAME, render(runs.read(workdir)))


def render(run: runs.Run) -> str:
  """The page as text."""
  audit = run.fact("audit")
  audit = audit if isinstance(audit, Mapping) else {}
  pictures = run.arrays("audit")
  builders: list[tuple[str, str, Callable[[runs.Run], Html | None]]] = [
    ("sets", "Sets and splits", lambda _: tables.parts(audit)),
    ("duplicates", "Near-duplicates", lambda _: tables.duplicates(audit, run, pictures)),
    ("patients", "Patients in several splits", lambda _: tables.patients(audit)),
    ("images", "Images", lambda _: tables.images(audit, pictures)),
    ("labels", "Labels", lambda _: tables.labels(audit)),
    ("people", "Sites, views, sex and age", lambda _: tables.attributes(audit)),
    ("floor", "Thumbnail floor", lambda _: tables.floor(audit)),
    ("again", "How this was made", _provenance),
  ]
  sections = []
  for key, name, section in builders:
    content = run_page.guard(section, run)
    sections.append(
      (key, name, None if content is None else el("section", el("h2", name), content, id=key))
    )
  opening = [
    run_page.guard(lambda _: _summary(audit), run),
    run_page.guard(lambda _: _callouts(audit), run),
  ]
  if run.problems:
    opening.append(
      el("p", "Not everything could be read: ", "; ".join(run.problems), ".", cls="callout warn")
    )
  title = str(run_page.guard(lambda _: _title(audit), run))
  return run_page.document(run, title, "cxrjax audit", opening, sections)


def _title(audit: Mapping[str, Any]) -> str:
  names = list(dict.fromkeys(p["source"] for p in audit["parts"]))
  ends = [naming.source_name(n).rpartition("/")[2].rpartition(":")[2] for n in names]
  suffix = f" and {len(names) - 3} more" if len(names) > 3 else ""
  return f"Audit of {', '.join(ends[:3])}{suffix}"


def _total(audit: Mapping[str, Any], key: str) -> int:
  return sum(p.get(key, 0) for p in audit.get("parts", []))


def _summary(audit: Mapping[str, Any]) -> Html:
  """Summary of the data and the main findings, in words."""
  parts, pairs = audit.get("parts", []), audit.get("pairs", {})
  sources = len({p["source"] for p in parts})
  text: list[Any] = [
    el("b", format.count(_total(audit, "n"), "radiograph")),
    " in ",
    format.count(len(parts), "split"),
  ]
  if sources > 1:
    text.append(f" of {sources} sources")
  text.append(
    f" were compared with one another, {format.compact(pairs.get('compared')).strip()} pairs. "
  )
  copies, across = pairs.get("copies", 0), pairs.get("across", 0)
  if not copies:
    text.append("No two show the same radiograph.")
  else:
    text += [
      el("b", format.count(copies, "pair shows", "pairs show")),
      " the same radiograph twice",
    ]
    where = "between splits or sources" if sources > 1 else "between splits"
    text.append(
      f", {format.count(across) if across else 'none'} of them {where}." if len(parts) > 1 else "."
    )
  same = pairs.get("same", 0)
  if same:
    text.append(
      f" {format.count(same, 'more pair probably shows', 'more pairs probably show')} "
      "one patient at two times."
    )
  statement = str(audit.get("patients", {}).get("said", ""))
  if len(parts) > 1 and statement:
    text.append(f" {statement[0].upper()}{statement[1:]}.")
  return el("div", el("p", text), cls="summary")


def _callouts(audit: Mapping[str, Any]) -> list[Html]:
  """Problems to fix before training on these data."""
  pairs, patients = audit.get("pairs", {}), audit.get("patients", {})
  callouts = []

  def say(kind: str, *text: Any) -> None:
    callouts.append(el("p", *text, cls=f"callout {kind}".strip()))

  if n := patients.get("crossing"):
    say(
      "bad",
      el("b", format.count(n, "patient is", "patients are"), " in several splits"),
      f" ({format.count(patients.get('images'), 'image')}; all are in patients.csv). What is "
      "learnt of them in one split is known in the other.",
    )
  if n := pairs.get("across"):
    say(
      "bad",
      el(
        "b", format.count(n, "radiograph stands", "radiographs stand"), " in two splits or sources"
      ),
      ". Results on the one flatter what was trained on "
      "the other; see the pairs below and pairs.csv.",
    )
  if n := pairs.get("across_same"):
    say(
      "warn",
      el("b", format.count(n, "further pair"), " between splits or sources"),
      " probably shows one patient twice." if n == 1 else " probably show one patient twice.",
    )
  if n := pairs.get("other_label"):
    say(
      "warn",
      el("b", format.count(n, "copy has", "copies have"), " another label"),
      " than the original.",
    )
  if n := _total(audit, "inverted"):
    say(
      "warn",
      el("b", format.count(n, "image is", "images are"), " inverted"),
      ", bones black and lungs white.",
    )
  unusable = {
    "unreadable": _total(audit, "unreadable"),
    "blank": _total(audit, "flat"),
    "left out by the source": audit.get("left_out", 0),
  }
  if any(unusable.values()):
    say(
      "warn",
      el("b", format.count(sum(unusable.values()), "image"), " cannot be used"),
      ": ",
      ", ".join(f"{format.count(n)} {kind}" for kind, n in unusable.items() if n),
      ".",
    )
  return callouts


def _provenance(run: runs.Run) -> Html:
  """Command, settings, timing and versions."""
  settings = run.fact("settings")
  settings = settings if isinstance(settings, Mapping) else {}
  names = {
    "copy": "The same radiograph from",
    "same": "The same patient from",
    "first": "Second look from",
    "looks": "Second looks, at most",
    "folds": "Folds",
    "size": "Decoded to, pixels",
    "fit": "Images that are not square",
  }
  rows: list[tuple[str, Any]] = [
    (names.get(k, str(k)), fact_tables.scalar(v)) for k, v in settings.items()
  ]
  timing = run.fact("timing")
  for key, value in timing.items() if isinstance(timing, Mapping) else ():
    label = {
      "decode": "Decoding",
      "compare": "Comparing",
      "look": "Looking at each image",
      "floor": "Thumbnail floor",
    }.get(key.removesuffix("_s"), str(key))
    rows.append((label, format.duration(value)))
  rows.append(("Device", naming.device_name(run)))
  return el(
    "div", el("div", el("div", fact_tables.pairs(rows), cls="card"), cls="cards"), reproduction(run)
  )

"""`audit.html`: one self-contained page about data sets, a pure function of an audit's workdir."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from cxrjax.audit import sections
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
  audit, pictures = run.mapping("audit"), run.arrays("audit")
  builders: list[tuple[str, str, Callable[[runs.Run], Html | None]]] = [
    ("sets", "Sets and splits", lambda _: sections.splits(audit)),
    ("duplicates", "Near-duplicates", lambda _: sections.duplicates(audit, run, pictures)),
    ("patients", "Patients in several splits", lambda _: sections.patients(audit)),
    ("images", "Images", lambda _: sections.images(audit, pictures)),
    ("labels", "Labels", lambda _: sections.labels(audit)),
    ("people", "Sites, views, sex and age", lambda _: sections.attributes(audit)),
    ("floor", "Thumbnail floor", lambda _: sections.floor(audit)),
    ("again", "Settings and reproduction", _provenance),
  ]
  content = [
    (key, name, run_page.section(run, key, name, "", make)) for key, name, make in builders
  ]
  opening = [
    run_page.guard(lambda _: _summary(audit), run),
    run_page.guard(lambda _: _callouts(audit), run),
  ]
  opening += run_page.problems(run)
  title = str(run_page.guard(lambda _: _title(audit), run))
  return run_page.document(run, title, "cxrjax audit", opening, content)


def _title(audit: Mapping[str, Any]) -> str:
  names = list(dict.fromkeys(p["source"] for p in audit["parts"]))
  ends = [naming.source_name(n).rpartition("/")[2].rpartition(":")[2] for n in names]
  suffix = f" and {len(names) - 3} more" if len(names) > 3 else ""
  return f"Audit of {', '.join(ends[:3])}{suffix}"


def _total(audit: Mapping[str, Any], key: str) -> int:
  return sum(p.get(key, 0) for p in audit.get("parts", []))


def _summary(audit: Mapping[str, Any]) -> Html:
  """Summary of the data and the main findings, in words."""
  splits, pairs = audit.get("parts", []), audit.get("pairs", {})
  sources = len({p["source"] for p in splits})
  text: list[Any] = [
    el("b", format.count(_total(audit, "n"), "radiograph")),
    " in ",
    format.count(len(splits), "split"),
  ]
  if sources > 1:
    text.append(f" of {sources} sources")
  text.append(f" were compared pairwise, {format.compact(pairs.get('compared')).strip()} pairs. ")
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
      f", {format.count(across) if across else 'none'} of them {where}." if len(splits) > 1 else "."
    )
  same = pairs.get("same", 0)
  if same:
    text.append(
      f" {format.count(same, 'more pair probably shows', 'more pairs probably show')} "
      "one patient at two different times."
    )
  statement = str(audit.get("patients", {}).get("said", ""))
  if len(splits) > 1 and statement:
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
      "learnt about them in one split leaks into the other.",
    )
  if n := pairs.get("across"):
    say(
      "bad",
      el("b", format.count(n, "radiograph is", "radiographs are"), " in two splits or sources"),
      ". A model trained on one copy looks better than it is when tested on the "
      "other; see the pairs below and pairs.csv.",
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
      el("b", format.count(n, "copy has", "copies have"), " a different label"),
      " from the original.",
    )
  if n := _total(audit, "inverted"):
    say(
      "warn",
      el("b", format.count(n, "image is", "images are"), " inverted"),
      ": bones are black and lungs white.",
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
  names = {
    "copy": "Same radiograph: correlation from",
    "same": "Same patient: correlation from",
    "first": "Compared in detail: correlation from",
    "looks": "Detailed comparisons, at most",
    "folds": "Folds",
    "size": "Decoded to (pixels)",
    "fit": "Non-square images",
  }
  rows: list[tuple[str, Any]] = [
    (names.get(k, str(k)), fact_tables.scalar(v)) for k, v in run.mapping("settings").items()
  ]
  steps = {
    "decode": "Decoding",
    "compare": "Comparing",
    "look": "Inspecting images",
    "floor": "Thumbnail floor",
  }
  for key, value in run.mapping("timing").items():
    rows.append((steps.get(key.removesuffix("_s"), str(key)), format.duration(value)))
  rows.append(("Device", naming.device_name(run)))
  return el("div", el("div", fact_tables.card(rows), cls="cards"), reproduction(run))

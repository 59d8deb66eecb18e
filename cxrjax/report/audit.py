"""`audit.html`: one self-contained page about data sets, a pure function of an audit's workdir."""

from __future__ import annotations

import datetime
import importlib.resources
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from cxrjax.core.errors import UserError
from cxrjax.report import about, audit_tables, facts, words
from cxrjax.report import run as runs
from cxrjax.report.html import Html, el
from cxrjax.report.page import RESEARCH
from cxrjax.report.sections import again
from cxrjax.report.writer import replace

NAME = "audit.html"


def write(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Writes the page of an audit; it loads nothing.

  Returns:
    The path of `audit.html` in the workdir.

  Raises:
    UserError: the file cannot be written.
  """
  path = pathlib.Path(workdir) / NAME
  text = render(runs.read(workdir))
  try:
    replace(path, text.encode("utf-8", errors="replace"))
  except OSError as error:
    raise UserError(f"{path} cannot be written ({error.strerror or error}); free some space, or "
                    "choose another folder with --workdir") from error
  return path


def render(run: runs.Run) -> str:
  """The page as text."""
  audit = run.fact("audit")
  audit = audit if isinstance(audit, Mapping) else {}
  pictures = run.arrays("audit")
  body: list[tuple[str, str, Callable[[], Html | None]]] = [
    ("sets", "Sets and splits", lambda: audit_tables.parts(audit)),
    ("duplicates", "Near-duplicates", lambda: audit_tables.duplicates(audit, run, pictures)),
    ("patients", "Patients in several splits", lambda: audit_tables.patients(audit)),
    ("images", "Images", lambda: audit_tables.images(audit, pictures)),
    ("labels", "Labels", lambda: audit_tables.labels(audit)),
    ("people", "Sites, views, sex and age", lambda: audit_tables.attributes(audit)),
    ("floor", "Thumbnail floor", lambda: audit_tables.floor(audit)),
    ("again", "How this was made", lambda: _made(run)),
  ]
  made = [(key, name, make()) for key, name, make in body]
  made = [(key, name, html) for key, name, html in made if html is not None]
  names = list(dict.fromkeys(p["source"] for p in audit.get("parts", [])))
  title = "Audit of " + " and ".join(
    about.source_name(n).rpartition("/")[2].rpartition(":")[2] for n in names[:3])
  if len(names) > 3:
    title += f" and {len(names) - 3} more"
  links = el("nav", [el("a", name, href=f"#{key}") for key, name, _ in made],
             aria_label="Sections")
  header = el("header", el("p", "cxrjax audit", cls="kicker"), el("h1", title), _summary(audit),
              _callouts(audit), el("p", RESEARCH, cls="research"), links)
  if run.problems:
    header = el("div", header, el("p", "Not everything could be read: ",
                                  "; ".join(run.problems), ".", cls="callout warn"))
  style = importlib.resources.files("cxrjax.report").joinpath("style.css").read_text("utf-8")
  head = el(
    "head", el("meta", charset="utf-8"),
    el("meta", name_="viewport", content="width=device-width, initial-scale=1"),
    el("meta", name_="color-scheme", content="light dark"),
    el("title", f"{title} - cxrjax"), el("style", Html(style)))
  main = el("main", [el("section", el("h2", name), html, id=key) for key, name, html in made])
  footer = el("footer", el("p", RESEARCH), el("p", "Written by cxrjax from the files of ",
                                              el("code", run.workdir.name or "."), "."))
  page = el("html", head, el("body", header, main, footer), lang="en")
  return f"<!doctype html>\n{page}\n"


def now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _total(audit: Mapping[str, Any], key: str) -> int:
  return sum(p.get(key, 0) for p in audit.get("parts", []))


def _summary(audit: Mapping[str, Any]) -> Html:
  """What was looked at and what stands out, in words."""
  parts, pairs = audit.get("parts", []), audit.get("pairs", {})
  sources = len({p["source"] for p in parts})
  text: list[Any] = [el("b", words.count(_total(audit, "n"), "radiograph")), " in ",
                     words.count(len(parts), "split")]
  if sources > 1:
    text.append(f" of {sources} sources")
  text.append(" were compared with one another, "
              f"{words.compact(pairs.get('compared')).strip()} pairs. ")
  copies, across = pairs.get("copies", 0), pairs.get("across", 0)
  if not copies:
    text.append("No two show the same radiograph.")
  else:
    text += [el("b", words.count(copies, "pair shows", "pairs show")), " the same radiograph twice"]
    where = "between splits or sources" if sources > 1 else "between splits"
    text.append(f", {words.count(across) if across else 'none'} of them {where}."
                if len(parts) > 1 else ".")
  same = pairs.get("same", 0)
  if same:
    text.append(f" {words.count(same, 'more pair probably shows', 'more pairs probably show')} "
                "one patient at two times.")
  crossing = audit.get("patients", {}).get("crossing", 0)
  if len(parts) > 1:
    text.append(" No patient is known to be in two splits." if not crossing else
                f" {words.count(crossing, 'patient is', 'patients are')} in several splits.")
  return el("div", el("p", text), cls="summary")


def _callouts(audit: Mapping[str, Any]) -> list[Html]:
  """What should be mended before anything is trained on these data."""
  pairs, patients = audit.get("pairs", {}), audit.get("patients", {})
  found = []
  def say(kind: str, *text: Any) -> None:
    found.append(el("p", *text, cls=f"callout {kind}".strip()))
  if n := patients.get("crossing"):
    say("bad", el("b", words.count(n, "patient is", "patients are"), " in several splits"),
        f" ({words.count(patients.get('images'), 'image')}; all are in patients.csv). What is "
        "learnt of them in one split is known in the other.")
  if n := pairs.get("across"):
    say("bad", el("b", words.count(n, "radiograph stands", "radiographs stand"),
                  " in two splits or sources"), ". Results on the one flatter what was trained on "
        "the other; see the pairs below and pairs.csv.")
  if n := pairs.get("across_same"):
    say("warn", el("b", words.count(n, "further pair"), " between splits or sources"),
        " probably shows one patient twice." if n == 1 else " probably show one patient twice.")
  if n := pairs.get("other_label"):
    say("warn", el("b", words.count(n, "copy has", "copies have"), " another label"),
        " than the original.")
  if n := _total(audit, "inverted"):
    say("warn", el("b", words.count(n, "image is", "images are"), " inverted"),
        ", bones black and lungs white.")
  unusable = {"unreadable": _total(audit, "unreadable"), "blank": _total(audit, "flat"),
              "left out by the source": audit.get("left_out", 0)}
  if any(unusable.values()):
    say("warn", el("b", words.count(sum(unusable.values()), "image"), " cannot be used"), ": ",
        ", ".join(f"{words.count(n)} {kind}" for kind, n in unusable.items() if n), ".")
  return found


def _made(run: runs.Run) -> Html:
  """Command, settings, time, versions."""
  settings = run.fact("settings")
  settings = settings if isinstance(settings, Mapping) else {}
  names = {"copy": "The same radiograph from", "same": "The same patient from",
           "first": "Second look from", "looks": "Second looks, at most", "folds": "Folds",
           "size": "Decoded to, pixels", "fit": "Images that are not square"}
  rows = [(names.get(k, k), facts.scalar(v)) for k, v in settings.items()]
  timing = run.fact("timing")
  for key, value in (timing.items() if isinstance(timing, Mapping) else ()):
    label = {"decode": "Decoding", "compare": "Comparing", "look": "Looking at each image",
             "floor": "Thumbnail floor"}.get(key.removesuffix("_s"), key)
    rows.append((label, words.duration(value)))
  rows.append(("Device", about.device_name(run)))
  return el("div", el("div", el("div", facts.pairs(rows), cls="card"), cls="cards"), again(run))

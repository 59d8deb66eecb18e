"""Lung masks on the page: how near they come to the true ones, in words and over radiographs."""

from __future__ import annotations

import math
from typing import Any

from cxrjax.report import naming
from cxrjax.report.html import format, pictures
from cxrjax.report.html.element import Html, el
from cxrjax.report.run_files import FLOOR, TRAINED, Run, lookup

# Apart also to colour-blind readers; in the style sheet, too.
TRUTH, PREDICTED = (86, 180, 233), (255, 158, 27)


def drawn(run: Run) -> bool:
  """Whether a run, of one evaluator, is judged by masks."""
  return any("dice" in e.metrics for e in run.evaluations)


def judged(run: Run, evaluator: str) -> list[Any]:
  """How well its masks agree with the true ones, for the summary."""
  latest = run.latest()
  own, floor = (latest.get(e, {}).get("dice") for e in (TRAINED, FLOOR))
  where = run.fact("data", evaluator)
  if own is None or not math.isfinite(own.value):
    return [naming.images_named(evaluator), ": its masks have not been judged yet."]
  text = [
    *naming.judged_on(evaluator, own.n, where),
    " its lung masks overlap the true ones with a Dice of ",
    el("b", format.estimate(own), cls="nowrap"),
  ]
  if floor is not None and math.isfinite(floor.value):
    text += [
      " (1 is the same mask); one and the same mask for all images, the mean of those "
      "learnt from, has ",
      el("span", format.estimate(floor), cls="nowrap"),
    ]
  return [*text, ".", naming.judged_once(run, evaluator)]


def section(run: Run) -> Html | None:
  """Some images of the set that judges, from the worst overlap to the best, with both outlines."""
  names = [n for n in run.evaluators() if "truth" in run.arrays(f"scores_{n}_{TRAINED}")]
  chosen = [n for n in names if n in (run.fact("chosen", "evaluators") or [])] or names[:1]
  parts = [part for n in chosen for part in _rows(run, n, len(chosen) > 1)]
  if not parts:
    return None
  keys = [el("i", cls=f"key {name}") for name in ("truth", "predicted")]
  facts = run.fact("data", chosen[0])
  unit, size = lookup(facts, "distances_in"), format.count(lookup(facts, "size"))
  note = el(
    "p",
    "Outlines: ",
    keys[0],
    "the true mask, ",
    keys[1],
    "the predicted one, which lies "
    "on top. Images at even steps from the worst Dice of the set to the best.",
    f" Distances above are in {unit} of images of {size} pixels a side." if unit and size else "",
    cls="note",
  )
  return el("div", note, parts)


def _rows(run: Run, evaluator: str, named: bool) -> list[Html]:
  arrays = run.arrays(f"scores_{evaluator}_{TRAINED}")
  figures = []
  for image, truth, called, dice, name in zip(
    *(arrays[k] for k in ("image", "truth", "predicted", "dice", "id")), strict=True
  ):
    drawn_over = pictures.outlines(pictures.gray(image), [truth, called], [TRUTH, PREDICTED])
    text = f"Dice {format.decimal(float(dice))}"
    figures.append(
      el(
        "figure",
        pictures.picture(drawn_over, f"{name}: {text}", 288),
        el("figcaption", text, " ", el("small", name)),
      )
    )
  title = el("h3", naming.images_named(evaluator)) if named else None
  # One picture would stand in a column as wide as the page.
  few = f" n{min(max(len(figures), 2), 4)}"
  return [
    x for x in (title, el("div", el("div", figures, cls=f"large{few}"), cls="views alone")) if x
  ]

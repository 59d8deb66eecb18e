"""Lung masks on the page: agreement with the true ones in words, outlines over radiographs."""

from __future__ import annotations

import math
from typing import Any

from cxrjax.report import naming
from cxrjax.report.html import blocks, format, pictures
from cxrjax.report.html.element import Html, el
from cxrjax.report.run_files import FLOOR, TRAINED, Run, lookup

# Distinct for colour-blind readers as well; the same colours are in the style sheet.
TRUTH, PREDICTED = (86, 180, 233), (255, 158, 27)


def has_masks(run: Run) -> bool:
  """Whether a run (of one evaluator) is judged by masks."""
  return any("dice" in e.metrics for e in run.evaluations)


def describe(run: Run, evaluator: str) -> list[Any]:
  """Describes for the summary how well predicted masks agree with the true ones."""
  latest = run.latest()
  dice, floor = (latest.get(e, {}).get("dice") for e in (TRAINED, FLOOR))
  facts = run.fact("data", evaluator)
  if dice is None or not math.isfinite(dice.value):
    return [naming.images_named(evaluator), ": its masks have not been evaluated yet."]
  sentence = [
    *naming.judged_on(evaluator, dice.n, facts),
    " its lung masks overlap the true ones with a Dice of ",
    el("b", format.estimate(dice), cls="nowrap"),
  ]
  if floor is not None and math.isfinite(floor.value):
    sentence += [
      " (1 is identical); the mean training mask, used for all images, reaches ",
      el("span", format.estimate(floor), cls="nowrap"),
    ]
  return [*sentence, ".", naming.judged_once(run, evaluator)]


def section(run: Run) -> Html | None:
  """Evaluation images from the worst overlap to the best, with true and predicted outlines."""
  names = [n for n in run.evaluators() if "truth" in run.arrays(f"scores_{n}_{TRAINED}")]
  chosen = [n for n in names if n in (run.fact("chosen", "evaluators") or [])] or names[:1]
  rows = [row for n in chosen for row in _rows(run, n, len(chosen) > 1)]
  if not rows:
    return None
  keys = [el("i", cls=f"key {name}") for name in ("truth", "predicted")]
  facts = run.fact("data", chosen[0])
  unit, size = lookup(facts, "distances_in"), format.count(lookup(facts, "size"))
  note = blocks.note(
    "Outlines: ",
    keys[0],
    "the true mask, ",
    keys[1],
    "the predicted one, drawn on "
    "top. Images are spaced evenly by rank from the worst Dice to the best.",
    f" Distances above are in {unit} of images of {size} pixels per side." if unit and size else "",
  )
  return el("div", note, rows)


def _rows(run: Run, evaluator: str, has_title: bool) -> list[Html]:
  arrays = run.arrays(f"scores_{evaluator}_{TRAINED}")
  figures = []
  for image, truth, predicted, dice, name in zip(
    *(arrays[k] for k in ("image", "truth", "predicted", "dice", "id")), strict=True
  ):
    overlaid = pictures.outlines(pictures.gray(image), [truth, predicted], [TRUTH, PREDICTED])
    text = f"Dice {format.decimal(float(dice))}"
    picture = pictures.picture(overlaid, f"{name}: {text}", 288)
    figures.append(blocks.figure(picture, text, " ", el("small", name)))
  title = el("h3", naming.images_named(evaluator)) if has_title else None
  # At least two columns: a single picture would be as wide as the page.
  columns = f" n{min(max(len(figures), 2), 4)}"
  grid = el("div", el("div", figures, cls=f"large{columns}"), cls="views alone")
  return [title, grid] if title else [grid]

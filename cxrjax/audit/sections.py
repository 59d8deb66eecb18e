"""The sections of an audit's page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cxrjax.report import naming
from cxrjax.report.html import blocks, format, pictures
from cxrjax.report.html.element import Html, el
from cxrjax.report.run_files import TRAINED, Run, estimate, number
from cxrjax.report.sections import fact_tables, results

DASH = "\N{EN DASH}"
CLASSES, VALUES = 60, 20  # rows of a table of labels, and of an attribute
SIZE = 176  # of a picture, pixels


def table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> Html:
  """A table whose first column names rows; the rest are numbers."""
  body = [blocks.row(name, list(map(blocks.number, cells))) for name, *cells in rows]
  return blocks.table(blocks.columns(*titles), body, "parts")


def _count(n: Any) -> str:
  return format.count(n) if n else DASH


def _share(part: float, whole: float) -> str:
  return f" ({100 * part / whole:.3g} %)" if whole else ""


def _listed_of(shown: str, total: str, file: str) -> Html:
  """How many of all are listed, and the file that has the rest."""
  return blocks.note(f"{shown} of {total}; all are in ", el("code", file), ".")


def _figure(image: np.ndarray, name: str, size: int, text: str) -> Html:
  """An image with its short name and a text below."""
  picture = pictures.picture(pictures.gray(image), name, size)
  caption = [el("span", _short_name(name), title=name), el("small", text)]
  return blocks.figure(picture, caption)


def splits(audit: Mapping[str, Any]) -> Html | None:
  """Table of all splits: images, patients and defects; and a card for each source."""
  facts = audit.get("parts", [])
  columns = {
    "n": "Images",
    "patients": "Patients",
    "unreadable": "Unreadable",
    "flat": "Blank",
    "inverted": "Inverted",
    "unlike": "Unlike",
  }
  inside = {c["a"]: c for c in audit["pairs"]["counts"] if c["a"] == c["b"]}

  def cell(split: Mapping[str, Any], column: str) -> str:
    one_each = split["n"] > 1 and split.get("tells_patients") is False and not split["unknown"]
    return "one per image" if column == "patients" and one_each else _count(split.get(column))

  rows = [
    [
      split["name"],
      *(cell(split, column) for column in columns),
      _count(inside.get(split["name"], {}).get("copies")),
    ]
    for split in facts
  ]
  cards = [_source_card(source, group) for source, group in _by_source(facts)]
  return el(
    "div",
    [table(["Split", *columns.values(), "Copies within"], rows)],
    el("div", cards, cls="cards"),
  )


def _by_source(facts: Sequence[Any]) -> list[tuple[str, list[Any]]]:
  """Facts grouped by their source."""
  sources = dict.fromkeys(fact["source"] for fact in facts)
  return [(source, [fact for fact in facts if fact["source"] == source]) for source in sources]


def _source_card(source: str, splits: Sequence[Mapping[str, Any]]) -> Html:
  notes = list(dict.fromkeys(note for split in splits for note in split.get("notes", [])))
  fingerprints = {split["split"]: split["fingerprint"] for split in splits}
  facts: list[tuple[str, Any]] = [
    ("Source", el("span", naming.source_name(source), title=source)),
    ("Fingerprint", fact_tables.value("fingerprint", fingerprints)),
  ]
  if notes:
    facts.append(("Notes", fact_tables.value("notes", notes)))
  return fact_tables.card(facts)


def duplicates(audit: Mapping[str, Any], run: Run, shown: Mapping[str, np.ndarray]) -> Html | None:
  """Counts of near-duplicate pairs by split, and the pairs side by side."""
  pairs = audit["pairs"]
  content = [_about_duplicates(run, pairs), *_pair_counts(audit)]
  images, listed = shown.get("pairs"), pairs.get("shown", [])
  if images is None or not listed:
    return el("div", content, el("p", "No pair was found.", cls="quiet") if not listed else None)
  total = pairs["copies"] + pairs["same"]
  if total > len(listed):
    content.append(_listed_of(format.count(len(listed)), format.count(total, "pair"), "pairs.csv"))
  for title, is_across in (("Between splits or sources", True), ("Within a split", False)):
    twins = [
      _pair(pair, sides)
      for pair, sides in zip(listed, images, strict=False)
      if pair["across"] is is_across
    ]
    if twins:
      content += [el("h3", title), el("div", twins, cls="twins")]
  return el("div", content)


def _about_duplicates(run: Run, pairs: Mapping[str, Any]) -> Html:
  """What counts as a copy, and which pairs were not compared in detail."""
  settings = run.fact("settings") or {}
  copy, same = (f"{number(settings.get(k)):g}" for k in ("copy", "same"))
  note = (
    f"Two radiographs whose fine detail, once aligned, correlates at {copy} or above "
    f"count as the same; from {same} they probably show the same patient. Re-encoding, "
    "brightness, contrast, crops of a few percent, rotations of a few degrees and added text "
    "do not hide a copy; mirror images and larger crops can be missed."
  )
  if number(pairs.get("first")) > number(settings.get("first")) + 0.005:
    note += (
      f" There were too many candidate pairs to compare each in detail: those whose coarse "
      f"correlation is below {pairs['first']:.2f} were skipped."
    )
  return blocks.note(note)


def _pair_counts(audit: Mapping[str, Any]) -> list[Html]:
  """Table of the numbers of pairs, between splits first."""
  pairs, names = audit["pairs"], [split["name"] for split in audit["parts"]]
  if not (pairs["copies"] or pairs["same"]):
    return []
  counts = [c for c in pairs["counts"] if c["copies"] or c["same"]]
  counts.sort(key=lambda c: (c["a"] == c["b"], names.index(c["a"]), names.index(c["b"])))
  rows = [
    [
      f"within {c['a']}" if c["a"] == c["b"] else f"{c['a']} and {c['b']}",
      _count(c["copies"]),
      _count(c["same"]),
    ]
    for c in counts
  ]
  content = [table(["Where", "Same radiograph", "Probably same patient"], rows)]
  if n := pairs.get("other_patient"):
    subject = format.count(n, "pair is", "pairs are")
    content.append(blocks.note(f"{subject} of patients that the data say are different."))
  return content


def _pair(pair: Mapping[str, Any], images: np.ndarray) -> Html:
  sides = [
    _figure(
      image, side["id"], SIZE, " \N{MIDDLE DOT} ".join(filter(None, (side["part"], side["labels"])))
    )
    for side, image in zip((pair["a"], pair["b"]), images, strict=True)
  ]
  kind = "same radiograph" if pair["copy"] else "same patient?"
  caption = [el("b", kind), f" {pair['r']:.3f}"]
  tags = [
    el("span", "different label", cls="tag bad") if pair["differ"] else None,
    el("span", "different patient in the data", cls="tag warn")
    if pair["same_patient"] is False
    else None,
  ]
  return el("div", el("p", caption, tags), el("div", sides, cls="pair"), cls="card twin")


def _short_name(name: str) -> str:
  last = name.rstrip("/").rpartition("/")[2]
  return last if len(last) <= 40 else f"\N{HORIZONTAL ELLIPSIS}{last[-38:]}"


def patients(audit: Mapping[str, Any]) -> Html | None:
  """Patients that are in several splits."""
  facts = audit["patients"]
  statement = f"{facts['said'][0].upper()}{facts['said'][1:]}."
  if not facts["crossing"]:
    return el("p", statement, cls="quiet")
  content = [blocks.note(statement)]
  rows = [[" and ".join(b["parts"]), format.count(b["patients"])] for b in facts["between"]]
  content.append(table(["Splits", "Patients"], rows))
  items = []
  for patient in facts["listed"]:
    names = [
      el("li", el("code", name), " ", el("small", split)) for split, name in patient["images"]
    ]
    omitted = patient["n"] - len(patient["images"])
    images = el("ul", names, el("li", f"and {omitted} more") if omitted > 0 else None)
    title = f"{patient['patient']}: {format.count(patient['n'], 'image')}"
    items.append(blocks.folded(title, images))
  content.append(el("div", items))
  if facts["crossing"] > len(facts["listed"]):
    total = format.count(facts["crossing"])
    content.append(_listed_of(f"The first {len(facts['listed'])}", total, "patients.csv"))
  return el("div", content)


DEFECTS = {  # titles and explanations
  "inverted": (
    "Inverted",
    "They resemble the negative of the average image. Lung masks among the images look like "
    "this, too.",
  ),
  "flat": ("Blank", "Their gray levels vary by less than 4 of 255."),
  "unlike": (
    "Unlike the others",
    "Neither they nor their negatives resemble the average image: "
    "cut off, framed, rotated, lateral, or not a chest.",
  ),
}


def images(audit: Mapping[str, Any], shown: Mapping[str, np.ndarray]) -> Html:
  """Lists unreadable images; shows inverted, blank and atypical ones."""
  facts = audit["images"]
  unreadable, left_out = sum(p["unreadable"] for p in audit["parts"]), audit.get("left_out", 0)
  content = [
    *_unusable(
      format.count(unreadable, "image is unreadable", "images are unreadable"),
      facts.get("bad", []),
      unreadable,
    ),
    *_unusable(
      format.count(left_out, "image was", "images were") + " left out by the source",
      facts.get("left_out", []),
      left_out,
    ),
  ]
  for defect in DEFECTS:
    total = sum(p[defect] for p in audit["parts"])
    if total and defect in shown:
      content += _gallery(defect, facts[defect], shown[defect], total)
  if not content:
    return el("p", "All images can be read; none is blank or inverted.", cls="quiet")
  note = blocks.note("All images and their findings are listed in ", el("code", "images.csv"), ".")
  return el("div", content, note)


def _unusable(title: str, rows: Sequence[Any], total: int) -> list[Html]:
  """A folded list of images with the reasons; empty without images."""
  if not rows:
    return []
  items = [
    el("li", el("code", name), f" {reason} ", el("small", where)) for where, name, reason in rows
  ]
  if total > len(rows):
    items.append(el("li", f"and {total - len(rows):,} more"))
  return [blocks.folded(title, el("ul", items), open=total < 12)]


def _gallery(defect: str, facts: Sequence[Any], pixels: np.ndarray, total: int) -> list[Html]:
  """Images with a defect."""
  title, note = DEFECTS[defect]
  figures = [
    _figure(image, name, 132, f"{where} {r:.2f}".strip().replace("-", "\N{MINUS SIGN}"))
    for (where, name, r), image in zip(facts, pixels, strict=False)
  ]
  hint = f" The clearest {len(figures)} of {format.count(total)}." if total > len(figures) else ""
  return [
    el("h3", f"{title}: {format.count(total)}"),
    blocks.note(note + hint),
    el("div", figures, cls="gallery"),
  ]


def labels(audit: Mapping[str, Any]) -> Html | None:
  """Number of images with each class, by split."""
  content = []
  for source, group in _by_source([p for p in audit["parts"] if p["labels"]]):
    rows = []
    for c, label in enumerate(group[0]["labels"][:CLASSES]):
      cells = [label["name"]]
      for split in group:
        counts = split["labels"][c]
        share = _share(counts["present"], counts["present"] + counts["absent"])
        unknown = f", {format.count(counts['unknown'])} unknown" if counts["unknown"] else ""
        cells.append([_count(counts["present"]), el("small", share + unknown)])
      rows.append(cells)
    omitted = len(group[0]["labels"]) - CLASSES
    content.append(
      blocks.titled(
        naming.source_name(source),
        table(["Class", *(split["split"] for split in group)], rows),
        blocks.note(f"and {omitted} more classes") if omitted > 0 else None,
      )
    )
  if not content:
    return None
  note = (
    "Images in which the class is present; in brackets, their share of those where it is known."
  )
  return el("div", blocks.note(note), content)


def attributes(audit: Mapping[str, Any]) -> Html | None:
  """Sites, views, sexes and ages, by split, where the sources know them."""
  splits = [p for p in audit["parts"] if p["attributes"]]
  if not splits:
    return None
  content = []
  for kind, title in (("site", "Site"), ("view", "View"), ("sex", "Sex")):
    if known := [p for p in splits if kind in p["attributes"]]:
      content.append(_value_table(title, known, [p["attributes"][kind] for p in known]))
  rows = []
  for split in splits:
    if age := split["attributes"].get("age"):
      low, high = age["quartiles"]
      rows.append(
        [
          split["name"],
          f"{age['median']:.3g}",
          f"{low:.3g}{DASH}{high:.3g}",
          f"{age['least']:.3g}{DASH}{age['most']:.3g}",
          _count(age["unknown"]),
        ]
      )
  if rows:
    content.append(table(["Age in years", "Median", "Interquartile range", "All", "Unknown"], rows))
  return el("div", content)


def _value_table(title: str, splits: Sequence[Any], values: Sequence[Mapping[str, Any]]) -> Html:
  """Numbers of images with each value of an attribute, by split."""
  names = list(dict.fromkeys(name for of_split in values for name in of_split["counts"]))
  rows: list[list[Any]] = []
  for name in names[:VALUES]:
    counts = [of_split["counts"].get(name, 0) for of_split in values]
    cells = [
      [_count(n), el("small", _share(n, split["n"]) if n else "")]
      for n, split in zip(counts, splits, strict=True)
    ]
    rows.append([name, *cells])
  if len(names) > VALUES:
    rows.append([f"{len(names) - VALUES} more", *("" for _ in splits)])
  if any(of_split["unknown"] for of_split in values):
    rows.append(["unknown", *(_count(of_split["unknown"]) for of_split in values)])
  return table([title, *(split["name"] for split in splits)], rows)


def _target_name(floor: Mapping[str, Any]) -> str:
  if floor["kind"] == "label":
    return str(floor["name"])
  if floor["kind"] == "source":
    return f"from {naming.source_name(floor['name'])}"
  return f"{floor['kind']} {floor['name']}"


def floor(audit: Mapping[str, Any]) -> Html | None:
  """AUROC of ridge regression on 16 x 16 thumbnails, by target."""
  floors = audit.get("floor", [])
  if not floors:
    return None
  note = (
    "AUROC of ridge regression on 16 \N{MULTIPLICATION SIGN} 16 pixels, with 95 % intervals. "
    "Exposure, collimation and age alone get this far: the worth of a model is what it adds. If "
    "the site or the source can be predicted, a model may learn that instead of the disease."
  )
  content = [blocks.note(note)]
  for source, group in _by_source(floors):
    values = [number(f[k]) for k in ("value", "low") for f in group]
    start = 0.5 if min((v for v in values if math.isfinite(v)), default=0) >= 0.5 else 0.0
    columns = [
      blocks.column("Target", cls=None),
      blocks.column("AUROC", cls=None),
      blocks.column("Present", cls="quiet"),
      blocks.column(results.range_axis(start), cls="forest"),
    ]
    how = list(dict.fromkeys(f["how"] for f in group))
    content.append(
      blocks.titled(
        naming.source_name(source),
        blocks.note("; ".join(how).capitalize(), "."),
        blocks.table(columns, [_floor_row(f, start) for f in group]),
      )
    )
  return el("div", content)


def _floor_row(floor: Mapping[str, Any], start: float) -> Html:
  """One target's AUROC, in numbers and on a scale from `start` to 1."""
  e = estimate(floor)
  bounds = format.interval(e)
  plot = None
  if math.isfinite(e.value):
    plot = results.forest("auroc", {TRAINED: e}, start, [TRAINED])
  present = f"{format.count(floor['positive']) or 0} of {format.count(floor['n'])}"
  return blocks.row(
    _target_name(floor),
    blocks.number(
      el("span", format.decimal(e.value), " "),
      el("small", f"({bounds})" if bounds else floor["undefined"] or ""),
    ),
    el("td", present, cls="num quiet"),
    el("td", plot, cls="forest"),
  )

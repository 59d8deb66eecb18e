"""The sections of an audit's page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cxrjax.report import naming
from cxrjax.report.html import blocks, format, pictures
from cxrjax.report.html.element import Html, el
from cxrjax.report.html.format import Estimate
from cxrjax.report.run_files import TRAINED, Run, number
from cxrjax.report.sections import fact_tables, results

DASH = "\N{EN DASH}"
CLASSES = 60  # rows of a table of labels
SIZE = 176  # of a picture, pixels


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]], left: int = 1) -> Html:
  """A table whose first column names rows; the first `left` columns are text, the rest numbers."""

  def cell(kind: str, i: int, content: Any, **attributes: Any) -> Html:
    return el(kind, content, cls="num" if i >= left else None, **attributes)

  header = el("thead", el("tr", [cell("th", i, h, scope="col") for i, h in enumerate(head)]))
  body = [
    el(
      "tr", [cell("td" if i else "th", i, c, scope=None if i else "row") for i, c in enumerate(row)]
    )
    for row in rows
  ]
  return el("div", el("table", header, el("tbody", body), cls="parts"), cls="scroll")


def _count(n: Any) -> str:
  return format.count(n) if n else DASH


def parts(audit: Mapping[str, Any]) -> Html | None:
  """Table of all splits: images, patients and defects; and a card for each source."""
  splits = audit.get("parts", [])
  columns = {
    "n": "Images",
    "patients": "Patients",
    "unreadable": "Unreadable",
    "flat": "Blank",
    "inverted": "Inverted",
    "unlike": "Unlike",
  }
  inside = {c["a"]: c for c in audit["pairs"]["counts"] if c["a"] == c["b"]}

  def cell(part: Mapping[str, Any], column: str) -> str:
    one_each = part["n"] > 1 and part.get("tells_patients") is False and not part["unknown"]
    return "one an image" if column == "patients" and one_each else _count(part.get(column))

  rows = [
    [
      p["name"],
      *(cell(p, column) for column in columns),
      _count(inside.get(p["name"], {}).get("copies")),
    ]
    for p in splits
  ]
  summary = [table(["Split", *columns.values(), "Copies inside"], rows)]
  cards = []
  for source in dict.fromkeys(p["source"] for p in splits):
    group = [p for p in splits if p["source"] == source]
    notes = list(dict.fromkeys(note for p in group for note in p.get("notes", [])))
    prints = {p["split"]: p["fingerprint"] for p in group}
    facts: list[tuple[str, Any]] = [
      ("Source", el("span", naming.source_name(source), title=source)),
      ("Fingerprint", fact_tables.value("fingerprint", prints)),
    ]
    if notes:
      facts.append(("Notes", fact_tables.value("notes", notes)))
    cards.append(el("div", fact_tables.pairs(facts), cls="card"))
  return el("div", summary, el("div", cards, cls="cards"))


def duplicates(audit: Mapping[str, Any], run: Run, shown: Mapping[str, np.ndarray]) -> Html | None:
  """Counts of near-duplicate pairs by split, and the pairs side by side."""
  pairs = audit["pairs"]
  settings = run.fact("settings") or {}
  copy, same = (f"{number(settings.get(k)):g}" for k in ("copy", "same"))
  note = (
    f"Radiographs whose fine detail, one laid over the other, correlates at {copy} or more "
    f"count as the same; from {same} on they probably show one patient twice. Re-encoding, "
    "brightness, contrast, crops of a few percent, turns of a few degrees and added labels "
    "do not hide a copy; mirrored ones and larger crops can be missed."
  )
  if number(pairs.get("first")) > number(settings.get("first")) + 0.005:
    note += (
      f" There were too many likely pairs for a second look at each: those below a first "
      f"correlation of {pairs['first']:.2f} were not looked at."
    )
  names = [p["name"] for p in audit["parts"]]
  counts = {(c["a"], c["b"]): c for c in pairs["counts"]}
  content = [blocks.note(note)]
  if pairs["copies"] or pairs["same"]:
    listed = [c for c in counts.values() if c["copies"] or c["same"]]
    listed.sort(key=lambda c: (c["a"] == c["b"], names.index(c["a"]), names.index(c["b"])))
    rows = [
      [
        f"within {c['a']}" if c["a"] == c["b"] else f"{c['a']} and {c['b']}",
        _count(c["copies"]),
        _count(c["same"]),
      ]
      for c in listed
    ]
    content.append(table(["Where", "Same radiograph", "Same patient, probably"], rows))
    if n := pairs.get("other_patient"):
      content.append(
        blocks.note(
          f"{format.count(n, 'pair is', 'pairs are')} of patients whom the data call different."
        )
      )
  images = shown.get("pairs")
  listed = pairs.get("shown", [])
  if images is None or not listed:
    return el("div", content, el("p", "No pair was found.", cls="quiet") if not listed else None)
  total = pairs["copies"] + pairs["same"]
  if total > len(listed):
    content.append(
      blocks.note(
        f"{format.count(len(listed))} of {format.count(total, 'pair')}; all are in ",
        el("code", "pairs.csv"),
        ".",
      )
    )
  for title, is_across in (("Between splits or sources", True), ("Within a split", False)):
    group = [
      (pair, i) for i, pair in enumerate(listed) if pair["across"] is is_across and i < len(images)
    ]
    if group:
      content += [
        el("h3", title),
        el("div", [_pair(pair, images[i]) for pair, i in group], cls="twins"),
      ]
  return el("div", content)


def _pair(pair: Mapping[str, Any], images: np.ndarray) -> Html:
  sides = [
    el(
      "figure",
      pictures.picture(pictures.gray(image), side["id"], SIZE),
      el(
        "figcaption",
        el("span", _short_name(side["id"]), title=side["id"]),
        el("small", " \N{MIDDLE DOT} ".join(x for x in (side["part"], side["labels"]) if x)),
      ),
    )
    for side, image in zip((pair["a"], pair["b"]), images, strict=True)
  ]
  kind = "same radiograph" if pair["copy"] else "same patient?"
  caption = [el("b", kind), f" {pair['r']:.3f}"]
  tags = [
    el("span", "other label", cls="tag bad") if pair["differ"] else None,
    el("span", "other patient, say the data", cls="tag warn")
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
    names = [el("li", el("code", name), " ", el("small", part)) for part, name in patient["images"]]
    omitted = patient["n"] - len(patient["images"])
    items.append(
      blocks.folded(
        f"{patient['patient']}: {format.count(patient['n'], 'image')}",
        el("ul", names, el("li", f"and {omitted} more") if omitted > 0 else None),
      )
    )
  content.append(el("div", items))
  if facts["crossing"] > len(facts["listed"]):
    content.append(
      blocks.note(
        f"The first {len(facts['listed'])} of {format.count(facts['crossing'])}; all are in ",
        el("code", "patients.csv"),
        ".",
      )
    )
  return el("div", content)


def images(audit: Mapping[str, Any], shown: Mapping[str, np.ndarray]) -> Html:
  """Lists unreadable images; shows inverted, blank and atypical ones."""
  facts = audit["images"]
  texts = {
    "inverted": (
      "Inverted",
      "They agree with the negative of what all images have in common. "
      "Lung masks among the images look like this, too.",
    ),
    "flat": ("Blank", "Their parts differ by less than 4 of 255 gray levels."),
    "unlike": (
      "Unlike the others",
      "Neither they nor their negatives agree with what all images "
      "have in common: cut off, framed, turned, lateral, or no chest.",
    ),
  }
  content: list[Html] = []
  for title, key, is_unreadable in (("unreadable", "bad", True), ("left out", "left_out", False)):
    rows = facts.get(key, [])
    total = (
      sum(p["unreadable"] for p in audit["parts"]) if is_unreadable else audit.get("left_out", 0)
    )
    if rows:
      items = [
        el("li", el("code", name), f" {reason} ", el("small", where))
        for where, name, reason in rows
      ]
      if total > len(rows):
        items.append(el("li", f"and {total - len(rows):,} more"))
      title = (
        format.count(total, "image is unreadable", "images are unreadable")
        if is_unreadable
        else format.count(total, "image was", "images were") + " left out by the source"
      )
      content.append(blocks.folded(title, el("ul", items), open=total < 12))
  for kind, (title, note) in texts.items():
    total = sum(p[kind] for p in audit["parts"])
    pixels = shown.get(kind)
    if not total or pixels is None:
      continue
    figures = [
      el(
        "figure",
        pictures.picture(pictures.gray(image), name, 132),
        el(
          "figcaption",
          el("span", _short_name(name), title=name),
          el("small", f"{where} {r:.2f}".strip().replace("-", "\N{MINUS SIGN}")),
        ),
      )
      for (where, name, r), image in zip(facts[kind], pixels, strict=False)
    ]
    hint = f" The clearest {len(figures)} of {format.count(total)}." if total > len(figures) else ""
    content += [
      el("h3", f"{title}: {format.count(total)}"),
      blocks.note(note + hint),
      el("div", figures, cls="gallery"),
    ]
  if not content:
    return el("p", "All images can be read; none is blank or inverted.", cls="quiet")
  return el(
    "div",
    content,
    blocks.note("Every image with what was found of it is in ", el("code", "images.csv"), "."),
  )


def labels(audit: Mapping[str, Any]) -> Html | None:
  """Number of images with each class, by split."""
  content = []
  for source in dict.fromkeys(p["source"] for p in audit["parts"]):
    splits = [p for p in audit["parts"] if p["source"] == source and p["labels"]]
    if not splits:
      continue
    rows = []
    for c, label in enumerate(splits[0]["labels"][:CLASSES]):
      cells = [label["name"]]
      for p in splits:
        counts = p["labels"][c]
        known = counts["present"] + counts["absent"]
        share = f" ({100 * counts['present'] / known:.3g} %)" if known else ""
        unknown = f", {format.count(counts['unknown'])} unknown" if counts["unknown"] else ""
        cells.append([_count(counts["present"]), el("small", share + unknown)])
      rows.append(cells)
    omitted = len(splits[0]["labels"]) - CLASSES
    content.append(
      blocks.titled(
        naming.source_name(source),
        table(["Class", *(p["split"] for p in splits)], rows),
        blocks.note(f"and {omitted} more classes") if omitted > 0 else None,
      )
    )
  if not content:
    return None
  return el(
    "div",
    blocks.note("Images in which the class is present; in brackets of those where it is known."),
    content,
  )


def attributes(audit: Mapping[str, Any]) -> Html | None:
  """Sites, views, sexes and ages, by split, where the sources know them."""
  splits = [p for p in audit["parts"] if p["attributes"]]
  if not splits:
    return None
  content = []
  for kind, title in (("site", "Site"), ("view", "View"), ("sex", "Sex")):
    known = [p for p in splits if kind in p["attributes"]]
    if not known:
      continue
    names = list(dict.fromkeys(v for p in known for v in p["attributes"][kind]["counts"]))
    rows = []
    for name in names[:20]:
      cells: list[Any] = [name]
      for p in known:
        n = p["attributes"][kind]["counts"].get(name, 0)
        share = f" ({100 * n / p['n']:.3g} %)" if n else ""
        cells.append([_count(n), el("small", share)])
      rows.append(cells)
    if len(names) > 20:
      rows.append([f"{len(names) - 20} more", *("" for _ in known)])
    if any(p["attributes"][kind]["unknown"] for p in known):
      rows.append(["unknown", *(_count(p["attributes"][kind]["unknown"]) for p in known)])
    content.append(table([title, *(p["name"] for p in known)], rows))
  if with_ages := [p for p in splits if "age" in p["attributes"]]:
    rows = []
    for p in with_ages:
      age = p["attributes"]["age"]
      low, high = age["quartiles"]
      rows.append(
        [
          p["name"],
          f"{age['median']:.3g}",
          f"{low:.3g}{DASH}{high:.3g}",
          f"{age['least']:.3g}{DASH}{age['most']:.3g}",
          _count(age["unknown"]),
        ]
      )
    content.append(table(["Age in years", "Median", "Middle half", "All", "Unknown"], rows))
  return el("div", content)


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
    "Exposure, collimation and age alone get this far: a model is worth what it adds. Where "
    "a site or a source can be told, a model may learn to tell it instead of the disease."
  )
  content = [blocks.note(note)]
  for source in dict.fromkeys(f["source"] for f in floors):
    group = [f for f in floors if f["source"] == source]
    values = [number(f["value"]) for f in group] + [number(f["low"]) for f in group]
    start = 0.5 if min((v for v in values if math.isfinite(v)), default=0) >= 0.5 else 0.0
    rows = []
    for f in group:
      estimate = Estimate(number(f["value"]), number(f["low"]), number(f["high"]), f["n"])
      value = [
        el("span", format.decimal(estimate.value), " "),
        el("small", f"({format.interval(estimate)})")
        if format.interval(estimate)
        else el("small", f["undefined"] or ""),
      ]
      plot = (
        results.forest("auroc", {TRAINED: estimate}, start, [TRAINED])
        if math.isfinite(estimate.value)
        else None
      )
      rows.append(
        blocks.row(
          _target_name(f),
          blocks.number(value),
          el(
            "td", f"{format.count(f['positive']) or 0} of {format.count(f['n'])}", cls="num quiet"
          ),
          el("td", plot, cls="forest"),
        )
      )
    head = el(
      "tr",
      blocks.column("What is told", cls=None),
      blocks.column("AUROC", cls=None),
      blocks.column("Present", cls="quiet"),
      blocks.column(results.range_axis(start), cls="forest"),
    )
    how = list(dict.fromkeys(f["how"] for f in group))
    content.append(
      blocks.titled(
        naming.source_name(source),
        blocks.note("; ".join(how).capitalize(), "."),
        el("div", el("table", el("thead", head), el("tbody", rows), cls="results"), cls="scroll"),
      )
    )
  return el("div", content)

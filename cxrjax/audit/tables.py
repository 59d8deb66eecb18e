"""The sections of an audit's page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cxrjax.report import naming
from cxrjax.report.html import format, pictures
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

  made = el("thead", el("tr", [cell("th", i, h, scope="col") for i, h in enumerate(head)]))
  body = [
    el(
      "tr", [cell("td" if i else "th", i, c, scope=None if i else "row") for i, c in enumerate(row)]
    )
    for row in rows
  ]
  return el("div", el("table", made, el("tbody", body), cls="parts"), cls="scroll")


def _count(n: Any) -> str:
  return format.count(n) if n else DASH


def parts(audit: Mapping[str, Any]) -> Html | None:
  """Every split: images, patients, what is wrong with them."""
  found = audit.get("parts", [])
  columns = {
    "n": "Images",
    "patients": "Patients",
    "unreadable": "Unreadable",
    "flat": "Blank",
    "inverted": "Inverted",
    "unlike": "Unlike",
  }
  inside = {c["a"]: c for c in audit["pairs"]["counts"] if c["a"] == c["b"]}
  rows = [
    [
      p["name"],
      *(
        "one an image"
        if k == "patients" and p["n"] > 1 and p.get("tells_patients") is False and not p["unknown"]
        else _count(p.get(k))
        for k in columns
      ),
      _count(inside.get(p["name"], {}).get("copies")),
    ]
    for p in found
  ]
  made = [table(["Split", *columns.values(), "Copies inside"], rows)]
  cards = []
  for source in dict.fromkeys(p["source"] for p in found):
    mine = [p for p in found if p["source"] == source]
    notes = list(dict.fromkeys(n for p in mine for n in p.get("notes", [])))
    prints = {p["split"]: p["fingerprint"] for p in mine}
    about: list[tuple[str, Any]] = [
      ("Source", el("span", naming.source_name(source), title=source)),
      ("Fingerprint", fact_tables.value("fingerprint", prints)),
    ]
    if notes:
      about.append(("Notes", fact_tables.value("notes", notes)))
    cards.append(el("div", fact_tables.pairs(about), cls="card"))
  return el("div", made, el("div", cards, cls="cards"))


def duplicates(audit: Mapping[str, Any], run: Run, shown: Mapping[str, np.ndarray]) -> Html | None:
  """How many pairs, between which splits, and the pairs side by side."""
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
  made = [el("p", note, cls="note")]
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
    made.append(table(["Where", "Same radiograph", "Same patient, probably"], rows))
    if n := pairs.get("other_patient"):
      made.append(
        el(
          "p",
          f"{format.count(n, 'pair is', 'pairs are')} of patients whom the data call different.",
          cls="note",
        )
      )
  images = shown.get("pairs")
  listed = pairs.get("shown", [])
  if images is None or not listed:
    return el("div", made, el("p", "No pair was found.", cls="quiet") if not listed else None)
  total = pairs["copies"] + pairs["same"]
  if total > len(listed):
    made.append(
      el(
        "p",
        f"{format.count(len(listed))} of {format.count(total, 'pair')}; all are in ",
        el("code", "pairs.csv"),
        ".",
        cls="note",
      )
    )
  for title, keep in (("Between splits or sources", True), ("Within a split", False)):
    group = [(p, i) for i, p in enumerate(listed) if p["across"] is keep and i < len(images)]
    if group:
      made += [el("h3", title), el("div", [_pair(p, images[i]) for p, i in group], cls="twins")]
  return el("div", made)


def _pair(pair: Mapping[str, Any], images: np.ndarray) -> Html:
  sides = [
    el(
      "figure",
      pictures.picture(pictures.gray(image), side["id"], SIZE),
      el(
        "figcaption",
        el("span", _end(side["id"]), title=side["id"]),
        el("small", " \N{MIDDLE DOT} ".join(x for x in (side["part"], side["labels"]) if x)),
      ),
    )
    for side, image in zip((pair["a"], pair["b"]), images, strict=True)
  ]
  kind = "same radiograph" if pair["copy"] else "same patient?"
  said = [el("b", kind), f" {pair['r']:.3f}"]
  tags = [
    el("span", "other label", cls="tag bad") if pair["differ"] else None,
    el("span", "other patient, say the data", cls="tag warn")
    if pair["same_patient"] is False
    else None,
  ]
  return el("div", el("p", said, tags), el("div", sides, cls="pair"), cls="card twin")


def _end(name: str) -> str:
  last = name.rstrip("/").rpartition("/")[2]
  return last if len(last) <= 40 else f"\N{HORIZONTAL ELLIPSIS}{last[-38:]}"


def patients(audit: Mapping[str, Any]) -> Html | None:
  """Patients who are in several splits."""
  found = audit["patients"]
  said = f"{found['said'][0].upper()}{found['said'][1:]}."
  if not found["crossing"]:
    return el("p", said, cls="quiet")
  made = [el("p", said, cls="note")]
  rows = [[" and ".join(b["parts"]), format.count(b["patients"])] for b in found["between"]]
  made.append(table(["Splits", "Patients"], rows))
  items = []
  for p in found["listed"]:
    names = [el("li", el("code", name), " ", el("small", part)) for part, name in p["images"]]
    more = p["n"] - len(p["images"])
    items.append(
      el(
        "details",
        el("summary", f"{p['patient']}: {format.count(p['n'], 'image')}"),
        el("ul", names, el("li", f"and {more} more") if more > 0 else None),
      )
    )
  made.append(el("div", items))
  if found["crossing"] > len(found["listed"]):
    made.append(
      el(
        "p",
        f"The first {len(found['listed'])} of {format.count(found['crossing'])}; all are in ",
        el("code", "patients.csv"),
        ".",
        cls="note",
      )
    )
  return el("div", made)


def images(audit: Mapping[str, Any], shown: Mapping[str, np.ndarray]) -> Html:
  """Unreadable images, and pictures of those that are inverted, blank or unlike the others."""
  found = audit["images"]
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
  made: list[Html] = []
  for title, key, last in (("unreadable", "bad", "unreadable"), ("left out", "left_out", "")):
    rows = found.get(key, [])
    total = sum(p["unreadable"] for p in audit["parts"]) if last else audit.get("left_out", 0)
    if rows:
      items = [
        el("li", el("code", name), f" {reason} ", el("small", where))
        for where, name, reason in rows
      ]
      if total > len(rows):
        items.append(el("li", f"and {total - len(rows):,} more"))
      title = (
        format.count(total, "image is unreadable", "images are unreadable")
        if last
        else format.count(total, "image was", "images were") + " left out by the source"
      )
      made.append(el("details", el("summary", title), el("ul", items), open=total < 12))
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
          el("span", _end(name), title=name),
          el("small", f"{where} {r:.2f}".strip().replace("-", "\N{MINUS SIGN}")),
        ),
      )
      for (where, name, r), image in zip(found[kind], pixels, strict=False)
    ]
    more = f" The clearest {len(figures)} of {format.count(total)}." if total > len(figures) else ""
    made += [
      el("h3", f"{title}: {format.count(total)}"),
      el("p", note + more, cls="note"),
      el("div", figures, cls="gallery"),
    ]
  if not made:
    return el("p", "All images can be read; none is blank or inverted.", cls="quiet")
  return el(
    "div",
    made,
    el(
      "p", "Every image with what was found of it is in ", el("code", "images.csv"), ".", cls="note"
    ),
  )


def labels(audit: Mapping[str, Any]) -> Html | None:
  """How often every class is present, by split."""
  made = []
  for source in dict.fromkeys(p["source"] for p in audit["parts"]):
    mine = [p for p in audit["parts"] if p["source"] == source and p["labels"]]
    if not mine:
      continue
    rows = []
    for c, first in enumerate(mine[0]["labels"][:CLASSES]):
      cells = [first["name"]]
      for p in mine:
        x = p["labels"][c]
        known = x["present"] + x["absent"]
        share = f" ({100 * x['present'] / known:.3g} %)" if known else ""
        unknown = f", {format.count(x['unknown'])} unknown" if x["unknown"] else ""
        cells.append([_count(x["present"]), el("small", share + unknown)])
      rows.append(cells)
    more = len(mine[0]["labels"]) - CLASSES
    made.append(
      el(
        "div",
        el("h3", naming.source_name(source)),
        table(["Class", *(p["split"] for p in mine)], rows),
        el("p", f"and {more} more classes", cls="note") if more > 0 else None,
      )
    )
  if not made:
    return None
  return el(
    "div",
    el(
      "p",
      "Images in which the class is present; in brackets of those where it is known.",
      cls="note",
    ),
    made,
  )


def attributes(audit: Mapping[str, Any]) -> Html | None:
  """Sites, views, sexes and ages, by split, where the sources know them."""
  have = [p for p in audit["parts"] if p["attributes"]]
  if not have:
    return None
  made = []
  for kind, title in (("site", "Site"), ("view", "View"), ("sex", "Sex")):
    mine = [p for p in have if kind in p["attributes"]]
    if not mine:
      continue
    names = list(dict.fromkeys(v for p in mine for v in p["attributes"][kind]["counts"]))
    rows = []
    for name in names[:20]:
      cells: list[Any] = [name]
      for p in mine:
        n = p["attributes"][kind]["counts"].get(name, 0)
        share = f" ({100 * n / p['n']:.3g} %)" if n else ""
        cells.append([_count(n), el("small", share)])
      rows.append(cells)
    if len(names) > 20:
      rows.append([f"{len(names) - 20} more", *("" for _ in mine)])
    if any(p["attributes"][kind]["unknown"] for p in mine):
      rows.append(["unknown", *(_count(p["attributes"][kind]["unknown"]) for p in mine)])
    made.append(table([title, *(p["name"] for p in mine)], rows))
  if aged := [p for p in have if "age" in p["attributes"]]:
    rows = []
    for p in aged:
      a = p["attributes"]["age"]
      low, high = a["quartiles"]
      rows.append(
        [
          p["name"],
          f"{a['median']:.3g}",
          f"{low:.3g}{DASH}{high:.3g}",
          f"{a['least']:.3g}{DASH}{a['most']:.3g}",
          _count(a["unknown"]),
        ]
      )
    made.append(table(["Age in years", "Median", "Middle half", "All", "Unknown"], rows))
  return el("div", made)


def floor(audit: Mapping[str, Any]) -> Html | None:
  """What ridge regression on 16 x 16 thumbnails tells."""
  found = audit.get("floor", [])
  if not found:
    return None
  note = (
    "AUROC of ridge regression on 16 \N{MULTIPLICATION SIGN} 16 pixels, with 95 % intervals. "
    "Exposure, collimation and age alone get this far: a model is worth what it adds. Where "
    "a site or a source can be told, a model may learn to tell it instead of the disease."
  )
  made = [el("p", note, cls="note")]
  for source in dict.fromkeys(f["source"] for f in found):
    mine = [f for f in found if f["source"] == source]
    values = [number(f["value"]) for f in mine] + [number(f["low"]) for f in mine]
    start = 0.5 if min((v for v in values if math.isfinite(v)), default=0) >= 0.5 else 0.0
    rows = []
    for f in mine:
      e = Estimate(number(f["value"]), number(f["low"]), number(f["high"]), f["n"])
      name = (
        f["name"]
        if f["kind"] == "label"
        else (
          f"from {naming.source_name(f['name'])}"
          if f["kind"] == "source"
          else f"{f['kind']} {f['name']}"
        )
      )
      value = [
        el("span", format.decimal(e.value), " "),
        el("small", f"({format.interval(e)})")
        if format.interval(e)
        else el("small", f["undefined"] or ""),
      ]
      drawn = (
        results.forest("auroc", {TRAINED: e}, start, [TRAINED]) if math.isfinite(e.value) else None
      )
      rows.append(
        el(
          "tr",
          el("th", name, scope="row"),
          el("td", value, cls="num"),
          el(
            "td", f"{format.count(f['positive']) or 0} of {format.count(f['n'])}", cls="num quiet"
          ),
          el("td", drawn, cls="forest"),
        )
      )
    head = el(
      "tr",
      el("th", "What is told", scope="col"),
      el("th", "AUROC", scope="col"),
      el("th", "Present", scope="col", cls="quiet"),
      el("th", results.range_axis(start), scope="col", cls="forest"),
    )
    how = list(dict.fromkeys(f["how"] for f in mine))
    made.append(
      el(
        "div",
        el("h3", naming.source_name(source)),
        el("p", "; ".join(how).capitalize(), ".", cls="note"),
        el("div", el("table", el("thead", head), el("tbody", rows), cls="results"), cls="scroll"),
      )
    )
  return el("div", made)

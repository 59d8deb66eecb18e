"""What the features hold: nearest training images, a map of the test images, colours of patches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cxrjax.report import naming
from cxrjax.report.html import format, pictures
from cxrjax.report.html.element import Html, el
from cxrjax.report.html.format import Estimate
from cxrjax.report.run_files import Run, lookup, number

NAMES = {"label": "Label", "age": "Age", "sex": "Sex", "view": "View", "site": "Site"}
COLOURS = 7  # groups of their own; the rest are drawn alike
SIDE, EDGE = 360, 8  # of a map, and its margin
FAR = 0.5  # percent of the points on either side that are drawn at the edge
FEW = 300  # points are drawn larger
LAYERS = 8  # of points, so that no group lies on top of all others


def section(run: Run) -> Html | None:
  """From `figures/features.npz` and the fact `features`."""
  arrays = run.arrays("features")
  if not {"image", "near_image", "similarity"} <= set(arrays):
    return None
  found = run.fact("features")
  found = found if isinstance(found, Mapping) else {}
  parts = [
    _opening(run, found),
    _retrieval(arrays, found),
    _shared(found),
    _maps(arrays, found),
    _patches(arrays, found),
  ]
  return el("div", [part for part in parts if part])


def _opening(run: Run, found: Mapping[str, Any]) -> Html:
  """What features are, and whose images these are."""
  name = lookup(run.fact("data", str(found.get("evaluator"))), "name") or lookup(
    run.fact("data", str(found.get("evaluator"))), "test", "name"
  )
  text: list[Any] = [
    "The network turns a radiograph into a list of numbers, its features. "
    "Radiographs with similar features look alike to the network."
  ]
  if name:
    text += [" Images of ", el("span", naming.source_name(name), cls="name", title=str(name)), ":"]
  if found.get("test") and found.get("train"):
    text += [" ", _of(found, "test"), " and ", _of(found, "train"), "."]
  return el("p", text, cls="note")


def _of(found: Mapping[str, Any], part: str) -> str:
  """`2,000 of 5,323 test images`."""
  n, whole = format.count(found.get(part)), format.count(found.get(f"of_{part}"))
  kind = {"test": "test", "train": "labelled training"}[part]
  return f"{n} of {whole} {kind} images" if whole != n else f"{n} {kind} images"


def _names(arrays: Mapping[str, np.ndarray], by: str) -> list[str]:
  return [str(n) for n in arrays[f"names_{by}"]]


def _group(names: Sequence[str], index: Any) -> str:
  return names[int(index)] if 0 <= int(index) < len(names) else ""


def _retrieval(arrays: Mapping[str, np.ndarray], found: Mapping[str, Any]) -> Html | None:
  """Each query and the training images most similar to it."""
  similarity, query = arrays["similarity"], arrays.get("query", np.empty(0))
  told = [by for by in ("label", "site") if f"near_{by}" in arrays]
  digits = _digits(similarity)
  rows = []
  for i in range(min(len(similarity), len(arrays["image"]), len(query))):
    own = {by: _group(_names(arrays, by), arrays[f"group_{by}"][query[i]]) for by in told}
    said = ", ".join(filter(None, own.values())) or "label unknown"
    cells = [
      _figure(arrays["image"][i], f"test image {i + 1}: {said}", [el("b", said)], cls="query")
    ]
    for j, cosine in enumerate(similarity[i]):
      if not math.isfinite(cosine):
        continue
      lines: list[Any] = [f"{cosine:.{digits}f}"]
      for by in told:
        text = _group(_names(arrays, by), arrays[f"near_{by}"][i, j])
        other = bool(text and own[by] and text != own[by])
        lines.append(
          el("span", f"\N{NOT EQUAL TO} {text}" if other else text, cls="other" if other else None)
        )
      cells.append(
        _figure(arrays["near_image"][i, j], f"training image, similarity {lines[0]}", lines)
      )
    rows.append(el("div", cells, cls="sheet"))
  if not rows:
    return None
  n = format.count(found.get("neighbours"))
  note = (
    f"First in each row a test radiograph, then the {n} labelled training radiographs most "
    "similar to it. The number is the cosine similarity of the features, 1 for equal ones. "
    f"\N{NOT EQUAL TO}: {' or '.join(NAMES[by].lower() for by in told) or 'label'} differs "
    "from the test image's. Radiographs known to be of the same patient are left out."
  )
  return el(
    "div",
    el("h3", "Nearest training images"),
    el("p", note, cls="note"),
    el("div", rows, cls="sheets"),
    cls="part",
  )


def _digits(similarity: np.ndarray) -> int:
  """So many decimals that similarities near 1 can be told apart, 2 to 5."""
  away = 1 - similarity[np.isfinite(similarity)]
  away = away[away > 1e-5]
  return int(np.clip(1 - math.floor(math.log10(away.min())), 2, 5)) if away.size else 2


def _figure(image: np.ndarray, alt: str, lines: Sequence[Any], cls: str | None = None) -> Html:
  return el(
    "figure",
    pictures.picture(pictures.gray(image), alt, 160),
    el("figcaption", [el("span", line) for line in lines if line]),
    cls=cls,
  )


def held(found: Mapping[str, Any]) -> list[str]:
  """What neighbours share more often than by chance beside the label, of the fact `features`."""
  return [
    str(row["by"])
    for row in found.get("shared") or ()
    if row.get("by") != "label" and number(row.get("low")) > number(row.get("chance"))
  ]


def _shared(found: Mapping[str, Any]) -> Html | None:
  """How often neighbours have the image's own label, site, age."""
  rows = []
  for row in found.get("shared") or ():
    value, low, high = (number(lookup(row, k)) for k in ("value", "low", "high"))
    e = Estimate(value, low, high)
    if not math.isfinite(e.value):
      continue
    rows.append(
      el(
        "tr",
        el("th", NAMES.get(str(row.get("by")), str(row.get("by"))), scope="row"),
        el(
          "td",
          el("b", format.decimal(e.value)),
          " ",
          el("small", f"({format.interval(e)})") if format.interval(e) else None,
          cls="num",
        ),
        el("td", format.decimal(number(row.get("chance"))), cls="num"),
      )
    )
  if not rows:
    return None
  beside = held(found)
  said = (
    el(
      "p",
      "The features also hold the ",
      el("b", format.listing(beside)),
      ": neighbours share it more often than by chance.",
    )
    if beside
    else None
  )
  head = el(
    "tr",
    el("th", "Same", scope="col"),
    el("th", "Share of neighbours", scope="col", cls="num"),
    el("th", "At random", scope="col", cls="num"),
  )
  note = (
    f"Of the {format.count(found.get('neighbours'))} nearest training images of every test "
    "image, the share with its own label, or of its own group; 95 % interval over patients. "
    "At random: the same for training images drawn blindly. A share of the site, sex or age "
    "above it means that the features hold these as well, which a classifier may lean on."
  )
  return el(
    "div",
    el("h3", "What neighbours have in common"),
    said,
    el("div", el("table", el("thead", head), el("tbody", rows), cls="parts"), cls="scroll"),
    el("p", note, cls="note"),
    cls="part",
  )


def _maps(arrays: Mapping[str, np.ndarray], found: Mapping[str, Any]) -> Html | None:
  """The test images as points, once for each thing they may be coloured by."""
  xy = arrays.get("xy")
  if xy is None or xy.ndim != 2 or not np.isfinite(xy).all() or not len(xy):
    return None
  figures = [
    _map(xy, arrays[f"group_{by}"], _names(arrays, by), name)
    for by, name in NAMES.items()
    if len(np.unique(arrays.get(f"group_{by}", np.empty(0)))) > 1
  ]
  if not figures:
    return None
  how = str(lookup(found, "map", "method") or "PCA")
  if how == "PCA":
    share = [number(s) for s in lookup(found, "map", "explains") or ()]
    text = "Drawn by PCA, the two directions in which features differ most" + (
      f"; they hold {100 * sum(share):.0f} % of the differences" if share else ""
    )
  else:
    text = (
      f"Drawn by {how}, which keeps near images near; distances between far groups, and the "
      "sizes of groups, mean little"
    )
  note = (
    f"Each point is a test radiograph; near points have similar features. {text}. The axes "
    "have no unit; the farthest points are drawn at the edge. Groups that lie apart are told "
    "apart by the features."
  )
  return el(
    "div",
    el("h3", "All test images as a map"),
    el("p", note, cls="note"),
    el("div", figures, cls="charts" if figures[1:] else "charts one"),
    cls="part",
  )


def _map(xy: np.ndarray, group: np.ndarray, names: Sequence[str], title: str) -> Html:
  low, high = np.percentile(xy, [FAR, 100 - FAR], axis=0)  # else one stray point would shrink all
  scale = (SIDE - 2 * EDGE) / max(float((high - low).max()), 1e-12)
  at = EDGE + (np.clip(xy, low, high) - low) * scale
  height = 2 * EDGE + float((high - low)[1]) * scale
  at[:, 1] = height - at[:, 1]
  sizes = np.bincount(group[group >= 0], minlength=len(names))
  own = list(range(len(names)))
  if len(own) > COLOURS:
    own = sorted(np.argsort(-sizes, kind="stable")[: COLOURS - 1].tolist())
  style = {g: f"p{i + 1}" for i, g in enumerate(own)}
  drawn = np.array([style.get(int(g), "p0") for g in group])
  marks = []
  for layer in range(LAYERS):
    rows = np.arange(layer, len(at), LAYERS)
    for kind in dict.fromkeys(drawn[rows].tolist()):
      points = "".join(f"M{x:.0f} {y:.0f}h0" for x, y in at[rows[drawn[rows] == kind]])
      few = " few" if len(at) < FEW else ""
      marks.append(el("path", d=points, cls=f"points {kind}{few}"))
  keys = [el("span", el("i", cls=f"spot {style[g]}"), f"{names[g]} ({sizes[g]:,})") for g in own]
  rest = int(np.sum(drawn == "p0"))
  if rest:
    text = "others, unknown" if len(own) < len(names) else "unknown"
    keys.append(el("span", el("i", cls="spot p0"), f"{text} ({rest:,})"))
  svg = el(
    "svg",
    marks,
    viewbox=f"0 0 {SIDE} {math.ceil(height)}",
    role="img",
    aria_label=f"map of the test images by {title.lower()}",
  )
  return el(
    "figure", el("figcaption", el("b", title)), el("div", keys, cls="legend"), svg, cls="chart"
  )


def _patches(arrays: Mapping[str, np.ndarray], found: Mapping[str, Any]) -> Html | None:
  """The same test images with their patches in the colours of their features."""
  colours = arrays.get("patch_colours")
  if colours is None or colours.ndim != 4 or min(colours.shape[1:3]) < 2:
    return None
  names = _names(arrays, "label") if "names_label" in arrays else []
  figures = []
  for i in range(min(len(colours), len(arrays["image"]))):
    label = _group(names, arrays["group_label"][arrays["query"][i]]) if names else ""
    pair = [
      pictures.picture(pictures.gray(arrays["image"][i]), f"radiograph {i + 1}", 160),
      pictures.cells(colours[i], f"its patches in colours of their features, image {i + 1}"),
    ]
    figures.append(
      el("figure", el("div", pair, cls="pair"), el("figcaption", label or f"radiograph {i + 1}"))
    )
  share = [number(s) for s in found.get("patch_explains") or ()]
  note = (
    "The network also gives features for every patch of a radiograph. Red, green and blue "
    "are the three directions in which the patches of these images differ most"
    + (f" (together {100 * sum(share):.0f} % of the differences)" if share else "")
    + ". Patches of one colour are alike to the network, in one image and across images: "
    "where lungs, bones and background have colours of their own, it tells them apart."
  )
  return el(
    "div",
    el("h3", "Patches by their features"),
    el("p", note, cls="note"),
    el("div", figures, cls="tiles"),
    cls="part",
  )

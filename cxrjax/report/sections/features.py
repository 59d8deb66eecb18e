"""Features of a run: nearest training images, test images as a map, patches in colour."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cxrjax.report import naming
from cxrjax.report.html import blocks, format, pictures
from cxrjax.report.html.element import Html, el
from cxrjax.report.run_files import Run, estimate, lookup, number

NAMES = {"label": "Label", "age": "Age", "sex": "Sex", "view": "View", "site": "Site"}
MAX_COLORS = 7  # most colours of a map; the smallest groups share one
SIDE, EDGE = 360, 8  # size of a map and its margin, in pixels
CLIP_PERCENTILE = 0.5  # percentile, from either end, beyond which points are drawn at the edge
LARGE_POINTS_BELOW = 300  # fewer points than this are drawn larger
LAYERS = 8  # points are drawn in interleaved layers, so that no group covers all others


def section(run: Run) -> Html | None:
  """Section on the features, from `figures/features.npz` and the fact `features`."""
  arrays = run.arrays("features")
  if not {"image", "near_image", "similarity"} <= set(arrays):
    return None
  facts = run.mapping("features")
  return el(
    "div",
    _opening(run, facts),
    _retrieval(arrays, facts),
    _neighbor_agreement(facts),
    _scatter_plots(arrays, facts),
    _patches(arrays, facts),
  )


def _opening(run: Run, facts: Mapping[str, Any]) -> Html:
  """Explains features, and names and counts the images."""
  data = run.fact("data", str(facts.get("evaluator")))
  name = lookup(data, "name") or lookup(data, "test", "name")
  text: list[Any] = [
    "The network turns a radiograph into a vector of numbers, its features. "
    "Radiographs with similar features look alike to the network."
  ]
  if name:
    text += [" Images of ", el("span", naming.source_name(name), cls="name", title=str(name)), ":"]
  if facts.get("test") and facts.get("train"):
    text += [" ", _image_count(facts, "test"), " and ", _image_count(facts, "train"), "."]
  return blocks.note(text)


def _image_count(facts: Mapping[str, Any], part: str) -> str:
  """`2,000 of 5,323 test images`."""
  n, total = format.count(facts.get(part)), format.count(facts.get(f"of_{part}"))
  kind = {"test": "test", "train": "labelled training"}[part]
  return f"{n} of {total} {kind} images" if total != n else f"{n} {kind} images"


def _group_names(arrays: Mapping[str, np.ndarray], by: str) -> list[str]:
  return [str(n) for n in arrays[f"names_{by}"]]


def _group_name(names: Sequence[str], index: Any) -> str:
  return names[int(index)] if 0 <= int(index) < len(names) else ""


def _retrieval(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Html | None:
  """Each query and the training images most similar to it."""
  similarity, query = arrays["similarity"], arrays.get("query", np.empty(0))
  attributes = [by for by in ("label", "site") if f"near_{by}" in arrays]
  digits = _decimals(similarity)
  rows = []
  for i in range(min(len(similarity), len(arrays["image"]), len(query))):
    groups = {
      by: _group_name(_group_names(arrays, by), arrays[f"group_{by}"][query[i]])
      for by in attributes
    }
    description = ", ".join(filter(None, groups.values())) or "label unknown"
    cells = [
      _figure(
        arrays["image"][i],
        f"test image {i + 1}: {description}",
        [el("b", description)],
        cls="query",
      )
    ]
    for j, cosine in enumerate(similarity[i]):
      if not math.isfinite(cosine):
        continue
      caption: list[Any] = [f"{cosine:.{digits}f}"]
      for by in attributes:
        text = _group_name(_group_names(arrays, by), arrays[f"near_{by}"][i, j])
        differs = bool(text and groups[by] and text != groups[by])
        label = f"\N{NOT EQUAL TO} {text}" if differs else text
        caption.append(el("span", label, cls="other" if differs else None))
      cells.append(
        _figure(arrays["near_image"][i, j], f"training image, similarity {caption[0]}", caption)
      )
    rows.append(el("div", cells, cls="sheet"))
  if not rows:
    return None
  n = format.count(facts.get("neighbours"))
  note = (
    f"Each row starts with a test radiograph, followed by the {n} labelled training radiographs "
    "most similar to it. The number is the cosine similarity of the features, 1 if equal. "
    f"\N{NOT EQUAL TO}: {' or '.join(NAMES[by].lower() for by in attributes) or 'label'} differs "
    "from that of the test image. Radiographs of the same patient, if known, are left out."
  )
  return blocks.titled(
    "Nearest training images", blocks.note(note), el("div", rows, cls="sheets"), cls="part"
  )


def _decimals(similarity: np.ndarray) -> int:
  """Number of decimals, 2 to 5, that tells similarities near 1 apart."""
  distances = 1 - similarity[np.isfinite(similarity)]
  distances = distances[distances > 1e-5]
  return int(np.clip(1 - math.floor(math.log10(distances.min())), 2, 5)) if distances.size else 2


def _figure(image: np.ndarray, alt: str, lines: Sequence[Any], cls: str | None = None) -> Html:
  caption = [el("span", line) for line in lines if line]
  return blocks.figure(pictures.picture(pictures.gray(image), alt, 160), caption, cls=cls)


def held(facts: Mapping[str, Any]) -> list[str]:
  """Attributes beside the label that neighbours share above chance, from the fact `features`."""
  return [
    str(row["by"])
    for row in facts.get("shared") or ()
    if row.get("by") != "label" and number(row.get("low")) > number(row.get("chance"))
  ]


def _neighbor_agreement(facts: Mapping[str, Any]) -> Html | None:
  """Table of how often neighbours share the image's label, age, sex, view or site."""
  rows = []
  for row in facts.get("shared") or ():
    share = estimate(row)
    if not math.isfinite(share.value):
      continue
    rows.append(
      blocks.row(
        NAMES.get(str(row.get("by")), str(row.get("by"))),
        blocks.estimate(share),
        blocks.number(format.decimal(number(row.get("chance")))),
      )
    )
  if not rows:
    return None
  attributes = held(facts)
  summary = (
    el(
      "p",
      "The features also encode the ",
      el("b", format.join_words(attributes)),
      ": neighbours share it more often than by chance.",
    )
    if attributes
    else None
  )
  note = (
    f"Among the {format.count(facts.get('neighbours'))} nearest training images of each test "
    "image, the share with the same label or group; 95 % interval over patients. At random: the "
    "same for randomly drawn training images. A higher share for site, sex or age means that the "
    "features encode these as well, and that a classifier may rely on them."
  )
  return blocks.titled(
    "What neighbours have in common",
    summary,
    blocks.table(blocks.columns("Same", "Share of neighbours", "At random"), rows, "parts"),
    blocks.note(note),
    cls="part",
  )


def _scatter_plots(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Html | None:
  """The test images as a scatter plot, once per attribute that colours them."""
  xy = arrays.get("xy")
  if xy is None or xy.ndim != 2 or not np.isfinite(xy).all() or not len(xy):
    return None
  figures = [
    _scatter_plot(xy, arrays[f"group_{by}"], _group_names(arrays, by), name)
    for by, name in NAMES.items()
    if len(np.unique(arrays.get(f"group_{by}", np.empty(0)))) > 1
  ]
  if not figures:
    return None
  method = str(lookup(facts, "map", "method") or "PCA")
  if method == "PCA":
    share = [number(s) for s in lookup(facts, "map", "explains") or ()]
    text = "Drawn by PCA, along the two directions in which features vary most" + (
      f"; they explain {100 * sum(share):.0f} % of the variance" if share else ""
    )
  else:
    text = (
      f"Drawn by {method}, which preserves neighbourhoods; distances between groups, and their "
      "sizes, mean little"
    )
  note = (
    f"Each point is a test radiograph; nearby points have similar features. {text}. The axes "
    "have no unit; outliers are drawn at the edge. Groups that are separate here are separable "
    "by the features."
  )
  return blocks.titled(
    "All test images as a map",
    blocks.note(note),
    el("div", figures, cls="charts" if figures[1:] else "charts one"),
    cls="part",
  )


def _scatter_plot(xy: np.ndarray, group: np.ndarray, names: Sequence[str], title: str) -> Html:
  low, high = np.percentile(
    xy, [CLIP_PERCENTILE, 100 - CLIP_PERCENTILE], axis=0
  )  # robust to stray points
  scale = (SIDE - 2 * EDGE) / max(float((high - low).max()), 1e-12)
  points = EDGE + (np.clip(xy, low, high) - low) * scale
  height = 2 * EDGE + float((high - low)[1]) * scale
  points[:, 1] = height - points[:, 1]
  sizes = np.bincount(group[group >= 0], minlength=len(names))
  colored = list(range(len(names)))
  if len(colored) > MAX_COLORS:
    colored = sorted(np.argsort(-sizes, kind="stable")[: MAX_COLORS - 1].tolist())
  styles = {g: f"p{i + 1}" for i, g in enumerate(colored)}
  drawn = np.array([styles.get(int(g), "p0") for g in group])
  marks = []
  for layer in range(LAYERS):
    indices = np.arange(layer, len(points), LAYERS)
    for kind in dict.fromkeys(drawn[indices].tolist()):
      path = "".join(f"M{x:.0f} {y:.0f}h0" for x, y in points[indices[drawn[indices] == kind]])
      few = " few" if len(points) < LARGE_POINTS_BELOW else ""
      marks.append(el("path", d=path, cls=f"points {kind}{few}"))
  keys = [
    el("span", el("i", cls=f"spot {styles[g]}"), f"{names[g]} ({sizes[g]:,})") for g in colored
  ]
  uncolored = int(np.sum(drawn == "p0"))
  if uncolored:
    text = "others, unknown" if len(colored) < len(names) else "unknown"
    keys.append(el("span", el("i", cls="spot p0"), f"{text} ({uncolored:,})"))
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


def _patches(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Html | None:
  """The query images beside their patches, which are coloured by their features."""
  colors = arrays.get("patch_colours")
  if colors is None or colors.ndim != 4 or min(colors.shape[1:3]) < 2:
    return None
  names = _group_names(arrays, "label") if "names_label" in arrays else []
  figures = []
  for i in range(min(len(colors), len(arrays["image"]))):
    label = _group_name(names, arrays["group_label"][arrays["query"][i]]) if names else ""
    pair = [
      pictures.picture(pictures.gray(arrays["image"][i]), f"radiograph {i + 1}", 160),
      pictures.cells(colors[i], f"its patches coloured by their features, image {i + 1}"),
    ]
    figures.append(blocks.figure(el("div", pair, cls="pair"), label or f"radiograph {i + 1}"))
  share = [number(s) for s in facts.get("patch_explains") or ()]
  note = (
    "The network also gives features for every patch of a radiograph. Red, green and blue "
    "are the three directions in which the patches of these images vary most"
    + (f" (together {100 * sum(share):.0f} % of the variance)" if share else "")
    + ". Patches of the same colour are alike to the network, within and across images: where "
    "lungs, bones and background differ in colour, it distinguishes them."
  )
  return blocks.titled(
    "Patches by their features", blocks.note(note), el("div", figures, cls="tiles"), cls="part"
  )

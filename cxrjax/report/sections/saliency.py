"""Saliency: explanation maps over radiographs, and the share of them that lies on the lungs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from cxrjax.report.html import blocks, format, pictures
from cxrjax.report.html.element import Html, el
from cxrjax.report.run_files import Run, estimate, lookup, number

Facts = Mapping[str, Any]
NAMES = {
  "attention": "Attention, last block",
  "rollout": "Attention rollout",
  "gradcam": "Grad-CAM",
  "gradcam++": "Grad-CAM++",
  "occlusion": "Occlusion",
}
MEASURES = {  # names of the measures of `metrics.saliency`
  "energy_ratio": "Energy inside / lungs' share of the image",
  "energy": "Energy inside",
  "pointing": "Pointing game",
  "iou20": "IoU of the top 20 %",
}
ABOUT = {
  "attention": "what the last block attends to, averaged over heads",
  "rollout": "attention traced back through all blocks",
  "gradcam": "features of the last layers, weighted by the gradient of the class's logit",
  "gradcam++": "the same with a weight per location",
  "occlusion": "how much the class's logit drops when a region of the image is hidden",
}
LUNGS = (86, 180, 233)  # colour of the outline, the same as that of true masks
OF_ATTENTION = ("attention", "rollout")
SIDE = 384  # approximate side of a PNG, in pixels


@dataclasses.dataclass(frozen=True, eq=False)
class Scaled:
  """Maps scaled to 0..1, and the labels of both ends."""

  maps: Float[np.ndarray, "n gh gw"]
  low: str
  high: str
  unit: str


def scale(method: str, *maps: Float[np.ndarray, "_ _ _"]) -> list[Scaled]:
  """Scales the maps of one method, and of several networks, to 0..1 for drawing.

  Attention is in units of uniform attention, on one scale for all images that reaches at least 2:
  otherwise the noise of nearly uniform attention would look like a finding. Other maps are each
  divided by their largest value. Negative values are not drawn.
  """
  maps = tuple(np.maximum(np.nan_to_num(np.asarray(m, np.float64)), 0) for m in maps)
  if method in OF_ATTENTION:
    maps = tuple(m / np.maximum(m.mean((1, 2), keepdims=True), 1e-12) for m in maps)
    top = max(2.0, *(float(np.percentile(m, 99.5)) for m in maps))
    unit = "\N{MULTIPLICATION SIGN} uniform attention"
    return [Scaled(m / top, "0", f"{top:.1f}", unit) for m in maps]
  tops = [m.max((1, 2), keepdims=True) for m in maps]
  return [
    Scaled(np.divide(m, top, out=np.zeros_like(m), where=top > 0), "0", "largest", "of each map")
    for m, top in zip(maps, tops, strict=True)
  ]


def draw_outline(
  image: UInt8[np.ndarray, "h w *c"], mask: Bool[np.ndarray, "h w"] | None
) -> UInt8[np.ndarray, "sh sw *d"]:
  """Draws the lungs' outline on a radiograph or on a map over one, where a mask is known."""
  if mask is None or not mask.any():
    return image
  return pictures.outlines(image, [mask], [LUNGS])


def png(
  image: UInt8[np.ndarray, "h w"], heat: Float[np.ndarray, "gh gw"], scaled: Scaled
) -> Image.Image:
  """Renders a map over a radiograph, with its colour scale beside it, for a file."""
  factor = max(1, round(SIDE / max(image.shape)))
  h, w = (n * factor for n in image.shape)
  large = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BICUBIC))
  page = Image.new("RGB", (w + 92, h), "white")
  page.paste(Image.fromarray(pictures.overlay(large, heat)), (0, 0))
  bar = pictures.colour_map()[::-1][:, None].repeat(16, 1)
  page.paste(Image.fromarray(bar).resize((16, h - 40), Image.Resampling.NEAREST), (w + 10, 20))
  draw, font = ImageDraw.Draw(page), ImageFont.load_default()
  for y, text in ((14, scaled.high), (h - 26, scaled.low)):
    draw.text((w + 31, y), text.encode("ascii", "replace").decode(), "black", font=font)
  draw.text(
    (w + 10, h - 15),
    scaled.unit.replace("\N{MULTIPLICATION SIGN}", "x").encode("ascii", "replace").decode()[:14],
    "black",
    font=font,
  )
  return page


def figures(
  image: UInt8[np.ndarray, "h w"],
  drawn: Sequence[tuple[str, Float[np.ndarray, "_ _"]]],
  mask: Bool[np.ndarray, "h w"] | None = None,
  size: int = 240,
) -> list[Html]:
  """Maps in 0..1 over one radiograph, with the lungs' outline and a caption."""
  overlays = [(name, draw_outline(pictures.overlay(image, heat), mask)) for name, heat in drawn]
  return [blocks.figure(pictures.picture(array, name, size), name) for name, array in overlays]


def scales(of: Mapping[str, Scaled]) -> Html:
  """Colour bars of the methods; methods with the same scale share one."""
  bars: dict[tuple[str, str, str], list[str]] = {}
  for method, s in of.items():
    bars.setdefault((s.low, s.high, s.unit), []).append(NAMES[method])
  return el(
    "div",
    [
      part
      for (low, high, unit), names in bars.items()
      for part in (el("span", ", ".join(names)), pictures.colour_bar(low, high, unit))
    ],
    cls="scales",
  )


def note(methods: Sequence[str], classes: bool, outlined: bool) -> Html:
  """Explains the maps in words."""
  sentences = [f"{NAMES[m]}: {ABOUT[m]}" for m in methods]
  key = [" ", el("i", cls="key truth"), "Outline: the lung mask."]
  return blocks.note(
    "; ".join(sentences)
    + ". The maps show where information comes from, not why a decision was made.",
    key if outlined else None,
  )


def score_table(scores: Facts, title: str = "") -> Html | None:
  """Table of lung scores of every method: mean, interval and value expected by chance.

  Args:
    scores: `{method: {measure: interval}}`.
    title: heading of the table.
  """
  methods = [m for m in NAMES if m in scores]
  if not methods:
    return None
  by_chance = blocks.column("By chance", cls="num quiet")
  columns = [*blocks.columns("Measure", *(NAMES[m] for m in methods)), by_chance]
  rows = []
  for measure, name in MEASURES.items():
    values = [lookup(scores, m, measure) for m in methods]
    chances = (number(lookup(value, "chance")) for value in values)
    chance = next(filter(np.isfinite, chances), float("nan"))
    rows.append(
      blocks.row(name, *map(_cell, values), el("td", format.decimal(chance), cls="num quiet"))
    )
  table = blocks.table(columns, rows, "results stacked")
  return el("div", el("h3", title) if title else None, table)


def _cell(value: Any) -> Html:
  e = estimate(value)
  if not np.isfinite(e.value):
    return el("td", "n/a", cls="num none", title=lookup(value, "undefined"))
  bounds = format.interval(e)
  small = el("small", f"({bounds})" if bounds else "")
  return blocks.number(el("b", format.decimal(e.value)), " ", small)


MEANING = (
  "Energy inside is the share of a map that lies on the lungs; divided by the lungs' share of the "
  "image, it is 1 by chance. Pointing game: the share of images whose largest value lies on the "
  "lungs. IoU: overlap of the lungs with the 20 % of pixels with the largest values. Means over "
  "images; in brackets, 95 % intervals from a bootstrap over patients."
)


HEADS_SHOWN, RADIOGRAPHS = 12, 6


def section(run: Run) -> Html | None:
  """Maps over test images, single attention heads, and lung scores where masks are known."""
  arrays = run.arrays("attention")
  attn = arrays.get("attn")
  if attn is not None and (attn.ndim != 4 or not attn.size):
    attn = arrays.pop("attn")
  maps = {"attention": arrays["attn"].mean(1)} if "attn" in arrays else {}
  maps |= {m: arrays[m] for m in NAMES if m in arrays and arrays[m].size}
  image = arrays.get("image")
  if image is None or not maps or not len(image):
    return None
  n = min(RADIOGRAPHS, len(image), *(len(m) for m in maps.values()))
  scaled = {m: scale(m, values[:n])[0] for m, values in maps.items()}
  head_note = None
  if (head := run.fact("look", "head")) and set(maps) - set(OF_ATTENTION):
    head_note = blocks.note(f"The run has no classes: its maps explain {head} instead.")
  return el(
    "div",
    _lung_scores(run),
    note(list(maps), True, "mask" in arrays),
    head_note,
    scales(scaled),
    [_maps_of(run, arrays, scaled, i) for i in range(n)],
  )


def _maps_of(
  run: Run, arrays: Mapping[str, np.ndarray], scaled: Mapping[str, Scaled], i: int
) -> Html:
  """A radiograph, all maps over it, and its single attention heads."""
  labels, targets = arrays.get("label", ()), arrays.get("target")
  mask = arrays["mask"][i] if "mask" in arrays else None
  plain = pictures.gray(arrays["image"][i])
  name = (str(labels[i]) if i < len(labels) else "") or f"radiograph {i + 1}"
  original = blocks.figure(pictures.picture(draw_outline(plain, mask), name, 288), name)
  named_maps = []
  for m, s in scaled.items():
    target = f", for {targets[i]}" if targets is not None and m not in OF_ATTENTION else ""
    named_maps.append((NAMES[m] + target, s.maps[i]))
  return el(
    "div",
    el("div", original, figures(plain, named_maps, mask, 288), cls="maps bare"),
    _head_maps(run, arrays, i) if "attn" in arrays else None,
    cls="looked",
  )


def _head_maps(run: Run, arrays: Mapping[str, np.ndarray], i: int) -> Html:
  """Attention of the last blocks, head by head, one pixel per patch."""
  last = number(run.fact("look", "blocks"))
  content = []
  for key, back in (("attn", 0), ("attn_before", 1)):
    if key not in arrays:
      continue
    (heads,) = (s.maps for s in scale("attention", arrays[key][i]))
    block = f"Block {last - back:.0f}" if np.isfinite(last) and last else "Last block"
    thumbs = [
      blocks.figure(pictures.heat_map(heat, f"{block}, head {h}"), f"head {h}")
      for h, heat in enumerate(heads[:HEADS_SHOWN], 1)
    ]
    title = blocks.note(f"{block}, head by head")
    content.append(el("div", title, el("div", thumbs, cls="heads thumbs")))
  return el("div", content, cls="blocks")


def _lung_scores(run: Run) -> Html | None:
  """Lung scores in words and as a table."""
  by_method = run.fact("look", "lungs")
  if not isinstance(by_method, Mapping) or not by_method:
    return None
  scores = {m: by_method[m]["all"] for m in NAMES if m in by_method}
  n, total = run.fact("look", "masked"), run.fact("look", "of_masked")
  method = next(m for m in ("gradcam", "attention", *scores) if m in scores)
  ratio, inside = (number(lookup(scores, method, k, "value")) for k in ("energy_ratio", "energy"))
  text = (
    [
      el("b", f"{100 * inside:.0f} %"),
      f" of {NAMES[method]}'s energy lies on the lungs, ",
      el("b", f"{ratio:.2f} times"),
      " their share of the image.",
    ]
    if np.isfinite(ratio)
    else []
  )
  of_total = f" of {total:,}" if isinstance(total, int) and total > n else ""
  return el(
    "div",
    el("p", text) if text else None,
    score_table(scores),
    blocks.note(f"On {n:,}{of_total} test images with a lung mask from the data set. ", MEANING),
  )

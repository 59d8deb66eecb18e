"""`report.html` with explanation maps of several runs, and how much of them lies on the lungs."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

from cxrjax.report import run_files as runs
from cxrjax.report import terminal
from cxrjax.report.html import blocks, forest_chart, format, line_chart, pictures
from cxrjax.report.html.element import Html, el
from cxrjax.report.run_files import estimate, lookup, number
from cxrjax.report.sections import fact_tables, saliency
from cxrjax.report.sections.details import reproduction
from cxrjax.report.sections.saliency import MEASURES, NAMES
from cxrjax.studies import study_page

Facts = Mapping[str, Any]
STYLES = ("s1", "s2", "s4", "s5", "s6", "s7", "s8")
RATIO = "energy_ratio"
SHORT = {"attention": "Attention", "rollout": "Rollout"}  # beside a chart
SUMMARIZED = (
  "gradcam",
  "attention",
  "rollout",
  "gradcam++",
  "occlusion",
)  # summary: the first available
LIKE_RANDOM = 0.5


def render(run: runs.Run) -> str:
  """Renders the page as HTML."""
  study = run.mapping("explain")
  return study_page.document(
    run,
    lambda: _title(study),
    "cxrjax explanation of runs",
    [lambda: _summary(study), lambda: _notes(run, study)],
    [
      ("lungs", "On the lungs", "", lambda: _lungs(study)),
      ("maps", "Maps over radiographs", "", lambda: _maps(run, study)),
      (
        "mean",
        "Mean maps",
        "Of all images, every map counting the same.",
        lambda: _mean_maps(run, study),
      ),
      ("check", "Do the maps show what was learnt?", "", lambda: _sanity_check(study)),
      ("runs", "The runs", "", lambda: _runs(study)),
      ("again", "Run it again", "", lambda: reproduction(run)),
    ],
  )


write = functools.partial(study_page.write, render)


def _names(study: Facts) -> list[str]:
  return [str(r["name"]) for r in study["runs"]]


def _has_lung_scores(study: Facts) -> bool:
  published, predicted = (number(lookup(study, "masks", k)) for k in ("published", "predicted"))
  return bool(published + predicted)


def _title(study: Facts) -> str:
  names = _names(study)
  suffix = f" and {len(names) - 3} more" if names[3:] else ""
  verb = "looks" if len(names) == 1 else "look"
  return f"Where {', '.join(names[:3])}{suffix} {verb}"


def _mask_origin(study: Facts) -> str:
  """Origin of the lung masks, in words."""
  published, predicted = (int(study["masks"][k]) for k in ("published", "predicted"))
  predicted_by = f"drawn by the segmentation run {study['masks']['by']}, not by a person"
  if not predicted:
    return "their lung masks are those of the data set"
  if not published:
    return f"their lung masks are {predicted_by}"
  return f"{published:,} lung masks are those of the data set, {predicted:,} are {predicted_by}"


def _summary(study: Facts) -> Html:
  data = study["data"]
  sentence: list[Any] = [
    "Maps of ",
    el("b", format.count(data["n"], "radiograph")),
    f" of the {format.count(data['of'])} of ",
    el("span", str(data["name"]), cls="name"),
    f" ({data['split']}): what ",
    "the network looks at" if len(study["runs"]) == 1 else "the networks look at",
    _target_phrase(study),
    "; " + _mask_origin(study) if _has_lung_scores(study) else "",
    ".",
  ]
  return el("div", el("p", sentence), [el("p", text) for text in _verdicts(study)], cls="summary")


def _target_phrase(study: Facts) -> str:
  """The class that the maps explain; empty for maps of attention alone."""
  if not set(study["methods"]) - set(saliency.OF_ATTENTION):
    return ""
  return (
    f", as evidence for {study['target']}"
    if study.get("target")
    else ", as evidence for the class that is predicted"
  )


def _verdicts(study: Facts) -> list[list[Any]]:
  """A sentence per run: share of its maps on the lungs, by the first available of `SUMMARIZED`."""
  if not _has_lung_scores(study):
    return []
  method = next(m for m in SUMMARIZED if m in study["methods"])
  texts = []
  for name in _names(study):
    ratio = estimate(lookup(study, "scores", name, method, "all", RATIO))
    energy = estimate(lookup(study, "scores", name, method, "all", "energy"))
    if not math.isfinite(ratio.value):
      continue
    amount = "more" if ratio.low > 1 else "less" if ratio.high < 1 else "as much"
    than = "as" if amount == "as much" else "than"
    comparison = f"{amount} on the lungs {than} a map that knows nothing of them"
    text: list[Any] = [
      f"{NAMES[method]} of ",
      el("b", name),
      " has ",
      el("b", f"{100 * energy.value:.0f} %"),
      " of its energy on the lungs, ",
      el("b", f"{ratio.value:.2f} times", cls="nowrap"),
      f" their share of the image ({format.interval(ratio)}): {comparison}.",
    ]
    gain = lookup(study, "differences", name, method, RATIO)
    if gain is not None:
      g = estimate(gain)
      n = format.count(gain.get("n"), "image")
      text += [
        f" Its ratio is {study_page.signed(g.value)} ({study_page.signed(g.low)} to "
        f"{study_page.signed(g.high)}) from that of {study['reference']}, on the {n} that give "
        "both a score."
      ]
    texts.append(text)
  return texts


def _notes(run: runs.Run, study: Facts) -> list[Html]:
  notes = [*map(str, study.get("notes") or []), *run.problems]
  probes = [
    f"{r['name']} has no classes of its own: {r['head']} stands in for them, and the maps "
    "of classes are the probe's"
    for r in study["runs"]
    if "probe" in str(r["head"])
  ]
  return [el("p", text + "." * (not text.endswith(".")), cls="callout") for text in notes + probes]


def _lungs(study: Facts) -> Html | None:
  """Lung scores: charts of the energy ratio, and tables."""
  if not _has_lung_scores(study):
    return None
  names = _names(study)
  keys = [(STYLES[i % len(STYLES)], name) for i, name in enumerate(names)]
  charts = [_forest(study, "all", "All images", keys)]
  classes = list(
    dict.fromkeys(
      c for n in names for m in study["methods"] for c in lookup(study, "scores", n, m, "classes")
    )
  )
  if len(classes) > 1:
    charts += [_forest(study, c, f"Images of {c}", keys) for c in classes[:4]]
  body: list[Html | None] = [
    blocks.note(saliency.MEANING),
    el("div", charts, cls=f"charts {'two' if len(charts) % 3 else 'three'}"),
  ]
  for name in names:
    scores = {m: study["scores"][name][m]["all"] for m in study["methods"]}
    body.append(saliency.score_table(scores, name if len(names) > 1 else ""))
    body.append(_undefined(study, name))
  if len(names) > 1:
    body += [_differences(study, name) for name in names[1:]]
  return el("div", body)


def _forest(study: Facts, part: str, title: str, keys: list[tuple[str, str]]) -> Html:
  path = ("all",) if part == "all" else ("classes", part)
  rows = []
  for method in study["methods"]:
    values = [lookup(study, "scores", name, method, *path, RATIO) for _, name in keys]
    marks = [
      study_page.mark(value, style)
      for (style, _), value in zip(keys, values, strict=True)
      if math.isfinite(estimate(value).value)
    ]
    rows.append(forest_chart.Row(SHORT.get(method, NAMES[method]), marks))
  return forest_chart.chart(
    title,
    rows,
    keys,
    x_label="energy inside / lungs' share of the image",
    levels=[line_chart.Level("chance", 1.0, style="ref")],
  )


def _undefined(study: Facts, name: str) -> Html | None:
  reasons = [
    f"{NAMES[m]}: {n} ({reason})"
    for m in study["methods"]
    for reason, n in (study["scores"][name][m].get("undefined") or {}).items()
  ]
  return blocks.note("Images without a score: " + "; ".join(reasons) + ".") if reasons else None


def _differences(study: Facts, name: str) -> Html:
  """Table of paired differences from the first run."""

  def images(method: str) -> str:
    n = lookup(study, "differences", name, method, RATIO, "n")
    return f" ({format.count(n, 'image')})" if n else ""

  columns = blocks.columns(
    "Measure", *([NAMES[m], el("small", images(m))] for m in study["methods"])
  )
  rows = [
    blocks.row(
      title,
      *(
        study_page.gain_cell(lookup(study, "differences", name, m, measure))
        for m in study["methods"]
      ),
    )
    for measure, title in MEASURES.items()
  ]
  return blocks.titled(
    f"{name} minus {study['reference']}, on the images that give both a score",
    blocks.table(columns, rows, study_page.STACKED),
  )


def _maps(run: runs.Run, study: Facts) -> Html | None:
  """Example radiographs, one row each, with the map of every method and run."""
  arrays = run.arrays("maps")
  if "image" not in arrays:
    return None
  names, methods = _names(study), [m for m in study["methods"] if f"{m}/0" in arrays]
  scaled = {m: saliency.scale(m, *(arrays[f"{m}/{i}"] for i in range(len(names)))) for m in methods}
  rows = []
  for k, image in enumerate(arrays["image"]):
    label = str(arrays["label"][k]) or f"radiograph {k + 1}"
    mask = arrays["mask"][k] if "mask" in arrays else None
    picture = pictures.picture(saliency.draw_outline(image, mask), label, 240)
    plain = blocks.figure(picture, label)
    overlays = []
    for m in methods:
      for i, name in enumerate(names):
        target = arrays.get(f"target/{m}/{i}")
        words = [
          f"{name}:" if len(names) > 1 else "",
          NAMES[m],
          f"for {target[k]}" if target is not None else "",
        ]
        text = " ".join(filter(None, words))
        overlays.append((text, scaled[m][i].maps[k]))
    rows.append(el("div", plain, saliency.figures(image, overlays, mask), cls="maps"))
  bars = saliency.scales({m: scaled[m][0] for m in methods})
  return el("div", saliency.note(methods, True, "mask" in arrays), bars, rows)


def _mean_maps(run: runs.Run, study: Facts) -> Html | None:
  """Mean maps of all images over the mean radiograph, with the outline of the mean lungs."""
  arrays = run.arrays("maps")
  if "mean_image" not in arrays:
    return None
  names = _names(study)
  lungs = arrays["mean_mask"] >= 0.5 if "mean_mask" in arrays else None
  overlays = []
  for m in study["methods"]:
    for i, name in enumerate(names):
      heat = arrays[f"mean/{m}/{i}"]
      if heat.max() > 0:
        text = f"{name}: {NAMES[m]}" if len(names) > 1 else NAMES[m]
        overlays.append((text, heat / heat.max()))
  return el("div", saliency.figures(arrays["mean_image"], overlays, lungs), cls="maps")


def _sanity_check(study: Facts) -> Html | None:
  """Sanity check: rank correlations with the maps of random weights."""
  names = _names(study)
  body, resembling = [], []
  for m in study["methods"]:
    cells = []
    for name in names:
      correlation = lookup(study, "random", name, m) or {}
      value = number(correlation.get("value"))
      if value > LIKE_RANDOM:
        resembling.append(f"{NAMES[m]} of {name}")
      cells.append(
        el(
          "td",
          format.decimal(value).replace("-", "\N{MINUS SIGN}"),
          cls="num",
          title=f"{correlation.get('n')} images",
        )
      )
    body.append(blocks.row(NAMES[m], *cells))
  counts = [lookup(study, "random", name, m, "n") for name in names for m in study["methods"]]
  n = max((int(count or 0) for count in counts), default=0)
  text = (
    "Mean rank correlation of a map with that of the same network with random weights, of "
    f"{format.count(n, 'image')}: near 0 where a map shows what was learnt, near 1 where it "
    "shows the network's shape or the image's edges (Adebayo et al. 2018)."
  )
  warn = (
    el(
      "p",
      f"{' and '.join(resembling)} resemble{'s' if len(resembling) == 1 else ''} the map of random "
      "weights: do not take what is seen there for something learnt.",
      cls="callout warn",
    )
    if resembling
    else None
  )
  if 0 in counts:
    text += " n/a: random weights give flat maps, which nothing resembles."
  table = blocks.table(blocks.columns("Map", *names), body, study_page.STACKED)
  return el("div", blocks.note(text), warn, table)


def _runs(study: Facts) -> Html:
  cards = []
  for r in study["runs"]:
    rows = {
      "network": f"{r.get('model')}, {r.get('size')} px",
      "method": r.get("method"),
      "explained": r.get("head") or "no class",
      "classes": ", ".join(r.get("classes") or []),
      "learnt from": f"{format.count(r.get('n'), 'radiograph')} of {r.get('train')} "
      f"({r.get('split')})",
      "remarks": "; ".join(r.get("notes") or [])[:300],
      "step": r.get("step"),
      "workdir": r.get("workdir"),
    }
    cards.append(fact_tables.card(fact_tables.rows(rows), str(r["name"])))
  return el("div", cards, cls="cards")


def table(study: Facts) -> str:
  """Terminal table: energy ratio of every run and method."""
  if not _has_lung_scores(study):
    return "no lung masks, no lung scores; the maps are on the page"
  lines = [["energy on lungs / their share", *(NAMES[m] for m in study["methods"])]]
  for name in _names(study):
    lines.append(
      [
        name,
        *(
          format.estimate(estimate(lookup(study, "scores", name, m, "all", RATIO)), "-")
          for m in study["methods"]
        ),
      ]
    )
    if name in study["differences"]:
      lines.append(
        [
          f"  minus {study['reference']}",
          *(
            study_page.plain_gain(lookup(study, "differences", name, m, RATIO))
            for m in study["methods"]
          ),
        ]
      )
  return "\n".join(
    [
      *terminal.aligned(lines),
      "1 by chance; 95 % intervals in brackets, differences paired, over patients",
    ]
  )

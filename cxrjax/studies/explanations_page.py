"""`report.html` of runs explained side by side: where they look, and how much of it is lung."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

from cxrjax.report import run_files as runs
from cxrjax.report.html import forest_chart, format, line_chart, pictures
from cxrjax.report.html.element import Html, el
from cxrjax.report.run_files import lookup, number
from cxrjax.report.sections import fact_tables, saliency
from cxrjax.report.sections.details import again
from cxrjax.report.sections.saliency import MEASURES, NAMES
from cxrjax.studies import page_parts

Facts = Mapping[str, Any]
STYLES = ("s1", "s2", "s4", "s5", "s6", "s7", "s8")
RATIO = "energy_ratio"
SHORT = {"attention": "Attention", "rollout": "Rollout"}  # beside a chart
TOLD = ("gradcam", "attention", "rollout", "gradcam++", "occlusion")  # in words, the first it has
LIKE_RANDOM = 0.5


def render(run: runs.Run) -> str:
  """The page as text."""
  found = page_parts.facts(run, "explain")
  return page_parts.document(
    run,
    lambda: _title(found),
    "cxrjax explanation of runs",
    [lambda: _summary(found), lambda: _notes(run, found)],
    [
      ("lungs", "On the lungs", "", lambda: _lungs(found)),
      ("maps", "Maps over radiographs", "", lambda: _maps(run, found)),
      (
        "mean",
        "Mean maps",
        "Of all images, every map counting the same.",
        lambda: _means(run, found),
      ),
      ("check", "Do the maps show what was learnt?", "", lambda: _check(found)),
      ("runs", "The runs", "", lambda: _runs(found)),
      ("again", "Run it again", "", lambda: again(run)),
    ],
  )


write = functools.partial(page_parts.write, render)


def _names(found: Facts) -> list[str]:
  return [str(r["name"]) for r in found["runs"]]


def _scored(found: Facts) -> bool:
  return bool(
    number(lookup(found, "masks", "published")) + number(lookup(found, "masks", "predicted"))
  )


def _title(found: Facts) -> str:
  names = _names(found)
  more = f" and {len(names) - 3} more" if names[3:] else ""
  verb = "looks" if len(names) == 1 else "look"
  return f"Where {', '.join(names[:3])}{more} {verb}"


def _about_masks(found: Facts) -> str:
  """Where the lung masks are from, in words."""
  own, drawn = (int(found["masks"][k]) for k in ("published", "predicted"))
  by = f"drawn by the segmentation run {found['masks']['by']}, not by a person"
  if not drawn:
    return "their lung masks are those of the data set"
  if not own:
    return f"their lung masks are {by}"
  return f"{own:,} lung masks are those of the data set, {drawn:,} are {by}"


def _summary(found: Facts) -> Html:
  data = found["data"]
  said: list[Any] = [
    "Maps of ",
    el("b", format.count(data["n"], "radiograph")),
    f" of the {format.count(data['of'])} of ",
    el("span", str(data["name"]), cls="name"),
    f" ({data['split']}): what ",
    "the network looks at" if len(found["runs"]) == 1 else "the networks look at",
    _explained(found),
    "; " + _about_masks(found) if _scored(found) else "",
    ".",
  ]
  return el("div", el("p", said), [el("p", text) for text in _verdicts(found)], cls="summary")


def _explained(found: Facts) -> str:
  """Which class the maps explain, where some do."""
  if not set(found["methods"]) - set(saliency.OF_ATTENTION):
    return ""
  return (
    f", as evidence for {found['target']}"
    if found.get("target")
    else ", as evidence for the class that is predicted"
  )


def _verdicts(found: Facts) -> list[list[Any]]:
  """How much of every run's maps lies on the lungs, by the first method of `TOLD`."""
  if not _scored(found):
    return []
  method = next(m for m in TOLD if m in found["methods"])
  texts = []
  for name in _names(found):
    e = page_parts.estimate(lookup(found, "scores", name, method, "all", RATIO))
    inside = page_parts.estimate(lookup(found, "scores", name, method, "all", "energy"))
    if not math.isfinite(e.value):
      continue
    where = (
      "more on the lungs than a map that knows nothing of them"
      if e.low > 1
      else "less on the lungs than a map that knows nothing of them"
      if e.high < 1
      else "as much on the lungs as a map that knows nothing of them"
    )
    text: list[Any] = [
      f"{NAMES[method]} of ",
      el("b", name),
      " has ",
      el("b", f"{100 * inside.value:.0f} %"),
      " of its energy on the lungs, ",
      el("b", f"{e.value:.2f} times", cls="nowrap"),
      f" their share of the image ({format.interval(e)}): {where}.",
    ]
    gain = lookup(found, "differences", name, method, RATIO)
    if gain is not None:
      g = page_parts.estimate(gain)
      n = format.count(gain.get("n"), "image")
      text += [
        f" Its ratio is {page_parts.signed(g.value)} ({page_parts.signed(g.low)} to "
        f"{page_parts.signed(g.high)}) from that of {found['reference']}, on the {n} that give "
        "both a score."
      ]
    texts.append(text)
  return texts


def _notes(run: runs.Run, found: Facts) -> list[Html]:
  said = [*map(str, found.get("notes") or []), *run.problems]
  probes = [
    f"{r['name']} has no classes of its own: {r['head']} stands in for them, and the maps "
    "of classes are the probe's"
    for r in found["runs"]
    if "probe" in str(r["head"])
  ]
  return [el("p", text + "." * (not text.endswith(".")), cls="callout") for text in said + probes]


def _lungs(found: Facts) -> Html | None:
  """Scores: a chart of the ratio, and tables."""
  if not _scored(found):
    return None
  names = _names(found)
  keys = [(STYLES[i % len(STYLES)], name) for i, name in enumerate(names)]
  charts_ = [_forest(found, "all", "All images", keys)]
  classes = list(
    dict.fromkeys(
      c for n in names for m in found["methods"] for c in lookup(found, "scores", n, m, "classes")
    )
  )
  if len(classes) > 1:
    charts_ += [_forest(found, c, f"Images of {c}", keys) for c in classes[:4]]
  body: list[Html | None] = [
    el("p", saliency.MEANING, cls="note"),
    el("div", charts_, cls=f"charts {'two' if len(charts_) % 3 else 'three'}"),
  ]
  for name in names:
    of = {m: found["scores"][name][m]["all"] for m in found["methods"]}
    body.append(saliency.score_table(of, name if len(names) > 1 else ""))
    body.append(_undefined(found, name))
  if len(names) > 1:
    body += [_gains(found, name) for name in names[1:]]
  return el("div", body)


def _forest(found: Facts, part: str, title: str, keys: list[tuple[str, str]]) -> Html:
  path = ("all",) if part == "all" else ("classes", part)
  rows = []
  for method in found["methods"]:
    marks = [
      forest_chart.Mark(e.value, e.low, e.high, style)
      for style, name in keys
      if math.isfinite(
        (e := page_parts.estimate(lookup(found, "scores", name, method, *path, RATIO))).value
      )
    ]
    rows.append(forest_chart.Row(SHORT.get(method, NAMES[method]), marks))
  return forest_chart.chart(
    title,
    rows,
    keys,
    x_label="energy inside / lungs' share of the image",
    levels=[line_chart.Level("chance", 1.0, style="ref")],
  )


def _undefined(found: Facts, name: str) -> Html | None:
  said = [
    f"{NAMES[m]}: {n} ({reason})"
    for m in found["methods"]
    for reason, n in (found["scores"][name][m].get("undefined") or {}).items()
  ]
  return el("p", "Images without a score: " + "; ".join(said) + ".", cls="note") if said else None


def _gains(found: Facts, name: str) -> Html:
  """Paired differences from the first run."""

  def images(method: str) -> str:
    n = lookup(found, "differences", name, method, RATIO, "n")
    return f" ({format.count(n, 'image')})" if n else ""

  head = [
    el("th", "Measure", scope="col"),
    *(el("th", NAMES[m], el("small", images(m)), scope="col", cls="num") for m in found["methods"]),
  ]
  body = [
    el(
      "tr",
      el("th", title, scope="row"),
      *(
        page_parts.gain_cell(lookup(found, "differences", name, m, measure))
        for m in found["methods"]
      ),
    )
    for measure, title in MEASURES.items()
  ]
  table = el("table", el("thead", el("tr", head)), el("tbody", body), cls="results stacked")
  title = f"{name} minus {found['reference']}, on the images that give both a score"
  return el("div", el("h3", title), el("div", table, cls="scroll"))


def _maps(run: runs.Run, found: Facts) -> Html | None:
  """The radiographs shown, a row of each: every method and run."""
  arrays = run.arrays("maps")
  if "image" not in arrays:
    return None
  names, methods = _names(found), [m for m in found["methods"] if f"{m}/0" in arrays]
  scaled = {m: saliency.scale(m, *(arrays[f"{m}/{i}"] for i in range(len(names)))) for m in methods}
  several = len(names) > 1
  rows = []
  for k, image in enumerate(arrays["image"]):
    label = str(arrays["label"][k]) or f"radiograph {k + 1}"
    mask = arrays["mask"][k] if "mask" in arrays else None
    plain = el(
      "figure",
      pictures.picture(saliency.outlined(image, mask), label, 240),
      el("figcaption", label),
    )
    drawn = []
    for m in methods:
      for i, name in enumerate(names):
        target = arrays.get(f"target/{m}/{i}")
        text = " ".join(
          filter(
            None,
            [
              f"{name}:" if several else "",
              NAMES[m],
              f"for {target[k]}" if target is not None else "",
            ],
          )
        )
        drawn.append((text, scaled[m][i].maps[k]))
    rows.append(el("div", plain, saliency.figures(image, drawn, mask), cls="maps"))
  bars = saliency.scales({m: scaled[m][0] for m in methods})
  return el("div", saliency.note(methods, True, "mask" in arrays), bars, rows)


def _means(run: runs.Run, found: Facts) -> Html | None:
  """Where the maps of all images lie, over the mean radiograph, with the mean lungs."""
  arrays = run.arrays("maps")
  if "mean_image" not in arrays:
    return None
  names = _names(found)
  lungs = arrays["mean_mask"] >= 0.5 if "mean_mask" in arrays else None
  drawn = []
  for m in found["methods"]:
    for i, name in enumerate(names):
      heat = arrays[f"mean/{m}/{i}"]
      if heat.max() > 0:
        text = f"{name}: {NAMES[m]}" if len(names) > 1 else NAMES[m]
        drawn.append((text, heat / heat.max()))
  return el("div", saliency.figures(arrays["mean_image"], drawn, lungs), cls="maps")


def _check(found: Facts) -> Html | None:
  """Rank correlations with the maps of random weights."""
  names = _names(found)
  head = [el("th", "Map", scope="col"), *(el("th", n, scope="col", cls="num") for n in names)]
  body, like = [], []
  for m in found["methods"]:
    cells = []
    for name in names:
      of = lookup(found, "random", name, m) or {}
      value = number(of.get("value"))
      if value > LIKE_RANDOM:
        like.append(f"{NAMES[m]} of {name}")
      cells.append(
        el(
          "td",
          format.decimal(value).replace("-", "\N{MINUS SIGN}"),
          cls="num",
          title=f"{of.get('n')} images",
        )
      )
    body.append(el("tr", el("th", NAMES[m], scope="row"), *cells))
  n = max(
    (int(lookup(found, "random", x, m, "n") or 0) for x in names for m in found["methods"]),
    default=0,
  )
  text = (
    "Mean rank correlation of a map with that of the same network with random weights, of "
    f"{format.count(n, 'image')}: near 0 where a map shows what was learnt, near 1 where it "
    "shows the network's shape or the image's edges (Adebayo et al. 2018)."
  )
  warn = (
    el(
      "p",
      f"{' and '.join(like)} resemble{'s' if len(like) == 1 else ''} the map of random "
      "weights: do not take what is seen there for something learnt.",
      cls="callout warn",
    )
    if like
    else None
  )
  table = el("table", el("thead", el("tr", head)), el("tbody", body), cls="results stacked")
  if any(lookup(found, "random", x, m, "n") == 0 for x in names for m in found["methods"]):
    text += " n/a: random weights give flat maps, which nothing resembles."
  return el("div", el("p", text, cls="note"), warn, el("div", table, cls="scroll"))


def _runs(found: Facts) -> Html:
  cards = []
  for r in found["runs"]:
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
    cards.append(
      el(
        "div",
        el("h3", str(r["name"])),
        fact_tables.pairs(fact_tables.rows({k: v for k, v in rows.items() if v not in ("", None)})),
        cls="card",
      )
    )
  return el("div", cards, cls="cards")


def table(found: Facts) -> str:
  """For the terminal: the ratio of every run and method."""
  if not _scored(found):
    return "no lung masks, no lung scores; the maps are on the page"
  lines = [["energy on lungs / their share", *(NAMES[m] for m in found["methods"])]]
  for name in _names(found):
    lines.append(
      [
        name,
        *(
          format.estimate(page_parts.estimate(lookup(found, "scores", name, m, "all", RATIO)), "-")
          for m in found["methods"]
        ),
      ]
    )
    if name in found["differences"]:
      lines.append(
        [
          f"  minus {found['reference']}",
          *(
            page_parts.plain_gain(lookup(found, "differences", name, m, RATIO))
            for m in found["methods"]
          ),
        ]
      )
  return "\n".join(
    [
      *page_parts.aligned(lines),
      "1 by chance; 95 % intervals in brackets, differences paired, over patients",
    ]
  )

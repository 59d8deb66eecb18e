"""`report.html` of a comparison of methods: one self-contained page, a function of its workdir."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cxrjax.report import naming
from cxrjax.report import run_files as runs
from cxrjax.report.html import format
from cxrjax.report.html.element import Html, el
from cxrjax.report.run_files import lookup
from cxrjax.report.sections import fact_tables
from cxrjax.studies import comparison_charts, page_parts
from cxrjax.studies.comparison_charts import head_name, row_name, set_name
from cxrjax.studies.page_parts import SIGNS, estimate, gain_cell, score_cell, verdict, with_status

Facts = Mapping[str, Any]


def render(run: runs.Run) -> str:
  """The page as text."""
  found = page_parts.facts(run, "compare")
  body: list[tuple[str, str, str, Callable[[], Html | None]]] = [
    (
      "gain",
      "Gain over the random encoder",
      "The AUROC of the trained encoder less that of the same network before training, on the same "
      "test images; the interval is of the difference. Right of the line: training helped.",
      lambda: comparison_charts.gains(found),
    ),
    (
      "scores",
      "Scores",
      "AUROC of the test images by frozen features. Rings: the same network "
      "before training. Dashed: ridge regression on 16x16 thumbnails, no network at all.",
      lambda: comparison_charts.scores(found),
    ),
    ("table", "In numbers", "", lambda: _tables(found)),
    (
      "course",
      "Score against forward FLOPs",
      "From the random encoder on the left to the whole budget on the right.",
      lambda: comparison_charts.courses(found),
    ),
    ("cost", "What it cost", "", lambda: _cost(found)),
    ("how", "How it was compared", "", lambda: _how(run, found)),
    (
      "again",
      "Run it again",
      "",
      lambda: page_parts.again(run, found, functools.partial(row_name, found)),
    ),
  ]
  return page_parts.document(
    run,
    lambda: _title(found),
    "cxrjax comparison",
    [
      lambda: _summary(found),
      lambda: page_parts.callouts(run, found, functools.partial(row_name, found)),
    ],
    body,
  )


write = functools.partial(page_parts.write, render)


def _title(found: Facts) -> str:
  methods = list(dict.fromkeys(row["method"] for row in found["rows"]))
  of = found.get("model") or "one encoder"
  if len(methods) <= 3:
    return f"{', '.join(methods)} compared, {of}"
  return f"{len(methods)} self-supervised methods compared, {of}"


def _summary(found: Facts) -> Html:
  """What was compared, and which methods are better than no training, in words."""
  rows = with_status(found)
  images = format.count(found.get("examples"), "radiograph") or "radiographs"
  model = found.get("model") or "encoder"
  trained = format.count(len(rows), "run trained", "runs trained")
  text: list[Any] = [
    el("b", f"{trained} {model}"),
    f" on {images} without labels, each for ",
    el("b", format.compact(found.get("budget"), "FLOP")),
    " of forward passes: which way of learning teaches the network most?",
  ]
  said = [el("p", text)]
  for name, facts_of in found.get("sets", {}).items():
    n = format.count(lookup(facts_of, "test", "n"), "test radiograph")
    parts = []
    for head in comparison_charts.heads(found, name):
      groups: dict[str, list[str]] = {"above": [], "below": [], "open": []}
      for row in rows:
        kind = verdict(lookup(row, "sets", name, head, "gain"))
        if kind:
          groups[kind].append(row_name(found, row))
      parts.append(el("li", _verdicts(head, groups), "."))
    said.append(
      el(
        "p",
        "On ",
        el("b", set_name(found, name)),
        f" ({n}), better than the same network before training, beyond the 95 % interval:",
      )
    )
    said.append(el("ul", parts))
  return el("div", said, cls="summary")


def _verdicts(head: str, groups: Mapping[str, Sequence[str]]) -> list[Any]:
  """In words, of one data set and head."""
  total = sum(map(len, groups.values()))
  by = "by linear probe" if head == "linear" else f"by {head_name(head).replace(', ', ' (')})"
  if not total:
    return [f"{by} nothing is known yet"]
  better, worse = groups["above"], groups["below"]
  text: list[Any] = [f"{by} {len(better) or 'none'} of {total}"]
  text += [": ", el("b", ", ".join(better), cls="up")] if better else []
  text += [" (worse: ", el("b", ", ".join(worse), cls="down"), ")"] if worse else []
  return text


def _tables(found: Facts) -> Html | None:
  """A table for each data set: scores, and gains with their verdicts."""
  parts = []
  for name, facts_of in found.get("sets", {}).items():
    heads = comparison_charts.heads(found, name)
    head = [el("th", "Method", scope="col")]
    for h in heads:
      head += [
        el("th", head_name(h), scope="col", cls="num"),
        el("th", "gain over random", scope="col", cls="num"),
      ]
    if "linear" in heads:
      head.append(el("th", "probe over floor", scope="col", cls="num"))
    body = [_line(found, row, name, heads) for row in found["rows"]]
    floor = estimate(facts_of.get("floor"))
    cells = [
      el("td", format.estimate(floor) if h == "linear" else "\N{EN DASH}", cls="num", colspan=2)
      for h in heads
    ]
    body.append(
      el(
        "tr",
        el("th", "Thumbnail floor", scope="row"),
        cells,
        el("td", "", cls="num") if "linear" in heads else None,
      )
    )
    table = el("table", el("thead", el("tr", head)), el("tbody", body), cls="results stacked")
    n = format.count(lookup(facts_of, "test", "n"), "test radiograph")
    title = el("h3", f"{set_name(found, name)}, {n}")
    parts.append(el("div", title, el("div", table, cls="scroll"), cls="evaluator"))
  if not parts:
    return None
  note = (
    f"AUROC with 95 % intervals. {SIGNS['above']} the interval of the difference lies above "
    f"0, {SIGNS['below']} below 0. Intervals speak of these test images and this seed, one "
    "comparison at a time; of 20 methods that change nothing, one would get a sign."
  )
  return el("div", parts, el("p", note, cls="note"))


def _line(found: Facts, row: Facts, name: str, heads: Sequence[str]) -> Html:
  cells: list[Html] = []
  for h in heads:
    values = lookup(row, "sets", name, h)
    cells += [score_cell(lookup(values, "trained")), gain_cell(lookup(values, "gain"))]
  if "linear" in heads:
    cells.append(gain_cell(lookup(row, "sets", name, "linear", "over_floor")))
  if row["status"] != "finished":
    cells = [el("td", row["status"], cls="none", colspan=len(cells))]
  return el("tr", el("th", row_name(found, row), scope="row"), cells)


def _cost(found: Facts) -> Html | None:
  rows = with_status(found)
  if not rows:
    return None
  head = [
    "Method",
    "Forward, an image",
    "Training, an image",
    "Images",
    "Epochs",
    "Images/s",
    "Training",
    "Whole run",
    "Peak memory",
  ]
  body = []
  for row in rows:
    memory = row.get("memory") or {}
    peak = memory.get("peak_device_bytes") or memory.get("peak_rss_bytes")
    cells = [
      format.compact(row["flops_per_image"], "FLOP"),
      format.compact(row.get("training_flops_per_image"), "FLOP"),
      format.count(row["images"]),
      f"{row['epochs']:,.3g}",
      format.count(row.get("images_per_s")),
      format.duration(row.get("training_s")),
      format.duration(row.get("total_s")),
      format.compact(peak, "B"),
    ]
    body.append(
      el(
        "tr",
        el("th", row_name(found, row), scope="row"),
        [el("td", c or "\N{EN DASH}", cls="num") for c in cells],
      )
    )
  table = el(
    "table",
    el(
      "thead",
      el("tr", [el("th", h, scope="col", cls="num" if i else None) for i, h in enumerate(head)]),
    ),
    el("tbody", body),
    cls="parts",
  )
  device = any((r.get("memory") or {}).get("peak_device_bytes") for r in rows)
  note = (
    "Training: the images at the rate of the steps, without compilation and evaluation; "
    "whole run: with them. Peak memory: "
    + (
      "of the accelerator."
      if device
      else "of the process, with the decoded images and the evaluation."
    )
  )
  return el("div", el("div", table, cls="scroll"), el("p", note, cls="note"))


def _how(run: runs.Run, found: Facts) -> Html:
  pool = found.get("data") or {}
  size = format.compact(found.get("parameters"))
  rows = [
    ("Network", f"{found.get('model') or ''}, {size} parameters" if size else ""),
    (
      "Images",
      f"{format.count(found.get('image_size'))} pixels, batches of "
      f"{format.count(found.get('batch_size'))}",
    ),
    (
      "Learnt from",
      f"{pool.get('name')} ({pool.get('split')}), {format.count(pool.get('n'))} radiographs",
    ),
    (
      "Budget of a run",
      f"{format.compact(found.get('budget'), 'FLOP')} of forward passes: "
      "matrix products of everything that the loss runs, teachers and "
      "heads included, gradients not",
    ),
    (
      "Recipes",
      "each method's own (views, heads, learning rate, schedules); what it states "
      "in epochs keeps its share of the run",
    ),
    ("Device", naming.device_name(run) or page_parts.device(found)),
  ]
  cards = [el("div", fact_tables.pairs((k, v) for k, v in rows if v), cls="card")]
  for name, of in found.get("sets", {}).items():
    test = of.get("test")
    cards.append(
      el(
        "div",
        el("h3", set_name(found, name)),
        fact_tables.pairs(
          fact_tables.rows({"labelled training images": of.get("train"), **(test or {})})
        ),
        cls="card",
      )
    )
  notes = found.get("notes")
  remarks = None
  if isinstance(notes, list) and notes:
    remarks = el(
      "details",
      el("summary", "Remarks on the data"),
      el("ul", [el("li", str(n)) for n in notes]),
      open=True,
    )
  return el("div", el("div", cards, cls="cards"), remarks)


def table(found: Facts) -> str:
  """For the terminal: a table for each data set."""
  return "\n\n".join(_plain(found, name) for name in found.get("sets", {}))


def _plain(found: Facts, name: str) -> str:
  heads = comparison_charts.heads(found, name)
  lines = [
    [
      set_name(found, name),
      *(x for h in heads for x in (head_name(h), "gain")),
      "training",
      "memory",
    ]
  ]
  for row in with_status(found):
    cells = [row_name(found, row)]
    for h in heads:
      values = lookup(row, "sets", name, h)
      gain = estimate(lookup(values, "gain"))
      mark = {"above": " +", "below": " -"}.get(verdict(lookup(values, "gain")), "")
      cells += [
        format.estimate(estimate(lookup(values, "trained")), "-"),
        f"{gain.value:+.3f} \N{PLUS-MINUS SIGN} {(gain.high - gain.low) / 2:.3f}{mark}",
      ]
    memory = row.get("memory") or {}
    peak = memory.get("peak_device_bytes") or memory.get("peak_rss_bytes")
    lines.append([*cells, format.duration(row.get("training_s")), format.compact(peak, "B")])
  floor = estimate(lookup(found, "sets", name, "floor"))
  at_probe = ["" if h != "linear" else format.estimate(floor, "-") for h in heads for _ in (0, 1)]
  lines.append(["thumbnail floor", *(c if i % 2 == 0 else "" for i, c in enumerate(at_probe))])
  note = (
    "AUROC, 95 % intervals; gain over the random encoder, paired: + or - where its interval "
    "leaves out 0"
  )
  return "\n".join([*page_parts.aligned(lines, (0, len(lines) - 2)), note])

"""`report.html` of a comparison of methods: a self-contained page rendered from its workdir."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cxrjax.report import naming, terminal
from cxrjax.report import run_files as runs
from cxrjax.report.html import blocks, format
from cxrjax.report.html.element import Html, el
from cxrjax.report.run_files import estimate, lookup
from cxrjax.studies import comparison_charts, study_page
from cxrjax.studies.comparison_charts import head_name, row_name, set_name
from cxrjax.studies.study_page import SIGNS, by_verdict, gain_cell, score_cell, verdict, with_status

Facts = Mapping[str, Any]


def render(run: runs.Run) -> str:
  """Renders the page as HTML."""
  study = run.mapping("compare")
  row_title = functools.partial(row_name, study)
  body: list[tuple[str, str, str, Callable[[], Html | None]]] = [
    (
      "gain",
      "Gain over the random encoder",
      "The AUROC of the trained encoder less that of the same network before training, on the same "
      "test images; the interval is of the difference. Right of the line: training helped.",
      lambda: comparison_charts.gains(study),
    ),
    (
      "scores",
      "Scores",
      "AUROC of the test images by frozen features. Rings: the same network "
      "before training. Dashed: ridge regression on 16x16 thumbnails, no network at all.",
      lambda: comparison_charts.scores(study),
    ),
    ("table", "In numbers", "", lambda: _tables(study)),
    (
      "course",
      "Score against forward FLOPs",
      "From the random encoder on the left to the whole budget on the right.",
      lambda: comparison_charts.courses(study),
    ),
    ("cost", "What it cost", "", lambda: _cost(study)),
    ("how", "How it was compared", "", lambda: _setup(run, study)),
    ("again", "Run it again", "", lambda: study_page.again(run, study, row_title)),
  ]
  return study_page.document(
    run,
    lambda: _title(study),
    "cxrjax comparison",
    [lambda: _summary(study), lambda: study_page.callouts(run, study, row_title)],
    body,
  )


write = functools.partial(study_page.write, render)


def _title(study: Facts) -> str:
  methods = list(dict.fromkeys(row["method"] for row in study["rows"]))
  model = study.get("model") or "one encoder"
  if len(methods) <= 3:
    return f"{', '.join(methods)} compared, {model}"
  return f"{len(methods)} self-supervised methods compared, {model}"


def _summary(study: Facts) -> Html:
  """The comparison in words, and which methods are better than no training."""
  rows = with_status(study)
  images = format.count(study.get("examples"), "radiograph") or "radiographs"
  model = study.get("model") or "encoder"
  trained = format.count(len(rows), "run trained", "runs trained")
  text: list[Any] = [
    el("b", f"{trained} {model}"),
    f" on {images} without labels, each for ",
    el("b", format.compact(study.get("budget"), "FLOP")),
    " of forward passes: which way of learning teaches the network most?",
  ]
  paragraphs = [el("p", text)]
  for name, test_set in study.get("sets", {}).items():
    n = format.count(lookup(test_set, "test", "n"), "test radiograph")
    items = []
    for head in comparison_charts.heads(study, name):
      groups = by_verdict(
        (lookup(row, "sets", name, head, "gain"), row_name(study, row)) for row in rows
      )
      items.append(el("li", _verdict_phrase(head, groups), "."))
    paragraphs.append(
      el(
        "p",
        "On ",
        el("b", set_name(study, name)),
        f" ({n}), better than the same network before training, beyond the 95 % interval:",
      )
    )
    paragraphs.append(el("ul", items))
  return el("div", paragraphs, cls="summary")


def _verdict_phrase(head: str, groups: Mapping[str, Sequence[str]]) -> list[Any]:
  """Which methods gained or lost, in words, for one data set and head."""
  total = sum(map(len, groups.values()))
  by = "by linear probe" if head == "linear" else f"by {head_name(head).replace(', ', ' (')})"
  if not total:
    return [f"{by} nothing is known yet"]
  better, worse = groups["above"], groups["below"]
  text: list[Any] = [f"{by} {len(better) or 'none'} of {total}"]
  text += [": ", el("b", ", ".join(better), cls="up")] if better else []
  text += [" (worse: ", el("b", ", ".join(worse), cls="down"), ")"] if worse else []
  return text


def _tables(study: Facts) -> Html | None:
  """One table per data set: scores, and gains with their verdicts."""
  tables = []
  for name, test_set in study.get("sets", {}).items():
    heads = comparison_charts.heads(study, name)
    titles = [title for h in heads for title in (head_name(h), "gain over random")]
    titles += ["probe over floor"] if "linear" in heads else []
    rows = [_table_row(study, row, name, heads) for row in study["rows"]]
    floor = format.estimate(estimate(test_set.get("floor")))
    cells = [
      el("td", floor if h == "linear" else "\N{EN DASH}", cls="num", colspan=2) for h in heads
    ]
    rows.append(
      blocks.row("Thumbnail floor", cells, blocks.number("") if "linear" in heads else None)
    )
    columns = blocks.columns("Method", *titles)
    tables.append(study_page.test_table(set_name(study, name), test_set, columns, rows))
  if not tables:
    return None
  note = (
    f"AUROC with 95 % intervals. {SIGNS['above']} the interval of the difference lies above "
    f"0, {SIGNS['below']} below 0. Intervals speak of these test images and this seed, one "
    "comparison at a time; of 20 methods that change nothing, one would get a sign."
  )
  return el("div", tables, blocks.note(note))


def _table_row(study: Facts, row: Facts, name: str, heads: Sequence[str]) -> Html:
  cells: list[Html] = []
  for h in heads:
    values = lookup(row, "sets", name, h)
    cells += [score_cell(lookup(values, "trained")), gain_cell(lookup(values, "gain"))]
  if "linear" in heads:
    cells.append(gain_cell(lookup(row, "sets", name, "linear", "over_floor")))
  if row["status"] != "finished":
    cells = [el("td", row["status"], cls="none", colspan=len(cells))]
  return blocks.row(row_name(study, row), cells)


def _cost(study: Facts) -> Html | None:
  rows = with_status(study)
  if not rows:
    return None
  columns = blocks.columns(
    "Method",
    "Forward, an image",
    "Training, an image",
    "Images",
    "Epochs",
    "Images/s",
    "Training",
    "Whole run",
    "Peak memory",
  )
  body = []
  for row in rows:
    cells = [
      format.compact(row["flops_per_image"], "FLOP"),
      format.compact(row.get("training_flops_per_image"), "FLOP"),
      format.count(row["images"]),
      f"{row['epochs']:,.3g}",
      format.count(row.get("images_per_s")),
      format.duration(row.get("training_s")),
      format.duration(row.get("total_s")),
      _peak_memory(row),
    ]
    body.append(
      blocks.row(row_name(study, row), [blocks.number(c or "\N{EN DASH}") for c in cells])
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
  return el("div", blocks.table(columns, body, "parts"), blocks.note(note))


def _peak_memory(row: Facts) -> str:
  memory = row.get("memory") or {}
  return format.compact(memory.get("peak_device_bytes") or memory.get("peak_rss_bytes"), "B")


def _setup(run: runs.Run, study: Facts) -> Html:
  pool = study.get("data") or {}
  rows = [
    study_page.network(study),
    (
      "Images",
      f"{format.count(study.get('image_size'))} pixels, batches of "
      f"{format.count(study.get('batch_size'))}",
    ),
    (
      "Learnt from",
      f"{pool.get('name')} ({pool.get('split')}), {format.count(pool.get('n'))} radiographs",
    ),
    (
      "Budget of a run",
      f"{format.compact(study.get('budget'), 'FLOP')} of forward passes: "
      "matrix products of everything that the loss runs, teachers and "
      "heads included, gradients not",
    ),
    (
      "Recipes",
      "each method's own (views, heads, learning rate, schedules); what it states "
      "in epochs keeps its share of the run",
    ),
    ("Device", naming.device_name(run) or study_page.device(study)),
  ]
  sets = [
    (
      set_name(study, name),
      {"labelled training images": test_set.get("train"), **(test_set.get("test") or {})},
    )
    for name, test_set in study.get("sets", {}).items()
  ]
  notes = study.get("notes")
  remarks = None
  if isinstance(notes, list) and notes:
    remarks = blocks.folded(
      "Remarks on the data", el("ul", [el("li", str(n)) for n in notes]), open=True
    )
  return el("div", study_page.cards(rows, sets), remarks)


def table(study: Facts) -> str:
  """Terminal tables, one per data set."""
  return "\n\n".join(_terminal_table(study, name) for name in study.get("sets", {}))


def _terminal_table(study: Facts, name: str) -> str:
  heads = comparison_charts.heads(study, name)
  lines = [
    [
      set_name(study, name),
      *(x for h in heads for x in (head_name(h), "gain")),
      "training",
      "memory",
    ]
  ]
  for row in with_status(study):
    cells = [row_name(study, row)]
    for h in heads:
      values = lookup(row, "sets", name, h)
      gain = estimate(lookup(values, "gain"))
      mark = {"above": " +", "below": " -"}.get(verdict(lookup(values, "gain")), "")
      cells += [
        format.estimate(estimate(lookup(values, "trained")), "-"),
        f"{gain.value:+.3f} \N{PLUS-MINUS SIGN} {(gain.high - gain.low) / 2:.3f}{mark}",
      ]
    lines.append([*cells, format.duration(row.get("training_s")), _peak_memory(row)])
  floor = estimate(lookup(study, "sets", name, "floor"))
  floor_cells: list[str] = []
  for h in heads:
    floor_cells += [format.estimate(floor, "-") if h == "linear" else "", ""]
  lines.append(["thumbnail floor", *floor_cells])
  note = (
    "AUROC, 95 % intervals; gain over the random encoder, paired: + or - where its interval "
    "leaves out 0"
  )
  return "\n".join([*terminal.aligned(lines, (0, len(lines) - 2)), note])

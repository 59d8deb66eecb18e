"""Sections below the results: training curves, schedules, views, speed, how to run it again."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cxrjax.report import naming
from cxrjax.report.html import blocks, format, line_chart, pictures
from cxrjax.report.html.element import Html, el
from cxrjax.report.naming import time_axis
from cxrjax.report.run_files import Curve, Run, lookup, number
from cxrjax.report.sections import fact_tables

SCHEDULES = (
  "lr",
  "learning_rate",
  "weight_decay",
  "momentum",
  "teacher_temp",
  "student_temp",
  "temperature",
  "mask_ratio",
)
SPEED = ("images_per_s", "step_ms", "host_ms_per_image")
TITLES = {
  "loss": ("Loss", ""),
  "kl": ("KL, student from teacher", "nats"),
  "feature_std": ("Spread of features", "0 is collapse"),
  "effective_rank": ("Effective rank of features", "dimensions"),
  "grad_norm": ("Gradient norm", ""),
  "lr": ("Learning rate", ""),
  "learning_rate": ("Learning rate", ""),
  "weight_decay": ("Weight decay", ""),
  "called_lung": ("Share of pixels called lung", ""),
  "soft_dice_loss": ("Soft Dice loss", ""),
  "cross_entropy": ("Cross-entropy", "nats"),
  "masked_images": ("Share of images with a mask", ""),
  "momentum": ("Momentum of the moving average", ""),
  "known_labels": ("Share of known labels", ""),
  "teacher_temp": ("Teacher temperature", ""),
  "student_temp": ("Student temperature", ""),
  "images_per_s": ("Throughput", "images/s"),
}
ENTROPIES = {
  "teacher_entropy": "teacher, per image",
  "entropy_teacher": "teacher, per image",
  "batch_entropy": "mean of a batch",
  "student_entropy": "student, per image",
}
CROP_NAMES = {
  "global": ("large crop", "large crops"),
  "local": ("small crop", "small crops"),
  "global_mask": ("lung mask", "lung masks"),
  "patches": ("puzzle piece", "puzzle pieces"),
  "rotated": ("rotated crop", "rotated crops"),
  "source": ("radiograph", "radiographs"),
}
VIEWS, CROPS = 4, 12


def learning(run: Run) -> Html | None:
  """Charts of the loss, signs of collapse, and all metrics but schedules and speed."""
  names = [n for n in run.curves if n not in SCHEDULES and n not in SPEED and not _is_entropy(n)]
  loss = [n for n in ("loss",) if n in names]
  health = [n for n in ("kl", "feature_std", "effective_rank", "grad_norm") if n in names]
  others = [n for n in names if n not in loss + health]
  figures = [_curve(run, n) for n in loss]
  if entropy := _entropy(run):
    figures.append(entropy)
  shown = health + others[:24]
  constant = {n: run.curves[n] for n in shown if _is_constant(run.curves[n])}
  figures += [_curve(run, n) for n in shown if n not in constant]
  return _charts(figures, constant)


def schedules(run: Run) -> Html | None:
  """Learning rate, weight decay, momentum, temperatures: as planned, or else as recorded."""
  planned = run.mapping("schedules")
  figures, constant = [], {}
  for name in dict.fromkeys([*(n for n in SCHEDULES if n in planned or n in run.curves), *planned]):
    curve = _planned(run, planned[name]) if name in planned else run.curves[name]
    if curve is not None and _is_constant(curve):
      constant[name] = curve
    elif curve is not None:
      figures.append(_curve(run, name, curve))
  return _charts(figures, constant)


def _is_constant(curve: Curve) -> bool:
  """Whether a curve has one value throughout, so that it needs no chart."""
  return len(curve.value) > 1 and bool((curve.value == curve.value[0]).all())


def _charts(figures: list[Html], constant: Mapping[str, Curve]) -> Html | None:
  """Charts, and a note on the curves that are constant."""
  values = [
    f"{_title(name)[0].lower()} {format.short(float(curve.value[0]))}"
    for name, curve in constant.items()
  ]
  note = blocks.note(f"Constant: {', '.join(values)}.") if values else None
  if not figures:
    return note
  return el("div", el("div", figures, cls="charts"), note)


def _planned(run: Run, plan: Any) -> Curve | None:
  """A schedule of the whole run, `{"step": [...], "value": [...]}`."""
  steps, values = lookup(plan, "step"), lookup(plan, "value")
  if not isinstance(steps, list) or not isinstance(values, list) or len(steps) != len(values):
    return None
  step = np.array([number(s) for s in steps], np.float64)
  epoch = step * number(run.fact("epochs")) / max(number(run.fact("steps")), 1.0)
  return Curve(step, epoch, np.array([number(v) for v in values], np.float64))


def _curve(run: Run, name: str, curve: Curve | None = None) -> Html:
  curve = curve or run.curves[name]
  x, label = time_axis(curve.step, curve.epoch)
  title, unit = _title(name)
  missing = int((~np.isfinite(curve.value)).sum())
  note = f"{format.count(missing, 'value')} not finite, left out." if missing else ""
  finite = curve.value[np.isfinite(curve.value)]
  log = bool(
    name == "grad_norm" and finite.size and finite.min() > 0 and finite.max() > 30 * finite.min()
  )
  y_range = (0.0, 1.0) if name == "feature_std" else None
  return line_chart.chart(
    title,
    [line_chart.Line(title, x, curve.value)],
    x_label=label,
    unit=unit,
    note=note,
    log=log,
    y_range=y_range,
  )


def _title(name: str) -> tuple[str, str]:
  return TITLES.get(name, (name.replace("_", " ").capitalize(), ""))


def _is_entropy(name: str) -> bool:
  """Whether a metric is an entropy of assignments to prototypes."""
  return "entropy" in name and "cross_entropy" not in name


def _entropy(run: Run) -> Html | None:
  names = sorted(
    (n for n in run.curves if _is_entropy(n)),
    key=lambda n: (list(ENTROPIES).index(n) if n in ENTROPIES else 9, n),
  )
  if not names:
    return None
  lines, label = [], "step"
  for i, name in enumerate(names[:4]):
    curve = run.curves[name]
    x, label = time_axis(curve.step, curve.epoch)
    text = ENTROPIES.get(name, name.replace("_", " "))
    lines.append(line_chart.Line(text, x, curve.value, style=f"s{i + 1}"))
  k = prototypes(run)
  levels = (
    [line_chart.Level(f"ln K = ln {k:,} = {math.log(k):.2f}, uniform", math.log(k), inside=True)]
    if k
    else []
  )
  title = "Entropy of assignments"
  return line_chart.chart(
    title, lines, x_label=label, levels=levels, unit="nats", y_range=(0.0, 0.0)
  )


def prototypes(run: Run) -> int | None:
  """Number of prototypes K (outputs of the head), from the facts or the config."""
  for tree in (run.facts, run.facts.get("model"), run.config.get("method"), run.config):
    k = number(lookup(tree, "prototypes"))
    if math.isfinite(k) and k > 1:
      return int(k)
  return None


def health_warnings(run: Run) -> list[str]:
  """Warnings of collapse, by the last values of the curves."""
  messages = []

  def last(name):
    value = run.curves[name].value if name in run.curves else np.empty(0)
    value = value[np.isfinite(value)]
    return float(value[-1]) if value.size else math.nan

  k = prototypes(run)
  for name in ("teacher_entropy", "entropy_teacher"):
    if k and last(name) > 0.99 * math.log(k):
      messages.append(
        f"The teacher's entropy ends at {last(name):.2f}, close to ln {k:,} = {math.log(k):.2f}: "
        "its output is nearly the same uniform distribution for every image."
      )
  if last("feature_std") < 0.05:
    messages.append(
      f"The spread of the features ends at {last('feature_std'):.3f}: "
      "all images have nearly the same features."
    )
  return messages


def views(run: Run) -> Html | None:
  """A few radiographs as loaded, and their crops in one batch."""
  arrays = run.arrays("views")
  radiographs = {"source": arrays.pop("source")[None]} if "source" in arrays else {}
  groups = {k: v for k, v in (radiographs | arrays).items() if v.ndim >= 4 and v.size}
  if not groups:
    return None
  sizes = []
  for name, crops in groups.items():
    h, w = crops.shape[2:4]
    singular, plural = _crop_names(name)
    text = singular if name == "source" else format.count(len(crops), singular, plural)
    truncation = f", the first {CROPS} shown" if len(crops) > CROPS else ""
    sizes.append(f"{text} of {h} \N{MULTIPLICATION SIGN} {w} pixels{truncation}")
  n = min(VIEWS, *(v.shape[1] for v in groups.values()))
  rows = [_crops_of(groups, i) for i in range(n)]
  return el("div", blocks.note(f"{'; '.join(sizes).capitalize()}."), rows)


def _crops_of(groups: Mapping[str, np.ndarray], i: int) -> Html:
  """A radiograph and its crops, the large ones beside the small ones."""
  large: list[Html] = []
  small: list[Html] = []
  for name, crops in groups.items():
    cells, size = (small, 120) if name in ("local", "patches") else (large, 176)
    for j, crop in enumerate(crops[:CROPS, i], 1):
      text = _crop_names(name)[0] + (f" {j}" if len(crops) > 1 else "")
      picture = pictures.picture(pictures.gray(crop), f"{text}, image {i + 1}", size)
      cells.append(blocks.figure(picture, text))
  columns = f" n{len(large)}" if 2 <= len(large) <= 4 else ""
  grids = [el("div", large, cls=f"large{columns}")] if large else []
  grids += [el("div", small, cls=f"small {_grid_class(small)}")] if small else []
  return el("div", grids, cls="views" if len(grids) > 1 else "views alone")


def _crop_names(name: str) -> tuple[str, str]:
  """Name of a kind of view, singular and plural."""
  plain = name.replace("_", " ")
  return CROP_NAMES.get(name, (f"{plain} crop", f"{plain} crops"))


def _grid_class(items: list[Html]) -> str:
  """CSS class of a grid that holds the items in at most two full rows."""
  return f"n{min(max(math.ceil(len(items) / 2), 2), 6)}"


def speed(run: Run) -> Html | None:
  """Throughput, memory and cost of training."""
  rows = []

  def add(label, text):
    if text:
      rows.append((label, text))

  timing, model = run.mapping("timing"), run.mapping("model")
  rate = number(timing.get("images_per_s"))
  add("Throughput, including data loading", f"{rate:,.4g} images/s" if math.isfinite(rate) else "")
  flops = number(run.fact("model", "flops_per_image"))
  add(
    "Cost of training", f"{format.compact(flops, 'FLOP')} per image" if math.isfinite(flops) else ""
  )
  if math.isfinite(rate * flops):
    add("Arithmetic", format.compact(rate * flops, "FLOP/s"))
  for key, value in timing.items():
    if key == "images_per_s":
      continue
    name = key.removesuffix("_s").replace("_", " ").capitalize()
    name = {
      "Compile": "Compilation",
      "Total": "Whole run",
      "Host ms per image": "Host work per image",
    }.get(name, name)
    if key.endswith("_s"):
      add(name, format.duration(value))
    elif key.startswith("host_ms"):
      add(name, f"{format.short(number(value))} ms")
    else:
      add(name, fact_tables.scalar(value))
  for key, label in (("peak_device_bytes", "accelerator"), ("peak_rss_bytes", "process")):
    add(f"Peak memory, {label}", format.compact(run.fact("memory", key), "B"))
  add("Network", naming.model_name(run))
  add("Parameters", format.count(model.get("parameters")))
  if model.get("trained_parameters") != model.get("parameters"):
    add("Trained parameters, including heads", format.count(model.get("trained_parameters")))
  add("Device", naming.device_name(run))
  if number(run.fact("device", "processes")) > 1:
    add("Processes", format.count(run.fact("device", "processes")))
  figures = [_curve(run, n) for n in SPEED if n in run.curves and len(run.curves[n].value) > 1]
  if not rows and not figures:
    return None
  return el(
    "div",
    el("div", fact_tables.pairs(rows)) if rows else None,
    el("div", figures, cls="charts one") if figures else None,
    cls="split",
  )


def reproduction(run: Run) -> Html | None:
  """The exact command, versions and config of the run."""
  content = []
  if command := run.fact("command"):
    text = " ".join(map(str, command)) if isinstance(command, list) else str(command)
    content.append(el("pre", el("code", text), cls="command"))
    note = (
      "The same command resumes an interrupted run. The same versions on the same data give the "
      "same result."
    )
    if run.fact("method"):  # one run, which has a card
      note += " MODEL_CARD.md, beside this page, summarizes the run for users of the weights."
    content.append(blocks.note(note))
  rows = [(k.capitalize(), _date(run.fact(k))) for k in ("started", "finished") if run.fact(k)]
  rows += fact_tables.rows(run.mapping("machine"))
  rows += [(str(k), str(v)) for k, v in run.mapping("versions").items()]
  if rows:
    content.append(blocks.folded("Dates and versions", fact_tables.pairs(rows)))
  if run.config:
    text = json.dumps(run.config, indent=2, ensure_ascii=False, default=str)
    if len(text) > 60_000:
      text = text[:60_000] + "\n... (the rest is in config.json)"
    content.append(blocks.folded("Config", el("pre", el("code", text))))
  return el("div", content) if content else None


def _date(value: Any) -> str:
  """`2026-03-01 08:00:00 UTC`."""
  try:
    date = datetime.datetime.fromisoformat(value)
  except (TypeError, ValueError):
    return str(value)
  return f"{date:%Y-%m-%d %H:%M:%S} {date.tzname() or ''}".strip()

"""The sections of the page below the results, each from the files it needs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cxrjax.report import charts, pictures, words
from cxrjax.report.about import supervised, time_axis
from cxrjax.report.html import Html, el
from cxrjax.report.run import Curve, Run, lookup, number

SCHEDULES = ("lr", "learning_rate", "weight_decay", "momentum", "teacher_temp", "student_temp",
             "temperature", "mask_ratio")
SPEED = ("images_per_s", "step_ms", "host_ms_per_image")
TITLES = {
  "loss": ("Loss", ""), "kl": ("KL, student from teacher", "nats"),
  "feature_std": ("Spread of features", "0 is collapse"),
  "effective_rank": ("Effective rank of features", "dimensions"),
  "grad_norm": ("Gradient norm", ""), "lr": ("Learning rate", ""),
  "learning_rate": ("Learning rate", ""), "weight_decay": ("Weight decay", ""),
  "momentum": ("Teacher momentum", "EMA"), "teacher_temp": ("Teacher temperature", ""),
  "student_temp": ("Student temperature", ""), "images_per_s": ("Throughput", "images/s"),
}
ENTROPIES = {"teacher_entropy": "teacher, per image", "entropy_teacher": "teacher, per image",
             "batch_entropy": "mean of a batch", "student_entropy": "student, per image"}
LABELS = {"n": "Images", "name": "Source", "class_counts": "Classes", "splits": "All splits",
          "on_bad_image": "Bad images", "shared_patients": "Patients in two parts"}
HEADS_SHOWN, RADIOGRAPHS, VIEWS, CROPS, LISTED = 12, 6, 4, 12, 50


def learning(run: Run) -> Html | None:
  """Loss, collapse health, and every metric that is neither a schedule nor a speed."""
  names = [n for n in run.curves if n not in SCHEDULES and n not in SPEED and "entropy" not in n]
  first = [n for n in ("loss",) if n in names]
  health = [n for n in ("kl", "feature_std", "effective_rank", "grad_norm") if n in names]
  rest = [n for n in names if n not in first + health]
  figures = [_curve(run, n) for n in first]
  if entropy := _entropy(run):
    figures.append(entropy)
  figures += [_curve(run, n) for n in health + rest[:24]]
  return el("div", figures, cls="charts") if figures else None


def schedules(run: Run) -> Html | None:
  """Learning rate, weight decay, momentum, temperatures: as planned, or else as they were."""
  planned = run.fact("schedules")
  planned = planned if isinstance(planned, Mapping) else {}
  figures = []
  for name in dict.fromkeys([*(n for n in SCHEDULES if n in planned or n in run.curves), *planned]):
    curve = _planned(run, planned[name]) if name in planned else run.curves[name]
    if curve is not None:
      figures.append(_curve(run, name, curve))
  return el("div", figures, cls="charts") if figures else None


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
  title, unit = TITLES.get(name, (name.replace("_", " ").capitalize(), ""))
  lost = int((~np.isfinite(curve.value)).sum())
  note = f"{words.count(lost, 'value')} not finite, left out." if lost else ""
  finite = curve.value[np.isfinite(curve.value)]
  log = bool(name == "grad_norm" and finite.size and finite.min() > 0
             and finite.max() > 30 * finite.min())
  y_range = (0.0, 1.0) if name == "feature_std" else None
  return charts.chart(title, [charts.Line(title, x, curve.value)], x_label=label, unit=unit,
                      note=note, log=log, y_range=y_range)


def _entropy(run: Run) -> Html | None:
  names = [n for n in run.curves if "entropy" in n]
  if not names:
    return None
  lines, label = [], "step"
  for i, name in enumerate(names[:4]):
    curve = run.curves[name]
    x, label = time_axis(curve.step, curve.epoch)
    text = ENTROPIES.get(name, name.replace("_", " "))
    lines.append(charts.Line(text, x, curve.value, style=f"s{i + 1}"))
  k = prototypes(run)
  levels = [charts.Level(
    f"ln K = ln {k:,} = {math.log(k):.2f}, uniform", math.log(k), inside=True)] if k else []
  title = "Entropy of assignments"
  return charts.chart(title, lines, x_label=label, levels=levels, unit="nats",
                      y_range=(0.0, 0.0))


def prototypes(run: Run) -> int | None:
  """K, the outputs of the head, from the facts or the config."""
  for tree in (run.facts, run.facts.get("model"), run.config.get("method"), run.config):
    k = number(lookup(tree, "prototypes"))
    if math.isfinite(k) and k > 1:
      return int(k)
  return None


def health_warnings(run: Run) -> list[str]:
  """What the last values say of a collapse."""
  found = []
  def last(name):
    value = run.curves[name].value if name in run.curves else np.empty(0)
    value = value[np.isfinite(value)]
    return float(value[-1]) if value.size else math.nan
  k = prototypes(run)
  for name in ("teacher_entropy", "entropy_teacher"):
    if k and last(name) > 0.99 * math.log(k):
      found.append(
        f"The teacher's entropy ends at {last(name):.2f}, close to ln {k:,} = {math.log(k):.2f}: "
        "it gives nearly the same uniform answer to every image.")
  if last("feature_std") < 0.05:
    found.append(f"The spread of the features ends at {last('feature_std'):.3f}: "
                 "all images have nearly the same features.")
  return found


def views(run: Run) -> Html | None:
  """A few radiographs as the loader gives them, and the crops a batch makes of them."""
  arrays = run.arrays("views")
  groups = {"source": arrays.pop("source")[None] if "source" in arrays else None, **arrays}
  groups = {k: v for k, v in groups.items() if v is not None and v.ndim >= 4 and v.size}
  if not groups:
    return None
  n = min(VIEWS, *(v.shape[1] for v in groups.values()))
  rows = []
  for i in range(n):
    cells: dict[str, list[Html]] = {"large": [], "small": []}
    for name, crops in groups.items():
      place = "small" if name == "local" else "large"
      for j in range(min(len(crops), CROPS)):
        text = "radiograph" if name == "source" else f"{name} {j + 1}"
        cells[place].append(el(
          "figure", pictures.picture(pictures.gray(crops[j, i]), f"{text}, image {i + 1}",
                                     120 if place == "small" else 176), el("figcaption", text)))
    both = [el("div", cells["large"], cls="large") if cells["large"] else None,
            el("div", cells["small"], cls=f"small {_two_rows(cells['small'])}")
            if cells["small"] else None]
    both = [x for x in both if x]
    rows.append(el("div", both, cls="views" if len(both) > 1 else "views alone"))
  sizes = []
  for name, crops in groups.items():
    h, w = crops.shape[2:4]
    text = "radiograph" if name == "source" else f"{words.count(len(crops), f'{name} crop')}"
    more = f", the first {CROPS} shown" if len(crops) > CROPS else ""
    sizes.append(f"{text} of {h} \N{MULTIPLICATION SIGN} {w} pixels{more}")
  text = "; ".join(sizes).capitalize()
  return el("div", el("p", f"{text}.", cls="note"), rows)


def attention(run: Run) -> Html | None:
  """The last layer's attention of the class token, mean of the heads and each head."""
  arrays = run.arrays("attention")
  image, attn = arrays.get("image"), arrays.get("attn")
  if image is None or attn is None or attn.ndim != 4 or not len(attn) or not attn.size:
    return None
  n, heads = min(len(image), len(attn), RADIOGRAPHS), attn.shape[1]
  if not n:
    return None
  labels = arrays.get("label", np.array([""] * n))
  maps = np.nan_to_num(attn[:n].astype(np.float64))
  # In units of what a patch would get if all patches got the same.
  maps = maps / np.maximum(maps.mean((2, 3), keepdims=True), 1e-12)
  mean = maps.mean(1)
  top_mean, top_head = (max(float(np.percentile(m, 99.5)), 1e-6) for m in (mean, maps))
  rows = []
  for i in range(n):
    label = str(labels[i]) if i < len(labels) else ""
    plain = pictures.gray(image[i])
    pair = [
      el("figure", pictures.picture(plain, f"radiograph {i + 1} {label}".strip(), 288),
         el("figcaption", label or f"radiograph {i + 1}")),
      el("figure", pictures.picture(
        pictures.overlay(plain, mean[i] / top_mean), "attention, mean of the heads", 288),
         el("figcaption", f"mean of {words.count(heads, 'head')}"))]
    each = [el("figure", pictures.heat_map(maps[i, h] / top_head, f"attention of head {h + 1}"),
               el("figcaption", f"head {h + 1}"))
            for h in range(min(heads, HEADS_SHOWN))]
    rows.append(el("div", el("div", pair, cls="pair"),
                   el("div", each, cls=f"heads {_two_rows(each)}"), cls="attention"))
  unit = "\N{MULTIPLICATION SIGN} uniform attention"
  scales = el("div", el("span", "Mean of heads"),
              pictures.colour_bar("0", f"{top_mean:.1f}", unit),
              el("span", "Single heads"), pictures.colour_bar("0", f"{top_head:.1f}", unit),
              cls="scales")
  note = el("p", "Attention of the class token to the patches in the last layer; 1 is what each "
            "patch gets when all get the same. It shows where information comes from, not why a "
            "decision was taken.", cls="note")
  return el("div", note, scales, rows)


def _two_rows(items: list[Html]) -> str:
  """The class of a grid that holds the items in at most two full rows."""
  return f"n{min(max(math.ceil(len(items) / 2), 2), 6)}"


def data(run: Run) -> Html | None:
  """Every data set the run used: sizes, classes, patients, splits, where it came from."""
  sets = run.fact("data")
  cards, skipped = [], []
  titles = {"train": "Pretraining", "probe": "Evaluation"}
  if supervised(run):
    titles["train"] = "Training"
  for role, facts in sets.items() if isinstance(sets, Mapping) else ():
    if not isinstance(facts, Mapping):
      continue
    title = titles.get(role, role.replace("_", " ").capitalize())
    split = {k: v for k, v in facts.items() if isinstance(v, Mapping) and "n" in v}
    if split:
      cards.append(el("div", el("h3", title), _parts(split), _pairs(_rows(_common(facts, split))),
                      cls="card wide"))
      skipped += [(f"{title}: {k}", x) for k, v in split.items() for x in v.get("skipped") or []]
    else:
      cards.append(el("div", el("h3", title), _pairs(_rows(facts)), cls="card"))
      skipped += [(title, x) for x in facts.get("skipped") or []]
  if not cards:
    return None
  return el("div", el("div", cards, cls="cards"), _skipped(skipped))


def _parts(split: Mapping[str, Mapping[str, Any]]) -> Html:
  """A table of parts: images, patients, and images of every class."""
  classes = list(dict.fromkeys(c for v in split.values() for c in v.get("class_counts") or {}))
  shown = classes[:8]
  numbers = [k for k in ("n", "patients") if any(v.get(k) for v in split.values())]
  head = [el("th", "Part", scope="col")]
  head += [el("th", {"n": "Images"}.get(k, k.capitalize()), scope="col", cls="num")
           for k in numbers]
  head += [el("th", c, scope="col", cls="num") for c in shown]
  rows = []
  for name, facts in split.items():
    counts = facts.get("class_counts")
    counts = counts if isinstance(counts, Mapping) else {}
    cells = [words.count(facts.get(k)) or "\N{EN DASH}" for k in numbers]
    for c in shown:
      n, total = number(counts.get(c)), number(facts.get("n"))
      share = f" ({100 * n / total:.0f} %)" if total > 0 and math.isfinite(n) else ""
      cells.append([words.count(n) or "\N{EN DASH}", el("small", share)])
    rows.append(el("tr", el("th", name, scope="row"), [el("td", c, cls="num") for c in cells]))
  note = f"The first {len(shown)} of {len(classes)} classes." if len(classes) > len(shown) else None
  table = el("table", el("thead", el("tr", head)), el("tbody", rows), cls="parts")
  return el("div", el("div", table, cls="scroll"), el("p", note, cls="note") if note else None)


def _common(facts: Mapping[str, Any], split: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """What is the same in all parts, or listed part by part where it differs."""
  common = {k: v for k, v in facts.items() if k not in split}
  in_table = {"n", "patients", "class_counts", "classes", "skipped"}
  for key in dict.fromkeys(k for v in split.values() for k in v if k not in in_table):
    values = {name: v[key] for name, v in split.items() if key in v}
    first = next(iter(values.values()))
    if key == "notes":
      lists = [v for v in values.values() if isinstance(v, list)]
      own = common.get("notes")
      notes = [*(own if isinstance(own, list) else []), *(n for v in lists for n in v)]
      common["notes"] = list(dict.fromkeys(map(str, notes)))
    elif all(v == first for v in values.values()):
      common.setdefault(key, first)
    elif not any(isinstance(v, Mapping | list) for v in values.values()):
      common.setdefault(key, values)
  return common


def _rows(facts: Mapping[str, Any]) -> list[tuple[str, Any]]:
  return [(LABELS.get(key, key.replace("_", " ").capitalize()), _value(key, facts[key]))
          for key in _ordered(facts) if facts[key] not in (None, "", [], {})]


def _ordered(facts: Mapping[str, Any]) -> list[str]:
  order = ("name", "source", "split", "n", "patients", "shared_patients", "sites", "classes",
           "class_counts", "splits", "storage", "fingerprint", "notes")
  hidden = {"skipped"} | ({"classes"} if isinstance(facts.get("class_counts"), Mapping) else set())
  return [k for k in order if k in facts and k not in hidden] + [
    k for k in facts if k not in order and k not in hidden]


def _value(key: str, value: Any) -> Any:
  if key == "fingerprint":
    if isinstance(value, Mapping):
      return el("div", [el("div", f"{k} ", el("code", str(v)[:16], title=str(v)))
                        for k, v in value.items()])
    return el("code", str(value)[:16], title=str(value))
  if isinstance(value, Mapping):
    return el("div", [el("div", el("span", str(k)), el("span", _scalar(v), cls="num"))
                      for k, v in list(value.items())[:LISTED]], cls="counts")
  if key == "notes" and isinstance(value, list):
    return el("ul", [el("li", str(v)) for v in value[:LISTED]])
  if isinstance(value, list):
    more = f" and {len(value) - LISTED} more" if len(value) > LISTED else ""
    return ", ".join(_scalar(v) for v in value[:LISTED]) + more
  return _scalar(value)


def _scalar(value: Any) -> str:
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, int):
    return f"{value:,}"
  if isinstance(value, float):
    return words.short(value)
  return "none" if value is None else str(value)


def _skipped(skipped: list[tuple[str, Any]]) -> Html | None:
  if not skipped:
    return None
  items = []
  for role, entry in skipped[:LISTED]:
    pair = entry if isinstance(entry, list) and len(entry) == 2 else [entry, ""]
    items.append(el("li", el("code", str(pair[0])), f" {pair[1]} ", el("small", role)))
  more = len(skipped) - LISTED
  items.append(el("li", f"and {more:,} more") if more > 0 else None)
  title = words.count(len(skipped), "image was skipped", "images were skipped")
  return el("details", el("summary", title), el("ul", items), cls="skipped", open=len(skipped) < 6)


def speed(run: Run) -> Html | None:
  """Throughput and cost."""
  rows = []
  def add(label, text):
    if text:
      rows.append((label, text))
  timing = run.fact("timing") if isinstance(run.fact("timing"), Mapping) else {}
  rate = number(timing.get("images_per_s"))
  add("Throughput, data included", f"{rate:,.4g} images/s" if math.isfinite(rate) else "")
  flops = number(run.fact("model", "flops_per_image"))
  add("Cost of training", f"{words.compact(flops, 'FLOP')} per image"
      if math.isfinite(flops) else "")
  if math.isfinite(rate * flops):
    add("Arithmetic", words.compact(rate * flops, "FLOP/s"))
  for key, value in timing.items():
    if key == "images_per_s":
      continue
    name = key.removesuffix("_s").replace("_", " ").capitalize()
    name = {"Compile": "Compilation", "Total": "Whole run",
            "Host ms per image": "Host work per image"}.get(name, name)
    if key.endswith("_s"):
      add(name, words.duration(value))
    elif key.startswith("host_ms"):
      add(name, f"{words.short(number(value))} ms")
    else:
      add(name, _scalar(value))
  for title, tree in (("Model", run.fact("model")), ("Device", run.fact("device"))):
    for key, value in (tree.items() if isinstance(tree, Mapping) else ()):
      if key != "flops_per_image":
        label = title if key in ("name", "kind") else f"{title}: {key.replace('_', ' ')}"
        add(label, _value(key, value))
    if isinstance(tree, str):
      add(title, tree)
  figures = [_curve(run, n) for n in SPEED if n in run.curves and len(run.curves[n].value) > 1]
  if not rows and not figures:
    return None
  return el("div", el("div", _pairs(rows)) if rows else None,
            el("div", figures, cls="charts one") if figures else None, cls="split")


def again(run: Run) -> Html | None:
  """The exact command, versions and config."""
  parts = []
  if command := run.fact("command"):
    text = " ".join(map(str, command)) if isinstance(command, list) else str(command)
    parts.append(el("pre", el("code", text)))
    parts.append(el("p", "The same command, given again, resumes an interrupted run.", cls="note"))
  rows = [(k.capitalize(), str(run.fact(k))) for k in ("started", "finished") if run.fact(k)]
  versions = run.fact("versions")
  if isinstance(versions, Mapping):
    rows += [(str(k), str(v)) for k, v in versions.items()]
  if rows:
    parts.append(el("details", el("summary", "Dates and versions"), _pairs(rows), open=True))
  if run.config:
    text = json.dumps(run.config, indent=2, ensure_ascii=False, default=str)
    if len(text) > 60_000:
      text = text[:60_000] + "\n... (the rest is in config.json)"
    parts.append(el("details", el("summary", "Config"), el("pre", el("code", text))))
  return el("div", parts) if parts else None


def _pairs(rows: Iterable[tuple[str, Any]]) -> Html:
  return el("dl", [el("div", el("dt", k), el("dd", v)) for k, v in rows])

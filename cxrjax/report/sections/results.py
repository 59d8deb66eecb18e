"""Results of a run: the summary in words, the table of metrics, and charts over training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cxrjax.report import naming
from cxrjax.report.html import format, line_chart
from cxrjax.report.html.element import Html, el
from cxrjax.report.html.format import Estimate
from cxrjax.report.naming import STYLES
from cxrjax.report.run_files import FLOOR, RANDOM, TRAINED, Run, lookup, number
from cxrjax.report.sections import classification, segmentation
from cxrjax.report.terminal import ORDER, sort_metrics

CHARTS_SHOWN = 3  # charts over training that are always shown; further ones are folded


def summary(run: Run) -> Html:
  """Summary in words: the network, its training data, duration and performance."""
  chosen = run.fact("chosen", "evaluators") or []
  paragraphs = []
  for name in sorted(run.evaluators(), key=lambda name: name not in chosen)[:3]:
    evaluated = run.only(name)
    describe = _describer(evaluated)
    paragraphs.append(el("p", describe(evaluated, name)))
  if paragraphs:
    note = "In brackets, 95 % intervals: how sure the numbers are."
    paragraphs.append(el("p", note, cls="note"))
  else:
    paragraphs.append(el("p", "No evaluation has been written yet."))
  return el("div", el("p", _training_sentence(run)), paragraphs, cls="summary")


def _describer(run: Run) -> Callable[[Run, str], list[Any]]:
  """Selects the function that describes performance, by the metrics of the evaluator."""
  if segmentation.has_masks(run):
    return segmentation.describe
  if classification.has_predictions(run):
    return classification.describe
  return _describe_probes


def _training_sentence(run: Run) -> list[str | Html]:
  """`A ViT-S/16 learnt from 17,702 radiographs of X without their labels, by DINO, ...`."""
  model = naming.model_name(run) or "encoder"
  size = format.compact(run.fact("model", "parameters"))
  train = run.fact("data", "train")
  running = naming.status(run)[0] == "running"
  text: list[str | Html] = [
    el("b", f"{_article(model).capitalize()} {model}"),
    f" ({size} parameters)" if size else "",
    " is learning " if running else " learnt ",
    *_objective(run),
    "from ",
    el("b", format.count(lookup(train, "n"), "radiograph") or "radiographs"),
  ]
  if name := lookup(train, "name"):
    text += [" of ", el("span", naming.source_name(name), cls="name", title=name)]
    if lookup(train, "split"):
      text.append(f" ({lookup(train, 'split')})")
  method = naming.method_name(run)
  if method and not naming.supervised(run):
    text.append(" without their labels" + f", by the method {method}")
  elif method and naming.method(run) not in naming.PLAIN:
    text.append(f", by the method {method}")
  if weights := lookup(run.fact("init"), "path"):
    kind = str(lookup(run.fact("init"), "source") or "")
    kind = kind.upper() if 0 < len(kind) <= 5 else kind
    text += [
      ", starting from ",
      el("span", naming.source_name(weights), cls="name", title=weights),
      f" ({kind})" if kind else "",
    ]
  text.append(_training_length(run))
  duration = format.duration(naming.total_seconds(run))
  if duration:
    text.append(f", in {duration}")
  if device := naming.device_name(run):
    text.append(f" on {device}")
  text.append(".")
  return text


def _objective(run: Run) -> list[str | Html]:
  """`to tell normal and pneumonia apart `; empty where no labels are learnt from."""
  if naming.method(run) == "segment":
    return [el("b", "to outline the lungs"), " "]
  names = run.fact("data", "train", "classes")
  if not naming.supervised(run) or not isinstance(names, list) or not names:
    return []
  if run.fact("data", "train", "exclusive") is False:
    findings = names if len(names) < 5 else [format.count(len(names), "finding")]
    return [el("b", f"to find {format.join_words(findings)}"), " "]
  classes = names if len(names) < 5 else [format.count(len(names), "class", "classes")]
  return [el("b", f"to tell {format.join_words(classes)} apart"), " "]


def _training_length(run: Run) -> str:
  """`, for 30 epochs (3,000 steps of 64 images)`; the steps so far if unfinished."""
  done, total = naming.last_step(run), number(run.fact("steps"))
  batch = format.count(run.fact("batch_size"), "image")
  batches = f" of {batch}" if batch else ""
  if done and done < total and naming.status(run)[0] != "finished":
    return f", for {format.count(done)} of {format.count(total, 'step')}{batches}"
  steps = format.count(total if math.isfinite(total) else done, "step")
  epochs = number(run.fact("epochs"))
  if math.isfinite(epochs):
    return f", for {_epochs(epochs)}" + (f" ({steps}{batches})" if steps else "")
  return f", for {steps}{batches}" if steps else ""


def _describe_probes(run: Run, evaluator: str) -> list[Any]:
  latest = run.latest()
  names = headline(latest)
  if not names:
    return ["No AUROC could be computed on the evaluation data."]
  trained = latest.get(TRAINED, {})
  if not trained:
    return ["The trained encoder has not been evaluated yet; ", _references(latest, names), "."]
  n = trained[names[0]].n
  facts = run.fact("data", evaluator)
  facts = facts if isinstance(facts, Mapping) else {}
  name = facts.get("name") or lookup(facts, "test", "name")
  text: list[Any] = ["On "]
  text.append(format.count(n, "held-out radiograph") if n else "held-out radiographs")
  if name:
    text += [" of ", el("span", naming.source_name(name), cls="name", title=name)]
  text.append(", its frozen features reach an AUROC of ")
  for i, metric in enumerate(names):
    text += [
      " and " if i else "",
      el("b", format.estimate(trained[metric]), cls="nowrap"),
      f" {_by_head(metric)}",
    ]
  text.append(" (0.5 is guessing, 1 perfect)")
  references = _references(latest, names)
  if references:
    text += [". For comparison, ", references]
  text.append(". ")
  text += _comparison(latest, names)
  return text


def _references(latest: Mapping[str, Mapping[str, Estimate]], names: list[str]) -> list[str | Html]:
  text: list[str | Html] = []
  random = latest.get(RANDOM, {})
  for metric in (m for m in names if m in random):
    text += [
      " and " if text else "the same encoder before training reaches ",
      el("span", format.estimate(random[metric]), cls="nowrap"),
      " with kNN" if metric.startswith("knn") else " with the probe",
    ]
  if floor := floor_auroc(latest):
    text += [
      ", and " if text else "",
      "a linear model of raw thumbnails (the floor) ",
      "" if text else "reaches ",
      el("span", format.estimate(floor), cls="nowrap"),
    ]
  return text


def _comparison(latest: Mapping[str, Mapping[str, Estimate]], names: list[str]) -> list[str]:
  """Whether intervals overlap; a statement about these images, not about the method."""
  trained, random = latest.get(TRAINED, {}), latest.get(RANDOM, {})
  metric = next((m for m in names if m.startswith("linear") and m in random), None)
  metric = metric or next((m for m in names if m in random), None)
  estimate, floor = trained.get(metric or names[-1]), floor_auroc(latest)
  references = [
    (random.get(metric) if metric else None, "that of the encoder before training"),
    (floor, "that of the thumbnail floor"),
  ]
  labels_by_relation: dict[str, list[str]] = {}
  for reference, label in references:
    if estimate and reference and (relation := _compare_intervals(estimate, reference)):
      labels_by_relation.setdefault(relation, []).append(label)
  clauses = [
    f"{relation} {' and '.join(labels)}" for relation, labels in labels_by_relation.items()
  ]
  if not clauses:
    return []
  subject = _by_head(metric or names[-1]).removeprefix("with a ").removeprefix("with ")
  caveat = "; which of the two is better is open" if "overlaps" in labels_by_relation else ""
  clauses.sort(key=lambda text: text.startswith("overlaps"))
  return [f"The trained encoder's interval ({subject}) {' but '.join(clauses)}{caveat}."]


def _compare_intervals(a: Estimate, b: Estimate) -> str:
  if not all(math.isfinite(v) for v in (a.low, a.high, b.low, b.high)):
    return ""
  if a.low > b.high:
    return "lies above"
  return "lies below" if a.high < b.low else "overlaps"


def headline(latest: Mapping[str, Mapping[str, Estimate]]) -> list[str]:
  """Names of the main AUROCs: kNN with the largest k (fixed, not the best) and linear probe."""
  metrics = latest.get(TRAINED) or latest.get(RANDOM) or {}
  defined = [
    m
    for m in sort_metrics(set(metrics))
    if format.parts(m)[1:] == ("auroc", "") and math.isfinite(metrics[m].value)
  ]
  knn = [m for m in defined if m.startswith("knn")]
  linear = [m for m in defined if m.startswith("linear")]
  return knn[-1:] + linear[:1] or defined[:1]


def floor_auroc(latest: Mapping[str, Mapping[str, Estimate]]) -> Estimate | None:
  """The thumbnail baseline's AUROC, whatever its head is called."""
  aurocs = [
    e
    for name, e in latest.get(FLOOR, {}).items()
    if name.rpartition("/")[2] == "auroc" and math.isfinite(e.value)
  ]
  return aurocs[0] if aurocs else None


def _by_head(metric: str) -> str:
  head = metric.split("/")[0]
  if head.startswith("knn"):
    return f"with k-nearest neighbours (k = {head[3:].lstrip('_')})"
  return {"linear": "with a linear probe"}.get(head, f"with {format.head(head).lower()}")


def _article(word: str) -> str:
  return "an" if word[:1].lower() in "aeiou" else "a"


def _epochs(n: float) -> str:
  text = f"{n:,.0f}" if n >= 100 or n == round(n) else f"{n:.3g}" if n >= 1 else f"{n:.2g}"
  return f"{text} epoch" + ("" if n == 1 else "s")


def table(run: Run) -> Html:
  """Metrics (rows) by encoder (columns) with intervals, the best of each row in bold."""
  latest = run.latest()
  first = run.first()
  encoders = [e for e in ORDER if latest.get(e)] + sorted(e for e in latest if e not in ORDER)
  names = sort_metrics({name for e in encoders for name in latest[e]})
  overall = [name for name in names if not format.of_class(name)]
  leading = {format.parts(name)[0] for name in headline(latest)}
  folded = []
  for name in overall:
    prefix = format.parts(name)[0]
    if prefix.startswith(("knn", "whitened")) and prefix not in leading:
      folded.append(name)
  parts = [_table([name for name in overall if name not in folded], encoders, latest, first)]
  if folded:
    parts.append(
      el("details", el("summary", "Other neighbours"), _table(folded, encoders, latest, first))
    )
  if classes := [name for name in names if format.of_class(name)]:
    parts.append(el("details", el("summary", "Per class"), _table(classes, encoders, latest, {})))
  estimates = [e for metrics in latest.values() for e in metrics.values()]
  methods = sorted({e.method for e in estimates if e.method and e.method != "none"})
  note = ["In brackets, 95 % confidence intervals. Bold: the best value of a row."]
  if methods:
    note.append(" Intervals: " + "; ".join(methods) + ".")
  reasons = sorted({e.undefined for e in estimates if e.undefined})
  if reasons:
    note.append(" n/a: " + "; ".join(reasons[:5]) + ".")
  if first:
    note.append(
      el(
        "span",
        " First: the trained encoder's earliest evaluation, at step "
        f"{format.count(_first_step(run))}.",
        cls="wide",
      )
    )
  parts.append(el("p", note, cls="note"))
  return el("div", parts)


def _first_step(run: Run) -> int:
  return next(e.step for e in run.evaluations if e.encoder == TRAINED)


def _table(names, encoders, latest, first) -> Html:
  head = [el("th", "Metric", scope="col")]
  head += [
    el(
      "th",
      el("i", cls=f"key {STYLES.get(e, 's4')}"),
      format.encoder(e, names),
      scope="col",
      cls="num",
    )
    for e in encoders
  ]
  if first:
    head.append(el("th", "First", scope="col", cls="num quiet"))
  bounds = [
    v
    for e in encoders
    for m in names
    if _is_unit_score(m, latest[e].get(m))
    for v in (latest[e][m].value, latest[e][m].low)
    if math.isfinite(v)
  ]
  comparable = bool(bounds)
  axis_start = 0.5 if bounds and min(bounds) >= 0.5 else 0.0
  if comparable:
    head.append(el("th", range_axis(axis_start), scope="col", cls="forest"))
  rows, group = [], None
  span = len(encoders) + 1 + bool(first) + comparable
  for name in names:
    prefix, measure, variant = format.parts(name)
    if prefix and prefix != group:
      rows.append(
        el("tr", el("th", format.head(prefix), scope="rowgroup", colspan=span), cls="group")
      )
      group = prefix
    values = {e: latest[e][name] for e in encoders if name in latest[e]}
    finite = [v.value for v in values.values() if math.isfinite(v.value)]
    best_of = min if measure in format.LOWER_IS_BETTER else max
    best = best_of(finite) if len(set(finite)) > 1 else math.nan
    cells = [el("th", format.measure(f"{measure}/{variant}" if variant else measure), scope="row")]
    for e in encoders:
      cells.append(_cell(values.get(e), best))
    if first:
      cells.append(_cell(first.get(name), math.nan, "quiet"))
    if comparable:
      shown = {format.encoder(e, names): v for e, v in values.items()}
      cells.append(el("td", forest(name, shown, axis_start, list(values)), cls="forest"))
    rows.append(el("tr", cells))
  return el(
    "div", el("table", el("thead", el("tr", head)), el("tbody", rows), cls="results"), cls="scroll"
  )


def _cell(e: Estimate | None, best: float, cls: str = "") -> Html:
  if e is None:
    return el("td", "\N{EN DASH}", cls=f"num none {cls}".strip())
  value = format.decimal(e.value)
  bounds = format.interval(e)
  method = e.method if e.method != "none" else ""
  title = ", ".join(x for x in (format.count(e.n, "image"), method, e.undefined) if x) or None
  strong = e.value == best
  return el(
    "td",
    el("b" if strong else "span", value),
    " " if bounds else None,
    el("small", f"({bounds})") if bounds else None,
    cls=f"num {'best ' if strong else ''}{cls}".strip(),
    title=title,
  )


def _is_unit_score(name: str, e: Estimate | None) -> bool:
  return e is not None and format.parts(name)[1] not in format.LOWER_IS_BETTER and 0 <= e.value <= 1


FOREST = 150


def forest(
  name: str, values: Mapping[str, Estimate], start: float, encoders: Sequence[str]
) -> Html | None:
  """Draws intervals of a metric on one scale from `start` to 1, labelled as in `values`."""
  shown = [
    (label, estimate, STYLES.get(encoder, "s4"))
    for (label, estimate), encoder in zip(values.items(), encoders, strict=True)
    if _is_unit_score(name, estimate)
  ]
  if not shown:
    return None
  height = 6 + 7 * len(shown)
  marks = [
    el("line", x1=x, x2=x, y1=0, y2=height, cls="grid") for x in np.linspace(4, FOREST - 4, 5)
  ]

  def x_of(v: float) -> str:
    return f"{4 + (FOREST - 8) * min(max((v - start) / (1 - start), 0.0), 1.0):.1f}"

  for i, (label, v, style) in enumerate(shown):
    y = 6.5 + 7 * i
    if math.isfinite(v.low) and math.isfinite(v.high):
      marks.append(el("line", x1=x_of(v.low), x2=x_of(v.high), y1=y, y2=y, cls=f"whisker {style}"))
    marks.append(
      el(
        "circle",
        el("title", f"{label}: {format.estimate(v)}"),
        cx=x_of(v.value),
        cy=y,
        r=2.8,
        cls=f"dot {style}",
      )
    )
  return el(
    "svg", marks, viewbox=f"0 0 {FOREST} {height}", width=FOREST, height=height, aria_hidden="true"
  )


def range_axis(start: float) -> Html:
  """Axis of the forest plots, from `start` to 1."""
  marks = [
    el("text", label, x=x, y=10, cls="tick", text_anchor=anchor)
    for label, x, anchor in (
      (f"{start:g}", 4, "start"),
      (f"{(1 + start) / 2:g}", FOREST / 2, "middle"),
      ("1", FOREST - 4, "end"),
    )
  ]
  return el("svg", marks, viewbox=f"0 0 {FOREST} 13", width=FOREST, height=13, aria_hidden="true")


def over_time(run: Run) -> Html | None:
  """One chart per metric that was evaluated more than once during training."""
  trained = [e for e in run.evaluations if e.encoder == TRAINED]
  if len({e.step for e in trained}) < 2:
    return None
  latest = run.latest()
  names = sort_metrics({m for e in trained for m in e.metrics if not format.of_class(m)})
  main = headline(latest)
  further = [m for m in names if m not in main]
  chosen = main + [m for m in further if not m.startswith("knn")] + further
  chosen = list(dict.fromkeys(chosen))
  figures = []
  for name in chosen[:6]:
    measured = [e for e in trained if name in e.metrics]
    if len(measured) < 2:
      continue
    x, label = naming.time_axis(
      np.array([e.step for e in measured], np.float64),
      np.array([e.epoch for e in measured], np.float64),
    )
    values = [e.metrics[name] for e in measured]
    line = line_chart.Line(
      "Trained",
      x,
      np.array([v.value for v in values]),
      np.array([v.low for v in values]),
      np.array([v.high for v in values]),
      points=True,
    )
    levels = []
    for encoder in (RANDOM, FLOOR):
      level = latest.get(encoder, {}).get(name)
      if level is None and encoder == FLOOR and name in main:
        level = floor_auroc(latest)
      if level is not None:
        levels.append(
          line_chart.Level(
            format.encoder(encoder, names),
            level.value,
            level.low,
            level.high,
            style=STYLES[encoder],
          )
        )
    figures.append(line_chart.chart(format.title(name), [line], x_label=label, levels=levels))
  if not figures:
    return None
  others = figures[CHARTS_SHOWN:]
  return el(
    "div",
    el("div", figures[:CHARTS_SHOWN], cls="charts"),
    el("details", el("summary", "Other measures while training"), el("div", others, cls="charts"))
    if others
    else None,
  )

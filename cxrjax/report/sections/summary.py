"""Summary of a run in words: the network, its training data, duration and performance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from cxrjax.report import naming
from cxrjax.report.html import blocks, format
from cxrjax.report.html.element import Html, el
from cxrjax.report.html.format import Estimate
from cxrjax.report.run_files import FLOOR, RANDOM, TRAINED, Run, lookup, number
from cxrjax.report.sections import classification, segmentation
from cxrjax.report.terminal import sort_metrics


def section(run: Run) -> Html:
  """Summary in words: the network, its training data, duration and performance."""
  chosen = run.fact("chosen", "evaluators") or []
  paragraphs = []
  for name in sorted(run.evaluators(), key=lambda name: name not in chosen)[:3]:
    evaluated = run.only(name)
    describe = _describer(evaluated)
    paragraphs.append(el("p", describe(evaluated, name)))
  if paragraphs:
    note = "95 % intervals in brackets."
    paragraphs.append(blocks.note(note))
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
    text.append(f" without their labels, by {method}")
  elif method and naming.method(run) not in naming.PLAIN:
    text.append(f", by {method}")
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
  return [el("b", f"to classify {format.join_words(classes)}"), " "]


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
  facts = run.mapping("data", evaluator)
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
  text.append(" (0.5 is guessing, 1 is perfect)")
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
      "a linear model on raw thumbnails (the floor) ",
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
  caveat = "; it is open which of the two is better" if "overlaps" in labels_by_relation else ""
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
    if format.split(m)[1:] == ("auroc", "") and math.isfinite(metrics[m].value)
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

"""Model card of a run (`MODEL_CARD.md`): the network, its intended use, results and limits.

Follows the layout of Hugging Face's model cards; a pure function of the workdir, like the page.

References:
  Mitchell et al. 2019, Model Cards for Model Reporting (arXiv 1810.03993);
  Mongan et al. 2020, Checklist for Artificial Intelligence in Medical Imaging (CLAIM).
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cxrjax.report import naming
from cxrjax.report.html import format
from cxrjax.report.html.element import Html, join
from cxrjax.report.run_files import TRAINED, Run, estimate, lookup, number
from cxrjax.report.sections import (
  classification,
  details,
  fact_tables,
  features,
  segmentation,
  summary,
)
from cxrjax.report.terminal import ORDER, sort_metrics

NAME = "MODEL_CARD.md"
HEX = 16  # leading digits of a fingerprint that are shown
MAX_ITEMS = 30  # most entries of a list: classes, notes, groups
# Names of tasks and metrics on the Hugging Face hub.
TASKS = {
  "classifier": "image-classification",
  "segmenter": "image-segmentation",
  "encoder": "image-feature-extraction",
}
HUB_METRICS = {
  "auroc": "roc_auc",
  "accuracy": "accuracy",
  "f1": "f1",
  "dice": "dice",
  "iou": "mean_iou",
}
USES = {
  "classifier": "Research on classifying {classes} in chest radiographs like those it learnt "
  "from, and as a starting point for other tasks on chest radiographs.",
  "segmenter": "Research on lung segmentation in chest radiographs like those it learnt from.",
  "encoder": "A starting point for research on chest radiographs: fine-tuning with few labels, or "
  "frozen features with a linear probe or nearest neighbours.",
}


def kind(run: Run) -> str:
  """The kind of network that a run trains: `classifier`, `segmenter` or `encoder`."""
  if not naming.supervised(run):
    return "encoder"
  masks = segmentation.has_masks(run) or run.fact("learns_from") == "masks"
  return "segmenter" if masks else "classifier"


def render(run: Run) -> str:
  """Renders the card as Markdown, even if files of the workdir are missing or broken."""
  sections: list[tuple[str, Callable[[Run], list[str]]]] = [
    ("", _opening),
    ("Model", _model),
    ("Intended use", _uses),
    ("Training data", _training_data),
    ("Test data", _test_data),
    ("Results", _results),
    ("Subgroups", _subgroups),
    ("Where it looks", _saliency),
    ("Limits", _limits),
    ("How to reproduce it", _reproduction),
  ]
  blocks = _guard(_front_matter, run, ["---\nlibrary_name: cxrjax\n---"])
  for heading, make in sections:
    content = _guard(make, run)
    blocks += [*([f"## {heading}"] if heading and content else []), *content]
  return "\n\n".join(blocks) + "\n"


def _guard(make: Callable[[Run], list[str]], run: Run, otherwise: Sequence[str] = ()) -> list[str]:
  """Runs `make`; an error becomes a note, so that one broken fact does not cost the card."""
  try:
    return make(run)
  except Exception as error:
    return [
      *otherwise,
      _text(f"This section could not be written ({type(error).__name__}: {error})."),
    ]


def _opening(run: Run) -> list[str]:
  """Title, status and summary in words."""
  status, reason = naming.status(run)
  notice = []
  if status != "finished":
    cause = f": {_text(reason)}" if reason else ""
    notice = [f"**This run is {status}{cause}; the card covers what exists so far.**"]
  return [
    f"# {_text(naming.title(run))}",
    f"*{naming.DISCLAIMER}*",
    *notice,
    *_paragraphs(summary.section(run)),
  ]


def _front_matter(run: Run) -> list[str]:
  """YAML front matter for the hub; strings are quoted as in JSON, which YAML reads."""
  task = TASKS[kind(run)]
  tags = [
    "chest-x-ray",
    "radiology",
    "jax",
    "flax",
    *(["self-supervised-learning"] if not naming.supervised(run) else []),
    naming.method(run).replace("_", "-"),
  ]
  lines = [
    "---",
    "license: unknown  # of the weights: yours to choose, within the terms of the data",
    "library_name: cxrjax",
    f"pipeline_tag: {task}",
    "tags:",
    *(f"- {json.dumps(tag)}" for tag in dict.fromkeys(filter(None, tags))),
  ]
  datasets = list(_hub_metrics(run))
  if datasets:
    lines += ["model-index:", f"- name: {json.dumps(naming.title(run))}", "  results:"]
  for dataset, metrics in datasets:
    lines += [
      "  - task:",
      f"      type: {task}",
      "    dataset:",
      f"      name: {json.dumps(dataset)}",
      f"      type: {json.dumps(dataset)}",
      "    metrics:",
    ]
    for name, value in metrics:
      lines += [
        f"    - type: {HUB_METRICS[format.split(name)[1]]}",
        f"      name: {json.dumps(format.title(name))}",
        f"      value: {value:.4f}",
      ]
  return ["\n".join([*lines, "---"])]


def _hub_metrics(run: Run) -> Iterable[tuple[str, list[tuple[str, float]]]]:
  """Yields the data set of every evaluator and the metrics that the hub has names for."""
  # The set that chose the checkpoint is left out: its scores are optimistic.
  chosen = run.fact("chosen", "evaluators")
  for evaluator in chosen if isinstance(chosen, list) and chosen else run.evaluators():
    metrics = run.only(str(evaluator)).latest().get(TRAINED, {})
    is_encoder = kind(run) == "encoder"
    names = summary.headline({TRAINED: metrics}) if is_encoder else sort_metrics(set(metrics))
    values = []
    for name in names:
      _, measure, variant = format.split(name)
      value = metrics[name].value
      if measure in HUB_METRICS and not variant and math.isfinite(value):
        values.append((name, value))
    if values:
      yield _dataset_name(run, evaluator), values


def _dataset_name(run: Run, evaluator: str) -> str:
  facts = run.fact("data", evaluator)
  part = lookup(facts, "test") or facts
  name, split = lookup(part, "name") or lookup(facts, "name"), lookup(part, "split")
  return f"{name} ({split})" if name and split else str(name or evaluator)


def _model(run: Run) -> list[str]:
  config = run.config
  size = number(lookup(config, "views", "global_size"))
  batch_size = run.fact("batch_size")
  training = [
    format.count(run.fact("steps"), "step"),
    f"{format.count(batch_size, 'image')} per step" if batch_size else "",
    format.duration(naming.total_seconds(run)),
    naming.device_name(run),
  ]
  rows = [
    ("Method", naming.method_name(run)),
    ("Network", naming.model_name(run)),
    ("Parameters", format.count(run.fact("model", "parameters"))),
    ("Input", f"one gray channel, {size:.0f} x {size:.0f} pixels" if math.isfinite(size) else ""),
    ("Output", _output(run)),
    ("Started from", run.fact("init", "summary") or run.fact("init", "path") or ""),
    ("Trained", ", ".join(filter(None, training))),
    ("cxrjax", run.fact("versions", "cxrjax") or ""),
  ]
  return [_table(["", ""], [[k, str(v)] for k, v in rows if v])]


def _output(run: Run) -> str:
  if kind(run) == "encoder":
    return "a feature vector of the image and one of each patch"
  if kind(run) == "segmenter":
    return "the probability that a pixel is lung, for every pixel"
  names = run.fact("data", "train", "classes")
  return f"the probability of each of: {_listing(names)}" if isinstance(names, list) else ""


def _listing(items: Sequence[Any]) -> str:
  texts = [str(item) for item in items]
  if len(texts) <= MAX_ITEMS:
    return format.join_words(texts)
  return f"{', '.join(texts[:MAX_ITEMS])} and {len(texts) - MAX_ITEMS} more"


def _uses(run: Run) -> list[str]:
  names = run.fact("data", "train", "classes")
  classes = _listing(names) if isinstance(names, list) else "classes"
  return [
    _text(USES[kind(run)].format(classes=classes)),
    "Out of scope:",
    "- diagnosis, triage, or any other decision about a patient;\n"
    "- images unlike the training data: other ages, views, devices or hospitals, unless tested "
    "there first;\n"
    "- identifying patients. Features may contain what identifies a patient: treat them, and the "
    "weights, as carefully as the radiographs themselves.",
  ]


def _training_data(run: Run) -> list[str]:
  return _data_table([("training", run.fact("data", "train"))])


def _test_data(run: Run) -> list[str]:
  """Data of the evaluators, without the run's own training data, which is listed above."""
  trained_on = run.fact("data", "train", "fingerprint")
  return _data_table(
    [
      (name, facts)
      for name, facts in _evaluation_splits(run)
      if not (name.endswith(SPLIT_NAMES["train"]) and facts.get("fingerprint") == trained_on)
    ]
  )


SPLIT_NAMES = {"train": "labelled training split", "val": "validation split", "test": "test split"}


def _evaluation_splits(run: Run) -> Iterable[tuple[str, Any]]:
  """Yields name and facts of every split of the data of every evaluator."""
  for name, facts in run.mapping("data").items():
    if name == "train" or not isinstance(facts, Mapping):
      continue
    splits = fact_tables.splits_of(facts)
    if not splits:
      yield name, facts
    for split, of_split in splits.items():
      shared = {key: facts.get(key) for key in ("name", "fingerprint")}
      yield f"{name}, {SPLIT_NAMES.get(split, split)}", {**shared, **of_split}


def _data_table(datasets: Sequence[tuple[str, Any]]) -> list[str]:
  """A table of data sets (source, images, patients, classes, fingerprint), then their notes."""
  rows, notes = [], []
  for name, facts in datasets:
    if not isinstance(facts, Mapping):
      continue
    counts = facts.get("class_counts")
    counts = counts if isinstance(counts, Mapping) else {}
    source = naming.source_name(facts.get("name"))
    rows.append(
      [
        name,
        f"{source} ({facts['split']})" if facts.get("split") else source,
        format.count(facts.get("n")),
        format.count(facts.get("patients")) or "unknown",
        _listing([f"{k} {format.count(v)}" for k, v in counts.items()]),
        str(facts.get("fingerprint") or "")[:HEX],
      ]
    )
    set_notes = facts.get("notes")
    notes += [str(n) for n in set_notes] if isinstance(set_notes, list) else []
    if skipped := facts.get("skipped"):
      notes.append(f"{name}: {format.count(len(skipped), 'image')} could not be used")
  if not rows:
    return []
  header = [
    "",
    "source (split)",
    "images",
    "patients",
    "images with each label",
    "content fingerprint",
  ]
  unique_notes = list(dict.fromkeys(notes))
  blocks = [_table(header, rows)]
  if unique_notes:
    items = [f"- {_text(n)}" for n in unique_notes[:MAX_ITEMS]]
    if len(unique_notes) > MAX_ITEMS:
      items.append(f"- and {len(unique_notes) - MAX_ITEMS} more notes, in run.json")
    blocks.append("\n".join(items))
  return blocks


def _results(run: Run) -> list[str]:
  """Metrics with intervals, a table for each evaluator."""
  blocks = []
  for evaluator in run.evaluators():
    latest = run.only(evaluator).latest()
    encoders = [e for e in ORDER if latest.get(e)]
    names = sort_metrics({m for e in encoders for m in latest[e]})
    if not names:
      continue
    rows = [
      [
        format.title(m),
        *(format.estimate(latest[e][m]) if m in latest[e] else "" for e in encoders),
      ]
      for m in names
    ]
    methods = sorted(
      {e.method for values in latest.values() for e in values.values()} - {"", "none"}
    )
    caption = f"On {_dataset_name(run, evaluator)}. In brackets, 95 % intervals"
    caption += f" ({'; '.join(methods)})." if methods else "."
    facts = run.fact("evaluation", evaluator, TRAINED)
    threshold_rule = lookup(facts, "threshold_for") or lookup(facts, "linear", "threshold_for")
    if threshold_rule:
      measure, _, where = str(threshold_rule).partition(" ")
      caption += f" Thresholds: the best {format.measure(measure).lower()} {where}."
    blocks += [
      f"### {_text(evaluator)}",
      _text(caption + naming.judged_once(run, evaluator)),
      _table(["", *(format.encoder(e, names) for e in encoders)], rows),
    ]
  return blocks


def _subgroups(run: Run) -> list[str]:
  """Metrics by age, sex, view and site, for every evaluator that knows them."""
  blocks = []
  for evaluator in run.evaluators():
    facts = run.fact("evaluation", evaluator, TRAINED)
    rows, notes = lookup(facts, "subgroups"), lookup(facts, "subgroup_remarks")
    if rows:
      header = [
        "by",
        "group",
        "class",
        "images",
        "with it",
        *map(format.measure, classification.COLUMNS),
      ]
      body = [
        [
          *(str(r.get(k)) for k in ("by", "group", "class")),
          *(format.count(r.get(k)) for k in ("n", "positives")),
          *(format.estimate(estimate(r.get(m))) for m in classification.COLUMNS),
        ]
        for r in rows
      ]
      blocks += [f"### {_text(evaluator)}", _table(header, body)]
    if notes:
      blocks.append(_text(f"{evaluator}, subgroups not evaluated: {'; '.join(map(str, notes))}."))
  return blocks


def _saliency(run: Run) -> list[str]:
  """Share of the maps that lies on the lungs, and what features hold beside the label."""
  items = []
  for method, groups in run.mapping("look", "lungs").items():
    ratio = estimate(lookup(groups, "all", "energy_ratio"))
    if math.isfinite(ratio.value):
      items.append(
        f"{method}: {format.estimate(ratio)} times as much of the map lies on the lungs as "
        "by chance"
      )
  for row in run.items("features", "shared"):
    share, chance = estimate(row), number(lookup(row, "chance"))
    if math.isfinite(share.value) and math.isfinite(chance):
      items.append(
        f"{row.get('by')}: shared by {format.estimate(share)} of the nearest training images, "
        f"against {format.decimal(chance)} at random"
      )
  return ["\n".join(f"- {_text(text)}" for text in items)] if items else []


def _limits(run: Run) -> list[str]:
  """Caveats that follow from the facts: what the numbers do not show."""
  datasets, train = run.mapping("data"), run.mapping("data", "train")
  test_sets = {n: lookup(f, "test") or f for n, f in datasets.items() if n != "train"}
  sources = (lookup(f, "name") or lookup(datasets, n, "name") for n, f in test_sets.items())
  names, trained_on = {str(source) for source in sources if source}, str(train.get("name") or "")
  shared = [n for n in test_sets if number(lookup(datasets, n, "shared_patients")) > 0]
  attributes = features.held(run.mapping("features"))
  limits: list[tuple[Any, str]] = [
    (
      "phantom" in {*names, trained_on},
      "The built-in phantom images are synthetic: results on them say nothing about patients.",
    ),
    (
      names and names <= {trained_on},
      "Tested only on the source that it was trained on; its performance on images of another "
      "hospital is unknown.",
    ),
    (not test_sets, "Not evaluated on any labelled images."),
    (
      train.get("n") and not train.get("patients"),
      "The patients of the training images are unknown: some may have test images, too.",
    ),
    (
      shared,
      f"Some patients are in more than one split of {_listing(shared)}: this inflates results.",
    ),
    (True, "Intervals cover the choice of test patients, not of training run or hospital."),
    (True, "Labels are used as published; wrong ones count as errors of the network."),
    (
      attributes,
      f"Features also encode the {format.join_words(attributes)} (neighbours share it more often "
      "than by chance): a classifier on them may rely on it.",
    ),
    (
      classification.has_predictions(run),
      "Probabilities and thresholds assume the prevalence in the validation images; where findings "
      "are rarer or more frequent, they mislead.",
    ),
  ]
  texts = [*(text for applies, text in limits if applies), *details.health_warnings(run)]
  return ["\n".join(f"- {_text(text)}" for text in texts)]


def _reproduction(run: Run) -> list[str]:
  blocks = []
  if command := run.fact("command"):
    text = " ".join(map(str, command)) if isinstance(command, list) else str(command)
    blocks.append("\n".join(["```", text.replace("```", "` ` `"), "```"]))
  if versions := run.mapping("versions"):
    blocks.append(_text("With " + ", ".join(f"{k} {v}" for k, v in versions.items()) + "."))
  blocks.append(
    "Beside this card, `config.json` has all settings, `report.html` curves, images and details, "
    "and `run.json` the same facts in machine-readable form."
  )
  return blocks


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(
    "| " + " | ".join(c if c == "---" else _text(c) for c in line) + " |" for line in lines
  )


def _text(text: Any) -> str:
  """Escapes text for Markdown, on one line."""
  plain = html.unescape(join(str(text)))  # without control characters
  plain = re.sub(r"([\\`*\[\]<>|#]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(plain.split()))
  return re.sub(r"^(\d*)([-+~=.)])(?=\s|[-~=])", r"\1\\\2", plain)  # not a list or a rule


def _paragraphs(markup: Html) -> list[str]:
  """Extracts the paragraphs from a piece of the page."""
  paragraphs = re.findall(r"<p[^>]*>(.*?)</p>", markup, flags=re.DOTALL)
  return [_text(html.unescape(re.sub(r"<[^>]+>", "", p))) for p in paragraphs]

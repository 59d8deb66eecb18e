"""`MODEL_CARD.md`: what a trained network is, what it is for and how sure that is.

In the layout of Hugging Face's model cards, a pure function of the workdir like the page.

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
from cxrjax.report.run_files import TRAINED, Run, lookup, number
from cxrjax.report.sections import classification, details, features, results, segmentation
from cxrjax.report.terminal import ORDER, sort_metrics

NAME = "MODEL_CARD.md"
HEX = 16  # digits of a fingerprint that are told
LISTED = 30  # classes, notes, groups
# What Hugging Face calls a task and a metric.
TASKS = {
  "classifier": "image-classification",
  "segmenter": "image-segmentation",
  "encoder": "image-feature-extraction",
}
TYPES = {"auroc": "roc_auc", "accuracy": "accuracy", "f1": "f1", "dice": "dice", "iou": "mean_iou"}
USES = {
  "classifier": "Research on telling {classes} apart in chest radiographs like those it learnt "
  "from, and as a start for other tasks on chest radiographs.",
  "segmenter": "Lung masks of chest radiographs like those it learnt from, in research.",
  "encoder": "A start for research on chest radiographs: fine-tuning with few labels, or its "
  "features as they are, judged by a probe and by nearest neighbours.",
}


def kind(run: Run) -> str:
  """`classifier`, `segmenter` or `encoder`: what a run leaves."""
  if not naming.supervised(run):
    return "encoder"
  masks = segmentation.drawn(run) or run.fact("learns_from") == "masks"
  return "segmenter" if masks else "classifier"


def render(run: Run) -> str:
  """The card as text, whatever is missing or broken in the workdir."""
  parts: list[tuple[str, Callable[[Run], list[str]]]] = [
    ("", _opening),
    ("Model", _model),
    ("Intended use", _uses),
    ("Training data", _training),
    ("Test data", _judging),
    ("Results", _results),
    ("Subgroups", _subgroups),
    ("Where it looks", _looks),
    ("Limits", _limits),
    ("How to repeat it", _again),
  ]
  blocks = _guard(_front, run, ["---\nlibrary_name: cxrjax\n---"])
  for name, make in parts:
    found = _guard(make, run)
    blocks += [*([f"## {name}"] if name and found else []), *found]
  return "\n\n".join(blocks) + "\n"


def _guard(make: Callable[[Run], list[str]], run: Run, otherwise: Sequence[str] = ()) -> list[str]:
  """What cannot be told is said: one broken fact must not cost the card."""
  try:
    return make(run)
  except Exception as error:
    return [*otherwise, _text(f"This part could not be written ({type(error).__name__}: {error}).")]


def _opening(run: Run) -> list[str]:
  """What it is, in words."""
  status, why = naming.status(run)
  state = (
    ""
    if status == "finished"
    else (
      f"**This run is {status}{': ' + _text(why) if why else ''}; the card is of what there is.**"
    )
  )
  return [
    f"# {_text(naming.title(run))}",
    f"*{naming.RESEARCH}*",
    *filter(None, [state]),
    *_plain(results.summary(run)),
  ]


def _front(run: Run) -> list[str]:
  """YAML for the hub; strings are JSON's, which YAML reads."""
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
    "license: unknown  # of the weights: yours to choose, as the data's terms allow",
    "library_name: cxrjax",
    f"pipeline_tag: {task}",
    "tags:",
    *(f"- {json.dumps(t)}" for t in dict.fromkeys(filter(None, tags))),
  ]
  scores = list(_scores(run))
  if scores:
    lines += ["model-index:", f"- name: {json.dumps(naming.title(run))}", "  results:"]
  for dataset, values in scores:
    lines += [
      "  - task:",
      f"      type: {task}",
      "    dataset:",
      f"      name: {json.dumps(dataset)}",
      f"      type: {json.dumps(dataset)}",
      "    metrics:",
    ]
    for name, value in values:
      lines += [
        f"    - type: {TYPES[format.parts(name)[1]]}",
        f"      name: {json.dumps(format.title(name))}",
        f"      value: {value:.4f}",
      ]
  return ["\n".join([*lines, "---"])]


def _scores(run: Run) -> Iterable[tuple[str, list[tuple[str, float]]]]:
  """For every evaluator its data set and the metrics that the hub has a name for."""
  chosen = run.fact("chosen", "evaluators")  # what chose the checkpoint flatters it
  for evaluator in chosen if isinstance(chosen, list) and chosen else run.evaluators():
    own = run.only(str(evaluator)).latest().get(TRAINED, {})
    names = results.headline({TRAINED: own}) if kind(run) == "encoder" else sort_metrics(set(own))
    values = [
      (m, own[m].value)
      for m in names
      if format.parts(m)[1] in TYPES and not format.parts(m)[2] and math.isfinite(own[m].value)
    ]
    if values:
      yield _where(run, evaluator), values


def _where(run: Run, evaluator: str) -> str:
  found = run.fact("data", evaluator)
  of = lookup(found, "test") or found
  name, split = lookup(of, "name") or lookup(found, "name"), lookup(of, "split")
  return f"{name} ({split})" if name and split else str(name or evaluator)


def _model(run: Run) -> list[str]:
  config = run.config
  size = number(lookup(config, "views", "global_size"))
  rows = [
    ("Method", naming.method_name(run)),
    ("Network", naming.model_name(run)),
    ("Parameters", format.count(run.fact("model", "parameters"))),
    ("Input", f"one gray channel, {size:.0f} x {size:.0f} pixels" if math.isfinite(size) else ""),
    ("Output", _output(run)),
    ("Started from", run.fact("init", "summary") or run.fact("init", "path") or ""),
    (
      "Trained",
      ", ".join(
        filter(
          None,
          [
            format.count(run.fact("steps"), "step"),
            f"{format.count(run.fact('batch_size'), 'image')} a step"
            if run.fact("batch_size")
            else "",
            format.duration(naming.total_seconds(run)),
            naming.device_name(run),
          ],
        )
      ),
    ),
    ("cxrjax", run.fact("versions", "cxrjax") or ""),
  ]
  return [_table(["", ""], [[k, str(v)] for k, v in rows if v])]


def _output(run: Run) -> str:
  if kind(run) == "encoder":
    return "a feature vector of the image, and one of every patch"
  if kind(run) == "segmenter":
    return "the probability of lung of every pixel"
  names = run.fact("data", "train", "classes")
  return f"the probability of each of: {_list(names)}" if isinstance(names, list) else ""


def _list(items: Sequence[Any]) -> str:
  items = [str(i) for i in items]
  more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
  return (", ".join(items[:LISTED]) + more) if more else format.listing(items)


def _uses(run: Run) -> list[str]:
  names = run.fact("data", "train", "classes")
  named = _list(names) if isinstance(names, list) else "classes"
  said = [
    _text(USES[kind(run)].format(classes=named)),
    "Out of scope:",
    "- diagnosis, triage, or any other decision about a patient;\n"
    "- images of another kind than the training data's: other ages, views, devices or "
    "hospitals, unless tested there first;\n"
    "- telling who is on a radiograph. Features may hold what identifies a patient: treat "
    "them, and the weights, as carefully as the radiographs themselves.",
  ]
  return said


def _training(run: Run) -> list[str]:
  return _data([("training", run.fact("data", "train"))])


def _judging(run: Run) -> list[str]:
  """What judged it; the labelled images that it learnt from itself are told of above."""
  own = run.fact("data", "train", "fingerprint")
  return _data(
    [
      (name, found)
      for name, found in _parts(run)
      if not (name.endswith(NAMED["train"]) and found.get("fingerprint") == own)
    ]
  )


NAMED = {"train": "labelled training part", "val": "validation part", "test": "test part"}


def _parts(run: Run) -> Iterable[tuple[str, Any]]:
  """Every evaluator's parts."""
  sets = run.fact("data")
  for name, found in sets.items() if isinstance(sets, Mapping) else ():
    if name == "train" or not isinstance(found, Mapping):
      continue
    parts = {k: v for k, v in found.items() if isinstance(v, Mapping) and "n" in v}
    if not parts:
      yield name, found
    for part, value in parts.items():
      yield (
        f"{name}, {NAMED.get(part, part)}",
        {**{k: found.get(k) for k in ("name", "fingerprint")}, **value},
      )


def _data(sets: Sequence[tuple[str, Any]]) -> list[str]:
  """A row for each set: source, images, patients, classes, fingerprint; then its notes."""
  rows, notes = [], []
  for name, found in sets:
    if not isinstance(found, Mapping):
      continue
    counts = found.get("class_counts")
    counts = counts if isinstance(counts, Mapping) else {}
    source = naming.source_name(found.get("name"))
    rows.append(
      [
        name,
        f"{source} ({found['split']})" if found.get("split") else source,
        format.count(found.get("n")),
        format.count(found.get("patients")) or "unknown",
        _list([f"{k} {format.count(v)}" for k, v in counts.items()]),
        str(found.get("fingerprint") or "")[:HEX],
      ]
    )
    own = found.get("notes")
    notes += [str(n) for n in own] if isinstance(own, list) else []
    if left := found.get("skipped"):
      notes.append(f"{name}: {format.count(len(left), 'image')} could not be used")
  if not rows:
    return []
  head = [
    "",
    "source (split)",
    "images",
    "patients",
    "images with each label",
    "content fingerprint",
  ]
  listed = list(dict.fromkeys(notes))
  more = [f"- and {len(listed) - LISTED} more notes, in run.json"] if len(listed) > LISTED else []
  found = [_table(head, rows)]
  if listed:
    found.append("\n".join([*(f"- {_text(n)}" for n in listed[:LISTED]), *more]))
  return found


def _results(run: Run) -> list[str]:
  """Metrics with intervals, by what was judged."""
  found = []
  for evaluator in run.evaluators():
    own = run.only(evaluator)
    latest = own.latest()
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
    said = f"On {_where(run, evaluator)}. In brackets, 95 % intervals"
    said += f" ({'; '.join(methods)})." if methods else "."
    facts = run.fact("evaluation", evaluator, TRAINED)
    rule = lookup(facts, "threshold_for") or lookup(facts, "linear", "threshold_for")
    if rule:
      measure, _, where = str(rule).partition(" ")
      said += f" Thresholds: the best {format.measure(measure).lower()} {where}."
    found += [
      f"### {_text(evaluator)}",
      _text(said + naming.judged_once(run, evaluator)),
      _table(["", *(format.encoder(e, names) for e in encoders)], rows),
    ]
  return found


def _subgroups(run: Run) -> list[str]:
  """By age, sex, view and site, of every evaluator that knows them."""
  found = []
  for evaluator in run.evaluators():
    of = run.fact("evaluation", evaluator, TRAINED)
    rows, notes = lookup(of, "subgroups"), lookup(of, "subgroup_remarks")
    if rows:
      head = [
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
          *(format.estimate(classification.estimate(r.get(m))) for m in classification.COLUMNS),
        ]
        for r in rows
      ]
      found += [f"### {_text(evaluator)}", _table(head, body)]
    if notes:
      found.append(_text(f"{evaluator}, not told apart: {'; '.join(map(str, notes))}."))
  return found


def _looks(run: Run) -> list[str]:
  """How much of its maps lies on the lungs, and what its features hold beside the label."""
  found = []
  scores = run.fact("look", "lungs")
  for method, of in scores.items() if isinstance(scores, Mapping) else ():
    ratio = classification.estimate(lookup(of, "all", "energy_ratio"))
    if math.isfinite(ratio.value):
      found.append(
        f"{method}: the map lies on the lungs {format.estimate(ratio)} times as much as "
        "a map that knows nothing of them"
      )
  shared = run.fact("features", "shared")
  for row in shared if isinstance(shared, list) else ():
    share, chance = classification.estimate(row), number(lookup(row, "chance"))
    if math.isfinite(share.value) and math.isfinite(chance):
      found.append(
        f"{row.get('by')}: the nearest training images share it in "
        f"{format.estimate(share)}, by chance in {format.decimal(chance)}"
      )
  return ["\n".join(f"- {_text(text)}" for text in found)] if found else []


def _limits(run: Run) -> list[str]:
  """What the facts say the numbers do not show."""
  said = []
  sets = run.fact("data")
  tests = (
    {n: lookup(f, "test") or f for n, f in sets.items() if n != "train"}
    if isinstance(sets, Mapping)
    else {}
  )
  names = {str(lookup(f, "name") or lookup(sets, n, "name") or "") for n, f in tests.items()} - {""}
  train = str(run.fact("data", "train", "name") or "")
  if "phantom" in {*names, train}:
    said.append(
      "The built-in phantom images are drawn by a program. What is found on them says "
      "nothing about patients."
    )
  if names and names <= {train}:
    said.append(
      "Tested on the source that it was trained on only; how it does on images of "
      "another hospital is not known."
    )
  if not tests:
    said.append("Not judged on any labelled images.")
  if run.fact("data", "train", "n") and not run.fact("data", "train", "patients"):
    said.append("Patients are not known of all training images: some may have test images, too.")
  shared = [n for n in tests if number(lookup(sets, n, "shared_patients")) > 0]
  if shared:
    said.append(f"Some patients are in more than one part of {_list(shared)}: results flatter.")
  said.append(
    "Intervals speak of other patients of the same kind as the test images', not of "
    "another training run, another hospital or another year."
  )
  said.append("Labels are taken as they are published; wrong ones count as errors of the network.")
  found = run.fact("features")
  held = features.held(found) if isinstance(found, Mapping) else []
  if held:
    said.append(
      f"Features hold the {format.listing(held)} as well (neighbours share it more often "
      "than by chance): a classifier on them may lean on it."
    )
  if classification.called(run):
    said.append(
      "Probabilities and thresholds fit the share of findings in the validation images; "
      "where findings are rarer or more frequent, they mislead."
    )
  said += details.health_warnings(run)
  return ["\n".join(f"- {_text(text)}" for text in said)]


def _again(run: Run) -> list[str]:
  found = []
  if command := run.fact("command"):
    text = " ".join(map(str, command)) if isinstance(command, list) else str(command)
    found.append("\n".join(["```", text.replace("```", "` ` `"), "```"]))
  versions = run.fact("versions")
  if isinstance(versions, Mapping):
    found.append(_text("With " + ", ".join(f"{k} {v}" for k, v in versions.items()) + "."))
  found.append(
    "`config.json` beside this card has every setting, `report.html` the curves, "
    "pictures and details, `run.json` the same facts for programs."
  )
  return found


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(
    "| " + " | ".join(c if c == "---" else _text(c) for c in line) + " |" for line in lines
  )


def _text(text: Any) -> str:
  """Text that Markdown shows as it is, on one line."""
  plain = html.unescape(join(str(text)))  # without control characters
  plain = re.sub(r"([\\`*\[\]<>|#]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(plain.split()))
  return re.sub(r"^(\d*)([-+~=.)])(?=\s|[-~=])", r"\1\\\2", plain)  # no list, no rule


def _plain(markup: Html) -> list[str]:
  """The paragraphs of a piece of the page."""
  found = re.findall(r"<p[^>]*>(.*?)</p>", markup, flags=re.DOTALL)
  return [_text(html.unescape(re.sub(r"<[^>]+>", "", p))) for p in found]

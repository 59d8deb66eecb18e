"""What a run prints: a summary before training, and its results as a plain-text table."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cxrjax.report import run_files as runs
from cxrjax.report.html import format

ORDER = (runs.TRAINED, runs.RANDOM, runs.FLOOR)


def run_summary(facts: Mapping[str, Any], workdir: os.PathLike[str]) -> str:
  """Summary of the run, printed before it starts."""
  data, model, device = facts["data"]["train"], facts["model"], facts["device"]
  flops = model["flops_per_image"]
  cost = f", {flops / 1e9:.2f} GFLOPs per image and step" if math.isfinite(flops) else ""
  lines = [
    f"data      {data['name']} [{data['split']}], {data['n']} images, {data['storage']}",
    f"device    {device['devices']} x {device['kind']} ({device['platform']})",
    f"model     {model['name']} {model['variant']}, {model['parameters'] / 1e6:.2f} M parameters",
    f"method    {facts['method']}{cost}",
    f"steps     {facts['steps']} of {facts['batch_size']} images, {facts['epochs']:.4g} epochs",
    f"workdir   {workdir}",
  ]
  if "init" in facts:
    lines.insert(3, f"start     {facts['init']['summary']}")
  return "\n".join(lines)


def data_remarks(facts: Mapping[str, Any]) -> list[str]:
  """Remarks on the data to print before training, each once."""
  sets = facts["data"]
  train_notes = sets["train"]["notes"]
  notes = dict.fromkeys(train_notes)
  for name, dataset in sets.items():
    if name == "train":
      continue
    splits = [split for split in dataset.values() if isinstance(split, Mapping)]
    notes |= {
      f"{name}: {note}": None
      for described in (dataset, *splits)
      for note in described.get("notes", ())
      if note not in train_notes
    }
  return list(notes)


def results_table(results: Mapping[str, Mapping[str, Any]] | str | os.PathLike[str]) -> str:
  """A table of metrics (rows) by encoder (columns), `value (low-high)`.

  Args:
    results: `{encoder: {metric: interval}}`; an interval is anything with `value`, `low` and
      `high` as attributes or keys, or a number. The encoders `"trained"`, `"random"` and `"floor"`
      come first, in this order. Or a workdir, whose last results are shown.

  Returns:
    Lines without a final newline; an empty string when there is nothing to show.
  """
  if not isinstance(results, Mapping):
    run = runs.read(results)
    names = run.evaluators()
    tables = [results_table(run.only(name).latest()) for name in names]
    if len(names) > 1:
      tables = [f"{name}\n{table}" for name, table in zip(names, tables, strict=True)]
    return "\n\n".join(tables)
  encoders = sorted(filter(results.get, results), key=lambda e: (*ORDER, e).index(e))
  names = sort_metrics({name for e in encoders for name in results[e]})
  if not names:
    return ""
  rows = [["", *(format.encoder(e, names) for e in encoders)]]
  for name in names:
    cells = [
      format.estimate(_estimate(results[e][name]), "-") if name in results[e] else "-"
      for e in encoders
    ]
    rows.append([format.title(name), *cells])
  return "\n".join([*aligned(rows), "95 % intervals in brackets"])


def aligned(lines: Sequence[Sequence[str]], rules: Sequence[int] = (0,)) -> Iterator[str]:
  """Lines of a table, with rules below the lines `rules` and at its end."""
  widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(len(lines[0]))]
  rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
  for i, line in enumerate(lines):
    yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip()
    if i in rules or i == len(lines) - 1:
      yield rule


def remarks(workdir: str | os.PathLike[str]) -> list[str]:
  """Remarks on the table: images left out, values that are undefined, and why."""
  run, messages = runs.read(workdir), []
  for name in run.evaluators():
    data = run.fact("data", name)
    # Notes of a single part are those of its source, which are printed before training.
    notes = [] if runs.lookup(data, "n") else [*(runs.lookup(data, "notes") or ())]
    facts = run.fact("evaluation", name, runs.TRAINED)
    notes += [
      runs.lookup(facts, "remark"),
      runs.lookup(facts, "linear", "remark"),
      *(runs.lookup(facts, "threshold_remarks") or ()),
      *(runs.lookup(facts, "temperature_remarks") or ()),
    ]
    undefined: dict[str, list[str]] = {}
    for metric, e in run.only(name).latest().get(runs.TRAINED, {}).items():
      if e.undefined:
        undefined.setdefault(e.undefined, []).append(format.title(metric))
    notes += [f"{'; '.join(titles)}: n/a, {why}" for why, titles in undefined.items()]
    messages += [f"{name}: {text}" for text in dict.fromkeys(notes) if text]
  return messages


def sort_metrics(names: set[str]) -> list[str]:
  """Sorts metrics: kNN by k, then the linear probe, then all others; AUROC first in each."""

  def key(name: str):
    head, measure, variant = format.split(name)
    digits = head.removeprefix("knn").lstrip("_") if head.startswith("knn") else ""
    family = 0 if head.startswith("knn") else 1 if head == "linear" else 2
    measures = list(format.MEASURES)
    position = measures.index(measure) if measure in measures else len(measures)
    return (family, int(digits or 0), head, format.of_class(name), position, measure, variant)

  return sorted(names, key=key)


def _estimate(value: Any) -> format.Estimate:
  if isinstance(value, Mapping):
    value = format.Estimate(**{k: value[k] for k in ("value", "low", "high") if k in value})
  if hasattr(value, "value"):
    nan = float("nan")
    return format.Estimate(
      float(value.value), float(getattr(value, "low", nan)), float(getattr(value, "high", nan))
    )
  return format.Estimate(float(value))

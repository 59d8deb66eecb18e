"""Facts of `run.json` as tables: data sets with their parts, and lists of names and values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from cxrjax.report.html import blocks, format
from cxrjax.report.html.element import Html, el
from cxrjax.report.naming import supervised
from cxrjax.report.run_files import Run, number

LABELS = {
  "n": "Images",
  "name": "Source",
  "class_counts": "Classes",
  "splits": "All splits",
  "on_bad_image": "Bad images",
  "shared_patients": "Patients in two splits",
  "bits": "Bits per pixel",
  "exclusive": "One class per image",
  "size": "Size (pixels per side)",
  "fit": "Non-square images",
  "class_known": "Labels known",
  "unlabelled": "Without a label",
  "storage": "Pixels are stored",
  "notes": "Remarks",
  "lung_masks": "Lung masks",
  "components_kept": "Components kept per mask",
  "distances_in": "Distances in",
}
VALUE_NAMES = {
  "storage": {
    "resident": "on the device",
    "cached": "decoded, on disk",
    "streamed": "as files, decoded on the fly",
  },
  "fit": {
    "squash": "squashed to a square",
    "pad": "padded to a square",
    "crop": "cropped to a square",
  },
}
HIDDEN_VALUES = {"unlabelled": 0}  # values that are the normal case and not shown
MAX_ITEMS = 50  # most entries of a list


def data(run: Run) -> Html | None:
  """Every data set of the run: sizes, classes, patients, splits and origin."""
  cards, skipped = [], []
  titles = {"train": "Pretraining", "probe": "Evaluation"}
  if supervised(run):
    titles["train"] = "Training"
  for role, facts in run.mapping("data").items():
    if not isinstance(facts, Mapping):
      continue
    title = titles.get(role, role.replace("_", " ").capitalize())
    splits = splits_of(facts)
    if splits:
      table, common = _split_table(splits), pairs(rows(_common_facts(facts, splits)))
      cls = "card wide" if _many_classes(splits) else "card"
      cards.append(blocks.titled(title, table, common, cls=cls))
    else:
      cards.append(card(rows(facts), title))
    for name, split in (splits or {"": facts}).items():
      where = f"{title}: {name}" if name else title
      skipped += [(where, entry) for entry in split.get("skipped") or []]
  if not cards:
    return None
  return el("div", el("div", cards, cls="cards"), _skipped(skipped))


def splits_of(facts: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
  """Facts of the splits of a data set; empty for a single one."""
  return {k: v for k, v in facts.items() if isinstance(v, Mapping) and "n" in v}


def _many_classes(splits: Mapping[str, Mapping[str, Any]]) -> bool:
  return len({c for v in splits.values() for c in v.get("class_counts") or {}}) > 3


def _split_table(splits: Mapping[str, Mapping[str, Any]]) -> Html:
  """Table of splits: images, patients, and images of every class."""
  classes = list(dict.fromkeys(c for v in splits.values() for c in v.get("class_counts") or {}))
  shown = classes[:8]
  counted = [k for k in ("n", "patients") if any(v.get(k) for v in splits.values())]
  titles = [{"n": "Images"}.get(k, k.capitalize()) for k in counted]
  body = []
  for name, facts in splits.items():
    counts = facts.get("class_counts")
    counts = counts if isinstance(counts, Mapping) else {}
    cells: list[Any] = [format.count(facts.get(k)) or "\N{EN DASH}" for k in counted]
    for c in shown:
      n, total = number(counts.get(c)), number(facts.get("n"))
      share = f" ({100 * n / total:.0f} %)" if total > 0 and math.isfinite(n) else ""
      cells.append([format.count(n) or "\N{EN DASH}", el("small", share)])
    body.append(blocks.row(name, [blocks.number(c) for c in cells]))
  note = f"The first {len(shown)} of {len(classes)} classes." if len(classes) > len(shown) else None
  table = blocks.table(blocks.columns("Split", *titles, *shown), body, "parts")
  return el("div", table, blocks.note(note) if note else None)


def _common_facts(
  facts: Mapping[str, Any], splits: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
  """Facts that all splits share, or values by split where they differ."""
  common = {k: v for k, v in facts.items() if k not in splits}
  in_table = {"n", "patients", "class_counts", "classes", "skipped"}
  for key in dict.fromkeys(k for v in splits.values() for k in v if k not in in_table):
    values = {name: v[key] for name, v in splits.items() if key in v}
    first = next(iter(values.values()))
    if key == "notes":
      lists = [v for v in values.values() if isinstance(v, list)]
      set_notes = common.get("notes")
      notes = [*(set_notes if isinstance(set_notes, list) else []), *(n for v in lists for n in v)]
      common["notes"] = list(dict.fromkeys(map(str, notes)))
    elif all(name == v for name, v in values.items()):
      continue  # the facts of split "train" name it again
    elif all(v == first for v in values.values()):
      common.setdefault(key, first)
    elif not any(isinstance(v, Mapping | list) for v in values.values()):
      common.setdefault(key, values)
  return common


def rows(facts: Mapping[str, Any]) -> list[tuple[str, Any]]:
  """Labels and values of the facts that are worth a row, in order."""
  return [
    (LABELS.get(key, key.replace("_", " ").capitalize()), value(key, facts[key]))
    for key in _ordered(facts)
    if facts[key] not in (None, "", [], {})
    and not (key in HIDDEN_VALUES and facts[key] == HIDDEN_VALUES[key])
    and not (key == "splits" and isinstance(facts[key], Mapping) and len(facts[key]) < 2)
  ]


def _ordered(facts: Mapping[str, Any]) -> list[str]:
  order = (
    "name",
    "source",
    "split",
    "n",
    "patients",
    "shared_patients",
    "sites",
    "classes",
    "class_counts",
    "splits",
    "storage",
    "fingerprint",
    "notes",
  )
  hidden = {"skipped"} | ({"classes"} if isinstance(facts.get("class_counts"), Mapping) else set())
  known = facts.get("class_known")
  if isinstance(known, Mapping) and all(v == facts.get("n") for v in known.values()):
    hidden |= {"class_known"}  # all labels of all images are known
  return [k for k in order if k in facts and k not in hidden] + [
    k for k in facts if k not in order and k not in hidden
  ]


def value(key: str, value: Any) -> Any:
  """A fact as text or elements."""
  if key == "fingerprint":
    if isinstance(value, Mapping):
      return el(
        "div", [el("div", f"{k} ", el("code", str(v)[:16], title=str(v))) for k, v in value.items()]
      )
    return el("code", str(value)[:16], title=str(value))
  if isinstance(value, Mapping):
    return el(
      "div",
      [
        el("div", el("span", str(k)), el("span", scalar(v), cls="num"))
        for k, v in list(value.items())[:MAX_ITEMS]
      ],
      cls="counts",
    )
  if key in VALUE_NAMES:
    return VALUE_NAMES[key].get(str(value), str(value))
  if key == "notes" and isinstance(value, list):
    return el("ul", [el("li", str(v)) for v in value[:MAX_ITEMS]])
  if isinstance(value, list):
    more = f" and {len(value) - MAX_ITEMS} more" if len(value) > MAX_ITEMS else ""
    return ", ".join(scalar(v) for v in value[:MAX_ITEMS]) + more
  return scalar(value)


def scalar(value: Any) -> str:
  """A number, a truth value or a text, as a reader expects it."""
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, int):
    return f"{value:,}"
  if isinstance(value, float):
    return format.short(value)
  return "none" if value is None else str(value)


def _skipped(skipped: list[tuple[str, Any]]) -> Html | None:
  if not skipped:
    return None
  items = []
  for role, entry in skipped[:MAX_ITEMS]:
    pair = entry if isinstance(entry, list) and len(entry) == 2 else [entry, ""]
    items.append(el("li", el("code", str(pair[0])), f" {pair[1]} ", el("small", role)))
  remaining = len(skipped) - MAX_ITEMS
  if remaining > 0:
    items.append(el("li", f"and {remaining:,} more"))
  title = format.count(len(skipped), "image was skipped", "images were skipped")
  return blocks.folded(title, el("ul", items), cls="skipped", open=len(skipped) < 6)


def card(rows: Iterable[tuple[str, Any]], title: Any = None, *content: Any) -> Html:
  """A card of names and values, below a title and above further content."""
  return el("div", el("h3", title) if title else None, pairs(rows), content or None, cls="card")


def pairs(rows: Iterable[tuple[str, Any]]) -> Html:
  """A list of labels and values."""
  return el(
    "dl",
    [
      el("div", el("dt", k), el("dd", v), cls="long" if "<ul>" in str(v) else None) for k, v in rows
    ],
  )

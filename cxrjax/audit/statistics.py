"""Findings of an audit, as facts for the page and rows for the CSV tables."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from cxrjax.audit import polarity
from cxrjax.audit.images import Pair, Part
from cxrjax.data.images import summarize_notes
from cxrjax.data.splits import leakage
from cxrjax.evals import thumbnail_baseline
from cxrjax.metrics import roc
from cxrjax.metrics.intervals import Interval

SHOWN = 24  # images of each kind on the page
LISTED = 200  # entries of a list in run.json; the CSV files are complete
MIN_IMAGES = 20  # images with and without a sex, view or site that its floor needs
SITES = 6  # values of an attribute that get a floor, the most common ones
ATTRIBUTES = {"site": "sites", "view": "views", "sex": "sexes"}  # names of `Table` fields

Place = tuple[int, int]  # part and row


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFindings:
  """Agreement of the decoded images of every part with the common pattern, and their defects.

  `flat` images are blank, `inverted` ones show bones black, `unlike` ones resemble no others.
  """

  parts: Sequence[Part]
  agreement: list[Float32[np.ndarray, "_"]]
  flat: list[Bool[np.ndarray, "_"]]
  inverted: list[Bool[np.ndarray, "_"]]
  unlike: list[Bool[np.ndarray, "_"]]


def classify_images(parts: Sequence[Part]) -> ImageFindings:
  """Finds blank, inverted and atypical images."""
  described = [polarity.describe(p.images) for p in parts]
  agreement = polarity.agreement(*(x for x, _ in described))
  flat = [spread < polarity.FLAT for _, spread in described]
  inverted = [(r <= polarity.INVERTED) & ~f for r, f in zip(agreement, flat, strict=True)]
  unlike = [(np.abs(r) < polarity.UNLIKE) & ~f for r, f in zip(agreement, flat, strict=True)]
  return ImageFindings(parts, agreement, flat, inverted, unlike)


def examples_by_defect(found: ImageFindings) -> dict[str, list[Place]]:
  """Images to show of every defect, the clearest first."""
  images_by_kind = {}
  for kind in ("inverted", "flat", "unlike"):
    places = [
      (abs(float(r)) if kind == "unlike" else float(r), (k, int(part.good[i])))
      for k, part in enumerate(found.parts)
      for i, r in enumerate(found.agreement[k])
      if getattr(found, kind)[k][i]
    ]
    images_by_kind[kind] = [place for _, place in sorted(places)[:SHOWN]]
  return images_by_kind


# Floors.


@dataclasses.dataclass(frozen=True)
class Floor:
  """AUROC of ridge regression on thumbnails for one target.

  `kind` is label, sex, view, site or source; `how` describes the training images.
  """

  source: str
  kind: str
  name: str
  positive: int
  how: str
  auroc: Interval


def floors(parts: Sequence[Part], owners: Sequence[Sequence[str]], folds: int) -> list[Floor]:
  """Floors of every label, sex, view and site of each source, and of the sources themselves."""
  thumbnails = [thumbnail_baseline.thumbnails(p.images) for p in parts]
  good_owners = [[keys[i] for i in p.good.tolist()] for p, keys in zip(parts, owners, strict=True)]
  results = []
  for number in sorted({p.number for p in parts}):
    indices = [k for k, p in enumerate(parts) if p.number == number]
    targets = _targets([parts[k] for k in indices])
    if targets:
      results += _compute_floors(
        parts[indices[0]].info.name,
        targets,
        [parts[k].split for k in indices],
        [thumbnails[k] for k in indices],
        [good_owners[k] for k in indices],
        folds,
      )
  sources = sorted({p.number for p in parts})
  if len(sources) > 1:
    names = {p.number: p.info.name for p in parts}
    source_numbers = np.concatenate([np.full(len(p.good), p.number) for p in parts])
    targets = [("source", names[s], (source_numbers == s).astype(np.float32)) for s in sources]
    results += _compute_floors(
      "all sources",
      targets,
      ["all"],
      [np.concatenate(thumbnails)],
      [list(itertools.chain(*good_owners))],
      folds,
    )
  return results


def _targets(parts: Sequence[Part]) -> list[tuple[str, str, np.ndarray]]:
  """Prediction targets of a source: kind, name and, for each image, 1, 0 or NaN."""
  tables = [p.images.table for p in parts]
  info = parts[0].info
  labels = np.concatenate([t.labels for t in tables])
  columns = list(enumerate(info.classes))
  if info.exclusive and len(columns) == 2:
    columns = columns[1:]  # the other one is its complement
  targets = [("label", name, labels[:, c]) for c, name in columns]
  for kind, field in ATTRIBUTES.items():
    values = list(itertools.chain(*(getattr(t, field) for t in tables)))
    value_counts = Counter(v for v in values if v).most_common()
    if kind == "sex":
      value_counts = [(value, n) for value, n in value_counts if value == "F"]
    known = np.array([bool(v) for v in values])
    for value, n in value_counts[:SITES]:
      if n >= MIN_IMAGES and known.sum() - n >= MIN_IMAGES:
        y = np.array([v == value for v in values], np.float32)
        targets.append((kind, value, np.where(known, y, np.nan).astype(np.float32)))
        if len(value_counts) == 2:  # the other one is its complement
          break
  return targets


def _compute_floors(
  source: str,
  targets: Sequence[tuple[str, str, np.ndarray]],
  names: Sequence[str],
  thumbnails: Sequence[np.ndarray],
  owners_of_parts: Sequence[Sequence[str]],
  folds: int,
) -> list[Floor]:
  """Floors on the test split if there is another one to fit to, otherwise cross-validated."""
  part_numbers = np.concatenate([np.full(len(v), k) for k, v in enumerate(thumbnails)])
  features, owners = np.concatenate(thumbnails), np.array(list(itertools.chain(*owners_of_parts)))
  y = np.stack([t[2] for t in targets], 1)
  is_test = np.zeros(len(part_numbers), bool)
  if "test" in names:
    is_test = part_numbers == names.index("test")
  if is_test.any() and not is_test.all():
    evaluated, how = is_test, "fitted to the other splits, tested on test"
    scores = thumbnail_baseline.ridge(features[~is_test], y[~is_test], features[is_test])
  else:
    evaluated = np.ones(len(part_numbers), bool)
    how = f"{folds} folds, patients and duplicates together"
    scores = thumbnail_baseline.held_out(features, y, owners.tolist(), folds)
  results = []
  for c, (kind, name, _) in enumerate(targets):
    truth = y[evaluated, c]
    # A class without both values among the training images has no scores.
    truth = np.where(np.isfinite(scores[:, c]), truth, np.nan)
    results.append(
      Floor(
        source,
        kind,
        name,
        int((truth == 1).sum()),
        how,
        roc.auroc(np.nan_to_num(scores[:, c]), truth, owners[evaluated]),
      )
    )
  return results


# Tables.


def number_patients(parts: Sequence[Part]) -> dict[str, str]:
  """Pseudonyms `p1`, `p2`, ... in image order, so that no patient's name is written."""
  keys = dict.fromkeys(p for part in parts for p in part.patients if p)
  return {patient: f"p{k + 1}" for k, patient in enumerate(keys)}


def pair_facts(parts: Sequence[Part], pair: Pair, copy: float) -> dict[str, Any]:
  """Facts about one near-duplicate pair, for the page."""

  def side(place: Place) -> dict[str, Any]:
    part, row = parts[place[0]], place[1]
    return {"part": part.name, "id": part.table.ids[row], "labels": _label_text(part, row)}

  return {
    "a": side(pair.a),
    "b": side(pair.b),
    "r": pair.r,
    "first": pair.first,
    "copy": pair.r >= copy,
    "same_patient": pair.same_patient,
    "differ": list(pair.differ),
    "across": pair.a[0] != pair.b[0],
  }


def chosen(parts: Sequence[Part], pairs: Sequence[Pair], count: int) -> list[Pair]:
  """Pairs to show, the most similar: between splits first, but up to half within splits."""
  between = [p for p in pairs if p.a[0] != p.b[0]]
  inside = [p for p in pairs if p.a[0] == p.b[0]]
  reserved = min(len(inside), count // 2)
  between = between[: count - reserved]
  return between + inside[: count - len(between)]


def pair_rows(parts: Sequence[Part], pairs: Sequence[Pair], copy: float) -> Iterator[Sequence[Any]]:
  """Table of pairs of near-duplicates, header first; from correlation `copy` on they are copies."""
  yield (
    "kind",
    "r",
    "first",
    "across",
    "same_patient",
    "labels_differ",
    "a_source",
    "a_split",
    "a_id",
    "b_source",
    "b_split",
    "b_id",
  )
  for p in pairs:
    a, b = parts[p.a[0]], parts[p.b[0]]
    yield (
      "copy" if p.r >= copy else "same patient?",
      f"{p.r:.4f}",
      f"{p.first:.4f}",
      _boundary(a, b),
      {True: "yes", False: "no", None: ""}[p.same_patient],
      ";".join(p.differ),
      a.info.name,
      a.split,
      a.table.ids[p.a[1]],
      b.info.name,
      b.split,
      b.table.ids[p.b[1]],
    )


def _boundary(a: Part, b: Part) -> str:
  return "" if a is b else "splits" if a.number == b.number else "sources"


def patient_rows(
  parts: Sequence[Part], crossing: Mapping[str, Sequence[Place]], numbers: Mapping[str, str]
) -> Iterator[Sequence[Any]]:
  """Table of the images of patients in several splits, header first."""
  yield "patient", "source", "split", "id"
  for patient, places in crossing.items():
    for k, row in places:
      yield numbers[patient], parts[k].info.name, parts[k].split, parts[k].table.ids[row]


def image_rows(
  parts: Sequence[Part],
  found: ImageFindings,
  groups: Sequence[np.ndarray],
  numbers: Mapping[str, str],
) -> Iterator[Sequence[Any]]:
  """A row for every image, including unreadable ones and those left out by the source."""
  group_sizes = Counter(itertools.chain(*(g.tolist() for g in groups)))
  yield (
    "source",
    "split",
    "id",
    "patient",
    "labels",
    "site",
    "view",
    "sex",
    "age",
    "status",
    "reason",
    "agreement",
    "copies",
  )
  left_out = set()
  for k, part in enumerate(parts):
    table, good = part.table, {int(row): index for index, row in enumerate(part.good)}
    notes: dict[int, list[str]] = {}
    for note, rows in part.notes.items():
      for row in rows:
        notes.setdefault(row, []).append(note)
    for row, name in enumerate(table.ids):
      index = good.get(row)
      kinds = (
        []
        if index is None
        else [kind for kind in ("flat", "inverted", "unlike") if getattr(found, kind)[k][index]]
      )
      group = int(groups[k][row])
      yield (
        part.info.name,
        part.split,
        name,
        numbers.get(part.patients[row], ""),
        _label_text(part, row),
        table.sites[row],
        table.views[row],
        table.sexes[row],
        "" if np.isnan(table.ages[row]) else f"{table.ages[row]:g}",
        "unreadable" if index is None else " ".join(kinds) or "good",
        part.bad.get(row) or "; ".join(notes.get(row, ())),
        "" if index is None else f"{found.agreement[k][index]:.3f}",
        f"g{group}" if group_sizes[group] > 1 else "",
      )
    for name, reason in part.info.skipped:
      if (part.number, name) not in left_out:
        left_out.add((part.number, name))
        yield (part.info.name, "", name, *[""] * 6, "left out", reason, "", "")


def floor_rows(found: Sequence[Floor]) -> Iterator[Sequence[Any]]:
  """Table of what thumbnails alone predict, header first."""
  yield (
    "source",
    "kind",
    "name",
    "images",
    "positive",
    "auroc",
    "low",
    "high",
    "interval",
    "how",
    "undefined",
  )
  for f in found:
    values = [
      f"{v:.4f}" if np.isfinite(v) else "" for v in (f.auroc.value, f.auroc.low, f.auroc.high)
    ]
    yield (
      f.source,
      f.kind,
      f.name,
      f.auroc.n,
      f.positive,
      *values,
      f.auroc.method,
      f.how,
      f.auroc.undefined,
    )


# Facts.


def facts(
  parts: Sequence[Part],
  pairs: Sequence[Pair],
  copy: float,
  found: ImageFindings,
  crossing: Mapping[str, Sequence[Place]],
  numbers: Mapping[str, str],
  floors: Sequence[Floor],
) -> dict[str, Any]:
  """All facts for the page, as plain values."""
  kinds = ("inverted", "flat", "unlike")
  between: Counter[tuple[int, int, bool]] = Counter()
  for p in pairs:
    between[min(p.a[0], p.b[0]), max(p.a[0], p.b[0]), p.r >= copy] += 1
  places = examples_by_defect(found)
  crossed = Counter(tuple(sorted({k for k, _ in v})) for v in crossing.values())
  bad = [(k, row) for k, p in enumerate(parts) for row in sorted(p.bad)]
  left_out = {
    (p.number, name): (p.info.name, name, reason) for p in parts for name, reason in p.info.skipped
  }
  return {
    "parts": [
      {
        "name": p.name,
        "source": p.info.name,
        "split": p.split,
        "n": len(p.table),
        "patients": len({x for x in p.patients if x}),
        "unknown": sum(not x for x in p.patients),
        "tells_patients": p.tells_patients,
        "unreadable": len(p.bad),
        "fingerprint": p.info.fingerprint,
        "notes": [
          *p.info.notes,
          *summarize_notes(
            (p.table.ids[row], note) for note, rows in p.notes.items() for row in rows
          ),
        ],
        **{kind: int(getattr(found, kind)[k].sum()) for kind in kinds},
        "labels": _label_counts(p),
        "attributes": _attributes(p),
      }
      for k, p in enumerate(parts)
    ],
    "left_out": len(left_out),
    "pairs": {
      "counts": [
        {
          "a": parts[i].name,
          "b": parts[j].name,
          "copies": between[i, j, True],
          "same": between[i, j, False],
        }
        for i, j in itertools.combinations_with_replacement(range(len(parts)), 2)
      ],
      "copies": sum(p.r >= copy for p in pairs),
      "same": sum(p.r < copy for p in pairs),
      "across": sum(p.a[0] != p.b[0] and p.r >= copy for p in pairs),
      "across_same": sum(p.a[0] != p.b[0] and p.r < copy for p in pairs),
      "other_patient": sum(p.same_patient is False for p in pairs),
      "other_label": sum(bool(p.differ) and p.r >= copy for p in pairs),
    },
    "patients": {
      "said": patient_statement(parts, len(crossing)),
      "crossing": len(crossing),
      "images": sum(map(len, crossing.values())),
      "between": [
        {"parts": [parts[k].name for k in ks], "patients": n} for ks, n in crossed.most_common()
      ],
      "listed": [
        {
          "patient": numbers[p],
          "images": [[parts[k].name, parts[k].table.ids[row]] for k, row in v[:12]],
          "n": len(v),
        }
        for p, v in list(crossing.items())[:20]
      ],
    },
    "images": {
      "bad": [
        [parts[k].name, parts[k].table.ids[row], parts[k].bad[row]] for k, row in bad[:LISTED]
      ],
      "left_out": [list(v) for v in list(left_out.values())[:LISTED]],
      **{
        kind: [
          [
            parts[k].name,
            parts[k].table.ids[row],
            float(found.agreement[k][np.searchsorted(parts[k].good, row)]),
          ]
          for k, row in places[kind]
        ]
        for kind in kinds
      },
    },
    "floor": [
      {
        "source": f.source,
        "kind": f.kind,
        "name": f.name,
        "positive": f.positive,
        "how": f.how,
        "value": f.auroc.value,
        "low": f.auroc.low,
        "high": f.auroc.high,
        "n": f.auroc.n,
        "method": f.auroc.method,
        "undefined": f.auroc.undefined,
      }
      for f in floors
    ],
  }


def patient_statement(parts: Sequence[Part], crossing: int) -> str:
  """States whether patients are in several splits, as far as that is known."""
  if len(parts) < 2:
    return "there is one split, which no patient can leave"
  subject = "patient is" if crossing == 1 else "patients are"
  by_source: dict[int, list[Part]] = {}
  for part in parts:
    by_source.setdefault(part.number, []).append(part)
  return leakage.summary(
    crossing,
    [
      leakage.count_known([*itertools.chain(*(p.patients for p in group))], group[0].info)
      for group in by_source.values()
    ],
    [
      f"images of {group[0].info.name}" if len(by_source) > 1 else "images"
      for group in by_source.values()
    ],
    some=f"{crossing} {subject} in several splits",
    none="no patient is in two splits",
    whether="whether a patient is in two splits",
  )


def _label_counts(part: Part) -> list[dict[str, Any]]:
  y = part.table.labels
  return [
    {
      "name": c,
      "present": int((y[:, i] == 1).sum()),
      "absent": int((y[:, i] == 0).sum()),
      "unknown": int(np.isnan(y[:, i]).sum()),
    }
    for i, c in enumerate(part.info.classes)
  ]


def _attributes(part: Part) -> dict[str, Any]:
  t = part.table
  attributes: dict[str, Any] = {}
  for kind, field in ATTRIBUTES.items():
    value_counts = Counter(getattr(t, field))
    unknown = value_counts.pop("", 0)
    if value_counts:
      attributes[kind] = {
        "counts": dict(value_counts.most_common(LISTED)),
        "unknown": unknown,
        "kinds": len(value_counts),
      }
  ages = t.ages[~np.isnan(t.ages)]
  if len(ages):
    low, middle, high = np.percentile(ages, (25, 50, 75)).tolist()
    attributes["age"] = {
      "median": middle,
      "quartiles": [low, high],
      "least": float(ages.min()),
      "most": float(ages.max()),
      "unknown": int(np.isnan(t.ages).sum()),
    }
  return attributes


def summary(facts: Mapping[str, Any]) -> list[str]:
  """Findings in a few lines, for the terminal."""
  parts, pairs = facts["parts"], facts["pairs"]

  def total(key: str) -> int:
    return sum(p[key] for p in parts)

  return [
    f"copies    {pairs['copies']} pairs show the same radiograph, {pairs['across']} of them "
    "between splits or sources",
    f"same      {pairs['same']} more pairs probably show the same patient, {pairs['across_same']} "
    "of them between",
    f"patients  {facts['patients']['said']}",
    f"images    {total('n')}: {total('unreadable')} unreadable, {facts['left_out']} left out, "
    f"{total('flat')} blank, {total('inverted')} inverted, {total('unlike')} unlike the others",
  ]


def _label_text(part: Part, row: int) -> str:
  """Positive classes of an image, in words."""
  y = part.table.labels[row]
  if part.info.classes and np.isnan(y).all():
    return "unknown"
  return " + ".join(c for c, v in zip(part.info.classes, y, strict=True) if v == 1)

"""Facts of an audit for its page, as plain values."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cxrjax.audit.findings import DEFECTS, Findings, label_text
from cxrjax.audit.floors import ATTRIBUTES
from cxrjax.audit.images import Pair, Place, Split
from cxrjax.data.images import summarize_notes
from cxrjax.data.splits import leakage

LISTED = 200  # entries of a list in run.json; the CSV files are complete
PATIENTS_LISTED, IMAGES_LISTED = 20, 12  # patients in several splits, and images of each


def facts(findings: Findings, shown: Sequence[Pair]) -> dict[str, Any]:
  """All facts for the page; `shown` are the pairs that it shows."""
  left_out = {
    (split.source, name): [split.info.name, name, reason]
    for split in findings.splits
    for name, reason in split.info.skipped
  }
  return {
    "parts": [_split(findings, k) for k in range(len(findings.splits))],
    "left_out": len(left_out),
    "pairs": _pairs(findings) | {"shown": [_pair(findings, pair) for pair in shown]},
    "patients": _patients(findings),
    "images": _images(findings) | {"left_out": list(left_out.values())[:LISTED]},
    "floor": [
      {k: v for k, v in vars(floor).items() if k != "auroc"} | vars(floor.auroc)
      for floor in findings.floors
    ],
  }


def _split(findings: Findings, k: int) -> dict[str, Any]:
  split, defects = findings.splits[k], findings.appearance.defects
  notes = ((split.table.ids[row], note) for note, rows in split.notes.items() for row in rows)
  return {
    "name": split.title,
    "source": split.info.name,
    "split": split.name,
    "n": len(split.table),
    "patients": len({x for x in split.patients if x}),
    "unknown": sum(not x for x in split.patients),
    "tells_patients": split.tells_patients,
    "unreadable": len(split.bad),
    "fingerprint": split.info.fingerprint,
    "notes": [*split.info.notes, *summarize_notes(notes)],
    **{defect: int(defects[defect][k].sum()) for defect in DEFECTS},
    "labels": _label_counts(split),
    "attributes": _attributes(split),
  }


def _pairs(findings: Findings) -> dict[str, Any]:
  """Numbers of pairs, copies and others, within and between splits."""
  copies = [p for p in findings.pairs if p.r >= findings.copy]
  others = [p for p in findings.pairs if p.r < findings.copy]
  n_copies, n_others = (
    Counter(tuple(sorted((p.a[0], p.b[0]))) for p in ps) for ps in (copies, others)
  )
  titles = [split.title for split in findings.splits]
  return {
    "counts": [
      {"a": titles[i], "b": titles[j], "copies": n_copies[i, j], "same": n_others[i, j]}
      for i, j in itertools.combinations_with_replacement(range(len(titles)), 2)
    ],
    "copies": len(copies),
    "same": len(others),
    "across": sum(p.a[0] != p.b[0] for p in copies),
    "across_same": sum(p.a[0] != p.b[0] for p in others),
    "other_patient": sum(p.same_patient is False for p in findings.pairs),
    "other_label": sum(bool(p.differ) for p in copies),
  }


def _pair(findings: Findings, pair: Pair) -> dict[str, Any]:
  """One near-duplicate pair."""

  def side(place: Place) -> dict[str, Any]:
    split, row = findings.splits[place[0]], place[1]
    return {"part": split.title, "id": split.table.ids[row], "labels": label_text(split, row)}

  return {
    "a": side(pair.a),
    "b": side(pair.b),
    "r": pair.r,
    "first": pair.first,
    "copy": pair.r >= findings.copy,
    "same_patient": pair.same_patient,
    "differ": list(pair.differ),
    "across": pair.a[0] != pair.b[0],
  }


def _patients(findings: Findings) -> dict[str, Any]:
  """Patients in several splits."""
  splits, crossing = findings.splits, findings.crossing
  between = Counter(tuple(sorted({k for k, _ in places})) for places in crossing.values())
  return {
    "said": patient_statement(splits, len(crossing)),
    "crossing": len(crossing),
    "images": sum(map(len, crossing.values())),
    "between": [
      {"parts": [splits[k].title for k in ks], "patients": n} for ks, n in between.most_common()
    ],
    "listed": [
      {
        "patient": findings.pseudonyms[patient],
        "images": [
          [splits[k].title, splits[k].table.ids[row]] for k, row in places[:IMAGES_LISTED]
        ],
        "n": len(places),
      }
      for patient, places in itertools.islice(crossing.items(), PATIENTS_LISTED)
    ],
  }


def _images(findings: Findings) -> dict[str, Any]:
  """Unreadable images, and examples of every defect."""
  splits = findings.splits
  bad = [[s.title, s.table.ids[row], s.bad[row]] for s in splits for row in sorted(s.bad)]

  def example(k: int, row: int) -> list[Any]:
    r = findings.appearance.agreement[k][np.searchsorted(splits[k].good, row)]
    return [splits[k].title, splits[k].table.ids[row], float(r)]

  return {"bad": bad[:LISTED]} | {
    defect: [example(*place) for place in findings.examples(defect)] for defect in DEFECTS
  }


def patient_statement(splits: Sequence[Split], crossing: int) -> str:
  """States whether patients are in several splits, as far as that is known."""
  if len(splits) < 2:
    return "there is only one split for patients to be in"
  subject = "patient is" if crossing == 1 else "patients are"
  by_source: dict[int, list[Split]] = {}
  for split in splits:
    by_source.setdefault(split.source, []).append(split)
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


def _label_counts(split: Split) -> list[dict[str, Any]]:
  y = split.table.labels
  return [
    {
      "name": c,
      "present": int((y[:, i] == 1).sum()),
      "absent": int((y[:, i] == 0).sum()),
      "unknown": int(np.isnan(y[:, i]).sum()),
    }
    for i, c in enumerate(split.info.classes)
  ]


def _attributes(split: Split) -> dict[str, Any]:
  t = split.table
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
  splits, pairs = facts["parts"], facts["pairs"]

  def total(key: str) -> int:
    return sum(p[key] for p in splits)

  return [
    f"copies    {pairs['copies']} pairs show the same radiograph, {pairs['across']} of them "
    "between splits or sources",
    f"same      {pairs['same']} more pairs probably show the same patient, {pairs['across_same']} "
    "of them between",
    f"patients  {facts['patients']['said']}",
    f"images    {total('n')}: {total('unreadable')} unreadable, {facts['left_out']} left out, "
    f"{total('flat')} blank, {total('inverted')} inverted, {total('unlike')} unlike the others",
  ]

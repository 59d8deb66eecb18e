"""Rows of an audit's CSV tables: pairs, patients in several splits, images and floors."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cxrjax.audit.findings import DEFECTS, Findings, label_text
from cxrjax.core import tables


def pairs(findings: Findings) -> Iterator[Sequence[Any]]:
  """A row for every near-duplicate pair."""

  def record(pair):
    a, b = (findings.splits[k] for k, _ in (pair.a, pair.b))
    sides = {"a": (a, pair.a[1]), "b": (b, pair.b[1])}
    return {
      "kind": "copy" if pair.r >= findings.copy else "same patient?",
      "r": f"{pair.r:.4f}",
      "first": f"{pair.first:.4f}",
      "across": "" if a is b else "splits" if a.source == b.source else "sources",
      "same_patient": {True: "yes", False: "no", None: ""}[pair.same_patient],
      "labels_differ": ";".join(pair.differ),
      **{f"{side}_source": split.info.name for side, (split, _) in sides.items()},
      **{f"{side}_split": split.name for side, (split, _) in sides.items()},
      **{f"{side}_id": split.table.ids[row] for side, (split, row) in sides.items()},
    }

  columns = (
    "kind r first across same_patient labels_differ a_source a_split a_id b_source b_split b_id"
  )
  return tables.rows(columns, map(record, findings.pairs))


def patients(findings: Findings) -> Iterator[Sequence[Any]]:
  """A row for every image of a patient in several splits."""
  yield "patient", "source", "split", "id"
  for patient, places in findings.crossing.items():
    for k, row in places:
      split = findings.splits[k]
      yield findings.pseudonyms[patient], split.info.name, split.name, split.table.ids[row]


def images(findings: Findings) -> Iterator[Sequence[Any]]:
  """A row for every image, including unreadable ones and those left out by the source."""
  columns = "source split id patient labels site view sex age status reason agreement copies"
  return tables.rows(columns, _image_records(findings))


def _image_records(findings: Findings) -> Iterator[dict[str, Any]]:
  group_sizes = Counter(itertools.chain(*(g.tolist() for g in findings.groups)))
  left_out = set()
  for k, split in enumerate(findings.splits):
    table, index_of = split.table, {int(row): index for index, row in enumerate(split.good)}
    notes: dict[int, list[str]] = {}
    for note, rows in split.notes.items():
      for row in rows:
        notes.setdefault(row, []).append(note)
    for row, name in enumerate(table.ids):
      index, group = index_of.get(row), int(findings.groups[k][row])
      yield {
        "source": split.info.name,
        "split": split.name,
        "id": name,
        "patient": findings.pseudonyms.get(split.patients[row], ""),
        "labels": label_text(split, row),
        "site": table.sites[row],
        "view": table.views[row],
        "sex": table.sexes[row],
        "age": "" if np.isnan(table.ages[row]) else f"{table.ages[row]:g}",
        "reason": split.bad.get(row) or "; ".join(notes.get(row, ())),
        "copies": f"g{group}" if group_sizes[group] > 1 else "",
        **_appearance(findings, k, index),
      }
    for name, reason in split.info.skipped:
      if (split.source, name) not in left_out:
        left_out.add((split.source, name))
        yield {"source": split.info.name, "id": name, "status": "left out", "reason": reason}


def _appearance(findings: Findings, k: int, index: int | None) -> dict[str, str]:
  """Status and agreement of a decoded image; `index` is None for one that could not be decoded."""
  if index is None:
    return {"status": "unreadable"}
  appearance = findings.appearance
  defects = [defect for defect in sorted(DEFECTS) if appearance.defects[defect][k][index]]
  return {
    "status": " ".join(defects) or "good",
    "agreement": f"{appearance.agreement[k][index]:.3f}",
  }


def floors(findings: Findings) -> Iterator[Sequence[Any]]:
  """A row for every floor."""
  columns = "source kind name images positive auroc low high interval how undefined"
  records = (
    {
      **vars(floor),
      "images": floor.auroc.n,
      "interval": floor.auroc.method,
      "undefined": floor.auroc.undefined,
      **{
        column: f"{value:.4f}" if np.isfinite(value) else ""
        for column, value in (
          ("auroc", floor.auroc.value),
          ("low", floor.auroc.low),
          ("high", floor.auroc.high),
        )
      },
    }
    for floor in findings.floors
  )
  return tables.rows(columns, records)

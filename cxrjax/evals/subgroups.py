"""Classifier performance in subgroups of the test images: by age, sex, view and site."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from cxrjax.data.base import Table
from cxrjax.metrics import classification, roc
from cxrjax.metrics.intervals import Interval, undefined

ATTRIBUTES = ("age", "sex", "view", "site")
BANDS = (18, 40, 60, 80)  # years at which a band begins
MIN_PATIENTS = 5  # patients with, and without, a finding; with fewer, metrics are undefined
MAX_GROUPS = 20  # per attribute at most, the largest
SEXES = {"F": "female", "M": "male"}
VIEWS = {"PA": "PA", "AP": "AP", "L": "lateral"}


def table(
  scores: Float[np.ndarray, "n k"],
  labels: Float[np.ndarray, "n k"],
  called: Bool[np.ndarray, "n k"],
  of: Table,
  classes: Sequence[str],
  exclusive: bool,
  attributes: Sequence[str] = ATTRIBUTES,
  bands: Sequence[int] = BANDS,
) -> tuple[list[dict[str, Any]], list[str]]:
  """AUROC, sensitivity and specificity of every class in every group.

  Args:
    scores: higher means more of that class.
    labels: 1, 0 or NaN.
    called: which classes the thresholds call.
    of: the table of the images.
    classes: names of the columns; of two exclusive ones only the last is reported.
    exclusive: one class per image.
    attributes: of `ATTRIBUTES`.
    bands: years at which an age band begins, besides 0.

  Returns:
    Rows with `by`, `group`, `class`, `n` images, `patients`, `positives`, and the intervals
    `auroc`, `sensitivity` and `specificity`, undefined with fewer than five patients with, or
    without, the class; and remarks on attributes that are unknown or the same for all images.
  """
  rows, notes = [], []
  for by in attributes:
    groups = list(iter_groups(by, of, bands))
    if not any(name != "unknown" for name, _ in groups):
      notes.append(f"{by}: not known of any image")
      continue
    if len(groups) == 1:
      notes.append(f"{by}: {groups[0][0]} in all images")
      continue
    if len(groups) > MAX_GROUPS:
      notes.append(f"{by}: the {MAX_GROUPS} largest of {len(groups)} groups")
      largest = sorted(range(len(groups)), key=lambda i: -len(groups[i][1]))[:MAX_GROUPS]
      groups = [groups[i] for i in sorted(largest)]
    for c in [1] if exclusive and len(classes) == 2 else range(len(classes)):
      for name, members in groups:
        index = members[~np.isnan(labels[members, c])]
        patient_ids = [of.patients[i] or f"image {i}" for i in index]
        intervals = _measures(
          scores[index, c], labels[index, c] == 1, called[index, c], patient_ids
        )
        rows.append(
          {
            "by": by,
            "group": name,
            "class": classes[c],
            "n": len(index),
            "patients": len(set(patient_ids)),
            "positives": int((labels[index, c] == 1).sum()),
            **{m: dataclasses.asdict(v) for m, v in intervals.items()},
          }
        )
  return rows, notes


def _measures(
  scores: np.ndarray, truth: np.ndarray, called: np.ndarray, patient_ids: Sequence[str]
) -> dict[str, Interval]:
  """AUROC, sensitivity and specificity, undefined where too few patients determine them."""
  patients = np.asarray(patient_ids, dtype=object)
  too_few = {value: len(set(patients[truth == value])) < MIN_PATIENTS for value in (True, False)}
  undefined_for = {
    value: undefined(
      f"fewer than {MIN_PATIENTS} patients {'with' if value else 'without'} it", len(truth)
    )
    for value in (True, False)
  }

  def rate(measure: str, value: bool) -> Interval:
    if too_few[value]:
      return undefined_for[value]
    decisions, labels = called.astype(np.int64), truth.astype(np.int64)
    return classification.score(measure, decisions, labels, 2, patients)

  missing = next((undefined_for[v] for v in (True, False) if too_few[v]), None)
  auroc = missing or roc.auroc(scores, truth.astype(np.float32), patients)
  return {
    "auroc": auroc,
    "sensitivity": rate("sensitivity", True),
    "specificity": rate("specificity", False),
  }


def iter_groups(
  by: str, of: Table, bands: Sequence[int] = BANDS
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields name and rows of each non-empty group of an attribute, the unknown last."""
  if by == "age":
    edges = [0, *bands]
    index = np.where(np.isnan(of.ages), -1, np.searchsorted(edges, of.ages, side="right") - 1)
    names = [f"{a} to {b - 1}" for a, b in itertools.pairwise(edges)]
    names = [*(f"{n} years" for n in names), f"{edges[-1]} years and older"]
    group_of = np.array([names[i] if i >= 0 else "" for i in index], dtype=object)
    order = names
  else:
    display_names = {"sex": SEXES, "view": VIEWS, "site": {}}[by]
    attribute_values = {"sex": of.sexes, "view": of.views, "site": of.sites}[by]
    group_of = np.array([display_names.get(v, v) for v in attribute_values], dtype=object)
    order = [*display_names.values(), *sorted(set(group_of) - set(display_names.values()) - {""})]
  for name in [*order, ""]:
    rows = np.flatnonzero(group_of == name)
    if len(rows):
      yield name or "unknown", rows

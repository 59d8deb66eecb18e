"""How well a classifier does in parts of the test images: by age, sex, view and site."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from cxrjax.data.base import Table
from cxrjax.metrics import classification, patient_bootstrap, roc
from cxrjax.metrics.intervals import Interval, undefined

ATTRIBUTES = ("age", "sex", "view", "site")
BANDS = (18, 40, 60, 80)  # years at which a band begins
LEAST = 5  # patients with a finding, and without it; of fewer nothing is told
GROUPS = 20  # of one attribute, the largest
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
    of: what is known of the images.
    classes: names of the columns; of two exclusive ones only the last is told.
    exclusive: one class an image.
    attributes: of `ATTRIBUTES`.
    bands: years at which a band of age begins, beside 0.

  Returns:
    Rows with `by`, `group`, `class`, `n` images, `patients`, `positives`, and the intervals
    `auroc`, `sensitivity` and `specificity`, undefined with fewer than five patients that have, or
    have not, the class; and remarks on attributes that nothing is known of or that divide nothing.
  """
  rows, notes = [], []
  for by in attributes:
    groups = list(divided(by, of, bands))
    if not any(name != "unknown" for name, _ in groups):
      notes.append(f"{by}: not known of any image")
      continue
    if len(groups) == 1:
      notes.append(f"{by}: {groups[0][0]} in all images")
      continue
    if len(groups) > GROUPS:
      notes.append(f"{by}: the {GROUPS} largest of {len(groups)} groups")
      largest = sorted(groups, key=lambda g: -len(g[1]))[:GROUPS]
      groups = [g for g in groups if any(g is kept for kept in largest)]
    for c in [1] if exclusive and len(classes) == 2 else range(len(classes)):
      for name, members in groups:
        index = members[~np.isnan(labels[members, c])]
        owners = [of.patients[i] or f"image {i}" for i in index]
        found = _measures(scores[index, c], labels[index, c] == 1, called[index, c], owners)
        rows.append(
          {
            "by": by,
            "group": name,
            "class": classes[c],
            "n": len(index),
            "patients": len(set(owners)),
            "positives": int((labels[index, c] == 1).sum()),
            **{m: dataclasses.asdict(v) for m, v in found.items()},
          }
        )
  return rows, notes


def _measures(
  scores: np.ndarray, truth: np.ndarray, called: np.ndarray, owners: Sequence[str]
) -> dict[str, Interval]:
  """Those that enough patients decide."""
  patients = np.asarray(owners, dtype=object)
  few = {value: len(set(patients[truth == value])) < LEAST for value in (True, False)}
  said = {
    value: undefined(f"fewer than {LEAST} patients {'with' if value else 'without'} it", len(truth))
    for value in (True, False)
  }

  def rate(measure: str, value: bool) -> Interval:
    if few[value]:
      return said[value]
    call, real = called.astype(np.int64), truth.astype(np.int64)
    return patient_bootstrap.interval(classification.decisions(measure, call, real, 2, patients))

  lacking = next((said[v] for v in (True, False) if few[v]), None)
  area = lacking or roc.auroc(scores, truth.astype(np.float32), patients)
  return {
    "auroc": area,
    "sensitivity": rate("sensitivity", True),
    "specificity": rate("specificity", False),
  }


def divided(by: str, of: Table, bands: Sequence[int] = BANDS) -> Iterator[tuple[str, np.ndarray]]:
  """Names and rows of the groups of an attribute that have images, what is unknown last."""
  if by == "age":
    edges = [0, *bands]
    index = np.where(np.isnan(of.ages), -1, np.searchsorted(edges, of.ages, side="right") - 1)
    names = [f"{a} to {b - 1}" for a, b in itertools.pairwise(edges)]
    names = [*(f"{n} years" for n in names), f"{edges[-1]} years and older"]
    values = np.array([names[i] if i >= 0 else "" for i in index], dtype=object)
    order = names
  else:
    known = {"sex": SEXES, "view": VIEWS, "site": {}}[by]
    raw = {"sex": of.sexes, "view": of.views, "site": of.sites}[by]
    values = np.array([known.get(v, v) for v in raw], dtype=object)
    order = [*known.values(), *sorted(set(values) - set(known.values()) - {""})]
  for name in [*order, ""]:
    rows = np.flatnonzero(values == name)
    if len(rows):
      yield name or "unknown", rows

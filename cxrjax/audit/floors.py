"""Thumbnail floors of an audit: how far 16x16 pixels tell labels, people, sites and sources."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np

from cxrjax.audit.images import Split
from cxrjax.evals import thumbnail_baseline
from cxrjax.metrics import roc
from cxrjax.metrics.intervals import Interval

MIN_IMAGES = 20  # images with and without a sex, view or site that its floor needs
SITES = 6  # values of an attribute that get a floor, the most common ones
ATTRIBUTES = {"site": "sites", "view": "views", "sex": "sexes"}  # names of `Table` fields


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


def floors(splits: Sequence[Split], owners: Sequence[Sequence[str]], folds: int) -> list[Floor]:
  """Floors of every label, sex, view and site of each source, and of the sources themselves."""
  thumbnails = [thumbnail_baseline.thumbnails(p.images) for p in splits]
  good_owners = [[keys[i] for i in p.good.tolist()] for p, keys in zip(splits, owners, strict=True)]
  results = []
  for number in sorted({p.source for p in splits}):
    indices = [k for k, p in enumerate(splits) if p.source == number]
    targets = _targets([splits[k] for k in indices])
    if targets:
      results += _compute_floors(
        splits[indices[0]].info.name,
        targets,
        [splits[k].name for k in indices],
        [thumbnails[k] for k in indices],
        [good_owners[k] for k in indices],
        folds,
      )
  sources = sorted({p.source for p in splits})
  if len(sources) > 1:
    names = {p.source: p.info.name for p in splits}
    source_numbers = np.concatenate([np.full(len(p.good), p.source) for p in splits])
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


def _targets(splits: Sequence[Split]) -> list[tuple[str, str, np.ndarray]]:
  """Prediction targets of a source: kind, name and, for each image, 1, 0 or NaN."""
  tables = [p.images.table for p in splits]
  info = splits[0].info
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
  owners_of_splits: Sequence[Sequence[str]],
  folds: int,
) -> list[Floor]:
  """Floors on the test split if there is another one to fit to, otherwise cross-validated."""
  split_of = np.concatenate([np.full(len(v), k) for k, v in enumerate(thumbnails)])
  features, owners = np.concatenate(thumbnails), np.array(list(itertools.chain(*owners_of_splits)))
  y = np.stack([t[2] for t in targets], 1)
  is_test = np.zeros(len(split_of), bool)
  if "test" in names:
    is_test = split_of == names.index("test")
  if is_test.any() and not is_test.all():
    evaluated, how = is_test, "fitted on the other splits, tested on test"
    scores = thumbnail_baseline.ridge(features[~is_test], y[~is_test], features[is_test])
  else:
    evaluated = np.ones(len(split_of), bool)
    how = f"cross-validated in {folds} folds, patients and duplicates kept together"
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

"""Semi-supervised sources, where the labels of only some images are known."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from cxrjax.core.errors import UserError
from cxrjax.data.base import Part, Record, Source
from cxrjax.data.splits import subset as subsets
from cxrjax.data.splits.subset import Subset

KEY = "config.data.labelled"


class Labelled(Subset):
  """All images of a source, with the labels of some; the labels of the others are NaN.

  With a share, labelled and unlabelled images become parts of a pool, drawn by weight: labelled
  images come first (in a pool with weights, within each of its parts, and both kinds are drawn in
  the proportions of the parts).

  Args:
    source: the full source.
    known: rows whose labels stay; None is all.
    share: share of labelled images among those drawn, below 1; 0 draws every image as before, and
      so does any share if all images are labelled.
    said: which labels are known, for `info.split`.
    notes: how they were chosen.

  Raises:
    UserError: an invalid share, or a share without labelled images.
  """

  def __init__(
    self,
    source: Source,
    known: Int64[np.ndarray, "_"] | None = None,
    share: Any = 0.0,
    said: str = "",
    notes: Sequence[str] = (),
  ):
    is_number = isinstance(share, int | float) and not isinstance(share, bool)
    if not is_number or not 0 <= share < 1:
      raise UserError(
        f"{KEY}_share={share!r} is not a share; give a number from 0 (all images are "
        "drawn equally often) to below 1, such as 0.25"
      )
    labels = source.table.labels
    if known is not None:
      hidden = np.setdiff1d(np.arange(len(labels)), known)
      labels = labels.copy()
      labels[hidden] = np.nan
    is_labelled = labelled(labels, source.info.exclusive)
    if share and not is_labelled.any():
      raise UserError(
        f"{KEY}_share={share:g}, but no label of {source.info.name} "
        f"[{source.info.split}] is known; give a labelled source, or more labels"
      )
    rows, parts = np.arange(len(labels), dtype=np.int64), source.info.parts
    if share and not is_labelled.all():
      source_parts = parts or (Part(source.info.name, len(labels), 1.0),)
      part_of_row = np.repeat(np.arange(len(source_parts)), [part.rows for part in source_parts])
      rows = np.lexsort((~is_labelled, part_of_row))
      counts = np.bincount(part_of_row[is_labelled], minlength=len(source_parts)).tolist()
      parts = _split_parts(source_parts, counts, share)
    split = source.info.split + (f", labels of {said}" if said else "")
    note = f"labels of {is_labelled.sum()} of {len(is_labelled)} images are known"
    if parts != source.info.parts:
      note += f"; {share:g} of the images drawn are labelled"
    super().__init__(source, rows, split, [*notes, note])
    self.table = dataclasses.replace(self.table, labels=labels[rows])
    content = f"{self.info.fingerprint}\0{np.packbits(is_labelled[rows]).tobytes().hex()}"
    self.info = dataclasses.replace(
      self.info, parts=parts, fingerprint=hashlib.sha256(content.encode()).hexdigest()
    )

  def read(self, index: int, at_least: int | None = None) -> Record:
    """Reads image `index` with its known labels; see `Subset.read`."""
    return dataclasses.replace(super().read(index, at_least), labels=self.table.labels[index])


def hide_labels(source: Source, known: str = "", share: Any = 0.0, seed: int = 0) -> Labelled:
  """Hides the labels of all but some images.

  Args:
    source: the full source.
    known: which labels stay, `10 %` or `16 per class`: those of the images that `subset.take`
      selects with the same text and seed, so that smaller choices are nested in larger ones; all by
      default.
    share: share of labelled images among those drawn; see `Labelled`.
    seed: random seed of the choice.

  Raises:
    UserError: an invalid choice or share, or a source without labels.
  """
  if not known:
    return Labelled(source, share=share)
  subset = subsets.take(source, known, seed, key=KEY)
  names = set(subset.table.ids)
  rows = np.array([i for i, name in enumerate(source.table.ids) if name in names], np.int64)
  description = subset.info.split.removeprefix(f"{source.info.split}, ")
  return Labelled(source, rows, share, description, [f"labels of {subset.info.notes[-1]}"])


def labelled(labels: Float32[np.ndarray, "n k"], exclusive: bool) -> Bool[np.ndarray, "n"]:
  """Mask of the images with a known class, or with at least one known finding."""
  known = ~np.isnan(labels)
  return known.all(1) & known.any(1) if exclusive else known.any(1)


def _split_parts(
  parts: Sequence[Part], labelled_counts: Sequence[int], share: float
) -> tuple[Part, ...]:
  """Splits each part by whether images are labelled; the labelled weights sum to `share`."""
  other_counts = [part.rows - n for part, n in zip(parts, labelled_counts, strict=True)]
  totals = [
    sum(part.weight for part, n in zip(parts, counts, strict=True) if n)
    for counts in (labelled_counts, other_counts)
  ]
  result = []
  for part, *counts in zip(parts, labelled_counts, other_counts, strict=True):
    for name, n, kind_share, total in zip(
      ("labelled", "not labelled"), counts, (share, 1 - share), totals, strict=True
    ):
      if n:
        result.append(Part(f"{part.name}, {name}", n, kind_share * part.weight / total))
  return tuple(result)

"""Few labels and many images: a source whose labels are known of some of its images only."""

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
  """All images of a source; the labels of some are known, the others' are NaN.

  With a share, the labelled images and the others are parts of a pool, drawn by weight: labelled
  images come first (in a pool with weights, those of each of its parts before the part's others,
  and both are drawn in the parts' proportions).

  Args:
    source: the whole.
    known: rows whose labels stay; None is all.
    share: of the images drawn that are labelled, below 1; 0 draws every image as before. Where all
      images are labelled it has no meaning, and all are drawn as before.
    said: which labels are known, for `info.split`.
    notes: how they were chosen.

  Raises:
    UserError: a share that is none, or of no labelled image.
  """

  def __init__(
    self,
    source: Source,
    known: Int64[np.ndarray, "_"] | None = None,
    share: Any = 0.0,
    said: str = "",
    notes: Sequence[str] = (),
  ):
    number = isinstance(share, int | float) and not isinstance(share, bool)
    if not number or not 0 <= share < 1:
      raise UserError(
        f"{KEY}_share={share!r} is no share; give a number from 0 (all images are "
        "drawn equally often) to below 1, such as 0.25"
      )
    labels = source.table.labels
    if known is not None:
      hidden = np.setdiff1d(np.arange(len(labels)), known)
      labels = labels.copy()
      labels[hidden] = np.nan
    has = labelled(labels, source.info.exclusive)
    if share and not has.any():
      raise UserError(
        f"{KEY}_share={share:g}, but no label of {source.info.name} "
        f"[{source.info.split}] is known; give a labelled source, or more labels"
      )
    rows, parts = np.arange(len(labels), dtype=np.int64), source.info.parts
    if share and not has.all():
      whole = parts or (Part(source.info.name, len(labels), 1.0),)
      of_part = np.repeat(np.arange(len(whole)), [part.rows for part in whole])
      rows = np.lexsort((~has, of_part))
      parts = _parts(whole, np.bincount(of_part[has], minlength=len(whole)).tolist(), share)
    split = source.info.split + (f", labels of {said}" if said else "")
    text = f"labels of {has.sum()} of {len(has)} images are known"
    text += f"; {share:g} of the images drawn are labelled" if parts != source.info.parts else ""
    super().__init__(source, rows, split, [*notes, text])
    self.table = dataclasses.replace(self.table, labels=labels[rows])
    content = f"{self.info.fingerprint}\0{np.packbits(has[rows]).tobytes().hex()}"
    self.info = dataclasses.replace(
      self.info, parts=parts, fingerprint=hashlib.sha256(content.encode()).hexdigest()
    )

  def read(self, index: int, at_least: int | None = None) -> Record:
    """Image `index` with what is known of its labels; see `Subset.read`."""
    return dataclasses.replace(super().read(index, at_least), labels=self.table.labels[index])


def hide(source: Source, known: str = "", share: Any = 0.0, seed: int = 0) -> Labelled:
  """Hides the labels of all but some images.

  Args:
    source: the whole.
    known: whose labels stay, `10 %` or `16 per class`: the images that `subset.take` gives for the
      same words and seed, so that fewer labels are among more; nothing is all.
    share: of the images drawn that are labelled; see `Labelled`.
    seed: another seed, other labels.

  Raises:
    UserError: words or a share that are none, or a source without labels.
  """
  if not known:
    return Labelled(source, share=share)
  chosen = subsets.take(source, known, seed, key=KEY)
  names = set(chosen.table.ids)
  rows = np.array([i for i, name in enumerate(source.table.ids) if name in names], np.int64)
  said = chosen.info.split.removeprefix(f"{source.info.split}, ")
  return Labelled(source, rows, share, said, [f"labels of {chosen.info.notes[-1]}"])


def labelled(labels: Float32[np.ndarray, "n k"], exclusive: bool) -> Bool[np.ndarray, "n"]:
  """Images whose class is known, or something of their findings."""
  known = ~np.isnan(labels)
  return known.all(1) & known.any(1) if exclusive else known.any(1)


def _parts(whole: Sequence[Part], known: Sequence[int], share: float) -> tuple[Part, ...]:
  """Each part as two, labelled and not, those that have images; labelled ones weigh `share`."""
  rest = [part.rows - n for part, n in zip(whole, known, strict=True)]
  totals = [
    sum(part.weight for part, n in zip(whole, counts, strict=True) if n) for counts in (known, rest)
  ]
  found = []
  for part, *counts in zip(whole, known, rest, strict=True):
    for name, n, of, total in zip(
      ("labelled", "not labelled"), counts, (share, 1 - share), totals, strict=True
    ):
      if n:
        found.append(Part(f"{part.name}, {name}", n, of * part.weight / total))
  return tuple(found)

"""What an audit finds in the images of all splits, in patients and between splits."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float32

from cxrjax.audit import polarity
from cxrjax.audit.floors import Floor
from cxrjax.audit.images import Pair, Place, Split

SHOWN = 24  # images of each kind on the page
DEFECTS = ("inverted", "flat", "unlike")  # bones black; blank; like no others


@dataclasses.dataclass(frozen=True, eq=False)
class Appearance:
  """Agreement of the decoded images of every split with the common pattern, and `DEFECTS`."""

  agreement: list[Float32[np.ndarray, "_"]]
  defects: Mapping[str, list[Bool[np.ndarray, "_"]]]


def appearance(splits: Sequence[Split]) -> Appearance:
  """Finds blank, inverted and atypical images."""
  described = [polarity.describe(split.images) for split in splits]
  agreement = polarity.agreement(*(x for x, _ in described))
  flat = [spread < polarity.FLAT for _, spread in described]
  pairs = list(zip(agreement, flat, strict=True))
  defects = {
    "inverted": [(r <= polarity.INVERTED) & ~is_flat for r, is_flat in pairs],
    "flat": flat,
    "unlike": [(np.abs(r) < polarity.UNLIKE) & ~is_flat for r, is_flat in pairs],
  }
  return Appearance(agreement, defects)


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
  """All that an audit finds.

  Attributes:
    splits: of all sources.
    pairs: near-duplicates, the most similar first.
    copy: correlation from which a pair shows the same radiograph.
    groups: number of the group of copies of every image, by split.
    appearance: of the decoded images.
    crossing: patients in several splits, with the places of their images.
    floors: AUROCs of thumbnails.
  """

  splits: Sequence[Split]
  pairs: Sequence[Pair]
  copy: float
  groups: Sequence[np.ndarray]
  appearance: Appearance
  crossing: Mapping[str, Sequence[Place]]
  floors: Sequence[Floor]

  @functools.cached_property
  def pseudonyms(self) -> dict[str, str]:
    """`p1`, `p2`, ... in image order, so that no patient's name is written."""
    keys = dict.fromkeys(p for split in self.splits for p in split.patients if p)
    return {patient: f"p{k + 1}" for k, patient in enumerate(keys)}

  def shown_pairs(self, count: int) -> list[Pair]:
    """Pairs to show, the most similar: between splits first, but up to half within splits."""
    between = [p for p in self.pairs if p.a[0] != p.b[0]]
    inside = [p for p in self.pairs if p.a[0] == p.b[0]]
    between = between[: count - min(len(inside), count // 2)]
    return between + inside[: count - len(between)]

  def examples(self, defect: str) -> list[Place]:
    """Images to show of a defect, the clearest first."""
    places = [
      (abs(float(r)) if defect == "unlike" else float(r), (k, int(split.good[i])))
      for k, split in enumerate(self.splits)
      for i, r in enumerate(self.appearance.agreement[k])
      if self.appearance.defects[defect][k][i]
    ]
    return [place for _, place in sorted(places)[:SHOWN]]


def label_text(split: Split, row: int) -> str:
  """Positive classes of an image, in words."""
  y = split.table.labels[row]
  if split.info.classes and np.isnan(y).all():
    return "unknown"
  return " + ".join(c for c, v in zip(split.info.classes, y, strict=True) if v == 1)

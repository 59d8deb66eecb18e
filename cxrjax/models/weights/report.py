"""What became of the arrays of a weights file."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Report:
  """What was loaded, in names of our parameters (`left`: of the file's arrays).

  Attributes:
    path: of the file; "" for parameters from memory.
    source: the layout: "timm" (its names, which DeiT's files and renamed ones of DINO's share too),
      "dino", "dinov2", "mae", "moco-v3", "torchvision", "hf-vit", "hf-dinov2", "big_vision" or
      "cxrjax".
    used: parameters that hold what the file holds.
    resized: those of them that were resampled to another size.
    new: parameters that the file has nothing for.
    left: arrays of the file that the network has no place for; "student.*" stands for many.
    pixels: mean and deviation of gray levels in 0..1 that the file's network was fed with, per
      channel, as they were folded into the first layer; None: taken as they were.
    notes: what makes outputs differ from the source's, one sentence each.
  """

  path: str
  source: str
  used: tuple[str, ...]
  resized: tuple[str, ...] = ()
  left: tuple[str, ...] = ()
  new: tuple[str, ...] = ()
  pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None
  notes: tuple[str, ...] = ()

  def summary(self) -> str:
    """One line."""
    parts = [f"{len(self.used)} parameters used"]
    for word in ("resized", "new", "left"):
      names = getattr(self, word)
      if names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        parts.append(f"{len(names)} {word} ({shown})")
    return f"{self.path or 'parameters'} ({self.source}): " + "; ".join([*parts, *self.notes])

  def facts(self) -> dict[str, Any]:
    """The same for JSON: `used` is a number, the others are lists of names."""
    return {
      "path": self.path,
      "source": self.source,
      "used": len(self.used),
      **{word: list(getattr(self, word)) for word in ("resized", "new", "left", "notes")},
      "pixels": None if self.pixels is None else [list(values) for values in self.pixels],
    }

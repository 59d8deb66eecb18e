"""Report on how the arrays of a weights file were used."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Report:
  """What was loaded, by names of our parameters (`left`: of the file's arrays).

  Attributes:
    path: path of the file; "" for parameters from memory.
    source: the layout: "timm" (its names, which DeiT's and renamed DINO files share),
      "dino", "dinov2", "mae", "moco-v3", "torchvision", "hf-vit", "hf-dinov2", "big_vision" or
      "cxrjax".
    used: parameters taken from the file.
    resized: those of them that were resampled to another size.
    new: parameters that the file lacks.
    left: arrays of the file that the network does not use; "student.*" stands for many.
    pixels: mean and standard deviation, per channel and for gray levels in 0..1, of the file's
      input normalization, as folded into the first layer; None: nothing was folded.
    notes: reasons why outputs differ from the source's, one sentence each.
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
    """Summarizes the report in one line."""
    parts = [f"{len(self.used)} parameters used"]
    for word in ("resized", "new", "left"):
      names = getattr(self, word)
      if names:
        examples = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        parts.append(f"{len(names)} {word} ({examples})")
    return f"{self.path or 'parameters'} ({self.source}): " + "; ".join([*parts, *self.notes])

  def facts(self) -> dict[str, Any]:
    """The report for JSON: `used` is a count, the others are lists of names."""
    return {
      "path": self.path,
      "source": self.source,
      "used": len(self.used),
      **{word: list(getattr(self, word)) for word in ("resized", "new", "left", "notes")},
      "pixels": None if self.pixels is None else [list(values) for values in self.pixels],
    }

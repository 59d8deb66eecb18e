"""What a source of radiographs is."""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8, UInt16


@dataclasses.dataclass(frozen=True)
class Record:
  """One radiograph, decoded.

  Attributes:
    image: gray pixels as published, 8 or 16 bit.
    labels: one value per class of the source; 1 present, 0 absent, NaN unknown. For exclusive
      classes a one-hot vector.
    mask: lungs (1) and the rest (0), of the image's size, where the source has one.
    id: unique within the source.
    patient: images of one patient share it, across all splits of a source.
    site: where the image was taken; empty where unknown.
  """

  image: UInt8[np.ndarray, "h w 1"] | UInt16[np.ndarray, "h w 1"]
  labels: Float32[np.ndarray, "k"]
  mask: UInt8[np.ndarray, "h w 1"] | None
  id: str
  patient: str
  site: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
  """All that is known of a source's images without decoding one: row `i` is image `i`."""

  ids: tuple[str, ...]
  patients: tuple[str, ...]
  sites: tuple[str, ...]
  labels: Float32[np.ndarray, "n k"]


@dataclasses.dataclass(frozen=True)
class SourceInfo:
  """What a source is.

  Attributes:
    name: as the user gave it, e.g. `"tfds:chest_xray_pneumonia"`.
    split: which split of it this is.
    classes: names of the label columns; empty where there are no labels.
    exclusive: one class per image (one-hot labels), or several findings at once.
    splits: number of images of every split the source has.
    fingerprint: hash of the content (encoded bytes, or the drawing parameters); the same content
      gives the same fingerprint on every machine, and decides which cache is used.
    notes: what a reader of the report should know (licence, how the split was made).
  """

  name: str
  split: str
  classes: tuple[str, ...]
  exclusive: bool
  splits: dict[str, int]
  fingerprint: str
  notes: tuple[str, ...] = ()


@runtime_checkable
class Source(Protocol):
  """A finite sequence of radiographs, random access, deterministic."""

  info: SourceInfo
  table: Table

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Record: ...

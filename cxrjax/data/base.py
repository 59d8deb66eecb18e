"""What a source of radiographs is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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
    mask: lungs (1) and the rest (0), of the image's shape (its resolution may differ), where the
      source has one.
    id: unique within the source.
    patient: images of one patient share it, across all splits of a source; empty where unknown.
    site: where the image was taken; empty where unknown.
    window: gray levels of `image` that are shown black and white, low < high, where the source
      knows them (a DICOM's VOI window); None leaves the choice to the pixels.
    notes: what a user should know of how the image was read.
  """

  image: UInt8[np.ndarray, "h w 1"] | UInt16[np.ndarray, "h w 1"]
  labels: Float32[np.ndarray, "k"]
  mask: UInt8[np.ndarray, "rows columns 1"] | None
  id: str
  patient: str
  site: str = ""
  window: tuple[float, float] | None = None
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
  """All that is known of a source's images without decoding one: row `i` is image `i`.

  Attributes:
    ids: unique name of each image.
    patients: images of one patient share it; empty where unknown.
    sites: where each was taken; empty where unknown.
    labels: one value per class: 1 present, 0 absent, NaN unknown.
    views: `PA`, `AP`, `L` (lateral), or empty where unknown.
    sexes: `F`, `M`, or empty where unknown.
    ages: in years; NaN where unknown.

  Views, sexes and ages may be left out; all are then unknown.
  """

  ids: tuple[str, ...]
  patients: tuple[str, ...]
  sites: tuple[str, ...]
  labels: Float32[np.ndarray, "n k"]
  views: tuple[str, ...] = ()
  sexes: tuple[str, ...] = ()
  ages: Float32[np.ndarray, "n"] = None  # type: ignore[assignment]  # until __post_init__

  def __post_init__(self) -> None:
    n = len(self.ids)
    for name in ("views", "sexes"):
      if not getattr(self, name):
        object.__setattr__(self, name, ("",) * n)
    if self.ages is None:
      object.__setattr__(self, "ages", np.full(n, np.nan, np.float32))
    for name in ("patients", "sites", "labels", "views", "sexes", "ages"):
      if len(getattr(self, name)) != n:
        raise ValueError(f"{name} has {len(getattr(self, name))} rows, ids {n}")

  def __len__(self) -> int:
    return len(self.ids)

  def take(self, rows: Sequence[int] | np.ndarray) -> Table:
    """Some rows, in that order."""
    rows = np.asarray(rows, dtype=np.int64)
    pick = rows.tolist()
    texts = {
      name: tuple(getattr(self, name)[i] for i in pick)
      for name in ("ids", "patients", "sites", "views", "sexes")
    }
    return Table(**texts, labels=self.labels[rows], ages=self.ages[rows])


@dataclasses.dataclass(frozen=True)
class Part:
  """One source of a pool: `rows` images in a row, and how often they are drawn.

  Attributes:
    name: of the source.
    rows: how many of the pool's rows, which follow those of the part before, are its.
    weight: share of the images drawn that are its, relative to the other parts' weights.
  """

  name: str
  rows: int
  weight: float


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
    dataset: whose images these are: two sources with the same `dataset` name the same images the
      same; by default `name`.
    naming: how the patients are named, one entry for each set of names: the same name stands for
      the same patient within an entry, and says nothing between two; by default `dataset` alone.
    parts: the sources of a pool, where they are drawn by weight; empty where every image is drawn
      equally often.
    skipped: images the source itself left out, and why.
    advice: what a user can do to give it labels, where it has none; for errors.
  """

  name: str
  split: str
  classes: tuple[str, ...]
  exclusive: bool
  splits: dict[str, int]
  fingerprint: str
  notes: tuple[str, ...] = ()
  dataset: str = ""
  parts: tuple[Part, ...] = ()
  skipped: tuple[tuple[str, str], ...] = ()
  naming: tuple[str, ...] = ()
  advice: str = ""

  def __post_init__(self) -> None:
    if not self.dataset:
      object.__setattr__(self, "dataset", self.name)
    if not self.naming:
      object.__setattr__(self, "naming", (self.dataset,))


@runtime_checkable
class Described(Protocol):
  """What has a table: a source, or its decoded images."""

  @property
  def info(self) -> SourceInfo: ...

  @property
  def table(self) -> Table: ...


@runtime_checkable
class Source(Protocol):
  """A finite sequence of radiographs, random access, deterministic."""

  info: SourceInfo
  table: Table

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Record: ...


def is_mask(encoded: bytes) -> bool:
  """Whether a stored mask is one, and not what stands for none (see `no_mask`)."""
  pixel = (1).to_bytes(4, "big")
  return bool(encoded) and not (encoded[1:4] == b"PNG" and encoded[16:24] == pixel + pixel)

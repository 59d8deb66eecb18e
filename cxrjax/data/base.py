"""Interface of a source of radiographs: its records, table and description."""

from __future__ import annotations

import abc
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
    mask: lung mask, 1 inside and 0 outside, covering the same area as the image (its resolution may
      differ); None if the source has none.
    id: name of the image, unique within the source.
    patient: name of the patient, the same in all splits of a source; empty if unknown.
    site: where the image was taken; empty if unknown.
    window: gray levels of `image` displayed as black and white, low < high, if the source provides
      them (a DICOM's VOI window); with None they are derived from the pixels.
    notes: remarks for users on how the image was read.
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
  """Metadata and labels of a source's images, known without decoding any; row `i` is image `i`.

  Attributes:
    ids: unique name of each image.
    patients: patient of each image; empty if unknown.
    sites: where each image was taken; empty if unknown.
    labels: one value per class: 1 present, 0 absent, NaN unknown.
    views: `PA`, `AP`, `L` (lateral), or empty if unknown.
    sexes: `F`, `M`, or empty if unknown.
    ages: in years; NaN if unknown.

  Views, sexes and ages may be omitted; all are then unknown.
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
    """The given rows, in that order."""
    rows = np.asarray(rows, dtype=np.int64)
    indices = rows.tolist()
    texts = {
      name: tuple(getattr(self, name)[i] for i in indices)
      for name in ("ids", "patients", "sites", "views", "sexes")
    }
    return Table(**texts, labels=self.labels[rows], ages=self.ages[rows])


@dataclasses.dataclass(frozen=True)
class Part:
  """One source of a pool: `rows` consecutive images, and how often they are drawn.

  Attributes:
    name: name of the source.
    rows: number of its rows in the pool, which follow those of the previous part.
    weight: its share of the images drawn, relative to the other parts' weights.
  """

  name: str
  rows: int
  weight: float


@dataclasses.dataclass(frozen=True)
class SourceInfo:
  """Description of a source.

  Attributes:
    name: as given by the user, e.g. `"tfds:chest_xray_pneumonia"`.
    split: the split of the source.
    classes: names of the label columns; empty if there are no labels.
    exclusive: one class per image (one-hot labels), or several findings at once.
    splits: number of images in each split of the source.
    fingerprint: hash of the content (encoded bytes, or the drawing parameters); the same on every
      machine for the same content, and the key of the cache.
    notes: remarks for readers of the report (license, how the split was made).
    dataset: origin of the images: two sources with the same `dataset` use the same names for the
      same images; by default `name`.
    naming: naming schemes of the patients: equal names mean the same patient within a scheme, and
      nothing across two; by default `dataset` alone.
    parts: the sources of a pool that are drawn by weight; empty if all images are drawn equally
      often.
    skipped: images the source itself left out, and why.
    advice: how a user can add labels if there are none; for errors.
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
  """Anything with a description and a table: a source, or its decoded images."""

  @property
  def info(self) -> SourceInfo: ...

  @property
  def table(self) -> Table: ...


class Source(abc.ABC):
  """A finite, deterministic, randomly accessible sequence of radiographs.

  Subclasses set `info` and `table`, and define `__len__` and `__getitem__`.

  Attributes:
    info: description.
    table: metadata and labels of all images, known without decoding any.
    bits: bit depth of the pixels, 8 or 16; None to look at some images.
    groups: i[n], the part of a mixture that each image is from, which subsets and splits keep in
      proportion; None if the source is no mixture.
  """

  info: SourceInfo
  table: Table
  bits: int | None = None
  groups: np.ndarray | None = None

  @abc.abstractmethod
  def __len__(self) -> int:
    """Number of images."""

  @abc.abstractmethod
  def __getitem__(self, index: int) -> Record:
    """Image `index`, the same every time; raises an IndexError beyond the last."""

  def read(self, index: int, at_least: int | None = None) -> Record:
    """Image `index`; a source may decode it at reduced size, not below `at_least` pixels."""
    del at_least
    return self[index]


def is_mask(encoded: bytes) -> bool:
  """Whether a stored mask is a real one, and not the 1 x 1 PNG for no mask (see `no_mask`)."""
  one = (1).to_bytes(4, "big")
  is_placeholder = encoded[1:4] == b"PNG" and encoded[16:24] == one + one  # width and height
  return bool(encoded) and not is_placeholder

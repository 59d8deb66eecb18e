"""Decoded radiographs with their metadata and labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64, UInt8, UInt16

from cxrjax.data.base import SourceInfo, Table
from cxrjax.data.decoding import windowing


def evenly_spaced(n: int, most: int) -> Int64[np.ndarray, "m"]:
  """Rows 0..n-1, or `most` evenly spaced ones if there are more."""
  return np.arange(n) if n <= most else np.linspace(0, n - 1, most).astype(np.int64)


@runtime_checkable
class Base(Protocol):
  """Base of `Rows`: an array, or an object with array-like indexing by a list of rows."""

  @property
  def shape(self) -> tuple[int, ...]: ...

  @property
  def dtype(self) -> np.dtype: ...

  @property
  def ndim(self) -> int: ...

  def __getitem__(self, rows: Any) -> np.ndarray: ...


class LazyRows:
  """Lazy selection of rows of an array, such as a file: rows are read when indexed.

  Args:
    base: the array.
    rows: its selected rows, in order.
  """

  def __init__(self, base: Base, rows: np.ndarray):
    self._base, self._rows = base, rows

  @property
  def shape(self) -> tuple[int, ...]:
    return (len(self._rows), *self._base.shape[1:])

  @property
  def dtype(self) -> np.dtype:
    return self._base.dtype

  @property
  def ndim(self) -> int:
    return self._base.ndim

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, key: Any) -> np.ndarray:
    row_key, *other_keys = key if isinstance(key, tuple) else (key,)
    if row_key is Ellipsis:
      row_key, other_keys = slice(None), [Ellipsis, *other_keys]
    rows = self._rows[row_key]
    values = np.asarray(self._base[rows])
    return values[tuple(other_keys) if rows.ndim == 0 else (slice(None), *other_keys)]

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    return np.asarray(self._base[self._rows], dtype=dtype)

  def take(self, rows: np.ndarray) -> LazyRows:
    """Selects some of these rows."""
    return LazyRows(self._base, self._rows[rows])


def take(array: np.ndarray | LazyRows, rows: np.ndarray) -> np.ndarray | LazyRows:
  """Selects rows of an array without copying: a view if they are consecutive, else `Rows`."""
  if isinstance(array, LazyRows):
    return array.take(rows)
  if len(rows) and rows[0] >= 0 and (np.diff(rows) == 1).all():
    return array[rows[0] : rows[-1] + 1]
  return LazyRows(array, rows)


Stack = UInt8[np.ndarray, "n s s 1"] | UInt8[LazyRows, "n s s 1"]
WideStack = UInt16[np.ndarray, "n s s 1"] | UInt16[LazyRows, "n s s 1"]


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
  """Decoded radiographs with their metadata; row `i` of every field is one image.

  Attributes:
    pixels: gray levels: 8 bits as displayed, 0 black to 255 white; or 16 bits as published, to be
      displayed through `windows`. Kept in a file and read when indexed.
    table: ids, patients, labels and other metadata of each image.
    info: description of their source.
    windows: gray levels of each image displayed as black and white; the type's range by default,
      and always with 8 bits.
    masks: lung masks, 1 inside and 0 outside, if the source has them.
    skipped: images left out because they are bad, and why.
    notes: images with remarks on how they were read.
  """

  pixels: Stack | WideStack
  table: Table
  info: SourceInfo
  windows: Float32[np.ndarray, "n 2"] | None = None
  masks: Stack | None = None
  skipped: tuple[tuple[str, str], ...] = ()
  notes: tuple[tuple[str, str], ...] = ()

  def __post_init__(self) -> None:
    n, full_range = len(self.pixels), np.array(windowing.WHOLE[self.bits], np.float32)
    if self.windows is None:
      object.__setattr__(self, "windows", np.broadcast_to(full_range, (n, 2)))
    elif self.bits == 8 and not (self.windows == full_range).all():
      raise ValueError("8-bit pixels are stored as displayed; only 16-bit ones have windows")
    for name in ("table", "windows", "masks"):
      rows = getattr(self, name)
      if rows is not None and len(rows) != n:
        raise ValueError(f"{name} has {len(rows)} rows, pixels {n}")

  def __len__(self) -> int:
    return len(self.pixels)

  @property
  def bits(self) -> int:
    """Bit depth of the stored pixels: 8 or 16."""
    return 8 * self.pixels.dtype.itemsize

  @property
  def ids(self) -> tuple[str, ...]:
    return self.table.ids

  @property
  def patients(self) -> tuple[str, ...]:
    return self.table.patients

  @property
  def labels(self) -> Float32[np.ndarray, "n k"]:
    return self.table.labels

  @property
  def sites(self) -> tuple[str, ...]:
    return self.table.sites

  @property
  def views(self) -> tuple[str, ...]:
    return self.table.views

  @property
  def sexes(self) -> tuple[str, ...]:
    return self.table.sexes

  @property
  def ages(self) -> Float32[np.ndarray, "n"]:
    return self.table.ages

  def gray(self, rows: slice | Sequence[int] | np.ndarray) -> UInt8[np.ndarray, "m s s 1"]:
    """Images as displayed, at 8 bits: for figures, and for comparisons of appearance."""
    if not isinstance(rows, slice):
      rows = np.asarray(rows, dtype=np.int64)
    pixels = np.asarray(self.pixels[rows])
    if self.bits == 8:
      return pixels
    assert self.windows is not None  # set in __post_init__
    unit = windowing.to_unit(pixels, self.windows[rows])
    return (unit * 255 + np.float32(0.5)).astype(np.uint8)

  def take(self, rows: Sequence[int] | np.ndarray) -> Images:
    """The images of the given rows, in that order; pixels are not copied."""
    rows = np.asarray(rows, dtype=np.int64)
    assert self.windows is not None  # set in __post_init__
    return dataclasses.replace(
      self,
      pixels=take(self.pixels, rows),
      table=self.table.take(rows),
      windows=self.windows[rows],
      masks=None if self.masks is None else take(self.masks, rows),
      info=info_of(self.info, rows),
    )


def summarize_notes(notes: Iterable[tuple[str, str]]) -> list[str]:
  """Summarizes notes: one sentence each, with the number of images and the first of them."""
  names_by_note: dict[str, list[str]] = {}
  for name, note in notes:
    names_by_note.setdefault(note, []).append(name)
  return [
    f"{len(names)} of its images: {note} (the first: {names[0]})"
    for note, names in names_by_note.items()
  ]


def stored(
  images: Images | UInt8[np.ndarray, "n s s 1"],
) -> tuple[Stack | WideStack, Float32[np.ndarray, "n 2"] | None]:
  """Stored pixels and the windows to display them through; None for 8 bits."""
  if not isinstance(images, Images):
    return images, None
  return images.pixels, images.windows if images.bits == 16 else None


def info_of(info: SourceInfo, rows: np.ndarray) -> SourceInfo:
  """Description of some rows of a source, with the sizes of a pool's parts updated.

  If rows do not ascend, the parts are no longer consecutive and are dropped.
  """
  if not info.parts:
    return info
  if (np.diff(rows) <= 0).any():
    return dataclasses.replace(info, parts=())
  ends = np.searchsorted(rows, np.cumsum([part.rows for part in info.parts]))
  counts = np.diff(ends, prepend=0).tolist()
  return dataclasses.replace(
    info,
    parts=tuple(
      dataclasses.replace(part, rows=count) for part, count in zip(info.parts, counts, strict=True)
    ),
  )

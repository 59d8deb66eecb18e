"""Decoded radiographs, and what is known of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64, UInt8, UInt16

from cxrjax.data.base import SourceInfo, Table
from cxrjax.data.decoding import windowing as levels


def even(n: int, most: int) -> Int64[np.ndarray, "m"]:
  """Rows 0..n-1, or of more than `most` that many, at even steps."""
  return np.arange(n) if n <= most else np.linspace(0, n - 1, most).astype(np.int64)


@runtime_checkable
class Base(Protocol):
  """What `Rows` takes rows of: an array, or what gives the rows of a list as an array does."""

  @property
  def shape(self) -> tuple[int, ...]: ...

  @property
  def dtype(self) -> np.dtype: ...

  @property
  def ndim(self) -> int: ...

  def __getitem__(self, rows: Any) -> np.ndarray: ...


class Rows:
  """Some rows of an array that stays where it is (a file): read when they are asked for.

  Args:
    base: rows of anything.
    rows: which of them, in which order.
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
    first, *rest = key if isinstance(key, tuple) else (key,)
    if first is Ellipsis:
      first, rest = slice(None), [Ellipsis, *rest]
    rows = self._rows[first]
    found = np.asarray(self._base[rows])
    return found[tuple(rest) if rows.ndim == 0 else (slice(None), *rest)]

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    return np.asarray(self._base[self._rows], dtype=dtype)

  def take(self, rows: np.ndarray) -> Rows:
    """Some of these rows."""
    return Rows(self._base, self._rows[rows])


def take(array: np.ndarray | Rows, rows: np.ndarray) -> np.ndarray | Rows:
  """Rows of an array, without copying any: a view where they are consecutive, else `Rows`."""
  if isinstance(array, Rows):
    return array.take(rows)
  if len(rows) and rows[0] >= 0 and (np.diff(rows) == 1).all():
    return array[rows[0] : rows[-1] + 1]
  return Rows(array, rows)


Stack = UInt8[np.ndarray, "n s s 1"] | UInt8[Rows, "n s s 1"]
WideStack = UInt16[np.ndarray, "n s s 1"] | UInt16[Rows, "n s s 1"]


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
  """Decoded radiographs and what is known of them; row `i` of everything is one image.

  Attributes:
    pixels: gray levels: 8 bits as they are shown, 0 black to 255 white; or 16 bits as published,
      to be shown as `windows` say. They lie in a file and are read when indexed.
    table: ids, patients, labels and whatever else is known of each image.
    info: the source they come from.
    windows: gray levels of each image that are shown black and white; the type's range by default,
      and always with 8 bits.
    masks: lungs (1) and the rest (0), where the source has them.
    skipped: images left out because they are bad, and why.
    notes: images of which a user should know how they were read, and what.
  """

  pixels: Stack | WideStack
  table: Table
  info: SourceInfo
  windows: Float32[np.ndarray, "n 2"] | None = None
  masks: Stack | None = None
  skipped: tuple[tuple[str, str], ...] = ()
  notes: tuple[tuple[str, str], ...] = ()

  def __post_init__(self) -> None:
    n, whole = len(self.pixels), np.array(levels.WHOLE[self.bits], np.float32)
    if self.windows is None:
      object.__setattr__(self, "windows", np.broadcast_to(whole, (n, 2)))
    elif self.bits == 8 and not (self.windows == whole).all():
      raise ValueError("8-bit pixels are stored as they are shown; only 16-bit ones have windows")
    for name in ("table", "windows", "masks"):
      rows = getattr(self, name)
      if rows is not None and len(rows) != n:
        raise ValueError(f"{name} has {len(rows)} rows, pixels {n}")

  def __len__(self) -> int:
    return len(self.pixels)

  @property
  def bits(self) -> int:
    """8 or 16, of the stored pixels."""
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
    """Some images as they are shown, at 8 bits: for pictures, and for what compares pictures."""
    if not isinstance(rows, slice):
      rows = np.asarray(rows, dtype=np.int64)
    found = np.asarray(self.pixels[rows])
    if self.bits == 8:
      return found
    assert self.windows is not None  # since it was made
    unit = levels.to_unit(found, self.windows[rows])
    return (unit * 255 + np.float32(0.5)).astype(np.uint8)

  def take(self, rows: Sequence[int] | np.ndarray) -> Images:
    """The images of some rows, in that order; pixels are not copied."""
    rows = np.asarray(rows, dtype=np.int64)
    assert self.windows is not None  # since it was made
    return dataclasses.replace(
      self,
      pixels=take(self.pixels, rows),
      table=self.table.take(rows),
      windows=self.windows[rows],
      masks=None if self.masks is None else take(self.masks, rows),
      info=info_of(self.info, rows),
    )


def told(notes: Iterable[tuple[str, str]]) -> list[str]:
  """A sentence for each note: of how many images, and of which first."""
  found: dict[str, list[str]] = {}
  for name, note in notes:
    found.setdefault(note, []).append(name)
  return [
    f"{len(names)} of its images: {note} (the first: {names[0]})" for note, names in found.items()
  ]


def stored(
  images: Images | UInt8[np.ndarray, "n s s 1"],
) -> tuple[Stack | WideStack, Float32[np.ndarray, "n 2"] | None]:
  """Pixels, and the windows that they are yet to be shown through; None for 8 bits."""
  if not isinstance(images, Images):
    return images, None
  return images.pixels, images.windows if images.bits == 16 else None


def info_of(info: SourceInfo, rows: np.ndarray) -> SourceInfo:
  """A source's facts for some of its rows: each part of a pool has as many of them as it has.

  Rows that do not ascend are no longer those of one part after the other; the parts are dropped.
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

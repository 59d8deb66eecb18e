"""Disk cache of decoded images: every radiograph of a source as one gray square, decoded once.

The key of a cache covers everything that determines its content (the source's fingerprint, split,
size, fit, bits, window, decoder version, rows), so a change of data or settings never hits a stale
cache. A cache appears by an atomic rename: a killed process leaves no partial cache behind, and two
processes may write the same one at once. All of it is checksummed, and a damaged cache is rebuilt.
Pixels are read on demand and never held in memory.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tqdm
from jaxtyping import Float32

from cxrjax.core import checksums
from cxrjax.core.atomic_files import LEFTOVERS
from cxrjax.core.cache_folder import cache_root
from cxrjax.core.errors import UserError
from cxrjax.data.base import Record, Source
from cxrjax.data.decoding import decode, windowing
from cxrjax.data.decoding.worker_pool import num_threads
from cxrjax.data.images import Images, Stack, WideStack, info_of, take
from cxrjax.data.inspection import bits_of
from cxrjax.data.loading import cache_file
from cxrjax.data.splits.subset import Subset

FITS = ("squash", "pad", "crop")
ON_BAD = ("error", "skip")
_CHUNK = 256  # images decoded between checks for errors
_ABANDONED = 24 * 3600  # seconds without a write after which a partial cache is removed


def load_images(
  source: Source,
  size: int,
  *,
  fit: str = "squash",
  cache_dir: str | os.PathLike | None = None,
  on_bad_image: str = "error",
  progress: bool = True,
  indices: Sequence[int] | np.ndarray | None = None,
  bits: str | int = "auto",
  window: str | Sequence[float] = "auto",
) -> Images:
  """Loads all images of a source (or those of `indices`) at one size, decoding them if needed.

  Args:
    source: what to decode.
    size: side of the square result, pixels.
    fit: what to do with an image that is not square: `squash` it, `pad` it with black, or `crop`
      its middle.
    cache_dir: where decoded images are stored; default `$CXRJAX_CACHE`, else `~/.cache/cxrjax`.
    on_bad_image: `error` stops at an unusable image; `skip` leaves it out and lists it.
    progress: shows a bar on stderr while decoding.
    indices: rows of the source to load, in this order; all of them by default.
    bits: 16 keeps levels as published, to be windowed on use (8-bit images are multiplied by 257);
      8 windows 16-bit images now; `auto` keeps the source's depth, see `bits_of`.
    window: which levels are shown black and white, see `windowing.choose_window`.

  Raises:
    UserError: a bad image, no image left, or a cache that cannot be written.
  """
  check_options(size, fit, on_bad_image)
  if len(source) == 0:
    raise UserError(f"{source.info.name} split {source.info.split!r} has no images; check its path")
  decoded = decode_rows(
    source,
    size,
    fit=fit,
    cache_dir=cache_dir,
    progress=progress,
    indices=indices,
    bits=bits,
    window=window,
    stop_at_bad=on_bad_image == "error",
  )
  rows = np.arange(len(source)) if indices is None else np.asarray(indices, dtype=np.int64)
  return _with_table(decoded, source, rows, on_bad_image)


def _with_table(decoded: Decoded, source: Source, rows: np.ndarray, on_bad_image: str) -> Images:
  """Puts decoded images together with what the source knows of them."""
  table, info = source.table, source.info
  skipped = tuple((table.ids[rows[i]], reason) for i, reason in sorted(decoded.bad.items()))
  notes = tuple(
    (table.ids[rows[i]], note) for note, positions in decoded.notes.items() for i in positions
  )
  if skipped and on_bad_image == "error":
    raise bad_image(*skipped[0])
  if skipped and len(skipped) == len(rows):
    raise UserError(
      f"{info.name}: all {len(rows)} images are bad; the first: {skipped[0][0]}: {skipped[0][1]}"
    )
  if skipped or not np.array_equal(rows, np.arange(len(source))):
    good = rows[decoded.good]
    table, info = table.take(good), info_of(info, good)
  return Images(
    pixels=decoded.pixels,
    table=table,
    info=info,
    windows=decoded.windows,
    masks=decoded.masks,
    skipped=skipped,
    notes=notes,
  )


def check_options(size: int, fit: str, on_bad_image: str) -> None:
  """Validates size, fit and on_bad_image; raises a UserError for an invalid value."""
  if isinstance(size, bool) or not isinstance(size, int) or not 8 <= size <= 4096:
    raise UserError(f"config.data.size={size!r} is not an image size; give pixels from 8 to 4096")
  if fit not in FITS:
    raise UserError(f"config.data.fit={fit!r} is not an option; valid: {', '.join(FITS)}")
  if on_bad_image not in ON_BAD:
    raise UserError(
      f"config.data.on_bad_image={on_bad_image!r} is not an option; valid: {', '.join(ON_BAD)}"
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Decoded:
  """Requested rows of a source: arrays of the good ones, in order, and the list of bad ones.

  Attributes:
    pixels: see `Images`.
    windows: see `Images`; None with 8 bits.
    masks: see `Images`.
    bad: for each unusable row its position among the requested rows, and the reason.
    count: number of requested rows.
    notes: remarks on how images were read, each with the positions it applies to.
  """

  pixels: Stack | WideStack
  windows: Float32[np.ndarray, "n 2"] | None
  masks: Stack | None
  bad: dict[int, str]
  count: int
  notes: dict[str, list[int]] = dataclasses.field(default_factory=dict)

  @property
  def good(self) -> np.ndarray:
    """Ascending positions of the good rows among the requested ones."""
    return np.delete(np.arange(self.count), list(self.bad))

  def take(self, rows: np.ndarray) -> Decoded:
    """Selects some of the requested rows, without a copy."""
    stored = np.full(self.count, -1)  # index of a position among the good rows
    stored[self.good] = np.arange(self.count - len(self.bad))
    bad = {i: self.bad[row] for i, row in enumerate(rows.tolist()) if row in self.bad}
    notes = {
      note: np.flatnonzero(np.isin(rows, positions)).tolist()
      for note, positions in self.notes.items()
    }
    good = stored[rows]
    good = good[good >= 0]
    return Decoded(
      take(self.pixels, good),
      None if self.windows is None else self.windows[good],
      None if self.masks is None else take(self.masks, good),
      bad,
      len(rows),
      {note: positions for note, positions in notes.items() if positions},
    )


def decode_rows(
  source: Source,
  size: int,
  *,
  fit: str = "squash",
  cache_dir: str | os.PathLike | None = None,
  progress: bool = True,
  indices: Sequence[int] | np.ndarray | None = None,
  bits: str | int = "auto",
  window: str | Sequence[float] = "auto",
  stop_at_bad: bool = False,
) -> Decoded:
  """Loads rows of a source from the cache, decoding them first if needed; see `load_images`."""
  if isinstance(source, Subset):  # use the cache of the full source, which may exist already
    rows = source.rows if indices is None else source.rows[np.asarray(indices, dtype=np.int64)]
    order = np.argsort(rows)  # so that the cache does not depend on the order requested
    return decode_rows(
      source.source,
      size,
      fit=fit,
      cache_dir=cache_dir,
      progress=progress,
      indices=rows[order],
      bits=bits,
      window=window,
      stop_at_bad=stop_at_bad,
    ).take(np.argsort(order))
  root = cache_root(cache_dir)
  window = windowing.check_window(window)
  spec = DecodeSpec(size, fit, bits_of(source, bits), window)
  load = functools.partial(_load, size=size, bits=spec.bits)
  complete = load(root / _key(source, spec, None))
  if complete is not None:
    return complete if indices is None else complete.take(np.asarray(indices, dtype=np.int64))
  target = root / _key(source, spec, indices)
  if indices is not None:
    cached = load(target)
    if cached is not None:
      return cached
  rows = np.arange(len(source)) if indices is None else np.asarray(indices, dtype=np.int64)
  _decode_to(target, source, rows, spec, load, progress=progress, stop_at_bad=stop_at_bad)
  result = load(target)
  if result is None:
    raise UserError(f"the image cache {target} vanished or is damaged; delete it and run again")
  return result


def _decode_to(
  target: pathlib.Path,
  source: Source,
  rows: np.ndarray,
  spec: DecodeSpec,
  load: Callable[[pathlib.Path], Decoded | None],
  *,
  progress: bool,
  stop_at_bad: bool,
) -> None:
  """Decodes rows into a cache folder, which appears once it is complete."""
  root = target.parent
  needed = (spec.bits // 8 + 1) * len(rows) * spec.size**2
  with _disk_errors(root, needed):
    root.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(root)
    work = pathlib.Path(tempfile.mkdtemp(prefix=target.name + ".tmp-", dir=root))
  try:
    with _disk_errors(root, needed):
      _decode_into(work, source, rows, spec, progress, stop_at_bad)
      try:
        work.rename(target)
      except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
          raise
        if load(target) is None:  # a damaged cache is in the way
          shutil.rmtree(target, ignore_errors=True)
          work.rename(target)
  finally:
    shutil.rmtree(work, ignore_errors=True)


def _remove_abandoned(root: pathlib.Path) -> None:
  """Removes partial caches left by killed processes."""
  for work in (*root.glob("*.tmp-*"), *root.glob(LEFTOVERS)):
    with contextlib.suppress(OSError):
      written = max(file.stat().st_mtime for file in (work, *work.glob("*")))
      if time.time() - written <= _ABANDONED:
        continue
      if work.is_dir():
        shutil.rmtree(work)
      else:
        work.unlink()


def to_square(
  record: Record, size: int, fit: str, bits: int = 8, window: str | windowing.Window = "auto"
) -> tuple[np.ndarray, windowing.Window, np.ndarray | None]:
  """Resizes a record to a square of `size` pixels; returns it, its window and its mask.

  With 8 bits the window is already applied (0 to 255); with 16 an 8-bit image is multiplied by 257.
  A mask may differ from its image in resolution, as some are published, but not in aspect ratio.

  Raises:
    decode.BadImage: the image is unusable, or its mask does not fit it.
  """
  shown = windowing.choose_window(record.image, record.window, window)
  mask = None
  if record.mask is not None:
    (h, w), (rows, columns) = record.image.shape[:2], record.mask.shape[:2]
    if abs(h * columns - w * rows) > 0.02 * h * columns:  # tolerates rounding by a pixel
      raise decode.BadImage(
        f"its lung mask of {columns}x{rows} pixels does not match its {w}x{h} pixels; give a "
        "mask of the same shape"
      )
    mask = windowing.resize(record.mask, size, fit, nearest=True)
  if bits == 8:
    square = windowing.resize(windowing.to_uint8(record.image, shown), size, fit)
    return square, windowing.WHOLE[8], mask
  square = windowing.resize(record.image, size, fit)
  if square.dtype == np.uint8:
    return square.astype(np.uint16) * np.uint16(257), (257 * shown[0], 257 * shown[1]), mask
  return square, shown, mask


def bad_image(name: str, reason: str) -> UserError:
  """The error for an unusable image, where bad images are errors."""
  return UserError(
    f"{name}: {reason}; fix or remove it, or skip bad images with config.data.on_bad_image='skip'"
  )


@dataclasses.dataclass(frozen=True)
class DecodeSpec:
  """Target size, fit, bit depth and windowing of decoded images."""

  size: int
  fit: str
  bits: int
  window: str | windowing.Window


def _key(source: Source, spec: DecodeSpec, indices: Sequence[int] | np.ndarray | None) -> str:
  rows = None
  if indices is not None:
    rows = hashlib.sha256(np.asarray(indices, dtype="<i8").tobytes()).hexdigest()
  content = [
    source.info.fingerprint,
    source.info.split,
    len(source),
    spec.size,
    spec.fit,
    spec.bits,
    spec.window,
    decode.VERSION,
    rows,
  ]
  digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]
  return f"images-{spec.size}-{digest}"


def _load(folder: pathlib.Path, size: int, bits: int) -> Decoded | None:
  """Loads a cache; None where it is missing or damaged."""
  try:
    meta = checksums.unseal((folder / "meta.json").read_bytes())
    bad = {int(i): reason for i, reason in meta["bad"].items()}
    windows = None
    if bits == 16:
      if checksums.of_file(folder / "windows.npy") != meta["windows"]:
        return None
      windows = np.load(folder / "windows.npy")
  except (OSError, ValueError):
    return None
  shape, good = (meta["count"], size, size, 1), meta["count"] - len(bad)
  pixels = cache_file.load(folder / "pixels.npy", shape, np.dtype(f"u{bits // 8}"), good)
  masks = (
    cache_file.load(folder / "masks.npy", shape, np.dtype("u1"), good) if meta["masks"] else None
  )
  if pixels is None or (masks is None and meta["masks"]):
    return None
  return Decoded(pixels, windows, masks, bad, meta["count"], meta["notes"])


def _decode_into(
  work: pathlib.Path,
  source: Source,
  rows: np.ndarray,
  spec: DecodeSpec,
  progress: bool,
  stop_at_bad: bool,
) -> None:
  """Fills a cache folder: the good images in order, then unused space for the bad ones."""
  cache = _NewCache(work, source, rows, spec)
  bar = tqdm.tqdm(
    total=len(rows),
    desc=f"decoding {source.info.name} {source.info.split}",
    unit=" images",
    disable=not progress,
    file=sys.stderr,
    dynamic_ncols=True,
  )
  filled = 0
  with bar, concurrent.futures.ThreadPoolExecutor(num_threads()) as pool:
    for start in range(0, len(rows), _CHUNK):  # stops soon after an error; results do not pile up
      positions = range(start, min(start + _CHUNK, len(rows)))
      places = range(filled, filled + len(positions))
      for _ in pool.map(cache.decode, positions, places):
        bar.update()
      if cache.bad and stop_at_bad:
        position = min(cache.bad)
        raise bad_image(source.table.ids[rows[position]], cache.bad[position])
      for position, place in zip(positions, places, strict=True):
        if position not in cache.bad:
          cache.move(place, filled)
          filled += 1
  cache.finish(filled)


class _NewCache:
  """A cache folder that is being filled.

  Args:
    folder: where its files are written.
    source: of the images.
    rows: which of them.
    spec: how they are decoded.

  Attributes:
    bad: the reason for each unusable row, by its position.
  """

  def __init__(self, folder: pathlib.Path, source: Source, rows: np.ndarray, spec: DecodeSpec):
    self._folder, self._source, self._rows, self._spec = folder, source, rows, spec
    self._shape = (len(rows), spec.size, spec.size, 1)
    depth = np.dtype(f"u{spec.bits // 8}")
    self._pixels = cache_file.allocate(folder / "pixels.npy", self._shape, depth)
    self._windows = np.zeros((len(rows), 2), np.float32)
    self._masks: np.ndarray | None = None  # allocated at the first
    self._sums = np.zeros((len(rows), 2), np.uint32)  # of pixels and masks
    (self._blank_sum,) = cache_file.checksums_of(np.zeros((1, *self._shape[1:]), np.uint8))
    self.bad: dict[int, str] = {}
    self._notes: dict[str, list[int]] = {}
    self._lock = threading.Lock()

  def decode(self, position: int, place: int) -> None:
    """Decodes the row at a position into a place of the arrays; safe in several threads."""
    spec = self._spec
    try:
      record = self._source.read(int(self._rows[position]), spec.size)
      square, window, mask = to_square(record, spec.size, spec.fit, spec.bits, spec.window)
    except decode.BadImage as error:
      self.bad[position] = str(error)
      return
    for note in record.notes:
      self._notes.setdefault(note, []).append(position)
    self._pixels[place], self._windows[place] = square, window
    self._sums[place] = (*cache_file.checksums_of([square]), self._blank_sum)
    if mask is not None:
      with self._lock:
        if self._masks is None:
          path = self._folder / "masks.npy"
          self._masks = cache_file.allocate(path, self._shape, np.dtype("u1"))
      self._masks[place], self._sums[place, 1] = mask, *cache_file.checksums_of([mask])

  def move(self, place: int, target: int) -> None:
    """Moves an image into the gap that bad ones have left."""
    if place == target:
      return
    for array in (self._pixels, self._windows, self._masks, self._sums):
      if array is not None:
        array[target], array[place] = array[place], 0

  def finish(self, count: int) -> None:
    """Seals the arrays, of which `count` images are good, and writes what is known of them."""
    cache_file.seal(self._pixels, self._sums[:, 0])
    if self._masks is not None:
      cache_file.seal(self._masks, self._sums[:, 1])
    meta = {
      "source": self._source.info.name,
      "split": self._source.info.split,
      "masks": self._masks is not None,
      "count": len(self._rows),
      "bad": {str(i): reason for i, reason in sorted(self.bad.items())},
      "notes": {note: sorted(positions) for note, positions in sorted(self._notes.items())},
    }
    if self._spec.bits == 16:
      np.save(self._folder / "windows.npy", self._windows[:count])
      meta["windows"] = checksums.of_file(self._folder / "windows.npy")
    (self._folder / "meta.json").write_text(checksums.seal(meta))


@contextlib.contextmanager
def _disk_errors(root: pathlib.Path, needed: int) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    if error.filename is not None and not str(error.filename).startswith(str(root)):
      raise  # not about the cache
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      raise UserError(
        f"no space for decoded images in {root}: up to {needed / 1e6:.0f} MB needed; free some, or "
        "name another folder in config.data.cache_dir or CXRJAX_CACHE"
      ) from error
    raise UserError(
      f"cannot write decoded images to {root}: {error.strerror or error}; name another folder in "
      "config.data.cache_dir or CXRJAX_CACHE"
    ) from error

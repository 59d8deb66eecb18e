"""Decoded images: every radiograph of a source as one gray uint8 array, made once, kept on disk.

The cache is keyed by what decides its content (the source's fingerprint, split, size, fit, decoder
version, rows), so no change of data or settings can meet a stale one. It appears by a rename: a
killed process leaves nothing half-made behind, and two processes may make the same one at once.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tqdm
from jaxtyping import Float32, UInt8

from cxrjax.core.errors import UserError
from cxrjax.data import decode
from cxrjax.data.types import Record, Source, SourceInfo

FITS = ("squash", "pad", "crop")
ON_BAD = ("error", "skip")


@dataclasses.dataclass(frozen=True)
class Images:
  """Decoded radiographs and what is known of them; row `i` of everything is one image.

  Attributes:
    pixels: gray values, 0 black to 255 white.
    labels: one value per class: 1 present, 0 absent, NaN unknown.
    masks: lungs (1) and the rest (0), where the source has them.
    ids: unique name of each image.
    patients: patient of each image.
    sites: where each was taken; empty where unknown.
    info: the source they come from.
    skipped: images left out because they are bad, and why.
  """

  pixels: UInt8[np.ndarray, "n s s 1"]
  labels: Float32[np.ndarray, "n k"]
  masks: UInt8[np.ndarray, "n s s 1"] | None
  ids: tuple[str, ...]
  patients: tuple[str, ...]
  sites: tuple[str, ...]
  info: SourceInfo
  skipped: tuple[tuple[str, str], ...] = ()

  def __len__(self) -> int:
    return len(self.pixels)

  def take(self, rows: Sequence[int] | np.ndarray) -> Images:
    """The images of some rows, in that order."""
    rows = np.asarray(rows, dtype=np.int64)
    return dataclasses.replace(
      self, pixels=np.asarray(self.pixels[rows]), labels=self.labels[rows],
      masks=None if self.masks is None else np.asarray(self.masks[rows]),
      ids=tuple(self.ids[i] for i in rows), patients=tuple(self.patients[i] for i in rows),
      sites=tuple(self.sites[i] for i in rows))


def load_images(
    source: Source, size: int, *, fit: str = "squash", cache_dir: str | os.PathLike | None = None,
    on_bad_image: str = "error", progress: bool = True,
    indices: Sequence[int] | np.ndarray | None = None) -> Images:
  """All images of a source (or those of `indices`) at one size.

  Args:
    source: what to decode.
    size: side of the square result, pixels.
    fit: what to do with an image that is not square: `squash` it, `pad` it with black, or `crop`
      its middle.
    cache_dir: where decoded images are kept; default `$CXRJAX_CACHE`, else `~/.cache/cxrjax`.
    on_bad_image: `error` stops at an image that cannot be used; `skip` leaves it out and lists it.
    progress: shows a bar on stderr while decoding.
    indices: rows of the source to load, in this order; all of them by default.

  Raises:
    UserError: a bad image, no image left, or a cache that cannot be written.
  """
  check_options(size, fit, on_bad_image)
  if len(source) == 0:
    raise UserError(f"{source.info.name} split {source.info.split!r} has no images; check its path")
  rows = np.arange(len(source)) if indices is None else np.asarray(indices, dtype=np.int64)
  pixels, masks, bad = decode_rows(
    source, size, fit=fit, cache_dir=cache_dir, progress=progress, indices=indices,
    stop_at_bad=on_bad_image == "error")
  table = source.table
  good = rows
  skipped = tuple((table.ids[rows[i]], reason) for i, reason in sorted(bad.items()))
  if skipped:
    if on_bad_image == "error":
      raise bad_image(*skipped[0])
    keep = np.array([i for i in range(len(rows)) if i not in bad], dtype=np.int64)
    if not len(keep):
      raise UserError(f"{source.info.name}: all {len(rows)} images are bad; the first: "
                      f"{skipped[0][0]}: {skipped[0][1]}")
    good, pixels = rows[keep], pixels[keep]
    masks = None if masks is None else masks[keep]
  return Images(
    pixels=pixels, labels=table.labels[good], masks=masks,
    ids=tuple(table.ids[i] for i in good), patients=tuple(table.patients[i] for i in good),
    sites=tuple(table.sites[i] for i in good), info=source.info, skipped=skipped)


def check_options(size: int, fit: str, on_bad_image: str) -> None:
  """Raises a UserError for a size, fit or on_bad_image that is none."""
  if isinstance(size, bool) or not isinstance(size, int) or not 8 <= size <= 4096:
    raise UserError(f"config.data.size={size!r} is no image size; give pixels from 8 to 4096")
  if fit not in FITS:
    raise UserError(f"config.data.fit={fit!r} is not an option; valid: {', '.join(FITS)}")
  if on_bad_image not in ON_BAD:
    raise UserError(
      f"config.data.on_bad_image={on_bad_image!r} is not an option; valid: {', '.join(ON_BAD)}")


def decode_rows(
    source: Source, size: int, *, fit: str = "squash", cache_dir: str | os.PathLike | None = None,
    progress: bool = True, indices: Sequence[int] | np.ndarray | None = None,
    stop_at_bad: bool = False,
    ) -> tuple[UInt8[np.ndarray, "n s s 1"], UInt8[np.ndarray, "n s s 1"] | None, dict[int, str]]:
  """Pixels and masks of rows of a source, bad ones black, and the reason for each bad position."""
  root = cache_root(cache_dir)
  whole = _load(root / _key(source, size, fit, None))
  if whole is not None:
    if indices is None:
      return whole
    rows = np.asarray(indices, dtype=np.int64)
    pixels, masks, bad = whole
    return (pixels[rows], None if masks is None else masks[rows],
            {i: bad[r] for i, r in enumerate(rows.tolist()) if r in bad})
  target = root / _key(source, size, fit, indices)
  if indices is not None:
    found = _load(target)
    if found is not None:
      return found
  rows = np.arange(len(source)) if indices is None else np.asarray(indices, dtype=np.int64)
  needed = 2 * len(rows) * size * size
  with _disk_errors(root, needed):
    root.mkdir(parents=True, exist_ok=True)
    work = pathlib.Path(tempfile.mkdtemp(prefix=target.name + ".tmp-", dir=root))
  try:
    with _disk_errors(root, needed):
      _decode_into(work, source, rows, size, fit, progress, stop_at_bad)
      try:
        work.rename(target)
      except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
          raise
        if _load(target) is None:  # a damaged cache is in the way
          shutil.rmtree(target, ignore_errors=True)
          work.rename(target)
  finally:
    shutil.rmtree(work, ignore_errors=True)
  result = _load(target)
  if result is None:
    raise UserError(f"the image cache {target} vanished or is damaged; delete it and run again")
  return result


def cache_root(cache_dir: str | os.PathLike | None) -> pathlib.Path:
  """The folder that decoded images are kept in."""
  chosen = cache_dir or os.environ.get("CXRJAX_CACHE") or "~/.cache/cxrjax"
  return pathlib.Path(chosen).expanduser()


def to_square(record: Record, size: int, fit: str) -> tuple[np.ndarray, np.ndarray | None]:
  """One record as uint8 [size size 1], and its mask; raises decode.BadImage if it is unusable."""
  pixels = decode.resize(decode.to_uint8(record.image), size, fit)
  mask = None if record.mask is None else decode.resize(record.mask, size, fit, nearest=True)
  return pixels, mask


def read(source: Source, index: int, size: int) -> Record:
  """A record for a result of `size` pixels; sources that can decode JPEGs smaller do."""
  reader: Callable[..., Record] | None = getattr(source, "read", None)
  return source[index] if reader is None else reader(index, at_least=size)


def workers() -> int:
  """Threads to decode with: PIL lets go of the interpreter while it works."""
  with contextlib.suppress(AttributeError):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def bad_image(name: str, reason: str) -> UserError:
  """What to raise for an image that cannot be used, where bad images are errors."""
  return UserError(f"{name}: {reason}; mend or remove it, or leave bad images out with "
                   "config.data.on_bad_image='skip'")


def _key(source: Source, size: int, fit: str, indices: Sequence[int] | np.ndarray | None) -> str:
  rows = None
  if indices is not None:
    rows = hashlib.sha256(np.asarray(indices, dtype="<i8").tobytes()).hexdigest()
  content = [
    source.info.fingerprint, source.info.split, len(source), size, fit, decode.VERSION, rows]
  digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]
  return f"images-{size}-{digest}"


def _load(folder: pathlib.Path):
  """A cache that is whole, else None."""
  try:
    meta = json.loads((folder / "meta.json").read_text())
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    masks = np.load(folder / "masks.npy", mmap_mode="r") if meta["masks"] else None
  except (OSError, ValueError, KeyError, EOFError):
    return None
  return pixels, masks, {int(i): reason for i, reason in meta["bad"].items()}


def _decode_into(
    work: pathlib.Path, source: Source, rows: np.ndarray, size: int, fit: str, progress: bool,
    stop_at_bad: bool) -> None:
  shape = (len(rows), size, size, 1)
  pixels = _allocate(work / "pixels.npy", shape)
  masks: np.ndarray | None = None
  bad: dict[int, str] = {}

  def one(position: int) -> np.ndarray | None:
    try:
      pixels[position], mask = to_square(read(source, int(rows[position]), size), size, fit)
    except decode.BadImage as error:
      bad[position] = str(error)
      return None
    return mask

  name = f"decoding {source.info.name} {source.info.split}"
  bar = tqdm.tqdm(total=len(rows), desc=name, unit=" images", disable=not progress, file=sys.stderr,
                  dynamic_ncols=True)
  with bar, concurrent.futures.ThreadPoolExecutor(workers()) as pool:
    step = 256  # so that an error stops the work, and results do not pile up
    for start in range(0, len(rows), step):
      positions = range(start, min(start + step, len(rows)))
      for position, mask in zip(positions, pool.map(one, positions), strict=True):
        if mask is not None:
          masks = _allocate(work / "masks.npy", shape) if masks is None else masks
          masks[position] = mask
        bar.update()
      if bad and stop_at_bad:
        position = min(bad)
        raise bad_image(source.table.ids[rows[position]], bad[position])
  for array in (pixels, masks):
    if array is not None:
      array.flush()
  meta = {"source": source.info.name, "split": source.info.split, "masks": masks is not None,
          "bad": {str(i): reason for i, reason in bad.items()}}
  (work / "meta.json").write_text(json.dumps(meta))


def _allocate(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
  """A new array on disk whose space is really there: a full disk is an error now, not a SIGBUS."""
  array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
  if hasattr(os, "posix_fallocate"):
    with open(path, "r+b") as file:
      os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
  elif shutil.disk_usage(path.parent).free < path.stat().st_size:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
  return array


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
        "name another folder in config.data.cache_dir or CXRJAX_CACHE") from error
    raise UserError(
      f"cannot write decoded images to {root}: {error.strerror or error}; name another folder in "
      "config.data.cache_dir or CXRJAX_CACHE") from error

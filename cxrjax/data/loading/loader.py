"""Batches as a pure function of (seed, step).

The data form an infinite stream, one permutation per epoch (`data.loading.sampling`), with random
access: element `t * b + i` is image `i` of batch `t`. There is no position to save or lose; a run
that resumes at step `t` asks for batch `t`. Batches continue across the end of an epoch, so no
image is ever dropped. The parts of a weighted pool are interleaved instead, each with epochs of its
own.

Three storages behind one interface:

* `resident`: all decoded images lie on the devices, split over the mesh. A batch is its indices;
  `Loader.fetch` gathers the pixels inside the jitted step, so the host has almost nothing to do,
  and several steps can run in one dispatch.
* `cached`: for more images than fit on the devices. All lie decoded in a file; threads read ahead,
  a batch carries its pixels, and memory use does not grow with the number of images.
* `streamed`: for more decoded images than fit on disk. Like `cached`, but grain's threads decode
  each image when it is needed, in every epoch; each process decodes its own share only.

In all of them 8-bit pixels reach the devices windowed, and 16-bit pixels as published, with each
image's two gray levels that are shown black and white; `fetch` applies them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32

from cxrjax.core import cache_folder
from cxrjax.core.errors import UserError
from cxrjax.data import inspection
from cxrjax.data.base import Source, SourceInfo
from cxrjax.data.decoding import windowing
from cxrjax.data.images import Images, summarize_notes
from cxrjax.data.loading import decoded_cache, prefetch, process_shard, sampling, streaming
from cxrjax.data.loading.device_arrays import Placement

STORAGES = ("auto", "resident", "cached", "streamed")
Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Fetch:
  """Completes a batch with its pixels: `fetch(data, batch)`, called inside the jitted step.

  Attributes:
    placement: of resident images.
    resident: whether the pixels are in `data`; else they are in the batch.
  """

  placement: Placement
  resident: bool

  def __call__(self, data: dict[str, jax.Array], batch: Batch) -> Batch:
    """See the class.

    Args:
      data: `Loader.data`, passed to the step as an argument.
      batch: one batch (not a block).

    Returns:
      `image` [b s s 1], uint8 or, where 16 bits are stored, float32 in 0..1 as the image's window
      shows it, `labels` float32 [b k] and, where wanted, `mask` uint8 [b s s 1], lungs 1 and the
      rest 0, split over the mesh; and `index`, the row of each image, below `num_examples`.
    """
    if not self.resident:
      output = dict(batch)
    else:
      replicated: Batch = {name: data[name] for name in ("labels", "number") if name in data}
      split = {name: array for name, array in data.items() if name not in replicated}
      rows = self.placement.take(split, replicated, batch["index"])
      index = rows.pop("number", batch["index"])
      output = {"image": rows.pop("pixels"), **rows, "index": index}
    if "masks" in output:
      output["mask"] = output.pop("masks")
    windows = output.pop("windows", None)
    if windows is not None:
      output["image"] = windowing.to_unit(output["image"], windows)
    return output


class Loader:
  """Random access to the batches of a run.

  Args:
    data: a source, or images already decoded.
    batch_size: images in a batch, over all devices and processes.
    seed: determines the order.
    mesh: devices with axes `data` and `fsdp` (one of them suffices); both split the batch and the
      resident images. None is the first device alone.
    storage: `resident`, `cached`, `streamed`, or `auto`: resident where the images fit
      `resident_limit_bytes`, else cached where they take at most half of the free disk space and
      there is one process, else streamed.
    size: side of the decoded images, pixels; optional where `data` is decoded.
    fit: see `decoded_cache.load_images`.
    cache_dir: see `decoded_cache.load_images`.
    on_bad_image: `error`, or `skip` (left out of a resident or cached set; in a streamed one the
      next good image takes its place, with its own labels).
    bits: `auto`, 8 or 16; see `decoded_cache.load_images`.
    window: see `decoded_cache.load_images`.
    masks: whether batches include lung masks; all 0 for an image without one.
    repeat: allows a batch larger than the data, which then holds images more than once.
    resident_limit_bytes: limit per device for resident images; by default 40 % of an accelerator's
      memory, or a quarter of the machine's on CPU.
    progress: shows a bar while decoding.

  Attributes:
    storage: `resident`, `cached` or `streamed`.
    bits: 8 or 16, of the pixels stored on the devices or sent there.
    num_examples: usable images.
    steps_per_epoch: `num_examples / batch_size`, a float.
    info: of the source.
    images: all decoded images, where this process holds them; else None.

  Raises:
    UserError: a batch larger than the data or not divisible over the devices, bad images, or masks
      asked for where there are none.
  """

  def __init__(
    self,
    data: Source | Images,
    batch_size: int,
    seed: int,
    mesh: Mesh | None = None,
    *,
    storage: str = "auto",
    size: int | None = None,
    fit: str = "squash",
    cache_dir: str | os.PathLike | None = None,
    on_bad_image: str = "error",
    bits: str | int = "auto",
    window: str | Sequence[float] = "auto",
    masks: bool = False,
    repeat: bool = False,
    resident_limit_bytes: int | None = None,
    progress: bool = True,
  ):
    self._placement = placement = Placement(mesh)
    self.mesh: Mesh = placement.mesh
    self.batch_size = batch_size
    self.info: SourceInfo = data.info
    self.images: Images | None = data if isinstance(data, Images) else None
    if size is None and self.images is not None:
      size = self.images.pixels.shape[1]
    if size is None:
      raise ValueError("size is needed to decode a source")
    decoded_cache.check_options(size, fit, on_bad_image)
    self.size = size
    window = windowing.check_window(window)
    min_count = batch_size if repeat and len(data) else 0  # images repeat to fill a batch
    _check_batch(batch_size, max(min_count, len(data)), placement.devices)
    _check_storage(storage)
    self.bits: int = data.bits if isinstance(data, Images) else inspection.bits_of(data, bits)
    self._masks = masks
    if masks and not isinstance(data, Images):
      inspection.check_masks(data)
    elif masks and isinstance(data, Images) and data.masks is None:
      raise inspection.no_masks(data)
    if storage == "auto":
      needed = len(data) * size * size * (self.bits // 8 + masks)
      limit = (resident_limit_bytes or _default_limit(placement.mesh)) * placement.devices
      storage = _choose_storage(needed, limit, self.images is not None, cache_dir)
    self.storage: str = storage
    self._reader: streaming.Reader | None = None
    self._shard: process_shard.ProcessShard | None = None
    self._rows: np.ndarray | None = None  # the usable rows, where some are bad
    if not isinstance(data, Images):
      options = {"fit": fit, "bits": self.bits, "window": window, "on_bad_image": on_bad_image}
      self._open(data, {**options, "cache_dir": cache_dir, "progress": progress})
    table = data.table if self.images is None else self.images.table
    self._labels = table.labels
    self._ids = table.ids
    self._num_stored = len(table)  # rows on the devices, before padding
    self._num_padded = -(-self._num_stored // placement.devices) * placement.devices
    self.num_examples: int = self._num_stored if self._rows is None else len(self._rows)
    _check_batch(batch_size, max(min_count, self.num_examples), placement.devices)
    self.steps_per_epoch: float = self.num_examples / batch_size
    self._seed = seed
    self._groups = self._part_rows()
    self._data: dict[str, jax.Array] | None = None

  def _open(self, source: Source, options: dict[str, Any]) -> None:
    """Decodes the images, this process's share of them, or none yet, as `storage` says.

    Args:
      source: of the images.
      options: of `decoded_cache.load_images`.
    """
    if self.storage == "streamed":
      values = (options[name] for name in ("fit", "bits", "window", "on_bad_image"))
      self._reader = streaming.Reader(source, self.size, *values)
    elif self.storage == "cached" or jax.process_count() == 1:
      self.images = decoded_cache.load_images(source, self.size, **options)
      self.info = self.images.info
    else:
      self._shard = process_shard.load(source, self.size, self._placement, **options)
      if self._shard.bad:
        self._rows = np.delete(np.arange(len(source), dtype=np.int32), list(self._shard.bad))

  @property
  def skipped(self) -> tuple[tuple[str, str], ...]:
    """Bad images left out so far, and why."""
    reasons = {} if self._reader is None else dict(self._reader.skipped)
    if self.images is not None:
      reasons |= dict(self.images.skipped)
    if self._shard is not None:
      reasons |= {self._ids[row]: reason for row, reason in self._shard.bad.items()}
    return tuple(sorted(reasons.items()))

  @property
  def notes(self) -> list[str]:
    """Remarks for users on how images were read, so far."""
    if self.images is not None:
      return summarize_notes(self.images.notes)
    return summarize_notes(() if self._reader is None else self._reader.notes)

  @property
  def data(self) -> dict[str, jax.Array]:
    """First argument of `fetch`: resident pixels and labels; empty for other storages."""
    if self.storage != "resident":
      return {}
    if self._data is None:
      images = self._shard or self.images
      assert images is not None
      square = (self._num_padded, self.size, self.size, 1)
      arrays = {"pixels": self._split(square, f"u{self.bits // 8}", _rows_of(images, "pixels"))}
      if self.bits == 16:
        arrays["windows"] = self._split((self._num_padded, 2), "f4", _rows_of(images, "windows"))
      if self._masks:
        arrays["masks"] = self._split(square, "u1", _rows_of(images, "masks"))
      replicated = {"labels": np.asarray(self._labels)}
      if self._rows is not None:  # position of a row among the usable ones
        replicated["number"] = np.zeros(self._num_stored, np.int32)
        replicated["number"][self._rows] = np.arange(len(self._rows))
      self._data = arrays | {
        name: self._placement.replicated(array) for name, array in replicated.items()
      }
    return self._data

  def indices(self, start: int, stop: int) -> Int32[np.ndarray, "steps b"]:
    """Rows of the images in steps `start..stop-1`."""
    first, last = start * self.batch_size, stop * self.batch_size
    if self._groups:
      rows = sampling.mixture(
        self._seed, first, last, self._groups, [part.weight for part in self.info.parts]
      )
    else:
      rows = sampling.elements(self._seed, first, last, self.num_examples)
      if self._rows is not None:
        rows = self._rows[rows]
    return rows.reshape(stop - start, self.batch_size)

  def __getitem__(self, step: int) -> Batch:
    """Batch `step`: the same on every call, in every process."""
    if self.storage == "resident":
      return {"index": self._placement.replicated(self.indices(step, step + 1)[0])}
    return self._to_devices(self._step_range(step, step + 1).block(), single=True)

  def block(self, step: int, steps: int) -> Batch:
    """Batches `step .. step+steps-1`, stacked on a leading axis for `lax.scan`."""
    if self.storage == "resident":
      return {"index": self._placement.replicated(self.indices(step, step + steps))}
    return self._to_devices(self._step_range(step, step + steps).block())

  def iterate(
    self, start: int, stop: int, block: int = 1, ahead: int = 2
  ) -> Iterator[tuple[int, int, Batch]]:
    """Blocks of steps from `start` to `stop`, prepared ahead of time in a background thread.

    Yields:
      `(step, k, batch)`: the first step, how many (`block`; fewer at the end), and the batches with
      a leading axis of `k`.
    """

    def generate() -> Iterator[tuple[int, int, Batch]]:
      if self.storage == "resident":
        for step in range(start, stop, block):
          k = min(block, stop - step)
          yield step, k, self.block(step, k)
        return
      step = start
      for loaded in self._step_range(start, stop).blocks(block):
        yield step, len(loaded.rows), self._to_devices(loaded)
        step += len(loaded.rows)

    return prefetch.ahead(generate, ahead)

  @property
  def fetch(self) -> Fetch:
    """Combines `Loader.data` and a batch from `Loader` inside the jitted step."""
    return Fetch(self._placement, self.storage == "resident")

  def _step_range(self, start: int, stop: int) -> streaming.StepRange:
    images = self._reader or self.images
    assert images is not None
    positions = self._placement.positions(self.batch_size)
    return streaming.StepRange(
      images, lambda step: self.indices(step, step + 1)[0], positions, start, stop, self._masks
    )

  def _to_devices(self, block: streaming.Block, single: bool = False) -> Batch:
    """Sharded arrays of a block, or of its only batch; each process provides its devices' rows."""
    positions = self._placement.positions(self.batch_size)
    local_index = np.full(self.batch_size, -1)
    local_index[positions] = np.arange(len(positions))
    holds_all = len(positions) == self.batch_size
    arrays = {"index": block.rows, "image": block.pixels, "labels": self._labels[block.rows]}
    if self.bits == 16:
      arrays["windows"] = block.windows
    if block.masks is not None:
      arrays["masks"] = block.masks

    def local(rows: slice) -> slice | np.ndarray:
      return rows if holds_all else local_index[rows]  # a slice makes no copy

    def split(array: np.ndarray) -> jax.Array:
      shape = (self.batch_size, *array.shape[2:])
      if single:
        return self._placement.split(shape, lambda rows: array[0, local(rows)])
      return self._placement.split((len(array), *shape), lambda rows: array[:, local(rows)], lead=1)

    return {name: split(array) for name, array in arrays.items()}

  def _split(
    self, shape: tuple[int, ...], dtype: str, rows_of: Callable[[slice], np.ndarray]
  ) -> jax.Array:
    """A resident array, padded with black to divide over the devices."""

    def rows(where: slice) -> np.ndarray:
      start, stop, _ = where.indices(shape[0])
      end = max(start, min(stop, self._num_stored))
      values = np.asarray(rows_of(slice(start, end)))
      if end == stop:
        return values
      padded = np.zeros((stop - start, *shape[1:]), dtype)
      padded[: end - start] = values
      return padded

    return self._placement.split(shape, rows)

  def _part_rows(self) -> list[np.ndarray]:
    """Usable rows of each part of a pool; empty where there are no parts."""
    ends = np.cumsum([part.rows for part in self.info.parts])
    groups = []
    for part, end in zip(self.info.parts, ends.tolist(), strict=True):
      rows = np.arange(end - part.rows, end, dtype=np.int32)
      if self._rows is not None:
        rows = rows[np.isin(rows, self._rows, assume_unique=True)]
      if not len(rows):
        raise UserError(f"all images of {part.name} are bad; leave it out of config.data.source")
      groups.append(rows)
    return groups


def _rows_of(
  images: process_shard.ProcessShard | Images, name: str
) -> Callable[[slice], np.ndarray]:
  """A function that reads a slice of rows of the array called `name`."""
  if isinstance(images, Images):
    array = getattr(images, name)
    return lambda rows: array[rows]
  return getattr(images, name)


def _check_batch(batch_size: int, count: int, devices: int) -> None:
  if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
    raise UserError(
      f"config.batch_size={batch_size!r} is not a batch size; give a whole number above 0"
    )
  if batch_size % devices:
    below, above = batch_size // devices * devices, -(-batch_size // devices) * devices
    choices = f"{below} or {above}" if below else f"{above}"
    raise UserError(
      f"config.batch_size={batch_size} does not divide over {devices} devices; try {choices}"
    )
  if batch_size > count:
    raise UserError(
      f"config.batch_size={batch_size} is larger than the data ({count} images); "
      f"give at most {max(count // devices * devices, devices)}, or more data"
    )


def _check_storage(storage: str) -> None:
  if storage not in STORAGES:
    raise UserError(
      f"config.data.storage={storage!r} is not an option; valid: {', '.join(STORAGES)}"
    )


def _choose_storage(
  needed: int, limit: int, is_decoded: bool, cache_dir: str | os.PathLike | None
) -> str:
  """Storage for images of `needed` bytes, of which the devices take `limit`."""
  if needed <= limit:
    return "resident"
  if is_decoded:
    return "cached"
  is_too_large = jax.process_count() > 1 or needed > cache_folder.free_bytes(cache_dir) // 2
  return "streamed" if is_too_large else "cached"


def _default_limit(mesh: Mesh) -> int:
  """Default limit per device for resident images, bytes."""
  device = mesh.local_devices[0]
  stats: dict[str, Any] = (device.memory_stats() or {}) if device.platform != "cpu" else {}
  if "bytes_limit" in stats:
    return int(0.4 * stats["bytes_limit"])
  try:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  except (AttributeError, ValueError, OSError):
    memory = 8 << 30
  return memory // 4 // max(1, len(mesh.local_devices))

"""Batches as a pure function of (seed, step).

The data are an infinite stream, one permutation per epoch (`data.loading.sampling`), and any
element of it can be asked for: element `t * b + i` is image `i` of batch `t`. There is no position
to save or to lose; a run that resumes at step `t` asks for batch `t`. Batches run on over the end
of an epoch, so no image is ever left out. The parts of a pool with weights are interleaved instead,
each part with epochs of its own.

Three storages behind one interface:

* `resident`: all images lie decoded on the devices, split over the mesh. A batch is its indices;
  `Loader.fetch` gathers the pixels inside the jitted step, so the host has next to nothing to do,
  and several steps can run in one dispatch.
* `cached`: for more images than the devices hold. All lie decoded in a file; threads read ahead, a
  batch carries its pixels, and memory does not grow with the number of images.
* `streamed`: for more images than the disk holds decoded. The same, but grain's threads decode each
  image when it is needed, in every epoch; each process decodes its own share only.

Either way 8-bit pixels reach the devices as they are shown, and 16-bit pixels as they were
published, with two gray levels for each image, black and white; `fetch` applies them.
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
from cxrjax.data.images import Images, told
from cxrjax.data.loading import decoded_cache, prefetch, process_shard, sampling, streaming
from cxrjax.data.loading.device_arrays import Placement

STORAGES = ("auto", "resident", "cached", "streamed")
Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Fetch:
  """`fetch(data, batch)`: the batch with its pixels; call it inside the jitted step.

  Attributes:
    placement: of resident images.
    resident: the pixels are in `data`; else in the batch.
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
      found = dict(batch)
    else:
      whole: Batch = {name: data[name] for name in ("labels", "number") if name in data}
      split = {name: array for name, array in data.items() if name not in whole}
      found = self.placement.take(split, whole, batch["index"])
      index = found.pop("number", batch["index"])
      found = {"image": found.pop("pixels"), **found, "index": index}
    if "masks" in found:
      found["mask"] = found.pop("masks")
    windows = found.pop("windows", None)
    if windows is not None:
      found["image"] = windowing.to_unit(found["image"], windows)
    return found


class Loader:
  """Random access to the batches of a run.

  Args:
    data: a source, or images already decoded.
    batch_size: images in a batch, over all devices and processes.
    seed: decides the order.
    mesh: devices with axes `data` and `fsdp` (one of them suffices); both split the batch and the
      resident images. None is the first device alone.
    storage: `resident`, `cached`, `streamed`, or `auto`: resident where it fits
      `resident_limit_bytes`, else cached where it takes at most half of what the disk has free and
      there is one process, else streamed.
    size: side of the decoded images, pixels; may be left out where `data` is decoded.
    fit: see `store.load_images`.
    cache_dir: see `store.load_images`.
    on_bad_image: `error`, or `skip` (left out of a resident or cached set; in a streamed one the
      next good image takes its place, with its own labels).
    bits: `auto`, 8 or 16; see `store.load_images`.
    window: see `store.load_images`.
    masks: give the images' lung masks too; all 0 for an image without one.
    repeat: a batch may be larger than the data, and then holds images more than once.
    resident_limit_bytes: what resident images may take of each device; by default 40 % of an
      accelerator's memory, or a quarter of the machine's on CPU.
    progress: shows a bar while decoding.

  Attributes:
    storage: `resident`, `cached` or `streamed`.
    bits: 8 or 16, of the pixels that lie on the devices or are sent there.
    num_examples: images that take part.
    steps_per_epoch: `num_examples / batch_size`, a float.
    info: of the source.
    images: the decoded images, where this process holds them all; else None.

  Raises:
    UserError: a batch that is larger than the data or does not divide over the devices, bad images,
      masks where there are none.
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
    self._placement = place = Placement(mesh)
    self.mesh: Mesh = place.mesh
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
    least = batch_size if repeat and len(data) else 0  # images that a batch finds at least
    _check_batch(batch_size, max(least, len(data)), place.devices)
    if storage not in STORAGES:
      raise UserError(
        f"config.data.storage={storage!r} is not an option; valid: {', '.join(STORAGES)}"
      )
    self.bits: int = data.bits if isinstance(data, Images) else inspection.bits_of(data, bits)
    self._masks = masks
    if masks and not isinstance(data, Images):
      inspection.check_masks(data)
    elif masks and isinstance(data, Images) and data.masks is None:
      raise inspection.no_masks(data)
    if storage == "auto":
      needed = len(data) * size * size * (self.bits // 8 + masks)
      limit = (resident_limit_bytes or _default_limit(place.mesh)) * place.devices
      storage = "resident" if needed <= limit else "cached"
      if (
        storage == "cached"
        and self.images is None
        and (jax.process_count() > 1 or needed > cache_folder.free_bytes(cache_dir) // 2)
      ):
        storage = "streamed"
    self.storage: str = storage

    self._reader: streaming.Reader | None = None
    self._share: process_shard.ProcessShard | None = None
    self._rows: np.ndarray | None = None  # where not all rows take part: those that do
    if storage == "streamed" and not isinstance(data, Images):
      self._reader = streaming.Reader(data, size, fit, self.bits, window, on_bad_image)
    elif not isinstance(data, Images):
      options: dict[str, Any] = {
        "fit": fit,
        "cache_dir": cache_dir,
        "bits": self.bits,
        "window": window,
        "on_bad_image": on_bad_image,
        "progress": progress,
      }
      if storage == "cached" or jax.process_count() == 1:
        self.images = decoded_cache.load_images(data, size, **options)
        self.info = self.images.info
      else:
        self._share = process_shard.load(data, size, place, **options)
        if self._share.bad:
          self._rows = np.delete(np.arange(len(data), dtype=np.int32), list(self._share.bad))
    table = data.table if self.images is None else self.images.table
    self._labels = table.labels
    self._names = table.ids
    self._stored = len(table)  # rows on the devices, before padding
    self._padded = -(-self._stored // place.devices) * place.devices
    self.num_examples: int = self._stored if self._rows is None else len(self._rows)
    _check_batch(batch_size, max(least, self.num_examples), place.devices)
    self.steps_per_epoch: float = self.num_examples / batch_size
    self._seed = seed
    self._groups = self._parts_rows()
    self._data: dict[str, jax.Array] | None = None

  @property
  def skipped(self) -> tuple[tuple[str, str], ...]:
    """Images left out so far because they are bad, and why."""
    found = {} if self._reader is None else dict(self._reader.skipped)
    if self.images is not None:
      found |= dict(self.images.skipped)
    if self._share is not None:
      found |= {self._names[row]: reason for row, reason in self._share.bad.items()}
    return tuple(sorted(found.items()))

  @property
  def notes(self) -> list[str]:
    """What a user should know of how images were read, so far."""
    return told(
      self.images.notes
      if self.images is not None
      else self._reader.notes
      if self._reader is not None
      else ()
    )

  @property
  def data(self) -> dict[str, jax.Array]:
    """What `fetch` needs besides the batch: resident pixels and labels; else nothing."""
    if self.storage != "resident":
      return {}
    if self._data is None:
      local = self._share or self.images
      assert local is not None
      square = (self._padded, self.size, self.size, 1)
      found = {"pixels": self._split(square, f"u{self.bits // 8}", _rows_of(local, "pixels"))}
      if self.bits == 16:
        found["windows"] = self._split((self._padded, 2), "f4", _rows_of(local, "windows"))
      if self._masks:
        found["masks"] = self._split(square, "u1", _rows_of(local, "masks"))
      whole = {"labels": np.asarray(self._labels)}
      if self._rows is not None:  # an image's number among those that take part
        whole["number"] = np.zeros(self._stored, np.int32)
        whole["number"][self._rows] = np.arange(len(self._rows))
      self._data = found | {k: self._placement.replicated(v) for k, v in whole.items()}
    return self._data

  def indices(self, start: int, stop: int) -> Int32[np.ndarray, "steps b"]:
    """Rows of the images of steps `start..stop-1`."""
    first, last = start * self.batch_size, stop * self.batch_size
    if self._groups:
      found = sampling.mixture(
        self._seed, first, last, self._groups, [part.weight for part in self.info.parts]
      )
    else:
      found = sampling.elements(self._seed, first, last, self.num_examples)
      if self._rows is not None:
        found = self._rows[found]
    return found.reshape(stop - start, self.batch_size)

  def __getitem__(self, step: int) -> Batch:
    """Batch `step`; the same whenever and wherever it is asked for."""
    if self.storage == "resident":
      return {"index": self._placement.replicated(self.indices(step, step + 1)[0])}
    return self._to_devices(self._span(step, step + 1).block(), single=True)

  def block(self, step: int, steps: int) -> Batch:
    """Batches `step .. step+steps-1`, stacked on a leading axis for `lax.scan`."""
    if self.storage == "resident":
      return {"index": self._placement.replicated(self.indices(step, step + steps))}
    return self._to_devices(self._span(step, step + steps).block())

  def iterate(
    self, start: int, stop: int, block: int = 1, ahead: int = 2
  ) -> Iterator[tuple[int, int, Batch]]:
    """Blocks of steps from `start` to `stop`, made ahead of time in a background thread.

    Yields:
      `(step, k, batch)`: the first step, how many (`block`; fewer at the end), and the batches with
      a leading axis of `k`.
    """

    def make() -> Iterator[tuple[int, int, Batch]]:
      if self.storage == "resident":
        for step in range(start, stop, block):
          k = min(block, stop - step)
          yield step, k, self.block(step, k)
        return
      step = start
      for found in self._span(start, stop).blocks(block):
        yield step, len(found.rows), self._to_devices(found)
        step += len(found.rows)

    return prefetch.ahead(make, ahead)

  @property
  def fetch(self) -> Fetch:
    """Makes a batch of `Loader.data` and of what `Loader` gives, inside the jitted step."""
    return Fetch(self._placement, self.storage == "resident")

  def _span(self, start: int, stop: int) -> streaming.StepRange:
    images = self._reader or self.images
    assert images is not None
    mine = self._placement.positions(self.batch_size)
    return streaming.StepRange(
      images, lambda step: self.indices(step, step + 1)[0], mine, start, stop, self._masks
    )

  def _to_devices(self, block: streaming.Block, single: bool = False) -> Batch:
    """A block with pixels, or its only batch; each process gives the rows that its devices hold."""
    mine = self._placement.positions(self.batch_size)
    place = np.full(self.batch_size, -1)
    place[mine] = np.arange(len(mine))
    alone = len(mine) == self.batch_size
    arrays = {"index": block.rows, "image": block.pixels, "labels": self._labels[block.rows]}
    if self.bits == 16:
      arrays["windows"] = block.windows
    if block.masks is not None:
      arrays["masks"] = block.masks

    def local(rows: slice) -> slice | np.ndarray:
      return rows if alone else place[rows]  # a slice copies nothing

    def split(array: np.ndarray) -> jax.Array:
      shape = (self.batch_size, *array.shape[2:])
      if single:
        return self._placement.split(shape, lambda rows: array[0, local(rows)])
      return self._placement.split((len(array), *shape), lambda rows: array[:, local(rows)], lead=1)

    return {name: split(array) for name, array in arrays.items()}

  def _split(
    self, shape: tuple[int, ...], dtype: str, rows_of: Callable[[slice], np.ndarray]
  ) -> jax.Array:
    """A resident array, black where it is padded to divide over the devices."""

    def rows(where: slice) -> np.ndarray:
      start, stop, _ = where.indices(shape[0])
      end = max(start, min(stop, self._stored))
      found = np.asarray(rows_of(slice(start, end)))
      if end == stop:
        return found
      block = np.zeros((stop - start, *shape[1:]), dtype)
      block[: end - start] = found
      return block

    return self._placement.split(shape, rows)

  def _parts_rows(self) -> list[np.ndarray]:
    """The rows of each part of a pool that take part; nothing where there are no parts."""
    ends = np.cumsum([part.rows for part in self.info.parts])
    found = []
    for part, end in zip(self.info.parts, ends.tolist(), strict=True):
      rows = np.arange(end - part.rows, end, dtype=np.int32)
      if self._rows is not None:
        rows = rows[np.isin(rows, self._rows, assume_unique=True)]
      if not len(rows):
        raise UserError(f"all images of {part.name} are bad; leave it out of config.data.source")
      found.append(rows)
    return found


def _rows_of(
  local: process_shard.ProcessShard | Images, name: str
) -> Callable[[slice], np.ndarray]:
  """How to get consecutive rows of a resident array."""
  if isinstance(local, Images):
    array = getattr(local, name)
    return lambda rows: array[rows]
  return getattr(local, name)


def _check_batch(batch_size: int, count: int, devices: int) -> None:
  if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
    raise UserError(
      f"config.batch_size={batch_size!r} is no batch size; give a whole number above 0"
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


def _default_limit(mesh: Mesh) -> int:
  """Bytes of each device's memory that resident images may take."""
  device = mesh.local_devices[0]
  stats: dict[str, Any] = (device.memory_stats() or {}) if device.platform != "cpu" else {}
  if "bytes_limit" in stats:
    return int(0.4 * stats["bytes_limit"])
  try:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  except (AttributeError, ValueError, OSError):
    memory = 8 << 30
  return memory // 4 // max(1, len(mesh.local_devices))

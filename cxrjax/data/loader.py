"""Batches as a pure function of (seed, step).

The data are seen as an infinite stream, one permutation per epoch (`cxrjax.data.order`), and any
element of it can be asked for: element `t * b + i` is image `i` of batch `t`. There is no position
to save or to lose; a run that resumes at step `t` asks for batch `t`. Batches run on over the end
of an epoch, so no image is ever left out.

Two storages behind one interface:

* `resident`: all images lie decoded on the devices, uint8, split over the mesh. A batch is its
  indices; `Loader.fetch` gathers the pixels inside the jitted step, so the host has next to
  nothing to do, and several steps can run in one dispatch.
* `streamed`: for more images than the devices hold. grain's threads decode ahead; a batch carries
  its pixels, and each process decodes its own share only.
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cxrjax.core.errors import UserError
from cxrjax.data import background, decode, order, store
from cxrjax.data.types import Source, SourceInfo

AXES = ("data", "fsdp")
STORAGES = ("auto", "resident", "streamed")
Batch = dict[str, jax.Array]


class Loader:
  """Random access to the batches of a run.

  Args:
    data: a source, or images already decoded.
    batch_size: images in a batch, over all devices and processes.
    seed: decides the order.
    mesh: devices with axes `data` and `fsdp` (one of them suffices); both split the batch and the
      resident images. None is the first device alone.
    storage: `resident`, `streamed`, or `auto`: resident where it fits `resident_limit_bytes`.
    size: side of the decoded images, pixels; may be left out where `data` is decoded.
    fit: see `store.load_images`.
    cache_dir: see `store.load_images`.
    on_bad_image: `error`, or `skip` (left out of a resident set; in a streamed one the next good
      image takes its place).
    resident_limit_bytes: what resident images may take of each device; by default 40 % of an
      accelerator's memory, or a quarter of the machine's on CPU.
    progress: shows a bar while decoding.

  Attributes:
    storage: `resident` or `streamed`.
    num_examples: images that take part.
    steps_per_epoch: `num_examples / batch_size`, a float.
    info: of the source.
    images: the decoded images, where this process holds them all; else None.

  Raises:
    UserError: a batch that is larger than the data or does not divide over the devices, bad images.
  """

  def __init__(
      self, data: Source | store.Images, batch_size: int, seed: int, mesh: Mesh | None = None, *,
      storage: str = "auto", size: int | None = None,
      fit: str = "squash", cache_dir: str | os.PathLike | None = None,
      on_bad_image: str = "error", resident_limit_bytes: int | None = None,
      progress: bool = True):
    if mesh is None:
      mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), AXES)
    self.mesh = mesh
    self.axes = tuple(axis for axis in AXES if axis in mesh.axis_names)
    self.batch_size = batch_size
    self.info: SourceInfo = data.info
    self._decoded = data if isinstance(data, store.Images) else None
    self._source = None if self._decoded is not None else data
    if size is None and self._decoded is not None:
      size = self._decoded.pixels.shape[1]
    if size is None:
      raise ValueError("size is needed to decode a source")
    store.check_options(size, fit, on_bad_image)
    self.size, self._fit, self._on_bad = size, fit, on_bad_image
    devices = int(np.prod([mesh.shape[axis] for axis in self.axes]))
    _check_batch(batch_size, len(data), devices)
    if storage not in STORAGES:
      raise UserError(
        f"config.data.storage={storage!r} is not an option; valid: {', '.join(STORAGES)}")
    if storage == "auto":
      limit = resident_limit_bytes or _default_limit(mesh)
      storage = "resident" if len(data) * size * size <= limit * devices else "streamed"
    self.storage: str = storage
    self._rows: np.ndarray | None = None  # where not all rows take part: those that do
    self._skipped: dict[str, str] = {}
    self.images: store.Images | None = self._decoded
    self._local: Callable[[slice], np.ndarray] | None = None
    count = len(data)
    self._labels = self._decoded.labels if self._decoded is not None else data.table.labels
    if storage == "resident" and self._source is not None:
      if jax.process_count() == 1:
        self.images = store.load_images(
          self._source, size, fit=fit, cache_dir=cache_dir, on_bad_image=on_bad_image,
          progress=progress)
        count, self._labels = len(self.images), self.images.labels
      else:
        count = self._load_share(cache_dir, progress)
      _check_batch(batch_size, count, devices)
    self.num_examples: int = count
    self.steps_per_epoch: float = count / batch_size
    self._stored = len(self._labels)  # rows on the devices, before padding
    self._padded = -(-self._stored // devices) * devices
    if self.images is not None:
      self._skipped = dict(self.images.skipped)
      self._local = lambda rows: self.images.pixels[rows]
    self._seed = seed
    self._data: dict[str, jax.Array] | None = None

  @property
  def skipped(self) -> tuple[tuple[str, str], ...]:
    """Images left out so far because they are bad, and why."""
    return tuple(sorted(self._skipped.items()))

  @property
  def data(self) -> dict[str, jax.Array]:
    """What `fetch` needs besides the batch: the resident pixels and labels; nothing if streamed."""
    if self.storage == "streamed":
      return {}
    if self._data is None:
      shape = (self._padded, self.size, self.size, 1)
      pixels = jax.make_array_from_callback(
        shape, self._sharding(PartitionSpec(self.axes)), self._padded_rows)
      self._data = {"pixels": pixels, "labels": self._replicated(np.asarray(self._labels))}
    return self._data

  def indices(self, start: int, stop: int) -> np.ndarray:
    """Rows of the images of steps `start..stop-1`: int32 [stop - start, batch_size]."""
    first, last = start * self.batch_size, stop * self.batch_size
    found = order.elements(self._seed, first, last, self.num_examples)
    if self._rows is not None:
      found = self._rows[found]
    return found.reshape(stop - start, self.batch_size)

  def __getitem__(self, step: int) -> Batch:
    """Batch `step`; the same whenever and wherever it is asked for."""
    return self._to_devices(self._host_block(step, 1), squeeze=True)

  def block(self, step: int, steps: int) -> Batch:
    """Batches `step .. step+steps-1`, stacked on a leading axis for `lax.scan`."""
    return self._to_devices(self._host_block(step, steps))

  def iterate(
      self, start: int, stop: int, block: int = 1, ahead: int = 2,
      ) -> Iterator[tuple[int, int, Batch]]:
    """Blocks of steps from `start` to `stop`, made ahead of time in a background thread.

    Yields:
      `(step, k, batch)`: the first step, how many (`block`; fewer at the end), and the batches with
      a leading axis of `k`.
    """
    def make() -> Iterator[tuple[int, int, Batch]]:
      for step, host in self._host_blocks(start, stop, block):
        yield step, len(host["index"]), self._to_devices(host)

    return background.ahead(make, ahead)

  def fetch(self, data: dict[str, jax.Array], batch: Batch) -> Batch:
    """The batch with its pixels: call it inside the jitted step.

    Args:
      data: `Loader.data`, passed to the step as an argument.
      batch: one batch (not a block).

    Returns:
      `image` uint8 [b s s 1] and `labels` float32 [b k], split over the mesh, and `index`.
    """
    if self.storage == "streamed":
      return batch
    pixels, labels, index = data["pixels"], data["labels"], batch["index"]
    if self.mesh.size == 1:
      return {"image": jnp.take(pixels, index, axis=0, mode="clip"),
              "labels": jnp.take(labels, index, axis=0, mode="clip"), "index": index}
    split, whole = PartitionSpec(self.axes), PartitionSpec()
    gather = jax.shard_map(
      self._gather, mesh=self.mesh, in_specs=(split, whole, whole), out_specs=(split, split))
    image, labels = gather(pixels, labels, index)
    return {"image": image, "labels": labels, "index": index}

  def _gather(self, pixels: jax.Array, labels: jax.Array, index: jax.Array):
    """On one device: look up the rows it has, add up over devices, keep its share of the batch.

    Every row is on one device only, so the sum is exact in uint8. No device sees all images, nor
    more than one batch of them.
    """
    rank, rows = jax.lax.axis_index(self.axes), pixels.shape[0]
    local = index - rank * rows
    mine = (local >= 0) & (local < rows)
    found = jnp.take(pixels, jnp.clip(local, 0, rows - 1), axis=0, mode="clip")
    found = jnp.where(mine[:, None, None, None], found, jnp.uint8(0))
    image = jax.lax.psum_scatter(found, self.axes, scatter_dimension=0, tiled=True)
    share = image.shape[0]
    own = jax.lax.dynamic_slice_in_dim(index, rank * share, share)
    return image, jnp.take(labels, own, axis=0, mode="clip")

  # Host side.

  def _host_blocks(self, start: int, stop: int, block: int) -> Iterator[tuple[int, dict]]:
    if self.storage == "resident":
      for step in range(start, stop, block):
        yield step, self._host_block(step, min(block, stop - step))
      return
    positions = self._positions()
    threads = store.workers()
    ahead = max(2 * len(positions) * block, 2 * threads)
    stream = iter(
      grain.MapDataset.source(_Window(self, start, stop, positions))
      .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)))
    for step in range(start, stop, block):
      k = min(block, stop - step)
      images = np.stack([next(stream) for _ in range(k * len(positions))])
      yield step, self._streamed_block(step, k, positions, images)

  def _host_block(self, step: int, steps: int) -> dict:
    if self.storage == "resident":
      return {"index": self.indices(step, step + steps)}
    positions = self._positions()
    window = _Window(self, step, step + steps, positions)
    with concurrent.futures.ThreadPoolExecutor(store.workers()) as pool:
      images = np.stack(list(pool.map(window.__getitem__, range(len(window)))))
    return self._streamed_block(step, steps, positions, images)

  def _streamed_block(
      self, step: int, steps: int, positions: np.ndarray, images: np.ndarray) -> dict:
    """Index of the whole batch; pixels of this process's positions in it."""
    return {"index": self.indices(step, step + steps), "positions": positions,
            "image": images.reshape(steps, len(positions), self.size, self.size, 1)}

  def _positions(self) -> np.ndarray:
    """Which images of a batch this process provides: all of them, if it is alone."""
    shardings = self._sharding(PartitionSpec(self.axes)).addressable_devices_indices_map(
      (self.batch_size,))
    return np.unique(np.concatenate(
      [np.arange(*index[0].indices(self.batch_size)) for index in shardings.values()]))

  def read(self, row: int) -> np.ndarray:
    """One decoded image of a streamed set: uint8 [s s 1]."""
    if self._decoded is not None:
      return np.asarray(self._decoded.pixels[row])
    assert self._source is not None
    first = None
    for candidate in range(row, row + len(self._source)):
      candidate %= len(self._source)
      try:
        record = store.read(self._source, candidate, self.size)
        return store.to_square(record, self.size, self._fit)[0]
      except decode.BadImage as error:
        name = self._source.table.ids[candidate]
        if self._on_bad == "error":
          raise store.bad_image(name, str(error)) from error
        self._skipped[name] = str(error)
        first = first or error
    raise UserError(f"{self.info.name}: every image is bad; one of them: {first}")

  # Device side.

  def _to_devices(self, host: dict, squeeze: bool = False) -> Batch:
    lead = () if squeeze else (None,)
    index = host["index"][0] if squeeze else host["index"]
    if self.storage == "resident":
      return {"index": self._replicated(index)}
    sharding = self._sharding(PartitionSpec(*lead, self.axes))
    labels = self._labels[index]
    images = host["image"][0] if squeeze else host["image"]
    place = np.full(self.batch_size, -1)
    place[host["positions"]] = np.arange(len(host["positions"]))

    def of(array: np.ndarray, local: bool) -> jax.Array:
      shape = (*index.shape, *array.shape[index.ndim:])

      def piece(where: tuple[slice, ...]) -> np.ndarray:
        if not local:
          return array[where]
        rows = place[where[len(lead)]]
        return array[:, rows] if lead else array[rows]

      return jax.make_array_from_callback(shape, sharding, piece)

    return {"index": of(index, False), "image": of(images, True), "labels": of(labels, False)}

  def _sharding(self, spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(self.mesh, spec)

  def _replicated(self, array: np.ndarray) -> jax.Array:
    sharding = self._sharding(PartitionSpec())
    if jax.process_count() == 1:
      return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda where: array[where])

  def _padded_rows(self, where: tuple[slice, ...]) -> np.ndarray:
    """Rows of the resident array, black where it is padded to divide over the devices."""
    start, stop, _ = where[0].indices(self._padded)
    end = min(stop, self._stored)
    assert self._local is not None
    found = np.asarray(self._local(slice(start, end))) if start < end else None
    if end == stop and found is not None:
      return found
    block = np.zeros((stop - start, self.size, self.size, 1), np.uint8)
    if found is not None:
      block[:end - start] = found
    return block

  def _load_share(self, cache_dir: str | os.PathLike | None, progress: bool) -> int:
    """Decodes the rows whose pixels live on this process's devices; all processes agree on the bad.

    Nothing is raised before all have said how it went: a process that stops early would leave the
    others waiting.
    """
    source, n = self._source, len(self._source)
    devices = int(np.prod([self.mesh.shape[axis] for axis in self.axes]))
    padded = -(-n // devices) * devices
    spans = self._sharding(PartitionSpec(self.axes)).addressable_devices_indices_map((padded,))
    mine = np.unique(np.concatenate([np.arange(*s[0].indices(padded)) for s in spans.values()]))
    mine = mine[mine < n]
    bad: dict[int, str] = {}
    failure: UserError | None = None
    pixels = np.zeros((0, self.size, self.size, 1), np.uint8)
    try:
      pixels, _, bad = store.decode_rows(
        source, self.size, fit=self._fit, cache_dir=cache_dir, indices=mine,
        progress=progress and jax.process_index() == 0)
    except UserError as error:
      failure = error
    report = np.zeros(n + 1, np.uint8)
    report[n] = failure is not None
    report[mine[sorted(bad)]] = 1
    report = multihost_utils.process_allgather(report).reshape(-1, n + 1).max(axis=0)
    if failure is not None:
      raise failure
    if report[n]:
      raise UserError("another process could not load its images; its own output says why")
    reasons = {int(mine[i]): reason for i, reason in bad.items()}
    unusable = np.flatnonzero(report[:n])
    for row in unusable.tolist():
      name, reason = source.table.ids[row], reasons.get(row, "found bad by another process")
      if self._on_bad == "error":
        raise store.bad_image(name, reason)
      self._skipped[name] = reason
    if len(unusable):
      self._rows = np.flatnonzero(report[:n] == 0).astype(np.int32)
    place = {int(row): i for i, row in enumerate(mine)}
    self._local = lambda rows: pixels[[place[r] for r in range(rows.start, rows.stop)]]
    return n - len(unusable)


class _Window:
  """The images of steps `start..stop-1` that one process provides, as a grain data source."""

  def __init__(self, loader: Loader, start: int, stop: int, positions: np.ndarray):
    self._loader, self._start, self._positions = loader, start, positions
    self._length = (stop - start) * len(positions)

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, item: int) -> np.ndarray:
    step, position = divmod(item, len(self._positions))
    index = self._loader.indices(self._start + step, self._start + step + 1)
    return self._loader.read(int(index[0, self._positions[position]]))


def _check_batch(batch_size: int, count: int, devices: int) -> None:
  if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
    raise UserError(
      f"config.batch_size={batch_size!r} is no batch size; give a whole number above 0")
  if batch_size % devices:
    below, above = batch_size // devices * devices, -(-batch_size // devices) * devices
    choices = f"{below} or {above}" if below else f"{above}"
    raise UserError(
      f"config.batch_size={batch_size} does not divide over {devices} devices; try {choices}")
  if batch_size > count:
    raise UserError(f"config.batch_size={batch_size} is larger than the data ({count} images); "
                    f"give at most {max(count // devices * devices, devices)}, or more data")


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

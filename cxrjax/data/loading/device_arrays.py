"""Placement of images on a mesh of devices: split over all of it, each on one device only."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

AXES = ("data", "fsdp")


class Placement:
  """Places arrays on a mesh and gathers rows of them.

  Args:
    mesh: devices with axes `data` and `fsdp` (one of them suffices); both split images. None is
      the first device alone.

  Attributes:
    mesh: the devices.
    axes: the mesh axes that split images.
    devices: number of devices that images are split over.
  """

  def __init__(self, mesh: Mesh | None = None):
    if mesh is None:
      mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), AXES, axis_types=(AxisType.Auto,) * 2)
    self.mesh: Mesh = mesh
    self.axes = tuple(axis for axis in AXES if axis in mesh.axis_names)
    self.devices = int(np.prod([mesh.shape[axis] for axis in self.axes]))

  def positions(self, count: int) -> Int[np.ndarray, "_"]:
    """Which of `count` rows, split over all devices, lie on this process's devices; ascending."""
    spans = self._sharding(self.axes).addressable_devices_indices_map((count,)).values()
    rows = [np.arange(*span[0].indices(count)) for span in spans if span is not None]
    return np.unique(np.concatenate(rows))

  def split(
    self, shape: tuple[int, ...], rows: Callable[[slice], np.ndarray], lead: int = 0
  ) -> jax.Array:
    """An array of `shape` split along axis `lead`; `rows` returns a device's slice of that axis."""

    def local(where: tuple[slice, ...] | None) -> np.ndarray:
      assert where is not None  # called for this process's devices only
      return rows(where[lead])

    return jax.make_array_from_callback(shape, self._sharding(*(None,) * lead, self.axes), local)

  def replicated(self, array: np.ndarray) -> jax.Array:
    """The array, replicated on every device."""
    sharding = self._sharding()
    if jax.process_count() == 1:
      return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda where: array[where])

  def take(
    self, split: dict[str, jax.Array], whole: dict[str, jax.Array], index: Int[jax.Array, "b"]
  ) -> dict[str, jax.Array]:
    """Gathers rows `index` of split and of replicated arrays; traced.

    Args:
      split: as `Placement.split` makes them.
      whole: as `Placement.replicated` makes them.
      index: replicated on every device.

    Returns:
      The rows of each, split over the devices.
    """
    if self.mesh.size == 1:
      return {
        name: jnp.take(array, index, axis=0, mode="clip") for name, array in (split | whole).items()
      }
    sharded, replicated = PartitionSpec(self.axes), PartitionSpec()
    gather = jax.shard_map(
      self._gather, mesh=self.mesh, in_specs=(sharded, replicated, replicated), out_specs=sharded
    )
    return gather(split, whole, index)

  def _gather(self, split, replicated, index):
    """Per device: look up the rows it holds, sum over devices, keep its share of the batch.

    Every row is on one device only, so the sum is exact in any type. No device sees all images, nor
    more than one batch of them.
    """
    rank = jax.lax.axis_index(self.axes)
    gathered = {}
    for name, array in split.items():
      local = index - rank * array.shape[0]
      is_local = (local >= 0) & (local < array.shape[0])
      rows = jnp.take(array, jnp.clip(local, 0, array.shape[0] - 1), axis=0, mode="clip")
      is_local = is_local.reshape(-1, *(1,) * (rows.ndim - 1))
      rows = jnp.where(is_local, rows, np.zeros((), rows.dtype))
      gathered[name] = self._add(rows)
    share = index.shape[0] // self.devices
    own_index = jax.lax.dynamic_slice_in_dim(index, rank * share, share)
    return gathered | {
      name: jnp.take(array, own_index, axis=0, mode="clip") for name, array in replicated.items()
    }

  def _add(self, rows: jax.Array) -> jax.Array:
    """Sums over devices; each keeps its share of the rows."""
    # GPU collectives do not add 16-bit integers. Bytes can be added, as all summands but one are 0.
    wide = rows.dtype == jnp.uint16
    rows = jax.lax.bitcast_convert_type(rows, jnp.uint8) if wide else rows
    rows = jax.lax.psum_scatter(rows, self.axes, scatter_dimension=0, tiled=True)
    return jax.lax.bitcast_convert_type(rows, jnp.uint16) if wide else rows

  def _sharding(self, *spec) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec(*spec))

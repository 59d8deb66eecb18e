"""Frozen features of many images: the encoder, compiled once, over padded batches."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, UInt8, UInt16

from cxrjax.core import compile_effort
from cxrjax.core.errors import UserError
from cxrjax.data.decoding.windowing import to_unit
from cxrjax.data.images import Images, stored

T = TypeVar("T")
Encode = Callable[[Any, Float[Array, "b s s 1"]], Float[Array, "b *d"]]

IN_FLIGHT = 4  # batches sent to the device and not read back: overlap without filling memory


def extract(
  encode: Encode,
  params: Any,
  images: Images | UInt8[np.ndarray, "n s s 1"],
  *,
  batch: int = 64,
  mean: float = 0.5,
  std: float = 0.25,
  mesh: Mesh | None = None,
  progress: bool = False,
  vectors: bool = True,
) -> Float32[np.ndarray, "n *d"]:
  """Computes features, or predictions, of images.

  The compiled encoder is cached per `(encode, mean, std, mesh)`, so pass the *same* function every
  time; a new closure compiles anew. All batches have one shape: the last is padded with black
  images, whose features are dropped.

  Args:
    encode: `encode(params, x f32[b s s 1]) -> f32[b d]`, x = (gray - mean) / std with gray in 0..1.
    params: the encoder's parameters, used where they are (sharded over `mesh` or not).
    images: decoded at the encoder's input size; 16-bit ones are windowed on the device.
    batch: images per dispatch; rounded up to a multiple of the devices.
    mean: subtracted from gray levels in 0..1.
    std: gray levels are divided by it.
    mesh: shards a batch over all its axes; None for the default device.
    progress: show a bar on stderr.
    vectors: raise unless `encode` gives one vector per image.

  Returns:
    One row per image, in order, on the host (on every process).

  Raises:
    UserError: `encode` does not give one vector (or row) per image.
  """
  from tqdm import tqdm

  pixels, windows = stored(images)
  n, size = len(pixels), batch_size(batch, mesh)
  if not n:
    raise UserError("there are no images to encode")

  def dispatch() -> Iterator[tuple[int, jax.Array]]:
    starts = range(0, n, size)
    for start in tqdm(starts, desc="features", unit="batch", disable=not progress, leave=False):
      rows = slice(start, start + size)
      outputs = send(
        encode,
        params,
        pixels[rows],
        None if windows is None else windows[rows],
        size=size,
        mean=mean,
        std=std,
        mesh=mesh,
        vectors=vectors,
      )
      yield start, outputs

  return np.concatenate([y for _, y in received(dispatch())])[:n]


def batch_size(batch: int, mesh: Mesh | None) -> int:
  """Images per dispatch, rounded up to a multiple of the devices."""
  devices = 1 if mesh is None else mesh.devices.size
  return -(-batch // devices) * devices


def send(
  encode: Callable[[Any, Float[Array, "b s s 1"]], Any],
  params: Any,
  pixels: UInt8[np.ndarray, "m s s 1"] | UInt16[np.ndarray, "m s s 1"],
  windows: Float32[np.ndarray, "m 2"] | None,
  *,
  size: int,
  mean: float,
  std: float,
  mesh: Mesh | None = None,
  vectors: bool = False,
) -> Any:
  """Dispatches a batch to the device, without waiting for the result.

  Args:
    encode: see `extract`; without `vectors` it may give a tree of arrays f32[b ...].
    params: see `extract`.
    pixels: up to `size` images.
    windows: of 16-bit images.
    size: number of images the batch is padded to, see `batch_size`.
    mean: see `extract`.
    std: see `extract`.
    mesh: see `extract`.
    vectors: see `extract`.

  Returns:
    float32 arrays of `size` rows, of which the first m are valid, for `received`.
  """
  x = _place(_padded(pixels, size), mesh)
  placed_windows = None if windows is None else _place(_padded(windows, size, "edge"), mesh)
  return compiled(encode, float(mean), float(std), mesh, vectors)(params, x, placed_windows)


def received(sent: Iterable[tuple[T, Any]]) -> Iterator[tuple[T, Any]]:
  """Yields outputs of `send` on the host, in order, keeping `IN_FLIGHT` batches in flight."""
  in_flight: deque[tuple[T, Any]] = deque()
  for item in sent:
    in_flight.append(item)
    if len(in_flight) > IN_FLIGHT:
      key, outputs = in_flight.popleft()
      yield key, jax.tree.map(np.asarray, outputs)
  for key, outputs in in_flight:
    yield key, jax.tree.map(np.asarray, outputs)


def _padded(
  x: np.ndarray, batch: int, mode: Literal["constant", "edge"] = "constant"
) -> np.ndarray:
  """Pads `x` to `batch` rows with zeros, or with its last row."""
  if len(x) == batch:
    return np.asarray(x)
  return np.pad(x, ((0, batch - len(x)), *((0, 0),) * (x.ndim - 1)), mode=mode)


def _place(x: np.ndarray, mesh: Mesh | None) -> jax.Array:
  """Puts a batch on the device, or shards it over a mesh (each process provides its own rows)."""
  if mesh is None:
    return jnp.asarray(x)
  sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
  return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


@functools.lru_cache(maxsize=8)
def compiled(
  encode: Encode, mean: float, std: float, mesh: Mesh | None, vectors: bool
) -> jax.stages.Wrapped:
  """The jitted `program(params, pixels, windows or None)` of `extract`, cached by its arguments."""

  def features(params: Any, x: jax.Array, windows: jax.Array | None) -> Any:
    gray = x.astype(jnp.float32) / 255 if windows is None else jnp.asarray(to_unit(x, windows))
    y = encode(params, (gray - mean) / std)
    if vectors and (y.shape[:1] != x.shape[:1] or y.ndim != 2):
      raise UserError(
        f"the encoder gives shape {tuple(y.shape)} for {x.shape[0]} images; evaluators need one "
        "vector an image: return [b, d]"
      )
    return jax.tree.map(lambda y: y.astype(jnp.float32), y)

  options = compile_effort.options(mesh=mesh)
  if mesh is None:
    return jax.jit(features, compiler_options=options)
  return jax.jit(
    features, out_shardings=NamedSharding(mesh, PartitionSpec()), compiler_options=options
  )

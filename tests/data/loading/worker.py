"""What the loader's tests run in a process of its own: `python worker.py devices|process ...`.

Prints one JSON object: what the loader gave, for comparison with a loader on one device.
"""

import dataclasses
import hashlib
import json
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from cxrjax.core.errors import UserError
from cxrjax.data import Loader, open_source
from cxrjax.data import base as data_base
from cxrjax.data.base import Part
from cxrjax.data.decoding import decode

NAMES = ("index", "image", "labels", "mask")


class Spoilt(data_base.Source):
  """A source two of whose images cannot be used, and that counts what is read."""

  def __init__(self, source):
    self._source, self.reads = source, set()
    self.info = dataclasses.replace(source.info, fingerprint="spoilt")
    self.table, self.bits = source.table, source.bits

  def __len__(self):
    return len(self._source)

  def __getitem__(self, i):
    self.reads.add(i)
    if i in (3, 17):
      raise decode.BadImage("spoilt")
    return self._source[i]


class Mixed(data_base.Source):
  """Phantoms, two of three made 12-bit as a detector gives them, one of these with a window; two
  parts, drawn by weight."""

  def __init__(self, source):
    self._source, self.table, n = source, source.table, len(source)
    self.info = dataclasses.replace(
      source.info, fingerprint="mixed", parts=(Part("a", n // 3, 2.0), Part("b", n - n // 3, 1.0))
    )

  def __len__(self):
    return len(self._source)

  def __getitem__(self, i):
    record = self._source[i]
    if i % 3 == 0:
      return record
    window = (400.0, 3000.5) if i % 3 == 1 else None
    return dataclasses.replace(
      record, image=record.image.astype(np.uint16) * 13 + 7 * np.uint16(i), window=window
    )


def digest(array):
  return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def whole(array):
  """A global array, as every process sees it."""
  if jax.process_count() == 1:
    return np.asarray(array)
  return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def digests(batch):
  return {name: digest(whole(batch[name])) for name in NAMES if name in batch}


def batches(loader):
  fetch = jax.jit(loader.fetch)
  found = {}
  for step in (0, 3, 9):
    batch = fetch(loader.data, loader[step])
    found[str(step)] = digests(batch)
  for step, k, block in loader.iterate(2, 7, 2):
    for i in range(k):
      batch = fetch(loader.data, {name: leaf[i] for name, leaf in block.items()})
      found[f"block {step + i}"] = digests(batch)
  return found


def report(mesh, storage, cache):
  source = open_source("phantom", n=45, size=40)
  loader = Loader(
    source, 16, 7, mesh, size=24, storage=storage, cache_dir=cache, masks=True, progress=False
  )
  found = {"batches": batches(loader), "n": loader.num_examples}
  if storage == "resident":
    pixels = loader.data["pixels"]
    found["rows on a device"] = sorted({s.data.shape[0] for s in pixels.addressable_shards})
    found["padded"] = pixels.shape[0]
  batch = jax.jit(loader.fetch)(loader.data, loader[0])
  found["images on a device"] = sorted({s.data.shape[0] for s in batch["image"].addressable_shards})
  return found


def mixed(mesh, storage, cache):
  source = Mixed(open_source("phantom", n=45, size=40))
  loader = Loader(source, 16, 7, mesh, size=24, storage=storage, cache_dir=cache, progress=False)
  assert loader.bits == 16
  if storage == "resident":
    assert loader.data["pixels"].dtype == np.uint16
  return batches(loader)


def spoilt(mesh, cache):
  source = Spoilt(open_source("phantom", n=45, size=40))
  loader = Loader(
    source,
    16,
    7,
    mesh,
    size=24,
    storage="resident",
    cache_dir=cache,
    on_bad_image="skip",
    progress=False,
  )
  result = {
    "n": loader.num_examples,
    "skipped": [name for name, _ in loader.skipped],
    "batches": batches(loader),
    "reads": len(source.reads),
    "seen": sorted(set(loader.indices(0, 6).ravel().tolist())),
  }
  try:
    Loader(source, 16, 7, mesh, size=24, storage="resident", cache_dir=cache, progress=False)
  except UserError as error:
    result["error"] = str(error)
  return result


def main():
  kind, cache, *rest = sys.argv[1:]
  if kind == "process":
    address, count, index = rest
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, int(count), int(index))
  devices = np.array(jax.devices())
  mesh = Mesh(devices.reshape(-1, 2), ("data", "fsdp"))
  result = {storage: report(mesh, storage, cache) for storage in ("resident", "streamed")}
  result["mixed"] = {storage: mixed(mesh, storage, cache) for storage in ("resident", "streamed")}
  result["spoilt"] = spoilt(mesh, cache)
  if kind == "devices":  # one axis, or devices in another order, change nothing
    turned = Mesh(devices[::-1].reshape(-1, 2), ("data", "fsdp"))
    result["turned"] = report(turned, "resident", cache)
    result["one axis"] = report(Mesh(devices, ("data",)), "streamed", cache)
  sys.stdout.write("RESULT " + json.dumps(result) + "\n")


if __name__ == "__main__":
  main()

"""What the loader sends to the devices: 16 bits, windows, pools, memory."""

import dataclasses
import tracemalloc

import jax
import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.data import Loader, Record, SourceInfo, Table, load_images
from cxrjax.data import base as data_base
from cxrjax.data.base import Part
from cxrjax.data.decoding import decode
from cxrjax.data.loading import decoded_cache, sampling, streaming

BATCH = 8
STORAGES = ("resident", "cached", "streamed")


class Deep(data_base.Source):
  """Images of 8 and 16 bits in turn, some with a window; a source that does not say its bits."""

  def __init__(self, source, bad=(), parts=()):
    self._source, self._bad, self.table = source, bad, source.table
    self.info = dataclasses.replace(source.info, fingerprint=f"deep {bad}", parts=parts)

  def __len__(self):
    return len(self._source)

  def __getitem__(self, i):
    if i in self._bad:
      raise decode.BadImage("spoilt")
    record = self._source[i]
    if i % 2:
      return record
    image = record.image.astype(np.uint16) * 14 + np.uint16(300 + i)
    return dataclasses.replace(record, image=image, window=(700.0, 3000.5) if i % 4 else None)


def make(source, storage, **options):
  options = {"batch_size": BATCH, "seed": 3, "size": 16, "progress": False} | options
  return Loader(source, storage=storage, **options)


def fetched(loader, step):
  return jax.tree.map(np.asarray, jax.jit(loader.fetch)(loader.data, loader[step]))


@pytest.mark.parametrize("storage", STORAGES)
def test_sixteen_bits_reach_the_step_and_are_windowed_there(arrays, storage):
  source = Deep(arrays(20))
  loader = make(source, storage)
  assert loader.bits == 16
  carried = loader.data if storage == "resident" else loader[0]
  assert np.dtype(np.uint16) in {x.dtype for x in jax.tree.leaves(carried)}
  images = load_images(source, 16, progress=False)
  for step in (0, 4):
    batch = fetched(loader, step)
    rows = loader.indices(step, step + 1)[0]
    low, high = (images.windows[rows].astype(np.float64)[:, i, None, None, None] for i in (0, 1))
    exact = np.clip((images.pixels[rows] - low) / (high - low), 0, 1)
    assert set(batch) == {"image", "labels", "index"} and batch["image"].dtype == np.float32
    np.testing.assert_allclose(batch["image"], exact, atol=1e-6)
    np.testing.assert_array_equal(batch["index"], rows)
    np.testing.assert_array_equal(batch["labels"], source.table.labels[rows])


def test_all_storages_give_the_same_bits(arrays):
  found = [fetched(make(Deep(arrays(20)), storage), 3) for storage in STORAGES]
  for other in found[1:]:
    for name in found[0]:
      np.testing.assert_array_equal(other[name], found[0][name])


@pytest.mark.parametrize("storage", STORAGES)
def test_eight_bits_of_sixteen_are_what_they_were(arrays, storage):
  """With bits=8 a batch is uint8, as the store windows it on the host."""
  source = Deep(arrays(20))
  loader = make(source, storage, bits=8)
  batch = fetched(loader, 1)
  images = load_images(source, 16, bits=8, progress=False)
  assert batch["image"].dtype == np.uint8
  np.testing.assert_array_equal(batch["image"], images.pixels[loader.indices(1, 2)[0]])


@pytest.mark.parametrize("window", ["full", (500.0, 2000.0)])
@pytest.mark.parametrize("storage", STORAGES)
def test_the_users_window(arrays, storage, window):
  source = Deep(arrays(20))
  loader = make(source, storage, window=window)
  rows = loader.indices(0, 1)[0]
  image = fetched(loader, 0)["image"]
  low, high = (0, 65535) if window == "full" else window
  for i, row in enumerate(rows.tolist()):
    square = decoded_cache.to_square(source[row], 16, "squash", 16, "full")[0].astype(np.float64)
    exact = square / 65535 if row % 2 else np.clip((square - low) / (high - low), 0, 1)
    np.testing.assert_allclose(image[i], exact, atol=1e-6)


@pytest.mark.parametrize("storage", STORAGES)
def test_blocks_of_sixteen_bits(arrays, storage):
  loader = make(Deep(arrays(20)), storage)
  fetch = jax.jit(loader.fetch)
  for step, k, block in loader.iterate(2, 7, 3):
    for i in range(k):
      found = fetch(loader.data, {name: leaf[i] for name, leaf in block.items()})
      np.testing.assert_array_equal(found["image"], fetched(loader, step + i)["image"])


@pytest.mark.parametrize("storage", STORAGES)
def test_pools_are_drawn_by_weight(arrays, storage):
  parts = (Part("a", 4, 3.0), Part("b", 16, 1.0))
  loader = make(Deep(arrays(20), parts=parts), storage)
  rows = loader.indices(0, 40).ravel()
  groups = [np.arange(4, dtype=np.int32), np.arange(4, 20, dtype=np.int32)]
  np.testing.assert_array_equal(rows, sampling.mixture(3, 0, 40 * BATCH, groups, [3.0, 1.0]))
  assert (rows < 4).mean() == pytest.approx(0.75, abs=0.01)
  np.testing.assert_array_equal(loader.indices(7, 9), loader.indices(0, 40)[7:9])
  batch = fetched(loader, 5)
  np.testing.assert_array_equal(batch["index"], loader.indices(5, 6)[0])


def test_bad_images_of_a_pool(arrays):
  parts = (Part("a", 4, 3.0), Part("b", 16, 1.0))
  source = Deep(arrays(20), bad=(0, 2, 9), parts=parts)
  loader = make(source, "cached", on_bad_image="skip")
  assert [part.rows for part in loader.info.parts] == [2, 15]
  rows = loader.indices(0, 40).ravel()
  assert set(rows.tolist()) == set(range(17)) and (rows < 2).mean() == pytest.approx(0.75, abs=0.01)
  assert {loader.images.ids[i] for i in rows[rows < 2]} == {"im1", "im3"}
  with pytest.raises(UserError, match="all images of a are bad; leave it out of config"):
    make(Deep(arrays(20), bad=(0, 1, 2, 3), parts=parts), "cached", on_bad_image="skip")


def test_bad_images_of_sixteen_bits(arrays):
  source = Deep(arrays(20), bad=(2, 8))
  good = load_images(Deep(arrays(20)), 16, progress=False)
  with pytest.raises(UserError, match="im2: spoilt"):
    make(source, "resident")
  for storage in ("resident", "cached"):
    loader = make(source, storage, on_bad_image="skip")
    assert loader.num_examples == 18 and [n for n, _ in loader.skipped] == ["im2", "im8"]
    kept = np.delete(np.arange(20), [2, 8])[loader.indices(0, 1)[0]]
    low, high = (good.windows[kept][:, i, None, None, None] for i in (0, 1))
    exact = np.clip((good.pixels[kept] - low) / (high - low), 0, 1)
    np.testing.assert_allclose(fetched(loader, 0)["image"], exact, atol=1e-6)
  loader = make(source, "streamed", on_bad_image="skip")
  for step in range(3):
    asked = loader.indices(step, step + 1)[0]
    found = fetched(loader, step)["index"]
    np.testing.assert_array_equal(found, np.where(np.isin(asked, (2, 8)), asked + 1, asked))


def test_a_block_of_steps_in_one_dispatch(arrays):
  loader = make(Deep(arrays(20)), "resident")

  @jax.jit
  def run(data, block):
    return jax.lax.scan(lambda c, b: (c, loader.fetch(data, b)["image"].mean()), 0, block)[1]

  means = run(loader.data, loader.block(0, 3))
  expected = [fetched(loader, step)["image"].mean() for step in range(3)]
  np.testing.assert_allclose(means, expected, rtol=1e-5)  # sums in another order


class Many(data_base.Source):
  """As many images as one likes, of nothing but a name."""

  def __init__(self, n):
    names = ("",) * n
    self.table = Table(names, names, names, np.zeros((n, 0), np.float32))
    self.info = SourceInfo("many", "train", (), False, {"train": n}, f"many {n}")
    self.image = np.random.default_rng(0).integers(0, 65536, (64, 64, 1)).astype(np.uint16)

  def __len__(self):
    return len(self.table)

  def __getitem__(self, i):
    return Record(self.image, self.table.labels[i], None, "", "")


def test_streaming_needs_no_memory_that_grows_with_the_images():
  def peak(n):
    loader = make(Many(n), "streamed", size=64, window="full")
    tracemalloc.start()
    try:
      for _ in loader.iterate(0, 4):
        pass
      return tracemalloc.get_traced_memory()[1]
    finally:
      tracemalloc.stop()

  peak(64)
  small, large = peak(1000), peak(100_000)
  # An epoch's order: 4 bytes an image, and for a moment 32 while it is made, of the next epoch's
  # too. An image has 8192.
  assert large - small < 99_000 * 80


def test_cached_sets_stay_in_their_file(arrays):
  images = load_images(Deep(arrays(40)), 16, progress=False)
  span = streaming.StepRange(
    images, lambda step: np.arange(8, dtype=np.int32) + step, np.arange(8), 0, 6
  )
  block = span.block()
  np.testing.assert_array_equal(block.rows, np.arange(8) + np.arange(6)[:, None])
  np.testing.assert_array_equal(block.pixels, np.asarray(images.pixels)[block.rows])
  np.testing.assert_array_equal(block.windows, images.windows[block.rows])
  sizes = [len(b.rows) for b in span.blocks(4)]
  assert sizes == [4, 2]

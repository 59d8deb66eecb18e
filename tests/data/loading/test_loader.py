import json
import os
import pathlib
import socket
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from small import HANGS, xla_flags

from cxrjax.core.errors import UserError
from cxrjax.data import Loader, load_images, open_source
from cxrjax.data.decoding import decode
from cxrjax.data.loading import loader as loaders
from cxrjax.data.loading import sampling

HERE = pathlib.Path(__file__).parent
N, BATCH, SIZE = 45, 16, 24


@pytest.fixture
def source():
  return open_source("phantom", n=N, size=40)


def make(source, storage="resident", **options):
  options = {"batch_size": BATCH, "seed": 7, "size": SIZE, "progress": False} | options
  return Loader(source, storage=storage, **options)


def fetched(loader, step):
  return jax.tree.map(np.asarray, jax.jit(loader.fetch)(loader.data, loader[step]))


def test_batches_are_the_images_of_the_order(source):
  loader = make(source)
  images = load_images(source, SIZE, progress=False)
  assert (loader.storage, loader.num_examples, loader.steps_per_epoch) == ("resident", N, N / BATCH)
  for step in (0, 2, 11):  # step 2 runs over the end of the first epoch
    rows = sampling.elements(7, step * BATCH, (step + 1) * BATCH, N)
    batch = fetched(loader, step)
    np.testing.assert_array_equal(batch["index"], rows)
    np.testing.assert_array_equal(batch["image"], images.pixels[rows])
    np.testing.assert_array_equal(batch["labels"], images.labels[rows])


def test_an_epoch_sees_every_image_once(source):
  rows = make(source).indices(0, 3 * N).ravel()
  for epoch in range(16):
    assert sorted(rows[epoch * N : (epoch + 1) * N].tolist()) == list(range(N))


def test_a_batch_does_not_depend_on_what_was_asked_before(source):
  a, b = make(source), make(source)
  for step in range(6):
    fetched(a, step)
  for name, leaf in fetched(b, 5).items():
    np.testing.assert_array_equal(fetched(a, 5)[name], leaf)
  assert not np.array_equal(make(source, seed=8).indices(0, 1), a.indices(0, 1))


def test_streamed_and_cached_equal_resident(source):
  resident, streamed, cached = make(source), make(source, "streamed"), make(source, "cached")
  assert streamed.data == cached.data == {} and streamed.images is None
  for step in (0, 2, 8):
    a = fetched(resident, step)
    for other in (streamed, cached):
      b = fetched(other, step)
      for name in ("index", "image", "labels"):
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("storage", ["resident", "cached", "streamed"])
def test_iterate_gives_blocks_of_the_same_batches(source, storage):
  loader = make(source, storage)
  steps = []
  for step, k, block in loader.iterate(3, 12, 4):
    steps.append((step, k))
    again = loader.block(step, k)
    assert set(block) == set(again)
    for i in range(k):
      single = loader[step + i]
      for name in block:
        np.testing.assert_array_equal(block[name][i], single[name])
        np.testing.assert_array_equal(again[name][i], single[name])
  assert steps == [(3, 4), (7, 4), (11, 1)]
  assert list(loader.iterate(5, 5)) == []


@pytest.mark.parametrize("storage", ["resident", "cached", "streamed"])
def test_masks_come_with_their_images(source, storage):
  loader = make(source, storage, masks=True)
  images = load_images(source, SIZE, progress=False)
  rows = loader.indices(4, 5)[0]
  batch = fetched(loader, 4)
  assert batch["mask"].dtype == np.uint8 and 0.1 < batch["mask"].mean() < 0.5
  np.testing.assert_array_equal(batch["mask"], images.masks[rows])
  np.testing.assert_array_equal(batch["image"], images.pixels[rows])
  block = loader.block(4, 2)
  again = jax.jit(loader.fetch)(loader.data, {name: leaf[0] for name, leaf in block.items()})
  np.testing.assert_array_equal(again["mask"], batch["mask"])
  assert "mask" not in fetched(make(source, storage), 4)


@pytest.mark.parametrize("storage", ["resident", "cached", "streamed"])
def test_images_without_a_mask_have_an_empty_one(arrays, storage):
  source = arrays(20)
  source.masks = [np.ones((24, 24), np.uint8) if i % 2 else None for i in range(20)]
  loader = make(source, storage, masks=True)
  batch = fetched(loader, 0)
  np.testing.assert_array_equal(batch["mask"].max((1, 2, 3)), batch["index"] % 2)
  np.testing.assert_array_equal(batch["mask"].min((1, 2, 3)), batch["index"] % 2)


@pytest.mark.parametrize("storage", ["resident", "streamed"])
def test_sources_without_masks_are_refused(arrays, storage):
  with pytest.raises(UserError, match=r"config\.data\.masks='own', but arrays .* phantom, tfds:"):
    make(arrays(40), storage, masks=True)
  with pytest.raises(UserError, match=r"config\.data\.masks='own'"):
    Loader(load_images(arrays(40), SIZE, progress=False), 8, 1, masks=True)


def test_leaving_early_ends_the_thread(source):
  running = lambda: [t for t in threading.enumerate() if t.name == "cxrjax-loader"]  # noqa: E731
  batches = make(source).iterate(0, 1000)
  next(batches)
  assert len(running()) == 1
  batches.close()
  assert not running()


def test_errors_of_the_background_arrive(arrays):
  source = arrays(40)
  source.images[11] = np.zeros((24, 24), np.uint8)
  loader = make(source, "streamed")
  with pytest.raises(UserError, match="im11: it is blank"):
    for _ in loader.iterate(0, 3):
      pass


def test_streamed_skips_to_the_next_good_image(arrays):
  source = arrays(40)
  good = load_images(source, SIZE, progress=False)
  source.images[11] = np.zeros((24, 24), np.uint8)
  loader = make(source, "streamed", on_bad_image="skip")
  for step in range(3):
    batch = fetched(loader, step)
    asked = loader.indices(step, step + 1)[0]
    rows = np.where(asked == 11, 12, asked)
    np.testing.assert_array_equal(batch["image"], good.pixels[rows])
    np.testing.assert_array_equal(batch["index"], rows)  # and so are its labels
    np.testing.assert_array_equal(batch["labels"], source.table.labels[rows])
  assert loader.skipped == (("im11", "it is blank: every pixel is 0"),)


@pytest.mark.parametrize("storage", ["resident", "cached"])
def test_decoded_sets_leave_bad_images_out(arrays, storage):
  source = arrays(40)
  source.images[11] = np.zeros((24, 24), np.uint8)
  loader = make(source, storage, on_bad_image="skip")
  assert loader.num_examples == 39 and loader.skipped[0][0] == "im11"
  np.testing.assert_array_equal(
    fetched(loader, 0)["image"], loader.images.pixels[loader.indices(0, 1)[0]]
  )
  with pytest.raises(UserError, match="im11"):
    make(source, storage)


def test_decoded_images_can_be_given(source):
  images = load_images(source, SIZE, progress=False)
  for storage in ("resident", "cached", "streamed"):
    loader = Loader(images.take(range(20)), 8, 1, storage=storage)
    rows = loader.indices(4, 5)[0]
    assert loader.size == SIZE and rows.max() < 20
    np.testing.assert_array_equal(fetched(loader, 4)["image"], images.pixels[rows])


def test_auto_decides_by_size(source, monkeypatch):
  bytes_needed = N * SIZE * SIZE
  assert make(source, "auto", resident_limit_bytes=bytes_needed).storage == "resident"
  assert make(source, "auto", resident_limit_bytes=bytes_needed - 1).storage == "cached"
  assert make(source, "auto").storage == "resident"
  assert make(source, "auto", bits=16, resident_limit_bytes=bytes_needed).storage == "cached"
  monkeypatch.setattr("cxrjax.core.cache_folder.free_bytes", lambda cache_dir: 2 * bytes_needed - 1)
  assert make(source, "auto", resident_limit_bytes=bytes_needed - 1).storage == "streamed"


def test_unknown_labels_stay_unknown(arrays):
  labels = np.full((20, 2), np.nan, np.float32)
  batch = fetched(make(arrays(20, labels=labels)), 0)
  assert np.isnan(batch["labels"]).all()


@pytest.mark.parametrize(
  "options, word",
  [
    ({"batch_size": 46}, r"batch_size=46 is larger than the data \(45 images\); give at most 45"),
    ({"batch_size": 0}, "config.batch_size=0"),
    ({"storage": "disk"}, "auto, resident, cached"),
    ({"fit": "stretch"}, "config.data.fit"),
  ],
)
def test_mistakes(source, options, word):
  with pytest.raises(UserError, match=word):
    make(source, **options)


def test_batch_that_does_not_divide():
  with pytest.raises(
    UserError,
    match=r"config.batch_size=100 does not divide over 8 devices; "
    r"try 96 or 104$",
  ):
    loaders._check_batch(100, 1000, 8)
  with pytest.raises(UserError, match=r"try 8$"):
    loaders._check_batch(3, 1000, 8)
  with pytest.raises(UserError, match="give at most 40"):
    loaders._check_batch(48, 45, 8)


def test_the_step_may_scan_over_a_block(source):
  loader = make(source)

  @jax.jit
  def run(data, block):
    def one(total, batch):
      image = loader.fetch(data, batch)["image"]
      return total + image.astype(np.int32).sum(), image[0, 0, 0, 0]

    return jax.lax.scan(one, 0, block)

  total, first = run(loader.data, loader.block(1, 3))
  expected = [fetched(loader, step)["image"] for step in (1, 2, 3)]
  assert int(total) == sum(int(im.astype(np.int64).sum()) for im in expected)
  assert first.tolist() == [im[0, 0, 0, 0] for im in expected]


# Several devices, several processes.


def start(arguments, devices=1):
  env = os.environ | {"XLA_FLAGS": xla_flags(devices), "JAX_PLATFORMS": "cpu"}
  env["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), env.get("PYTHONPATH", "")])
  return subprocess.Popen(
    [sys.executable, str(HERE / "worker.py"), *map(str, arguments)],
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def result(process):
  out, err = process.communicate(timeout=HANGS)
  assert process.returncode == 0, err[-3000:]
  return json.loads(next(line for line in out.splitlines() if line.startswith("RESULT "))[7:])


@pytest.fixture(scope="module")
def worker():
  """The worker's module in this process, on one device: what the others must reproduce."""
  import importlib.util

  spec = importlib.util.spec_from_file_location("loader_worker", HERE / "worker.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture
def expected(worker, tmp_path):
  mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
  return {
    "batches": worker.report(mesh, "resident", tmp_path / "one")["batches"],
    "spoilt": worker.spoilt(mesh, tmp_path / "one"),
    "mixed": worker.mixed(mesh, "resident", tmp_path / "one"),
  }


def check(found, expected, devices, processes=1):
  for storage in ("resident", "streamed"):
    assert found[storage]["batches"] == expected["batches"], storage
    assert found[storage]["images on a device"] == [BATCH // devices]
    assert found["mixed"][storage] == expected["mixed"]
  assert found["resident"]["padded"] == 48
  assert found["resident"]["rows on a device"] == [48 // devices]
  spoilt = found["spoilt"]
  assert spoilt["n"] == 43 and spoilt["skipped"] == ["train-000003", "train-000017"]
  assert "spoilt" in spoilt["error"] or "found bad by another process" in spoilt["error"]


def test_eight_devices_give_the_batches_of_one(expected, tmp_path):
  found = result(start(["devices", tmp_path], devices=8))
  check(found, expected, 8)
  assert found["spoilt"]["batches"] == expected["spoilt"]["batches"]
  assert found["turned"]["batches"] == expected["batches"]
  assert found["one axis"]["batches"] == expected["batches"]


@pytest.mark.full
def test_two_processes_give_the_batches_of_one_and_share_the_work(expected, tmp_path):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  found = [start(["process", tmp_path / str(i), address, 2, i], devices=2) for i in range(2)]
  try:
    found = [result(process) for process in found]
  finally:
    for process in found:
      if isinstance(process, subprocess.Popen):
        process.kill()
        process.communicate()
  for one in found:
    check(one, expected, 4)
    # Bad images keep their rows, which nothing asks for; `index` counts the others alone.
    assert one["spoilt"]["batches"] == expected["spoilt"]["batches"]
    assert not {3, 17} & set(one["spoilt"]["seen"]) and len(one["spoilt"]["seen"]) == 43
  assert sorted(one["spoilt"]["reads"] for one in found) == [21, 24]
  assert found[0]["spoilt"]["batches"] == found[1]["spoilt"]["batches"]


def test_bad_image_is_its_own_error():
  assert not issubclass(decode.BadImage, UserError)  # whoever has the name makes it one

import concurrent.futures
import dataclasses
import errno
import hashlib
import json
import os
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from cxrjax.core.errors import UserError
from cxrjax.data import base as data_base
from cxrjax.data import inspection, open_source
from cxrjax.data.base import Record, SourceInfo, Table
from cxrjax.data.images import LazyRows
from cxrjax.data.loading import cache_file, decoded_cache
from cxrjax.data.splits.subset import Subset


def load(source, size=16, **options):
  return decoded_cache.load_images(source, size, progress=False, **options)


def test_pixels_are_what_pil_makes_of_the_images(arrays):
  source = arrays(5, 40)
  images = load(source, 24)
  for i in range(5):
    expected = Image.fromarray(source.images[i]).resize((24, 24), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(images.pixels[i, ..., 0], np.asarray(expected))
  assert images.ids == source.table.ids and images.patients == source.table.patients
  np.testing.assert_array_equal(images.labels, source.table.labels)


def test_decoded_once_then_mapped_from_disk(arrays, cache):
  source = arrays()
  first = load(source)
  assert source.reads == 12
  again = load(source)
  assert source.reads == 12 and isinstance(again.pixels, np.memmap)
  np.testing.assert_array_equal(first.pixels, again.pixels)
  assert [p.name.startswith("images-16-") for p in cache.iterdir()] == [True]


def test_whatever_decides_the_pixels_is_in_the_key(arrays, cache, monkeypatch):
  source = arrays()
  load(source)
  load(source, fit="pad")
  load(source, 20)
  load(arrays(6))
  load(source, cache_dir=cache / "elsewhere")
  monkeypatch.setattr("cxrjax.data.decoding.decode.VERSION", -1)
  load(source)
  assert source.reads == 5 * 12


def test_cache_folder_from_the_argument(arrays, tmp_path, cache):
  load(arrays(), cache_dir=tmp_path / "mine")
  assert list((tmp_path / "mine").iterdir()) and not cache.exists()


def test_some_rows_come_from_the_whole_cache_or_get_their_own(arrays, cache):
  source = arrays()
  rows = [7, 2, 3]
  own = load(source, indices=rows)
  assert source.reads == 3 and own.ids == ("im7", "im2", "im3")
  whole = load(source)
  assert source.reads == 15
  np.testing.assert_array_equal(own.pixels, whole.pixels[rows])
  load(source, indices=[1, 0])
  load(source, indices=rows)
  assert source.reads == 15


def test_a_damaged_cache_is_made_again(arrays, cache):
  source = arrays()
  good = np.array(load(source).pixels)
  (folder,) = cache.iterdir()
  data = (folder / "pixels.npy").read_bytes()
  (folder / "pixels.npy").write_bytes(data[: len(data) // 2])
  np.testing.assert_array_equal(load(source).pixels, good)
  assert source.reads == 24
  (folder / "meta.json").unlink()
  np.testing.assert_array_equal(load(source).pixels, good)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("small", [True, False])
def test_a_flipped_bit_never_becomes_a_pixel(arrays, cache, monkeypatch, bits, small):
  """What is small is made again at once; what is large when it is read, by the next start."""
  masks = [np.eye(24, dtype=np.uint8)] * 6
  source = arrays(6, masks=masks) if bits == 8 else Deep(arrays(6, masks=masks))
  good = load(source, bits=bits)
  good = [np.array(a) for a in (good.pixels, good.windows, good.masks)]
  (folder,) = cache.iterdir()
  files = sorted(folder.iterdir())
  assert len(files) == 3 + (bits == 16)
  monkeypatch.setattr(cache_file, "SMALL", 1 << 30 if small else 0)
  rng, late = np.random.default_rng(0), 0
  read = (lambda: source.reads) if bits == 8 else (lambda: len(source.reads))
  before = read()
  for file in np.repeat(files, 12):
    data = bytearray(file.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    file.write_bytes(data)
    for again in (True, False):
      try:
        found = load(source, bits=bits)
        arrays_ = found.pixels, found.windows, found.masks
        for x, y in zip(arrays_, good, strict=True):
          np.testing.assert_array_equal(np.asarray(x), y)
        break
      except UserError as error:  # damage in a large array
        assert again and not small and "is damaged and was removed; the same command" in str(error)
        late += 1
  assert read() - before == 6 * len(files) * 12
  assert (late > 12) == (not small)


def test_what_is_large_is_looked_at_when_it_is_read(arrays, cache, monkeypatch):
  source = arrays(6)
  good = np.array(load(source).pixels)
  monkeypatch.setattr(cache_file, "SMALL", 0)
  (folder,) = cache.iterdir()
  data = bytearray((folder / "pixels.npy").read_bytes())
  data[128 + 4 * 256 + 3] ^= 1  # of image 4
  (folder / "pixels.npy").write_bytes(data)
  images = load(source)
  assert source.reads == 6 and isinstance(images.pixels, LazyRows)
  np.testing.assert_array_equal(images.pixels[:4], good[:4])
  np.testing.assert_array_equal(images.take([5, 0]).pixels[0], good[5])
  with pytest.raises(UserError, match=r"pixels.npy is damaged and was removed; the same command"):
    images.pixels[[1, 4]]
  np.testing.assert_array_equal(load(source).pixels[4], good[4])
  assert source.reads == 12


def test_nothing_half_made_stays_behind(arrays, cache):
  source = arrays()
  source.images[5] = np.zeros((24, 24), np.uint8)
  with pytest.raises(UserError):
    load(source)
  assert list(cache.iterdir()) == []
  killed = cache / "images-16-abc.tmp-killed"  # what a killed process leaves does no harm
  killed.mkdir()
  source.images[5] = source.images[4]
  assert len(load(source)) == 12
  (killed / "pixels.npy").write_bytes(b"")
  os.utime(killed, (0, 0))
  load(source, 24)
  assert killed.exists()  # another process may be at work on it
  os.utime(killed / "pixels.npy", (0, 0))
  load(source, 32)
  assert not killed.exists()


def test_two_at_once(arrays, cache):
  sources = [arrays(40) for _ in range(4)]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    found = list(pool.map(load, sources))
  for images in found[1:]:
    np.testing.assert_array_equal(images.pixels, found[0].pixels)
  assert len(list(cache.iterdir())) == 1


def test_bad_images_are_errors_by_default(arrays):
  source = arrays()
  source.images[3] = np.full((24, 24), 9, np.uint8)
  with pytest.raises(UserError, match=r"im3: it is blank.*on_bad_image='skip'"):
    load(source)


def test_bad_images_are_skipped_and_listed_on_demand(arrays):
  source = arrays()
  source.images[3] = np.full((24, 24), 9, np.uint8)
  source.images[8] = np.zeros((1, 1), np.uint8)
  for _ in range(2):  # decoded, and from the cache
    images = load(source, on_bad_image="skip")
    assert len(images) == 10 and "im3" not in images.ids
    assert [name for name, _ in images.skipped] == ["im3", "im8"]
    assert "1 x 1 pixels" in images.skipped[1][1]
    np.testing.assert_array_equal(images.labels, np.delete(source.table.labels, [3, 8], 0))
    expected = Image.fromarray(source.images[4]).resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(images.pixels[3, ..., 0], np.asarray(expected))
  with pytest.raises(UserError, match="im3"):
    load(source)  # the cache does not hide them


def test_nothing_left(arrays):
  source = arrays(3)
  source.images[:] = [np.zeros((20, 20), np.uint8)] * 3
  with pytest.raises(UserError, match="all 3 images are bad"):
    load(source, on_bad_image="skip")


def test_masks(arrays):
  mask = np.zeros((24, 24), np.uint8)
  mask[:, :12] = 1
  images = load(arrays(4, masks=[mask] * 4))
  assert images.masks.shape == (4, 16, 16, 1)
  assert (images.masks[:, :, :8] == 1).all() and (images.masks[:, :, 8:] == 0).all()
  assert load(arrays(5)).masks is None


def test_a_mask_may_be_smaller_than_its_image_but_not_of_another_shape(arrays):
  small = np.zeros((12, 12), np.uint8)
  small[:, :6] = 1
  images = load(arrays(2, masks=[small] * 2))
  assert (images.masks[:, :, :8] == 1).all() and (images.masks[:, :, 8:] == 0).all()
  masks = [small, np.ones((24, 18), np.uint8), small]
  with pytest.raises(UserError, match=r"im1.*mask of 18x24 pixels does not match its 24x24"):
    load(arrays(3, masks=masks))
  left = load(arrays(3, masks=masks), on_bad_image="skip")
  assert left.ids == ("im0", "im2") and "im1" in dict(left.skipped)


def test_sixteen_bit_images(arrays):
  source = arrays(3)
  source.images[1] = source.images[1].astype(np.uint16) * 100 + 900
  images = load(source, bits=8)
  assert images.pixels[1].min() < 15 and images.pixels[1].max() > 240


def test_full_disk(arrays, cache, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, "posix_fallocate", full)
  with pytest.raises(UserError, match=r"no space.*MB needed.*config.data.cache_dir") as error:
    load(arrays())
  assert str(cache) in str(error.value)
  assert list(cache.iterdir()) == []


def test_cache_that_cannot_be_written(arrays, tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(UserError, match=r"config\.data\.cache_dir"):
    load(arrays(), cache_dir=tmp_path / "file" / "cache")


@pytest.mark.parametrize(
  "options, word",
  [
    ({"size": 4}, "size=4"),
    ({"fit": "stretch"}, "squash, pad, crop"),
    ({"on_bad_image": "ignore"}, "error, skip"),
  ],
)
def test_bad_options(options, word):
  options = {"size": 16, "fit": "squash", "on_bad_image": "error"} | options
  with pytest.raises(UserError, match=word):
    decoded_cache.check_options(**options)


def test_empty_source(arrays):
  with pytest.raises(UserError, match="no images"):
    load(arrays(0))


def test_take(arrays):
  images = load(open_source("phantom", n=6, size=32))
  part = images.take([4, 1])
  assert part.ids == (images.ids[4], images.ids[1]) and len(part) == 2
  np.testing.assert_array_equal(part.pixels, images.pixels[[4, 1]])
  np.testing.assert_array_equal(part.masks, images.masks[[4, 1]])


# 16 bits.


class Deep(data_base.Source):
  """12-bit images in 16, but for some; what a source may be that does not say its bits."""

  def __init__(self, source, eight=(), windows=None, content="deep"):
    self._source, self._eight, self._windows = source, eight, windows or {}
    self.table = source.table
    self.info = dataclasses.replace(source.info, fingerprint=content)
    self.reads = []

  def __len__(self):
    return len(self._source)

  def wide(self, i):
    return self._source.images[i].astype(np.uint16) * 14 + np.uint16(300 + 5 * i)

  def __getitem__(self, i):
    self.reads.append(i)
    record = dataclasses.replace(self._source[i], window=self._windows.get(i))
    return (
      record if i in self._eight else dataclasses.replace(record, image=self.wide(i)[..., None])
    )


def test_sixteen_bits_are_kept_with_their_windows(arrays):
  source = Deep(arrays(5, 40), windows={1: (500.0, 2500.0), 2: (0.0, 10.0)})
  images = load(source, 24)
  assert images.bits == 16 and isinstance(images.pixels, np.memmap)
  for i in range(5):
    plane = Image.fromarray(source.wide(i).astype(np.float32))
    exact = np.asarray(plane.resize((24, 24), Image.Resampling.BICUBIC))
    assert np.abs(images.pixels[i, ..., 0] - exact).max() <= 0.5
    tails = np.percentile(source.wide(i), (0.5, 99.5))  # also for 2, whose window leaves nothing
    np.testing.assert_allclose(images.windows[i], (500, 2500) if i == 1 else tails)
  again = load(source, 24)
  np.testing.assert_array_equal(again.windows, images.windows)
  np.testing.assert_array_equal(again.pixels, images.pixels)


def test_eight_bits_among_sixteen_look_as_they_do_alone(arrays):
  plain = arrays(4, 40)
  mixed = load(Deep(plain, eight=(0, 2), windows={2: (20.0, 180.0)}), 24)
  alone = load(plain, 24, bits=8)
  np.testing.assert_array_equal(mixed.pixels[0], alone.pixels[0].astype(np.uint16) * 257)
  np.testing.assert_array_equal(mixed.gray([0]), alone.gray([0]))
  assert mixed.windows[0].tolist() == [0, 65535]
  assert mixed.windows[2].tolist() == [20 * 257, 180 * 257]


def test_sixteen_bits_among_eight_are_windowed_on_the_host(arrays):
  source = Deep(arrays(4, 40), eight=(0, 2))
  eight, sixteen = load(source, 40, bits=8), load(source, 40)
  assert (eight.bits, sixteen.bits) == (8, 16)
  assert (eight.windows == [0, 255]).all()
  assert np.abs(eight.gray(slice(None)).astype(int) - sixteen.gray(slice(None))).max() <= 1


def test_the_users_window(arrays):
  source = Deep(arrays(3, 40), eight=(2,), windows={1: (500.0, 2500.0)})
  assert load(source, window="full").windows.tolist() == [[0, 65535]] * 3
  assert load(source, window=(600, 900)).windows.tolist() == [[600, 900]] * 2 + [[0, 65535]]
  dark, light = (load(source, bits=8, window=w).pixels[0].mean() for w in ((600, 9000), (300, 900)))
  assert dark < light
  with pytest.raises(UserError, match=r"im0: config\.data\.window=.* leaves nothing of it"):
    load(source, window=(60000.0, 65000.0))
  assert len(load(source, window=(60000.0, 65000.0), on_bad_image="skip")) == 1


@pytest.mark.parametrize(
  "options, word",
  [
    ({"bits": 12}, r"config.data.bits=12 .*'auto', 8, 16"),
    ({"bits": True}, "bits=True"),
    ({"bits": "eight"}, "bits='eight'"),
    ({"window": (5, 1)}, "config.data.window"),
  ],
)
def test_mistakes_of_bits_and_windows(arrays, options, word):
  with pytest.raises(UserError, match=word):
    load(arrays(2), **options)


def test_a_sample_decides_the_bits_whatever_rows_are_loaded(arrays):
  source = Deep(arrays(100, 20), eight=range(1, 100))
  assert inspection.bits_of(source) == 16 and source.reads == [0]
  assert load(source, indices=[5, 6]).bits == 16
  assert load(Subset(source, np.array([7, 8]), "some")).bits == 16
  source = Deep(arrays(100, 20), eight=range(99))
  assert inspection.bits_of(source) == 16 and len(source.reads) == inspection.SAMPLE
  source = Deep(arrays(100, 20), eight=[i for i in range(100) if i != 50])
  assert inspection.bits_of(source) == 8  # it is not among the sample
  assert [inspection.bits_of(source, b) for b in (8, 16, "8", "16")] == [8, 16, 8, 16]
  source.bits = 16
  assert inspection.bits_of(source) == 16


def test_the_sample_may_be_bad(arrays):
  plain = arrays(4, 20)
  source = Deep(plain, eight=(0, 2, 3))
  get = Deep.__getitem__

  class Spoilt(Deep):
    def __getitem__(self, i):
      if i == 0:
        raise decoded_cache.decode.BadImage("spoilt")
      return get(self, i)

  assert inspection.bits_of(Spoilt(plain, eight=(0, 2, 3))) == inspection.bits_of(source) == 16


def test_bits_and_window_are_in_the_key(arrays, cache):
  source = Deep(arrays(3))
  for options in ({}, {"bits": 8}, {"window": "full"}, {"window": (400, 2900)}):
    load(source, **options)
  assert len(list(cache.iterdir())) == 4
  load(source, bits=16)
  load(source, window=(400.0, 2900.0))
  assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("spoil", ["truncate", "remove"])
def test_damaged_windows_are_made_again(arrays, cache, spoil):
  source = Deep(arrays(3))
  good = load(source).windows.copy()
  (folder,) = cache.iterdir()
  file = folder / "windows.npy"
  if spoil == "remove":
    file.unlink()
  else:
    file.write_bytes(file.read_bytes()[:-5])
  np.testing.assert_array_equal(load(source).windows, good)


def test_the_cache_of_an_earlier_build_is_not_read(arrays, cache):
  """Its key had neither bits nor window, its pixels of bad images lay between the good ones."""
  source = arrays(3)
  content = [source.info.fingerprint, "train", 3, 16, "squash", 1, None]
  old = cache / f"images-16-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]}"
  old.mkdir(parents=True)
  np.save(old / "pixels.npy", np.full((3, 16, 16, 1), 99, np.uint8))
  meta = {"source": "arrays", "split": "train", "masks": False, "bad": {}}
  (old / "meta.json").write_text(json.dumps(meta))
  assert (load(source).pixels != 99).any() and source.reads == 3
  # Nor would it pass for one of this build's under a key of this build's.
  (new,) = (f for f in cache.iterdir() if f != old)
  (new / "meta.json").write_text(json.dumps(meta))
  assert (load(source).pixels != 99).any() and source.reads == 6


@pytest.mark.parametrize("bits", [8, 16])
def test_bad_images_leave_no_gap(arrays, monkeypatch, bits):
  """Good images lie one after the other in the file, whole chunks bad or none."""
  monkeypatch.setattr(decoded_cache, "_CHUNK", 4)
  mask = np.zeros((24, 24), np.uint8)
  masks = [np.roll(mask, i) + (np.arange(24) < i).astype(np.uint8) for i in range(14)]
  source = arrays(14, masks=masks)
  good = load(source, bits=bits)
  bad = [1, 2, 4, 5, 6, 7, 9, 13]
  for i in bad:
    source.images[i] = np.zeros((24, 24), np.uint8)
  source.info = dataclasses.replace(source.info, fingerprint="spoilt")
  keep = [i for i in range(14) if i not in bad]
  for _ in range(2):
    images = load(source, bits=bits, on_bad_image="skip")
    assert images.ids == tuple(f"im{i}" for i in keep) and isinstance(images.pixels, np.memmap)
    np.testing.assert_array_equal(images.pixels, good.pixels[keep])
    np.testing.assert_array_equal(images.masks, good.masks[keep])
    np.testing.assert_array_equal(images.windows, good.windows[keep])
  rows = [12, 1, 0, 9, 10]
  some = load(source, bits=bits, on_bad_image="skip", indices=rows)
  assert some.ids == ("im12", "im0", "im10") and [n for n, _ in some.skipped] == ["im1", "im9"]
  np.testing.assert_array_equal(some.pixels, good.pixels[[12, 0, 10]])
  np.testing.assert_array_equal(some.masks, good.masks[[12, 0, 10]])


def test_rows_of_a_whole_cache_are_not_copied(arrays):
  source = arrays(9)
  whole = load(source)
  some = load(source, indices=[2, 3, 4])
  assert isinstance(some.pixels, np.memmap)
  assert isinstance(load(source, indices=[8, 0]).pixels, LazyRows)
  np.testing.assert_array_equal(some.pixels, whole.pixels[2:5])


@pytest.mark.parametrize("bits", [8, 16])
def test_decoding_holds_no_images_in_memory(bits, monkeypatch):
  """Ten times the images, no more memory but a few bytes for each."""

  class Endless(data_base.Source):
    def __init__(self, n):
      names = ("",) * n
      self.table = Table(names, names, names, np.zeros((n, 0), np.float32))
      self.info = SourceInfo("endless", "train", (), False, {"train": n}, f"endless {n}")
      rng = np.random.default_rng(0)
      self.image = rng.integers(0, 256 ** (bits // 8), (64, 64, 1)).astype(f"u{bits // 8}")
      self.bits = bits

    def __len__(self):
      return len(self.table)

    def __getitem__(self, i):
      if i % 7 == 3:
        raise decoded_cache.decode.BadImage("spoilt")
      return Record(self.image, self.table.labels[i], None, "", "")

  def peak(n):
    source = Endless(n)
    tracemalloc.start()
    try:
      images = load(source, 64, window="full", on_bad_image="skip")
      assert len(images) == n - len(range(3, n, 7))
      return tracemalloc.get_traced_memory()[1]
    finally:
      tracemalloc.stop()

  monkeypatch.setattr(decoded_cache, "_CHUNK", 16)
  peak(10)
  # 120 images already fill all chunks that are in work at a time, however fast threads are.
  assert peak(1200) - peak(120) < 1080 * 64 * 64 / 8

import concurrent.futures
import errno
import os

import numpy as np
import pytest
from PIL import Image

from cxrjax.core.errors import UserError
from cxrjax.data import open_source, store


def load(source, size=16, **options):
  return store.load_images(source, size, progress=False, **options)


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
  monkeypatch.setattr("cxrjax.data.decode.VERSION", -1)
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
  (folder / "pixels.npy").write_bytes(data[:len(data) // 2])
  np.testing.assert_array_equal(load(source).pixels, good)
  assert source.reads == 24
  (folder / "meta.json").unlink()
  np.testing.assert_array_equal(load(source).pixels, good)


def test_nothing_half_made_stays_behind(arrays, cache):
  source = arrays()
  source.images[5] = np.zeros((24, 24), np.uint8)
  with pytest.raises(UserError):
    load(source)
  assert list(cache.iterdir()) == []
  (cache / "images-16-abc.tmp-killed").mkdir()  # what a killed process leaves does no harm
  source.images[5] = source.images[4]
  assert len(load(source)) == 12


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


@pytest.mark.parametrize("options, word", [
  ({"size": 4}, "size=4"), ({"fit": "stretch"}, "squash, pad, crop"),
  ({"on_bad_image": "ignore"}, "error, skip")])
def test_bad_options(options, word):
  options = {"size": 16, "fit": "squash", "on_bad_image": "error"} | options
  with pytest.raises(UserError, match=word):
    store.check_options(**options)


def test_empty_source(arrays):
  with pytest.raises(UserError, match="no images"):
    load(arrays(0))


def test_take(arrays):
  images = load(open_source("phantom", n=6, size=32))
  part = images.take([4, 1])
  assert part.ids == (images.ids[4], images.ids[1]) and len(part) == 2
  np.testing.assert_array_equal(part.pixels, images.pixels[[4, 1]])
  np.testing.assert_array_equal(part.masks, images.masks[[4, 1]])

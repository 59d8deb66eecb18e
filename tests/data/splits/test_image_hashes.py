import numpy as np

from cxrjax.data import load_images, open_source
from cxrjax.data.splits import image_hashes


def phantoms(size, split="train", side=80, n=48):
  return load_images(open_source("phantom", split=split, n=n, size=side), size, progress=False)


def test_a_radiograph_is_recognised_at_another_size_and_exposure_and_no_other_is():
  learnt = image_hashes.of_images(phantoms(72))
  assert learnt.shape == (48, image_hashes.BYTES) and learnt.dtype == np.uint8
  smaller = phantoms(64)
  brighter = 255 * (np.asarray(smaller.pixels, np.float32) / 255) ** 0.85
  wide = np.asarray(smaller.pixels).astype(np.uint16) * 257
  for other in (smaller, brighter, wide.astype(np.float32)):
    assert (
      image_hashes.nearest_distances(learnt, image_hashes.of_images(other))
      <= image_hashes.MAX_DISTANCE
    ).all()
  test = image_hashes.nearest_distances(learnt, image_hashes.of_images(phantoms(64, "test")))
  assert (test > image_hashes.MAX_DISTANCE).all()


def test_some_rows_and_none(monkeypatch):
  images = phantoms(40, side=40)
  whole = image_hashes.of_images(images)
  monkeypatch.setattr(image_hashes, "_BLOCK", 7)
  np.testing.assert_array_equal(image_hashes.of_images(images, np.arange(3, 20)), whole[3:20])
  nothing = image_hashes.nearest_distances(whole[:0], whole)
  assert (nothing == 8 * image_hashes.BYTES).all()
  assert image_hashes.nearest_distances(whole[:5], whole)[:5].tolist() == [0] * 5

"""Images that somebody names, decoded ahead of whoever wants them."""

import threading

import numpy as np
import pytest
from PIL import Image

from cxrjax.core.errors import UserError
from cxrjax.data import open_source
from cxrjax.data.decoding import windowing
from cxrjax.data.decoding.decode import BadImage, DecodedImage
from cxrjax.data.loading import decoded_cache
from cxrjax.data.loading.decoded_cache import DecodeSpec
from cxrjax.inference import decode_ahead, inputs

LOOK = DecodeSpec(16, "squash", 8, "auto")


class Made:
  """Images of one gray value and a corner, some of which are bad; notes what is asked for."""

  def __init__(self, n, bad=()):
    self.ids = [str(i) for i in range(n)]
    self.bad, self.asked, self.lock = bad, [], threading.Lock()

  def film(self, index):
    with self.lock:
      self.asked.append(index)
    if index in self.bad:
      raise BadImage("it is bad")
    image = np.full((20, 24, 1), index, np.uint8)
    image[0, 0] = 255
    return lambda at_least: DecodedImage(image, None, (20, 24))


@pytest.mark.parametrize("size", [1, 4, 64])
def test_order_and_bad_images(size):
  found = list(decode_ahead.batches(Made(23, bad=(0, 7, 22)), range(23), [LOOK], size))
  assert [row for batch in found for row in batch.rows] == [
    i for i in range(23) if i not in (0, 7, 22)
  ]
  assert [bad for batch in found for bad in batch.bad] == [(i, "it is bad") for i in (0, 7, 22)]
  assert all(len(batch.rows) + len(batch.bad) <= size for batch in found)
  for batch in found:
    assert set(batch.shapes) <= {(20, 24)} and len(batch.squares) == bool(batch.rows)
    for row, square in zip(batch.rows, batch.squares[0].pixels if batch.rows else (), strict=True):
      assert np.median(square) == row and square.shape == (16, 16, 1)


def test_a_bounded_number_is_in_memory_and_a_reader_that_leaves_ends_the_work():
  images = Made(100_000)
  batches = decode_ahead.batches(images, range(100_000), [LOOK], 8, threads=2)
  for _ in range(5):
    next(batches)
  assert len(images.asked) <= 5 * 8 + 16 + 8
  batches.close()
  asked = len(images.asked)
  assert asked < 100 and not any(t.name.startswith("cxrjax-decode") for t in threading.enumerate())


def test_several_looks_of_one_reading():
  images = Made(3)
  looks = [LOOK, DecodeSpec(8, "pad", 16, "full")]
  batch = next(decode_ahead.batches(images, range(3), looks, 3))
  assert sorted(images.asked) == [0, 1, 2]
  eight, wide = batch.squares
  assert eight.pixels.dtype == np.uint8 and eight.windows is None
  assert wide.pixels.dtype == np.uint16 and wide.pixels.shape == (3, 8, 8, 1)
  np.testing.assert_array_equal(wide.windows, np.tile([[0, 257 * 255]], (3, 1)))


def test_squares_are_those_that_training_decodes(tmp_path):
  """Also of a JPEG, which is decoded at an eighth for one look and a half for the other."""
  rng = np.random.default_rng(0)
  smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (9, 9), np.uint8)).resize((300, 260)))
  Image.fromarray(smooth).save(tmp_path / "a.jpg")
  Image.fromarray(smooth.astype(np.uint16) * 100).save(tmp_path / "b.png")
  source = open_source(f"folder:{tmp_path}", split="all", cache_dir=str(tmp_path / "cache"))
  images = inputs.open_given(str(tmp_path))
  assert images.ids == list(source.table.ids) == ["a.jpg", "b.png"]
  sizes = (16, 64)
  batch = next(
    decode_ahead.batches(images, range(2), [DecodeSpec(s, "pad", 8, "auto") for s in sizes], 2)
  )
  for size, squares in zip(sizes, batch.squares, strict=True):
    expected = decoded_cache.load_images(
      source, size, fit="pad", bits=8, cache_dir=tmp_path / "cache", progress=False
    )
    np.testing.assert_array_equal(squares.pixels, expected.pixels)
  assert batch.shapes == ((260, 300), (260, 300))


def test_zips_and_folders_and_files(tmp_path):
  import zipfile

  (tmp_path / "x").mkdir()
  Image.new("L", (20, 20), 9).save(tmp_path / "x" / "1.png")
  with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
    archive.write(tmp_path / "x" / "1.png", "in/2.png")
  one = inputs.Files([tmp_path / "z.zip"], str(tmp_path / "cache"))
  assert one.ids == ["in/2.png"] and one.film(0)(16).pixels.shape == (20, 20, 1)
  both = inputs.Files([f"{tmp_path}/x", f"{tmp_path}/z.zip"], str(tmp_path / "cache"))
  assert both.ids == [f"{tmp_path}/x/1.png", f"{tmp_path}/z.zip/in/2.png"]
  (tmp_path / "x" / "1.png").unlink()
  with pytest.raises(BadImage, match=r"it cannot be read \(No such file"):
    both.film(0)
  with pytest.raises(UserError, match="no images in "):
    inputs.Files([tmp_path / "x"], str(tmp_path / "cache"))


@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
@pytest.mark.parametrize("shape", [(50, 50), (40, 90), (80, 30)])
def test_a_map_goes_back_to_where_its_image_was(fit, shape):
  """A ramp down the image, made square and put back, is the ramp."""
  ramp = np.broadcast_to(np.linspace(40, 215, shape[0])[:, None], shape)
  square = windowing.resize(np.rint(ramp).astype(np.uint8)[..., None], 64, fit)[..., 0]
  back = windowing.resize_back(square.astype(np.float32), shape, fit)
  assert back.shape == shape
  side = min(shape)
  top, left = ((n - side) // 2 if fit == "crop" else 0 for n in shape)
  seen = (
    slice(top + 2, top + side - 2) if fit == "crop" else slice(2, -2),
    slice(left + 2, left + side - 2) if fit == "crop" else slice(2, -2),
  )
  assert np.abs(back[seen] - ramp[seen]).max() < 5
  if fit == "crop" and shape[0] != shape[1]:
    assert (back == 0).mean() == pytest.approx(1 - side * side / (shape[0] * shape[1]), abs=0.03)

import io

import numpy as np
import pytest
from PIL import Image

from cxrjax.builders import tfds_features
from cxrjax.core.errors import UserError
from cxrjax.data import base
from cxrjax.data.decoding import decode


def encoded(pixels, kind="PNG", mode=None, **options):
  buffer = io.BytesIO()
  image = Image.fromarray(np.asarray(pixels, np.uint8))
  (image.convert(mode) if mode else image).save(buffer, kind, **options)
  return buffer.getvalue()


def unpacked(data):
  return np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture
def lungs():
  pixels = np.zeros((24, 32), np.uint8)
  pixels[4:20, 2:12] = 1
  return pixels


@pytest.mark.parametrize(
  "write",
  [
    lambda m: encoded(m),
    lambda m: encoded(m * 255),
    lambda m: encoded(m * 255, "JPEG", quality=70),
    lambda m: encoded(m * 255, mode="RGB"),
    lambda m: encoded(m * 255, mode="P"),
    lambda m: encoded(m * 255, "GIF"),
    lambda m: encoded(m * 255, mode="1"),
    lambda m: encoded(m * 255, mode="RGBA"),
    lambda m: encoded(m * 255, "BMP"),
  ],
)
def test_masks_however_written(lungs, write):
  found = unpacked(tfds_features.mask(write(lungs), like=(24, 32)))
  np.testing.assert_array_equal(found, lungs * 255)


def test_masks_of_two_lungs_and_of_another_size(lungs):
  right = lungs[:, ::-1]
  found = unpacked(tfds_features.mask(encoded(lungs * 255), encoded(right * 9), like=(48, 64)))
  np.testing.assert_array_equal(found, np.kron(lungs | right, np.ones((2, 2), np.uint8)) * 255)
  assert base.is_mask(tfds_features.mask(encoded(lungs), like=(24, 32)))
  assert not base.is_mask(tfds_features.no_mask())


def test_masks_that_are_none(lungs):
  for data, word in (
    (encoded(lungs * 0), "empty"),
    (b"nothing", "damaged"),
    (encoded(lungs)[:50], "damaged"),
    (encoded(np.ones((4, 4))), "4 x 4"),
  ):
    with pytest.raises(decode.BadImage, match=word):
      tfds_features.mask(data, like=(24, 32))


def test_fault(lungs):
  whole = encoded(np.arange(768).reshape(24, 32) % 251, "JPEG")
  assert tfds_features.find_fault(whole) == ""
  assert "empty" in tfds_features.find_fault(b"") and "cut short" in tfds_features.find_fault(
    whole[:-200]
  )


def test_matching_takes_the_copy_nearest_to_the_top():
  names = [
    "x/x/train/A/1.png",
    "x/train/A/1.png",
    "x/TRAIN/B/2.PNG",
    "xtrain/A/3.png",
    "train/A/4.png.txt",
  ]
  assert tfds_features.match_files(names, r"train/([AB])/(\d)\.png") == {
    ("A", "1"): "x/train/A/1.png",
    ("B", "2"): "x/TRAIN/B/2.PNG",
  }


def test_some():
  left_out = tfds_features.LeftOut()
  assert list(tfds_features.at_least_one([("a", {})], "train", left_out)) == [("a", {})]
  left_out.add("b", "it is empty")
  with pytest.raises(UserError, match="no image of train can be used, such as b: it is empty"):
    list(tfds_features.at_least_one([], "train", left_out))


def test_left_out():
  left_out = tfds_features.LeftOut()
  left_out.add("a", "cut\nshort")
  left_out.add_all([("b", "twice")])
  left_out.note("one")
  left_out.note("one")
  assert left_out.metadata == {"left_out": [["a", "cut short"], ["b", "twice"]], "notes": ["one"]}


@pytest.mark.parametrize(
  "encoding, bits", [(None, 8), ("png", 8), ("jpeg", 8), ("png", 16), (None, 16)]
)
def test_example_has_the_columns_of_features(encoding, bits, lungs):
  columns = tfds_features.features(
    label=("a", "b"), labels=("x", "y"), encoding=encoding, bits=bits, mask=True, window=True
  )
  row = tfds_features.example(
    columns,
    image=encoded(lungs),
    id="1",
    patient="p",
    label="a",
    labels={"x": 1.0, "y": float("nan")},
  )
  assert set(row) == set(columns)
  assert np.isnan(row["age"]) and row["sex"] == row["view"] == "unknown" and row["site"] == ""
  assert np.isnan(row["window"]).all() and not base.is_mask(row["mask"])
  columns.encode_example(row)  # TFDS takes it
  row = tfds_features.example(
    columns,
    image=b"",
    id="1",
    patient="p",
    age=3,
    sex="F",
    view="PA",
    site="here",
    mask=b"m",
    window=(0, 9),
    label="b",
    labels={},
  )
  assert (row["age"], row["sex"], row["view"], row["site"]) == (3, "F", "PA", "here")
  assert row["mask"] == b"m" and row["window"].tolist() == [0, 9]


def test_number():
  assert tfds_features.number("1.0") == 1 and tfds_features.number("-1") == tfds_features.UNCERTAIN
  assert np.isnan(tfds_features.number("")) and np.isnan(tfds_features.number(None))

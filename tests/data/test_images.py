import dataclasses

import numpy as np
import pytest

from cxrjax.data import images as pictures
from cxrjax.data import open_source
from cxrjax.data.base import Part, SourceInfo, Table
from cxrjax.data.decoding.windowing import to_unit
from cxrjax.data.images import Images, LazyRows, info_of

INFO = SourceInfo("some", "train", ("a",), False, {"train": 6}, "f")


def table(n):
  return Table(
    ids=tuple(f"i{i}" for i in range(n)),
    patients=tuple(f"p{i // 2}" for i in range(n)),
    sites=("s",) * n,
    labels=np.arange(n, dtype=np.float32)[:, None],
    views=("PA",) * n,
    sexes=("F",) * n,
    ages=np.arange(n, dtype=np.float32),
  )


def images(dtype, n=6, windows=None):
  high = np.iinfo(dtype).max + 1
  pixels = np.random.default_rng(0).integers(0, high, (n, 8, 8, 1)).astype(dtype)
  return Images(pixels=pixels, table=table(n), info=INFO, windows=windows)


@pytest.mark.parametrize(
  "key",
  [
    0,
    -1,
    slice(None),
    slice(1, 3),
    [2, 0],
    np.array([True, False, True, False]),
    (1, ..., 0),
    (slice(0, 2), 3),
    ([1, 2], slice(2, 5)),
    (..., 0),
    np.int64(2),
    slice(4, 4),
  ],
)
def test_rows_are_those_of_a_copy(key):
  base = np.random.default_rng(0).integers(0, 255, (9, 5, 6, 1))
  chosen = np.array([7, 0, 3, 3])
  lazy, copy = LazyRows(base, chosen), base[chosen]
  np.testing.assert_array_equal(lazy[key], copy[key])
  np.testing.assert_array_equal(lazy.take(np.array([3, 0])), copy[[3, 0]])
  assert (lazy.shape, lazy.dtype, lazy.ndim, len(lazy)) == (copy.shape, copy.dtype, 4, 4)


def test_taking_copies_no_pixels():
  found = images(np.uint8)
  assert np.shares_memory(found.take([1, 2, 3]).pixels, found.pixels)
  part = found.take([4, 1, 0])
  assert isinstance(part.pixels, LazyRows)
  again = part.take([2, 1])
  assert again.ids == ("i0", "i1") and again.patients == ("p0", "p0")
  np.testing.assert_array_equal(again.pixels, found.pixels[[0, 1]])
  assert len(found.take([])) == 0


def test_what_the_table_knows():
  found = images(np.uint16).take([5, 2])
  assert found.ids == found.table.ids == ("i5", "i2") and found.sites == ("s", "s")
  assert found.views == ("PA", "PA") and found.sexes == ("F", "F") and found.ages.tolist() == [5, 2]
  assert found.labels.tolist() == [[5], [2]]


def test_gray_of_eight_bits_is_the_pixels():
  found = images(np.uint8)
  np.testing.assert_array_equal(found.gray([3, 1]), found.pixels[[3, 1]])
  np.testing.assert_array_equal(found.gray(slice(1, 3)), found.pixels[1:3])
  assert found.windows.shape == (6, 2) and (found.windows == [0, 255]).all()


def test_gray_of_sixteen_bits_is_what_the_windows_show():
  windows = np.array([[1000 * i, 20000 + 7000 * i] for i in range(6)], np.float32)
  found = images(np.uint16, windows=windows)
  for rows in ([4, 0], slice(2, 5)):
    gray = found.gray(rows)
    exact = 255.0 * to_unit(found.pixels[rows], windows[rows])
    assert gray.dtype == np.uint8 and np.abs(gray - exact).max() <= 0.5 + 1e-4
  assert found.take([4]).gray([0]).tolist() == found.gray([4]).tolist()
  assert (images(np.uint16).windows == [0, 65535]).all()


def test_rows_must_agree():
  with pytest.raises(ValueError, match="table has 5 rows, pixels 6"):
    dataclasses.replace(images(np.uint8), table=table(5))
  with pytest.raises(ValueError, match="8-bit pixels are stored as displayed"):
    images(np.uint8, windows=np.full((6, 2), 3, np.float32))


def test_parts_follow_their_rows():
  info = dataclasses.replace(INFO, parts=(Part("a", 3, 2.0), Part("b", 1, 1.0), Part("c", 2, 1.0)))
  assert [p.rows for p in info_of(info, np.array([0, 2, 4])).parts] == [2, 0, 1]
  assert info_of(info, np.array([2, 0])).parts == ()  # no longer one after the other
  assert info_of(INFO, np.array([2, 0])) is INFO


def test_stored():
  pixels = np.zeros((2, 8, 8, 1), np.uint8)
  assert pictures.stored(pixels) == (pixels, None)
  assert pictures.stored(images(np.uint8))[1] is None
  wide = images(np.uint16)
  assert pictures.stored(wide) == (wide.pixels, wide.windows)


def test_phantoms_say_their_bits():
  assert open_source("phantom", n=2, size=32).bits == 8

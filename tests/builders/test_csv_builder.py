"""What is whole and what is not, and listings sent to other machines."""

import math
import zlib

import dicoms
import made_sets
import numpy as np
import pytest

from cxrjax.builders import csv_builder
from cxrjax.core.errors import UserError
from cxrjax.data.decoding import decode


@pytest.mark.parametrize("mode, bits", [("L", 8), ("RGBA", 8), ("P", 8), ("L", 16)])
def test_a_whole_png_and_each_way_to_damage_it(mode, bits):
  data = made_sets.encoded(0, mode, bits=bits)
  assert not csv_builder.find_damage(data) and not csv_builder.find_damage(data + b"more")
  for n in range(len(data)):
    assert csv_builder.find_damage(data[:n])
  rng = np.random.default_rng(0)
  for at in rng.integers(8, len(data), 100):
    broken = bytearray(data)
    broken[at] ^= 1 << int(rng.integers(8))
    assert csv_builder.find_damage(bytes(broken))


def test_a_whole_jpeg_and_one_cut_short():
  data = made_sets.encoded(0, kind="JPEG")
  assert not csv_builder.find_damage(data) and not csv_builder.find_damage(data + bytes(100))
  assert all(csv_builder.find_damage(data[:n]) for n in range(len(data) - 1))
  assert csv_builder.find_damage(b"") == "it is empty"
  assert csv_builder.find_damage(b"GIF89a") == "it is neither PNG nor JPEG"


def listing():
  found = csv_builder.Listing(("Edema", "votes::Edema"), r"(\w+)/(\w+)\.png$")
  found.add(
    "a/1", csv_builder.ImageRow("p", "train", (1.0, math.nan), more={"terms": ["x", "ü"]}), "f 1"
  )
  found.add(
    "a/2", csv_builder.ImageRow("q", "test", (-1.0, 0.0), age=3.5, view="PA", inverted=True), "f 2"
  )
  found.add("a/3", "no chest", "f 3")
  return found


def test_a_listing_arrives_as_it_was_sent():
  one = listing()
  other = csv_builder.unpack(one.pack())
  assert repr(other.rows) == repr(one.rows) and other.left_out == one.left_out
  assert (other.labels, other.pattern, other.dicom) == (one.labels, one.pattern, one.dicom)
  assert list(other.of("test")) == ["a/2"] and "a/3" in other and "a/4" not in other
  for key in ("a/1", "a/3"):
    with pytest.raises(UserError, match=f"f 9 lists {key} a second time"):
      one.add(key, "twice", "f 9")


def test_images_come_in_the_order_of_the_archive(tmp_path):
  files = {f"deep/{n}.png": bytes([k]) for k, n in enumerate(("a/2", "a/9", "a/1", "a/3"))}
  path = made_sets.packed(tmp_path / "x.tar.gz", files | {"readme.txt": b"?"})
  unlisted: list[str] = []
  found = list(
    csv_builder.images(csv_builder.Part(str(path)), listing(), {"a/1", "a/2"}, unlisted.append)
  )
  assert found == [("a/2", b"\0"), ("a/1", b"\2")] and unlisted == ["a/9"]


@pytest.mark.parametrize("kind", ["x.zip", "x.tar.gz", "folder"])
def test_shares_are_all_images_once(tmp_path, kind):
  files = {f"a/{n}.png": bytes([n]) for n in range(40)}
  write = made_sets.folder if kind == "folder" else made_sets.packed
  path, rows = str(write(tmp_path / kind, files)), csv_builder.Listing((), r"(\d+)\.png$")
  for n in range(30):
    rows.add(str(n), csv_builder.ImageRow("p", "train", ()), "f")
  found, unlisted = [], []
  for share in range(4):
    part = csv_builder.Part(path, share=share, shares=4)
    mine = list(csv_builder.images(part, rows, set(rows.rows), unlisted.append))
    assert 2 < len(mine) < 15
    found += mine
  assert sorted(found) == sorted((str(n), bytes([n])) for n in range(30))
  assert sorted(unlisted) == sorted(str(n) for n in range(30, 40))


def dicom_rows(**fields):
  found = csv_builder.Listing((), r"(\d)\.dcm$", dicom=True, youngest=1.0)
  found.add("1", csv_builder.ImageRow("p", "train", (), **fields), "f")
  return found


@pytest.mark.parametrize("age, years", [("045Y", 45), ("000Y", 7), (None, 7)])
def test_what_a_dicom_file_says_counts_where_it_says_it(age, years):
  rows = dicom_rows(age=7.0, sex="M", view="PA")
  data = dicoms.dicom(
    made_sets.pixels(1, 16) >> 4,
    bits=12,
    PatientAge=age,
    PatientSex="O",
    ViewPosition="AP",
    WindowCenter=2000.5,
    WindowWidth=101,
  )
  row = csv_builder.example("1", rows.rows["1"], rows, data)
  assert (row["age"], row["sex"], row["view"]) == (years, "M", "AP")
  assert row["window"].tolist() == [1950, 2050]
  np.testing.assert_array_equal(decode.decode(row["image"])[..., 0], made_sets.pixels(1, 16) >> 4)
  with pytest.raises(decode.BadImage, match="not a DICOM"):
    csv_builder.example("1", rows.rows["1"], rows, made_sets.encoded(1))


def test_boxes_in_pixels_of_a_dicom_file_are_cut_to_it():
  boxes = [
    ("a", [5.0, -3.0, 10.0, 8.5], "R1"),
    ("b", [0, 0, 99, 99]),
    ("c", [30, 1, 40, 9]),
    ("d", [4, 4, 4, 9]),
    ("e", [8, 9, 4, 2]),
  ]
  rows = csv_builder.unpack(dicom_rows(boxes=boxes).pack())
  row = csv_builder.example("1", rows.rows["1"], rows, dicoms.dicom(made_sets.pixels(1)))
  assert [b["label"] for b in row["boxes"]] == ["a", "b"]
  np.testing.assert_allclose(row["boxes"][0]["box"], [5 / 20, 0, 10 / 20, 8.5 / 17])
  assert row["boxes"][1]["box"].tolist() == [0, 0, 1, 1]
  assert row["boxes"][0]["reader"] == "R1" and "reader" not in row["boxes"][1]


def test_an_example(tmp_path):
  rows, image = listing(), made_sets.encoded(5, bits=16)
  row = csv_builder.example("a/1", rows.rows["a/1"], rows, image)
  assert row["image"] == image and row["labels"] == {"Edema": 1} and row["terms"] == ["x", "ü"]
  assert math.isnan(row["votes"]["Edema"]) and row["view"] == row["sex"] == "unknown"
  other = csv_builder.example("a/2", rows.rows["a/2"], rows, image)
  np.testing.assert_array_equal(
    decode.decode(other["image"])[..., 0], 65535 - made_sets.pixels(5, 16)
  )
  with pytest.raises(decode.BadImage, match="cut short"):
    csv_builder.example("a/1", rows.rows["a/1"], rows, image[:-1])


@pytest.mark.parametrize("text, value", [("1.0", 1), ("0", 0), ("-1.0", -1), ("", np.nan)])
def test_findings(text, value):
  np.testing.assert_equal(csv_builder.parse_finding(text, "Edema", "f 1"), value)


@pytest.mark.parametrize("text", ["2", "yes", "inf", "0.5", "--1"])
def test_findings_that_are_none(text):
  with pytest.raises(UserError, match=f"f 1: Edema is '{text}', not 1.0"):
    csv_builder.parse_finding(text, "Edema", "f 1")


def test_how_many_may_be_absent():
  names = [f"i{k}" for k in range(1000)]
  csv_builder.check_absent("train", names[:10], 100, {"x"})
  csv_builder.check_absent("train", names[:100], 10_000, {"x"})
  for missing, total in ((names[:11], 100), (names[:101], 10_000), (names[:1], 1)):
    with pytest.raises(UserError, match="images listed for train are there, but not i0 in x"):
      csv_builder.check_absent("train", missing, total, {"x"})


def test_a_png_chunk_that_is_longer_than_the_file():
  head = b"\x89PNG\r\n\x1a\n" + (1 << 31).to_bytes(4, "big") + b"IHDR"
  assert csv_builder.find_damage(head + bytes(50)) == "it is cut short"
  kind = b"IDAT"
  chunk = (0).to_bytes(4, "big") + kind + zlib.crc32(kind).to_bytes(4, "big")
  assert csv_builder.find_damage(head[:8] + chunk * 1000) == "it is cut short"

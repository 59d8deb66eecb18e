"""Tables and images are found whichever way a set was unpacked."""

import gzip

import made_sets
import pytest

from cxrjax.builders import release_layout
from cxrjax.builders.csv_builder import Part
from cxrjax.core.errors import UserError

PATTERN = r"(?:^|/)(\w+)\.png$"
TEST = r"(?:^|/)test/(\w+)\.png$"
CSV = b"image_id,x_min,y_min,x_max,y_max\n"


def found(path):
  with release_layout.open_release(path) as release:
    return release_layout.parts(path, release.names, PATTERN)


def test_a_table_is_the_one_nearest_to_the_top(tmp_path):
  made_sets.folder(
    tmp_path,
    {
      "deep/labels.csv": CSV,
      "deep/deeper/labels.csv": b"?",
      "x/y/boxes.csv.gz": gzip.compress(CSV),
      "other_labels.csv": b"?",
      "labels.csv.txt": b"?",
    },
  )
  made_sets.packed(tmp_path / "votes.csv.zip", {"votes.csv": CSV})
  with release_layout.open_release(tmp_path) as release:
    assert release_layout.find_table(release, "labels") == "deep/labels.csv"
    assert release_layout.find_table(release, "boxes") == "x/y/boxes.csv.gz"
    assert release.read(release_layout.find_table(release, "votes")) == CSV
    assert release_layout.find_table(release, "absent") == ""
    with pytest.raises(UserError, match=r"has no absent.csv: another data set.* from somewhere"):
      release_layout.find_table(release, "absent", "somewhere")


def test_an_archive_is_one_part(tmp_path):
  for name in ("x.zip", "x.tar.gz"):
    path = made_sets.packed(tmp_path / name, {"a/1.png": b"1", "b/2.png": b"2", "c.csv": CSV})
    assert found(path) == [Part(str(path))]


def test_the_folders_and_archives_of_a_folder_are_parts(tmp_path):
  made_sets.folder(tmp_path, {"a/1.png": b"1", "b/deep/2.png": b"2", "c/3.csv": CSV})
  made_sets.packed(tmp_path / "d.tar.gz", {"4.png": b"4"})
  made_sets.packed(tmp_path / "b.zip", {"deep/2.png": b"2"})  # and what it unpacks to
  made_sets.packed(tmp_path / "tables.zip", {"5.csv": CSV})
  assert found(tmp_path) == [
    Part(str(tmp_path / file), top) for file, top in (("a", "a"), ("b.zip", "b"), ("d.tar.gz", "d"))
  ]


def test_images_right_in_the_folder_and_none_at_all(tmp_path):
  made_sets.folder(tmp_path, {"1.png": b"1", "a/2.png": b"2"})
  assert found(tmp_path) == [Part(str(tmp_path))]
  empty = made_sets.folder(tmp_path / "a", {"labels.csv": CSV}) / "labels.csv"
  with pytest.raises(UserError, match="has no images in it: only a part"):
    release_layout.parts(tmp_path, [empty.name], PATTERN)


def test_images_without_labels(tmp_path):
  files = {"train/a.png": b"", "test/b.png": b"", "test/c.png": b""}
  listed = {"s.csv": b"image_id,p\nb,1\nd,1\n"}

  def names(held, name):
    path = made_sets.packed(tmp_path / name, held)
    with release_layout.open_release(path) as release:
      return release_layout.without_labels(release, TEST, "s", "image_id"), str(path)

  assert names(files, "1.zip")[0].keys() == {"b", "c"}
  places, path = names(files | listed, "2.zip")
  assert places == {"b": f"{path}: s.csv line 2", "d": f"{path}: s.csv line 3"}
  assert names({"train/a.png": b""} | listed, "3.zip")[0] == {}
  with pytest.raises(UserError, match=r"s.csv line 3 lists b a second time"):
    names(files | {"s.csv": b"image_id,p\nb,1\nb,1\n"}, "4.zip")
  with pytest.raises(UserError, match="has no column 'image_id'"):
    names(files | {"s.csv": b"image,p\nb,1\n"}, "5.zip")


def row(*cells):
  return dict(zip(release_layout.EDGES, cells, strict=True))


def test_edges():
  assert release_layout.edges(row("1", "2.5", "-3", "1e3"), "f 1") == [2.5, 1, 1000, -3]
  assert release_layout.edges(row("", "", " ", ""), "f 1") is None
  for cells in (("1", "2", "3", ""), ("1", "2", "3", "x"), ("1", "2", "3", "inf")):
    with pytest.raises(UserError, match="f 1: the box is not four numbers"):
      release_layout.edges(row(*cells), "f 1")

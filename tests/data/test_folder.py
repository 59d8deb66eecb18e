import shutil
import zlib

import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.data import load_images, open_source


@pytest.fixture
def tree(tmp_path, encode, texture):
  """Makes a folder of images: `tree("a/1.png", ...)`; every image has pixels of its own."""
  root = tmp_path / "set"

  def make(*names, data=None):
    for name in names:
      path = root / name
      path.parent.mkdir(parents=True, exist_ok=True)
      form = "JPEG" if name.lower().endswith(("jpg", "jpeg")) else "PNG"
      path.write_bytes(encode(texture(24, 30, seed=zlib.crc32(name.encode())), form)
                       if data is None else data)
    return root

  return make


def source(root, split="all", **options):
  return open_source(f"folder:{root}", split=split, **options)


def table(found):
  return dict(zip(found.table.ids, found.table.labels.tolist(), strict=True))


def test_classes_from_folders(tree):
  root = tree("b/1.png", "a/2.jpg", "a/deep/3.JPEG", "b/4.png")
  found = source(root)
  assert found.info.classes == ("a", "b") and found.info.exclusive
  assert table(found) == {"a/2.jpg": [1, 0], "a/deep/3.JPEG": [1, 0], "b/1.png": [0, 1],
                          "b/4.png": [0, 1]}
  assert found[0].image.shape == (24, 30, 1) and found[0].id == "a/2.jpg"
  with pytest.raises(IndexError):
    found[4]


def test_split_folders_under_any_wrapping(tree):
  for wrap in ("", "archive/inner/"):
    root = tree(*(f"{wrap}{s}/{c}/{i}.png" for s in ("Train", "valid", "test") for c in "ab"
                  for i in range(2)))
    found = source(root, "val")
    assert found.info.splits == {"train": 4, "val": 4, "test": 4} and len(found) == 4
    assert found.info.classes == ("a", "b")
    shutil.rmtree(root)


def test_a_folder_of_images_alone_has_no_labels(tree):
  found = source(tree("1.png", "2.png"))
  assert found.info.classes == () and found.table.labels.shape == (2, 0)
  assert len(load_images(found, 16, progress=False)) == 2


def test_an_image_outside_the_class_folders_is_unknown(tree):
  found = source(tree("a/1.png", "b/2.png", "3.png"))
  assert np.isnan(table(found)["3.png"]).all()


def test_left_behind_files_are_no_images(tree):
  root = tree("a/1.png", "b/2.png", "__MACOSX/a/._1.png", "a/.hidden.png", "a/._1.png")
  (root / "a" / "notes.txt").write_text("not an image")
  assert source(root).table.ids == ("a/1.png", "b/2.png")


def test_patients_by_regex_are_split_by_patient(tree):
  names = [f"{'ab'[p % 2]}/p{p}_{i}.png" for p in range(60) for i in range(2)]
  root = tree(*names)
  parts = {s: source(root, s, patient_regex=r"(p\d+)_") for s in ("train", "val", "test")}
  owners = {s: set(found.table.patients) for s, found in parts.items()}
  assert sum(map(len, owners.values())) == 60
  assert not owners["train"] & owners["test"] and not owners["val"] & owners["test"]
  assert len(owners["train"]) > 30 and owners["test"]
  assert parts["train"].info.splits == {s: len(found) for s, found in parts.items()}
  assert any("hash of their names" in note for note in parts["train"].info.notes)
  assert len(source(root, patient_regex=r"p\d+")) == 120
  with pytest.raises(UserError, match=r"patient_regex='x\(y\)' finds no patient in a/p0_0.png"):
    source(root, patient_regex="x(y)")
  with pytest.raises(UserError, match="is no regular expression"):
    source(root, patient_regex="(")


def test_the_fingerprint_is_of_the_content(tree, tmp_path, encode, texture, cache):
  root = tree("a/1.png", "b/2.png")
  before = source(root).info.fingerprint
  assert source(root).info.fingerprint == before  # remembered
  copy = tmp_path / "elsewhere"
  shutil.copytree(root, copy)
  assert source(copy).info.fingerprint == before
  shutil.rmtree(cache)
  assert source(root).info.fingerprint == before
  (root / "a" / "1.png").write_bytes(encode(texture(25, 30, seed=77)))
  assert source(root).info.fingerprint != before
  (copy / "a" / "1.png").rename(copy / "a" / "3.png")
  assert source(copy).info.fingerprint != before


def test_csv_with_class_names(tree):
  root = tree("x/1.png", "x/2.png", "y/3.png", "y/unlisted.png")
  (root / "list.csv").write_text(
    "\ufeffPath,Label,Who,Split,Where\nx/1.png,sick,anna,train,north\n2,well,bert,validation,\n"
    "3.png,,bert,test,south\n", encoding="utf-8")
  found = source(root, csv="list.csv", patient_column="Who", site_column="Where")
  assert found.info.classes == ("sick", "well") and found.info.exclusive
  assert found.table.ids == ("x/1.png", "x/2.png", "y/3.png")
  assert found.table.patients == ("anna", "bert", "bert")
  assert found.table.sites == ("north", "", "south")
  np.testing.assert_array_equal(found.table.labels, [[1, 0], [0, 1], [np.nan, np.nan]])
  assert found.info.splits == {"train": 1, "val": 1, "test": 1}
  assert source(root, "val", csv="list.csv", patient_column="Who").table.ids == ("x/2.png",)


def test_csv_with_findings(tree):
  root = tree("1.png", "2.png", "3.png")
  (root / "list.csv").write_text("file,Effusion,Edema\n1.png,1,0\n2.png,-1,\n3.png,0.0,1.0\n")
  found = source(root, csv=str(root / "list.csv"), label_columns=("Effusion", "Edema"))
  assert found.info.classes == ("Effusion", "Edema") and not found.info.exclusive
  np.testing.assert_array_equal(found.table.labels, [[1, 0], [np.nan, np.nan], [0, 1]])
  lone = source(root, csv="list.csv", label_columns="Effusion")
  assert lone.info.classes == ("Effusion",) and not lone.info.exclusive
  np.testing.assert_array_equal(lone.table.labels, [[1], [np.nan], [0]])


def test_images_that_only_the_csv_or_only_the_folder_has_are_counted(tree):
  root = tree("1.png", "2.png", "extra/3.png", "extra/4.png")
  (root / "list.csv").write_text("file,label\n1.png,a\ngone.png,b\n2.png,b\n")
  found = source(root, csv="list.csv")
  assert found.table.ids == ("1.png", "2.png")
  assert found.info.skipped == (
    ("gone.png", "it is not there, though line 3 of list.csv lists it"),)
  notes = " ".join(found.info.notes)
  assert "1 images that list.csv lists are not there (the first: gone.png)" in notes
  assert "2 images are not listed in list.csv (the first: extra/3.png)" in notes
  (root / "list.csv").write_text("file,label\nx/1.jpg,a\nx/2.jpg,a\n")
  shutil.rmtree(root / "extra")
  (root / "1.png").rename(root / "a.png")
  (root / "2.png").rename(root / "b.png")
  with pytest.raises(UserError, match=r"none of the 2 images that .*list.csv lists is in"):
    source(root, csv="list.csv")


@pytest.mark.parametrize("data, reason", [
  (b"", "0 bytes"), (b"some text", "not a PNG, JPEG, TIFF, BMP or DICOM")])
def test_a_bad_file_is_named(tree, data, reason):
  root = tree("a/1.png", "b/2.png")
  tree("b/bad.png", data=data)
  with pytest.raises(UserError, match=f"b/bad.png: .*{reason}"):
    load_images(source(root), 16, progress=False)


@pytest.mark.parametrize("text, options, word", [
  ("file,label\n1.png,a\n", {"label_columns": "lable"}, "did you mean 'label'"),
  ("file,label\n1.png,a\n", {"path_column": "pth"}, "path_column='pth' is no column"),
  ("picture,label\n1.png,a\n", {}, "path_column; columns: picture, label"),
  ("file,label\n1.png,a\n1.png,b\n", {}, "line 3 names 1.png again .first on line 2"),
  ("file,x,y\n1.png,1,2\n", {"label_columns": ("x", "y")}, "line 2: y='2'"),
  ("file,label,who\n1.png,a,\n", {"patient_column": "who"}, "line 2 has no 'who'"),
  ("file,label\n,a\n", {}, "line 2 names no image"), ("file,label\n", {}, "has no rows")])
def test_mistakes_in_a_csv(tree, text, options, word):
  root = tree("1.png")
  (root / "list.csv").write_text(text)
  with pytest.raises(UserError, match=word):
    source(root, csv="list.csv", **options)


def test_a_file_name_that_fits_two_images(tree):
  root = tree("a/1.png", "b/1.png")
  (root / "list.csv").write_text("file\n1.png\n")
  with pytest.raises(UserError, match=r"may be a/1.png or b/1.png"):
    source(root, csv="list.csv")
  (root / "list.csv").write_text("file\nb/1.png\n")
  assert source(root, csv="list.csv").table.ids == ("b/1.png",)


def test_mistakes(tree, tmp_path):
  root = tree("train/a/1.png", "train/b/1.png")
  with pytest.raises(UserError, match=r"no split 'test'; valid: all, train"):
    source(root, "test")
  with pytest.raises(UserError, match=r"needs config.data.options.csv"):
    source(root, label_columns="x")
  with pytest.raises(UserError, match="cannot read"):
    source(root, csv="gone.csv")
  with pytest.raises(UserError, match="there is no such folder"):
    source(tmp_path / "nowhere")
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match=r"no images in .*empty; they are known by .png"):
    source(tmp_path / "empty")
  (tmp_path / "empty" / "1.mha").write_bytes(b"x")
  with pytest.raises(UserError, match=r"other files: 1 .mha"):
    source(tmp_path / "empty")
  with pytest.raises(UserError, match="neither a folder nor a zip"):
    source(tmp_path / "empty" / "1.mha")
  (tmp_path / "all.tar").write_bytes(b"x")
  with pytest.raises(UserError, match="unpack it, or pack them as a zip"):
    source(tmp_path / "all.tar")
  with pytest.raises(UserError, match=r"check='file' is no option; did you mean 'files'"):
    source(root, check="file")

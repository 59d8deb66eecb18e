import shutil
import zipfile
import zlib

import numpy as np
import pytest
from dicoms import dicom as encode_dicom

from cxrjax.core.errors import UserError
from cxrjax.data import Loader, load_images, open_source
from cxrjax.data.images import summarize_notes
from cxrjax.data.sources import file_hashes


@pytest.fixture
def tree(tmp_path, encode, texture):
  """Makes a folder of images: `tree("a/1.png", ...)`; every image has pixels of its own."""
  root = tmp_path / "set"

  def make(*names, data=None):
    for name in names:
      path = root / name
      path.parent.mkdir(parents=True, exist_ok=True)
      form = "JPEG" if name.lower().endswith(("jpg", "jpeg")) else "PNG"
      path.write_bytes(
        encode(texture(24, 30, seed=zlib.crc32(name.encode())), form) if data is None else data
      )
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
  assert table(found) == {
    "a/2.jpg": [1, 0],
    "a/deep/3.JPEG": [1, 0],
    "b/1.png": [0, 1],
    "b/4.png": [0, 1],
  }
  assert found[0].image.shape == (24, 30, 1) and found[0].id == "a/2.jpg"
  with pytest.raises(IndexError):
    found[4]


def test_split_folders_under_any_wrapping(tree):
  for wrap in ("", "archive/inner/"):
    root = tree(
      *(
        f"{wrap}{s}/{c}/{i}.png" for s in ("Train", "valid", "test") for c in "ab" for i in range(2)
      )
    )
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
    "3.png,,bert,test,south\n",
    encoding="utf-8",
  )
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
  assert found.info.skipped == (("gone.png", "it is missing, though line 3 of list.csv lists it"),)
  notes = " ".join(found.info.notes)
  assert "1 images listed in list.csv are missing (the first: gone.png)" in notes
  assert "2 images are not listed in list.csv (the first: extra/3.png)" in notes
  (root / "list.csv").write_text("file,label\nx/1.jpg,a\nx/2.jpg,a\n")
  shutil.rmtree(root / "extra")
  (root / "1.png").rename(root / "a.png")
  (root / "2.png").rename(root / "b.png")
  with pytest.raises(UserError, match=r"none of the 2 images that .*list.csv lists is in"):
    source(root, csv="list.csv")


@pytest.mark.parametrize(
  "data, reason", [(b"", "0 bytes"), (b"some text", "not a PNG, JPEG, TIFF, DICOM")]
)
def test_a_bad_file_is_named(tree, data, reason):
  root = tree("a/1.png", "b/2.png")
  tree("b/bad.png", data=data)
  with pytest.raises(UserError, match=f"b/bad.png: .*{reason}"):
    load_images(source(root), 16, progress=False)


@pytest.mark.parametrize(
  "text, options, word",
  [
    ("file,label\n1.png,a\n", {"label_columns": "lable"}, "did you mean 'label'"),
    ("file,label\n1.png,a\n", {"path_column": "pth"}, "path_column='pth' is not a column"),
    ("picture,label\n1.png,a\n", {}, "path_column, or a DICOM keyword.*columns: picture, label"),
    ("file,label\n1.png,a\n1.png,b\n", {}, "line 3 names 1.png again .first on line 2"),
    ("file,x,y\n1.png,1,2\n", {"label_columns": ("x", "y")}, "line 2: y='2'"),
    ("file,label,who\n1.png,a,\n", {"patient_column": "who"}, "line 2 has no 'who'"),
    ("file,label\n,a\n", {}, "line 2 does not name an image"),
    ("file,label\n", {}, "has no rows"),
  ],
)
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
  with pytest.raises(UserError, match=r"no images in .*empty; they are recognized by .png"):
    source(tmp_path / "empty")
  (tmp_path / "empty" / "1.mha").write_bytes(b"x")
  with pytest.raises(UserError, match=r"other files: 1 .mha"):
    source(tmp_path / "empty")
  with pytest.raises(UserError, match="neither a folder nor a zip"):
    source(tmp_path / "empty" / "1.mha")
  (tmp_path / "all.tar").write_bytes(b"x")
  with pytest.raises(UserError, match="unpack it, or pack them as a zip"):
    source(tmp_path / "all.tar")
  with pytest.raises(UserError, match=r"check='file' is not an option; did you mean 'files'"):
    source(root, check="file")


# DICOM.


@pytest.fixture
def ward(tmp_path, texture):
  """Two patients in three films each, the last a lateral; a CT slice is not among them."""
  root = tmp_path / "ward"
  for p in range(2):
    for i in range(3):
      file = root / f"{p}{i}"
      file.parent.mkdir(exist_ok=True)
      file.write_bytes(
        encode_dicom(
          texture(24, 30, seed=3 * p + i).astype(np.uint16) * 16,
          bits=12,
          PatientID=f"secret-{p}",
          PatientSex="FM"[p],
          PatientAge=f"0{p}1Y",
          ViewPosition=("PA", "AP", "LL")[i],
          WindowCenter=2000,
          WindowWidth=1000,
        )
      )
  return root


def test_dicom_keeps_its_bits(ward):
  found = source(ward)
  assert found.bits == 16
  images = load_images(found, 16, progress=False)
  assert images.pixels.dtype == np.uint16
  np.testing.assert_array_equal(images.windows, [[1500, 2499]] * 6)


def test_dicom_headers_fill_the_table(ward):
  found = source(ward)
  assert found.table.ids == ("00", "01", "02", "10", "11", "12")
  assert found.table.patients == ("00",) * 3 + ("10",) * 3  # by their first image's name
  assert found.table.views == ("PA", "AP", "L") * 2
  assert found.table.sexes == ("F",) * 3 + ("M",) * 3
  np.testing.assert_array_equal(found.table.ages, [1] * 3 + [11] * 3)
  assert not any("patients unknown" in note for note in found.info.notes)
  record = found[4]
  assert record.image.dtype == np.uint16 and record.window == (1500, 2499)
  assert record.patient == "10" and source(ward, "all", patient_regex=".").table.patients[4] == "1"


def test_patients_of_dicom_stay_in_one_split(tmp_path, texture):
  root = tmp_path / "many"
  root.mkdir()
  data = encode_dicom(texture(16, 16), PatientID="P00000")
  for i in range(120):
    (root / f"{i:03d}.dcm").write_bytes(data.replace(b"P00000", b"P%05d" % (i % 40)))
  parts = [source(root, s) for s in ("train", "val", "test")]
  owners = [set(part.table.patients) for part in parts]
  assert sum(map(len, owners)) == 40 == len(set.union(*owners))
  assert sum(map(len, parts)) == 120


def test_a_secret_of_ones_own_names_patients_the_same_everywhere(ward, cache, monkeypatch):
  monkeypatch.setenv(file_hashes.KEY, "a secret")
  first = source(ward).table.patients
  assert len(set(first)) == 2 and all(len(name) == 32 for name in first)
  shutil.rmtree(cache)
  (ward / "00").unlink()
  assert source(ward).table.patients == first[1:]
  monkeypatch.setenv(file_hashes.KEY, "another")
  assert not set(source(ward).table.patients) & set(first)


def test_only_the_views_asked_for(ward):
  found = source(ward, views=("PA", "AP"))
  assert found.table.ids == ("00", "01", "10", "11")
  assert found.info.skipped == (("02", "its view is L"), ("12", "its view is L"))
  assert found.info.splits and sum(found.info.splits.values()) == 4
  assert source(ward, views="L").table.ids == ("02", "12")
  assert found.info.fingerprint != source(ward).info.fingerprint
  with pytest.raises(UserError, match=r"has no image of config.data.options.views=.'unknown',."):
    source(ward, views="unknown")
  with pytest.raises(UserError, match=r"views='pa' is not a view; valid: AP, L, PA, unknown"):
    source(ward, views=("pa",))


def test_what_a_csv_lacks_comes_from_headers(ward):
  (ward / "list.csv").write_text("file,label,age,Sex,Patient\n00,a,50,,x\n01,b,,M,x\n12,b,7,F,y\n")
  found = source(ward, csv="list.csv", patient_column="Patient")
  assert found.table.patients == ("x", "x", "y") and found.table.views == ("PA", "AP", "L")
  np.testing.assert_array_equal(found.table.ages, [50, np.nan, 7])
  assert found.table.sexes == ("", "M", "F")
  assert source(ward, csv="list.csv").table.patients == ("x", "x", "y")  # by the column's name
  (ward / "list.csv").write_text("file,label\n00,a\n01,b\n12,b\n")
  assert source(ward, csv="list.csv").table.patients == ("00", "00", "12")


def test_a_ct_slice_in_the_folder_is_a_bad_image(ward, texture):
  (ward / "ct.dcm").write_bytes(encode_dicom(texture(30, 30), Modality="CT"))
  with pytest.raises(UserError, match=r"ct.dcm: it is DICOM of modality CT, not a radiograph"):
    load_images(source(ward), 16, progress=False)
  found = load_images(source(ward), 16, progress=False, on_bad_image="skip")
  assert len(found) == 6 and found.skipped[0][0] == "ct.dcm"


RAW = "it is FOR PROCESSING: raw detector values, not the image shown to readers"


def test_notes_of_files_come_with_their_images(ward, texture):
  for name in ("2", "raw/7"):
    (ward / name).parent.mkdir(exist_ok=True)
    (ward / name).write_bytes(
      encode_dicom(texture(40, 56, seed=5), PresentationIntentType="FOR PROCESSING")
    )
  (ward / "0").write_bytes(b"")
  found = source(ward)
  rows = [found.table.ids.index(name) for name in ("2", "raw/7")]
  assert found[rows[0]].notes == (RAW,)
  for _ in range(2):  # decoded, then from the cache
    images = load_images(found, 16, on_bad_image="skip", progress=False)
    assert images.notes == (("2", RAW), ("raw/7", RAW))
  some = load_images(found, 16, progress=False, indices=rows[::-1])
  assert some.notes == (("raw/7", RAW), ("2", RAW)) and summarize_notes(some.notes) == [
    f"2 of its images: {RAW} (the first: raw/7)"
  ]
  for storage in ("resident", "streamed"):
    loader = Loader(found, 2, 0, size=16, storage=storage, on_bad_image="skip", progress=False)
    for step in range(len(found)):
      loader[step]
    assert [note.partition(" (the first")[0] for note in loader.notes] == [
      f"2 of its images: {RAW}"
    ]


def test_dicom_in_a_zip(ward, tmp_path):
  with zipfile.ZipFile(tmp_path / "ward.zip", "w") as packed:
    for file in sorted(ward.iterdir()):
      packed.write(file, file.name)
  folder, zipped = source(ward), source(tmp_path / "ward.zip")
  assert zipped.table.patients == folder.table.patients
  assert zipped.table.views == folder.table.views
  assert zipped.info.fingerprint == folder.info.fingerprint
  np.testing.assert_array_equal(zipped[5].image, folder[5].image)


def test_a_bmp_is_read(tree, encode, texture):
  root = tree("a/1.bmp", "b/2.BMP", data=encode(texture(24, 30), "BMP"))
  np.testing.assert_array_equal(source(root)[1].image[..., 0], texture(24, 30))


# What a CSV may look like.


def csv(root, text, **options):
  (root / "list.csv").write_text(text, encoding="utf-8")
  return source(root, csv="list.csv", **options)


def test_paths_that_begin_above_or_below_the_folder(tree):
  names = [f"train/p{p}/s{s}/view1.jpg" for p in range(3) for s in range(2)]
  root = tree(*names)
  above = csv(root, "path\n" + "".join(f"{root.parent.name}/set/{n}\n" for n in names))
  below = csv(root, "path\n" + "".join(f"{n[6:]}\n" for n in names))
  stems = csv(root, "path\n" + "".join(f".\\{n[6:-4]}\n".replace("/", "\\") for n in names))
  whole = csv(root, "path\n" + "".join(f"{root}/{n}\n" for n in names))
  for found in (above, below, stems, whole):
    assert found.table.ids == tuple(names)
  with pytest.raises(UserError, match=r"line 2: view1.jpg may be train/p0/s0/view1.jpg or"):
    csv(root, "path\nview1.jpg\n")
  with pytest.raises(UserError, match="none of the 1 images"):
    csv(root, "path\nother/view1.jpg\n")  # the same name in another folder is another image
  with pytest.raises(UserError, match="none of the 1 images"):
    csv(root, "path\np9/train/p0/s0/view1.jpg\n")


@pytest.mark.parametrize(
  "path, word",
  [
    ("../secret.png", r"points outside"),
    ("a/../../secret.png", r"points outside"),
    ("/etc/secret.png", "is outside"),
  ],
)
def test_paths_that_lead_out_of_the_folder(path, word, tree):
  root = tree("1.png")
  shutil.copy(root / "1.png", root.parent / "secret.png")
  with pytest.raises(UserError, match=word):
    csv(root, f"path\n1.png\n{path}\n")


def test_views_ages_and_sexes_of_a_csv(tree):
  root = tree("1.png", "2.png", "3.png")
  text = (
    "path,Projection,Years,Gender\n1.png,AP,061Y,Female\n2.png,lateral,7.5,m\n3.png,,,unknown\n"
  )
  found = csv(root, text, view_column="Projection", age_column="Years", sex_column="Gender")
  assert found.table.views == ("AP", "L", "") and found.table.sexes == ("F", "M", "")
  np.testing.assert_array_equal(found.table.ages, np.float32([61, 7.5, np.nan]))
  for option, name, bad in (
    ("view_column", "Projection", "AP"),
    ("age_column", "Years", "061Y"),
    ("sex_column", "Gender", "Female"),
  ):
    with pytest.raises(UserError, match=rf"line 2: .*{option} has 'what'"):
      csv(root, text.replace(bad, "what"), **{option: name})
  guessed = csv(root, text.replace("Years", "age").replace("061Y", "what"))
  np.testing.assert_array_equal(guessed.table.ages, np.float32([np.nan, 7.5, np.nan]))
  assert guessed.table.views == ("",) * 3


@pytest.mark.parametrize("policy, value", [("ignore", np.nan), ("zeros", 0), ("ones", 1)])
def test_uncertain_findings(policy, value, tree):
  found = csv(tree("1.png"), "path,A,B\n1.png,-1,1\n", label_columns=("A", "B"), uncertain=policy)
  np.testing.assert_array_equal(found.table.labels, np.float32([[value, 1]]))


def test_a_policy_that_is_none(tree):
  with pytest.raises(UserError, match=r"uncertain='one' is not a policy; did you mean 'ones'"):
    csv(tree("1.png"), "path,A\n1.png,-1\n", uncertain="one")


def test_semicolons_tabs_quotes_and_blank_lines(tree):
  root = tree("1.png", "2.png")
  for text in (
    "path;label;note\n1.png;a;1,5\n\n2.png;b;\n",
    "path\tlabel\n1.png\ta\n2.png\tb\n",
    'path,label,note\n"1.png",a,"two\nlines, one cell"\n2.png,b,\n\n',
  ):
    found = csv(root, text)
    assert found.table.ids == ("1.png", "2.png") and found.info.classes == ("a", "b")
  with pytest.raises(UserError, match=r"list.csv line 4 has 1 fields, the header 3"):
    csv(root, 'path,label,note\n1.png,a,"two\nlines"\n2.png\n')


def test_more_rows_than_are_taken_at_a_time(tree, monkeypatch):
  monkeypatch.setattr("cxrjax.data.sources.folder_csv._AT_A_TIME", 3)
  root = tree(*(f"{i}.png" for i in range(10)))
  found = csv(root, "path,label\n" + "".join(f"{i}.png,{i % 4}x\n" for i in range(10)))
  assert found.table.ids == tuple(f"{i}.png" for i in range(10))
  assert found.table.labels.argmax(1).tolist() == [i % 4 for i in range(10)]


def test_a_csv_inside_the_zip(tree, tmp_path):
  root = tree("x/1.png", "x/2.png")
  with zipfile.ZipFile(tmp_path / "set.zip", "w") as packed:
    for name in ("x/1.png", "x/2.png"):
      packed.write(root / name, name)
    packed.writestr("meta/list.csv", "path,label\nx/1.png,a\nx/2.png,b\n")
  found = source(tmp_path / "set.zip", csv="meta/list.csv")
  assert found.info.classes == ("a", "b") and found[1].image.shape == (24, 30, 1)
  with pytest.raises(UserError, match=r"csv='list.csv': cannot read .*set.zip: list.csv"):
    source(tmp_path / "set.zip", csv="list.csv")


def test_bits_by_a_few_headers(tmp_path, encode, texture, monkeypatch):
  gray = texture(20, 20)
  (tmp_path / "0.png").write_bytes(b"broken")
  (tmp_path / "1.png").write_bytes(encode(gray))
  (tmp_path / "2.png").write_bytes(encode(gray.astype(np.uint16) * 100))
  monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)  # no pixel is decoded
  assert source(tmp_path).bits == 16
  (tmp_path / "2.png").unlink()
  assert source(tmp_path).bits == 8

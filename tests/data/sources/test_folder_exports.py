"""Exports of archives: folders of patients and studies, and labels by what headers say."""

import json
import zipfile

import numpy as np
import pydicom
import pytest
from dicoms import dicom as encode_dicom

from cxrjax.core.errors import UserError
from cxrjax.data import open_source


def noted(found, *words):
  return [note for note in found.info.notes if all(word in note for word in words)]


@pytest.fixture
def export(tmp_path, texture):
  """PATIENT/STUDY/SERIES/file of four patients, two studies each."""
  root = tmp_path / "export"
  for p in range(4):
    for s in range(2):
      file = root / f"{990100 + p}" / f"2021030{s}" / "1" / f"IM{p}{s}_{990100 + p}.dcm"
      file.parent.mkdir(parents=True)
      file.write_bytes(
        encode_dicom(
          texture(24, 30, seed=2 * p + s),
          PatientID=f"{990100 + p}",
          PatientName=f"DOE{p}^JANE",
          AccessionNumber=f"ACC{p}{s}",
          StudyInstanceUID=f"1.2.{p}.{s}",
        )
      )
  return root


def test_patients_folders_are_no_classes_and_their_numbers_are_not_shown(export, cache):
  (export / "990101" / "notes.txt").write_text("x")
  (export / "990102" / "990102.csv").write_text("path,dose\nx,1\n")
  with zipfile.ZipFile(export / "990103.zip", "w") as packed:  # beside the folder
    packed.writestr("x.dcm", b"")
  (export / "990103" / "bad.dcm").write_bytes(b"x")  # of nobody knows whom
  found = open_source(f"folder:{export}", split="all")
  assert found.info.classes == () and found.table.labels.shape == (9, 0)
  assert len(set(found.table.patients) - {""}) == 4 and found.table.ids[-1] == "patient4/bad.dcm"
  assert noted(found, "4 folders that could be classes hold one patient each")
  assert "data.csv" in found.info.advice
  assert found.table.ids[:2] == (
    "patient1/20210300/1/IM00_patient1.dcm",
    "patient1/20210301/1/IM01_patient1.dcm",
  )
  said = json.dumps([found.info.notes, found.info.skipped, found.table.ids, found.info.advice])
  assert noted(found, "patient3/patient3.csv is not used")
  assert noted(found, "patient4.zip was not opened")
  assert "9901" not in said and "such as patient2/notes.txt" in said
  (key,) = cache.rglob("*.names.csv")  # for the user's own eyes
  assert "patient1/20210300/1/IM00_patient1.dcm,990100/20210300/1/IM00_990100.dcm" in (
    key.read_text()
  )
  assert key.stat().st_mode & 0o077 == 0
  assert open_source(f"folder:{export}", split="all").table.ids == found.table.ids
  pixels = pydicom.dcmread(sorted(export.rglob("*.dcm"))[3]).pixel_array
  np.testing.assert_array_equal(found[3].image[..., 0], pixels)


def test_what_a_table_lists_and_is_not_there_may_be_of_anybody(export):
  paths = sorted(str(file.relative_to(export)) for file in export.rglob("*.dcm"))
  rows = [f"{path},{'ab'[k % 2]}" for k, path in enumerate(paths)] + ["990199/1/IM_990199.dcm,a"]
  (export / "list.csv").write_text("\n".join(["path,label", *rows]) + "\n")
  found = open_source(f"folder:{export}", split="all", csv="list.csv")
  assert found.info.skipped == (
    ("a path on line 10", "it is missing, though line 10 of list.csv lists it"),
  )
  assert noted(found, "the first: a path on line 10") and "9901" not in json.dumps(
    [found.info.notes, found.info.skipped, found.table.ids]
  )


def test_a_folder_that_is_called_by_a_patients_number_is_no_class(export):
  for p in (1, 2, 3):  # of two patients each
    for file in sorted((export / f"{990100 + p}").rglob("*.dcm")):
      file.rename(export / f"{990100 + p}" / "20210300" / "1" / file.name)
    other = export / "990100" / "20210300" / "1" / "IM00_990100.dcm"
    (export / f"{990100 + p}" / "20210300" / "1" / f"other{p}.dcm").write_bytes(other.read_bytes())
  found = open_source(f"folder:{export}", split="all")
  assert found.info.classes == () and "99010" not in json.dumps([found.info.notes, found.table.ids])


def test_names_in_paths_are_not_shown(tmp_path, texture):
  for p, name in enumerate(("Doe_Jane", "Roe_Richard")):
    (tmp_path / "x" / "a" / name).mkdir(parents=True)
    (tmp_path / "x" / "a" / name / "1.dcm").write_bytes(
      encode_dicom(
        texture(20, 20, seed=p), PatientID=f"77700{p}", PatientName=name.replace("_", "^").upper()
      )
    )
  found = open_source(f"folder:{tmp_path / 'x'}", split="all")
  assert found.table.ids == ("a/patient1/1.dcm", "a/patient2/1.dcm")


def test_classes_of_one_patient_are_told(tmp_path, texture):
  for k, (name, patient) in enumerate((("a", 1), ("a", 2), ("b", 3), ("b", 3))):
    (tmp_path / "x" / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "x" / name / f"{k}.dcm").write_bytes(
      encode_dicom(texture(20, 20, seed=k), PatientID=f"secret{patient}")
    )
  found = open_source(f"folder:{tmp_path / 'x'}", split="all")
  assert found.info.classes == ("a", "b")
  assert noted(found, "1 of 2 classes consist of one patient each, such as 'b'")


def test_many_small_class_folders_are_told_of_where_patients_are_unknown(tmp_path, encode, texture):
  for k in range(9):
    (tmp_path / "x" / f"{k}").mkdir(parents=True)
    (tmp_path / "x" / f"{k}" / "1.png").write_bytes(encode(texture(20, 20, seed=k)))
  found = open_source(f"folder:{tmp_path / 'x'}", split="all")
  assert noted(found, "9 of 9 class folders hold fewer than 5 images", "data.patient_regex")


@pytest.mark.parametrize(
  "keyword, value",
  [
    ("AccessionNumber", lambda p, s: f"ACC{p}{s}"),
    ("StudyInstanceUID", lambda p, s: f"1.2.{p}.{s}"),
    ("PatientID", lambda p, s: f"{990100 + p}"),
  ],
)
def test_labels_by_what_headers_say(export, keyword, value, cache):
  rows = {value(p, s): "ab"[p % 2] for p in range(4) for s in range(2)}
  text = f"{keyword},label\n" + "".join(f"{k},{v}\n" for k, v in rows.items())
  (export / "list.csv").write_text(text)
  for _ in range(2):  # read, and remembered
    found = open_source(f"folder:{export}", split="all", csv="list.csv", key=keyword)
    assert found.info.classes == ("a", "b") and len(found) == 8
    assert found.table.labels.argmax(1).tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
  kept = b"".join(f.read_bytes() for f in cache.rglob("*.npz"))
  assert not any(value.encode() in kept for value in rows if not value.isdecimal())
  (export / "list.csv").write_text(text.replace(keyword, "number"))
  with pytest.raises(UserError, match=rf"no column that is called {keyword}; name .*key_column"):
    open_source(f"folder:{export}", split="all", csv="list.csv", key=keyword)
  found = open_source(
    f"folder:{export}", split="all", csv="list.csv", key=keyword, key_column="number"
  )
  assert len(found) == 8


def test_rows_and_images_that_do_not_meet_are_told_without_their_values(export):
  (export / "list.csv").write_text("Accession Number,label\nACC00,a\nACC11,b\nACC99,b\n")
  found = open_source(f"folder:{export}", split="all", csv="list.csv", key="AccessionNumber")
  assert len(found) == 2 and noted(found, "list.csv: 1 rows are of no image")
  assert noted(found, "6 images are not listed") and "ACC" not in json.dumps(found.info.notes)


@pytest.mark.parametrize(
  "text, key, word",
  [
    ("a,b\n1,2\n", "AccesionNumber", "not a DICOM keyword; did you mean 'AccessionNumber'"),
    (
      "AccessionNumber,label\nACC00,a\nACC00,b\n",
      "AccessionNumber",
      "line 3 has the AccessionNumber of line 2",
    ),
    (
      "AccessionNumber,label\nX,a\n",
      "AccessionNumber",
      "no AccessionNumber of the 8 DICOM files .* is in",
    ),
  ],
)
def test_mistakes_with_keys(export, text, key, word):
  (export / "list.csv").write_text(text)
  with pytest.raises(UserError, match=word) as caught:
    open_source(
      f"folder:{export}",
      split="all",
      csv="list.csv",
      key=key,
      **({"key_column": "a"} if text.startswith("a,b") else {}),
    )
  assert "ACC" not in str(caught.value)


def test_a_key_needs_dicom(tmp_path, encode, texture):
  (tmp_path / "1.png").write_bytes(encode(texture(20, 20)))
  (tmp_path / "list.csv").write_text("PatientID,label\n1,a\n")
  with pytest.raises(UserError, match=r"key=PatientID is read from DICOM headers, and .* no DICOM"):
    open_source(f"folder:{tmp_path}", split="all", csv="list.csv", key="PatientID")
  with pytest.raises(UserError, match=r"key needs config\.data\.options\.csv"):
    open_source(f"folder:{tmp_path}", split="all", key="PatientID")

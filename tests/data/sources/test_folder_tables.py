"""Tables as people write them, and what is made of their columns."""

import unicodedata
import zipfile
import zlib

import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.data import open_source
from cxrjax.data.sources import spelling

NAMES = [f"{i}.png" for i in range(6)]


@pytest.fixture
def root(tmp_path, encode, texture):
  folder = tmp_path / "set"
  folder.mkdir()
  for i, name in enumerate(NAMES):
    (folder / name).write_bytes(encode(texture(24, 30, seed=i)))
  return folder


def read(root, data, **options):
  data = data.encode() if isinstance(data, str) else data
  (root / "list.csv").write_bytes(data)
  return open_source(f"folder:{root}", split="all", csv="list.csv", **options)


def noted(found, *words):
  return [note for note in found.info.notes if all(word in note for word in words)]


@pytest.mark.parametrize(
  "data",
  [
    "path,label\n0.png,a\n1.png,b\n",
    "\ufeffpath,label\n0.png,a\n1.png,b\n",
    "path,label\n0.png,a\n1.png,b\n".encode("utf-16"),
    "path,label\n0.png,a\n1.png,b\n".encode("utf-16-le"),
    "path\tlabel\n0.png\ta\n1.png\tb\n".encode("utf-16"),
    "sep=;\npath;label\n0.png;a\n1.png;b\n",
    "\n ,\npath,label,\n0.png,a,\n,,\n1.png,b,,,\n\n",
    "path,label\r0.png,a\r1.png,b\r",
  ],
)
def test_what_spreadsheets_write_is_read(root, data):
  found = read(root, data)
  assert found.table.ids == ("0.png", "1.png") and found.info.classes == ("a", "b")


def test_lines_are_counted_from_the_files_start(root):
  with pytest.raises(UserError, match=r"list.csv line 5 has 1 fields, the header 2"):
    read(root, "sep=;\n\npath;label\n0.png;a\n1.png\n")


def test_windows_letters_are_read_and_told(root):
  found = read(root, "path,label\n0.png,gesund\n1.png,getr\xfcbt\n".encode("cp1252"))
  assert found.info.classes == ("gesund", "getr\xfcbt")
  assert noted(found, "list.csv", "Windows-1252", "save it as CSV in UTF-8")


@pytest.mark.parametrize(
  "data, word",
  [
    (b"PK\x03\x04\x14\0\x06\0\x08\0\0\0!\0", "starts like an Excel file.*save it as CSV in UTF-8"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "old Excel .*save it as CSV"),
    (b"path,label\n0.png,\x81\n", "unknown encoding .*save it as CSV"),
    (b"\0\0\1\2\0\0\0\7" * 9, "is not text; save it as CSV"),
    ("path,label,label\n0.png,a,b\n", "has the column 'label' twice"),
    ("path,label,class\n0.png,a,b\n", "'label' and 'class', both of which may hold labels"),
    ("", "has no column that looks like a path"),
  ],
)
def test_what_is_no_table_says_what_to_do(root, data, word):
  with pytest.raises(UserError, match=word):
    read(root, data)


def test_an_excel_file(root):
  rows = (
    ["path", "label", "patient"],
    ["0.png", "a", "7"],
    [],
    ["1.png", "#N/A", "7"],
    ["2.png", "b", "8"],
  )
  cells = "".join(
    "<row>" + "".join(f'<c t="inlineStr"><is><t>{cell}</t></is></c>' for cell in row) + "</row>"
    for row in rows
  )
  with zipfile.ZipFile(root / "list.xlsx", "w") as made:
    made.writestr(
      "xl/worksheets/sheet1.xml", f"<worksheet><sheetData>{cells}</sheetData></worksheet>"
    )
  found = open_source(f"folder:{root}", split="all", csv="list.xlsx")
  assert found.table.ids == ("0.png", "1.png", "2.png")
  assert found.table.patients == ("7", "7", "8")
  np.testing.assert_array_equal(found.table.labels, np.float32([[1, 0], [np.nan] * 2, [0, 1]]))


@pytest.mark.parametrize("word", ["", "NA", "n/a", "null", "NaN", "None", "#N/A", "unknown"])
def test_one_list_of_words_for_unknown(root, word):
  classes = read(root, f"path,label\n0.png,a\n1.png,b\n2.png,{word}\n")
  assert classes.info.classes == ("a", "b") and np.isnan(classes.table.labels[2]).all()
  findings = read(root, f"path,A,B\n0.png,1,0\n1.png,{word},1\n", label_columns=("A", "B"))
  np.testing.assert_array_equal(findings.table.labels, np.float32([[1, 0], [np.nan, 1]]))
  people = read(root, f"path,patient,site,split\n0.png,p,x,test\n1.png,{word},{word},{word}\n")
  assert people.table.patients == ("p", "") and people.table.sites == ("", "")
  assert people.info.splits == {"test": 1}
  assert noted(people, "the patient is unknown for 1 of 2 images")
  with pytest.raises(UserError, match="line 3 has no 'patient'; every image needs a patient"):
    read(root, f"path,patient\n0.png,p\n1.png,{word}\n", patient_column="patient")


def test_words_for_unknown_are_told_with_their_counts(root):
  text = "path,label\n0.png,tb\n1.png,None\n2.png,None\n3.png,NA\n"
  assert noted(
    read(root, text), "'None' (2) and 'NA' (1) count as unknown", "if 'none' is a class, rename it"
  )
  assert not noted(read(root, "path,label\n0.png,a\n1.png,b\n2.png,\n"), "count as unknown")


@pytest.mark.parametrize("name", ["patient", "Patient ID", "patient_id", "PatientID", "Subject_Id"])
def test_patients_are_recognised_by_their_columns_name(root, name):
  found = read(root, f"path,{name}\n0.png,p1\n1.png,p1\n2.png,p2\n")
  assert found.table.patients == ("p1", "p1", "p2")
  assert noted(found, f"patients are taken from column {name!r}")
  assert not noted(found, "patients unknown")


def test_columns_that_are_not_used_are_named_with_the_option_that_would(root):
  found = read(root, "path,diagnosis,reader,hospital,age\n0.png,a,x,h,4\n1.png,b,y,h,5\n")
  (note,) = noted(found, "unused columns: diagnosis, reader, hospital")
  assert "data.label_columns, data.patient_column, data.split_column, data.site_column" in note
  assert "age" not in note
  assert noted(found, "patients unknown: every image counts")
  assert "data.label_columns=NAME (it has path, diagnosis, reader, hospital, age)" in (
    found.info.advice
  )
  labelled = read(root, "path,diagnosis\n0.png,a\n1.png,b\n", label_columns="diagnosis")
  assert not noted(labelled, "not used") and labelled.info.advice == ""


def test_spellings_that_are_probably_one_are_told_with_their_counts(root):
  rows = zip(NAMES, ("Normal", "normal", "normal", "TB", "tb ", "2"), strict=True)
  found = read(root, "path,label\n" + "".join(f"{n},{v}\n" for n, v in rows))
  assert noted(found, "list.csv: 'normal' (2) and 'Normal' (1) are probably one class")
  assert noted(found, "'TB' (1) and 'tb' (1) are probably one class, and count as 2")
  people = read(root, "path,patient\n0.png,4711\n1.png,04711\n2.png,4711.0\n3.png,12\n")
  (note,) = noted(people, "probably spelt in several ways")
  assert "1 patients are" in note and "3 images) and count as 3" in note and "4711" not in note
  folders = root.parent / "folders"
  for name in ("train/Normal", "test/normal", "train/TB"):
    (folders / name).mkdir(parents=True)
    file = root / f"{zlib.crc32(name.encode()) % 6}.png"
    (folders / name / "1.png").write_bytes(file.read_bytes())
  assert noted(open_source(f"folder:{folders}", split="all"), "probably one class")


def test_what_spellings_have_in_common():
  for one, *others in (
    ("7", "7.0", "007", "7."),
    ("Normal", "normal", " NORMAL "),
    ("No Finding", "no_finding"),
    ("\xdcber", unicodedata.normalize("NFD", "\xfcber")),
    ("0", "00", "0.0"),
  ):
    assert {spelling.fold(x) for x in others} == {spelling.fold(one)}
  for one, other in (
    ("7", "70"),
    ("1234567890123456789", "1234567890123456788"),
    ("7", "7.5"),
    ("a1", "a01"),
  ):
    assert spelling.fold(one) != spelling.fold(other)


def test_a_name_whose_letters_are_composed_otherwise_is_found(root, encode, texture):
  (root / "x").mkdir()
  for k, name in enumerate(("\xdcber.png", "x/\xe4.png")):
    (root / unicodedata.normalize("NFD", name)).write_bytes(encode(texture(24, 30, seed=9 + k)))
  found = read(
    root, unicodedata.normalize("NFC", "path,label\n\xdcber.png,a\n\xe4.png,a\n0.png,b\n")
  )  # the second without its folder
  assert len(found) == 3 and not found.info.skipped


def test_only_the_roots_own_folders_are_left_out_of_a_path(root):
  for path in ("set/0.png", f"{root.parent.name}/set/0.png", "set/0"):
    assert read(root, f"path,label\n{path},a\n").table.ids == ("0.png",)
  found = read(root, "path,label\nother/0.png,a\nhttps://a.b/set/1.png,b\n2.png,c\n")
  assert found.table.ids == ("2.png",) and len(found.info.skipped) == 2


def test_files_that_are_no_images_are_counted_in_the_remarks(root):
  (root / "notes.txt").write_text("x")
  (root / "volume.nii.gz").write_bytes(b"x")
  found = read(root, "path,label\n0.png,a\n1.png,b\n")
  assert noted(found, "not images: 1 .txt (such as notes.txt), a document")
  assert noted(found, "not images: 1 .nii.gz (such as volume.nii.gz), a volume or raw pixels")
  assert not noted(found, "a table")  # the one that is read
  alone = open_source(f"folder:{root}", split="all")
  assert noted(alone, "not images: 1 .csv (such as list.csv), a table")
  assert (
    "data.csv=list.csv, its labels with data.label_columns=NAME and its patients with "
    "data.patient_column=NAME (it has the columns path, label)"
  ) in alone.info.advice


def test_a_class_that_only_one_patient_has_is_told(root):
  text = "path,label,patient\n0.png,a,1\n1.png,a,2\n2.png,b,3\n3.png,b,3\n4.png,c,4\n"
  assert noted(read(root, text), "2 of 3 classes consist of one patient each, such as 'b'")
  assert not noted(read(root, text.replace(",patient", ",x")), "of one patient")


def test_a_class_that_one_split_lacks_is_told(root):
  found = read(root, "path,label,split\n0.png,a,train\n1.png,b,train\n2.png,a,test\n3.png,c,test\n")
  assert noted(found, "class 'b' occurs only in the split 'train'")
  assert noted(found, "class 'c' occurs only in the split 'test'") and not noted(found, "class 'a'")

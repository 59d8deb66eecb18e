"""PadChest: 16-bit images in numbered archives, terms as Python lists."""

import gzip
import re
import sys

import made_sets
import numpy as np
import pytest
import tensorflow_datasets as tfds

from cxrjax.data.sources import tfds_prepare

builder = tfds_prepare.builder_class("padchest")
module = sys.modules[builder.__module__]

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
HEAD = (
  ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,"
  "ViewPosition_DICOM,Projection,MethodProjection,PhotometricInterpretation_DICOM,"
  "Report,MethodLabel,Labels"
)
DIRS = ("0", "1", "50", "54")
N = 64
TERMS = (
  ["normal"],
  ["cardiomegaly", " pleural effusion"],
  ["pericardial effusion", "pseudonodule"],
  ["  rib fracture", "NSG tube ", "tuberculosis"],
  ["unchanged"],
  [],
  ["unchanged", "nodule"],
  ["atypical pneumonia", "alveolar pattern"],
)
FOUND = (
  {"No Finding"},
  {"Cardiomegaly", "Effusion"},
  set(),
  {"Fracture", "Tube", "Tuberculosis"},
  None,
  None,
  {"Nodule"},
  {"Pneumonia", "Infiltration"},
)
VIEWS = ("PA", "L", "AP", "AP_horizontal", "COSTAL")


def name(i):
  return f"21684011136696401{i:04d}_00-{i:03d}-001.png"


def patient(i):
  return f"{i // 2:08d}x"


def line(i, **changed):
  cells = {
    "ImageID": name(i),
    "ImageDir": DIRS[i % 4],
    "StudyDate_DICOM": "20140512",
    "StudyID": f"s{i}",
    "PatientID": patient(i),
    "PatientBirth": "1950.0",
    "PatientSex_DICOM": ("M", "F", "None")[i % 3],
    "ViewPosition_DICOM": "POSTEROANTERIOR",
    "Projection": VIEWS[i % 5],
    "MethodProjection": "x",
    "PhotometricInterpretation_DICOM": "MONOCHROME1" if i % 7 == 3 else "MONOCHROME2",
    "Report": "torax sin",
    "MethodLabel": ("Physician", "RNN_model")[i % 2],
    "Labels": f'"{TERMS[i % 8]}"',
  } | changed
  return ",".join([str(i), *cells.values()])


def table(changed=None, rows=N):
  return made_sets.table(HEAD, *(line(i, **(changed or {}).get(i, {})) for i in range(rows)))


def image(i):
  return made_sets.encoded(i, bits=16)


def archives():
  found = {number: {} for number in DIRS}
  for i in range(N):
    found[DIRS[i % 4]][name(i)] = image(i)
  return found


def write(manual, data=None, held=None):
  made_sets.folder(manual, {TABLE: table() if data is None else data})
  for number, files in (held or archives()).items():
    made_sets.packed(manual / f"{number}.zip", files)


def check(manual):
  parts = {s: made_sets.prepare("padchest", manual, s) for s in ("train", "val", "test")}
  owners = [set(part.table.patients) for part in parts.values()]
  assert len(set.union(*owners)) == sum(map(len, owners)) == N // 2
  assert len(parts["train"]) > N / 2
  seen = []
  for part in parts.values():
    assert part.info.classes == tuple(sorted(module.LABELS)) and not part.info.skipped
    assert any("9 images that PadChest's table calls MONOCHROME1" in n for n in part.info.notes)
    for k, key in enumerate(part.table.ids):
      i = int(key[17:21])
      seen.append(key)
      expected = made_sets.pixels(i, 16)
      record = part[k]
      assert record.image.dtype == np.uint16
      np.testing.assert_array_equal(
        record.image[..., 0], 65535 - expected if i % 7 == 3 else expected
      )
      values = dict(zip(part.info.classes, part.table.labels[k], strict=True))
      if FOUND[i % 8] is None:
        assert np.isnan(list(values.values())).all()
      else:
        assert {c for c, v in values.items() if v == 1} == FOUND[i % 8]
        assert {c for c, v in values.items() if v == 0} == set(values) - FOUND[i % 8]
      assert part.table.patients[k] == patient(i) and part.table.ages[k] == 64
      assert part.table.views[k] == ("PA", "L", "AP", "AP", "")[i % 5]
      assert part.table.sexes[k] == ("M", "F", "")[i % 3]
  assert sorted(seen) == [name(i) for i in range(N)]
  return parts


def test_archives_and_folders_in_each_way(manual, tmp_path):
  write(manual)
  one = check(manual)
  numbered = {f"{number}/{n}": d for number, files in archives().items() for n, d in files.items()}
  flat = {f"images-224/{n}": d for files in archives().values() for n, d in files.items()}
  packed = {f"{TABLE}.gz": gzip.compress(table(), 1)}
  for k, held in enumerate(
    (
      numbered | packed,
      flat | packed,
      {f"PadChest/images/{n}": d for n, d in numbered.items()} | {f"PadChest/{TABLE}": table()},
    )
  ):
    other = made_sets.folder(tmp_path / str(k) / "manual", held)
    for split, part in check(other).items():
      assert part.info.fingerprint == one[split].info.fingerprint
  assert "tensorflow" not in sys.modules


def test_columns_of_its_own(manual):
  write(manual)
  made_sets.prepare("padchest", manual)
  made = tfds.builder_from_directory(str(manual.parent / "data" / "padchest" / "1.0.0"))
  for row in made.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()}):
    i = int(row["id"].decode()[17:21])
    assert [t.decode() for t in row["terms"]] == sorted(t.strip() for t in TERMS[i % 8])
    assert row["projection"].decode() == VIEWS[i % 5] and bool(row["by_physician"]) == (i % 2 == 0)
    assert bool(row["inverted"]) == (i % 7 == 3) and row["study"].decode() == f"s{i}"


def test_what_is_left_out_is_listed(manual):
  bad = {key: reason for key, reason in module.BAD.items() if "163-058" in key or "00-168" in key}
  assert len(module.BAD) == 21 and len(bad) == 2
  changed = {
    0: {"Projection": "EXCLUDE"},
    1: {"Labels": "\"['exclude', 'mass']\""},
    2: {"Labels": "\"['wizardry']\""},
    3: {"Labels": "['nod"},
    4: {"Labels": "nan"},
    5: {"Labels": "\"__import__('os').abort()\""},
  }
  changed |= {6 + k: {"ImageID": key} for k, key in enumerate(bad)}
  held = archives()
  del held["50"][name(10)]
  held["0"][name(12)] = held["0"][name(12)][:-100]
  held["0"]["stranger.png"] = image(0)
  held["1"][next(key for key in bad if "00-168" in key)] = b"?"
  for i in (6, 7):
    del held[DIRS[i % 4]][name(i)]
  write(manual, table(changed), held)
  part = made_sets.prepare("padchest", manual, "all")
  assert len(part) == N - 7
  assert dict(part.info.skipped) == bad | {
    name(0): "PadChest's readers marked it as of no use (exclude)",
    name(1): "PadChest's readers marked it as of no use (exclude)",
    name(2): "its report has a term that is not PadChest's: 'wizardry'",
    name(10): "it is listed, but not there",
    name(12): "it is cut short",
    "stranger.png": "it is there, but in no list",
  }
  rows = dict(zip(part.table.ids, part.table.labels, strict=True))
  assert all(np.isnan(rows[name(i)]).all() for i in (3, 4, 5))


def test_terms_and_findings():
  assert len(module.TERMS) == 193 and len(module.LABELS) == 29
  assert all(module.MAKES[label] and module.MAKES[label] <= module.TERMS for label in module.LABELS)
  assert module.MAKES["Edema"] == {"pulmonary edema"}
  assert not module.MAKES["Tube"] & module.MAKES["Tuberculosis"]
  assert "loculated pleural effusion" in module.MAKES["Effusion"]
  deep = "[" * 3000 + "]" * 3000
  assert module._terms(deep) is None and module._terms("['a', 1]") is None
  assert module._terms("['  air   trapping', '']") == ["air trapping"]


@pytest.mark.parametrize(
  "spoil, word",
  [
    (lambda m: (m / TABLE).unlink(), "has no BIMCV-PadChest.*get it from https"),
    (lambda m: (m / "50.zip").unlink(), r"has no 50.zip .of the 4 archives.*: 50\); get"),
    (lambda m: write(m, held={d: {} for d in DIRS}), "images listed for .* only a part"),
    (lambda m: write(m, table().replace(b"PatientID", b"Patient")), "no column 'PatientID'; did"),
    (lambda m: write(m, table({3: {"Projection": "Z"}})), "line 5: Projection is 'Z'; valid: AP,"),
    (lambda m: write(m, table({3: {"ImageID": name(1)}})), "line 5 lists .* a second time"),
    (lambda m: write(m, table({3: {"ImageID": "../a.png"}})), "line 5: ImageID is '../a.png', not"),
    (
      lambda m: write(m, table({i: {"Labels": "\"['x']\""} for i in range(20)})),
      "terms that are not PadChest's, 20 images such as",
    ),
    (
      lambda m: (m / "1.zip").write_bytes((m / "1.zip").read_bytes()[:-60]),
      "1.zip is not a complete zip",
    ),
    (lambda m: write(m, table()[:-75]), "line 65 does not have the header's .* fields"),
    (lambda m: write(m, table(rows=50)), "14 images such as .* are in no list: the table is"),
  ],
)
def test_one_line_for_each_mistake(manual, spoil, word):
  write(manual)
  spoil(manual)
  assert re.search(word, made_sets.refused("padchest", manual))

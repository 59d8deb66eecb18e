"""The RSNA challenge's DICOM files, boxes and classes, in every layout they are found in."""

import importlib.util
import re
import sys
import uuid
import warnings

import dicoms
import made_sets
import numpy as np
import pytest
import tensorflow_datasets as tfds

from cxrjax.data.sources import tfds_prepare

NAME = "rsna_pneumonia"
builder = tfds_prepare.builder_class(NAME)
module = sys.modules[builder.__module__]

KEYS = [str(uuid.UUID(int=1000 + i)) for i in range(30)]
HIDDEN = [str(uuid.UUID(int=5000 + i)) for i in range(4)]
PARTS = ("train", "val", "test")
ROOT = "rsna-pneumonia-detection-challenge"


def kind(i):
  return module.CLASSES[i % 3]


def box_rows(i):
  """x, y, width, height, Target; an image of 17 x 20 pixels."""
  if i % 3 != 2:
    return [",,,,0"]
  return [f"{i % 5}.0,{k}.0,8.0,{k + 4}.0,1" for k in range(1 + i % 2)]


def image(i, **fields):
  """As in the challenge, where the age and the sex are all one learns of a patient."""
  fields = {
    "Modality": "CR",
    "PatientAge": ("51", "155")[i % 9 == 0],
    "PatientSex": "MF"[i % 2],
    "ViewPosition": ("PA", "AP")[i % 2],
  } | fields
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pydicom's: an age without a unit
    return dicoms.dicom(made_sets.pixels(i), **fields)


def tables():
  rows = [(key, i, row) for i, key in enumerate(KEYS) for row in box_rows(i)]
  return {
    "stage_2_train_labels.csv": made_sets.table(
      "patientId,x,y,width,height,Target", *(f"{key},{row}" for key, _, row in rows)
    ),
    "stage_2_detailed_class_info.csv": made_sets.table(
      "patientId,class", *(f"{key},{kind(i)}" for key, i, _ in rows)
    ),
    "stage_2_sample_submission.csv": made_sets.table(
      "patientId,PredictionString", *(f"{key},0.5 0 0 100 100" for key in HIDDEN)
    ),
  }


def images(folder=True):
  test = {f"stage_2_test_images/{key}.dcm": image(100 + i) for i, key in enumerate(HIDDEN)}
  return {f"stage_2_train_images/{key}.dcm": image(i) for i, key in enumerate(KEYS)} | test


def files():
  return tables() | images()


def check(manual, data="data"):
  """Every image with its pixels, classes and what its header may say, in one split."""
  parts = {s: made_sets.prepare(NAME, manual, s, data) for s in (*PARTS, "unlabelled")}
  assert sorted(key for s in PARTS for key in parts[s].table.ids) == KEYS
  assert sorted(parts["unlabelled"].table.ids) == HIDDEN
  assert len(parts["train"]) > len(parts["test"]) > len(parts["val"]) > 0
  for split, part in parts.items():
    assert part.info.classes == module.CLASSES and not any(part.table.patients)
    for k, key in enumerate(part.table.ids):
      i = 100 + HIDDEN.index(key) if split == "unlabelled" else KEYS.index(key)
      record = part[k]
      np.testing.assert_array_equal(record.image[..., 0], made_sets.pixels(i))
      assert record.image.dtype == np.uint8 and record.window is None
      expected = [np.nan] * 3 if split == "unlabelled" else [c == kind(i) for c in module.CLASSES]
      np.testing.assert_array_equal(part.table.labels[k], np.array(expected, np.float32))
      assert (part.table.sexes[k], part.table.views[k]) == ("MF"[i % 2], ("PA", "AP")[i % 2])
      np.testing.assert_equal(part.table.ages[k], np.nan if i % 9 == 0 else 51)
    assert not part.info.skipped and any("patients unknown" in n for n in part.info.notes)
    found = made_sets.prepare(NAME, manual, split, data, label="Pneumonia").table
    expected = [np.nan if split == "unlabelled" else KEYS.index(k) % 3 == 2 for k in found.ids]
    np.testing.assert_array_equal(found.labels[:, 0], np.array(expected, np.float32))
  return parts


def records(manual, data="data", split="all"):
  made = tfds.builder_from_directory(str(manual.parent / data / NAME / "1.0.0"))
  splits = "+".join(made.info.splits) if split == "all" else split
  return made, {
    r["id"].decode(): r
    for r in made.as_data_source(splits, decoders={"image": tfds.decode.SkipDecoding()})
  }


def test_zip(manual):
  made_sets.packed(manual / f"{ROOT}.zip", files() | {"GCP Credits Request Link - RSNA.txt": b"?"})
  check(manual)
  assert "tensorflow" not in sys.modules
  made, found = records(manual)
  for i, key in enumerate(KEYS):
    boxes = found[key]["boxes"]
    x, height = i % 5, [k + 4 for k in range(1 + i % 2)]
    expected = [[k / 20, x / 17, (k + h) / 20, (x + 8) / 17] for k, h in enumerate(height)]
    if i % 3 == 2:
      np.testing.assert_allclose(boxes["box"], expected, atol=1e-6)
    else:
      assert len(boxes["box"]) == 0
  assert "Shih" in made.info.citation and "26,684" in made.info.description


def test_unpacked_in_each_way_gives_the_same(manual, tmp_path):
  made_sets.packed(manual / f"{ROOT}.zip", files())
  one = check(manual)
  flat, deep, pieces = (tmp_path / n / "manual" for n in ("flat", "deep", "pieces"))
  made_sets.folder(flat, files())
  made_sets.folder(deep, {f"{ROOT}/{name}": data for name, data in files().items()})
  # In pieces, as the challenge was first published: images and a table in zips; one of them
  # unpacked as well.
  labels = "stage_2_train_labels.csv"
  made_sets.folder(pieces, {name: data for name, data in tables().items() if name != labels})
  made_sets.packed(pieces / f"{labels}.zip", {labels: tables()[labels]})
  for name in ("stage_2_train_images", "stage_2_test_images"):
    held = {n.split("/")[1]: data for n, data in images().items() if n.startswith(name)}
    made_sets.packed(pieces / f"{name}.zip", held)
  made_sets.folder(pieces, {n: data for n, data in images().items() if "test" in n})
  for other in (flat, deep, pieces):
    for split, part in check(other).items():
      assert part.info.fingerprint == one[split].info.fingerprint


def test_nothing_that_tells_who_somebody_is_is_kept(manual):
  made_sets.packed(manual / f"{ROOT}.zip", files())
  made_sets.prepare(NAME, manual)
  kept = [f for f in manual.parent.rglob("*") if f.is_file() and manual not in f.parents]
  assert len(kept) > 5
  for file in kept:
    assert not [s for s in dicoms.SECRETS.values() if s.encode() in file.read_bytes()]


def test_without_the_images_of_test(manual):
  held = {n: d for n, d in files().items() if "test_images" not in n}
  made_sets.packed(manual / f"{ROOT}.zip", held)
  part = made_sets.prepare(NAME, manual)
  assert set(part.info.splits) == set(PARTS)
  assert any("without labels, were not there" in note for note in part.info.notes)


def test_images_of_test_that_no_table_names_are_those_there(manual):
  held = {n: d for n, d in files().items() if "submission" not in n}
  made_sets.packed(manual / f"{ROOT}.zip", held)
  assert sorted(made_sets.prepare(NAME, manual, "unlabelled").table.ids) == HIDDEN


def test_absent_unlisted_and_broken_images_are_listed(manual):
  held, folder = files(), "stage_2_train_images"
  gone, cut, other, film, *_ = KEYS
  del held[f"{folder}/{gone}.dcm"], held[f"stage_2_test_images/{HIDDEN[0]}.dcm"]
  held[f"{folder}/{cut}.dcm"] = held[f"{folder}/{cut}.dcm"][:-40]
  held[f"{folder}/{other}.dcm"] = image(2, Modality="CT")
  held[f"{folder}/{film}.dcm"] = made_sets.encoded(3)
  new = str(uuid.UUID(int=9))
  held[f"{folder}/{new}.dcm"] = held[f"../{folder}/{new}.dcm"] = image(9)
  made_sets.packed(manual / f"{ROOT}.zip", held)
  part = made_sets.prepare(NAME, manual, "train+val+test")
  assert sorted(part.table.ids) == KEYS[4:]
  left = dict(part.info.skipped)
  assert set(left) == {gone, cut, other, film, new, HIDDEN[0]}
  assert left[gone] == left[HIDDEN[0]] == "it is listed, but not there"
  assert "cut short" in left[cut] and "modality CT" in left[other]
  assert "not a DICOM" in left[film] and left[new] == "it is there, but in no list"
  assert made_sets.prepare(NAME, manual, "train").info.skipped == part.info.skipped


def edited(name, change):
  held = files()
  held[name] = change(held[name])
  return held


LABELS, INFO = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"


@pytest.mark.parametrize(
  "held, word",
  [
    (
      lambda: {"notes.txt": b""},
      "has no stage_2_train_labels.csv: another data set, or only a part",
    ),
    (
      lambda: {n.replace("stage_2", "stage_1"): d for n, d in files().items()},
      "no stage_2_train_l",
    ),
    (lambda: {n: d for n, d in files().items() if n != INFO}, "has no stage_2_detailed_class_info"),
    (lambda: tables(), "has no images in it"),
    (
      lambda: {n: d for n, d in files().items() if "train_images" not in n},
      r"0 of the \d+ images listed for train are there",
    ),
    (
      lambda: edited(LABELS, lambda d: d.replace(b"Target", b"target")),
      "train_labels.csv has no column 'Target'; did you mean 'target'",
    ),
    (
      lambda: edited(LABELS, lambda d: d.replace(b",0\n", b",2\n", 1)),
      "line 2: Target is '2', not",
    ),
    (
      lambda: edited(LABELS, lambda d: d.replace(b"8.0", b"wide", 1)),
      "line 4: the box is not four",
    ),
    (
      lambda: edited(LABELS, lambda d: d.replace(b"8.0", b"", 1)),
      "line 4: the box is not four num",
    ),
    (lambda: edited(LABELS, lambda d: d + f"{KEYS[0]},,,,,0".encode()), "a second time"),
    (
      lambda: edited(LABELS, lambda d: d + f"{KEYS[0]},1,1,1,1,1".encode()),
      "with pneumonia and wit",
    ),
    (
      lambda: edited(LABELS, lambda d: d + f"{KEYS[2]},,,,,0".encode()),
      "with pneumonia and without",
    ),
    (
      lambda: edited(LABELS, lambda d: d + b"../x,,,,,0"),
      "patientId '../x' is not of this data set",
    ),
    (lambda: edited(LABELS, lambda d: d[:-4]), r"line \d+ does not have the header's .* fields"),
    (
      lambda: edited(INFO, lambda d: d.replace(b",Normal", b",Normall", 1)),
      "info.csv line 2: 'Normall' is not a class of this set; did you mean 'Normal'",
    ),
    (
      lambda: edited(INFO, lambda d: d.replace(b",Normal", b",Lung Opacity", 1)),
      "line 2: .* is 'Lung Opacity', and in stage_2_train_labels.csv it has 0 boxes",
    ),
    (
      lambda: edited(INFO, lambda d: d + f"{KEYS[0]},Lung Opacity".encode()),
      "is 'Lung Opacity' here and 'Normal' above",
    ),
    (
      lambda: edited(INFO, lambda d: d + f"{HIDDEN[0]},Normal".encode()),
      "is not in stage_2_train_l",
    ),
    (lambda: edited(INFO, lambda d: b"\n".join(d.splitlines()[:-2])), f"does not have {KEYS[-1]}"),
  ],
)
def test_one_line_for_each_mistake(manual, held, word):
  made_sets.packed(manual / f"{ROOT}.zip", held())
  assert re.search(word, made_sets.refused(NAME, manual))


def test_archives_that_are_not_there_or_not_whole(manual):
  (manual / "notes.txt").write_text("?")
  assert "has no rsna-pneumonia*" in made_sets.refused(NAME, manual)
  path = made_sets.packed(manual / f"{ROOT}.zip", files())
  path.write_bytes(path.read_bytes()[:-30])
  assert f"{ROOT}.zip is not a complete zip" in made_sets.refused(NAME, manual)


@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="no apache_beam")
@pytest.mark.filterwarnings("ignore")
def test_beam_gives_the_same(manual):
  import apache_beam as beam

  made_sets.folder(manual, files())
  one = made_sets.prepare(NAME, manual, "all")
  made = builder(data_dir=str(manual.parent / "beam"), file_format="array_record")
  made.download_and_prepare(
    download_config=tfds.download.DownloadConfig(
      manual_dir=str(manual), beam_runner=beam.runners.DirectRunner()
    )
  )
  other = made_sets.prepare(NAME, manual, "all", "beam")
  assert other.table.ids == one.table.ids and other.info.fingerprint == one.info.fingerprint


@pytest.mark.full
def test_tfds_build(manual):
  made_sets.packed(manual / f"{ROOT}.zip", files())
  made_sets.command(NAME, manual, manual.parent / "built")
  built = made_sets.prepare(NAME, manual, "all", "built")
  assert built.info.fingerprint == made_sets.prepare(NAME, manual, "all").info.fingerprint

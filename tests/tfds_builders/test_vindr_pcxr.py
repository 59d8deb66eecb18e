"""VinDr-PCXR: children's DICOM files, fifteen diagnoses, boxes of findings."""

import re
import sys

import dicoms
import made_sets
import numpy as np
import pytest
import tensorflow_datasets as tfds

from cxrjax.data.sources import tfds_prepare

NAME = "vindr_pcxr"
builder = tfds_prepare.builder_class(NAME)
module = sys.modules[builder.__module__]

KEYS = {"train": [f"{i:032x}" for i in range(1, 17)], "test": [f"{i:032x}" for i in range(65, 71)]}
ROOT = (
  "vindr-pcxr-an-open-large-scale-pediatric-chest-x-ray-dataset-for-interpretation-of-common-"
  "thoracic-diseases-1.0.0"
)
AGES = {"003Y": 3, "010M": 10 / 12, "026W": 26 * 7 / 365.25, "020D": 20 / 365.25, None: np.nan}


def number(key):
  return int(key, 16)


def present(key, name):
  return (number(key) + module.LABELS.index(name)) % 5 == 0


def drawn(key):
  """Findings with boxes, of an image of 17 x 20 pixels; the last lies outside of it."""
  i = number(key)
  if i % 4 == 0:
    return []
  return [
    (module.FINDINGS[i % 36], (2, 3, 9, 12)),
    (module.FINDINGS[(i + 7) % 36], (-3, 5, 8, 50)),
    ("Other nodule/mass", (30, 5, 40, 9)),
  ]


def age(key):
  return list(AGES)[number(key) % 5]


def image(key, **fields):
  i = number(key)
  kind = "MONOCHROME1" if i % 3 == 0 else "MONOCHROME2"
  fields = {
    "PatientAge": age(key),
    "PatientSex": ("F", "M", "O", None)[i % 4],
    "ViewPosition": None,
    "PhotometricInterpretation": kind,
    "PatientID": None,
  } | fields
  return dicoms.dicom(made_sets.pixels(i, 16) >> 4, bits=12, **fields)


def tables(reader="rad_ID"):
  found = {}
  for split, keys in KEYS.items():
    head = ",".join(["image_id", *([reader] if reader else []), *module.LABELS])
    who = ["R2"] if reader else []
    found[f"image_labels_{split}.csv"] = made_sets.table(
      head,
      *(
        ",".join([key, *who, *(str(int(present(key, name))) for name in module.LABELS)])
        for key in keys
      ),
    )
    rows = []
    for key in keys[:-1]:  # the last has no annotation
      rows += [",".join([key, *who, name, *map(str, box)]) for name, box in drawn(key)] or [
        ",".join([key, *who, "No finding", "", "", "", ""])
      ]
    found[f"annotations_{split}.csv"] = made_sets.table(
      ",".join(["image_id", *([reader] if reader else []), "class_name,x_min,y_min,x_max,y_max"]),
      *rows,
    )
  return found


def images():
  return {f"{split}/{key}.dicom": image(key) for split, keys in KEYS.items() for key in keys}


def files():
  return tables() | images()


def check(manual):
  """Every image with pixels, diagnoses, findings, and what its header may say."""
  parts = {split: made_sets.prepare(NAME, manual, split) for split in KEYS}
  assert set(parts["train"].info.splits) == set(KEYS)
  for split, part in parts.items():
    assert sorted(part.table.ids) == KEYS[split]
    assert part.info.classes == tuple(sorted(module.LABELS)) and not part.info.exclusive
    found = made_sets.prepare(NAME, manual, split, label="findings")
    assert found.info.classes == tuple(sorted(module.FINDINGS))
    assert found.table.ids == part.table.ids
    for k, key in enumerate(part.table.ids):
      pixels = made_sets.pixels(number(key), 16) >> 4
      pixels = 4095 - pixels if number(key) % 3 == 0 else pixels
      np.testing.assert_array_equal(part[k].image[..., 0], pixels)
      assert part.table.labels[k].tolist() == [present(key, n) for n in part.info.classes]
      its = {name for name, _ in drawn(key)}
      expected = [np.nan if key == KEYS[split][-1] else name in its for name in found.info.classes]
      np.testing.assert_array_equal(found.table.labels[k], np.array(expected, np.float32))
      np.testing.assert_allclose(part.table.ages[k], AGES[age(key)], rtol=1e-6)
      assert part.table.sexes[k] == ("F", "M", "", "")[number(key) % 4]
      assert part.table.views[k] == "PA" and part.table.patients[k] == ""
    assert not part.info.skipped
  return parts


def test_zip(manual):
  made_sets.packed(manual / f"{ROOT}.zip", {f"{ROOT}/{n}": d for n, d in files().items()})
  check(manual)
  assert "tensorflow" not in sys.modules
  made = tfds.builder_from_directory(str(manual.parent / "data" / NAME / "1.0.0"))
  for record in made.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()}):
    its, boxes = drawn(record["id"].decode()), record["boxes"]
    if record["id"].decode() == KEYS["train"][-1]:
      its = []
    assert [module.FINDINGS[k] for k in boxes["label"]] == [name for name, _ in its[:2]]
    if its:  # the one outside is left out
      np.testing.assert_allclose(
        boxes["box"], [[3 / 20, 2 / 17, 12 / 20, 9 / 17], [5 / 20, 0, 1, 8 / 17]], atol=1e-6
      )
      assert list(boxes["reader"]) == [b"R2", b"R2"]
  assert "PediCXR" in made.info.citation and "9,125" in made.info.description


@pytest.mark.parametrize("reader", ["rad_ID", "rad_id", ""])
def test_unpacked_in_each_way(manual, reader):
  root = {"rad_ID": f"{ROOT}/", "rad_id": "", "": "physionet.org/files/vindr-pcxr/1.0.0/"}[reader]
  made_sets.folder(manual, {f"{root}{n}": d for n, d in (tables(reader) | images()).items()})
  check(manual)


def test_nothing_that_tells_who_somebody_is_is_kept(manual):
  made_sets.packed(manual / f"{ROOT}.zip", files())
  made_sets.prepare(NAME, manual)
  for file in manual.parent.rglob("*"):
    if file.is_file() and manual not in file.parents:
      assert not [s for s in dicoms.SECRETS.values() if s.encode() in file.read_bytes()]


def test_absent_unlisted_and_broken_images_are_listed(manual):
  held, (gone, cut, other, *_) = files(), KEYS["train"]
  del held[f"train/{gone}.dicom"]
  held[f"train/{cut}.dicom"] = held[f"train/{cut}.dicom"][:-100]
  held[f"train/{other}.dicom"] = image(other, NumberOfFrames=2)
  new = f"{900:032x}"
  held[f"train/{new}.dicom"] = held[f"../train/{new}.dicom"] = image(new)
  made_sets.packed(manual / f"{ROOT}.zip", held)
  part = made_sets.prepare(NAME, manual)
  assert sorted(part.table.ids) == KEYS["train"][3:]
  left = dict(part.info.skipped)
  assert "cut short" in left.pop(cut) and "2 frames" in left.pop(other)
  assert left == {gone: "it is listed, but not there", new: "it is there, but in no list"}


def edited(name, change):
  held = files()
  held[name] = change(held[name])
  return held


LABELS, DRAWN = "image_labels_train.csv", "annotations_train.csv"


@pytest.mark.parametrize(
  "held, word",
  [
    (lambda: {"notes.txt": b""}, "has no image_labels_train.csv: another data set, or only a part"),
    (lambda: {n: d for n, d in files().items() if n != DRAWN}, "has no annotations_train.csv"),
    (tables, "has no images in it"),
    (
      lambda: {n: d for n, d in files().items() if not n.startswith("train/")},
      "0 of the 16 images listed for train are there",
    ),
    (
      lambda: edited(LABELS, lambda d: d.replace(b"Brocho-", b"Broncho-")),
      "image_labels_train.csv has no column 'Brocho-pneumonia'; did you mean 'Broncho-pneumonia'",
    ),
    (lambda: edited(LABELS, lambda d: b"image_id,labels\nx,[0 1]\n"), "has no column 'No finding'"),
    (
      lambda: edited(LABELS, lambda d: b"image_id,rad_id,Aortic enlargement\nx,R1,0\n"),
      "image_labels_train.csv is of VinDr-CXR: prepare tfds:vindr_cxr",
    ),
    (
      lambda: edited(LABELS, lambda d: d.replace(b"R2,0,", b"R2,maybe,", 1)),
      "line 2: No finding is 'maybe', not",
    ),
    (lambda: edited(LABELS, lambda d: d.replace(b"R2,0,", b"R2,,", 1)), "line 2: No finding is ''"),
    (lambda: edited(LABELS, lambda d: d + d.splitlines()[1]), "line 18 lists 0+1 a second time"),
    (lambda: edited(LABELS, lambda d: d[:-9]), r"line 17: CPAM is '', not"),
    (
      lambda: edited(DRAWN, lambda d: d.replace(b"Other nodule/mass", b"Other nodule", 1)),
      "annotations_train.csv line 4: 'Other nodule' is not a finding of this set; did you mean",
    ),
    (lambda: edited(DRAWN, lambda d: d.replace(b",2,3,", b",2,x,", 1)), "line 2: the box is not"),
    (
      lambda: edited(DRAWN, lambda d: d.replace(KEYS["train"][0].encode(), b"x", 1)),
      "annotations_train.csv names x, which is not in image_labels_train.csv",
    ),
  ],
)
def test_one_line_for_each_mistake(manual, held, word):
  made_sets.packed(manual / f"{ROOT}.zip", held())
  assert re.search(word, made_sets.refused(NAME, manual))


def test_archives_that_are_not_there_or_not_whole(manual):
  (manual / "notes.txt").write_text("?")
  assert "has no vindr-pcxr*" in made_sets.refused(NAME, manual)
  path = made_sets.packed(manual / f"{ROOT}.zip", files())
  path.write_bytes(path.read_bytes()[:-30])
  assert "is not a complete zip" in made_sets.refused(NAME, manual)


@pytest.mark.full
def test_tfds_build(manual):
  made_sets.packed(manual / f"{ROOT}.zip", files())
  made_sets.command(NAME, manual, manual.parent / "built")
  built = made_sets.prepare(NAME, manual, "all", "built")
  assert built.info.fingerprint == made_sets.prepare(NAME, manual, "all").info.fingerprint

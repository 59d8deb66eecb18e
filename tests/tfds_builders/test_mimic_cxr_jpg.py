"""MIMIC-CXR-JPG: tables of images and of studies, joined."""

import gzip
import hashlib
import re
import sys

import made_sets
import numpy as np
import pytest

from cxrjax.data.sources import tfds_prepare

builder = tfds_prepare.builder_class("mimic_cxr_jpg")
module = sys.modules[builder.__module__]

ROOT = "physionet.org/files/mimic-cxr-jpg/2.1.0"
LABELS = ",".join(module.LABELS)
VALUES = ("1.0", "0.0", "-1.0", "")
VIEWS = ("PA", "AP", "LATERAL", "LL", "", "AP AXIAL")
SUBJECTS = {
  10000000 + 1000000 * k + 32 + s: ("train", "train", "test", "validate")[(k + s) % 4]
  for k in range(10)
  for s in range(2)
}


def images():
  """Subject, study and name of two images of each study; each subject has two studies."""
  for n, subject in enumerate(SUBJECTS):
    for study in (50000000 + 2 * n, 50000001 + 2 * n):
      for i in range(2):
        digits = hashlib.sha256(f"{subject}{study}{i}".encode()).hexdigest()
        yield str(subject), str(study), "-".join(digits[k : k + 8] for k in range(0, 40, 8))


IMAGES = list(images())
KEYS = [key for _, _, key in IMAGES]
STUDIES = list(dict.fromkeys((subject, study) for subject, study, _ in IMAGES))


def values(i, reader):
  return [VALUES[(i + k * (reader + 1)) % 4] for k in range(14)]


def image(key):
  return made_sets.encoded(KEYS.index(key), kind="JPEG")


def path(i):
  subject, study, key = IMAGES[i]
  return f"{ROOT}/files/p{subject[:2]}/p{subject}/s{study}/{key}.jpg"


def tables():
  labelled = STUDIES[:-1]  # some studies have no label
  head = "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns"
  found = {
    "metadata": made_sets.table(
      head,
      *(
        f"{key},{subject},{study},CHEST,{VIEWS[i % 6]},2544,3056"
        for i, (subject, study, key) in enumerate(IMAGES)
      ),
    ),
    "split": made_sets.table(
      "dicom_id,study_id,subject_id,split",
      *(f"{key},{study},{subject},{SUBJECTS[int(subject)]}" for subject, study, key in IMAGES),
    ),
    **{
      kind: made_sets.table(
        f"subject_id,study_id,{LABELS}",
        *(",".join([*study, *values(i, reader)]) for i, study in enumerate(labelled)),
      )
      for reader, kind in enumerate(("chexpert", "negbio"))
    },
  }
  return {f"mimic-cxr-2.0.0-{kind}.csv": data for kind, data in found.items()}


def experts():
  names = [
    name.replace("Lung Opacity", "Airspace Opacity")
    for name in module.LABELS
    if name != "No Finding"
  ]
  return made_sets.table(
    ",".join(["study_id", *names]),
    *(
      ",".join([study, *(["1.0", "0.0"] * 7)[:13]])
      for subject, study in STUDIES
      if SUBJECTS[int(subject)] == "test"
    ),
  )


def release(packed=True, new=True, **changed):
  """A release, `changed` tables of it, from the root of what `wget` leaves on."""
  found = {path(i): image(key) for i, key in enumerate(KEYS)}
  for name, data in tables().items():
    kind = name.split("-")[-1].removesuffix(".csv")
    data = changed.get(kind, lambda d: d)(data)
    found[f"{ROOT}/{name}{'.gz' * packed}"] = gzip.compress(data, 1) if packed else data
  if new:
    found[f"{ROOT}/mimic-cxr-2.1.0-test-set-labeled.csv"] = experts()
  found[f"{ROOT}/IMAGE_FILENAMES"] = b"files/..."
  return found


def as_labels(texts, order):
  given = dict(zip(module.LABELS, texts, strict=True))
  return [{"1.0": 1, "0.0": 0}.get(given[name], np.nan) for name in order]


def check(manual):
  parts = {s: made_sets.prepare("mimic_cxr_jpg", manual, s) for s in ("train", "val", "test")}
  order = sorted(module.LABELS)
  owners = [set(part.table.patients) for part in parts.values()]
  assert len(set.union(*owners)) == sum(map(len, owners)) == len(SUBJECTS)
  assert sorted(key for part in parts.values() for key in part.table.ids) == sorted(KEYS)
  for split, part in parts.items():
    assert part.info.classes == tuple(order) and not part.info.skipped
    for k, key in enumerate(part.table.ids):
      i = KEYS.index(key)
      subject, study, _ = IMAGES[i]
      np.testing.assert_array_equal(part[k].image, made_sets.decoded(image(key)))
      assert part.table.patients[k] == subject
      assert SUBJECTS[int(subject)] == {"val": "validate"}.get(split, split)
      assert part.table.views[k] == ("PA", "AP", "L", "L", "", "")[i % 6]
      n = STUDIES.index((subject, study))
      expected = as_labels(values(n, 0) if n < len(STUDIES) - 1 else [""] * 14, order)
      np.testing.assert_array_equal(part.table.labels[k], expected)
  return parts


def test_as_wget_leaves_it_as_a_folder_and_as_a_zip(manual, tmp_path):
  one = check(made_sets.folder(manual, release()).parent / "manual")
  held = {name.removeprefix(f"{ROOT}/"): data for name, data in release(packed=False).items()}
  bare = made_sets.folder(tmp_path / "bare" / "manual", held)
  other = tmp_path / "zip" / "manual"
  made_sets.packed(other / "mimic-cxr-jpg-2.1.0.zip", held)
  for place in (bare, other):
    for split, part in check(place).items():
      assert part.info.fingerprint == one[split].info.fingerprint
  assert "tensorflow" not in sys.modules


def test_other_readers(manual):
  made_sets.folder(manual, release())
  test = made_sets.prepare("mimic_cxr_jpg", manual, "test", label="negbio")
  order = sorted(module.LABELS)
  assert test.info.classes == tuple(order)
  for k, key in enumerate(test.table.ids):
    n = STUDIES.index(IMAGES[KEYS.index(key)][:2])
    texts = values(n, 1) if n < len(STUDIES) - 1 else [""] * 14
    np.testing.assert_array_equal(test.table.labels[k], as_labels(texts, order))
  by_hand = made_sets.prepare("mimic_cxr_jpg", manual, "test", label="radiologist")
  names = [name for name in module.LABELS if name != "No Finding"]
  given = dict(zip(names, [1, 0] * 7, strict=False)) | {"No Finding": np.nan}
  for row in by_hand.table.labels:
    np.testing.assert_array_equal(row, [given[name] for name in order])
  train = made_sets.prepare("mimic_cxr_jpg", manual, "train", label="radiologist")
  assert np.isnan(train.table.labels).all()


def test_release_2_0_0(manual):
  made_sets.folder(
    manual, {name.replace("2.1.0", "2.0.0"): data for name, data in release(new=False).items()}
  )
  part = check(manual)["test"]
  assert any("radiologists" in note for note in part.info.notes)


def test_absent_unlisted_and_broken_images_are_listed(manual):
  held = release()
  del held[path(0)]
  held[path(5)] = held[path(5)][:-9]
  new = "0" * 8 + "-00000000" * 4
  held[f"{ROOT}/files/p10/p10000032/s50000000/{new}.jpg"] = image(KEYS[0])
  made_sets.folder(manual, held)
  part = made_sets.prepare("mimic_cxr_jpg", manual, "all")
  assert len(part) == len(KEYS) - 2
  assert dict(part.info.skipped) == {
    KEYS[0]: "it is listed, but not there",
    KEYS[5]: "it is cut short",
    new: "it is there, but in no list",
  }


def without(*words):
  return lambda: {n: d for n, d in release().items() if not any(w in n for w in words)}


def again(line):
  return lambda data: data + data.splitlines()[line] + b"\n"


@pytest.mark.parametrize(
  "held, word",
  [
    (
      lambda: {"notes.txt": b"?"},
      "has no physionet.org/files/mimic-cxr-jpg/2.1.0.*get it from htt",
    ),
    (without("metadata"), "has no mimic-cxr-2.0.0-metadata.csv: another data set, or"),
    (without("negbio"), "has no mimic-cxr-2.0.0-negbio.csv"),
    (without("files/p13", "files/p17"), "has no images in files/p13 .of 2 such folders"),
    (without("s5000000", "s5000001", "s5000003"), "has no images in files/p1|only a part"),
    (
      lambda: release(chexpert=lambda d: d.replace(b"Edema", b"Oedema")),
      "chexpert.csv.gz has no column 'Edema'; did you mean 'Oedema'",
    ),
    (
      lambda: release(negbio=lambda d: d.replace(b",-1.0,", b",3.0,", 1)),
      "negbio.csv.gz line 2: .* is '3.0', not 1.0",
    ),
    (lambda: release(chexpert=again(1)), "chexpert.csv.gz line .* lists study 50000000 a second"),
    (lambda: release(split=again(1)), "split.csv.gz line .* lists .* a second time"),
    (lambda: release(metadata=again(1)), "metadata.csv.gz line .* lists .* a second time"),
    (
      lambda: release(split=lambda d: d.replace(b",train", b",trian", 1)),
      "split is 'trian'; did you mean 'train'",
    ),
    (
      lambda: release(split=lambda d: d.replace(b",train", b",test", 1)),
      "subject .* is in train and in test",
    ),
    (
      lambda: release(split=lambda d: d.replace(KEYS[0].encode(), b"x")),
      "dicom_id is 'x', not five",
    ),
    (lambda: release(split=lambda d: d[: d.index(KEYS[-1].encode())]), "is not in .*split.csv.gz"),
    (
      lambda: release(metadata=lambda d: d[: d.index(KEYS[-1].encode())]),
      "metadata.csv.gz does not",
    ),
    (
      lambda: release(metadata=lambda d: d.replace(b",10000032,", b",10000033,", 1)),
      "is of subject and study 10000033/",
    ),
  ],
)
def test_one_line_for_each_mistake(manual, held, word):
  made_sets.folder(manual, held())
  assert re.search(word, made_sets.refused("mimic_cxr_jpg", manual))


def test_a_damaged_table(manual):
  held = release()
  name = f"{ROOT}/mimic-cxr-2.0.0-split.csv.gz"
  held[name] = held[name][:-20]
  made_sets.folder(manual, held)
  assert "split.csv.gz is damaged" in made_sets.refused("mimic_cxr_jpg", manual)

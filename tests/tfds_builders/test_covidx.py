"""COVIDx CXR-3 and CXR-4, with the lists of COVID-Net's repository and without."""

import re
import sys

import made_sets
import numpy as np
import pytest
import tensorflow_datasets as tfds

from cxrjax.data.sources import tfds_prepare

NAME = "covidx"
builder = tfds_prepare.builder_class(NAME)
module = sys.modules[builder.__module__]

ENDS = ("png", "jpg", "jpeg", "JPG", "PNG")
SOURCES = ("ricord", "rnsa", "rsna", "bimcv")
SHARED = 3  # patients of test who are in train too
SIZES = {"train": 20, "val": 6, "test": 8}


def entries(split, lists="B"):
  """Patient, file, class, source; two images of each patient; the files of train have blanks."""
  found = []
  for i in range(SIZES[split]):
    patient = f"p{i // 2}" if split == "test" and i // 2 < SHARED else f"{split}-{i // 2}"
    name = (
      ("negative", "positive")[i % 2]
      if lists == "B"
      else ("COVID-19" if i % 2 else ("normal", "pneumonia")[i // 2 % 2])
    )
    blank = " " if split == "train" and i % 7 == 0 else "-"
    found.append((patient, f"{split}{blank}{i}.{ENDS[i % 5]}", name, SOURCES[i % 4]))
  if split == "train":
    found[:SHARED] = [(f"p{i}", *entry[1:]) for i, entry in enumerate(found[:SHARED])]
  return found


def text(split, lists="B", end="\n"):
  return end.join(" ".join(entry) for entry in entries(split, lists)).encode()


def image(split, i):
  kind = "PNG" if ENDS[i % 5].lower() == "png" else "JPEG"
  return made_sets.encoded(100 * len(split) + i, "RGB" if i % 3 == 0 else "L", kind)


def files(config="cxr4", test="test"):
  splits = list(SIZES) if config == "cxr4" else ["train", "test"]
  found = {f"{split}.txt": text(split) for split in splits}
  for split in splits:
    folder = test if split == "test" else split
    found |= {f"{folder}/{entry[1]}": image(split, i) for i, entry in enumerate(entries(split))}
  return found


def check(config, manual, refined=False):
  """Every image with its pixels, label, patient and source."""
  splits = {"train": "train", "test": "test"} | ({"val": "val"} if config == "cxr4" else {})
  parts = {s: made_sets.prepare(f"{NAME}/{config}", manual, s) for s in splits}
  assert set(parts["train"].info.splits) == set(splits)
  for split, part in parts.items():
    at = {entry[1]: i for i, entry in enumerate(entries(split))}
    assert sorted(key.split("/")[1] for key in part.table.ids) == sorted(at)
    assert part.info.classes == ("negative", "positive") and part.info.exclusive
    for k, key in enumerate(part.table.ids):
      i = at[key.split("/")[1]]
      patient, _, name, source = entries(split)[i]
      np.testing.assert_array_equal(part[k].image, made_sets.decoded(image(split, i)))
      assert part.table.labels[k].tolist() == [name == "negative", name == "positive"]
      assert part.table.patients[k] == patient
      assert part.table.sites[k] == ("rsna" if source == "rnsa" else source)
    assert not part.info.skipped
    diagnosed = made_sets.prepare(f"{NAME}/{config}", manual, split, label="diagnosis").table
    for k, key in enumerate(diagnosed.ids):
      i = at[key.split("/")[1]]
      expected = [np.nan] * 3
      if refined or i % 2:
        expected = [d == entries(split, "A")[i][2] for d in module.DIAGNOSES]
      np.testing.assert_array_equal(diagnosed.labels[k], np.array(expected, np.float32))
  return parts


@pytest.mark.parametrize("config", ["cxr3", "cxr4"])
def test_zip_and_folder(manual, tmp_path, config):
  made_sets.packed(manual / "archive.zip", files(config))
  one = check(config, manual)
  other = made_sets.folder(tmp_path / "other" / "manual", files(config))
  for split, part in check(config, other).items():
    assert part.info.fingerprint == one[split].info.fingerprint
  assert "tensorflow" not in sys.modules


def test_older_names_of_folders_and_lists(manual, tmp_path):
  found = files("cxr3", test="competition_test")
  for split in ("train", "test"):
    found[f"{split}_COVIDx9B.txt"] = found.pop(f"{split}.txt") + b"\n"
  made_sets.folder(manual / "COVIDx-CXR3", found)
  assert "competition_test/test-0.png" in check("cxr3", manual)["test"].table.ids
  other = tmp_path / "other" / "manual"  # 9A beside 9B tells normal from pneumonia
  found |= {f"labels/{s}_COVIDx9A.txt": text(s, "A", "\r\n") for s in ("train", "test")}
  made_sets.folder(other, found)
  check("cxr3", other, refined=True)
  alone = tmp_path / "alone" / "manual"
  made_sets.folder(
    alone,
    {n: d for n, d in found.items() if "_COVIDx9" not in n}
    | {f"{s}.txt": text(s, "A") for s in ("train", "test")},
  )
  both = made_sets.prepare(f"{NAME}/cxr3", alone, "train+test", label="diagnosis").table
  assert both.labels.sum(0).tolist() == [7, 7, 14]


def test_patients_in_two_splits_are_told(manual):
  made_sets.packed(manual / "archive.zip", files())
  part = made_sets.prepare(NAME, manual)
  assert "3 patient(s) are in train and in test, as published: p0, p1, p2" in part.info.notes
  test = made_sets.prepare(NAME, manual, "test")
  assert len(set(part.table.patients) & set(test.table.patients)) == SHARED
  val = made_sets.prepare(NAME, manual, "val")
  assert not set(val.table.patients) & set(part.table.patients + test.table.patients)


def test_absent_unlisted_and_broken_images_are_listed(manual):
  held = files()
  gone, cut, other = (f"train/{entries('train')[i][1]}" for i in (0, 5, 6))
  del held[gone]
  held[cut] = held[cut][:-40]
  held[other] = b"<html>not found</html>"
  held["train/new.png"] = held["../train/out.png"] = image("train", 0)
  held["__MACOSX/train/._x.png"] = b"?"
  made_sets.packed(manual / "covidx-cxr2.zip", held)
  part = made_sets.prepare(NAME, manual)
  assert len(part) == SIZES["train"] - 3
  left = dict(part.info.skipped)
  assert left.pop(cut) and left == {
    gone: "it is listed, but not there",
    other: "it is neither PNG nor JPEG",
    "train/new.png": "it is there, but in no list",
  }


def edited(name, change, config="cxr4"):
  held = files(config)
  held[name] = change(held[name])
  return held


@pytest.mark.parametrize(
  "config, held, word",
  [
    ("cxr4", lambda: {"notes.txt": b""}, "has no train.txt: only a part"),
    (
      "cxr4",
      lambda: files("cxr3"),
      "has no val.txt, so it is CXR-3 or older: prepare tfds:covidx/c",
    ),
    ("cxr3", lambda: files("cxr4"), "has val.txt, so it is CXR-4: prepare tfds:covidx/cxr4"),
    ("cxr4", lambda: {n: d for n, d in files().items() if n != "test.txt"}, "has no test.txt"),
    ("cxr4", lambda: {n: d for n, d in files().items() if "/" not in n}, "has no images in it"),
    (
      "cxr4",
      lambda: {n: d for n, d in files().items() if not n.startswith("val/")},
      "0 of the 6 images listed for validation are there, but not val/val-0.png in",
    ),
    (
      "cxr4",
      lambda: edited("val.txt", lambda d: d.replace(b"positive", b"Positive", 1)),
      "val.txt line 2: 'Positive' is not a class of this set; did you mean 'positive'",
    ),
    (
      "cxr4",
      lambda: edited("test.txt", lambda d: d[:-9]),
      r"test.txt line 8 is 'test-3 .* posit', not a patient",
    ),
    (
      "cxr4",
      lambda: edited("test.txt", lambda d: d + b"\np9 x.png"),
      "test.txt line 9 is 'p9 x.png', not a patient, a file, a class and a source",
    ),
    (
      "cxr4",
      lambda: edited("train.txt", lambda d: d.replace(b" train 0.png", b" ../x.png")),
      "line 1: '../x.png' is not a file name",
    ),
    (
      "cxr4",
      lambda: edited("test.txt", lambda d: d + b"\n" + d.splitlines()[0]),
      "test.txt line 9 lists test/test-0.png a second time",
    ),
  ],
)
def test_one_line_for_each_mistake(manual, config, held, word):
  made_sets.packed(manual / "archive.zip", held())
  assert re.search(word, made_sets.refused(f"{NAME}/{config}", manual))


def test_archives_that_are_not_there_or_not_whole(manual):
  (manual / "notes.txt").write_text("?")
  assert "has no covidx*" in made_sets.refused(NAME, manual)
  made_sets.packed(manual / "archive.zip", files())
  (manual / "archive.zip").write_bytes((manual / "archive.zip").read_bytes()[:-30])
  assert "archive.zip is not a complete zip" in made_sets.refused(NAME, manual)


def test_description(manual):
  made_sets.packed(manual / "archive.zip", files())
  made_sets.prepare(NAME, manual)
  made = tfds.builder_from_directory(str(manual.parent / "data" / NAME / "cxr4" / "1.0.0"))
  assert "COVID-Net" in made.info.citation and "84,818" in made.info.description


@pytest.mark.full
@pytest.mark.parametrize("config", ["cxr3", "cxr4"])
def test_tfds_build(manual, config):
  made_sets.packed(manual / "archive.zip", files(config))
  made_sets.command(NAME, manual, manual.parent / "built", f"--config={config}")
  built = made_sets.prepare(f"{NAME}/{config}", manual, "all", "built")
  assert (
    built.info.fingerprint == made_sets.prepare(f"{NAME}/{config}", manual, "all").info.fingerprint
  )

"""VinDr-CXR as PhysioNet and as Kaggle publish it: votes, consensus, boxes, deep DICOM files."""

import re
import sys

import dicoms
import made_sets
import numpy as np
import pytest
import tensorflow_datasets as tfds

from cxrjax.data import load_images
from cxrjax.data.sources import tfds_prepare

NAME = "vindr_cxr"
builder = tfds_prepare.builder_class(NAME)
module = sys.modules[builder.__module__]

TRAIN = [f"{i:032x}" for i in range(1, 31)]
TEST = [f"{i:032x}" for i in range(501, 507)]
READERS = ("R1", "R8", "R9")
BITS = (8, 10, 12, 14, 16)
PHYSIONET = "vindr-cxr-an-open-dataset-of-chest-x-rays-with-radiologists-annotations-1.0.0"
KAGGLE = "vinbigdata-chest-xray-abnormalities-detection"


def number(key):
  return int(key, 16)


def votes(key, name):
  """Which of the three readers found it: of the image's number and the label's."""
  i = number(key) + 3 * module.LABELS.index(name)
  return [(i >> k) % 2 for k in range(3)]


def consensus(key, name):
  return (number(key) + module.LABELS.index(name)) % 3 // 2


def stored(key):
  bits = BITS[number(key) % 5]
  return made_sets.pixels(number(key), 16) >> (16 - bits), bits


def image(key, **fields):
  """Some MONOCHROME1, some with a window; ages as the files have them."""
  i = number(key)
  pixels, bits = stored(key)
  if i % 3 == 0:
    fields = {"PhotometricInterpretation": "MONOCHROME1"} | fields
  if i % 2:
    fields = {"WindowCenter": 2.0 ** (bits - 1), "WindowWidth": 2.0 ** (bits - 2)} | fields
  fields = {"PatientAge": ("045Y", "000Y", None)[i % 3], "ViewPosition": None} | fields
  return dicoms.dicom(pixels.astype(np.uint8) if bits == 8 else pixels, bits=bits, **fields)


def shown(key):
  """Pixels, and the levels shown black and white."""
  pixels, bits = stored(key)
  top, low = 2**bits - 1, 2.0 ** (bits - 1) - 2.0 ** (bits - 3)
  window = np.array([low, low + 2.0 ** (bits - 2) - 1]) if number(key) % 2 else None
  if number(key) % 3 == 0:
    pixels, window = top - pixels, None if window is None else top - window[::-1]
  return pixels, window


def box(key, k):
  """x_min, y_min, x_max, y_max in an image of 17 x 20 pixels; one reaches out of it."""
  return [k, number(key) % 5, k + 8, (15, 40)[k]]


def tables():
  """PhysioNet's."""
  labels = ",".join(module.LABELS)
  train = [
    ",".join([key, reader, *(str(votes(key, name)[k]) for name in module.LABELS)])
    for key in TRAIN
    for k, reader in enumerate(READERS)
  ]
  test = [",".join([key, *(str(consensus(key, name)) for name in module.LABELS)]) for key in TEST]
  edges = "x_min,y_min,x_max,y_max"
  drawn = [
    f"{key},{reader},Nodule/Mass,{','.join(map(str, box(key, k)))}"
    for key in TRAIN
    for k, reader in enumerate(READERS[:2])
  ]
  drawn += [f"{key},R9,No finding,,,," for key in TRAIN]
  agreed = [f"{key},ILD,{','.join(map(str, box(key, 0)))}" for key in TEST]
  return {
    "annotations/image_labels_train.csv": made_sets.table(f"image_id,rad_id,{labels}", *train),
    "annotations/image_labels_test.csv": made_sets.table(f"image_id,{labels}", *test),
    "annotations/annotations_train.csv": made_sets.table(
      f"image_id,rad_id,class_name,{edges}", *drawn
    ),
    "annotations/annotations_test.csv": made_sets.table(f"image_id,class_name,{edges}", *agreed),
  }


def images():
  return {f"train/{key}.dicom": image(key) for key in TRAIN} | {
    f"test/{key}.dicom": image(key) for key in TEST
  }


def files(config="physionet"):
  if config == "physionet":
    return tables() | images()
  rows = []
  for key in TRAIN:
    for k, reader in enumerate(READERS):
      found = [name for name in module.KAGGLE[:-1] if votes(key, name)[k]]
      rows += [
        f"{key},{name},{module.KAGGLE.index(name)},{reader},{edges}"
        for name in found
        for edges in [",".join(map(str, box(key, k % 2)))] * (1 + k % 2)
      ]
      if not found:
        rows.append(f"{key},No finding,14,{reader},,,,")
  head = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"
  return images() | {
    "train.csv": made_sets.table(head, *rows),
    "sample_submission.csv": made_sets.table(
      "image_id,PredictionString", *(f"{key},14 1 0 0 1 1" for key in TEST)
    ),
  }


def check(part):
  """Pixels, windows and what the headers may say."""
  for k, key in enumerate(part.table.ids):
    record, (pixels, window) = part[k], shown(key)
    np.testing.assert_array_equal(record.image[..., 0], pixels)
    assert record.image.dtype == (np.uint8 if stored(key)[1] == 8 else np.uint16)
    np.testing.assert_equal(record.window, None if window is None else tuple(window))
    assert (part.table.views[k], part.table.sexes[k]) == ("PA", "F")
    np.testing.assert_equal(part.table.ages[k], (45, np.nan, np.nan)[number(key) % 3])
    assert part.table.patients[k] == ""
  assert not part.info.skipped


def expected(keys, labels, of):
  return np.array([[of(key, name) for name in sorted(labels)] for key in keys], np.float32)


def check_physionet(manual, data="data"):
  parts = {s: made_sets.prepare(NAME, manual, s, data) for s in ("train", "test")}
  assert set(parts["train"].info.splits) == {"train", "test"}
  for split, keys in (("train", TRAIN), ("test", TEST)):
    part = parts[split]
    assert sorted(part.table.ids) == keys and part.info.classes == tuple(sorted(module.LABELS))
    check(part)
    of = consensus if split == "test" else lambda key, name: sum(votes(key, name)) > 1
    np.testing.assert_array_equal(part.table.labels, expected(part.table.ids, module.LABELS, of))
    shares = made_sets.prepare(NAME, manual, split, data, label="votes").table
    of = (
      (lambda *_: np.nan)
      if split == "test"
      else lambda key, name: np.float32(sum(votes(key, name)) / 3)
    )
    np.testing.assert_array_equal(shares.labels, expected(shares.ids, module.LABELS, of))
  return parts


def records(manual, config, split):
  made = tfds.builder_from_directory(str(manual.parent / "data" / NAME / config / "1.0.0"))
  return made, {
    r["id"].decode(): r
    for r in made.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
  }


def boxes(record):
  found = record["boxes"]
  return [
    (module.LABELS[name], reader.decode(), edges.tolist())
    for name, reader, edges in zip(found["label"], found["reader"], found["box"], strict=True)
  ]


def inside(key, k):
  x_min, y_min, x_max, y_max = box(key, k)
  return pytest.approx([y_min / 20, x_min / 17, min(y_max / 20, 1), x_max / 17])


def test_physionet(manual):
  made_sets.packed(manual / f"{PHYSIONET}.zip", {f"{PHYSIONET}/{n}": d for n, d in files().items()})
  part = check_physionet(manual)["train"]
  assert "tensorflow" not in sys.modules and any("patients unk" in n for n in part.info.notes)
  made, found = records(manual, "physionet", "train+test")
  for key in TRAIN:
    assert boxes(found[key]) == [
      ("Nodule/Mass", "R1", inside(key, 0)),
      ("Nodule/Mass", "R8", inside(key, 1)),
    ]
    assert [r.decode() for r in found[key]["readers"]] == list(READERS)
  for key in TEST:
    assert boxes(found[key]) == [("ILD", "consensus", inside(key, 0))]
    assert [r.decode() for r in found[key]["readers"]] == ["consensus"]
  assert "Nguyen" in made.info.citation and "15,000" in made.info.description


def test_physionet_unpacked_in_each_way_gives_the_same(manual, tmp_path):
  made_sets.packed(manual / f"{PHYSIONET}.zip", files())
  one = check_physionet(manual)
  flat, mirror, pieces = (tmp_path / n / "manual" for n in ("flat", "mirror", "pieces"))
  made_sets.folder(flat, files())
  root = "physionet.org/files/vindr-cxr/1.0.0"
  made_sets.folder(
    mirror,
    {f"{root}/{n}": d for n, d in files().items()}
    | {"physionet.org/files/vindr-pcxr/1.0.0/image_labels_train.csv": b"another set"},
  )
  made_sets.folder(pieces / "vindr-cxr", tables())
  for split in ("train", "test"):
    made_sets.packed(
      pieces / "vindr-cxr" / f"{split}.zip",
      {name: data for name, data in images().items() if name.startswith(split)},
    )
  for other in (flat, mirror, pieces):
    for split, part in check_physionet(other).items():
      assert part.info.fingerprint == one[split].info.fingerprint


@pytest.mark.parametrize("packed", [True, False])
def test_vinbigdata(manual, packed):
  if packed:
    made_sets.packed(manual / f"{KAGGLE}.zip", files("vinbigdata"))
  else:
    made_sets.folder(manual / KAGGLE, files("vinbigdata"))
  where = f"{NAME}/vinbigdata"
  parts = {s: made_sets.prepare(where, manual, s) for s in ("train", "val", "test", "unlabelled")}
  assert sorted(key for s in ("train", "val", "test") for key in parts[s].table.ids) == TRAIN
  assert len(parts["train"]) > len(parts["test"]) > len(parts["val"]) > 0

  def count(key, name):
    if name == "No finding":
      return sum(not any(votes(key, n)[k] for n in module.KAGGLE[:-1]) for k in range(3))
    return sum(votes(key, name))

  for split, part in parts.items():
    check(part)
    assert part.info.classes == tuple(sorted(module.KAGGLE))
    shares = made_sets.prepare(where, manual, split, label="votes").table.labels
    if split == "unlabelled":
      assert sorted(part.table.ids) == TEST
      assert np.isnan(part.table.labels).all() and np.isnan(shares).all()
    else:
      n = expected(part.table.ids, module.KAGGLE, count)
      np.testing.assert_array_equal(part.table.labels, n > 1)
      np.testing.assert_array_equal(shares, (n / 3).astype(np.float32))
  _, found = records(manual, "vinbigdata", "train+validation+test")
  for key in TRAIN:
    drawn = [
      (module.KAGGLE.index(name), reader, k)
      for k, reader in enumerate(READERS)
      for name in module.KAGGLE[:-1]
      if votes(key, name)[k]
      for _ in range(1 + k % 2)
    ]
    its = found[key]["boxes"]
    assert sorted(its["label"]) == sorted(name for name, *_ in drawn)
    for name, reader, edges in zip(its["label"], its["reader"], its["box"], strict=True):
      k = READERS.index(reader.decode())
      assert (name, reader.decode(), k) in drawn and edges.tolist() == inside(key, k % 2)


def test_deep_pixels_are_deep_and_windowed_in_the_cache(manual):
  made_sets.packed(manual / f"{PHYSIONET}.zip", files())
  found = load_images(made_sets.prepare(NAME, manual), 16, progress=False)
  assert found.pixels.dtype == np.uint16
  for k, key in enumerate(found.table.ids):
    window = shown(key)[1]
    if window is not None and stored(key)[1] > 8:
      np.testing.assert_allclose(found.windows[k], window)


def test_nothing_that_tells_who_somebody_is_is_kept(manual):
  made_sets.packed(manual / f"{PHYSIONET}.zip", files())
  made_sets.prepare(NAME, manual)
  for file in manual.parent.rglob("*"):
    if file.is_file() and manual not in file.parents:
      assert not [s for s in dicoms.SECRETS.values() if s.encode() in file.read_bytes()]


def test_absent_unlisted_and_broken_images_are_listed(manual):
  held, (gone, cut, other, *_) = files(), TRAIN
  del held[f"train/{gone}.dicom"]
  held[f"train/{cut}.dicom"] = held[f"train/{cut}.dicom"][:300]
  held[f"train/{other}.dicom"] = image(other, Modality="MR")
  new = f"{900:032x}"
  held[f"train/{new}.dicom"] = held[f"../train/{new}.dicom"] = image(new)
  made_sets.packed(manual / f"{PHYSIONET}.zip", held)
  part = made_sets.prepare(NAME, manual)
  assert sorted(part.table.ids) == TRAIN[3:]
  left = dict(part.info.skipped)
  assert "damaged" in left.pop(cut) and "modality MR" in left.pop(other)
  assert left == {gone: "it is listed, but not there", new: "it is there, but in no list"}


def test_without_the_images_of_kaggle_s_test(manual):
  made_sets.packed(
    manual / f"{KAGGLE}.zip",
    {n: d for n, d in files("vinbigdata").items() if not n.startswith("test/")},
  )
  part = made_sets.prepare(f"{NAME}/vinbigdata", manual)
  assert "unlabelled" not in part.info.splits
  assert any("without labels, were not there" in note for note in part.info.notes)


def edited(name, change, config="physionet"):
  held = files(config)
  held[name] = change(held[name])
  return held


LABELS, DRAWN = "annotations/image_labels_train.csv", "annotations/annotations_train.csv"


@pytest.mark.parametrize(
  "config, held, word",
  [
    (
      "physionet",
      lambda: {"notes.txt": b""},
      "has no image_labels_train.csv: another data set, or",
    ),
    ("physionet", lambda: files("vinbigdata"), "has no image_labels_train.csv: another"),
    ("vinbigdata", lambda: files(), "has no train.csv: another"),
    (
      "physionet",
      lambda: {n: d for n, d in files().items() if n != DRAWN},
      "no annotations_train.c",
    ),
    ("physionet", tables, "has no images in it"),
    (
      "physionet",
      lambda: {n: d for n, d in files().items() if not n.startswith("test/")},
      "0 of the 6 images listed for test are there",
    ),
    (
      "physionet",
      lambda: edited(LABELS, lambda d: d.replace(b"Other diseases", b"Other disease")),
      "no column 'Other diseases'; did you mean 'Other disease'",
    ),
    (
      "physionet",
      lambda: edited(LABELS, lambda d: d.replace(b"rad_id", b"rad_ID")),
      "no column 'rad_id'; did you mean 'rad_ID'",
    ),
    (
      "physionet",
      lambda: edited(LABELS, lambda d: d.replace(b"R1,0,", b"R1,2,", 1)),
      "line 3.*: Aortic enlargement is '2', not|line 5: Aortic enlargement is '2', not",
    ),
    (
      "physionet",
      lambda: edited(LABELS, lambda d: d.replace(b",1\n", b",\n", 1)),
      r"No finding is '', not 0 or 1",
    ),
    (
      "physionet",
      lambda: edited(LABELS, lambda d: d + d.splitlines()[1]),
      r"line 92 lists 0+1 a second time \(reader R1\)",
    ),
    (
      "physionet",
      lambda: edited(LABELS, lambda d: b"\n".join(d.splitlines()[:-1])),
      r"line 89: 0+1e has 2 reader\(s\) and not 3: is the file whole",
    ),
    (
      "physionet",
      lambda: edited(DRAWN, lambda d: d.replace(b"Nodule/Mass", b"Nodule", 1)),
      "train.csv line 2: 'Nodule' is not a finding of this set; did you mean 'Nodule/Mass'",
    ),
    (
      "physionet",
      lambda: edited(DRAWN, lambda d: d.replace(b",8,", b",,", 1)),
      "line 2: the box is",
    ),
    (
      "physionet",
      lambda: edited(DRAWN, lambda d: d.replace(TRAIN[0].encode(), b"x", 1)),
      "annotations_train.csv has boxes of x, which is not in",
    ),
    (
      "vinbigdata",
      lambda: edited("train.csv", lambda d: d.replace(b"Cardiomegaly", b"Cardio", 1), "vinbigdata"),
      "'Cardio' is not a finding of this set; did you mean",
    ),
    (
      "vinbigdata",
      lambda: edited("train.csv", lambda d: re.sub(rb"0+1e,.*,R9,.*\n", b"", d), "vinbigdata"),
      r"0+1e has 2 reader\(s\) and not 3",
    ),
    (
      "vinbigdata",
      lambda: edited("sample_submission.csv", lambda d: d + d.splitlines()[1], "vinbigdata"),
      "sample_submission.csv line 8 lists 0+1f5 a second",
    ),
  ],
)
def test_one_line_for_each_mistake(manual, config, held, word):
  made_sets.packed(manual / "archive.zip", held())
  assert re.search(word, made_sets.refused(f"{NAME}/{config}", manual))


def test_archives_that_are_not_there_or_not_whole(manual):
  (manual / "notes.txt").write_text("?")
  assert "has no vindr-cxr*" in made_sets.refused(NAME, manual)
  assert "has no vinbigdata*" in made_sets.refused(f"{NAME}/vinbigdata", manual)
  path = made_sets.packed(manual / f"{PHYSIONET}.zip", files())
  path.write_bytes(path.read_bytes()[:-30])
  assert "is not a complete zip" in made_sets.refused(NAME, manual)


@pytest.mark.full
@pytest.mark.parametrize("config", ["physionet", "vinbigdata"])
def test_tfds_build(manual, config):
  made_sets.packed(manual / "archive.zip", files(config))
  made_sets.command(NAME, manual, manual.parent / "built", f"--config={config}")
  built = made_sets.prepare(f"{NAME}/{config}", manual, "all", "built")
  ours = made_sets.prepare(f"{NAME}/{config}", manual, "all")
  assert built.info.fingerprint == ours.info.fingerprint
  np.testing.assert_array_equal(built.table.labels, ours.table.labels)

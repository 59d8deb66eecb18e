"""The builder on generated archives in both published layouts, and on the real one where it is."""

import collections
import importlib.util
import io
import os
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from cxrjax.builders import tfds_features
from cxrjax.core.errors import UserError
from cxrjax.data import load_images, open_source
from cxrjax.data.sources import archive, tfds_prepare

NAME = "chest_xray_pneumonia"
builder = tfds_prepare.builder_class(NAME)
module = sys.modules[builder.__module__]


def jpeg(seed, mode="L"):
  pixels = np.random.default_rng(seed).integers(0, 256, (20, 26), dtype=np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", quality=90)
  return buffer.getvalue()


def kaggle():
  """Names of Kaggle's archive, without the copy of the tree: 30 + 40 in train, and so on."""
  train = [f"train/NORMAL/IM-{i // 2 + 115:04d}-0001{'-0002' * (i % 2)}.jpeg" for i in range(20)]
  train += [f"train/NORMAL/NORMAL2-IM-{i:04d}-0001.jpeg" for i in range(10)]
  train += [f"train/PNEUMONIA/person{i // 3}_bacteria_{i}.jpeg" for i in range(25)]
  train += [f"train/PNEUMONIA/person{i}_virus_{i + 100}{'_1' * (i == 3)}.jpeg" for i in range(15)]
  val = ["val/NORMAL/NORMAL2-IM-1427-0001.jpeg", "val/PNEUMONIA/person1946_bacteria_4874.jpeg"]
  test = [f"test/NORMAL/IM-{i:04d}-0001.jpeg" for i in range(1, 7)]
  test += [f"test/PNEUMONIA/person{i}_virus_{i + 6}.jpeg" for i in range(1, 9)]
  return train + val + test


def write_kaggle(path, names=None):
  names = kaggle() if names is None else names
  with zipfile.ZipFile(path, "w") as opened:
    for i, name in enumerate(names):
      data = jpeg(i, "RGB" if i == 4 else "L")
      opened.writestr(f"chest_xray/chest_xray/{name}", data)  # the copy comes first
      opened.writestr(f"chest_xray/{name}", data)
      folder, _, file = name.rpartition("/")
      opened.writestr(f"chest_xray/__MACOSX/{folder}/._{file}", b"?")
    opened.writestr("chest_xray/.DS_Store", b"?")
    opened.writestr("chest_xray/chest_xray/.DS_Store", b"?")


def prepare(tmp_path, split="train", **options):
  return open_source(
    f"tfds:{NAME}",
    split=split,
    data_dir=str(tmp_path / "data"),
    manual_dir=str(tmp_path / "manual"),
    **options,
  )


def test_kaggle_zip(manual, tmp_path):
  write_kaggle(manual / "chest_xray.zip")
  parts = {s: prepare(tmp_path, s) for s in ("train", "val", "official_val", "test", "all")}
  sizes = {s: len(found) for s, found in parts.items()}
  assert set(parts["all"].table.views) == {"AP"} and np.isnan(parts["all"].table.ages).all()
  assert sizes["train"] + sizes["val"] == 70 and sizes["official_val"] == 2 and sizes["test"] == 14
  assert sizes["all"] == len(kaggle()) == 86 and 3 <= sizes["val"] <= 12
  assert parts["train"].info.splits == {s: n for s, n in sizes.items() if s != "all"}
  assert "tensorflow" not in sys.modules

  owners = {s: set(parts[s].table.patients) for s in ("train", "val", "test")}
  assert not owners["train"] & owners["val"]
  assert not (owners["train"] | owners["val"]) & owners["test"]  # person numbers start again there
  assert "test-person1" in owners["test"] and "train-person1" in owners["train"] | owners["val"]
  assert set(parts["official_val"].table.patients) == {"NORMAL2-IM-1427", "train-person1946"}

  # Every image is there once, with its own pixels and the label its name has.
  names = {f"{n.split('/')[0]}/{n.split('/')[2]}": (i, n) for i, n in enumerate(kaggle())}
  assert set(parts["all"].table.ids) == set(names)
  for i, key in enumerate(parts["all"].table.ids):
    index, name = names[key]
    record = parts["all"][i]
    expected = Image.open(io.BytesIO(jpeg(index, "RGB" if index == 4 else "L"))).convert("L")
    np.testing.assert_array_equal(record.image[..., 0], np.asarray(expected))
    np.testing.assert_array_equal(record.labels, [1, 0] if "NORMAL/" in name else [0, 1])


def test_a_person_with_both_kinds_of_pneumonia_stays_together(manual, tmp_path):
  write_kaggle(manual / "chest_xray.zip")
  train, val = (prepare(tmp_path, s, label="subtype") for s in ("train", "val"))
  assert train.info.classes == ("normal", "bacterial", "viral")
  kinds = collections.defaultdict(set)
  for found in (train, val):
    for patient, row in zip(found.table.patients, found.table.labels, strict=True):
      kinds[patient].add(int(row.argmax()))
  assert kinds["train-person3"] == {1, 2} and kinds["IM-0115"] == {0}


def test_an_unpacked_folder_gives_the_same(manual, tmp_path):
  write_kaggle(manual / "archive.zip")
  a = prepare(tmp_path)
  zipfile.ZipFile(manual / "archive.zip").extractall(manual)
  (manual / "archive.zip").unlink()
  b = open_source(f"tfds:{NAME}", data_dir=str(tmp_path / "other"), manual_dir=str(manual))
  assert a.info.fingerprint == b.info.fingerprint and a.table.ids == b.table.ids


def test_mendeley_zip(manual, tmp_path):
  names = [f"train/NORMAL/NORMAL-{1000 + i}-000{1 + i % 2}.jpeg" for i in range(12)]
  names += [f"train/PNEUMONIA/BACTERIA-{2000 + i // 2}-000{1 + i % 2}.jpeg" for i in range(12)]
  names += [f"train/PNEUMONIA/VIRUS-{3000 + i}-0001.jpeg" for i in range(12)]
  names += ["test/NORMAL/NORMAL-5000-0001.jpeg", "test/PNEUMONIA/VIRUS-6000-0001.jpeg"]
  with zipfile.ZipFile(manual / "ChestXRay2017.zip", "w") as opened:
    for i, name in enumerate(names):
      opened.writestr(f"chest_xray/{name}", jpeg(i))
    opened.writestr("chest_xray/train/.DS_Store", b"?")
  found = prepare(tmp_path, "all", label="subtype")
  assert set(found.info.splits) == {"train", "val", "test"} and len(found) == 38
  assert found.table.labels.sum(0).tolist() == [13, 12, 13]
  assert "BACTERIA-2003" in found.table.patients


def test_prepared_once(manual, tmp_path):
  write_kaggle(manual / "chest_xray.zip")
  before = prepare(tmp_path).info
  (manual / "chest_xray.zip").unlink()
  assert prepare(tmp_path).info == before


def test_what_tfds_reads_is_what_we_read(manual, tmp_path):
  write_kaggle(manual / "chest_xray.zip")
  ours = prepare(tmp_path, "test")
  made = tfds.builder_from_directory(str(tmp_path / "data" / NAME / "1.1.0"))
  theirs = made.as_data_source("test")
  assert made.info.features["label"].names == ["normal", "pneumonia"]
  assert "Kermany" in made.info.citation and "Guangzhou" in made.info.description
  for i in range(len(ours)):
    assert theirs[i]["image"].shape == (20, 26, 1)
    np.testing.assert_array_equal(ours[i].image, theirs[i]["image"])
    assert theirs[i]["id"].decode() == ours[i].id


@pytest.mark.full
@pytest.mark.skipif(
  importlib.util.find_spec("tensorflow") is None or importlib.util.find_spec("apache_beam") is None,
  reason="tfds build needs the extra `tfds`",
)
def test_tfds_build(manual, tmp_path):
  write_kaggle(manual / "chest_xray.zip")
  root = pathlib.Path(tfds_prepare.BUILDERS).parent
  command = [
    pathlib.Path(sys.executable).with_name("tfds"),
    "build",
    root / "tfds_builders" / NAME,
    f"--manual_dir={manual}",
    f"--data_dir={tmp_path / 'built'}",
    "--file_format=array_record",
  ]
  env = os.environ | {"PYTHONPATH": str(root)}
  done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  built = open_source(f"tfds:{NAME}", data_dir=str(tmp_path / "built"))
  ours = prepare(tmp_path)
  assert built.info.fingerprint == ours.info.fingerprint and built.table.ids == ours.table.ids


@pytest.mark.parametrize(
  "spoil, word",
  [
    (
      lambda folder: (folder / "notes.txt").write_text("nothing"),
      r"has no chest_xray.zip .*get it from https://.*put it there",
    ),
    (
      lambda folder: (folder / "chest_xray.zip").write_bytes(b"PK\3\4 half"),
      r"chest_xray.zip is not a complete zip file.*download it again",
    ),
    (
      lambda folder: (folder / "chest_xray.zip.part").write_bytes(b"PK"),
      "is an unfinished download",
    ),
    (
      lambda folder: write_kaggle(folder / "chest_xray.zip", kaggle()[:70]),
      "no images in test/NOR",
    ),
    (lambda folder: write_kaggle(folder / "chest_xray.zip", ["a/b/c.jpeg"]), "no images in train"),
    (
      lambda folder: write_kaggle(
        folder / "chest_xray.zip",
        [f"train/{f}/{i}.jpeg" for i in range(9) for f in ("NORMAL", "PNEUMONIA")],
      ),
      "no images in train/NORMAL: not this",
    ),
  ],
)
def test_archives_that_are_not_whole(manual, tmp_path, spoil, word, capfd):
  spoil(manual)
  with pytest.raises(UserError, match=word) as error:
    prepare(tmp_path)
  assert "\n" not in str(error.value)
  (manual / "chest_xray.zip.part").unlink(missing_ok=True)
  write_kaggle(manual / "chest_xray.zip")  # and once it is mended, it works
  assert len(prepare(tmp_path, "test")) == 14


def test_images_left_out(manual, tmp_path):
  names = kaggle()
  with zipfile.ZipFile(manual / "chest_xray.zip", "w") as opened:
    for i, name in enumerate(names):
      opened.writestr(f"chest_xray/{name}", jpeg(i)[:-200] if i == 3 else jpeg(i))
    opened.writestr("chest_xray/train/NORMAL/my.jpeg", jpeg(0))
    opened.writestr("chest_xray/../../train/NORMAL/IM-9999-0001.jpeg", jpeg(0))
  found = prepare(tmp_path, "all")
  assert len(found) == len(names) - 1
  left = dict(found.info.skipped)
  assert len(left) == 3
  assert "cut short" in left[names[3].replace("NORMAL/", "")]
  assert "patient is not known" in left["chest_xray/train/NORMAL/my.jpeg"]
  assert "points outside" in left["chest_xray/../../train/NORMAL/IM-9999-0001.jpeg"]


def test_damaged_in_the_middle(manual, tmp_path):
  path = manual / "chest_xray.zip"
  write_kaggle(path)
  data = bytearray(path.read_bytes())
  at = data.index(jpeg(30)[60:120], data.index(jpeg(30)[60:120]) + 1)
  data[at : at + 20] = bytes(20)
  path.write_bytes(data)
  with pytest.raises(UserError, match=r"chest_xray.zip: .*\.jpeg in it is damaged") as error:
    prepare(tmp_path)
  assert "\n" not in str(error.value)


def test_no_manual_folder(tmp_path):
  for _ in range(2):
    with pytest.raises(UserError, match=r"config.data.options.manual_dir.*chest_xray.zip"):
      prepare(tmp_path)
    (tmp_path / "manual").mkdir(exist_ok=True)  # an empty one is no better


@pytest.fixture
def real():
  folder = os.environ.get("CXRJAX_TEST_DATA")
  path = pathlib.Path(folder or "/nowhere") / "chest_xray.zip"
  if not path.is_file():
    pytest.skip("CXRJAX_TEST_DATA names no folder with chest_xray.zip")
  return path


def test_real_archive_counts(real):
  with archive.Archive(real) as opened:
    found = module.examples(opened, tfds_features.LeftOut())
  parts = module.assign(found)
  counts = {name: collections.Counter(e.label for e in part) for name, part in parts.items()}
  assert counts == {
    "train": {"normal": 1207, "pneumonia": 3486},
    "validation": {"normal": 134, "pneumonia": 389},
    "official_val": {"normal": 8, "pneumonia": 8},
    "test": {"normal": 234, "pneumonia": 390},
  }
  test = collections.Counter(e.subtype for e in parts["test"])
  assert test == {"normal": 234, "bacterial": 242, "viral": 148}
  owners = {name: {e.patient for e in part} for name, part in parts.items()}
  pairs = [(a, b) for a in owners for b in owners if a < b]
  assert not any(owners[a] & owners[b] for a, b in pairs)


def test_real_archive_prepares_and_decodes(real, tmp_path):
  source = open_source(
    f"tfds:{NAME}", split="val", data_dir=str(tmp_path / "data"), manual_dir=str(real.parent)
  )
  images = load_images(source, 32, progress=False)
  assert images.pixels.shape == (523, 32, 32, 1) and images.labels[:, 1].sum() == 389
  # Pneumonia is exposed differently here; a sign that labels and pixels belong together.
  centre = images.pixels[:, 8:24, 8:24].mean((1, 2, 3))
  sick = images.labels[:, 1] == 1
  assert abs((centre[sick][:, None] > centre[~sick]).mean() - 0.5) > 0.1

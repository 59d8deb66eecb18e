"""CheXpert: small and full, in one piece and in batches, with the test set and without."""

import re
import sys

import made_sets
import numpy as np
import pytest

from cxrjax.data.sources import tfds_prepare

builder = tfds_prepare.builder_class("chexpert")
module = sys.modules[builder.__module__]

HEAD = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(module.LABELS)
TRAIN, VALID, TEST = range(1, 13), range(64541, 64545), range(64741, 64744)
VALUES = ("1.0", "0.0", "-1.0", "")
FOLDER = {"small": "CheXpert-v1.0-small", "full": "CheXpert-v1.0"}


def images(patients):
  """Path from the patient on, of a frontal and a lateral image of each patient."""
  return [
    f"patient{p:05d}/study1/view{k}_{kind}.jpg"
    for p in patients
    for k, kind in ((1, "frontal"), (2, "lateral"))
  ]


def everything():
  return images(TRAIN) + images(VALID) + images(TEST)


def values(i, known=False):
  return [VALUES[(i + k) % (2 if known else 4)] for k in range(14)]


def seed(path):
  return everything().index(path)


def image(path):
  return made_sets.encoded(seed(path), kind="JPEG")


def rows(patients, root, split, known=False):
  for i, path in enumerate(images(patients)):
    side = ["Lateral", ""] if "lateral" in path else ["Frontal", ("AP", "PA", "LL")[i % 3]]
    yield ",".join(
      [
        f"{root}/{split}/{path}",
        ("Female", "Male", "Unknown")[i % 3],
        str(40 + i),
        *side,
        *values(i, known),
      ]
    )


def tables(root):
  return {
    "train.csv": made_sets.table(HEAD, *rows(TRAIN, root, "train")),
    "valid.csv": made_sets.table(HEAD, *rows(VALID, root, "valid", True)),
  }


def test_table(root="CheXpert-v1.0/test"):
  head = "Path," + ",".join(module.LABELS)
  return made_sets.table(
    head, *(",".join([f"{root}/{path}", *values(i, True)]) for i, path in enumerate(images(TEST)))
  )


test_table.__test__ = False


def files(config, test=True):
  """A release in one piece, from its root on."""
  root = FOLDER[config]
  found = {f"{root}/{name}": data for name, data in tables(root).items()}
  found |= {f"{root}/train/{path}": image(path) for path in images(TRAIN)}
  found |= {f"{root}/valid/{path}": image(path) for path in images(VALID)}
  if test:
    found |= {f"{root}/test/{path}": image(path) for path in images(TEST)}
    found[f"{root}/test/groundtruth.csv"] = test_table()
  return found


def batches(wrapped=False):
  """The full release in batches: by archive, files."""
  train = images(TRAIN)
  found = {
    "1 (validate & csv)": tables("CheXpert-v1.0") | {f"valid/{p}": image(p) for p in images(VALID)}
  }
  for k in range(3):
    found[f"{k + 2} (train {k + 1})"] = {p: image(p) for p in train[k * 8 : k * 8 + 8]}
  return {
    f"CheXpert-v1.0 batch {name}": {
      f"CheXpert-v1.0 batch {name}/{p}" if wrapped else p: data for p, data in held.items()
    }
    for name, held in found.items()
  }


def check(config, manual, test=True):
  splits = {"train": TRAIN, "val": VALID} | ({"test": TEST} if test else {})
  parts = {s: made_sets.prepare(f"chexpert/{config}", manual, s) for s in splits}
  order = sorted(module.LABELS)
  assert set(parts["train"].info.splits) == set(splits)
  for split, part in parts.items():
    paths = images(splits[split])
    assert sorted(part.table.ids) == sorted(paths) and part.info.classes == tuple(order)
    for k, path in enumerate(part.table.ids):
      i = paths.index(path)
      np.testing.assert_array_equal(part[k].image, made_sets.decoded(image(path)))
      expected = dict(zip(module.LABELS, values(i, split != "train"), strict=True))
      expected = [{"1.0": 1, "0.0": 0}.get(expected[c], np.nan) for c in order]
      np.testing.assert_array_equal(part.table.labels[k], expected)
      assert part.table.patients[k] == path[:12]
      frontal = "" if split == "test" else ("AP", "PA", "")[i % 3]
      assert part.table.views[k] == ("L" if "lateral" in path else frontal)
      assert part.table.sexes[k] == ("" if split == "test" else ("F", "M", "")[i % 3])
      np.testing.assert_equal(part.table.ages[k], np.nan if split == "test" else 40 + i)
    assert not part.info.skipped
  return parts


@pytest.mark.parametrize("config", ["small", "full"])
def test_zip_and_folder(manual, tmp_path, config):
  made_sets.packed(manual / f"{FOLDER[config]}.zip", files(config))
  one = check(config, manual)
  other = made_sets.folder(tmp_path / "other" / "manual", files(config))
  for split, part in check(config, other).items():
    assert part.info.fingerprint == one[split].info.fingerprint
  assert "tensorflow" not in sys.modules


def test_kaggle_without_a_root_folder(manual):
  made_sets.packed(
    manual / "archive.zip",
    {name.split("/", 1)[1]: data for name, data in files("small", test=False).items()},
  )
  part = check("small", manual, test=False)["train"]
  assert any("test labels were not there" in note for note in part.info.notes)


@pytest.mark.parametrize("how", ["zips", "wrapped zips", "folders", "both"])
def test_batches_and_a_test_set_by_itself(manual, how):
  for name, held in batches("wrapped" in how).items():
    if how != "folders":
      made_sets.packed(manual / f"{name}.zip", held)
    if how in ("folders", "both"):
      made_sets.folder(manual / name, held)
  made_sets.folder(
    manual / "CheXpert",
    {f"test/{p}": image(p) for p in images(TEST)} | {"test_labels.csv": test_table("test")},
  )
  check("full", manual)


def test_uncertain_is_kept_apart_from_unknown(manual):
  made_sets.packed(manual / "CheXpert-v1.0-small.zip", files("small"))
  found = {
    policy: made_sets.prepare("chexpert", manual, uncertain=policy)
    for policy in ("ignore", "zeros", "ones")
  }
  paths = images(TRAIN)
  column = [module.LABELS.index(c) for c in sorted(module.LABELS)]
  expected = np.array(
    [
      [VALUES.index(values(paths.index(path))[c]) for c in column]
      for path in found["ones"].table.ids
    ]
  )
  for policy, meaning in (("ignore", np.nan), ("zeros", 0), ("ones", 1)):
    np.testing.assert_array_equal(
      found[policy].table.labels, np.array([1, 0, meaning, np.nan], np.float32)[expected]
    )


def test_absent_unlisted_and_broken_images_are_listed(manual):
  held, root = files("small"), "CheXpert-v1.0-small/train"
  gone, cut, other, *_ = images(TRAIN)
  del held[f"{root}/{gone}"]
  held[f"{root}/{cut}"] = held[f"{root}/{cut}"][:-40]
  held[f"{root}/{other}"] = b"GIF89a"
  new = "patient00099/study1/view1_frontal.jpg"
  held[f"{root}/{new}"] = image(gone)
  held[f"../{root}/{new}"] = image(gone)
  held["__MACOSX/x/._view1_frontal.jpg"] = b"?"
  made_sets.packed(manual / "CheXpert-v1.0-small.zip", held)
  part = made_sets.prepare("chexpert", manual)
  assert len(part) == len(images(TRAIN)) - 3
  assert dict(part.info.skipped) == {
    gone: "it is listed, but not there",
    cut: "it is cut short",
    other: "it is neither PNG nor JPEG",
    new: "it is there, but in no list",
  }


def edited(name, change):
  held = files("small")
  held[f"CheXpert-v1.0-small/{name}"] = change(held[f"CheXpert-v1.0-small/{name}"])
  return held


@pytest.mark.parametrize(
  "held, word",
  [
    (lambda: {"notes.txt": b""}, "has no train.csv: only a part"),
    (lambda: {n: d for n, d in files("small").items() if "valid.csv" not in n}, "has no valid.csv"),
    (
      lambda: {n: d for n, d in files("small").items() if "/train/" not in n},
      "0 of the 24 images listed for train are there",
    ),
    (
      lambda: {
        n.replace("-small", ""): d.replace(b"-small", b"") if n.endswith("csv") else d
        for n, d in files("small").items()
      },
      "train.csv line 2 is of the full release: prepare tfds:chexpert/full",
    ),
    (
      lambda: edited("train.csv", lambda d: d.replace(b"Pneumonia", b"Pneumoni")),
      "train.csv has no column 'Pneumonia'; did you mean 'Pneumoni'",
    ),
    (
      lambda: edited("train.csv", lambda d: d.replace(b",-1.0,", b",2.0,", 1)),
      r"train.csv line 2: .* is '2.0', not 1.0, 0.0, -1.0 or empty",
    ),
    (
      lambda: edited("train.csv", lambda d: d.replace(b",Male,", b",male,", 1)),
      "Sex is 'male'; did",
    ),
    (lambda: edited("train.csv", lambda d: d.replace(b",AP,", b",APP,", 1)), "AP/PA is 'APP'"),
    (
      lambda: edited("train.csv", lambda d: d.replace(b",Lateral,", b",Frontal,", 1)),
      "line 3: Frontal/Lateral is Frontal, Path view2_lateral.jpg",
    ),
    (lambda: edited("valid.csv", lambda d: d.replace(b",40,", b",x,", 1)), "valid.csv.*Age is 'x'"),
    (
      lambda: edited("valid.csv", lambda d: d.replace(b"patient64541", b"p64541", 1)),
      "line 2: Path is 'CheX",
    ),
    (
      lambda: edited("train.csv", lambda d: d + d.splitlines()[1]),
      "line 26 lists patient00001.*second",
    ),
    (
      lambda: edited("train.csv", lambda d: d[:-30]),
      "line 25 does not have the header's .* fields",
    ),
  ],
)
def test_one_line_for_each_mistake(manual, held, word):
  made_sets.packed(manual / "CheXpert-v1.0-small.zip", held())
  assert re.search(word, made_sets.refused("chexpert", manual))


def test_archives_that_are_not_there_or_not_whole(manual):
  for name, held in batches().items():
    made_sets.packed(manual / f"{name}.zip", held)
  (manual / "CheXpert-v1.0 batch 3 (train 2).zip").unlink()
  assert "has no 'CheXpert-v1.0 batch 3" in made_sets.refused("chexpert/full", manual)
  assert "has no CheXpert-v1.0-small.zip" in made_sets.refused("chexpert/small", manual)
  (manual / "CheXpert-v1.0-small.zip").write_bytes(b"PK\3\4 half")
  assert "not a complete zip" in made_sets.refused("chexpert/small", manual)

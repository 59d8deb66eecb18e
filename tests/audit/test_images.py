"""What an audit connects: splits, duplicates, patients."""

import numpy as np
import pytest
from PIL import Image

from cxrjax.audit import images
from cxrjax.core.errors import UserError
from cxrjax.data.sources import phantom


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """16 drawn radiographs in train and test, with one mistake of every kind."""
  root = tmp_path_factory.mktemp("sets") / "mine"
  source = phantom.Source(split="train", n=64, size=96, sites=1)
  rows = ["file,split,label,patient,sex,age,view"]

  def put(name, pixels, split, label, patient, sex="F", age=40, view="PA"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    rows.append(f"{name},{split},{label},{patient},{sex},{age},{view}")

  first = list({p: i for i, p in reversed(list(enumerate(source.table.patients)))}.values())
  drawn = [source[i].image[..., 0] for i in sorted(first)[:16]]
  for k, pixels in enumerate(drawn):
    put(
      f"im{k:02d}.png",
      pixels,
      "train" if k < 10 else "test",
      "ab"[k % 2],
      f"Doe{k // 2}",
      "FM"[k % 2],
      30 + k,
    )
  put("again.jpg", drawn[2], "test", "b", "Roe1")  # a copy between splits, other label
  put("twice.png", drawn[3][2:, 2:], "train", "b", "Doe1")  # a copy within one
  put("moved.png", 255 - source[sorted(first)[16]].image[..., 0], "test", "a", "Doe0")
  put("gray.png", np.full((64, 64), 80, np.uint8), "train", "a", "Roe2")
  (root / "broken.png").write_bytes(b"\x89PNG and no more")
  rows.append("broken.png,train,a,Roe3,,,")
  put("loose.png", source[sorted(first)[17]].image[..., 0], "", "a", "Roe4")
  (root / "labels.csv").write_text("\n".join(rows) + "\n")
  return root


@pytest.fixture(scope="module")
def splits(folder):
  options = {"csv": "labels.csv", "patient_column": "patient"}
  return images.open_splits(
    [{"source": f"folder:{folder}", "options": options}],
    size=96,
    fit="squash",
    bits=8,
    progress=False,
  )


def test_splits_and_what_is_in_none(splits):
  assert [(p.title, len(p.table)) for p in splits] == [("train", 13), ("test", 8), ("no split", 1)]
  assert [len(p.good) for p in splits] == [11, 8, 1]
  reasons = {splits[0].table.ids[row]: why for row, why in splits[0].bad.items()}
  assert set(reasons) == {"gray.png", "broken.png"} and "blank" in reasons["gray.png"]
  for split in splits:
    assert [split.table.ids[i] for i in split.good] == list(split.images.ids)


def names(splits, pair):
  return {splits[k].table.ids[row] for k, row in (pair.a, pair.b)}


def by_name(splits, values):
  return {
    name: v
    for p, rows in zip(splits, values, strict=True)
    for name, v in zip(p.table.ids, rows, strict=True)
  }


def test_near_duplicates_within_and_between(splits):
  calls = []
  pairs, search = images.near_duplicates(splits, 0.9, advance=lambda: calls.append(1))
  assert len(calls) == 6 and search["compared"] > 0 and search["looked"] >= 2
  found = {frozenset(names(splits, p)): p for p in pairs}
  assert set(found) == {frozenset({"im02.png", "again.jpg"}), frozenset({"im03.png", "twice.png"})}
  between, within = found.values() if pairs[0].a[0] != pairs[0].b[0] else reversed(found.values())
  assert between.same_patient is False and set(between.differ) == {"a", "b"}
  assert within.same_patient is True and within.differ == ()

  groups = images.group_numbers(splits, pairs)
  numbers = by_name(splits, groups)
  assert numbers["im02.png"] == numbers["again.jpg"] != numbers["im03.png"] == numbers["twice.png"]
  assert len(set(numbers.values())) == len(numbers) - 2

  # A fold may divide neither patients nor copies: Doe1 has im02, im03 and twice; Roe1 the copy.
  owners = images.owners(splits, groups)
  of = by_name(splits, owners)
  assert len({of[n] for n in ("im02.png", "im03.png", "twice.png", "again.jpg")}) == 1
  assert of["im00.png"] == of["im01.png"] == of["moved.png"] != of["im02.png"]


def test_patients_in_several_splits(splits):
  crossing = images.crossing_patients(splits)
  assert [len(v) for v in crossing.values()] == [3]
  assert {splits[k].table.ids[row] for k, row in next(iter(crossing.values()))} == {
    "im00.png",
    "im01.png",
    "moved.png",
  }


def test_patients_whom_nobody_names_are_not_told_apart(folder):
  splits = images.open_splits(
    [{"source": f"folder:{folder}", "options": {"csv": "labels.csv"}}],
    size=96,
    bits=8,
    progress=False,
  )
  known = splits[0].tells_patients  # the CSV's column `patient` is found by itself, or is not
  pairs, _ = images.near_duplicates(splits, 0.9)
  assert all((p.same_patient is None) == (not known) for p in pairs)


def test_some_splits_only(folder):
  source = {"source": f"folder:{folder}", "options": {"csv": "labels.csv"}}
  splits = images.open_splits([source], ["test"], size=64, progress=False)
  assert [p.name for p in splits] == ["test"]
  with pytest.raises(UserError, match="no split 'tset'; did you mean 'test'"):
    images.open_splits([source], ["tset"], size=64, progress=False)


def test_sources_of_one_name_are_numbered(tmp_path):
  source = {"source": "phantom", "options": {"n": 2, "size": 32}}
  splits = images.open_splits([source, source], ["train"], size=32, progress=False)
  assert [p.title for p in splits] == ["1 phantom train", "2 phantom train"]

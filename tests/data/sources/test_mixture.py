import itertools

import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.data.base import Part
from cxrjax.data.loading import sampling
from cxrjax.data.sources import mixture
from cxrjax.data.splits import subset

NAN = np.nan


@pytest.fixture
def kermany(listed):
  return listed(
    ["a", "a", "b"],
    [[1, 0], [0, 1], [NAN, NAN]],
    ("NORMAL", "PNEUMONIA"),
    name="kermany",
    exclusive=True,
    views=("AP", "", "AP"),
    splits={"train": 3, "test": 9, "val": 1},
    skipped=(("bad.png", "black"),),
  )


@pytest.fixture
def nih(listed):
  return listed(
    ["a", ""],
    [[0, 1, 0], [1, NAN, 0]],
    ("Effusion", "Pneumonia", "Hernia"),
    name="nih",
    sexes=("F", "M"),
    ages=np.array([30, 40], np.float32),
    splits={"train": 2, "test": 5},
  )


def test_labels_are_merged_by_name(kermany, nih):
  both = mixture.Pool([kermany, nih])
  assert both.info.classes == ("NORMAL", "PNEUMONIA", "Effusion", "Hernia")
  assert not both.info.exclusive
  np.testing.assert_array_equal(
    both.table.labels,
    [[1, 0, NAN, NAN], [0, 1, NAN, NAN], [NAN, NAN, NAN, NAN], [NAN, 1, 0, 0], [NAN, NAN, 1, 0]],
  )
  assert "class Pneumonia of nih counts as PNEUMONIA" in both.info.notes
  turned = mixture.Pool([nih, kermany])
  assert turned.info.classes == ("Effusion", "Pneumonia", "Hernia", "NORMAL")
  np.testing.assert_array_equal(turned.table.labels[2:4, [3, 1]], kermany.table.labels[:2])


def test_classes_can_be_renamed(kermany, nih):
  both = mixture.Pool(
    [kermany, nih], renames=[{"PNEUMONIA": "Opacity"}, {"Pneumonia": "Infiltrate"}]
  )
  assert both.info.classes == ("NORMAL", "Opacity", "Effusion", "Infiltrate", "Hernia")
  assert "class PNEUMONIA of kermany counts as Opacity" in both.info.notes
  with pytest.raises(UserError, match=r"source\[1\].rename='Hernai' .*did you mean 'Hernia'"):
    mixture.Pool([kermany, nih], renames=[{}, {"Hernai": "x"}])
  with pytest.raises(UserError, match=r"source\[1\].*'Effusion' and 'Hernia'.*rename"):
    mixture.Pool([kermany, nih], renames=[{}, {"Hernia": "effusion"}])


def test_spellings_of_one_class(listed):
  first = listed(["a"], [[1]], ("Pleural_Thickening",), name="one")
  second = listed(["b"], [[0]], ("pleural thickening",), name="two")
  third = listed(["c"], [[0]], ("Pleural Other",), name="three")
  both = mixture.Pool([first, second, third])
  assert both.info.classes == ("Pleural_Thickening", "Pleural Other")
  np.testing.assert_array_equal(both.table.labels, [[1, NAN], [0, NAN], [NAN, 0]])


def test_the_same_exclusive_classes_stay_exclusive(listed):
  one = listed(["a", "b"], np.eye(2), ("sick", "well"), name="one", exclusive=True)
  two = listed(["c"], [[1, 0]], ("Well", "Sick"), name="two", exclusive=True)
  none = listed(["d"], name="three", exclusive=True)
  both = mixture.Pool([one, two, none])
  assert both.info.exclusive and both.info.classes == ("sick", "well")
  np.testing.assert_array_equal(both.table.labels, [[1, 0], [0, 1], [0, 1], [NAN, NAN]])
  two = listed(["c"], [[1, 0, 0]], ("Well", "Sick", "Dead"), name="two", exclusive=True)
  assert not mixture.Pool([one, two]).info.exclusive


def test_names_are_qualified_and_the_rest_is_kept(kermany, nih):
  both = mixture.Pool([kermany, nih])
  assert len(both) == len(both.table) == 5
  assert both.table.ids == (
    "0:kermany/im0",
    "0:kermany/im1",
    "0:kermany/im2",
    "1:nih/im0",
    "1:nih/im1",
  )
  assert both.table.patients == ("kermany/a", "kermany/a", "kermany/b", "nih/a", "")
  assert both.table.views == ("AP", "", "AP", "", "")
  assert both.table.sexes == ("", "", "", "F", "M")
  np.testing.assert_array_equal(both.table.ages, [NAN, NAN, NAN, 30, 40])
  info = both.info
  assert (info.name, info.split, info.dataset, info.parts) == ("kermany + nih", "train", "pool", ())
  assert info.splits == {"train": 5, "test": 14}
  assert info.skipped == (("0:kermany/bad.png", "black"),)
  assert info.notes[:2] == ("kermany: a note", "nih: a note")


def test_records_come_from_their_source(kermany, nih):
  both = mixture.Pool([kermany, nih])
  for i, (source, row) in enumerate([(kermany, 0), (kermany, 1), (kermany, 2), (nih, 0), (nih, 1)]):
    record = both[i]
    np.testing.assert_array_equal(record.image, source[row].image)
    np.testing.assert_array_equal(record.labels, both.table.labels[i])
    assert (record.id, record.patient) == (both.table.ids[i], both.table.patients[i])
  for i in (-1, 5):
    with pytest.raises(IndexError):
      both[i]
  asked = []
  nih.read = lambda i, at_least=None: asked.append((i, at_least)) or nih[i]
  assert both.read(4, at_least=64).id == "1:nih/im1" and asked == [(1, 64)]


def test_weights_make_parts(kermany, nih):
  both = mixture.Pool([kermany, nih], [1, 3])
  assert both.info.parts == (Part("kermany", 3, 1.0), Part("nih", 2, 3.0))
  assert both.info.notes[-1] == (
    "a pool of kermany (3 images, 0.25 of the draws); nih (2 images, 0.75 of the draws)"
  )
  assert mixture.Pool([kermany, nih]).info.notes[-1] == (
    "a pool of kermany (3 images); nih (2 images)"
  )
  assert both.info.fingerprint == mixture.Pool([kermany, nih]).info.fingerprint
  assert both.info.fingerprint != mixture.Pool([nih, kermany]).info.fingerprint
  ends = np.cumsum([0, *(p.rows for p in both.info.parts)])
  groups = [np.arange(a, b, dtype=np.int32) for a, b in itertools.pairwise(ends)]
  rows = sampling.mixture(0, 0, 400, groups, [p.weight for p in both.info.parts])
  assert np.sum(both.groups[rows] == 1) == 300


def test_a_subset_of_a_pool_is_fair_to_its_sources(listed):
  one = listed([f"p{i}" for i in range(300)], np.eye(2)[np.arange(300) % 2], name="one")
  two = listed([f"p{i}" for i in range(100)], np.eye(2)[np.arange(100) % 2], name="two")
  both = mixture.Pool([one, two], [1, 1])
  part = subset.take(both, "10 %")
  assert part.info.parts == (Part("one", 30, 1.0), Part("two", 10, 1.0))
  assert np.bincount(part.groups).tolist() == [30, 10]
  few = subset.Subset(both, np.arange(5), "few")
  assert few.info.parts == (Part("one", 5, 1.0),)
  with pytest.raises(ValueError, match="order of its parts"):
    subset.Subset(both, np.array([350, 3]), "mixed up")


def test_a_patient_of_two_sources_of_one_data_set_stays_whole(listed):
  train = listed([f"p{i}" for i in range(50)], name="set", ids=[f"a{i}" for i in range(50)])
  test = listed([f"p{i}" for i in range(25, 75)], name="set", ids=[f"b{i}" for i in range(50)])
  both = mixture.Pool([train, test])
  a, b = (subset.take_fold(both, "1 of 2", role) for role in ("train", "test"))
  assert len(a) + len(b) == 100 and not set(a.table.patients) & set(b.table.patients)


def test_sixteen_bits_if_one_source_has_them(kermany, nih):
  assert mixture.Pool([kermany, nih]).bits == 8
  nih.bits = 16
  assert mixture.Pool([kermany, nih]).bits == 16


@pytest.mark.parametrize("weight", [0, -1, NAN, np.inf, "2", True])
def test_weights_that_are_none(kermany, nih, weight):
  with pytest.raises(UserError, match=r"source\[1\].weight=.*above 0"):
    mixture.Pool([kermany, nih], [1, weight])


def test_mistakes(kermany, nih, listed):
  with pytest.raises(UserError, match=r"source=\[\]"):
    mixture.Pool([])
  with pytest.raises(UserError, match=r"source\[2\] has images that config.data.source\[0\] has"):
    mixture.Pool([kermany, nih, kermany])
  with pytest.raises(UserError, match=r"source\[1\] has no images"):
    mixture.Pool([kermany, listed([], name="empty")], [1, 1])

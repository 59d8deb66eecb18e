import re

import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.data.loading import decoded_cache
from cxrjax.data.splits import patient_splits, subset

EVERYWHERE = [
  ([28, 29, 56, 57, 88, 89], [11, 24, 26, 52, 104, 118], [52, 53, 70, 71]),
  ([58, 59, 66, 67, 108, 109], [11, 24, 52, 105, 119], [42, 43, 94, 95, 114, 115]),
]
RATES = (0.5, 0.2, 0.05, 0.01)  # of the findings


def findings(seed, patients=1500):
  """Patients with 1 to 9 images, findings that run in patients, and some unknown labels."""
  rng = np.random.default_rng(seed)
  sizes = np.minimum(rng.geometric(0.4, patients), 9)
  names = np.repeat([f"p{i}" for i in range(patients)], sizes).tolist()
  prone = np.repeat(rng.random((patients, len(RATES))) < np.array(RATES), sizes, axis=0)
  labels = (prone & (rng.random(prone.shape) < 0.8)).astype(np.float32)
  labels[rng.random(labels.shape) < 0.03] = np.nan
  return names, labels


def classes(seed, patients=400, shares=(0.7, 0.25, 0.05)):
  rng = np.random.default_rng(seed)
  sizes = rng.integers(1, 5, patients)
  kinds = np.repeat(rng.choice(len(shares), patients, p=shares), sizes)
  names = np.repeat([f"p{i}" for i in range(patients)], sizes).tolist()
  return names, np.eye(len(shares), dtype=np.float32)[kinds]


def shuffled(listed, names, labels, seed, **options):
  """The same images in another order."""
  to = np.random.default_rng(seed).permutation(len(names))
  return listed([names[i] for i in to], labels[to], ids=[f"im{i}" for i in to], **options)


@pytest.mark.parametrize("make, exclusive", [(findings, False), (classes, True)])
@pytest.mark.parametrize("seed", range(3))
def test_shares_are_nested_by_patient_and_of_the_size_asked_for(listed, make, exclusive, seed):
  names, labels = make(seed)
  source = listed(names, labels, exclusive=exclusive)
  before = set()
  for percent in (0.1, 1, 2.5, 10, 33, 50, 99, 100):
    part = subset.take(source, f"{percent} %", seed)
    rows = part.rows.tolist()
    assert rows == sorted(set(rows)) and before <= set(rows)
    rest = set(range(len(names))) - set(rows)
    assert not {names[i] for i in rows} & {names[i] for i in rest}
    # As close as whole patients come: half of the largest has 4.5 images.
    assert abs(len(rows) - percent / 100 * len(names)) <= 4.5
    before = set(rows)
  assert len(before) == len(names)


@pytest.mark.parametrize("text", ["1 %", "10 %", "4 per class"])
def test_what_is_taken_does_not_depend_on_the_order_of_rows(listed, text):
  for make, exclusive in ((findings, False), (classes, True)):
    names, labels = make(5)
    found = {
      frozenset(
        subset.take(shuffled(listed, names, labels, seed, exclusive=exclusive), text, 1).table.ids
      )
      for seed in range(3)
    }
    assert len(found) == 1


def test_what_is_taken_is_the_same_everywhere(listed):
  # Written down, so that no change of library, machine or code changes a split unnoticed.
  i = np.arange(120)
  exclusive = listed([f"p{k}" for k in i // 2], np.eye(3)[i // 2 % 5 % 3], exclusive=True)
  several = listed([f"p{k}" for k in i // 2], np.stack([i % 3 == 0, i % 7 == 0], 1))
  found = [
    (
      subset.take(s, "5 %").rows.tolist(),
      subset.take(s, "2 per class").rows.tolist(),
      subset.take_fold(s, "2 of 20", "test").rows.tolist(),
    )
    for s in (exclusive, several)
  ]
  assert found == EVERYWHERE


def test_shares_keep_the_classes_in_proportion():
  # Against patients drawn at random, which is what a plain hash of the name would do.
  fair, plain = [], []
  for seed in range(12):
    names, labels = findings(seed, 3000)
    total = np.nansum(labels, axis=0)
    rows = subset.fraction(names, 0.1, seed, labels)
    fair.append(np.nansum(labels[rows], axis=0) / total - 0.1)
    rows = subset.fraction(names, 0.1, seed)
    plain.append(np.nansum(labels[rows], axis=0) / total - 0.1)
  fair, plain = np.abs(fair).mean(axis=0), np.abs(plain).mean(axis=0)
  assert (fair < 0.6 * plain).all()
  names, labels = classes(1, 4000)
  rows = subset.fraction(names, 0.05, 0, labels)
  count, total = labels[rows].sum(axis=0), labels.sum(axis=0)
  assert np.abs(count - 0.05 * total).max() <= 4  # a patient of each class


def test_a_rare_class_is_in_proportion_on_average():
  # 60 patients of a rare class: a subset of 1 % has one of them in 60 % of seeds.
  names = [f"p{i}" for i in range(1060)]
  labels = np.zeros((1060, 2), np.float32)
  labels[:60, 0], labels[60:, 1] = 1, 1
  count = [np.sum(subset.fraction(names, 0.01, seed, labels) < 60) for seed in range(40)]
  assert set(count) <= {0, 1} and 15 <= sum(count) <= 33


def test_counts_per_class_are_exact_where_classes_exclude_one_another(listed):
  for seed in range(4):
    names, labels = classes(seed)
    source, before = listed(names, labels, exclusive=True), set()
    for count in (1, 4, 16, 30):
      part = subset.take(source, f"{count} per class", seed)
      expected = np.minimum(labels.sum(axis=0), count)
      np.testing.assert_array_equal(part.table.labels.sum(axis=0), expected)
      assert before <= set(part.table.ids)
      before = set(part.table.ids)
      for c in range(3):  # no patient gives a second image while another has given none
        mine = [p for p, row in zip(part.table.patients, part.table.labels, strict=True) if row[c]]
        people = {p for p, row in zip(names, labels, strict=True) if row[c]}
        assert len(set(mine)) == min(len(mine), len(people))


def test_counts_per_class_of_findings(listed):
  for seed in range(4):
    names, labels = findings(seed)
    source, before = listed(names, labels), set()
    none = ~(labels == 1).any(1) & (labels == 0).any(1)
    for count in (1, 2, 8, 40, 100):
      part = subset.take(source, f"{count} per class", seed)
      assert before <= set(part.table.ids)
      before = set(part.table.ids)
      have = np.nansum(part.table.labels, axis=0)
      assert (have >= np.minimum(np.nansum(labels, axis=0), count)).all()
      assert np.sum(none[part.rows]) == min(none.sum(), count)
      assert len(part) <= count * (len(RATES) + 1)
      # Images of which nothing is known are no use.
      assert not np.isnan(part.table.labels).all(axis=1).any()


def test_a_class_that_has_too_few_gives_all_and_says_so(listed):
  names, labels = classes(2)
  n = int(labels[:, 2].sum())
  part = subset.take(
    listed(names, labels, classes=("a", "b", "rare"), exclusive=True), f"{n + 5} per class"
  )
  assert f"rare has only {n}" in part.info.notes[-1] and "a has only" not in part.info.notes[-1]


def test_other_seeds_take_others(listed):
  names, labels = classes(0)
  source = listed(names, labels, exclusive=True)
  for text in ("10 %", "5 per class"):
    assert len({subset.take(source, text, seed).table.ids for seed in range(5)}) == 5


@pytest.mark.parametrize("make", [findings, classes])
@pytest.mark.parametrize("k", [2, 5])
def test_folds_divide_the_patients_and_share_out_the_classes(listed, make, k):
  names, labels = make(7)
  source = listed(names, labels)
  tests = [subset.take_fold(source, f"{i} of {k}", "test", 3) for i in range(1, k + 1)]
  assert sorted(np.concatenate([t.rows for t in tests]).tolist()) == list(range(len(names)))
  people = [{names[i] for i in t.rows} for t in tests]
  assert len(set.union(*people)) == sum(map(len, people))
  carriers = [{p for p, y in zip(names, column, strict=True) if y == 1} for column in labels.T]
  for i, test in enumerate(tests, 1):
    train = subset.take_fold(source, f"{i} of {k}", "train", 3)
    assert sorted([*train.rows, *test.rows]) == list(range(len(names)))
    assert abs(len(test) - len(names) / k) < 0.05 * len(names) / k + 9
    for people in carriers:
      assert abs(len(people & set(test.table.patients)) - len(people) / k) < 1 + len(people) / 20
    assert train.info.splits == test.info.splits == {"train": len(train), "test": len(test)}
    assert (train.info.split, test.info.split) == (
      f"train, fold {i} of {k} (seed 3)",
      f"test, fold {i} of {k} (seed 3)",
    )


def test_folds_do_not_depend_on_the_order_of_rows(listed):
  names, labels = findings(3, 300)
  found = {
    frozenset(subset.take_fold(shuffled(listed, names, labels, seed), "2 of 3", "test").table.ids)
    for seed in range(3)
  }
  assert len(found) == 1


def test_images_of_unknown_patients_are_patients_of_their_own(listed):
  source = listed([""] * 100, np.eye(2)[np.arange(100) % 2], exclusive=True)
  assert len(subset.take(source, "10 %")) == 10
  assert abs(len(subset.take_fold(source, "1 of 4", "test")) - 25) <= 2
  assert patient_splits.owners(source.table)[:2] == ("image im0", "image im1")


def test_a_subset_is_a_source(listed):
  names, labels = classes(0)
  source = listed(names, labels, exclusive=True, ages=np.arange(len(names), dtype=np.float32))
  part = subset.take(subset.take_fold(source, "1 of 2", "train"), "20 %")
  assert part.source is source and len(part) == len(part.table) == len(part.rows)
  for i in (0, len(part) - 1):
    record = part[i]
    assert record.image[0, 0, 0] == part.rows[i] % 256
    assert (record.id, record.patient) == (part.table.ids[i], part.table.patients[i])
  np.testing.assert_array_equal(part.table.ages, part.rows)
  with pytest.raises(IndexError):
    part[len(part)]
  assert part.info.split == "train, fold 1 of 2, 20 %"
  assert part.info.name == "listed" and part.info.dataset == "listed"
  assert part.info.notes[0] == "a note" and "by patient" in part.info.notes[1]
  assert f"20 %: {len(part)} of " in part.info.notes[2]


def test_the_fingerprint_changes_with_the_images(listed):
  names, labels = classes(0)
  source = listed(names, labels, exclusive=True)
  texts = ("10 %", "20 %", "3 per class")
  prints = {subset.take(source, t, s).info.fingerprint for t in texts for s in (0, 1)}
  assert len(prints | {source.info.fingerprint}) == 7
  assert (
    subset.take(source, "10%").info.fingerprint == subset.take(source, " 10.0 % ").info.fingerprint
  )


def test_reading_passes_the_size_on(listed):
  source, asked = listed(["a", "b"]), []
  source.read = lambda i, at_least=None: asked.append((i, at_least)) or source[i]
  assert subset.Subset(source, np.array([1]), "x").read(0, at_least=7).id == "im1"
  assert asked == [(1, 7)]


def test_a_subset_shares_the_decoded_images_of_the_whole(arrays):
  source = arrays(12)
  whole = decoded_cache.load_images(source, 16, progress=False)
  assert source.reads >= 12
  source.reads = 0
  part = subset.take(source, "50 %")
  images = decoded_cache.load_images(part, 16, bits=8, progress=False)
  assert source.reads == 0 and images.ids == part.table.ids and images.info == part.info
  np.testing.assert_array_equal(images.pixels, np.asarray(whole.pixels)[part.rows])
  images = decoded_cache.load_images(part, 16, bits=8, indices=[2, 0], progress=False)
  np.testing.assert_array_equal(images.pixels, np.asarray(whole.pixels)[part.rows[[2, 0]]])


def test_without_the_whole_a_subset_decodes_its_own_images_once(arrays):
  source = arrays(12)
  part = subset.take(source, "50 %")
  first = decoded_cache.load_images(part, 16, bits=8, progress=False)
  assert source.reads == len(part)
  again = decoded_cache.load_images(subset.take(arrays(12), "50 %"), 16, bits=8, progress=False)
  assert source.reads == len(part)
  np.testing.assert_array_equal(first.pixels, again.pixels)


@pytest.mark.parametrize(
  "text",
  [
    "ten",
    "0 %",
    "101 %",
    "-1 %",
    "0 per class",
    "1.5 per class",
    "10",
    "nan %",
    "1e9 %%",
    "16 per clas",
  ],
)
def test_texts_that_are_no_subset(listed, text):
  with pytest.raises(UserError, match=rf"config.data.subset={re.escape(repr(text))}") as error:
    subset.take(listed(["a", "b"], np.eye(2)), text)
  assert "\n" not in str(error.value)


def test_folds_by_image_divide_patients(listed):
  names = [f"p{i % 10}" for i in range(40)]
  source = listed(names, np.eye(2)[np.arange(40) % 2])
  parts = [subset.take_fold(source, f"{i} of 4 by image", "test") for i in range(1, 5)]
  assert sorted(row for part in parts for row in part.rows.tolist()) == list(range(40))
  train = subset.take_fold(source, "1 of 4 by image", "train")
  assert set(parts[0].table.patients) & set(train.table.patients)
  assert "a patient may be in both splits" in train.info.notes[-1]


@pytest.mark.parametrize(
  "text", ["2", "0 of 5", "6 of 5", "1 of 1", "a of b", "1 of 5 in ", "-1 of 2"]
)
def test_texts_that_are_no_fold(listed, text):
  with pytest.raises(UserError, match=rf"config.data.fold={re.escape(repr(text))}.*2 of 5"):
    subset.take_fold(listed(["a", "b"], np.eye(2)), text, "train")


def test_mistakes(listed):
  source = listed(["a", "b", "b"])
  with pytest.raises(UserError, match="needs labels"):
    subset.take(source, "2 per class")
  with pytest.raises(UserError, match=r"2 patient.*3 folds"):
    subset.take_fold(source, "1 of 3", "train")
  with pytest.raises(UserError, match=r"'val'.*train and test"):
    subset.take_fold(source, "1 of 2", "val")
  with pytest.raises(UserError, match="no image with a known label"):
    subset.take(listed(["a", "b"], np.full((2, 2), np.nan)), "2 per class")
  with pytest.raises(UserError, match="no images"):
    subset.take(listed([]), "2 %")


@pytest.mark.parametrize("make, exclusive", [(findings, False), (classes, True)])
def test_slices_divide_patients_and_keep_the_classes_shares(listed, make, exclusive):
  names, labels = make(0)
  source = listed(names, labels, exclusive=exclusive)
  parts = [
    subset.take_slice(source, f"train[{a}%:{b}%]", (a / 100, b / 100))
    for a, b in [(0, 15), (15, 40), (40, 100)]
  ]
  rows = [part.rows.tolist() for part in parts]
  assert sorted(np.concatenate(rows).tolist()) == list(range(len(names)))
  owners = [{names[i] for i in mine} for mine in rows]
  assert not owners[0] & owners[1] and not owners[1] & owners[2] and not owners[0] & owners[2]
  for part, share in zip(parts, (0.15, 0.25, 0.6), strict=True):
    assert abs(len(part) - share * len(names)) < 0.02 * len(names) + 5
    for c in range(labels.shape[1]):
      whole = np.nansum(labels[:, c])
      assert abs(np.nansum(part.table.labels[:, c]) - share * whole) < 0.05 * whole + 5


def test_what_is_a_slice():
  assert subset.parse_slice("train[15%:]") == ("train", (0.15, 1.0))
  assert subset.parse_slice("train[:2.5 %]") == ("train", (0.0, 0.025))
  for other in ("train", "train[:100]", "train[:]", "train[:5%]+test[:5%]"):
    assert subset.parse_slice(other) == (other, None)
  for wrong in ("train[20%:10%]", "train[5%:101%]", "train[1.2.3%:]"):
    with pytest.raises(UserError, match=re.escape(wrong)):
      subset.parse_slice(wrong)


def test_a_slice_of_phantoms_a_fold_and_a_subset_of_it():
  from cxrjax.data import open_source

  rest = open_source("phantom", split="train[20%:]", n=100, size=32)
  held = open_source("phantom", split="train[:20%]", n=100, size=32)
  assert len(rest) + len(held) == 100 and not set(rest.table.patients) & set(held.table.patients)
  few = open_source("phantom", split="train[20%:]", subset="25 %", n=100, size=32)
  assert set(few.table.ids) < set(rest.table.ids)
  assert set(few.table.patients).isdisjoint(held.table.patients)
  fold = open_source("phantom", split="train[50%:]", fold="1 of 2", n=100, size=32)
  test = open_source("phantom", split="test", fold="1 of 2", n=100, size=32)
  assert not set(fold.table.patients) & set(test.table.patients)
  assert len(fold) < 100

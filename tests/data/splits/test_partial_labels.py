import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.data import open_source
from cxrjax.data.loading import decoded_cache, sampling
from cxrjax.data.loading.loader import Loader
from cxrjax.data.sources import mixture
from cxrjax.data.splits import partial_labels, subset

PHANTOM = {"n": 60, "size": 32, "sites": 1}


def known(source):
  """Names of the images with a known label."""
  return {source.table.ids[i] for i in np.flatnonzero(~np.isnan(source.table.labels).any(1))}


@pytest.mark.parametrize("words", ["10 %", "4 per class", "50 %"])
@pytest.mark.parametrize("split", ["train", "train[20%:]"])
def test_the_labels_are_those_of_the_subset_and_nested(words, split):
  part = open_source("phantom", split=split, subset=words, split_seed=3, **PHANTOM)
  whole = open_source("phantom", split=split, **PHANTOM)
  found = open_source("phantom", split=split, labelled=words, split_seed=3, **PHANTOM)
  assert found.table.ids == whole.table.ids
  assert known(found) == set(part.table.ids) != set(whole.table.ids)
  rows = [whole.table.ids.index(name) for name in part.table.ids]
  np.testing.assert_array_equal(found.table.labels[rows], whole.table.labels[rows])
  assert f"labels of {len(part)} of {len(whole)} images are known" in found.info.notes
  if words == "10 %":
    more = open_source("phantom", split=split, labelled="50 %", split_seed=3, **PHANTOM)
    other = open_source("phantom", split=split, labelled=words, split_seed=4, **PHANTOM)
    assert known(found) < known(more) and known(found) != known(other)


def test_a_share_of_every_batch_is_labelled_and_these_come_first():
  found = open_source("phantom", labelled="5 per class", labelled_share=0.25, **PHANTOM)
  has = ~np.isnan(found.table.labels).any(1)
  assert has[:10].all() and not has[10:].any() and sorted(found.rows.tolist()) == list(range(60))
  assert [(p.rows, p.weight) for p in found.info.parts] == [(10, 0.25), (50, 0.75)]
  groups = np.split(np.arange(60, dtype=np.int32), [10])
  drawn = sampling.mixture(0, 0, 60 * 16, groups, [p.weight for p in found.info.parts])
  np.testing.assert_array_equal((drawn.reshape(-1, 16) < 10).sum(1), 4)


def test_a_record_hides_its_labels_too():
  found = open_source("phantom", labelled="5 per class", labelled_share=0.5, **PHANTOM)
  plain = open_source("phantom", **PHANTOM)
  for i in (0, 9, 10, 59):
    record = found[i]
    np.testing.assert_array_equal(record.labels, found.table.labels[i])
    same = plain[plain.table.ids.index(record.id)]
    np.testing.assert_array_equal(record.image, same.image)
    assert record.patient == same.patient and np.isnan(record.labels).all() == (i >= 10)


def test_pixels_stay_with_their_images_and_are_decoded_once(cache):
  options = {"size": 32, "progress": False}
  plain = decoded_cache.load_images(
    open_source("phantom", split="train[10%:]", **PHANTOM), **options
  )
  for seed in range(2):
    few = open_source(
      "phantom",
      split="train[10%:]",
      labelled="10 %",
      labelled_share=0.25,
      split_seed=seed,
      **PHANTOM,
    )
    images = decoded_cache.load_images(few, **options)
    to = [plain.ids.index(name) for name in images.ids]
    np.testing.assert_array_equal(np.asarray(images.pixels), np.asarray(plain.pixels)[to])
    assert to != sorted(to)
  assert len(list(cache.iterdir())) == 1  # in whatever order


def test_batches_have_the_share_and_the_labels_of_their_images():
  plain = open_source("phantom", **PHANTOM)
  truth = dict(zip(plain.table.ids, plain.table.labels, strict=True))
  few = open_source("phantom", labelled="2 per class", labelled_share=0.5, **PHANTOM)
  loader = Loader(few, 8, 0, size=32, progress=False)
  for step in range(4):
    batch = loader.fetch(loader.data, loader[step])
    labels, index = np.asarray(batch["labels"]), np.asarray(batch["index"])
    has = ~np.isnan(labels).any(1)
    assert has.sum() == 4
    for i in np.flatnonzero(has):
      np.testing.assert_array_equal(labels[i], truth[few.table.ids[index[i]]])


def test_in_a_pool_with_weights_both_kinds_keep_its_proportions(listed):
  a = listed([f"a{i}" for i in range(8)], np.eye(2)[np.arange(8) % 2], name="A", exclusive=True)
  b = listed([f"b{i}" for i in range(12)], np.eye(2)[np.arange(12) % 2], name="B", exclusive=True)
  c = listed([f"c{i}" for i in range(4)], np.zeros((4, 0)), (), name="C")  # no labels at all
  both = mixture.Pool([a, b, c], [2.0, 1.0, 1.0])
  found = partial_labels.hide_labels(both, "50 %", 0.2)
  parts = {p.name: p.weight for p in found.info.parts}
  assert parts["A, labelled"] == pytest.approx(0.2 * 2 / 3)
  assert parts["B, labelled"] == pytest.approx(0.2 * 1 / 3)
  assert parts["A, not labelled"] == pytest.approx(0.8 * 2 / 4)
  assert parts["C, not labelled"] == pytest.approx(0.8 * 1 / 4)
  assert len(parts) == 5 and sum(p.rows for p in found.info.parts) == 24
  ends = np.cumsum([p.rows for p in found.info.parts])
  for part, end in zip(found.info.parts, ends, strict=True):
    names = found.table.ids[end - part.rows : end]
    assert all(f":{part.name[0]}/" in name for name in names)
    unknown = np.isnan(found.table.labels[end - part.rows : end]).any(1)
    assert unknown.all() == ("not" in part.name) and unknown.any() == ("not" in part.name)


def test_an_image_is_labelled_if_something_of_it_is_known(listed):
  labels = [[1, np.nan], [np.nan, np.nan], [0, 1], [np.nan, 0]]
  findings = partial_labels.hide_labels(listed(list("abcd"), labels), share=0.5)
  assert [p.rows for p in findings.info.parts] == [3, 1]
  assert findings.table.patients == ("a", "c", "d", "b")


def test_all_labels_are_drawn_as_before(listed):
  whole = listed(list("abcd"), np.eye(2)[[0, 1, 0, 1]], exclusive=True)
  found = partial_labels.hide_labels(whole, "100 %", 0.25)
  assert found.info.parts == () and found.table.ids == whole.table.ids
  np.testing.assert_array_equal(found.table.labels, whole.table.labels)


def test_other_labels_are_another_fingerprint():
  found = {
    open_source("phantom", labelled=words, split_seed=seed, **PHANTOM).info.fingerprint
    for words in ("10 %", "20 %")
    for seed in (0, 1)
  }
  assert len(found) == 4


@pytest.mark.parametrize(
  "options, words",
  [
    ({"labelled": "few"}, "config.data.labelled='few' is not a subset"),
    ({"labelled": 10}, "config.data.labelled=10 is not a string"),
    ({"labelled": "10 %", "labelled_share": 1.0}, "config.data.labelled_share=1.0 is not a share"),
    ({"labelled_share": "half"}, "config.data.labelled_share='half' is not a share"),
  ],
)
def test_mistakes_are_named(options, words):
  with pytest.raises(UserError, match=words):
    open_source("phantom", **options, **PHANTOM)


def test_a_share_of_no_labels_is_refused(listed):
  with pytest.raises(UserError, match="no label of"):
    partial_labels.hide_labels(listed(["a", "b"], [[np.nan], [np.nan]]), share=0.5)


def test_the_subset_says_its_own_key(listed):
  with pytest.raises(UserError, match=r"^config\.data\.subset="):
    subset.take(listed(["a"], [[1]]), "few")

"""Near-duplicates: all pairs as by brute force, copies found however changed, known answers."""

import io
import re
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageOps

from cxrjax.audit import duplicates
from cxrjax.data.sources import phantom


def vectors(n, d=24, seed=0):
  x = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def brute(a, b, threshold):
  r = a @ (a if b is None else b).T
  keep = r >= threshold
  if b is None:
    keep &= np.arange(len(a))[:, None] < np.arange(len(a))
  return {(i, j): r[i, j] for i, j in zip(*map(np.ndarray.tolist, np.nonzero(keep)), strict=True)}


@pytest.mark.parametrize("block", [8, 32, 4096])
@pytest.mark.parametrize("other", [False, True])
def test_pairs_are_those_of_brute_force(block, other):
  a, b = vectors(53), vectors(29, seed=1) if other else None
  i, j, r = duplicates.pairs(a, b, 0.4, block=block)
  expected = brute(a, b, 0.4)
  assert len(expected) > 10 and set(zip(i.tolist(), j.tolist(), strict=True)) == set(expected)
  np.testing.assert_allclose(r, [expected[k] for k in zip(i, j, strict=True)], atol=1e-5)
  assert (np.diff(r) <= 0).all()


def test_a_limit_keeps_the_best():
  a = vectors(70)
  i, j, r = duplicates.pairs(a, None, 0.1, block=16, limit=25)
  expected = sorted(brute(a, None, 0.1).values(), reverse=True)
  assert len(expected) > 300 and len(i) == len(j) == 25
  np.testing.assert_allclose(r, expected[:25], atol=1e-5)


def test_nothing_to_compare():
  a = vectors(5)
  for x, y in ((a[:0], None), (a[:1], None), (a[:0], a), (a, a[:0])):
    assert [len(v) for v in duplicates.pairs(x, y, 0.5)] == [0, 0, 0]
  with pytest.raises(ValueError, match="above 0"):
    duplicates.pairs(a, None, 0.0)
  blank = np.full((3, 64, 64, 1), 9, np.uint8)
  assert len(duplicates.within(blank)) == 0


def test_groups_join_by_way_of_others():
  i, j = np.array([4, 1, 7, 2]), np.array([1, 0, 6, 7])
  np.testing.assert_array_equal(duplicates.groups(9, i, j), [0, 0, 2, 3, 0, 5, 2, 2, 8])
  np.testing.assert_array_equal(duplicates.groups(3, i[:0], j[:0]), [0, 1, 2])


@pytest.fixture(scope="module")
def drawn():
  """One radiograph each of 40 drawn patients."""
  source = phantom.Source(split="train", n=80, size=128, sites=1)
  first = list({p: i for i, p in reversed(list(enumerate(source.table.patients)))}.values())
  return np.stack([source[i].image for i in sorted(first)[:40]])


def jpeg(x):
  data = io.BytesIO()
  x.save(data, "JPEG", quality=30)
  return Image.open(data)


def labelled(x):
  x = x.copy()
  x.paste(255, (5, 4, 40, 14))
  return x


CHANGES = {
  "again": lambda x: x,
  "jpeg": jpeg,
  "smaller": lambda x: x.resize((80, 80)),
  "gamma": lambda x: x.point([round(255 * (v / 255) ** 0.6) for v in range(256)]),
  "contrast": lambda x: ImageOps.autocontrast(x, cutoff=5),
  "label": labelled,
  "crop": lambda x: x.crop((2, 3, 126, 127)),
  "turn": lambda x: x.rotate(1, Image.BICUBIC),
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_found_however_changed(drawn, change):
  copies = [
    np.asarray(CHANGES[change](Image.fromarray(x[..., 0])).resize((128, 128))) for x in drawn[10:20]
  ]
  found = duplicates.across(drawn, np.stack(copies)[..., None])
  assert set(zip(found.i.tolist(), found.j.tolist(), strict=True)) >= {
    (k + 10, k) for k in range(10)
  }
  assert len(found) <= 12 and (found.r >= duplicates.COPY).all()


def test_within_is_across_with_itself(drawn):
  images = np.concatenate([drawn[:20], drawn[4:6]])
  a, looks = duplicates.within(images), duplicates.prepare(images)
  b = duplicates.across(looks, looks)
  assert {(4, 20), (5, 21)} <= set(zip(a.i.tolist(), a.j.tolist(), strict=True))
  off = b.i < b.j
  np.testing.assert_array_equal(np.stack([a.i, a.j]), np.stack([b.i[off], b.j[off]]))
  rows = duplicates.within(duplicates.prepare(images, np.array([21, 5])))
  assert (rows.i.tolist(), rows.j.tolist()) == ([0], [1])
  assert rows.r[0] == pytest.approx(1, abs=1e-5)


# Real radiographs.


def decoded(archive, names, size=96):
  with zipfile.ZipFile(archive) as files:
    found = []
    for name in names:
      image = Image.open(io.BytesIO(files.read(name)))
      image.draft("L", (size, size))
      found.append(np.asarray(image.convert("L").resize((size, size), Image.BILINEAR)))
  return np.stack(found)[..., None]


def listed(archive, pattern):
  if not archive.is_file():
    pytest.skip(f"no {archive.name} in CXRJAX_TEST_DATA")
  with zipfile.ZipFile(archive) as files:
    return sorted(n for n in files.namelist() if re.fullmatch(pattern, n))


def test_known_copies_of_kermany(test_data):
  """28 pairs in train, 10 of them among patients 1 to 499; 6 in test; none between."""
  archive = test_data / "chest_xray.zip"
  names = {
    s: listed(archive, rf"chest_xray/{s}/{of}.*\.jpeg")
    for s, of in (("train", "PNEUMONIA/person[0-9]{1,3}_"), ("test", ""))
  }
  names["train"] = [n for n in names["train"] if int(re.search(r"person(\d+)", n)[1]) < 500]
  looks = {s: duplicates.prepare(decoded(archive, n)) for s, n in names.items()}
  assert len(looks["train"]) > 900 and len(looks["test"]) == 624
  for split, expected in (("train", 10), ("test", 6)):
    found = duplicates.within(looks[split], first=0.75)
    assert (found.r > 0.99).sum() == len(found) == expected
    owner = [re.match(r"(person\d+|NORMAL2-IM-\d+)", n.rpartition("/")[2]) for n in names[split]]
    other = sum(owner[i][0] != owner[j][0] for i, j in zip(found.i, found.j, strict=True))
    assert other == (split == "test")  # NORMAL2-IM-0095 and -0096 are one picture
  between = duplicates.across(looks["train"], looks["test"], duplicates.SAME, first=0.7)
  assert len(between) == 0 and between.inspected > 5


def test_copies_left_in_the_radiography_archive(test_data):
  """Its near-duplicates were removed, but for cropped ones; these were found by eye."""
  archive = test_data / "COVID-19_Radiography_subset.zip"
  folder = "COVID-19_Radiography_Dataset/COVID/images"
  names = [
    n
    for n in listed(archive, rf"{folder}/COVID-\d+\.jpg")
    if 230 <= int(re.search(r"(\d+)\.jpg", n)[1]) < 360
    or 940 <= int(re.search(r"(\d+)\.jpg", n)[1]) < 1000
  ]
  found = duplicates.within(decoded(archive, names, 192))
  numbers = [int(re.search(r"(\d+)\.jpg", n)[1]) for n in names]
  pairs = {tuple(sorted((numbers[i], numbers[j]))) for i, j in zip(found.i, found.j, strict=True)}
  assert pairs >= {
    (239, 964),
    (278, 967),
    (283, 973),
    (300, 984),
    (302, 987),
    (304, 990),
    (309, 996),
  }
  assert len(pairs) < 15
  # Pixel by pixel they are no more alike than others are.
  assert found.first.max() < 0.96

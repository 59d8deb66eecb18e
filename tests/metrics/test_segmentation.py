"""Overlaps and distances of masks against brute force and cases done by hand."""

import itertools

import numpy as np
import pytest

from cxrjax.metrics import segmentation

RNG = np.random.default_rng(0)


def blob(seed, h=14, w=11):
  """A random mask of one or two parts, touching the border now and then."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:h, :w]
  mask = np.zeros((h, w), bool)
  for _ in range(2):
    cy, cx, r = rng.uniform(0, h), rng.uniform(0, w), rng.uniform(1.2, 4)
    mask |= (y - cy) ** 2 + (x - cx) ** 2 < r**2
  return mask


def surface(mask):
  """The pixels of a mask with one of four neighbours outside."""
  found = []
  for i, j in np.argwhere(mask).tolist():
    near = [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
    if not all(0 <= a < mask.shape[0] and 0 <= b < mask.shape[1] and mask[a, b] for a, b in near):
      found.append((i, j))
  return found


def brute(a, b, spacing):
  """Every pixel of one surface against every pixel of the other."""

  def to(first, second):
    return [
      min(np.hypot((i - k) * spacing[0], (j - m) * spacing[1]) for k, m in second) for i, j in first
    ]

  one, two = to(surface(a), surface(b)), to(surface(b), surface(a))
  return np.mean(one + two), max(np.percentile(one, 95), np.percentile(two, 95))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
def test_distances_are_those_of_brute_force(spacing):
  for a, b in itertools.pairwise(map(blob, range(12))):
    np.testing.assert_allclose(
      segmentation.surface_distances(a, b, spacing), brute(a, b, spacing), rtol=1e-12
    )
    np.testing.assert_allclose(
      segmentation.surface_distances(b, a, spacing), brute(a, b, spacing), rtol=1e-12
    )


def test_overlaps_are_those_of_counting():
  for a, b in itertools.pairwise(map(blob, range(12))):
    pairs = list(zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
    both, either = sum(p and t for p, t in pairs), sum(p or t for p, t in pairs)
    size = sum(p + t for p, t in pairs)
    assert segmentation.dice(a, b) == pytest.approx(2 * both / size)
    assert segmentation.iou(a, b) == pytest.approx(both / either)


def test_a_square_beside_a_square():
  truth = np.zeros((9, 9), bool)
  truth[2:5, 2:5] = True
  moved = np.roll(truth, 2, axis=1)
  assert segmentation.dice(moved, truth) == pytest.approx(6 / 18)
  assert segmentation.iou(moved, truth) == pytest.approx(3 / 15)
  # Eight pixels of border each; by columns 3 of them are 2 away, 2 are 1 away, 3 lie on the other.
  assert segmentation.surface_distances(moved, truth)[0] == pytest.approx((3 * 2 + 2 * 1) / 8)
  assert segmentation.surface_distances(moved, truth)[1] == 2.0
  assert segmentation.surface_distances(moved, truth, (1.0, 0.25))[1] == 0.5
  assert segmentation.surface_distances(truth, truth) == (0.0, 0.0)


def test_empty_masks():
  none, some = np.zeros((8, 8), bool), np.eye(8, dtype=bool)
  assert segmentation.dice(none, none) == segmentation.iou(none, none) == 1.0
  assert segmentation.surface_distances(none, none) == (0.0, 0.0)
  for pair in ((none, some), (some, none)):
    assert segmentation.dice(*pair) == segmentation.iou(*pair) == 0.0
    assert np.isnan(segmentation.surface_distances(*pair)).all()


def test_the_largest_parts_stay():
  mask = np.zeros((10, 12), bool)
  mask[1:4, 1:4] = True  # 9 pixels
  mask[1:3, 6:8] = True  # 4
  mask[7:9, 1:11] = True  # 20
  mask[4, 4] = True  # touches the first at a corner alone: a part of its own
  for count, sizes in ((1, [20]), (2, [20, 9]), (3, [20, 9, 4]), (4, [20, 9, 4, 1])):
    assert segmentation.largest(mask, count).sum() == sum(sizes)
  assert segmentation.largest(mask, 2)[1, 1] and not segmentation.largest(mask, 2)[1, 6]
  np.testing.assert_array_equal(segmentation.largest(mask, 0), mask)
  np.testing.assert_array_equal(segmentation.largest(mask, 9), mask)
  assert not segmentation.largest(np.zeros((4, 4), bool), 2).any()
  twins = np.zeros((8, 3), bool)
  twins[[1, 4, 7]] = True
  np.testing.assert_array_equal(segmentation.largest(twins, 2)[:, 0].nonzero()[0], [1, 4])


def test_each_image_by_itself():
  predicted = np.stack([blob(0), blob(1), np.zeros((14, 11), bool)])
  truth = np.stack([blob(2), blob(1), blob(3)])
  found = segmentation.per_image(predicted, truth, (1.0, 2.0))
  assert found["dice"][1] == 1.0 and found["dice"][2] == 0.0
  assert found["assd"][1] == 0.0 and np.isnan(found["hd95"][2])
  np.testing.assert_allclose(
    (found["assd"][0], found["hd95"][0]), brute(predicted[0], truth[0], (1.0, 2.0))
  )


def test_the_mean_and_its_interval_by_patient():
  values = RNG.normal(0.9, 0.05, 200)
  single = segmentation.mean(values)
  assert single.value == pytest.approx(values.mean()) and single.n == 200
  half = 1.96 * values.std() / np.sqrt(200)
  np.testing.assert_allclose(
    (single.low, single.high), values.mean() + np.array([-half, half]), atol=half / 5
  )
  # Four copies of each image of a patient tell no more than one: the interval must not shrink.
  copies = segmentation.mean(np.repeat(values, 4), [f"p{i // 4}" for i in range(800)])
  assert copies.n == 800
  np.testing.assert_allclose(copies.high - copies.low, 2 * half, rtol=0.15)
  gaps = np.where(np.arange(200) % 2, values, np.nan)
  known = segmentation.mean(gaps, [""] * 200)
  assert known.n == 100 and known.value == pytest.approx(values[1::2].mean())
  assert "no image" in segmentation.mean(np.full(3, np.nan)).undefined

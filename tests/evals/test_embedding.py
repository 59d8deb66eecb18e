"""Neighbours, groups and components against brute force and NumPy's own decompositions."""

import importlib.util

import numpy as np
import pytest

from cxrjax.data.base import Table
from cxrjax.evals import embedding


def table(n, labels=None, **known):
  return Table(
    ids=tuple(map(str, range(n))),
    patients=("",) * n,
    sites=known.pop("sites", ("",) * n),
    labels=np.zeros((n, 2), np.float32) if labels is None else labels,
    **known,
  )


@pytest.mark.parametrize("shared", [0, 1, 7])
def test_neighbours_are_the_most_similar_of_other_patients(shared):
  rng = np.random.default_rng(shared)
  train, test = rng.standard_normal((40, 5)), rng.standard_normal((9, 5))
  owners = [f"p{i % 20}" for i in range(40)]
  mine = [f"p{i}" if i < shared else f"q{i}" for i in range(8)] + [""]
  similarity, rows = embedding.retrieve(train, test, 4, owners, mine)
  assert rows.shape == similarity.shape == (9, 4)
  for i in range(9):
    cosine = train @ test[i] / np.linalg.norm(train, axis=1) / np.linalg.norm(test[i])
    order = [j for j in np.argsort(-cosine) if owners[j] != mine[i]][:4]
    assert rows[i].tolist() == order
    np.testing.assert_allclose(similarity[i], cosine[order], atol=1e-6)


def test_a_patient_who_owns_nearly_all_training_images_leaves_few_neighbours():
  features = np.eye(4, 3) + 0.1
  similarity, rows = embedding.retrieve(features, features[:1], 3, ["a", "a", "b", "a"], ["a"])
  assert rows.tolist() == [[2, -1, -1]]
  assert np.isfinite(similarity[0]).tolist() == [True, False, False]


def test_unknown_patients_are_nobody():
  features = np.eye(3)
  _, rows = embedding.retrieve(features, features, 1, ["", "", ""], ["", "", ""])
  assert rows[:, 0].tolist() == [0, 1, 2]


def test_share_of_neighbours_of_the_same_group():
  rows = np.array([[0, 1], [2, 3], [4, -1], [0, 4]])
  theirs = np.array([0, 1, 1, 1, -1])
  mine = np.array([0, 1, 0, -1])
  found, chance = embedding.shared(mine, theirs, rows, ["a", "b", "c", "d"])
  # Image 0: one of two. Image 1: both. Image 2: no neighbour is known. Image 3: itself unknown.
  assert found.value == pytest.approx((0.5 + 1.0) / 2) and found.n == 2
  assert found.low <= found.value <= found.high
  assert chance == pytest.approx((1 / 4 + 3 / 4) / 2)


def test_share_where_nothing_is_known():
  nothing = np.full(3, -1)
  found, chance = embedding.shared(nothing, nothing, np.zeros((3, 2), int), ["", "", ""])
  assert np.isnan(found.value) and found.undefined and np.isnan(chance)


def test_groups_are_numbered_alike_in_both_tables():
  nan = np.nan
  a = table(
    3,
    np.array([[1, 0], [0, 0], [nan, nan]], np.float32),
    sites=("x", "y", ""),
    ages=np.array([90, 3, nan], np.float32),
  )
  b = table(
    2,
    np.array([[1, 1], [0, 1]], np.float32),
    sites=("y", "y"),
    ages=np.array([30, 17.5], np.float32),
  )
  names, (of_a, of_b) = embedding.groups((a, b), ("edema", "mass"), "label")
  assert names == ["edema", "mass", "no finding", "edema + mass"]
  assert of_a.tolist() == [0, 2, -1] and of_b.tolist() == [3, 1]
  names, (of_a, of_b) = embedding.groups((a, b), ("edema", "mass"), "site")
  assert (names, of_a.tolist(), of_b.tolist()) == (["x", "y"], [0, 1, -1], [1, 1])
  names, (of_a, of_b) = embedding.groups((a, b), ("edema", "mass"), "age")
  assert names == ["0 to 17 years", "18 to 39 years", "80 years and older"]
  assert of_a.tolist() == [2, 0, -1] and of_b.tolist() == [1, 0]


@pytest.mark.parametrize("n, d, k", [(30, 6, 2), (4, 10, 3), (5, 1, 3)])
def test_components_are_those_of_the_singular_values(n, d, k):
  x = np.random.default_rng(n).standard_normal((n, d)) * np.arange(1, d + 1)
  scores, share = embedding.components(x, k)
  u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
  have = min(k, len(s))
  np.testing.assert_allclose(np.abs(scores[:, :have]), np.abs(u * s)[:, :have], atol=1e-6)
  np.testing.assert_allclose(share[:have], (s**2 / (s**2).sum())[:have], atol=1e-9)
  assert not scores[:, have:].any() and not share[have:].any()
  # The same whichever way the decomposition turned its vectors.
  np.testing.assert_allclose(embedding.components(x[::-1], k)[0], scores[::-1], atol=1e-6)


def test_patches_alike_have_one_colour():
  rng = np.random.default_rng(0)
  kinds = rng.standard_normal((2, 8))
  of = rng.integers(0, 2, (3, 6))
  colours, share = embedding.patch_colors(kinds[of], (2, 3))
  assert colours.shape == (3, 2, 3, 3) and colours.dtype == np.uint8
  flat = colours.reshape(-1, 3)[:, 0]
  assert {len(set(flat[of.ravel() == g].tolist())) for g in (0, 1)} == {1}
  assert set(flat.tolist()) == {0, 255}
  assert share[0] == pytest.approx(1)


def test_features_all_alike_are_one_point():
  points, _ = embedding.plane(np.ones((3, 4)))
  assert np.allclose(points, 0)


@pytest.mark.skipif(importlib.util.find_spec("umap") is not None, reason="umap-learn is installed")
def test_without_umap_the_map_is_by_pca():
  x = np.random.default_rng(0).standard_normal((20, 4))
  points, how = embedding.plane(x)
  assert how["method"] == "PCA" and len(how["explains"]) == 2
  unit = x / np.linalg.norm(x, axis=1, keepdims=True)
  np.testing.assert_allclose(points, embedding.components(unit, 2)[0], atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("umap") is None, reason="umap-learn is not installed")
def test_umap_keeps_groups_apart_and_is_the_same_again():
  rng = np.random.default_rng(0)
  x = np.concatenate([rng.standard_normal((40, 8)) + 8 * np.eye(8)[i] for i in (0, 1)])
  points, how = embedding.plane(x)
  assert how == {"method": "UMAP"}
  centres = points[:40].mean(0), points[40:].mean(0)
  own = np.linalg.norm(points[:40] - centres[0], axis=1)
  assert np.mean(own < np.linalg.norm(points[:40] - centres[1], axis=1)) > 0.95
  np.testing.assert_array_equal(points, embedding.plane(x)[0])

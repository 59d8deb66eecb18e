"""kNN against NumPy brute force."""

import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.evals import knn


def data(n=150, m=40, d=12, classes=3, seed=0):
  rng = np.random.default_rng(seed)
  centres = rng.normal(size=(classes, d))
  make = lambda y: (centres[y] + 0.7 * rng.normal(size=(len(y), d))).astype(np.float32)  # noqa: E731
  train, test = rng.integers(0, classes, n), rng.integers(0, classes, m)
  return make(train), np.eye(classes, dtype=np.float32)[train], make(test)


def brute(train, labels, test, k, temperature):
  """The definition, one test image at a time."""
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
  similarity = unit(test.astype(np.float64)) @ unit(train.astype(np.float64)).T
  rows = []
  for s in similarity:
    near = np.argsort(-s, kind="stable")[:k]
    weight = np.exp(s[near] / temperature)
    rows.append(
      [
        np.nansum(weight * labels[near, c]) / np.sum(weight[~np.isnan(labels[near, c])])
        for c in range(labels.shape[1])
      ]
    )
  return np.array(rows)


@pytest.mark.parametrize("chunk", [(256, 8192), (16, 32), (7, 23), (1, 1)])
def test_exact_whatever_the_blocks(chunk):
  train, labels, test = data()
  got = knn.knn_scores(train, labels, test, ks=(1, 5, 20), chunk=chunk)
  for k in (1, 5, 20):
    assert got[k].shape == (40, 3) and got[k].dtype == np.float32
    np.testing.assert_allclose(got[k], brute(train, labels, test, k, 0.07), atol=2e-5)


def test_nearest_ties_go_to_the_first():
  train = np.array([[1, 0], [0, 1], [1, 0], [2, 0], [0, 3]], np.float32)
  for chunk in ((4, 8), (4, 2)):
    similarity, index = knn.nearest(train, np.array([[5, 0]], np.float32), 4, chunk)
    assert index.tolist() == [[0, 2, 3, 1]]
    np.testing.assert_allclose(similarity, [[1, 1, 1, 0]])


def test_by_hand():
  # Cosines 1 and 0 with T = 1: weights e and 1.
  got = knn.knn_scores(
    np.eye(2, dtype=np.float32),
    np.eye(2, dtype=np.float32),
    np.array([[2.0, 0.0]], np.float32),
    ks=(2,),
    temperature=1.0,
  )
  np.testing.assert_allclose(got[2], [[np.e / (np.e + 1), 1 / (np.e + 1)]], rtol=1e-6)


def test_k_equal_to_all_and_to_more():
  train, labels, test = data(n=6)
  got = knn.knn_scores(train, labels, test, ks=(6,), chunk=(8, 4))
  np.testing.assert_allclose(got[6], brute(train, labels, test, 6, 0.07), atol=2e-5)
  with pytest.raises(UserError, match="between 1 and the 6 training images"):
    knn.knn_scores(train, labels, test, ks=(7,))


def test_unknown_labels_have_no_vote():
  train, labels, test = data(classes=2)
  labels[::3, 0] = np.nan
  got = knn.knn_scores(train, labels, test, ks=(20,))[20]
  np.testing.assert_allclose(got, brute(train, labels, test, 20, 0.07), atol=2e-5)
  # With no known neighbour the share in training decides; a class never seen has no score.
  labels = np.array([[1, 0], [0, 0], [np.nan, 0]], np.float32)
  features = np.array([[1, 0], [1, 0.1], [0, 1]], np.float32)
  got = knn.knn_scores(features, labels, np.array([[0, 1]], np.float32), ks=(1,))[1]
  assert got[0, 0] == 0.5 and np.isnan(got[0, 1])


def test_zero_features_do_not_break():
  got = knn.knn_scores(
    np.zeros((4, 3), np.float32),
    np.eye(2, dtype=np.float32)[[0, 1, 1, 1]],
    np.zeros((2, 3), np.float32),
    ks=(4,),
  )
  np.testing.assert_allclose(got[4][:, 1], 0.75)


def test_whitening_leaves_nothing_but_directions():
  rng = np.random.default_rng(5)
  mixed = rng.normal(size=(6, 6)) * np.array([30, 10, 3, 3, 1, 1])[:, None]
  train, test = rng.normal(size=(300, 6)) @ mixed + 7, rng.normal(size=(20, 6)) @ mixed + 7
  white, other = knn.whiten(train, test)
  np.testing.assert_allclose(white.mean(0), 0, atol=1e-3)
  np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(6), atol=1e-3)
  # Distances are Mahalanobis's.
  inverse = np.linalg.inv(np.cov(train.T, bias=True))
  gap = test[:1] - train
  want = np.einsum("nd,de,ne->n", gap, inverse, gap)
  np.testing.assert_allclose(((other[:1] - white) ** 2).sum(1), want, rtol=2e-2)


def test_whitening_does_not_raise_what_is_nothing():
  train = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
  train = np.concatenate([train, 1e-9 * train[::-1, :1], np.ones((50, 1), np.float32)], 1)
  (white,) = knn.whiten(train)
  assert white.shape == (50, 5) and np.sort(white.std(0))[:2].max() < 1e-3
  assert np.isfinite(knn.whiten(np.ones((5, 2), np.float32))[0]).all()


def test_what_varies_most_hides_the_rest_from_a_cosine_until_whitened():
  rng = np.random.default_rng(1)
  labels = np.eye(2, dtype=np.float32)[rng.integers(0, 2, 400)]
  nuisance = 100 * rng.normal(size=(400, 3))
  features = np.c_[nuisance, labels[:, 0] + 0.1 * rng.normal(size=400)]
  features = features.astype(np.float32)

  def right(x):
    found = knn.knn_scores(x[:300], labels[:300], x[300:], ks=(5,))[5]
    return float(np.mean(found.argmax(1) == labels[300:].argmax(1)))

  assert right(features) < 0.75
  assert right(np.concatenate(knn.whiten(features[:300], features[300:]))) > 0.85

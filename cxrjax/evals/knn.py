"""Weighted k-nearest-neighbour classification on frozen features."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from cxrjax.core.errors import UserError


def knn_scores(
  train_features: Float[np.ndarray, "n d"],
  train_labels: Float[np.ndarray, "n k"],
  test_features: Float[np.ndarray, "m d"],
  ks: tuple[int, ...] = (1, 5, 20),
  temperature: float = 0.07,
  chunk: tuple[int, int] = (256, 8192),
) -> dict[int, Float32[np.ndarray, "m k"]]:
  """Class scores of test images from their nearest training images, for several k at once.

  Neighbours are the k largest cosine similarities; each votes with weight exp(cosine / T), and
  the score of a class is the weighted mean of the neighbours' labels, in [0, 1]. An unknown label
  (NaN) has no vote for that class; where no neighbour has a vote, the score is the class's share in
  the training set. Of equally similar images the one that comes first counts as nearer. A class
  without both values (1 and 0) in the training set has no scores (NaN).

  Similarities are computed in blocks of `chunk` (test rows, training rows) of which only the best
  are kept, so memory does not grow with n times m.

  Args:
    train_features: one row per image; need not be normalised.
    train_labels: 1, 0 or NaN; one-hot for exclusive classes.
    test_features: of the images to classify.
    ks: numbers of neighbours.
    temperature: T.
    chunk: block size (test rows, training rows).

  Returns:
    For every k, scores f[m k].

  Raises:
    UserError: some k exceeds the number of training images.

  References:
    Wu et al. 2018, arXiv 1805.01978, eq. 8; Caron et al. 2021, arXiv 2104.14294, appendix A
    (T = 0.07).
  """
  n = len(train_features)
  k = max(ks)
  if min(ks) < 1 or k > n:
    raise UserError(f"ks={tuple(ks)}: neighbours must be between 1 and the {n} training images")
  similarity, index = nearest(train_features, test_features, k, chunk)
  weight = np.exp((similarity - similarity[:, :1]).astype(np.float64) / temperature)
  known = ~np.isnan(train_labels)
  known_labels = np.where(known, train_labels, 0).astype(np.float64)
  has_both_values = np.any(train_labels == 1, axis=0) & np.any(train_labels == 0, axis=0)
  share = np.where(has_both_values, known_labels.sum(0) / np.maximum(known.sum(0), 1), np.nan)
  scores = {}
  for count in ks:
    neighbors, weights = index[:, :count], weight[:, :count, None]
    votes = np.sum(weights * known[neighbors], axis=1)
    weighted = np.sum(weights * known_labels[neighbors], axis=1)
    weighted = np.where(votes > 0, weighted / np.where(votes > 0, votes, 1), share)
    scores[count] = np.where(has_both_values, weighted, np.nan).astype(np.float32)
  return scores


def nearest(
  train: Float[np.ndarray, "n d"],
  test: Float[np.ndarray, "m d"],
  k: int,
  chunk: tuple[int, int] = (256, 8192),
) -> tuple[Float32[np.ndarray, "m k"], np.ndarray]:
  """The k most similar training rows of every test row, by exact search.

  Args:
    train: one row per image.
    test: the same features of the images to classify.
    k: number of neighbours, at most n.
    chunk: block size (test rows, training rows).

  Returns:
    Cosine similarities, in descending order, and int32[m k] training rows.
  """
  n, m = len(train), len(test)
  rows, columns = min(chunk[0], max(m, 1)), max(k, min(chunk[1], n))
  blocks = -(-n // columns)
  padded = np.zeros((blocks * columns, train.shape[1]), np.float32)
  padded[:n] = normalize(train)
  train_blocks = jnp.asarray(padded.reshape(blocks, columns, -1))
  unit = normalize(test)
  similarities, indices = [], []
  for start in range(0, m, rows):
    query = unit[start : start + rows]
    query = np.pad(query, ((0, rows - len(query)), (0, 0)))
    block_similarity, block_index = _top(train_blocks, jnp.asarray(query), jnp.int32(n), k)
    similarities.append(np.asarray(block_similarity))
    indices.append(np.asarray(block_index))
  if not similarities:
    return np.zeros((0, k), np.float32), np.zeros((0, k), np.int32)
  return np.concatenate(similarities)[:m], np.concatenate(indices)[:m]


@functools.partial(jax.jit, static_argnums=3)
def _top(
  base: Float[Array, "blocks columns d"], query: Float[Array, "rows d"], n: Array, k: int
) -> tuple[Float[Array, "rows k"], Array]:
  """Scans the blocks of training rows, keeping each query's k best."""
  rows, columns = query.shape[0], base.shape[1]

  def step(best, block):
    offset, features = block
    index = offset + jnp.arange(columns, dtype=jnp.int32)
    # TF32 would reorder neighbours whose cosines differ in the fourth digit.
    sim = jnp.matmul(query, features.T, precision=jax.lax.Precision.HIGHEST)
    sim, candidates = jax.lax.top_k(jnp.where(index < n, sim, -jnp.inf), k)
    # Earlier blocks come first, so that top_k breaks ties by the lowest index over the whole set.
    sim = jnp.concatenate([best[0], sim], axis=1)
    index = jnp.concatenate([best[1], index[candidates]], axis=1)
    sim, best_of_both = jax.lax.top_k(sim, k)
    return (sim, jnp.take_along_axis(index, best_of_both, axis=1)), None

  start = (jnp.full((rows, k), -jnp.inf, jnp.float32), jnp.zeros((rows, k), jnp.int32))
  offsets = jnp.arange(base.shape[0], dtype=jnp.int32) * columns
  return jax.lax.scan(step, start, (offsets, base))[0]


def whiten(
  train_features: Float[np.ndarray, "n d"], *others: Float[np.ndarray, "m d"], floor: float = 1e-4
) -> list[Float32[np.ndarray, "k d"]]:
  """PCA whitening: features along the training images' principal components, scaled alike.

  Cosine similarity is dominated by the directions of largest variance. Where these encode exposure
  or position, as in networks trained to reconstruct pixels, smaller components only count after
  whitening.

  Args:
    train_features: features that give the mean and the components.
    others: features to transform in the same way.
    floor: lower limit on a component's standard deviation, as a share of the largest one.

  Returns:
    The training features, then the others.
  """
  x = train_features.astype(np.float64)
  mean = x.mean(0)
  values, vectors = np.linalg.eigh((x - mean).T @ (x - mean) / len(x))
  deviations = np.sqrt(np.maximum(values, 0))
  scale = np.maximum(deviations, max(floor * deviations.max(), np.finfo(np.float64).tiny))
  return [((y - mean) @ (vectors / scale)).astype(np.float32) for y in (train_features, *others)]


def normalize(x: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
  """Scales rows to unit length; a zero row stays zero."""
  norm = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
  return (x / np.where(norm > 0, norm, 1)).astype(np.float32)

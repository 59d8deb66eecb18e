"""Thumbnail baseline: ridge regression on 16x16 pixels.

Exposure, collimation and age already separate the classes of many data sets. A representation is
worth what it adds to this floor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, UInt8

from cxrjax.data.descriptors import downsample
from cxrjax.data.images import Images
from cxrjax.data.splits.patient_splits import split_by_patient

SIDE = 16
PENALTY = 0.1  # 0.901 on the official test split of Kermany's radiographs, 0.88 on Shenzhen's


def thumbnails(
  images: Images | UInt8[np.ndarray, "n s s 1"], side: int = SIDE
) -> Float32[np.ndarray, "n t"]:
  """Averages images over a `side` x `side` grid (exact areas, any size); flattened, values 0..1.

  16-bit images are windowed first.
  """
  return downsample(images, side).reshape(-1, side * side) / 255


def ridge(
  features: Float[np.ndarray, "n d"],
  labels: Float[np.ndarray, "n k"],
  test: Float[np.ndarray, "m d"],
  penalty: float = PENALTY,
) -> Float32[np.ndarray, "m k"]:
  """Ridge regression on 0/1 labels, in closed form.

  Minimises mean (y - x w - b)^2 + penalty |w|^2 for each class, on features standardised by the
  training set.

  Args:
    features: of training images.
    labels: 1, 0 or NaN (left out for that class).
    test: features of the images to score.
    penalty: L2 strength.

  Returns:
    Scores, about 0..1; NaN for a class without both values in training.
  """
  x = features.astype(np.float64)
  mean, scale = x.mean(0), x.std(0)
  scale = np.where(scale > 1e-7, scale, 1.0)
  x, test_x = (x - mean) / scale, (test.astype(np.float64) - mean) / scale
  scores = np.full((len(test), labels.shape[1]), np.nan)
  for c in range(labels.shape[1]):
    known = ~np.isnan(labels[:, c])
    y = labels[known, c].astype(np.float64)
    if len(np.unique(y)) < 2:
      continue
    known_x = x[known]
    known_mean = known_x.mean(0)
    known_x = known_x - known_mean
    gram = known_x.T @ known_x / len(known_x) + penalty * np.eye(known_x.shape[1])
    weight = np.linalg.solve(gram, known_x.T @ (y - y.mean()) / len(known_x))
    scores[:, c] = (test_x - known_mean) @ weight + y.mean()
  return scores.astype(np.float32)


def held_out(
  features: Float[np.ndarray, "n d"],
  labels: Float[np.ndarray, "n k"],
  groups: Sequence[str],
  folds: int = 5,
  penalty: float = PENALTY,
) -> Float32[np.ndarray, "n k"]:
  """Cross-validated ridge scores, with whole groups held out; NaN where undefined.

  Args:
    features: thumbnails.
    labels: 1, 0 or NaN.
    groups: shared by images that belong together (of one patient, near-duplicates).
    folds: number of folds of groups, balanced over labels.
    penalty: L2 strength.
  """
  scores = np.full(labels.shape, np.nan, np.float32)
  folds = min(folds, len(set(groups)))
  if folds < 2:
    return scores
  shares = {str(k): 1 / folds for k in range(folds)}
  for rows in split_by_patient(groups, shares, labels=labels.astype(np.float32)).values():
    others = np.delete(np.arange(len(labels)), rows)
    scores[rows] = ridge(features[others], labels[others], features[rows], penalty)
  return scores

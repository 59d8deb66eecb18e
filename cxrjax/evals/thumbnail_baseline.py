"""What no learning of features is needed for: ridge regression on 16x16-pixel thumbnails.

Exposure, collimation and age already separate many sets. A representation is worth what it adds to
this floor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, UInt8

from cxrjax.data.descriptors import small
from cxrjax.data.images import Images
from cxrjax.data.splits.patient_splits import split_by_patient

SIDE = 16
PENALTY = 0.1  # 0.901 on the official test split of Kermany's radiographs, 0.88 on Shenzhen's


def thumbnails(
  images: Images | UInt8[np.ndarray, "n s s 1"], side: int = SIDE
) -> Float32[np.ndarray, "n t"]:
  """Images averaged over a `side` x `side` grid (exact areas, any size), values 0..1, flattened.

  16-bit images are taken as their windows show them.
  """
  return small(images, side).reshape(-1, side * side) / 255


def ridge(
  features: Float[np.ndarray, "n d"],
  labels: Float[np.ndarray, "n k"],
  test: Float[np.ndarray, "m d"],
  penalty: float = PENALTY,
) -> Float32[np.ndarray, "m k"]:
  """Least squares on 0/1 labels with an L2 penalty, in closed form.

  Minimises mean (y - x w - b)^2 + penalty |w|^2 for each class on features standardised by the
  training set.

  Args:
    features: training images.
    labels: 1, 0 or NaN (left out for that class).
    test: images to score.
    penalty: L2 strength.

  Returns:
    Scores, about 0..1; NaN for a class without both values in training.
  """
  x = features.astype(np.float64)
  centre, scale = x.mean(0), x.std(0)
  scale = np.where(scale > 1e-7, scale, 1.0)
  x, t = (x - centre) / scale, (test.astype(np.float64) - centre) / scale
  scores = np.full((len(test), labels.shape[1]), np.nan)
  for c in range(labels.shape[1]):
    known = ~np.isnan(labels[:, c])
    y = labels[known, c].astype(np.float64)
    if len(np.unique(y)) < 2:
      continue
    part = x[known]
    middle = part.mean(0)
    part = part - middle
    gram = part.T @ part / len(part) + penalty * np.eye(part.shape[1])
    weight = np.linalg.solve(gram, part.T @ (y - y.mean()) / len(part))
    scores[:, c] = (t - middle) @ weight + y.mean()
  return scores.astype(np.float32)


def held_out(
  features: Float[np.ndarray, "n d"],
  labels: Float[np.ndarray, "n k"],
  groups: Sequence[str],
  folds: int = 5,
  penalty: float = PENALTY,
) -> Float32[np.ndarray, "n k"]:
  """Scores of every image by a ridge that saw no image of its group; NaN where there is none.

  Args:
    features: thumbnails.
    labels: 1, 0 or NaN.
    groups: images that belong together (a patient's, near-duplicates) share one.
    folds: parts that the groups are put into, evenly over labels.
    penalty: L2 strength.
  """
  scores = np.full(labels.shape, np.nan, np.float32)
  folds = min(folds, len(set(groups)))
  if folds < 2:
    return scores
  shares = {str(k): 1 / folds for k in range(folds)}
  for rows in split_by_patient(groups, shares, labels=labels.astype(np.float32)).values():
    rest = np.delete(np.arange(len(labels)), rows)
    scores[rows] = ridge(features[rest], labels[rest], features[rows], penalty)
  return scores

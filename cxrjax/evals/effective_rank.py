"""Detects collapsed representations: spread and effective rank of features over a data set."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from cxrjax.evals.knn import normalize


def health(features: Float[np.ndarray, "n d"]) -> dict[str, float]:
  """Collapse indicators of a feature matrix.

  Returns:
    `feature_std` from `spread`, and `effective_rank`. NaN for features that are not finite.
  """
  if not np.all(np.isfinite(features)):
    return {"feature_std": math.nan, "effective_rank": math.nan}
  return {"feature_std": spread(features), "effective_rank": effective_rank(features)}


def spread(features: Float[np.ndarray, "n d"]) -> float:
  """Mean over dimensions of the standard deviation of L2-normalised features, times sqrt(d).

  0 when all images have the same features (collapse), 1 when features point in all directions.

  References:
    Chen and He 2021, arXiv 2011.10566, section 4.1.
  """
  unit = normalize(features).astype(np.float64)
  return float(unit.std(0).mean() * math.sqrt(unit.shape[1]))


def effective_rank(features: Float[np.ndarray, "n d"], epsilon: float = 1e-7) -> float:
  """RankMe: exponential of the entropy of the normalised singular values.

  From 1 (all features on one line) to min(n, d) (equal in all directions). As in the paper,
  features are not centred.

  Args:
    features: finite; a few thousand images suffice.
    epsilon: added to each share, as in the paper.

  References:
    Garrido et al. 2023, arXiv 2210.02885, eq. 1 and 2; Roy and Vetterli 2007 (EUSIPCO).
  """
  x = features.astype(np.float64)
  n, d = x.shape
  # The smaller Gram matrix has the same spectrum and costs a fraction of an SVD.
  eigenvalues = np.linalg.eigvalsh(x.T @ x if d <= n else x @ x.T)
  singular = np.sqrt(np.clip(eigenvalues, 0, None))
  if singular.sum() == 0:
    return 1.0
  shares = singular / singular.sum() + epsilon
  return float(np.exp(-np.sum(shares * np.log(shares))))

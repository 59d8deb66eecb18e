"""Agreement of predicted and true masks, per image.

References:
  Maier-Hein et al., Metrics reloaded, 2024 (arXiv 2206.01653): Dice, IoU, average symmetric surface
  distance, 95 % Hausdorff distance, and conventions for empty masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from cxrjax.metrics import intervals, patient_bootstrap
from cxrjax.metrics.intervals import Interval

MEASURES = ("dice", "iou", "assd", "hd95")
Spacing = tuple[float, float]


def dice(predicted: Bool[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> float:
  """2 |P and T| / (|P| + |T|); 1 where both are empty, 0 where one is."""
  total = int(predicted.sum()) + int(truth.sum())
  return 2 * int((predicted & truth).sum()) / total if total else 1.0


def iou(predicted: Bool[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> float:
  """|P and T| / |P or T|; 1 where both are empty, 0 where one is."""
  union = int((predicted | truth).sum())
  return int((predicted & truth).sum()) / union if union else 1.0


def surface_distances(
  predicted: Bool[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"], spacing: Spacing = (1.0, 1.0)
) -> tuple[float, float]:
  """Average symmetric surface distance, and 95 % Hausdorff distance.

  The surface of a mask is its pixels with one of the four neighbours outside (pixels beyond the
  image are outside). Each surface pixel has a distance to the nearest pixel of the other surface.
  The first result is the mean of these distances over both surfaces, the second the larger of the
  two surfaces' 95th percentiles.

  Args:
    predicted: a mask.
    truth: a mask.
    spacing: height and width of a pixel; the distances are in its unit.

  Returns:
    (0, 0) where both are empty; (NaN, NaN), undefined, where one is.
  """
  if not predicted.any() and not truth.any():
    return 0.0, 0.0
  if not predicted.any() or not truth.any():
    return float("nan"), float("nan")
  predicted_surface, truth_surface = _surface(predicted), _surface(truth)
  to_truth = ndimage.distance_transform_edt(~truth_surface, sampling=spacing)[predicted_surface]
  to_predicted = ndimage.distance_transform_edt(~predicted_surface, sampling=spacing)[truth_surface]
  mean = (to_truth.sum() + to_predicted.sum()) / (len(to_truth) + len(to_predicted))
  return float(mean), float(max(np.percentile(d, 95) for d in (to_truth, to_predicted)))


def _surface(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
  return mask & ~ndimage.binary_erosion(mask)


def largest(mask: Bool[np.ndarray, "h w"], count: int) -> Bool[np.ndarray, "h w"]:
  """The mask's `count` largest 4-connected components; all of them for 0.

  Of components of equal size the one that begins higher up counts as larger.
  """
  if not count:
    return mask
  part_of, n_parts = ndimage.label(mask)
  if n_parts <= count:
    return mask
  sizes = np.bincount(part_of.ravel())[1:]
  return np.isin(part_of, 1 + np.argsort(-sizes, kind="stable")[:count])


def per_image(
  predicted: Bool[np.ndarray, "n h w"],
  truth: Bool[np.ndarray, "n h w"],
  spacing: Spacing = (1.0, 1.0),
) -> dict[str, Float[np.ndarray, "n"]]:
  """Computes all of `MEASURES` for every image; NaN where undefined."""
  pairs = list(zip(predicted, truth, strict=True))
  distances = np.array([surface_distances(p, t, spacing) for p, t in pairs]).reshape(-1, 2)
  return {
    "dice": np.array([dice(p, t) for p, t in pairs]),
    "iou": np.array([iou(p, t) for p, t in pairs]),
    "assd": distances[:, 0],
    "hd95": distances[:, 1],
  }


def mean(values: Float[np.ndarray, "n"], patients: Sequence[str] | None = None) -> Interval:
  """Mean over images, with a bootstrap interval over patients.

  Args:
    values: one per image; NaN (undefined) is left out.
    patients: one id per image; None where each image counts as independent.
  """
  known = np.isfinite(values)
  if not known.any():
    return intervals.undefined("no image defines it", 0)
  known_patients = (
    None if patients is None else [p for p, k in zip(patients, known, strict=True) if k]
  )
  return patient_bootstrap.interval(
    patient_bootstrap.mean(values[known][:, None], known_patients), bounded=False
  )

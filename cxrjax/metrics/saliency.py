"""How much of an explanation map lies on the lungs, per image.

Every score has a value expected by chance, from a map that is independent of the lungs: for the
share of energy and the pointing game, the lungs' share of the image.

References:
  Zhang et al., Top-down Neural Attention by Excitation Backprop, 2016 (arXiv 1608.00507): pointing
  game. Wang et al., Score-CAM, 2020 (arXiv 1910.01279), section 4.3: energy inside.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Float64

MEASURES = ("energy", "energy_ratio", "pointing", "iou20")
TOP = 0.2
EMPTY, FULL, FLAT = "no lungs in the mask", "the mask is all lung", "the map is flat"


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
  """Scores of explanation maps.

  Attributes:
    values: score of every image, by the names of `MEASURES`; NaN where undefined.
    chance: expected score of a map that is independent of the lungs, likewise.
    reasons: why the scores of an image are undefined; "" where they are defined.
  """

  values: dict[str, Float64[np.ndarray, "n"]]
  chance: dict[str, Float64[np.ndarray, "n"]]
  reasons: tuple[str, ...]


def energy(heat: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]) -> float:
  """The share of the map that lies in the mask, 0 to 1."""
  return float(heat[mask].sum(dtype=np.float64) / heat.sum(dtype=np.float64))


def pointing(heat: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]) -> float:
  """1 where the map's maximum lies in the mask, else 0; of tied maxima, the share in the mask."""
  return float(mask[heat == heat.max()].mean())


def top_iou(
  heat: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"], top: float = TOP
) -> float:
  """IoU of the mask with the share `top` of the pixels that have the largest values.

  Includes pixels tied with the smallest of these, but no zeros: a map may have fewer positive
  pixels.
  """
  chosen = (heat >= np.quantile(heat, 1 - top)) & (heat > 0)
  return float((chosen & mask).sum() / (chosen | mask).sum())


def score_maps(maps: Float[np.ndarray, "n h w"], masks: Bool[np.ndarray, "n h w"]) -> Scores:
  """Scores maps by all of `MEASURES`.

  Args:
    maps: one per image; negative values, evidence against a class, count as 0.
    masks: lung masks.

  Returns:
    "energy", the share of the map inside the lungs; "energy_ratio", the same divided by the lungs'
    share of the image: 1 by chance; "pointing"; "iou20", `top_iou`. All are undefined where a mask
    is empty or full, or a map is flat.
  """
  n = len(maps)
  values, chance = ({name: np.full(n, np.nan) for name in MEASURES} for _ in range(2))
  reasons = []
  for i in range(n):
    heat, mask = np.maximum(maps[i], 0.0), masks[i]
    area = float(mask.mean())
    reason = EMPTY if area == 0 else FULL if area == 1 else ""
    reasons.append(reason or ("" if np.ptp(heat) > 0 and np.isfinite(heat).all() else FLAT))
    if reasons[-1]:
      continue
    inside = energy(heat, mask)
    scores = (inside, inside / area, pointing(heat, mask), top_iou(heat, mask))
    # For IoU, of a random fifth of the pixels.
    expected = (area, 1.0, area, TOP * area / (TOP + area - TOP * area))
    for name, value, by_chance in zip(MEASURES, scores, expected, strict=True):
      values[name][i], chance[name][i] = value, by_chance
  return Scores(values, chance, tuple(reasons))

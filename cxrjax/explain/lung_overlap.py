"""Overlap of explanation maps with lung masks: whether a network looks at the lungs.

References:
  Tamé et al., Self-Supervised Curricular Deep Learning for Chest X-Ray Image Classification, 2023
  (arXiv 2301.10687), who ask this question; their measure is not published.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int

from cxrjax.data.decoding.windowing import to_unit
from cxrjax.data.images import Images, evenly_spaced
from cxrjax.explain import maps
from cxrjax.explain.maps import Head
from cxrjax.metrics import intervals, patient_bootstrap, saliency, segmentation
from cxrjax.metrics.intervals import Difference, Interval
from cxrjax.metrics.saliency import Scores

CHUNK = 64  # images whose maps are enlarged to image size at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
  """Explanation maps of images, and their overlap with lung masks.

  Attributes:
    maps: at the method's own grid.
    scores: NaN where an image has no lung mask.
    target: the explained class of every image; -1 where the method explains none.
  """

  maps: Float32[np.ndarray, "n gh gw"]
  scores: Scores
  target: Int[np.ndarray, "n"]


def with_masks(images: Images, most: int | None = None) -> Int[np.ndarray, "m"]:
  """Rows of the images that have a lung mask, reduced to `most` at even steps."""
  if images.masks is None:
    return np.zeros(0, np.int64)
  rows = np.flatnonzero(np.asarray(images.masks).any((1, 2, 3)))
  return rows if most is None else rows[evenly_spaced(len(rows), most)]


def normalize(images: Images, mean: float, std: float) -> Float32[np.ndarray, "n s s 1"]:
  """Images as network input: windowed to 0..1 and normalised."""
  pixels = np.asarray(images.pixels)
  assert images.windows is not None  # `Images` fills in the type's range
  unit = pixels / np.float32(255) if images.bits == 8 else to_unit(pixels, images.windows)
  return ((np.asarray(unit, np.float32) - mean) / std).astype(np.float32)


def explain_and_score(
  method: str,
  network: Any,
  params: Any,
  images: Images,
  *,
  head: Head | None = None,
  target: int | Int[np.ndarray, "n"] | None = None,
  mean: float = 0.5,
  std: float = 0.25,
  batch: int = 16,
  **options: Any,
) -> Explanation:
  """Computes explanation maps, and scores them where there are lung masks.

  Args:
    method: of `explain.maps.METHODS`.
    network: an encoder.
    params: its parameters.
    images: decoded at the network's input size.
    head: whose logits are explained.
    target: the class, or one for each image; None for each image's largest logit.
    mean: subtracted from gray levels in 0..1, as in training.
    std: gray levels are divided by it.
    batch: images per dispatch.
    **options: of `explain.maps.explain`.

  Raises:
    UserError: a method that the network does not support.
  """
  heatmaps, targets, scores = [], [], []
  height, width = images.pixels.shape[1:3]
  for start in range(0, len(images), CHUNK):
    chunk = images.take(np.arange(start, min(start + CHUNK, len(images))))
    x = normalize(chunk, mean, std)
    classes = None
    if method in maps.OF_CLASSES and head is not None:
      if target is None:
        classes = maps.predicted(network, params, x, head, batch)
      else:
        of_all = np.broadcast_to(np.asarray(target, np.int32), (len(images),))
        classes = of_all[start : start + CHUNK]
    heat = maps.explain(
      method, network, params, x, head=head, target=classes, batch=batch, **options
    )
    masks = np.zeros((len(x), height, width), bool)
    if chunk.masks is not None:
      masks = np.asarray(chunk.masks)[..., 0] > 0
    heatmaps.append(heat)
    targets.append(np.full(len(x), -1, np.int32) if classes is None else classes)
    scores.append(saliency.score_maps(maps.enlarge(heat, (height, width)), masks))
  return Explanation(np.concatenate(heatmaps), _concatenate(scores), np.concatenate(targets))


def _concatenate(batches: Sequence[Scores]) -> Scores:
  """Joins the scores of consecutive images."""
  values, chance = (
    {name: np.concatenate([getattr(b, of)[name] for b in batches]) for name in saliency.MEASURES}
    for of in ("values", "chance")
  )
  return Scores(values, chance, tuple(reason for b in batches for reason in b.reasons))


def summary(
  scores: Scores, patients: Sequence[str], labels: Float[np.ndarray, "n k"], classes: Sequence[str]
) -> dict[str, Any]:
  """Mean scores over images with bootstrap intervals over patients, for JSON.

  Returns:
    `all`, and in `classes`, by name, each class that has images: `{measure: interval}`, where an
    interval also has `chance`; and `undefined`, numbers of images without a score, by reason.
  """

  def summarize(rows: np.ndarray) -> dict[str, Any]:
    measures = {}
    for name in saliency.MEASURES:
      values = scores.values[name][rows]
      patient_ids = [patients[i] for i in np.flatnonzero(rows).tolist()]
      chance = scores.chance[name][rows]
      chance = chance[np.isfinite(chance)]
      measures[name] = interval(segmentation.mean(values, patient_ids)) | {
        "chance": float(chance.mean()) if len(chance) else None
      }
    return measures

  all_images = np.ones(len(labels), bool)
  by_class = {
    c: summarize(labels[:, k] == 1) for k, c in enumerate(classes) if (labels[:, k] == 1).any()
  }
  reasons = [r for r in scores.reasons if r]
  return {
    "all": summarize(all_images),
    "classes": by_class,
    "undefined": {r: reasons.count(r) for r in dict.fromkeys(reasons)},
  }


def differences(a: Scores, b: Scores, patients: Sequence[str]) -> dict[str, Difference]:
  """Paired differences in mean score, `a` minus `b`, on the same images.

  Images where either score is undefined are left out; patients are resampled together.
  """
  result = {}
  for name in saliency.MEASURES:
    x, y = a.values[name], b.values[name]
    defined = np.isfinite(x) & np.isfinite(y)
    patient_ids = [patients[i] for i in np.flatnonzero(defined).tolist()]
    if not defined.any():
      result[name] = Difference(**vars(intervals.undefined("no image defines both")))
      continue
    first, second = (patient_bootstrap.mean(v[defined][:, None], patient_ids) for v in (x, y))
    result[name] = patient_bootstrap.difference(first, second)
  return result


def interval(of: Interval) -> dict[str, Any]:
  """Converts an interval, or a difference with its p value, for JSON."""
  fields = {
    k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in vars(of).items()
  }
  return {k: v for k, v in fields.items() if v != ""}

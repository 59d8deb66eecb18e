"""Whether a network looks at the lungs: its explanation maps against lung masks.

References:
  Tamé et al., Self-Supervised Curricular Deep Learning for Chest X-Ray Image Classification, 2023
  (arXiv 2301.10687), whose question this is; their own measure is not published.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int

from cxrjax.data.decoding.windowing import to_unit
from cxrjax.data.images import Images, even
from cxrjax.explain import maps
from cxrjax.explain.maps import Head
from cxrjax.metrics import intervals, patient_bootstrap, saliency, segmentation
from cxrjax.metrics.intervals import Difference, Interval
from cxrjax.metrics.saliency import Scores

CHUNK = 64  # images whose maps are at the images' size at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
  """The maps of some images, and their scores.

  Attributes:
    maps: at the method's own grid.
    scores: NaN where an image has no lungs to compare with.
    target: the class that was explained, of every image; -1 where the method explains none.
  """

  maps: Float32[np.ndarray, "n gh gw"]
  scores: Scores
  target: Int[np.ndarray, "n"]


def with_masks(images: Images, most: int | None = None) -> Int[np.ndarray, "m"]:
  """Rows of the images that have a lung mask; of more than `most` that many, at even steps."""
  if images.masks is None:
    return np.zeros(0, np.int64)
  rows = np.flatnonzero(np.asarray(images.masks).any((1, 2, 3)))
  return rows if most is None else rows[even(len(rows), most)]


def normalised(images: Images, mean: float, std: float) -> Float32[np.ndarray, "n s s 1"]:
  """Images as a network sees them."""
  pixels = np.asarray(images.pixels)
  assert images.windows is not None  # `Images` fills in the type's range
  unit = pixels / np.float32(255) if images.bits == 8 else to_unit(pixels, images.windows)
  return ((np.asarray(unit, np.float32) - mean) / std).astype(np.float32)


def look(
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
) -> Seen:
  """The maps of images, scored where there are masks.

  Args:
    method: of `explain.maps.METHODS`.
    network: an encoder.
    params: its parameters.
    images: decoded at the size that the network sees.
    head: whose logits are explained.
    target: the class, or one for each image; None for each image's largest logit.
    mean: subtracted from gray levels in 0..1, as in training.
    std: divides them.
    batch: images a dispatch.
    **options: of `explain.maps.explain`.

  Raises:
    UserError: a method that the network has not.
  """
  found, targets, parts = [], [], []
  height, width = images.pixels.shape[1:3]
  for start in range(0, len(images), CHUNK):
    stop = min(start + CHUNK, len(images))
    part = images.take(np.arange(start, stop))
    x = normalised(part, mean, std)
    chosen = None
    if method in maps.OF_CLASSES and head is not None:
      chosen = (
        maps.predicted(network, params, x, head, batch)
        if target is None
        else np.broadcast_to(np.asarray(target, np.int32), (len(images),))[start:stop]
      )
    heat = maps.explain(
      method, network, params, x, head=head, target=chosen, batch=batch, **options
    )
    masks = (
      np.zeros((len(x), height, width), bool)
      if part.masks is None
      else np.asarray(part.masks)[..., 0] > 0
    )
    found.append(heat)
    targets.append(np.full(len(x), -1, np.int32) if chosen is None else chosen)
    parts.append(saliency.each(maps.enlarge(heat, (height, width)), masks))
  return Seen(np.concatenate(found), _joined(parts), np.concatenate(targets))


def _joined(parts: Sequence[Scores]) -> Scores:
  values, chance = (
    {name: np.concatenate([getattr(p, of)[name] for p in parts]) for name in saliency.MEASURES}
    for of in ("values", "chance")
  )
  return Scores(values, chance, tuple(reason for p in parts for reason in p.reasons))


def summary(
  scores: Scores, patients: Sequence[str], labels: Float[np.ndarray, "n k"], classes: Sequence[str]
) -> dict[str, Any]:
  """Means over images with bootstrap intervals over patients, for JSON.

  Returns:
    `all`, and for each class that some image shows `classes` by name: `{measure: interval}`, an
    interval having `chance` as well; and `undefined`, how many images have no score, by reason.
  """

  def of(rows: np.ndarray) -> dict[str, Any]:
    found = {}
    for name in saliency.MEASURES:
      values = scores.values[name][rows]
      owners = [patients[i] for i in np.flatnonzero(rows).tolist()]
      chance = scores.chance[name][rows]
      chance = chance[np.isfinite(chance)]
      found[name] = interval(segmentation.mean(values, owners)) | {
        "chance": float(chance.mean()) if len(chance) else None
      }
    return found

  every = np.ones(len(labels), bool)
  by_class = {c: of(labels[:, k] == 1) for k, c in enumerate(classes) if (labels[:, k] == 1).any()}
  reasons = [r for r in scores.reasons if r]
  return {
    "all": of(every),
    "classes": by_class,
    "undefined": {r: reasons.count(r) for r in dict.fromkeys(reasons)},
  }


def differences(a: Scores, b: Scores, patients: Sequence[str]) -> dict[str, Difference]:
  """By how much the mean scores of `a` are above those of `b`, of the same images.

  Images that one of the two does not define are left out of both; patients are resampled together.
  """
  found = {}
  for name in saliency.MEASURES:
    x, y = a.values[name], b.values[name]
    both = np.isfinite(x) & np.isfinite(y)
    owners = [patients[i] for i in np.flatnonzero(both).tolist()]
    if not both.any():
      found[name] = Difference(**vars(intervals.undefined("no image defines both")))
      continue
    first, second = (patient_bootstrap.mean(v[both][:, None], owners) for v in (x, y))
    found[name] = patient_bootstrap.difference(first, second)
  return found


def interval(of: Interval) -> dict[str, Any]:
  """An interval, or a difference with its p value, for JSON."""
  found = {
    k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in vars(of).items()
  }
  return {k: v for k, v in found.items() if v != ""}

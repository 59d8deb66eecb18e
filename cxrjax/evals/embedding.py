"""What features hold, to look at: neighbours, a map of all images, colours of patches."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, UInt8

from cxrjax.data.base import Table
from cxrjax.evals import knn, subgroups
from cxrjax.metrics import patient_bootstrap
from cxrjax.metrics.intervals import Interval

UNKNOWN = -1
NOTHING = "no finding"


def retrieve(
  train: Float[np.ndarray, "n d"],
  test: Float[np.ndarray, "m d"],
  k: int,
  train_patients: Sequence[str],
  test_patients: Sequence[str],
) -> tuple[Float32[np.ndarray, "m k"], Int[np.ndarray, "m k"]]:
  """The k training images most similar to each test image, none of them of its own patient.

  Args:
    train: features, one row an image.
    test: the same of the images to look for.
    k: how many; fewer where a patient leaves fewer.
    train_patients: keys of every training image's patient (`data.splits.patient_splits`); empty
      where unknown.
    test_patients: of every test image.

  Returns:
    Cosine similarities, falling, and training rows; `UNKNOWN`, with NaN, where there are no more.
  """
  owners = {p: i for i, p in enumerate(dict.fromkeys(p for p in test_patients if p))}
  own = np.array([owners.get(p, UNKNOWN) for p in test_patients])
  of = np.array([owners.get(p, UNKNOWN) for p in train_patients])
  counts = np.bincount(of[of >= 0], minlength=1)
  similarity, rows = knn.nearest(train, test, min(len(train), k + int(counts.max())))
  same = (of[rows] == own[:, None]) & (own >= 0)[:, None]
  order = np.argsort(same, axis=1, kind="stable")[:, :k]  # others first, the most similar first
  similarity, rows, same = (np.take_along_axis(a, order, 1) for a in (similarity, rows, same))
  return np.where(same, np.nan, similarity).astype(np.float32), np.where(same, UNKNOWN, rows)


def shared(
  mine: Int[np.ndarray, "m"],
  theirs: Int[np.ndarray, "n"],
  rows: Int[np.ndarray, "m k"],
  patients: Sequence[str],
) -> tuple[Interval, float]:
  """How often neighbours are of the same group as the image itself.

  Args:
    mine: group of every test image, `UNKNOWN` where there is none.
    theirs: of every training image.
    rows: neighbours, from `retrieve`.
    patients: of the test images.

  Returns:
    The share of neighbours of known group, mean over test images, with a bootstrap interval over
    patients; and what training images drawn at random would give.
  """
  group = np.where(rows >= 0, theirs[rows], UNKNOWN)
  known = (group >= 0) & (mine >= 0)[:, None]
  same = np.where(known, group == mine[:, None], 0).sum(1)
  share = np.where(known.any(1), same / np.maximum(known.sum(1), 1), np.nan)
  sizes = np.bincount(theirs[theirs >= 0], minlength=max(mine.max(), theirs.max(), 0) + 1)
  at_random = sizes[np.maximum(mine, 0)] / max(sizes.sum(), 1)
  used = np.isfinite(share)
  chance = float(at_random[used].mean()) if used.any() else float("nan")
  return patient_bootstrap.interval(
    patient_bootstrap.mean(share[:, None], patients), bounded=False
  ), chance


def groups(
  tables: Sequence[Table], classes: Sequence[str], by: str
) -> tuple[list[str], list[Int[np.ndarray, "_"]]]:
  """Names of the groups of images by "label" or by an attribute of `subgroups`, and whose is whose.

  A label is all that an image is known to show: `edema + effusion`, or `no finding`.

  Returns:
    Names, and for every table the group of each image, `UNKNOWN` where there is none.
  """
  of: list[list[str]] = []
  for table in tables:
    texts = np.full(len(table), "", dtype=object)
    if by == "label":
      texts[:] = findings(table.labels, classes)
    else:
      for name, rows in subgroups.divided(by, table):
        texts[rows] = "" if name == "unknown" else name
    of.append(texts.tolist())
  order = [*classes, NOTHING] if by == "label" else []
  names = sorted(
    {t for texts in of for t in texts if t},
    key=lambda t: (order.index(t) if t in order else len(order), t),
  )
  place = {name: i for i, name in enumerate(names)} | {"": UNKNOWN}
  return names, [np.array([place[t] for t in texts], dtype=np.int64) for texts in of]


def findings(labels: Float[np.ndarray, "n k"], classes: Sequence[str]) -> list[str]:
  """What every image shows, `edema + effusion`; empty where nothing is known of it."""
  return [
    " + ".join(c for c, v in zip(classes, row, strict=True) if v == 1)
    or ("" if np.isnan(row).all() else NOTHING)
    for row in labels
  ]


def plane(features: Float[np.ndarray, "n d"]) -> tuple[Float32[np.ndarray, "n 2"], dict[str, Any]]:
  """Images as points of a plane: UMAP where `umap-learn` is installed, else PCA.

  Both see features of unit length, as the neighbours do.

  Returns:
    Points, and facts: `method`, and for PCA the share of the variance that each axis `explains`.

  References:
    McInnes, Healy and Melville 2018, arXiv 1802.03426 (UMAP).
  """
  unit = knn.normalise(features)
  if len(unit) > 3 and importlib.util.find_spec("umap") is not None:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of its parts; and that a seed makes it use one thread
      import umap

      found = umap.UMAP(n_neighbors=min(15, len(unit) - 1), metric="cosine", random_state=0)
      return found.fit_transform(unit).astype(np.float32), {"method": "UMAP"}
  points, share = components(unit, 2)
  return points.astype(np.float32), {"method": "PCA", "explains": share.tolist()}


def components(
  x: Float[np.ndarray, "n d"], k: int
) -> tuple[Float64[np.ndarray, "n k"], Float64[np.ndarray, "k"]]:
  """Scores on the first k principal components, and the share of the variance of each.

  A component's sign is such that its largest loading is positive. Components that there are not
  (fewer dimensions or images than k) are 0.
  """
  centred = x.astype(np.float64) - x.astype(np.float64).mean(0)
  values, vectors = np.linalg.eigh(centred.T @ centred)
  values, vectors = np.maximum(values[::-1][:k], 0), vectors[:, ::-1][:, :k]
  vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])])
  scores, share = np.zeros((len(x), k)), np.zeros(k)
  scores[:, : len(values)] = centred @ vectors
  share[: len(values)] = values / max(float((centred**2).sum()), np.finfo(np.float64).tiny)
  return scores, share


def patch_colours(
  patches: Float[np.ndarray, "n p d"], grid: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "n gh gw 3"], Float64[np.ndarray, "3"]]:
  """The first three principal components of all patches together as red, green and blue.

  Each component goes from its 1st percentile (dark) to its 99th (bright).

  Args:
    patches: of some images, row by row.
    grid: rows and columns of an image's patches.

  Returns:
    A colour a patch, and the share of the variance of each component.

  References:
    Oquab et al. 2023, arXiv 2304.07193, figure 1 (there the background is cut off first).
  """
  scores, share = components(patches.reshape(-1, patches.shape[-1]), 3)
  low, high = np.percentile(scores, [1, 99], axis=0)
  unit = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)
  return np.rint(255 * unit).astype(np.uint8).reshape(len(patches), *grid, 3), share

"""Exploring features: nearest neighbours, a 2-D map of images, colours of patches."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Int64, UInt8

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
  """The k training images most similar to each test image, excluding its own patient.

  Args:
    train: features, one row per image.
    test: features of the query images.
    k: number of neighbours; fewer where other patients have fewer images.
    train_patients: keys of every training image's patient (`data.splits.patient_splits`); empty
      where unknown.
    test_patients: the same of every test image.

  Returns:
    Cosine similarities, in descending order, and training rows; NaN and `UNKNOWN` past the last.
  """
  number_of = {p: i for i, p in enumerate(dict.fromkeys(p for p in test_patients if p))}
  test_numbers = np.array([number_of.get(p, UNKNOWN) for p in test_patients])
  train_numbers = np.array([number_of.get(p, UNKNOWN) for p in train_patients])
  images_per_patient = np.bincount(train_numbers[train_numbers >= 0], minlength=1)
  similarity, rows = knn.nearest(train, test, min(len(train), k + int(images_per_patient.max())))
  same_patient = (train_numbers[rows] == test_numbers[:, None]) & (test_numbers >= 0)[:, None]
  # Other patients first, each part by similarity.
  order = np.argsort(same_patient, axis=1, kind="stable")[:, :k]
  similarity, rows, same_patient = (
    np.take_along_axis(a, order, 1) for a in (similarity, rows, same_patient)
  )
  similarity = np.where(same_patient, np.nan, similarity).astype(np.float32)
  return similarity, np.where(same_patient, UNKNOWN, rows)


def shared(
  mine: Int[np.ndarray, "m"],
  theirs: Int[np.ndarray, "n"],
  rows: Int[np.ndarray, "m k"],
  patients: Sequence[str],
) -> tuple[Interval, float]:
  """How often neighbours share the group of their query image.

  Args:
    mine: group of every test image, `UNKNOWN` where there is none.
    theirs: group of every training image.
    rows: neighbours, from `retrieve`.
    patients: of the test images.

  Returns:
    The share of neighbours of known group that have the same one, mean over test images, with a
    bootstrap interval over patients; and the share expected of random training images.
  """
  neighbor_groups = np.where(rows >= 0, theirs[rows], UNKNOWN)
  comparable = (neighbor_groups >= 0) & (mine >= 0)[:, None]
  same = np.where(comparable, neighbor_groups == mine[:, None], 0).sum(1)
  share = np.where(comparable.any(1), same / np.maximum(comparable.sum(1), 1), np.nan)
  sizes = np.bincount(theirs[theirs >= 0], minlength=max(mine.max(), theirs.max(), 0) + 1)
  at_random = sizes[np.maximum(mine, 0)] / max(sizes.sum(), 1)
  defined = np.isfinite(share)
  chance = float(at_random[defined].mean()) if defined.any() else float("nan")
  mean_share = patient_bootstrap.mean(share[:, None], patients)
  return patient_bootstrap.interval(mean_share, bounded=False), chance


def groups(
  tables: Sequence[Table], classes: Sequence[str], by: str
) -> tuple[list[str], list[Int[np.ndarray, "_"]]]:
  """Groups images by "label" or by an attribute of `subgroups`.

  A label lists all findings of an image: `edema + effusion`, or `no finding`.

  Returns:
    Names of the groups, and for every table the group of each image, `UNKNOWN` where it has none.
  """
  texts_of_tables: list[list[str]] = []
  for table in tables:
    texts = np.full(len(table), "", dtype=object)
    if by == "label":
      texts[:] = findings(table.labels, classes)
    else:
      for name, rows in subgroups.iter_groups(by, table):
        texts[rows] = "" if name == "unknown" else name
    texts_of_tables.append(texts.tolist())
  label_order = [*classes, NOTHING] if by == "label" else []
  names = sorted(
    {t for texts in texts_of_tables for t in texts if t},
    key=lambda t: (label_order.index(t) if t in label_order else len(label_order), t),
  )
  index_of = {name: i for i, name in enumerate(names)} | {"": UNKNOWN}
  return names, [
    np.array([index_of[t] for t in texts], dtype=np.int64) for texts in texts_of_tables
  ]


def rows_of_each_class(labels: Float[np.ndarray, "n k"], count: int) -> Int64[np.ndarray, "m"]:
  """The first rows of each class in turn, up to `count`; empty without labels."""
  of_class = [np.flatnonzero(labels[:, c] == 1) for c in range(labels.shape[1])]
  order = [of[i] for i in range(count) for of in of_class if i < len(of)]
  return np.array(list(dict.fromkeys(order))[:count], np.int64)


def findings(labels: Float[np.ndarray, "n k"], classes: Sequence[str]) -> list[str]:
  """The findings of every image, `edema + effusion`; empty where all labels are unknown."""
  return [
    " + ".join(c for c, v in zip(classes, row, strict=True) if v == 1)
    or ("" if np.isnan(row).all() else NOTHING)
    for row in labels
  ]


def plane(features: Float[np.ndarray, "n d"]) -> tuple[Float32[np.ndarray, "n 2"], dict[str, Any]]:
  """Maps images to points in a plane: by UMAP where `umap-learn` is installed, else by PCA.

  Both use features of unit length, as the neighbours do.

  Returns:
    Points, and facts: `method`, and for PCA in `explains` the variance share of each axis.

  References:
    McInnes, Healy and Melville 2018, arXiv 1802.03426 (UMAP).
  """
  unit = knn.normalize(features)
  if len(unit) > 3 and importlib.util.find_spec("umap") is not None:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of dependencies, and that a seed limits it to one thread
      import umap

      reducer = umap.UMAP(n_neighbors=min(15, len(unit) - 1), metric="cosine", random_state=0)
      return reducer.fit_transform(unit).astype(np.float32), {"method": "UMAP"}
  points, share = components(unit, 2)
  return points.astype(np.float32), {"method": "PCA", "explains": share.tolist()}


def components(
  x: Float[np.ndarray, "n d"], k: int
) -> tuple[Float64[np.ndarray, "n k"], Float64[np.ndarray, "k"]]:
  """Projects onto the first k principal components; also gives the variance share of each.

  Signs are such that the largest loading of a component is positive. Missing components
  (fewer dimensions or images than k) are 0.
  """
  centered = x.astype(np.float64) - x.astype(np.float64).mean(0)
  values, vectors = np.linalg.eigh(centered.T @ centered)
  values, vectors = np.maximum(values[::-1][:k], 0), vectors[:, ::-1][:, :k]
  vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])])
  scores, share = np.zeros((len(x), k)), np.zeros(k)
  scores[:, : len(values)] = centered @ vectors
  share[: len(values)] = values / max(float((centered**2).sum()), np.finfo(np.float64).tiny)
  return scores, share


def patch_colors(
  patches: Float[np.ndarray, "n p d"], grid: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "n gh gw 3"], Float64[np.ndarray, "3"]]:
  """The first three principal components of all patches as red, green and blue.

  Each component is scaled from its 1st percentile (dark) to its 99th (bright).

  Args:
    patches: patch features of some images, row by row.
    grid: rows and columns of patches in an image.

  Returns:
    A colour per patch, and the share of the variance of each component.

  References:
    Oquab et al. 2023, arXiv 2304.07193, figure 1 (where the background is removed first).
  """
  scores, share = components(patches.reshape(-1, patches.shape[-1]), 3)
  low, high = np.percentile(scores, [1, 99], axis=0)
  unit = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)
  return np.rint(255 * unit).astype(np.uint8).reshape(len(patches), *grid, 3), share

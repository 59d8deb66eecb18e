"""kNN and linear probe of a frozen encoder, on labels that its training did not use."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int, UInt8

from cxrjax.core.errors import UserError
from cxrjax.evals import (
  classification_metrics,
  effective_rank,
  embedding,
  eval_splits,
  features,
  knn,
  linear,
  thumbnail_baseline,
)
from cxrjax.evals.eval_splits import Data
from cxrjax.metrics import roc
from cxrjax.metrics.intervals import Interval


@dataclasses.dataclass(frozen=True)
class Result:
  """Metrics, facts and arrays of one evaluation.

  Attributes:
    metrics: intervals by name: `knn5/auroc`, `linear/f1`, ...
    facts: for JSON: the chosen L2 and threshold, health of the features, seconds.
    arrays: test images' `labels` f32[m k] and scores f32[m k] by method (`knn5`, `linear`), for
      ROC curves, confusion matrices and comparisons; and those of `eval_splits.test_metadata`.
    scores: of the validation images, higher is better: these may choose a checkpoint, which
      metrics of test images must not.
  """

  metrics: dict[str, Interval]
  facts: dict[str, Any]
  arrays: dict[str, np.ndarray]
  scores: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
  """Judges an encoder by kNN and a linear probe on frozen features.

  kNN votes among the training images. The linear probe is fitted on them, with the L2 strength of
  the best validation AUROC and the thresholds that maximize `threshold_for` on validation. Metrics
  are those of the test images, which decide nothing. No parameter of the encoder changes.

  Attributes:
    data: `name` and options of a source; `train`, `val`, `test` name its splits (see
      `eval_splits.load`).
    every: how often, as a duration ("10 epochs"); the training loop reads it.
    size: side of the images the encoder sees, pixels.
    ks: numbers of neighbours.
    temperature: of the neighbours' votes.
    l2: L2 strengths to try.
    threshold_for: "balanced_accuracy", "f1", "accuracy" or "auto"; see
      `classification_metrics.thresholds`.
    batch: images per dispatch.
    mean: subtracted from pixels in 0..1, as in training.
    std: pixels are divided by it, as in training.
    val_fraction: share of train's patients carved for validation where the source has no such
      split.
    max_train: approximate limit on training images.
    allow_shared_patients: allow a patient to be in two parts.
    fit: "squash", "pad" or "crop", for images that are not square.
    on_bad_image: "error" or "skip".
    whiten: also judge whitened features (`knn.whiten`) by kNN, with the largest of `ks`.
    bits: "auto", 8 or 16, of the stored pixels; see `data.loading.decoded_cache.load_images`.
    window: intensity window of 16-bit images, as in training.

  References:
    Caron et al. 2021, arXiv 2104.14294, section 4.1 (protocol).
  """

  data: Mapping[str, Any]
  every: str = "10 epochs"
  size: int = 224
  ks: tuple[int, ...] = (1, 5, 20)
  temperature: float = 0.07
  l2: tuple[float, ...] = linear.GRID
  threshold_for: str = "balanced_accuracy"
  batch: int = 64
  mean: float = 0.5
  std: float = 0.25
  val_fraction: float = 0.15
  max_train: int | None = None
  allow_shared_patients: bool = False
  fit: str = "squash"
  on_bad_image: str = "error"
  whiten: bool = False
  bits: str | int = "auto"
  window: str | tuple[float, ...] = "auto"

  def __post_init__(self):
    if not self.ks or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in self.ks):
      raise UserError(f"the probe's ks={self.ks} must be whole numbers of neighbours, e.g. (5, 20)")
    if not self.l2 or any(not s > 0 for s in self.l2):
      raise UserError(f"the probe's l2={self.l2} must be positive strengths, e.g. (1e-3, 1e-1)")
    eval_splits.check(self, "the probe", ("temperature", "std", "batch", "size"))

  def load(self, cache_dir: str | os.PathLike[str] | None = None, progress: bool = True) -> Data:
    """Opens and decodes the images, once for many runs.

    Args:
      cache_dir: folder of the decoded-image cache.
      progress: show bars on stderr.

    Raises:
      UserError: see `eval_splits.load`; or fewer training images than neighbours.
    """
    data = eval_splits.load(
      self.data,
      self.size,
      val_fraction=self.val_fraction,
      max_train=self.max_train,
      allow_shared_patients=self.allow_shared_patients,
      fit=self.fit,
      on_bad_image=self.on_bad_image,
      bits=self.bits,
      window=self.window,
      cache_dir=cache_dir,
      progress=progress,
    )
    n = len(data.labels("train"))
    if max(self.ks) > n:
      raise UserError(
        f"the probe's ks={self.ks} ask for {max(self.ks)} neighbours of {n} training "
        "images; give smaller ks or more images"
      )
    return data

  def describe(self, data: Data) -> dict[str, Any]:
    """Facts for `run.json`: size, classes, patients, fingerprint and remarks of every part."""
    return eval_splits.describe(data) | {"size": self.size, "fit": self.fit}

  def run(
    self,
    encode: features.Encode,
    params: Any,
    data: Data,
    mesh: Mesh | None = None,
    progress: bool = False,
  ) -> Result:
    """Judges the features `encode(params, x)`.

    Args:
      encode: `encode(params, x f32[b s s 1]) -> f32[b d]`; the same function every time, so that
        it compiles once.
      params: the encoder's parameters; read only.
      data: from `load`.
      mesh: shards the batches over its devices; every process must call this.
      progress: show a bar on stderr.

    Returns:
      Metrics of the test images. Where features are not finite they are undefined, with that
      reason.
    """
    began = time.perf_counter()
    # One batch size for all parts, so that the encoder compiles once.
    batch = min(self.batch, max(len(images) for images in data.images.values()))
    all_features = {
      key: features.extract(
        encode,
        params,
        images,
        batch=batch,
        mean=self.mean,
        std=self.std,
        mesh=mesh,
        progress=progress,
      )
      for key, images in data.images.items()
    }
    x = {part: all_features[key][rows] for part, (key, rows) in data.rows.items()}
    seconds = {"features": time.perf_counter() - began}
    finite = all(bool(np.isfinite(values).all()) for values in x.values())
    y = {part: data.labels(part) for part in eval_splits.PARTS}

    began = time.perf_counter()
    selection_scores: dict[str, float] = {}
    knn_scores = {f"knn{k}": np.full_like(y["test"], np.nan) for k in self.ks}
    if self.whiten:
      knn_scores[f"whitened{max(self.ks)}"] = np.full_like(y["test"], np.nan)
    if finite:
      test_scores = knn.knn_scores(x["train"], y["train"], x["test"], self.ks, self.temperature)
      knn_scores |= {f"knn{k}": values for k, values in test_scores.items()}
      val_scores = knn.knn_scores(x["train"], y["train"], x["val"], self.ks, self.temperature)
      selection_scores = {
        f"knn{k}/auroc": roc.macro_auroc(values, y["val"]).value for k, values in val_scores.items()
      }
      if self.whiten:
        k = max(self.ks)
        train, test = knn.whiten(x["train"], x["test"])
        knn_scores[f"whitened{k}"] = knn.knn_scores(
          train, y["train"], test, (k,), self.temperature
        )[k]
    seconds["knn"] = time.perf_counter() - began

    began = time.perf_counter()
    facts: dict[str, Any] = {
      "health": {k: _finite_or_none(value) for k, value in effective_rank.health(x["test"]).items()}
    }
    if finite:
      choice = linear.choose(x["train"], y["train"], x["val"], y["val"], data.exclusive, self.l2)
      scores = {part: choice.probe.scores(x[part]) for part in ("val", "test")}
      facts["linear"] = {
        "l2": choice.l2,
        "tried": [list(map(_finite_or_none, row)) for row in choice.table],
      }
      selection_scores["linear/auroc"] = max(area for _, area, _ in choice.table)
    else:
      scores = {part: np.full_like(y[part], np.nan) for part in ("val", "test")}
      facts["linear"] = {"remark": "the encoder's features are not finite"}
    seconds["linear"] = time.perf_counter() - began

    began = time.perf_counter()
    metrics: dict[str, Interval] = {}
    for name, votes in knn_scores.items():
      metrics |= classification_metrics.judge(
        name, votes, y["test"], data.patients("test"), data.classes, data.exclusive
      )
    linear_metrics, linear_facts = self._judge_at_thresholds(
      "linear", scores["val"], scores["test"], data
    )
    metrics |= linear_metrics
    facts["linear"] |= linear_facts
    seconds["metrics"] = time.perf_counter() - began
    facts["seconds"] = seconds
    return Result(
      metrics,
      facts,
      {"linear": scores["test"]} | knn_scores | eval_splits.test_metadata(data),
      selection_scores,
    )

  def floor(self, data: Data) -> Result:
    """The linear probe's metrics for ridge regression on 16x16 thumbnails, without an encoder.

    Args:
      data: from `load`.

    Returns:
      Metrics under the linear probe's names, to compare with an encoder's.
    """
    small = {key: thumbnail_baseline.thumbnails(images) for key, images in data.images.items()}
    x = {part: small[key][rows] for part, (key, rows) in data.rows.items()}
    val_and_test = np.concatenate([x["val"], x["test"]])
    scores = thumbnail_baseline.ridge(x["train"], data.labels("train"), val_and_test)
    val, test = scores[: len(x["val"])], scores[len(x["val"]) :]
    metrics, facts = self._judge_at_thresholds("linear", val, test, data)
    return Result(metrics, {"linear": facts}, {"linear": test} | eval_splits.test_metadata(data))

  def examples(self, data: Data, count: int) -> tuple[UInt8[np.ndarray, "n s s 1"], list[str]]:
    """The first test images of every class in turn, and their findings; for figures."""
    return examples(data, count)

  def _judge_at_thresholds(
    self, name: str, val: Float32[np.ndarray, "v k"], test: Float32[np.ndarray, "m k"], data: Data
  ) -> tuple[dict[str, Interval], dict[str, Any]]:
    """Test metrics at thresholds chosen on validation images, and facts about the thresholds."""
    thresholds, remarks = classification_metrics.thresholds(
      val, data.labels("val"), data.exclusive, self.threshold_for
    )
    metrics = classification_metrics.judge(
      name,
      test,
      data.labels("test"),
      data.patients("test"),
      data.classes,
      data.exclusive,
      thresholds,
    )
    facts: dict[str, Any] = {}
    if not classification_metrics.takes_likeliest(
      data.exclusive, len(data.classes), self.threshold_for
    ):
      chosen = thresholds[1:] if data.exclusive else thresholds
      facts["threshold"] = [float(t) for t in chosen]
      facts["threshold_for"] = (
        f"{classification_metrics.best_for(self.threshold_for)} on the validation images"
      )
    if remarks:
      facts["threshold_remarks"] = remarks
    return metrics, facts


def examples(data: Data, count: int) -> tuple[UInt8[np.ndarray, "n s s 1"], list[str]]:
  """The first test images of every class in turn, and their findings; for figures."""
  key, rows = data.rows["test"]
  chosen = example_rows(data, count)
  names = embedding.findings(data.labels("test")[chosen], data.classes)
  return data.images[key].gray(rows[chosen]), names


def example_rows(data: Data, count: int) -> Int[np.ndarray, "n"]:
  """Rows of the test part that `examples` shows."""
  labels = data.labels("test")
  of_class = [np.flatnonzero(labels[:, c] == 1) for c in range(labels.shape[1])]
  order = [of[i] for i in range(count) for of in of_class if i < len(of)]
  return np.array(list(dict.fromkeys(order))[:count], dtype=np.int64)


def _finite_or_none(value: float) -> float | None:
  """The value for JSON, which has no NaN: None instead."""
  return float(value) if np.isfinite(value) else None

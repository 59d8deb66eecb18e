"""kNN and linear probe of a frozen encoder, on labels that its training did not use."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from cxrjax.core.errors import UserError
from cxrjax.evals import (
  base,
  classification_metrics,
  effective_rank,
  eval_splits,
  features,
  knn,
  linear,
)
from cxrjax.evals.base import Result
from cxrjax.evals.eval_splits import Data
from cxrjax.metrics import roc
from cxrjax.metrics.intervals import Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator(base.LabelEvaluator):
  """Judges an encoder by kNN and a linear probe on frozen features.

  kNN votes among the training images. The linear probe is fitted on them, with the L2 strength of
  the best validation AUROC and the thresholds that maximize `threshold_for` on validation. Metrics
  are those of the test images, which decide nothing. No parameter of the encoder changes.

  Attributes:
    size: side of the images the encoder sees, pixels.
    ks: numbers of neighbours.
    temperature: of the neighbours' votes.
    l2: L2 strengths to try.
    whiten: also judge whitened features (`knn.whiten`) by kNN, with the largest of `ks`.

  References:
    Caron et al. 2021, arXiv 2104.14294, section 4.1 (protocol).
  """

  ks: tuple[int, ...] = (1, 5, 20)
  temperature: float = 0.07
  l2: tuple[float, ...] = linear.GRID
  whiten: bool = False

  def __post_init__(self):
    if not self.ks or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in self.ks):
      raise UserError(f"the probe's ks={self.ks} must be whole numbers of neighbours, e.g. (5, 20)")
    if not self.l2 or any(not s > 0 for s in self.l2):
      raise UserError(f"the probe's l2={self.l2} must be positive strengths, e.g. (1e-3, 1e-1)")
    base.check(self, "the probe", ("temperature", "std", "batch", "size"))

  def load(self, cache_dir: str | os.PathLike[str] | None = None, progress: bool = True) -> Data:
    """Opens and decodes the images, once for many runs.

    Raises:
      UserError: see `eval_splits.load`; or fewer training images than neighbours.
    """
    data = super().load(cache_dir, progress)
    n = len(data.labels("train"))
    if max(self.ks) > n:
      raise UserError(
        f"the probe's ks={self.ks} ask for {max(self.ks)} neighbours of {n} training "
        "images; give smaller ks or more images"
      )
    return data

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
    seconds: dict[str, float] = {}
    with base.timed(seconds, "features"):
      x = self.features_of(encode, params, data, mesh, progress)
    is_finite = all(bool(np.isfinite(values).all()) for values in x.values())
    with base.timed(seconds, "knn"):
      knn_scores, val_knn = self._vote(x, data, is_finite)
    facts: dict[str, Any] = {
      "health": {k: _finite_or_none(value) for k, value in effective_rank.health(x["test"]).items()}
    }
    with base.timed(seconds, "linear"):
      scores, facts["linear"], val_linear = self._fit(x, data, is_finite)
    with base.timed(seconds, "metrics"):
      metrics: dict[str, Interval] = {}
      for name, votes in knn_scores.items():
        metrics |= classification_metrics.evaluate(
          name, votes, data.labels("test"), data.patients("test"), data.classes, data.exclusive
        )
      linear_metrics, linear_facts = self._evaluate_at_thresholds(
        scores["val"], scores["test"], data
      )
    return Result(
      metrics | linear_metrics,
      facts | {"linear": facts["linear"] | linear_facts, "seconds": seconds},
      {"linear": scores["test"]} | knn_scores | eval_splits.test_metadata(data),
      val_knn | val_linear,
    )

  def _vote(
    self, x: Mapping[str, np.ndarray], data: Data, is_finite: bool
  ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Scores of the test images by kNN, and AUROCs of the validation images."""
    y = {split: data.labels(split) for split in eval_splits.SPLITS}
    k_whitened = max(self.ks)
    names = [*(f"knn{k}" for k in self.ks), *([f"whitened{k_whitened}"] if self.whiten else [])]
    if not is_finite:
      return {name: np.full_like(y["test"], np.nan) for name in names}, {}
    test, val = (
      knn.knn_scores(x["train"], y["train"], x[split], self.ks, self.temperature)
      for split in ("test", "val")
    )
    scores = {f"knn{k}": values for k, values in test.items()}
    if self.whiten:
      white, white_test = knn.whiten(x["train"], x["test"])
      scores |= {
        f"whitened{k}": values
        for k, values in knn.knn_scores(
          white, y["train"], white_test, (k_whitened,), self.temperature
        ).items()
      }
    return scores, {
      f"knn{k}/auroc": roc.macro_auroc(values, y["val"]).value for k, values in val.items()
    }

  def _fit(
    self, x: Mapping[str, np.ndarray], data: Data, is_finite: bool
  ) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, float]]:
    """Scores of the linear probe, facts about its choice, and its AUROC on validation images."""
    if not is_finite:
      scores = {split: np.full_like(data.labels(split), np.nan) for split in ("val", "test")}
      return scores, {"remark": "the encoder's features are not finite"}, {}
    choice = linear.choose(
      x["train"], data.labels("train"), x["val"], data.labels("val"), data.exclusive, self.l2
    )
    scores = {split: choice.probe.scores(x[split]) for split in ("val", "test")}
    tried = [list(map(_finite_or_none, row)) for row in choice.table]
    best = max(area for _, area, _ in choice.table)
    return scores, {"l2": choice.l2, "tried": tried}, {"linear/auroc": best}

  def floor(self, data: Data) -> Result:
    """The linear probe's metrics for ridge regression on 16x16 thumbnails, without an encoder.

    Args:
      data: from `load`.

    Returns:
      Metrics under the linear probe's names, to compare with an encoder's.
    """
    val, test = base.thumbnail_floor(data)
    metrics, facts = self._evaluate_at_thresholds(val, test, data)
    return Result(metrics, {"linear": facts}, {"linear": test} | eval_splits.test_metadata(data))

  def _evaluate_at_thresholds(
    self, val: Float32[np.ndarray, "v k"], test: Float32[np.ndarray, "m k"], data: Data
  ) -> tuple[dict[str, Interval], dict[str, Any]]:
    """Test metrics at thresholds chosen on validation images, and facts about the thresholds."""
    thresholds, remarks = classification_metrics.thresholds(
      val, data.labels("val"), data.exclusive, self.threshold_for
    )
    metrics = classification_metrics.evaluate(
      "linear",
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


def _finite_or_none(value: float) -> float | None:
  """The value for JSON, which has no NaN: None instead."""
  return float(value) if np.isfinite(value) else None

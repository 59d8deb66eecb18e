"""Evaluates a classifier's probabilities: ranking, decisions, calibration and subgroups."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Float64

from cxrjax.core.errors import UserError
from cxrjax.evals import base, classification_metrics, eval_splits, subgroups
from cxrjax.evals.base import Result
from cxrjax.evals.eval_splits import Data
from cxrjax.evals.subgroups import ATTRIBUTES, BANDS
from cxrjax.metrics import calibration
from cxrjax.metrics.intervals import undefined

Predict = Callable[[Any, Float[Array, "b s s 1"]], Float[Array, "b k"]]

PARTS = ("val", "test")
LOWER_IS_BETTER = ("nll", "brier")
IN_VALIDATION = tuple(
  m for m in classification_metrics.ALL if m != "ece"
)  # ECE is unreliable on few images
WITHOUT_PROBABILITIES = tuple(
  m for m in classification_metrics.ALL if m not in classification_metrics.PROBABILITIES
)
DECISIONS = ("accuracy", "balanced_accuracy", "f1", "sensitivity", "specificity")
BROKEN = "the network's predictions are not finite"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator(base.LabelEvaluator):
  """AUROC, AUPRC, decisions, calibration and subgroups of a classifier's predictions.

  `part="val"` judges the raw probabilities of validation images, with thresholds of 0.5 (of three
  or more exclusive classes, the likeliest): to follow a run and to choose a checkpoint.

  `part="test"` fits a temperature and the thresholds on validation images, and judges test images,
  which decide nothing. Metrics use the calibrated probabilities, `ece/uncalibrated` the raw ones.
  For exclusive classes, `accuracy/prevalence` and the like are of decisions at the classes'
  prevalence among the test images, estimated without their labels (`calibration.prevalence`).
  Intervals are DeLong's for AUROC, Wilson's for proportions with one image per patient, otherwise
  from a bootstrap over patients. With three or more classes, or findings, `auroc/NAME` is that of
  one class.

  Attributes:
    data: `name` and options of a source; `train`, `val`, `test` name its splits (see
      `eval_splits.load`; train is for the thumbnail floor). With `fitted`, `name`, `test` and
      options of another set.
    fitted: the set that the network was trained on, in the format of `data`: its validation images
      fit temperature and thresholds. Classes of `data` are matched to its classes by name.
    part: "val" or "test".
    max_train: approximate limit on training images, for the floor.
    threshold_for: "balanced_accuracy", "f1" or "accuracy", the measure that thresholds maximize on
      validation images; or "auto": the likeliest of exclusive classes, `balanced_accuracy` for
      findings.
    calibrate: fit a temperature; otherwise it is 1.
    subgroups: any of "age", "sex", "view" and "site", used where the source knows them.
    age_bands: years at which a band begins, besides 0.

  References:
    Guo et al. 2017, arXiv 1706.04599 (temperature); Maier-Hein et al. 2024, arXiv 2206.01653
    (which metrics).
  """

  judges = "predictions"  # not the encoder's features

  fitted: Mapping[str, Any] | None = None
  part: str = "test"
  every: str = "chosen"
  threshold_for: str = classification_metrics.AUTO
  calibrate: bool = True
  subgroups: tuple[str, ...] = ATTRIBUTES
  age_bands: tuple[int, ...] = BANDS

  def __post_init__(self) -> None:
    if self.part not in PARTS:
      raise UserError(f"the evaluator's part={self.part!r} is not an option; valid: val, test")
    if self.fitted is not None and self.part != "test":
      raise UserError(
        "the evaluator's fitted names a set for thresholds, which part='val' does "
        "not use; leave it out, or set part='test'"
      )
    base.check(self, "the evaluator", ("std", "batch", "size"))
    for name in self.subgroups:
      if name not in ATTRIBUTES:
        raise UserError(
          f"the evaluator's subgroups={self.subgroups}: {name!r} is not an option; "
          f"valid: {', '.join(ATTRIBUTES)}"
        )
    if list(self.age_bands) != sorted(set(self.age_bands)) or min(self.age_bands, default=1) <= 0:
      raise UserError(
        f"the evaluator's age_bands={self.age_bands} must ascend from above 0, e.g. {BANDS}"
      )

  def load(self, cache_dir: str | os.PathLike[str] | None = None, progress: bool = True) -> Data:
    """Opens and decodes the images, once for many runs.

    Raises:
      UserError: see `eval_splits.load`.
    """
    decoding = self.decoding(cache_dir, progress)
    if self.part == "val":
      return eval_splits.load_split(self.data, "val", self.size, **decoding)
    return self.load_splits(
      self.data if self.fitted is None else self.fitted,
      whose="the evaluator",
      other=None if self.fitted is None else self.data,
      **decoding,
    )

  def describe(self, data: Data) -> dict[str, Any]:
    """Facts for `run.json`: those of all splits, or of the only one."""
    if self.part == "test":
      return super().describe(data)
    return eval_splits.describe_split(data, "test") | {"size": self.size, "fit": self.fit}

  def run(
    self,
    predict: Predict,
    params: Any,
    data: Data,
    mesh: Mesh | None = None,
    progress: bool = False,
  ) -> Result:
    """Judges `predict(params, x f32[b s s 1])`, probabilities f32[b k] of `data.classes`.

    Args:
      predict: the same function every time, so that it compiles once.
      params: the network's parameters; read only.
      data: from `load`.
      mesh: shards the batches over its devices; every process must call this.
      progress: show a bar on stderr.

    Returns:
      Metrics, undefined where predictions are not finite; for `part="test"` the arrays
      `probability` (calibrated), `threshold`, `age`, `sex`, `view`, `site` and those of
      `eval_splits.test_metadata`.

    Raises:
      UserError: the number of predicted classes is not that of the data.
    """
    began = time.perf_counter()
    splits = ("test",) if self.part == "val" else ("val", "test")
    batch = min(self.batch, max(len(data.rows[split][1]) for split in splits))
    predicted = {}
    for split in splits:
      images = data.select(split)
      predicted[split] = self.extract(predict, params, images, batch, mesh, progress)
      if predicted[split].shape[1] != len(data.classes):
        raise UserError(
          f"the network predicts {predicted[split].shape[1]} classes, and the evaluator's "
          f"data.name has {len(data.classes)} ({', '.join(data.classes)}); give the data it "
          "learnt from as the evaluator's fitted"
        )
    seconds = {"predictions": time.perf_counter() - began}
    began = time.perf_counter()
    if self.part == "val":
      metrics = self._metrics(predicted["test"], data, None, IN_VALIDATION)
      scores = {
        name: -m.value if name in LOWER_IS_BETTER else m.value for name, m in metrics.items()
      }
      result = Result(metrics, {}, {}, scores)
    else:
      result = self._test(predicted["val"], predicted["test"], data)
    seconds["metrics"] = time.perf_counter() - began
    return dataclasses.replace(result, facts=result.facts | {"seconds": seconds})

  def floor(self, data: Data) -> Result:
    """The same metrics, without calibration, of ridge regression on 16x16 thumbnails.

    An empty result for `part="val"`.
    """
    if self.part == "val":
      return Result({}, {}, {})
    val, test = base.thumbnail_floor(data)
    thresholds, facts = self._thresholds(val, data)
    metrics = self._metrics(test, data, thresholds, WITHOUT_PROBABILITIES)
    return Result(
      metrics,
      facts,
      {"linear": test} | _threshold_arrays(thresholds, facts) | eval_splits.test_metadata(data),
    )

  def _test(
    self, val: Float32[np.ndarray, "v k"], test: Float32[np.ndarray, "m k"], data: Data
  ) -> Result:
    """Fits temperature and thresholds on validation images and judges test images."""
    exclusive, labels, patients = data.exclusive, data.labels("test"), data.patients("test")
    if not (np.isfinite(val).all() and np.isfinite(test).all()):
      no_scores = np.full(labels.shape, np.nan)
      metrics = self._metrics(no_scores, data, None, classification_metrics.ALL)
      extra = ["ece/uncalibrated", *(f"{m}/prevalence" for m in DECISIONS if exclusive)]
      metrics |= {name: undefined(BROKEN, len(labels)) for name in extra}
      return Result(metrics, {"remark": BROKEN}, {"probability": no_scores} | self._about(data))
    temperature = np.ones(1 if exclusive else len(data.classes))
    remarks: list[str] = []
    if self.calibrate:
      temperature, remarks = calibration.temperature(val, data.labels("val"), exclusive)
    # In double precision: in single, the most confident predictions of a softmax are tied.
    raw = calibration.scaled(test, np.ones_like(temperature), exclusive)
    p = calibration.scaled(test, temperature, exclusive)
    thresholds, facts = self._thresholds(calibration.scaled(val, temperature, exclusive), data)
    facts |= {"temperature": temperature.tolist(), "temperature_remarks": remarks}

    metrics = self._metrics(p, data, thresholds, classification_metrics.ALL)
    if exclusive:
      shifted, before, now = _adjust_to_prevalence(val, data.labels("val"), test)
      corrected = self._metrics(shifted, data, None, DECISIONS)
      metrics |= {f"{name}/prevalence": corrected[name] for name in DECISIONS}
      facts["prevalence"] = {"validation": before.tolist(), "estimated": now.tolist()}
    metrics["ece/uncalibrated"] = calibration.ece_interval(raw, labels, exclusive, patients)
    facts["ece_by_chance"] = calibration.ece_by_chance(p, labels, exclusive, patients)
    facts["reliability"] = {
      "calibrated": calibration.reliability(p, labels, exclusive),
      "uncalibrated": calibration.reliability(raw, labels, exclusive),
    }
    facts["subgroups"], facts["subgroup_remarks"] = subgroups.table(
      p,
      labels,
      classification_metrics.called(p, exclusive, thresholds),
      data.select("test").table,
      data.classes,
      exclusive,
      self.subgroups,
      self.age_bands,
    )
    return Result(
      metrics, facts, {"probability": p} | _threshold_arrays(thresholds, facts) | self._about(data)
    )

  def _metrics(
    self,
    scores: Float32[np.ndarray, "m k"] | Float64[np.ndarray, "m k"],
    data: Data,
    thresholds: Float[np.ndarray, "k"] | None,
    measures: tuple[str, ...],
  ) -> dict[str, Any]:
    of_classes = classification_metrics.PER_CLASS if self.part == "test" else ("auroc",)
    return classification_metrics.evaluate(
      "",
      scores,
      data.labels("test"),
      data.patients("test"),
      data.classes,
      data.exclusive,
      thresholds,
      measures,
      of_classes,
      BROKEN,
    )

  def _thresholds(
    self, val: Float32[np.ndarray, "v k"] | Float64[np.ndarray, "v k"], data: Data
  ) -> tuple[Float64[np.ndarray, "k"], dict[str, Any]]:
    """Thresholds chosen on validation images, and facts about them."""
    thresholds, remarks = classification_metrics.thresholds(
      val, data.labels("val"), data.exclusive, self.threshold_for
    )
    if classification_metrics.takes_likeliest(
      data.exclusive, len(data.classes), self.threshold_for
    ):
      return thresholds, {"decision": "the likeliest class"}
    return thresholds, {
      "thresholds": thresholds.tolist(),
      "threshold_remarks": remarks,
      "threshold_for": (
        f"{classification_metrics.best_for(self.threshold_for)} on the validation images"
      ),
    }

  def _about(self, data: Data) -> dict[str, np.ndarray]:
    """`eval_splits.test_metadata`, with age, sex, view and site of the test images."""
    table = data.select("test").table
    return eval_splits.test_metadata(data) | {
      "age": table.ages,
      "sex": np.asarray(table.sexes),
      "view": np.asarray(table.views),
      "site": np.asarray(table.sites),
    }


def _threshold_arrays(thresholds: np.ndarray, facts: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The `threshold` array to save, where validation images chose the thresholds."""
  return {"threshold": thresholds} if "thresholds" in facts else {}


def _adjust_to_prevalence(
  val: Float32[np.ndarray, "v k"],
  labels: Float32[np.ndarray, "v k"],
  test: Float32[np.ndarray, "m k"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Test probabilities at the estimated prevalence; the validation prevalence; the estimate."""
  known = ~np.isnan(labels).any(1)
  before = (labels[known].sum(0) + 0.5) / (known.sum() + 0.5 * labels.shape[1])
  corrected = calibration.bias_corrected(val, labels, test)
  estimated = calibration.prevalence(corrected, before)
  return calibration.at_prevalence(corrected, before, estimated), before, estimated

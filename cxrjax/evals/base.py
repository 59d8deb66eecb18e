"""Base classes of evaluators, and their results."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, UInt8

from cxrjax.core.errors import UserError
from cxrjax.data.images import Images
from cxrjax.evals import (
  classification_metrics,
  embedding,
  eval_splits,
  features,
  thumbnail_baseline,
)
from cxrjax.evals.eval_splits import Data
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
  facts: dict[str, Any] = dataclasses.field(default_factory=dict)
  arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  scores: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator(abc.ABC):
  """Judges a network during and after training: a frozen dataclass of options.

  Subclasses define `run`; the other defaults are those of an evaluator without images of its own.

  Attributes:
    every: how often, as a duration ("10 epochs"); or "chosen", once after training, on the
      checkpoint with the best `config.checkpoint.score`.
    judges: "features", those of the encoder, or "predictions" of the method's network.
    part: the images whose metrics it gives: "test", or "val", which may choose the checkpoint.
  """

  every: str = "10 epochs"

  judges = "features"
  part = "test"

  def load(self, cache_dir: str | os.PathLike[str] | None = None, progress: bool = True) -> Any:
    """Opens and decodes its images, once for many runs; what it returns is `data` below."""
    del cache_dir, progress

  def describe(self, data: Any) -> dict[str, Any]:
    """Facts about its images for `run.json`."""
    del data
    return {}

  @abc.abstractmethod
  def run(
    self,
    function: features.Encode,
    params: Any,
    data: Any,
    mesh: Mesh | None = None,
    progress: bool = False,
  ) -> Result:
    """Judges a network.

    Args:
      function: `function(params, x f32[b s s 1])`, the features f32[b d] of an encoder, or the
        predictions of a method.
      params: of the network; read only.
      data: from `load`.
      mesh: devices to compute on; every process calls this.
      progress: show a bar on stderr.
    """

  def floor(self, data: Any) -> Result | None:
    """The same metrics of the thumbnail baseline, without a network; None if there are none."""
    del data
    return None

  def examples(self, data: Any, count: int) -> tuple[UInt8[np.ndarray, "n s s 1"], list[str]]:
    """Images for figures, and their findings; without any the page has no saliency maps."""
    del data, count
    return np.zeros((0, 1, 1, 1), np.uint8), []


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageEvaluator(Evaluator):
  """Reads images as training does.

  Attributes:
    data: `name` and options of a source.
    size: side of the images the network sees, pixels.
    batch: images per dispatch.
    mean: subtracted from pixels in 0..1, as in training.
    std: pixels are divided by it, as in training.
    fit: "squash", "pad" or "crop", for images that are not square.
    on_bad_image: "error" or "skip".
    bits: "auto", 8 or 16, of the stored pixels; see `data.loading.decoded_cache.load_images`.
    window: intensity window of 16-bit images, as in training.
  """

  data: Mapping[str, Any]
  size: int = 224
  batch: int = 64
  mean: float = 0.5
  std: float = 0.25
  fit: str = "squash"
  on_bad_image: str = "error"
  bits: str | int = "auto"
  window: str | tuple[float, ...] = "auto"

  def decoding(self, cache_dir: str | os.PathLike[str] | None, progress: bool) -> dict[str, Any]:
    """Options of `decoded_cache.load_images`."""
    names = ("fit", "on_bad_image", "bits", "window")
    options = {name: getattr(self, name) for name in names}
    return options | {"cache_dir": cache_dir, "progress": progress}

  def extract(
    self,
    encode: features.Encode,
    params: Any,
    images: Images,
    batch: int,
    mesh: Mesh | None,
    progress: bool,
    vectors: bool = True,
  ) -> np.ndarray:
    """Features, or predictions, of images; see `features.extract`."""
    return features.extract(
      encode,
      params,
      images,
      batch=batch,
      mean=self.mean,
      std=self.std,
      mesh=mesh,
      progress=progress,
      vectors=vectors,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelEvaluator(ImageEvaluator):
  """Reads labelled train, val and test images.

  Attributes:
    data: `name` and options of a source; `train`, `val`, `test` name its splits (see
      `eval_splits.load`).
    val_fraction: share of train's patients carved for validation where the source has no such
      split.
    max_train: approximate limit on training images.
    allow_shared_patients: allow a patient to be in two splits.
    threshold_for: "balanced_accuracy", "f1", "accuracy" or "auto"; see
      `classification_metrics.thresholds`.
  """

  val_fraction: float = 0.15
  max_train: int | None = None
  allow_shared_patients: bool = False
  threshold_for: str = "balanced_accuracy"

  def load(self, cache_dir: str | os.PathLike[str] | None = None, progress: bool = True) -> Data:
    """Opens and decodes train, val and test, once for many runs; see `eval_splits.load`."""
    return self.load_splits(self.data, **self.decoding(cache_dir, progress))

  def load_splits(self, data: Mapping[str, Any], **options: Any) -> Data:
    """Loads train, val and test of `data`; see `eval_splits.load`."""
    return eval_splits.load(
      data,
      self.size,
      val_fraction=self.val_fraction,
      max_train=self.max_train,
      allow_shared_patients=self.allow_shared_patients,
      **options,
    )

  def features_of(
    self, encode: features.Encode, params: Any, data: Data, mesh: Mesh | None, progress: bool
  ) -> dict[str, np.ndarray]:
    """Features of every split."""
    # One batch size for all splits, so that the encoder compiles once.
    batch = min(self.batch, max(len(images) for images in data.images.values()))
    all_features = {
      key: self.extract(encode, params, images, batch, mesh, progress)
      for key, images in data.images.items()
    }
    return {split: all_features[key][rows] for split, (key, rows) in data.rows.items()}

  def describe(self, data: Data) -> dict[str, Any]:
    """Facts for `run.json`: size, classes, patients, fingerprint and remarks of every split."""
    return eval_splits.describe(data) | {"size": self.size, "fit": self.fit}

  def examples(self, data: Data, count: int) -> tuple[UInt8[np.ndarray, "n s s 1"], list[str]]:
    """The first test images of every class in turn, and their findings; for figures."""
    key, rows = data.rows["test"]
    labels = data.labels("test")
    chosen = embedding.rows_of_each_class(labels, count)
    names = embedding.findings(labels[chosen], data.classes)
    return data.images[key].gray(rows[chosen]), names


def check_positive(evaluator: ImageEvaluator, whose: str, names: Sequence[str]) -> None:
  """Raises a UserError for an option that is not above 0."""
  for name in names:
    if not getattr(evaluator, name) > 0:
      raise UserError(f"{whose}'s {name}={getattr(evaluator, name)} must be above 0")


def check(evaluator: LabelEvaluator, whose: str, positive: Sequence[str]) -> None:
  """Validates the options that evaluators with labels share; raises a UserError for a bad one.

  Args:
    evaluator: with `threshold_for` and `val_fraction`.
    whose: name of the evaluator in error messages.
    positive: names of the options that must be above 0.
  """
  if evaluator.threshold_for not in classification_metrics.CRITERIA:
    raise UserError(
      f"{whose}'s threshold_for={evaluator.threshold_for!r} is not an option; valid: "
      f"{', '.join(classification_metrics.CRITERIA)}"
    )
  check_positive(evaluator, whose, positive)
  if not 0 < evaluator.val_fraction < 1:
    raise UserError(f"{whose}'s val_fraction={evaluator.val_fraction} must lie between 0 and 1")


def thumbnail_floor(data: Data) -> tuple[Float32[np.ndarray, "v k"], Float32[np.ndarray, "m k"]]:
  """Scores of validation and test images by ridge regression on 16x16 thumbnails of train."""
  small = {key: thumbnail_baseline.thumbnails(images) for key, images in data.images.items()}
  x = {split: small[key][rows] for split, (key, rows) in data.rows.items()}
  val_and_test = np.concatenate([x["val"], x["test"]])
  scores = thumbnail_baseline.ridge(x["train"], data.labels("train"), val_and_test)
  return scores[: len(x["val"])], scores[len(x["val"]) :]


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
  """Enters the duration of a block under `name`."""
  began = time.perf_counter()
  yield
  seconds[name] = time.perf_counter() - began

"""Evaluates predicted lung masks against the true ones."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Float32

from cxrjax.core.errors import UserError
from cxrjax.data import open_source
from cxrjax.data.images import Images, evenly_spaced
from cxrjax.data.inspection import no_masks
from cxrjax.data.loading.decoded_cache import load_images
from cxrjax.evals import base, eval_splits
from cxrjax.evals.base import Result
from cxrjax.metrics import intervals, segmentation

Predict = Callable[[Any, Float[Array, "b s s 1"]], Float[Array, "b s s 1"]]

SHOWN = 8  # images on the page
OF_FLOOR = 512  # training masks averaged for the floor, at most


@dataclasses.dataclass(frozen=True, eq=False)
class Data(eval_splits.Data):
  """Images to evaluate on, stored as "test" whatever their split; `rows` are those with a mask.

  Attributes:
    floor: mean training mask, 0..1; None where there is none.
  """

  floor: Float32[np.ndarray, "s s"] | None = None

  @property
  def truth(self) -> Bool[np.ndarray, "n s s"]:
    key, rows = self.rows["test"]
    masks = self.images[key].masks
    assert masks is not None  # `rows` have one
    return np.asarray(masks[rows])[..., 0] > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator(base.ImageEvaluator):
  """Dice, IoU and surface distances of predicted masks, averaged over the images of one split.

  Every image is squashed to `size` x `size` pixels; distances are in pixels, or in the unit of
  `spacing`. Images without a mask are left out. Where the predicted mask is empty, Dice and IoU are
  0 and distances undefined: those images are counted, and left out of the mean distances.

  Attributes:
    data: `name`, `split` and options of a source, as for `cxrjax.data.open_source`.
    train: the same for the training images, for the floor; None for no floor.
    threshold: pixels of at least this probability are lung.
    components: number of largest connected components kept of a prediction; 0 keeps all.
    spacing: height and width of a pixel at that size, in the unit of the distances.
  """

  judges = "predictions"  # not the encoder's features

  train: Mapping[str, Any] | None = None
  batch: int = 32
  threshold: float = 0.5
  components: int = 0
  spacing: tuple[float, float] = (1.0, 1.0)

  def __post_init__(self) -> None:
    base.check_positive(self, "the evaluator", ("size", "batch", "std"))
    if not 0 < self.threshold < 1:
      raise UserError(f"the evaluator's threshold={self.threshold} must lie between 0 and 1")
    if self.components < 0:
      raise UserError(f"the evaluator's components={self.components} must be 0 (all) or more")
    if len(self.spacing) != 2 or min(self.spacing) <= 0:
      raise UserError(f"the evaluator's spacing={self.spacing} must be two lengths above 0")

  def load(self, cache_dir: str | os.PathLike[str] | None = None, progress: bool = True) -> Data:
    """Opens and decodes the images, once for many runs.

    Raises:
      UserError: a source that cannot be opened, or none of whose images has a mask.
    """
    source = self._open(self.data)
    images = self._decode(source, cache_dir, progress)
    if images.masks is None:
      raise no_masks(images)
    rows = np.flatnonzero(np.asarray(images.masks).any((1, 2, 3)))
    if not len(rows):
      raise no_masks(images)
    unmasked = len(images) - len(rows)
    notes: tuple[str, ...] = ()
    if unmasked:
      notes = (f"{unmasked} of {len(images)} images have no lung mask and are left out",)
    floor = None
    if self.train is not None:
      train_masks = self._decode(self._open(self.train), cache_dir, progress, OF_FLOOR).masks
      if train_masks is not None:
        masks = np.asarray(train_masks)[..., 0]
        masks = masks[masks.any((1, 2))]
        floor = masks.mean(0, dtype=np.float32) if len(masks) else None
    return Data({"test": images, "train": images}, {"test": ("test", rows)}, (), {}, notes, floor)

  def _open(self, data: Mapping[str, Any]) -> Any:
    options = {k: v for k, v in data.items() if k != "name"}
    if not data.get("name"):
      raise UserError("the evaluator's data.name is missing; give a source such as 'phantom'")
    return open_source(data["name"], **options)

  def _decode(
    self, source: Any, cache_dir: Any, progress: bool, limit: int | None = None
  ) -> Images:
    rows = None if limit is None or len(source) <= limit else evenly_spaced(len(source), limit)
    return load_images(source, self.size, indices=rows, **self.decoding(cache_dir, progress))

  def describe(self, data: Data) -> dict[str, Any]:
    """Facts for `run.json`: size, patients, fingerprint and remarks."""
    info, patients = data.images["test"].info, data.patients("test")
    return {
      "name": info.name,
      "split": info.split,
      "n": len(patients),
      "patients": len(set(patients)) if all(patients) else None,
      "fingerprint": info.fingerprint,
      "notes": [*info.notes, *data.notes],
      "skipped": [list(s) for s in data.images["test"].skipped],
      "size": self.size,
      "fit": self.fit,
      "components_kept": self.components or "all",
      "distances_in": "pixels" if self.spacing == (1.0, 1.0) else f"units of {self.spacing}",
    }

  def run(
    self,
    predict: Predict,
    params: Any,
    data: Data,
    mesh: Mesh | None = None,
    progress: bool = False,
  ) -> Result:
    """Judges the masks of `predict(params, x f32[b s s 1])`, probabilities of the same shape.

    Returns:
      `dice`, `iou`, `assd`, `hd95`, and for the page a few images from the worst to the best.
    """
    began = time.perf_counter()
    images = data.select("test")
    batch = min(self.batch, len(images))
    probabilities = self.extract(predict, params, images, batch, mesh, progress, vectors=False)[
      ..., 0
    ]
    called = np.stack(
      [segmentation.largest(m, self.components) for m in probabilities >= self.threshold]
    )
    return self._evaluate(called, data, {"predictions": time.perf_counter() - began})

  def floor(self, data: Data) -> Result | None:
    """The same for one mask for all images: the mean training mask, thresholded."""
    if data.floor is None:
      return None
    called = np.broadcast_to(data.floor >= self.threshold, data.truth.shape)
    return self._evaluate(called, data, {})

  def _evaluate(
    self, called: Bool[np.ndarray, "n s s"], data: Data, seconds: dict[str, float]
  ) -> Result:
    began = time.perf_counter()
    truth, (key, rows) = data.truth, data.rows["test"]
    values_of = segmentation.per_image(called, truth, self.spacing)
    metrics = {
      name: segmentation.mean(values, data.patients("test")) for name, values in values_of.items()
    }
    order = np.argsort(values_of["dice"], kind="stable")
    shown = order[evenly_spaced(len(order), SHOWN)]
    patient_numbers, _ = intervals.clusters(data.patients("test"), len(rows))  # not their ids
    arrays = {
      "image": data.images[key].gray(rows[shown])[..., 0],
      "truth": truth[shown],
      "predicted": called[shown],
      "dice": values_of["dice"][shown],
      "id": np.asarray([data.ids("test")[i] for i in shown]),
      # Of all images, for paired comparisons of two runs.
      **{f"{name}_all": values_of[name] for name in ("dice", "iou")},
      "id_all": np.asarray(data.ids("test")),
      "patient_all": patient_numbers,
    }
    undefined = int(np.isnan(values_of["assd"]).sum())
    facts = {
      "undefined_distances": undefined,
      "lowest_dice": float(values_of["dice"].min()),
      "median_dice": float(np.median(values_of["dice"])),
      "seconds": seconds | {"metrics": time.perf_counter() - began},
    }
    scores = {name: metrics[name].value for name in ("dice", "iou")}
    return Result(metrics, facts, arrays, scores)

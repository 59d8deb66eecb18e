"""Prediction pipeline: streams of images are decoded ahead, predicted, and made into tables.

Shared by `Network.predict`, for images in memory, and `python -m cxrjax.predict`, for any number on
disk.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from jaxtyping import Float32, UInt8

from cxrjax.core.errors import UserError
from cxrjax.data.decoding import windowing, worker_pool
from cxrjax.data.loading.decoded_cache import DecodeSpec
from cxrjax.evals import features
from cxrjax.inference import decode_ahead
from cxrjax.inference.inputs import ImageInputs
from cxrjax.inference.predictions import Predictions
from cxrjax.report.html import pictures
from cxrjax.training import sharding

SHOWN = 512  # pixels of the longer side of an overlay, at most


def progress_bar(total: int, done: int = 0, *, shown: bool) -> tqdm.tqdm:
  """Progress bar over `total` images, of which `done` were predicted before."""
  return tqdm.tqdm(
    total=total,
    initial=done,
    desc="predicting",
    unit=" images",
    file=sys.stderr,
    disable=not shown,
    dynamic_ncols=True,
  )


class PredictionTask:
  """A prediction task: compiled once, then run on any number of images.

  Args:
    network: see `cxrjax.load`.
    embed: add its encoder's features.
    lungs: a segmenter, to add lung masks to another network's predictions.
    overlays: one of `cxrjax.explain.maps.METHODS`, for maps over the images; "" for none.
    predict: False for features alone.

  Raises:
    UserError: nothing to predict, or a method of maps that the network does not support.
  """

  def __init__(
    self,
    network: Any,
    *,
    embed: bool = False,
    lungs: Any = None,
    overlays: str = "",
    predict: bool = True,
  ):
    self.network, self._overlays = network, overlays
    if network.kind == "encoder" and predict and not embed:
      raise UserError(
        f"{network.run.workdir} is a run of {network.method}, which has no classes to predict; "
        "export its features (embed), or fine-tune it with configs/finetune.py:init=WORKDIR"
      )
    if overlays:
      network.check_method(overlays, "overlays")
    # Bound methods rather than new functions, so that all tasks of a network share compilations.
    function = network.features
    if predict:
      function = network.outputs_and_features if embed else network.outputs
    self._steps = [(network, function), *([(lungs, lungs.outputs)] if lungs is not None else [])]

  def run(
    self, images: ImageInputs, rows: Sequence[int], batch_size: int = 64
  ) -> Iterator[Predictions]:
    """Yields predictions batch by batch, in the order of `rows`; threads decode ahead.

    Args:
      images: named images.
      rows: indices of those to predict.
      batch_size: images per dispatch; reduced to a power of two if there are fewer, so that few
        shapes are compiled.

    Raises:
      UserError: `batch_size` below 1.
    """
    if batch_size < 1:
      raise UserError(f"batch_size={batch_size} must be at least 1")
    mesh = sharding.make_mesh() if jax.device_count() > 1 else None
    size = features.batch_size(min(batch_size, 1 << (len(rows) - 1).bit_length()), mesh)
    specs = [network.look() for network, _ in self._steps]
    if self._overlays:
      specs.append(DecodeSpec(SHOWN, "squash", 8, specs[0].window))
    batches = decode_ahead.batches(images, rows, specs, size)

    def dispatched() -> Iterator[tuple[decode_ahead.Batch, list[Any]]]:
      for batch in batches:
        yield (
          batch,
          [
            features.send(
              function,
              network.params,
              *squares,
              size=size,
              mean=network.mean,
              std=network.std,
              mesh=mesh,
            )
            for (network, function), squares in zip(self._steps, batch.squares, strict=False)
          ],
        )

    with (
      contextlib.closing(batches),
      concurrent.futures.ThreadPoolExecutor(worker_pool.num_threads()) as pool,
    ):
      for batch, outputs in features.received(dispatched()):
        yield self._predictions(images, batch, outputs, pool)

  def _predictions(
    self,
    images: ImageInputs,
    batch: decode_ahead.Batch,
    outputs: list[dict[str, np.ndarray]],
    pool: concurrent.futures.Executor,
  ) -> Predictions:
    network = self.network
    ids = tuple(images.ids[row] for row in batch.rows)
    skipped = tuple((images.ids[row], why) for row, why in batch.bad)
    if not ids:
      return Predictions((), network.classes, network.exclusive, skipped=skipped)
    outputs = [{name: y[: len(ids)] for name, y in output.items()} for output in outputs]
    probabilities = called = masks = overlays = None
    if "probabilities" in outputs[0]:
      p = network.calibrated(outputs[0]["probabilities"])
      probabilities, called = p.astype(np.float32), network.call(p)
    for (segmenter, _), output in zip(self._steps, outputs, strict=True):
      if "mask" in output:
        draw = functools.partial(_full_size_mask, segmenter)
        masks = tuple(pool.map(draw, output["mask"][..., 0], batch.shapes))
    if self._overlays:
      squares = batch.squares[0]
      x = network.normalised(squares.pixels, squares.windows)
      # Explain the called class; of several findings, the likeliest.
      target = called.argmax(1) if called is not None and network.exclusive else None
      maps = network.maps(self._overlays, x, target)
      draw = functools.partial(_overlay_picture, network.run.config["data"]["fit"])
      overlays = tuple(pool.map(draw, maps, batch.squares[-1].pixels[..., 0], batch.shapes))
    return Predictions(
      ids,
      network.classes,
      network.exclusive,
      probabilities,
      called,
      outputs[0].get("features"),
      masks,
      overlays,
      skipped,
      batch.notes,
    )


def _full_size_mask(
  network: Any, probability: Float32[np.ndarray, "s s"], shape: tuple[int, int]
) -> UInt8[np.ndarray, "h w"]:
  """Lung mask at an image's own size (lungs 1, background 0) from a segmenter's probabilities."""
  is_dropped = (probability >= 0.5) != network.lungs(probability)
  # Components are dropped before resizing, where there are far fewer pixels to label.
  cleaned = np.where(is_dropped, np.float32(0), probability)
  full_size = windowing.resize_back(cleaned, shape, network.run.config["data"]["fit"])
  return (full_size >= 0.5).astype(np.uint8)


def _overlay_picture(
  fit: str,
  heat: Float32[np.ndarray, "s s"],
  shown: UInt8[np.ndarray, "d d"],
  shape: tuple[int, int],
) -> UInt8[np.ndarray, "h w 3"]:
  """A map, relative to its maximum, over a radiograph in its own aspect ratio."""
  scale = min(1.0, SHOWN / max(shape))
  h, w = (max(1, round(side * scale)) for side in shape)
  image = windowing.resize_back(shown.astype(np.float32), (h, w))
  heat = windowing.resize_back(np.maximum(heat, 0) / max(float(heat.max()), 1e-12), (h, w), fit)
  return pictures.overlay(np.clip(np.rint(image), 0, 255).astype(np.uint8), heat)

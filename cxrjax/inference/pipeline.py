"""Networks of finished runs on streams of images: decoded ahead, predicted, made into tables.

What `Network.predict` gives for some images in memory and `python -m cxrjax.predict` for any
number on disk is made here.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
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


class Work:
  """What is to be done with images: compiled once, then run on as many as there are.

  Args:
    network: see `cxrjax.load`.
    embed: its encoder's features as well.
    lungs: a segmenter, for lung masks beside another network's predictions.
    overlays: of `cxrjax.explain.maps.METHODS`, for maps over the images; "" for none.
    predict: without, features alone.

  Raises:
    UserError: nothing is to be done, or a method of maps that the network has not.
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
        "take its features (embed), or fine-tune it with configs/finetune.py:init=WORKDIR"
      )
    if overlays:
      network.check_method(overlays, "overlays")
    # Methods, not functions made here: they are compiled once for all work of the network.
    function = network.features
    if predict:
      function = network.outputs_and_features if embed else network.outputs
    self._steps = [(network, function), *([(lungs, lungs.outputs)] if lungs is not None else [])]

  def run(
    self, images: ImageInputs, rows: Sequence[int], batch_size: int = 64
  ) -> Iterator[Predictions]:
    """Predictions batch by batch, in the order of `rows`; decoding runs ahead in threads.

    Args:
      images: where they are.
      rows: which of them.
      batch_size: images a dispatch; fewer where there are not so many, in powers of two, so that
        there are few shapes to compile.

    Raises:
      UserError: no batch size.
    """
    if batch_size < 1:
      raise UserError(f"batch_size={batch_size} must be at least 1")
    mesh = sharding.make_mesh() if jax.device_count() > 1 else None
    size = features.batch_size(min(batch_size, 1 << (len(rows) - 1).bit_length()), mesh)
    looks = [network.look() for network, _ in self._steps]
    if self._overlays:
      looks.append(DecodeSpec(SHOWN, "squash", 8, looks[0].window))
    batches = decode_ahead.batches(images, rows, looks, size)

    def sent() -> Iterator[tuple[decode_ahead.Batch, list[Any]]]:
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
      concurrent.futures.ThreadPoolExecutor(worker_pool.workers()) as pool,
    ):
      for batch, found in features.received(sent()):
        yield self._predictions(images, batch, found, pool)

  def _predictions(
    self,
    images: ImageInputs,
    batch: decode_ahead.Batch,
    found: list[dict[str, np.ndarray]],
    pool: concurrent.futures.Executor,
  ) -> Predictions:
    network = self.network
    ids = tuple(images.ids[row] for row in batch.rows)
    skipped = tuple((images.ids[row], why) for row, why in batch.bad)
    if not ids:
      return Predictions((), network.classes, network.exclusive, skipped=skipped)
    found = [{name: y[: len(ids)] for name, y in drawn.items()} for drawn in found]
    probabilities = called = masks = overlays = None
    if "probabilities" in found[0]:
      p = network.calibrated(found[0]["probabilities"])
      probabilities, called = p.astype(np.float32), network.call(p)
    for (drawer, _), drawn in zip(self._steps, found, strict=True):
      if "mask" in drawn:
        one = functools.partial(_mask, drawer)
        masks = tuple(pool.map(one, drawn["mask"][..., 0], batch.shapes))
    if self._overlays:
      squares = batch.squares[0]
      x = network.normalised(squares.pixels, squares.windows)
      # What is called is explained; with several findings the likeliest.
      target = called.argmax(1) if called is not None and network.exclusive else None
      maps = network.maps(self._overlays, x, target)
      one = functools.partial(_overlay, network.run.config["data"]["fit"])
      overlays = tuple(pool.map(one, maps, batch.squares[-1].pixels[..., 0], batch.shapes))
    return Predictions(
      ids,
      network.classes,
      network.exclusive,
      probabilities,
      called,
      found[0].get("features"),
      masks,
      overlays,
      skipped,
      batch.notes,
    )


def _mask(
  network: Any, probability: Float32[np.ndarray, "s s"], shape: tuple[int, int]
) -> UInt8[np.ndarray, "h w"]:
  """Lungs 1 and the rest 0 at an image's own size, of a segmenter's probabilities."""
  unlike = (probability >= 0.5) != network.lungs(probability)
  kept = np.where(unlike, np.float32(0), probability)  # parts are told among far fewer pixels
  return (windowing.unfit(kept, shape, network.run.config["data"]["fit"]) >= 0.5).astype(np.uint8)


def _overlay(
  fit: str,
  heat: Float32[np.ndarray, "s s"],
  shown: UInt8[np.ndarray, "d d"],
  shape: tuple[int, int],
) -> UInt8[np.ndarray, "h w 3"]:
  """A map, relative to its maximum, over a radiograph of the shape of its own."""
  scale = min(1.0, SHOWN / max(shape))
  h, w = (max(1, round(side * scale)) for side in shape)
  image = windowing.unfit(shown.astype(np.float32), (h, w))
  heat = windowing.unfit(np.maximum(heat, 0) / max(float(heat.max()), 1e-12), (h, w), fit)
  return pictures.overlay(np.clip(np.rint(image), 0, 255).astype(np.uint8), heat)

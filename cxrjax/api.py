"""A finished run at work on new radiographs: `cxrjax.load(workdir)`.

    net = cxrjax.load("runs/finetune")
    found = net.predict("/my/radiographs")      # a folder, files, DICOM, or arrays
    found.to_csv("predictions.csv")

`python -m cxrjax.predict` does the same for folders of any size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm
from jaxtyping import Array, Bool, Float, Float32, Float64, UInt8

from cxrjax.core.build import freeze
from cxrjax.core.errors import UserError
from cxrjax.data import ahead, pixels
from cxrjax.data.given import Given, open_given
from cxrjax.data.store import ON_BAD, Look
from cxrjax.evals import features, judge
from cxrjax.metrics import calibration, segmentation
from cxrjax.models.weights.adapt import family_of
from cxrjax.report import predictions as tables
from cxrjax.training import sharding
from cxrjax.training.restore import Restored, restore

KINDS = ("classifier", "segmenter", "encoder")
LUNG = 0.5  # probability from which a pixel is lung
Skipped = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
  """What a network makes of some images; row `i` of everything is one image.

  Attributes:
    ids: paths as given, below the folder where one was given; numbers of arrays.
    classes: names of the columns of `probabilities`; empty where there are none.
    exclusive: one class an image, or several findings at once.
    probabilities: of every class, calibrated; None where the network is no classifier.
    called: which classes are called, see `Network.thresholds`.
    embeddings: features of the encoder, where they were asked for.
    masks: lungs 1 and the rest 0, at each image's own size, where they were asked for.
    skipped: images that could not be used, and why.
  """

  ids: tuple[str, ...]
  classes: tuple[str, ...] = ()
  exclusive: bool = True
  probabilities: Float32[np.ndarray, "n k"] | None = None
  called: Bool[np.ndarray, "n k"] | None = None
  embeddings: Float32[np.ndarray, "n d"] | None = None
  masks: tuple[UInt8[np.ndarray, "_ _"], ...] | None = None
  skipped: Skipped = ()

  def __len__(self) -> int:
    return len(self.ids)

  def to_dict(self) -> dict[str, list[Any]]:
    """Columns by name, as in a CSV, and `embedding` where there are any: `pandas.DataFrame(...)`.

    Lungs are in the column `lung_share`, the share of the image that they fill.
    """
    return tables.columns(self)

  def to_csv(self, path: str | os.PathLike[str]) -> None:
    """Writes a table, one row an image, without embeddings (NumPy and Parquet hold those).

    Raises:
      UserError: it cannot be written.
    """
    tables.write_csv(path, self)

  def to_parquet(self, path: str | os.PathLike[str]) -> None:
    """Writes the same table with the embeddings; needs pyarrow.

    Raises:
      UserError: it cannot be written, or pyarrow is not installed.
    """
    tables.write_parquet(path, self)


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
  """A finished run's network, with its images' size and what its validation images have decided.

  Attributes:
    run: restored.
    image_size: pixels per side of what it sees.
  """

  run: Restored
  image_size: int

  @functools.cached_property
  def kind(self) -> str:
    """`classifier`, `segmenter` (of lungs), or `encoder`: pretrained, with features alone."""
    method = self.run.method
    if not hasattr(method, "predict"):
      return "encoder"
    return "classifier" if self.classes else "segmenter"

  @functools.cached_property
  def params(self) -> dict[str, Any]:
    """Of the whole network where it predicts something, else of the encoder."""
    if hasattr(self.run.method, "predict"):
      return self.run.method.network_params(self.run.params, self.run.extra)
    return {"encoder": self.run.encoder_params}

  @property
  def classes(self) -> tuple[str, ...]:
    """That it tells apart, in the order of its probabilities."""
    labels = getattr(self.run.method, "labels", None)
    if labels is None or not hasattr(self.run.method, "predict"):
      return ()
    return tuple(labels.classes)

  @property
  def method(self) -> str:
    """That it was trained with, such as `classify` or `dino`."""
    return self.run.config["method"]["name"].rpartition(".")[2]

  @property
  def exclusive(self) -> bool:
    """One class an image (softmax), or several findings at once (sigmoids)."""
    return bool(self.classes) and self.run.method.labels.exclusive

  @property
  def mean(self) -> float:
    """Subtracted from gray levels in 0..1."""
    return self.run.config["views"]["mean"]

  @property
  def std(self) -> float:
    """Divides them."""
    return self.run.config["views"]["std"]

  @functools.cached_property
  def judged(self) -> dict[str, Any]:
    """What the evaluation on test images found out about its probabilities; empty without one."""
    found = {name: facts["trained"] for name, facts in self.run.facts.get("evaluation", {}).items()
             if "temperature" in facts.get("trained", {})}
    return found.get("test", next(iter(found.values()), {}))

  @property
  def temperature(self) -> tuple[float, ...]:
    """That logits are divided by, fitted to validation images: one, or one for each finding.

    It is 1 where the run had no test evaluation.
    """
    parts = 1 if self.exclusive else len(self.classes)
    return tuple(self.judged.get("temperature", [1.0] * parts))

  @property
  def thresholds(self) -> tuple[float, ...] | None:
    """The calibrated probability from which each class is called, chosen on validation images.

    Of two exclusive classes the last one's decides. None with three or more: the likeliest is
    called. 0.5 where the run had no test evaluation.
    """
    if self.exclusive and len(self.classes) > 2:
      return None
    return tuple(self.judged.get("thresholds", [0.5] * len(self.classes)))

  def describe(self) -> dict[str, Any]:
    """The network and its images, for JSON."""
    run, encoder = self.run, self.run.encoder
    about = {
      "family": family_of(encoder), "model": run.config["model"],
      "method": self.method, "step": run.step,
      "image_size": self.image_size, "channels": encoder.channels,
      "mean": self.mean, "std": self.std, "standardize": encoder.standardize,
      "pixels": "(gray / 255 - mean) / std", "fit": run.config["data"]["fit"],
      "features": encoder.features, "use": "research only, not for diagnosis"}
    if hasattr(encoder, "attention_heads"):
      about["heads"] = encoder.attention_heads
    if self.classes:
      about |= {"classes": list(self.classes),
                "probabilities": "softmax" if self.exclusive else "sigmoid"}
    # Of logits, which what `outputs` gives has not been divided by; and of probabilities.
    about |= {name: self.judged[name] for name in ("temperature", "thresholds")
              if name in self.judged}
    return about

  def outputs(
      self, params: dict[str, Any], x: Float[Array, "b s s c"], embed: bool = False,
  ) -> dict[str, Array]:
    """Pure and traceable: what the network makes of normalised images.

    Args:
      params: `self.params`.
      x: (gray - mean) / std, gray in 0..1.
      embed: features as well, which an encoder always gives.

    Returns:
      `probabilities` [b k] of a classifier, as trained, not calibrated; or `mask` [b s s 1] of a
      segmenter, the probability of lung; and `features` [b d].
    """
    found = {}
    if self.kind != "encoder":
      name = "probabilities" if self.kind == "classifier" else "mask"
      found[name] = self.run.method.predict(params, x)
    if embed or self.kind == "encoder":  # compiled, what both have in common is computed once
      found["features"] = self.run.encoder.encode(params["encoder"], x).cls
    return found

  def lungs(self, probability: Float32[np.ndarray, "s s"]) -> Bool[np.ndarray, "s s"]:
    """What a segmenter calls lungs: from 0.5 on, as many of the largest parts as it keeps."""
    return segmentation.largest(probability >= LUNG, self.run.method.components)

  def look(self, size: int | None = None) -> Look:
    """What images are to be like: as those it learnt from."""
    data = self.run.config["data"]
    bits = data.get("bits", "auto")
    if bits == "auto":
      bits = self.run.facts["data"]["train"].get("bits", 8)
    return Look(size or self.image_size, data["fit"], int(bits),
                pixels.check_window(freeze(data.get("window", "auto"))))

  def predict(
      self, images: Any, *, embed: bool = False, masks: str | os.PathLike[str] | None = None,
      batch_size: int = 64, progress: bool = True, on_bad_image: str = "skip",
  ) -> Predictions:
    """What the network makes of images; all of it is in memory, so of thousands, not of millions.

    Args:
      images: a path or several, of files (PNG, JPEG, TIFF, BMP, DICOM), folders and zips; or
        arrays of gray levels, uint8 or uint16 [h w] of any sizes, or [n h w].
      embed: the encoder's features as well.
      masks: workdir of a finished run of `configs/segment.py`, for lung masks as well; a segmenter
        draws its own.
      batch_size: images a dispatch.
      progress: a bar on stderr.
      on_bad_image: `skip` leaves an image out that cannot be used, and lists it in `skipped`;
        `error` stops at it.

    Raises:
      UserError: nothing to predict (an encoder, and not `embed`), no such file, no image left, an
        image that cannot be used where that is an error.
    """
    if on_bad_image not in ON_BAD:
      raise UserError(f"on_bad_image={on_bad_image!r} is not an option; valid: {', '.join(ON_BAD)}")
    lungs = None if masks is None else segmenter(masks, "masks")
    given = open_given(images)
    work = Work(self, embed=embed, lungs=lungs)
    parts, skipped = [], []
    with tqdm.tqdm(total=len(given.ids), desc="predicting", unit=" images", file=sys.stderr,
                   disable=not progress, dynamic_ncols=True) as bar:
      for part in work.run(given, range(len(given.ids)), batch_size):
        if part.skipped and on_bad_image == "error":
          name, why = part.skipped[0]
          raise UserError(f"{name}: {why}; mend or remove it, or leave bad images out with "
                          "on_bad_image='skip'")
        parts.append(part)
        skipped += part.skipped
        bar.update(len(part) + len(part.skipped))
    if len(skipped) == len(given.ids):
      raise UserError(f"all {len(skipped)} images are bad; the first: "
                      f"{skipped[0][0]}: {skipped[0][1]}")
    return _joined([part for part in parts if len(part)], tuple(skipped))

  def probabilities(self, images: Any, *, batch_size: int = 64) -> Float32[np.ndarray, "n k"]:
    """Calibrated probabilities of images, see `predict`; none may be bad.

    Raises:
      UserError: the run is no classifier, or a bad image.
    """
    if self.kind != "classifier":
      raise UserError(f"{self.run.workdir} is a run of {self.method}, which has no classes; "
                      "fine-tune it first with configs/finetune.py:init=WORKDIR")
    found = self.predict(
      images, batch_size=batch_size, progress=False, on_bad_image="error").probabilities
    assert found is not None
    return found

  def embed(self, images: Any, *, batch_size: int = 64) -> Float32[np.ndarray, "n d"]:
    """The encoder's features of images, see `predict`; none may be bad.

    Raises:
      UserError: a bad image.
    """
    work = Work(self, embed=True, predict=False)
    given = open_given(images)
    parts = list(work.run(given, range(len(given.ids)), batch_size))
    for part in parts:
      for name, why in part.skipped:
        raise UserError(f"{name}: {why}; mend or remove it")
    return np.concatenate([part.embeddings for part in parts])


class Work:
  """What is to be done with images: compiled once, then run on as many as there are.

  Args:
    network: at work.
    embed: its encoder's features as well.
    lungs: a segmenter, for lung masks beside another network's predictions.
    predict: without, features alone.

  Raises:
    UserError: nothing is to be done.
  """

  def __init__(
      self, network: Network, *, embed: bool = False, lungs: Network | None = None,
      predict: bool = True):
    self.network, self.lungs, self._embed = network, lungs, embed
    if network.kind == "encoder" and predict and not embed:
      raise UserError(
        f"{network.run.workdir} is a run of {network.method}, which has no classes to predict; "
        "take its features (embed), or fine-tune it with configs/finetune.py:init=WORKDIR")
    function = functools.partial(network.outputs, embed=embed) if predict else self._features
    self._steps = [(network, function), *([(lungs, lungs.outputs)] if lungs is not None else [])]

  def run(self, images: Given, rows: Iterable[int], batch_size: int = 64) -> Iterator[Predictions]:
    """Predictions batch by batch, in the order of `rows`; decoding runs ahead in threads.

    Args:
      images: where they are.
      rows: which of them.
      batch_size: images a dispatch.

    Raises:
      UserError: no batch size.
    """
    if batch_size < 1:
      raise UserError(f"batch_size={batch_size} must be at least 1")
    mesh = sharding.make_mesh() if jax.device_count() > 1 else None
    size = features.batch_size(batch_size, mesh)
    batches = ahead.batches(images, rows, [network.look() for network, _ in self._steps], size)

    def sent() -> Iterator[tuple[ahead.Batch, list[Any]]]:
      for batch in batches:
        yield batch, [
          features.send(function, network.params, *squares, size=size, mean=network.mean,
                        std=network.std, mesh=mesh)
          for (network, function), squares in zip(self._steps, batch.squares, strict=False)]

    with contextlib.closing(batches):
      for batch, found in features.received(sent()):
        yield self._predictions(images, batch, found)

  def _features(self, params: dict[str, Any], x: Float[Array, "b s s c"]) -> dict[str, Array]:
    return {"features": self.network.run.encoder.encode(params["encoder"], x).cls}

  def _predictions(
      self, images: Given, batch: ahead.Batch, found: list[dict[str, np.ndarray]]) -> Predictions:
    network = self.network
    ids = tuple(images.ids[row] for row in batch.rows)
    skipped = tuple((images.ids[row], why) for row, why in batch.bad)
    if not found:
      return Predictions((), network.classes, network.exclusive, skipped=skipped)
    found = [{name: y[:len(ids)] for name, y in drawn.items()} for drawn in found]
    own = found[0]
    probabilities = called = masks = None
    if "probabilities" in own:
      p = calibrated(network, own["probabilities"])
      probabilities, called = p.astype(np.float32), call(network, p)
    for (drawer, _), drawn in zip(self._steps, found, strict=True):
      if "mask" in drawn:
        masks = tuple(lung_mask(drawer, m[..., 0], shape)
                      for m, shape in zip(drawn["mask"], batch.shapes, strict=True))
    return Predictions(
      ids, network.classes, network.exclusive, probabilities, called, own.get("features"), masks,
      skipped)


def load(
    workdir: str | os.PathLike[str], key: str = "workdir",
    image_size: int | None = None) -> Network:
  """A finished run of any method, from its workdir.

  Args:
    workdir: of the run.
    key: the option that names it, for errors.
    image_size: pixels per side; by default those that it was trained on.

  Raises:
    UserError: no run, one that has not finished, or one that cannot be read.
  """
  run = restore(os.fspath(workdir), key)
  trained = run.config["views"].get("global_size") or run.config["data"]["size"]
  return Network(run, image_size or trained)


def segmenter(workdir: str | os.PathLike[str], key: str) -> Network:
  """A finished run of `configs/segment.py`; see `load`.

  Raises:
    UserError: see `load`, or a run that draws no masks.
  """
  found = load(workdir, key)
  if found.kind != "segmenter":
    raise UserError(
      f"{key}={os.fspath(workdir)!r} is a run of {found.method}, which draws no masks; give the "
      "workdir of a finished run of configs/segment.py")
  return found


def calibrated(
    network: Network, probabilities: Float32[np.ndarray, "n k"]) -> Float64[np.ndarray, "n k"]:
  """A classifier's own probabilities after its logits are divided by its temperature."""
  return calibration.scaled(probabilities, np.asarray(network.temperature), network.exclusive)


def call(network: Network, probabilities: Float64[np.ndarray, "n k"]) -> Bool[np.ndarray, "n k"]:
  """Which classes are called, of calibrated probabilities."""
  thresholds = network.thresholds or (0.5,) * len(network.classes)  # of which it makes no use
  return judge.called(probabilities, network.exclusive, np.asarray(thresholds))


def lung_mask(
    network: Network, probability: Float32[np.ndarray, "s s"], shape: tuple[int, int],
) -> UInt8[np.ndarray, "h w"]:
  """Lungs 1 and the rest 0 at an image's own size, of a segmenter's probabilities."""
  left_out = (probability >= LUNG) & ~network.lungs(probability)
  kept = np.where(left_out, np.float32(0), probability)  # far fewer pixels than the image's
  own = pixels.unfit(kept, shape, network.run.config["data"]["fit"])
  return (own >= LUNG).astype(np.uint8)


def _joined(parts: list[Predictions], skipped: Skipped) -> Predictions:
  first = parts[0]

  def joined(name: str) -> np.ndarray | None:
    if getattr(first, name) is None:
      return None
    return np.concatenate([getattr(part, name) for part in parts])

  masks = None if first.masks is None else tuple(m for part in parts for m in part.masks or ())
  return dataclasses.replace(
    first, ids=tuple(i for part in parts for i in part.ids), masks=masks, skipped=skipped,
    **{name: joined(name) for name in ("probabilities", "called", "embeddings")})

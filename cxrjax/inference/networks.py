"""Applies finished runs to new radiographs: `cxrjax.load(workdir)`.

    net = cxrjax.load("runs/finetune")
    predictions = net.predict("/my/radiographs")      # a folder, files, DICOM, or arrays
    predictions.to_csv("predictions.csv")

`python -m cxrjax.predict` does the same for folders of any size.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Float64, Int, UInt8, UInt16

from cxrjax.config import instantiate
from cxrjax.config.instantiate import freeze
from cxrjax.core.errors import UserError, suggest
from cxrjax.data.decoding import windowing
from cxrjax.data.loading.decoded_cache import ON_BAD, DecodeSpec
from cxrjax.evals import classification_metrics
from cxrjax.explain import maps
from cxrjax.inference import decode_ahead
from cxrjax.inference.inputs import open_given
from cxrjax.inference.pipeline import PredictionTask, progress_bar
from cxrjax.inference.predictions import Predictions, concatenate
from cxrjax.methods.base import SupervisedMethod
from cxrjax.metrics import calibration, segmentation
from cxrjax.models.weights.adapt import family_of
from cxrjax.training.restore import Restored, restore

__all__ = ["Network", "Predictions", "load", "segmenter"]

Workdir = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Target = int | str | Int[np.ndarray, "n"] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
  """The network of a finished run, with its image size, calibration and thresholds.

  Attributes:
    run: the restored run.
    image_size: pixels per side of its input.
    members: of an ensemble.
  """

  run: Restored
  image_size: int
  members: tuple[Network, ...] = ()

  @functools.cached_property
  def kind(self) -> str:
    """`classifier`, `segmenter` (of lungs), or `encoder` (pretrained, features only)."""
    if not isinstance(self.run.method, SupervisedMethod):
      return "encoder"
    return "classifier" if self.classes else "segmenter"

  @functools.cached_property
  def params(self) -> dict[str, Any]:
    """Parameters of the whole network if it predicts something, else of the encoder alone."""
    if isinstance(self.run.method, SupervisedMethod):
      return self.run.method.network_params(self.run.params, self.run.method_state)
    return {"encoder": self.run.encoder_params}

  @property
  def classes(self) -> tuple[str, ...]:
    """Class names in the order of the probabilities; empty without a classifier."""
    method = self.run.method
    return tuple(method.classes) if isinstance(method, SupervisedMethod) else ()

  @property
  def name(self) -> str:
    """Workdir of the run."""
    return str(self.run.workdir)

  @property
  def fingerprint(self) -> str:
    """Hash of the network, equal for equal predictions."""
    return self.run.fingerprint

  @property
  def method(self) -> str:
    """Training method, such as `classify` or `dino`."""
    return self.run.config["method"]["name"].rpartition(".")[2]

  @property
  def exclusive(self) -> bool:
    """True for one class per image (softmax), False for several findings at once (sigmoids)."""
    return bool(self.classes) and self.run.method.labels.exclusive

  @property
  def mean(self) -> float:
    """Mean that is subtracted from gray levels in 0..1."""
    return self.run.config["views"]["mean"]

  @property
  def std(self) -> float:
    """Standard deviation that gray levels are divided by."""
    return self.run.config["views"]["std"]

  @functools.cached_property
  def judged(self) -> dict[str, Any]:
    """Facts of the test evaluation with the calibration of probabilities; {} without one."""
    evaluations = {
      name: evaluation["trained"]
      for name, evaluation in self.run.facts.get("evaluation", {}).items()
      if "temperature" in evaluation.get("trained", {})
    }
    return evaluations.get("test", next(iter(evaluations.values()), {}))

  @property
  def temperature(self) -> tuple[float, ...]:
    """Temperature of the logits, fitted to validation images: one, or one per finding.

    It is 1 if the run had no test evaluation.
    """
    parts = 1 if self.exclusive else len(self.classes)
    return tuple(self.judged.get("temperature", [1.0] * parts))

  @property
  def thresholds(self) -> tuple[float, ...] | None:
    """Calibrated probability from which each class is called, chosen on validation images.

    Of two exclusive classes, that of the last decides. None for exclusive classes without a choice:
    the likeliest is called. 0.5 for findings if the run had no test evaluation.
    """
    if self.exclusive and (len(self.classes) > 2 or "thresholds" not in self.judged):
      return None
    return tuple(self.judged.get("thresholds", [0.5] * len(self.classes)))

  def describe(self) -> dict[str, Any]:
    """Description of the network and its input, for JSON."""
    run, encoder = self.run, self.run.encoder
    about = {
      "family": family_of(encoder),
      "model": run.config["model"],
      "method": self.method,
      "step": run.step,
      "image_size": self.image_size,
      "channels": encoder.channels,
      "mean": self.mean,
      "std": self.std,
      "standardize": encoder.standardize,
      "pixels": "(gray / 255 - mean) / std",
      "fit": run.config["data"]["fit"],
      "features": encoder.features,
      "use": "research only, not for diagnosis",
    }
    if encoder.attention_heads:
      about["heads"] = encoder.attention_heads
    if self.classes:
      about |= {
        "classes": list(self.classes),
        "probabilities": "softmax" if self.exclusive else "sigmoid",
      }
    # Not applied in `outputs`: temperatures of logits, thresholds of calibrated probabilities.
    about |= {
      name: self.judged[name] for name in ("temperature", "thresholds") if name in self.judged
    }
    return about

  def outputs(self, params: dict[str, Any], x: Float[Array, "b s s c"]) -> dict[str, Array]:
    """Outputs of the network for normalized images; pure and traceable.

    Args:
      params: `self.params`.
      x: (gray - mean) / std, gray in 0..1.

    Returns:
      `probabilities` [b k] of a classifier, as trained, not calibrated; `mask` [b s s 1] of a
      segmenter, the probability of lung; `features` [b d] of an encoder.
    """
    if self.kind == "encoder":
      return self.features(params, x)
    name = "probabilities" if self.kind == "classifier" else "mask"
    return {name: self.run.method.predict(params, x)}

  def features(self, params: dict[str, Any], x: Float[Array, "b s s c"]) -> dict[str, Array]:
    """`features` [b d] of the encoder; pure and traceable."""
    return {"features": self.run.encoder.encode(params["encoder"], x).cls}

  def outputs_and_features(
    self, params: dict[str, Any], x: Float[Array, "b s s c"]
  ) -> dict[str, Array]:
    """Outputs and features; compiled together, they share the encoder's computation."""
    return self.outputs(params, x) | self.features(params, x)

  def lungs(self, probability: Float32[np.ndarray, "s s"]) -> Bool[np.ndarray, "s s"]:
    """Lung mask of a segmenter: thresholded at 0.5, only the largest components kept."""
    return segmentation.largest(probability >= 0.5, self.run.method.components)

  def calibrated(self, probabilities: Float32[np.ndarray, "n k"]) -> Float64[np.ndarray, "n k"]:
    """Probabilities after temperature scaling of the classifier's logits."""
    return calibration.scaled(probabilities, np.asarray(self.temperature), self.exclusive)

  def call(self, probabilities: Float64[np.ndarray, "n k"]) -> Bool[np.ndarray, "n k"]:
    """Classes that are called, from calibrated probabilities."""
    thresholds = self.thresholds or (0.5,) * len(self.classes)  # unused by exclusive classes
    return classification_metrics.called(probabilities, self.exclusive, np.asarray(thresholds))

  def normalised(
    self,
    squares: UInt8[np.ndarray, "n s s 1"] | UInt16[np.ndarray, "n s s 1"],
    windows: Float32[np.ndarray, "n 2"] | None = None,
  ) -> Float32[np.ndarray, "n s s 1"]:
    """Converts decoded squares to normalized network input."""
    limits = windowing.WHOLE[8] if windows is None else windows
    limits = np.broadcast_to(np.asarray(limits, np.float32), (len(squares), 2))
    gray = np.asarray(windowing.to_unit(squares, limits))
    return (gray - np.float32(self.mean)) / np.float32(self.std)

  def check_method(self, method: str, key: str = "method") -> None:
    """Validates a method of `explain`; raises a UserError if the network does not support it."""
    maps.check(method, self.run.encoder, self.kind == "classifier", key)

  def maps(
    self,
    method: str,
    x: Float32[np.ndarray, "n s s 1"],
    target: int | Int[np.ndarray, "n"] | None = None,
  ) -> Float32[np.ndarray, "n s s"]:
    """Explanation maps of normalized images, see `explain`."""
    head = maps.Head(**self.params["head"]) if self.kind == "classifier" else None
    heat = maps.explain(
      method, self.run.encoder, self.params["encoder"], jnp.asarray(x), head=head, target=target
    )
    return maps.enlarge(heat, x.shape[1:3])

  def look(self, size: int | None = None) -> DecodeSpec:
    """Size, fit, bit depth and windowing of decoded images, as in training."""
    data = self.run.config["data"]
    bits = data.get("bits", "auto")
    if bits == "auto":
      bits = self.run.facts["data"]["train"].get("bits", 8)
    return DecodeSpec(
      size or self.image_size,
      data["fit"],
      int(bits),
      windowing.check_window(freeze(data.get("window", "auto"))),
    )

  def predict(
    self,
    images: Any,
    *,
    embed: bool = False,
    masks: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    progress: bool = True,
    on_bad_image: str = "skip",
  ) -> Predictions:
    """Predictions for images; all are held in memory, so for thousands, not for millions.

    Args:
      images: one or more paths of files (PNG, JPEG, TIFF, BMP, DICOM), folders and zips; or
        arrays of gray levels, uint8 or uint16 [h w] of any sizes, or [n h w].
      embed: add the encoder's features.
      masks: workdir of a finished run of `configs/segment.py`, to add lung masks; a segmenter
        draws its own.
      batch_size: images per dispatch.
      progress: show a bar on stderr.
      on_bad_image: `skip` leaves out unusable images and lists them in `skipped`; `error` stops
        at the first.

    Raises:
      UserError: nothing to predict (an encoder without `embed`), no such file, no usable image, or
        an unusable image with `error`.
    """
    if on_bad_image not in ON_BAD:
      raise UserError(f"on_bad_image={on_bad_image!r} is not an option; valid: {', '.join(ON_BAD)}")
    segmentation = None if masks is None else segmenter(masks, "masks")
    inputs = open_given(images)
    work = PredictionTask(self, embed=embed, lungs=segmentation)
    parts = []
    with progress_bar(len(inputs.ids), shown=progress) as bar:
      for part in work.run(inputs, range(len(inputs.ids)), batch_size):
        if part.skipped and on_bad_image == "error":
          raise _bad_image_error(*part.skipped[0])
        parts.append(part)
        bar.update(len(part) + len(part.skipped))
    predictions = concatenate(parts)
    if not len(predictions):
      skipped = predictions.skipped
      raise UserError(f"all {len(skipped)} images are bad; the first: {': '.join(skipped[0])}")
    return predictions

  def probabilities(self, images: Any, *, batch_size: int = 64) -> Float32[np.ndarray, "n k"]:
    """Calibrated probabilities of images, see `predict`; all images must be usable.

    Raises:
      UserError: the run is no classifier, or a bad image.
    """
    if self.kind != "classifier":
      raise UserError(
        f"{self.run.workdir} is a run of {self.method}, which has no classes; "
        "fine-tune it first with configs/finetune.py:init=WORKDIR"
      )
    probabilities = self.predict(
      images, batch_size=batch_size, progress=False, on_bad_image="error"
    ).probabilities
    assert probabilities is not None
    return probabilities

  def embed(self, images: Any, *, batch_size: int = 64) -> Float32[np.ndarray, "n d"]:
    """The encoder's features of images, see `predict`; all images must be usable.

    Raises:
      UserError: a bad image.
    """
    work = PredictionTask(self, embed=True, predict=False)
    inputs = open_given(images)
    parts = []
    for part in work.run(inputs, range(len(inputs.ids)), batch_size):
      if part.skipped:
        raise _bad_image_error(*part.skipped[0])
      assert part.embeddings is not None  # requested, and no image is bad
      parts.append(part.embeddings)
    return np.concatenate(parts)

  def explain(
    self, images: Any, method: str = "gradcam", target: Target = None
  ) -> Float32[np.ndarray, "n s s"]:
    """Maps of where the network looks, or of the evidence for a class.

    Args:
      images: see `predict`; all must be usable.
      method: `gradcam`, `gradcam++`, `occlusion` of a class of a classifier; `attention`,
        `rollout` of any transformer; see `cxrjax.explain.maps.explain`.
      target: the class, by name or index, or an index for each image; by default the likeliest.

    Returns:
      A map for each image, as the network sees it (squashed, padded or cropped to `image_size`).

    Raises:
      UserError: a method that the network does not support, no such class, or a bad image.
    """
    self.check_method(method)
    if isinstance(target, str):
      if target not in self.classes:
        raise UserError(f"target={target!r} is not a class{suggest(target, self.classes)}")
      target = self.classes.index(target)
    inputs = open_given(images)
    heat_maps = []
    for batch in decode_ahead.batches(inputs, range(len(inputs.ids)), [self.look()], 16):
      for row, why in batch.bad:
        raise _bad_image_error(inputs.ids[row], why)
      targets = target
      if target is not None and not isinstance(target, int):
        targets = np.asarray(target)[list(batch.rows)]
      heat_maps.append(self.maps(method, self.normalised(*batch.squares[0]), targets))
    return np.concatenate(heat_maps)


def _workdir_list(workdir: Workdir) -> list[str]:
  """Splits a workdir argument; an existing folder may have commas in its name."""
  if not isinstance(workdir, str):
    names = [workdir] if isinstance(workdir, os.PathLike) else workdir
    return [os.fspath(name) for name in names]
  if pathlib.Path(workdir).expanduser().exists():
    return [workdir]
  return [name for name in workdir.split(",") if name] or [workdir]


def load(
  workdir: Workdir,
  key: str = "workdir",
  image_size: int | None = None,
  trust: str | Iterable[str] = (),
) -> Network:
  """Loads the network of a finished run of any method.

  Args:
    workdir: of the run; for an ensemble, a list of several or a comma-separated string.
    key: the option that names it, for errors.
    image_size: pixels per side; by default those that it was trained on.
    trust: modules of your own that it may name, as in `cxrjax.trust`.

  Raises:
    UserError: no run, an unfinished or unreadable one; it names a module that is neither of this
      package nor trusted; or several runs that do not form an ensemble.
  """
  instantiate.trust(trust)
  workdirs = _workdir_list(workdir)
  if len(workdirs) > 1:
    from cxrjax.inference.ensemble import Ensemble

    return Ensemble.of([load(name, key, image_size) for name in workdirs], key)
  run = restore(workdirs[0], key)
  trained_size = run.config["views"].get("global_size") or run.config["data"]["size"]
  return Network(run, image_size or trained_size)


def segmenter(workdir: str | os.PathLike[str], key: str) -> Network:
  """Loads a finished run of `configs/segment.py`; see `load`.

  Raises:
    UserError: see `load`, or a run that is no segmenter.
  """
  network = load(workdir, key)
  if network.kind != "segmenter":
    raise UserError(
      f"{key}={os.fspath(workdir)!r} is a run of {network.method}, which does not predict masks; "
      "give the workdir of a finished run of configs/segment.py"
    )
  return network


def _bad_image_error(name: str, why: str) -> UserError:
  return UserError(f"{name}: {why}; fix or remove it, or skip bad images with on_bad_image='skip'")

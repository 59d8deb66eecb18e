"""A finished run at work on new radiographs: `cxrjax.load(workdir)`.

    net = cxrjax.load("runs/finetune")
    found = net.predict("/my/radiographs")      # a folder, files, DICOM, or arrays
    found.to_csv("predictions.csv")

`python -m cxrjax.predict` does the same for folders of any size.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import tqdm
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
from cxrjax.inference.pipeline import Work
from cxrjax.inference.predictions import Predictions, joined
from cxrjax.metrics import calibration, segmentation
from cxrjax.models.weights.adapt import family_of
from cxrjax.training.restore import Restored, restore

__all__ = ["Network", "Predictions", "load", "segmenter"]

Workdir = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Target = int | str | Int[np.ndarray, "n"] | None


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
  def name(self) -> str:
    """The workdir that it is from."""
    return str(self.run.workdir)

  @property
  def fingerprint(self) -> str:
    """Hash of the network: equal for equal predictions."""
    return self.run.fingerprint

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
    found = {
      name: facts["trained"]
      for name, facts in self.run.facts.get("evaluation", {}).items()
      if "temperature" in facts.get("trained", {})
    }
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

    Of two exclusive classes the last one's decides. None of exclusive classes where validation has
    chosen none: the likeliest is called. 0.5 of findings where the run had no test evaluation.
    """
    if self.exclusive and (len(self.classes) > 2 or "thresholds" not in self.judged):
      return None
    return tuple(self.judged.get("thresholds", [0.5] * len(self.classes)))

  def describe(self) -> dict[str, Any]:
    """The network and its images, for JSON."""
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
    if hasattr(encoder, "attention_heads"):
      about["heads"] = encoder.attention_heads
    if self.classes:
      about |= {
        "classes": list(self.classes),
        "probabilities": "softmax" if self.exclusive else "sigmoid",
      }
    # Of logits, which what `outputs` gives has not been divided by; and of probabilities.
    about |= {
      name: self.judged[name] for name in ("temperature", "thresholds") if name in self.judged
    }
    return about

  def outputs(self, params: dict[str, Any], x: Float[Array, "b s s c"]) -> dict[str, Array]:
    """Pure and traceable: what the network makes of normalised images.

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
    """Pure and traceable: `features` [b d] of the encoder."""
    return {"features": self.run.encoder.encode(params["encoder"], x).cls}

  def outputs_and_features(
    self, params: dict[str, Any], x: Float[Array, "b s s c"]
  ) -> dict[str, Array]:
    """Both; what they have in common is computed once when this is compiled."""
    return self.outputs(params, x) | self.features(params, x)

  def lungs(self, probability: Float32[np.ndarray, "s s"]) -> Bool[np.ndarray, "s s"]:
    """What a segmenter calls lungs: from 0.5 on, as many of the largest parts as it keeps."""
    return segmentation.largest(probability >= 0.5, self.run.method.components)

  def calibrated(self, probabilities: Float32[np.ndarray, "n k"]) -> Float64[np.ndarray, "n k"]:
    """A classifier's own probabilities after its logits are divided by its temperature."""
    return calibration.scaled(probabilities, np.asarray(self.temperature), self.exclusive)

  def call(self, probabilities: Float64[np.ndarray, "n k"]) -> Bool[np.ndarray, "n k"]:
    """Which classes are called, of calibrated probabilities."""
    thresholds = self.thresholds or (0.5,) * len(self.classes)  # of which it makes no use
    return classification_metrics.called(probabilities, self.exclusive, np.asarray(thresholds))

  def normalised(
    self,
    squares: UInt8[np.ndarray, "n s s 1"] | UInt16[np.ndarray, "n s s 1"],
    windows: Float32[np.ndarray, "n 2"] | None = None,
  ) -> Float32[np.ndarray, "n s s 1"]:
    """Decoded squares as the network takes them."""
    shown = windowing.WHOLE[8] if windows is None else windows
    shown = np.broadcast_to(np.asarray(shown, np.float32), (len(squares), 2))
    gray = np.asarray(windowing.to_unit(squares, shown))
    return (gray - np.float32(self.mean)) / np.float32(self.std)

  def check_method(self, method: str, key: str = "method") -> None:
    """Raises a UserError for a method of `explain` that the network has not."""
    maps.check(method, self.run.encoder, self.kind == "classifier", key)

  def maps(
    self,
    method: str,
    x: Float32[np.ndarray, "n s s 1"],
    target: int | Int[np.ndarray, "n"] | None = None,
  ) -> Float32[np.ndarray, "n s s"]:
    """Maps of normalised images, see `explain`."""
    head = maps.Head(**self.params["head"]) if self.kind == "classifier" else None
    found = maps.explain(
      method, self.run.encoder, self.params["encoder"], jnp.asarray(x), head=head, target=target
    )
    return maps.enlarge(found, x.shape[1:3])

  def look(self, size: int | None = None) -> DecodeSpec:
    """What images are to be like: as those it learnt from."""
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
    parts = []
    with tqdm.tqdm(
      total=len(given.ids),
      desc="predicting",
      unit=" images",
      file=sys.stderr,
      disable=not progress,
      dynamic_ncols=True,
    ) as bar:
      for part in work.run(given, range(len(given.ids)), batch_size):
        if part.skipped and on_bad_image == "error":
          raise _bad(*part.skipped[0])
        parts.append(part)
        bar.update(len(part) + len(part.skipped))
    found = joined(parts)
    if not len(found):
      raise UserError(
        f"all {len(found.skipped)} images are bad; the first: {': '.join(found.skipped[0])}"
      )
    return found

  def probabilities(self, images: Any, *, batch_size: int = 64) -> Float32[np.ndarray, "n k"]:
    """Calibrated probabilities of images, see `predict`; none may be bad.

    Raises:
      UserError: the run is no classifier, or a bad image.
    """
    if self.kind != "classifier":
      raise UserError(
        f"{self.run.workdir} is a run of {self.method}, which has no classes; "
        "fine-tune it first with configs/finetune.py:init=WORKDIR"
      )
    found = self.predict(
      images, batch_size=batch_size, progress=False, on_bad_image="error"
    ).probabilities
    assert found is not None
    return found

  def embed(self, images: Any, *, batch_size: int = 64) -> Float32[np.ndarray, "n d"]:
    """The encoder's features of images, see `predict`; none may be bad.

    Raises:
      UserError: a bad image.
    """
    work = Work(self, embed=True, predict=False)
    given = open_given(images)
    parts = []
    for part in work.run(given, range(len(given.ids)), batch_size):
      if part.skipped:
        raise _bad(*part.skipped[0])
      assert part.embeddings is not None  # asked for, and no image is bad
      parts.append(part.embeddings)
    return np.concatenate(parts)

  def explain(
    self, images: Any, method: str = "gradcam", target: Target = None
  ) -> Float32[np.ndarray, "n s s"]:
    """Where the network looks, or what the score of a class rests on.

    Args:
      images: see `predict`; none may be bad.
      method: `gradcam`, `gradcam++`, `occlusion` of a class of a classifier; `attention`,
        `rollout` of any transformer; see `cxrjax.explain.maps.explain`.
      target: the class, by name or number, or a number for each image; by default the likeliest.

    Returns:
      A map for each image, as the network sees it (squashed, padded or cropped to `image_size`).

    Raises:
      UserError: a method that the network has not, no such class, or a bad image.
    """
    self.check_method(method)
    if isinstance(target, str):
      if target not in self.classes:
        raise UserError(f"target={target!r} is no class{suggest(target, self.classes)}")
      target = self.classes.index(target)
    given = open_given(images)
    found = []
    for batch in decode_ahead.batches(given, range(len(given.ids)), [self.look()], 16):
      for row, why in batch.bad:
        raise _bad(given.ids[row], why)
      chosen = (
        target
        if target is None or isinstance(target, int)
        else np.asarray(target)[list(batch.rows)]
      )
      found.append(self.maps(method, self.normalised(*batch.squares[0]), chosen))
    return np.concatenate(found)


def _several(workdir: Workdir) -> list[str]:
  """Names of one workdir or several; a folder may have commas in its name."""
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
  """A finished run of any method, from its workdir.

  Args:
    workdir: of the run; of several, a list or with commas between them, for an ensemble.
    key: the option that names it, for errors.
    image_size: pixels per side; by default those that it was trained on.
    trust: modules of your own that it may name, as in `cxrjax.trust`.

  Raises:
    UserError: no run, one that has not finished, or one that cannot be read; it names a module that
      is not of this package and not trusted; several that are no ensemble.
  """
  instantiate.trust(trust)
  names = _several(workdir)
  if len(names) > 1:
    from cxrjax.inference.ensemble import Ensemble

    return Ensemble.of([load(name, key, image_size) for name in names], key)
  run = restore(names[0], key)
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
      "workdir of a finished run of configs/segment.py"
    )
  return found


def _bad(name: str, why: str) -> UserError:
  return UserError(
    f"{name}: {why}; mend or remove it, or leave bad images out: predict with on_bad_image='skip'"
  )

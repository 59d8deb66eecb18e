"""Exports networks of ours in the names and shapes of timm, torchvision and torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from cxrjax.core.errors import UserError
from cxrjax.models.module import Params
from cxrjax.models.weights import vit
from cxrjax.models.weights.adapt import family_of

_HEAD_NAMES = {"vit": "head", "resnet": "fc", "densenet": "classifier", "inception": "fc"}


@dataclasses.dataclass(frozen=True)
class Peer:
  """The equivalent network in timm.

  Attributes:
    arrays: arrays by name, float32 (batch counters int64), row-major.
    model: model name for `timm.create_model`; "" where timm has none of this size.
    args: keyword arguments for `timm.create_model`.
    left: our parameters without a counterpart.
    notes: what timm's network does not do, one sentence each.
  """

  arrays: dict[str, np.ndarray]
  model: str
  args: dict[str, Any]
  left: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()

  @property
  def command(self) -> str:
    """Python code that creates the network."""
    args = "".join(f", {name}={value!r}" for name, value in self.args.items())
    return f"timm.create_model({self.model!r}{args})" if self.model else ""


def to_timm(encoder: Any, params: Params, head: Mapping[str, Any] | None = None) -> Peer:
  """Converts an encoder, with an optional linear classifier, to timm's network of the same family.

  For the same normalized images, timm's class token (or mean) after the last norm is our
  `Features.cls`, and its logits are ours before softmax or sigmoid.

  Args:
    encoder: an encoder of `cxrjax.models`.
    params: the encoder's parameters.
    head: `kernel` [d k] and `bias` [k] of the classifier; None for the encoder alone.

  Raises:
    UserError: a network that timm lacks.
  """
  family = family_of(encoder)
  if family not in _HEAD_NAMES:
    raise UserError(
      f"timm has no network like config.model.name={type(encoder).__module__!r}; use --format=npz "
      "or --format=stablehlo"
    )
  flat = {
    name: np.asarray(value, np.float32) for name, value in flatten_dict(params, sep="/").items()
  }
  classes = 0 if head is None else len(head["bias"])
  args: dict[str, Any] = {"num_classes": classes, "in_chans": encoder.channels}
  unused: tuple[str, ...] = ()
  if family == "vit":
    arrays, unused = vit.to_timm(flat, encoder)
    model, model_args = "vit_base_patch16_224", _vit_args(encoder)
  else:
    arrays, model, model_args = _cnn_arrays(flat), *_cnn_args(family, encoder)
  if head is not None:
    arrays[f"{_HEAD_NAMES[family]}.weight"] = np.asarray(head["kernel"], np.float32).T
    arrays[f"{_HEAD_NAMES[family]}.bias"] = np.asarray(head["bias"], np.float32)
  notes = []
  if encoder.standardize:
    notes.append(
      "every image has to be brought to mean 0 and deviation 1 first, (x - mean) / "
      "(std + 0.05) of its normalised pixels, which timm does not do"
    )
  if not model:
    notes.append("timm has no network of this width; names and shapes are those of its family")
  # safetensors writes raw memory and ignores strides.
  arrays = {name: np.array(array, order="C") for name, array in arrays.items()}
  return Peer(arrays, model, {**model_args, **args}, unused, tuple(notes))


def _vit_args(encoder: Any) -> dict[str, Any]:
  args = {
    "img_size": encoder.image_size,
    "patch_size": encoder.patch_size,
    "embed_dim": encoder.features,
    "depth": encoder.blocks,
    "num_heads": encoder.attention_heads,
  }
  if encoder.layer_scale:
    args["init_values"] = encoder.layer_scale
  if encoder.registers:
    args |= {"reg_tokens": encoder.registers, "no_embed_class": True}
  if encoder.pool == "mean":
    args |= {"global_pool": "avg", "fc_norm": False}
  if encoder.gelu == "tanh":
    args["act_layer"] = "gelu_tanh"
  return args


def _cnn_arrays(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  prefix = "features." if "conv0/kernel" in flat else ""
  arrays = {}
  for name, value in flat.items():
    stem, _, leaf = name.replace("/", ".").rpartition(".")
    leaf = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
    arrays[f"{prefix}{stem}.{leaf}"] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
    if leaf == "running_mean":
      arrays[f"{prefix}{stem}.num_batches_tracked"] = np.zeros((), np.int64)
  return arrays


def _cnn_args(family: str, encoder: Any) -> tuple[str, dict[str, Any]]:
  """timm's model name, "" for unpublished widths, and its arguments."""
  if family == "inception":
    return ("inception_v3" if encoder.width == 32 else ""), {"aux_logits": False}
  if family == "densenet":
    return (f"densenet{encoder.depth}" if encoder.growth == 32 else ""), {}
  published = encoder.width == 64 and not encoder.small_stem
  return (f"resnet{encoder.depth}" if published else ""), {}

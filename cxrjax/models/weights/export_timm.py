"""Networks of ours in the names and shapes that timm, torchvision and torch know."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from cxrjax.core.errors import UserError
from cxrjax.models.module import Params
from cxrjax.models.weights import tree, vit
from cxrjax.models.weights.adapt import family_of

_HEADS = {"vit": "head", "resnet": "fc", "densenet": "classifier", "inception": "fc"}


@dataclasses.dataclass(frozen=True)
class Peer:
  """A network in timm's names.

  Attributes:
    arrays: by name, float32 (counters of batches int64), row-major.
    model: of `timm.create_model`, with which `args` makes it; "" where timm has none of this size.
    args: its keyword arguments.
    left: parameters of ours that it has no place for.
    notes: what the other network does not do, one sentence each.
  """

  arrays: dict[str, np.ndarray]
  model: str
  args: dict[str, Any]
  left: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()

  @property
  def command(self) -> str:
    """Python that makes the network."""
    args = "".join(f", {name}={value!r}" for name, value in self.args.items())
    return f"timm.create_model({self.model!r}{args})" if self.model else ""


def to_timm(encoder: Any, params: Params, head: Mapping[str, Any] | None = None) -> Peer:
  """An encoder, and a linear classifier on its features, as timm's network of the same family.

  It computes the same of the same normalised images: its class token (or mean) after the last norm
  is our `Features.cls`, its logits are ours before softmax or sigmoid.

  Args:
    encoder: of `cxrjax.models`.
    params: of the encoder.
    head: `kernel` [d k] and `bias` [k] of the classifier; None for an encoder alone.

  Raises:
    UserError: a network that timm has not.
  """
  family = family_of(encoder)
  if family not in _HEADS:
    raise UserError(
      f"timm has no network like config.model.name={type(encoder).__module__!r}; use --format=npz "
      "or --format=stablehlo"
    )
  flat = {name: np.asarray(value, np.float32) for name, value in tree.flatten(params).items()}
  classes = 0 if head is None else len(head["bias"])
  args: dict[str, Any] = {"num_classes": classes, "in_chans": encoder.channels}
  left: tuple[str, ...] = ()
  if family == "vit":
    arrays, left = vit.to_timm(flat, encoder)
    model, more = "vit_base_patch16_224", _vit_args(encoder)
  else:
    arrays, model, more = _cnn(flat), *_cnn_args(family, encoder)
  if head is not None:
    arrays[f"{_HEADS[family]}.weight"] = np.asarray(head["kernel"], np.float32).T
    arrays[f"{_HEADS[family]}.bias"] = np.asarray(head["bias"], np.float32)
  notes = []
  if encoder.standardize:
    notes.append(
      "every image has to be brought to mean 0 and deviation 1 first, (x - mean) / "
      "(std + 0.05) of its normalised pixels, which timm does not do"
    )
  if not model:
    notes.append("timm has no network of this width; names and shapes are those of its family")
  # safetensors writes memory as it lies, whatever the strides.
  arrays = {name: np.array(array, order="C") for name, array in arrays.items()}
  return Peer(arrays, model, {**more, **args}, left, tuple(notes))


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


def _cnn(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
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
  """timm's name, "" for another width than the published one, and arguments."""
  if family == "inception":
    return ("inception_v3" if encoder.width == 32 else ""), {"aux_logits": False}
  if family == "densenet":
    return (f"densenet{encoder.depth}" if encoder.growth == 32 else ""), {}
  published = encoder.width == 64 and not encoder.small_stem
  return (f"resnet{encoder.depth}" if published else ""), {}

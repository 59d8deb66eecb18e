"""Adapts parameters to another network of the same family: sizes, channels, pixels, tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float

from cxrjax.core.errors import UserError
from cxrjax.models import posembed
from cxrjax.models.module import Params
from cxrjax.models.vit import VARIANTS
from cxrjax.models.weights.layouts import FAMILIES, Pixels, SourceNetwork
from cxrjax.models.weights.report import Report

_FIRST_LAYERS = {  # the kernel that sees pixels, and the batch norm after it
  "vit": ("patch/kernel", ""),
  "resnet": ("conv1/kernel", "bn1"),
  "densenet": ("conv0/kernel", "norm0"),
  "inception": ("Conv2d_1a_3x3/conv/kernel", "Conv2d_1a_3x3/bn"),
}
_TOKENS = ("cls", "registers", "mask_token")
_FOREIGN_PARTS = (  # of networks that config.model lacks
  (r"/se(_module)?/", "squeeze-and-excitation"),
  (r"(^|/)filt$", "an anti-aliasing filter"),
  (r"^(conv1|conv0)/\d", "a deep stem"),
)


def adapt(
  found: SourceNetwork, encoder: Any, named: str, path: str, pixels: tuple[float, float] | None
) -> tuple[Params, Report]:
  """Adapts the source's parameters to `encoder`, and reports how each was used.

  Args:
    found: the source network.
    encoder: an encoder of `cxrjax.models`.
    named: name of the source, for errors.
    path: path of the file, for the report.
    pixels: mean and standard deviation that normalize the encoder's images; None to leave pixels
      as they are.

  Raises:
    UserError: another network, or parameters that lack something or are not finite.
  """
  family = family_of(encoder)
  if found.family != family:
    raise UserError(
      f"{named} holds a {FAMILIES.get(found.family, found.family)}, config.model is a "
      f"{FAMILIES.get(family, family)}; choose a model=... of the same kind"
    )
  expected = flatten_dict(jax.eval_shape(encoder.init, jax.random.key(0)), sep="/")
  flat, resized, notes = dict(found.flat), [], list(found.notes)
  _check_finite({n: v for n, v in flat.items() if n in expected}, named)
  if family == "vit":
    _check_size(flat, found, encoder, named)
    _check_registers(flat, encoder, named)
    if found.source == "big_vision":
      _complete_big_vision(flat, encoder, notes)
  _check_extra(flat, expected, family, named)
  optional = _check_missing(flat, expected, named)
  folded = None
  if family in _FIRST_LAYERS:
    folded = _fit_first_layer(flat, family, encoder, found.pixels, pixels, named)
  if family == "vit":
    _fold_layer_scale(flat, expected)
    resized = _fit_grid(flat, encoder, found.interpolation or encoder.interpolation)
  unused = [*found.left, *(n for n in flat if n not in expected)]
  _check_shapes({n: flat[n] for n in expected if n in flat}, expected, named)
  fresh = flatten_dict(encoder.init(jax.random.key(0)), sep="/") if optional else {}
  if "cls" in optional:
    notes.append("the source has no class token: config.model.pool='mean' sums its patches up")
  params = {}
  for name in expected:
    value = flat[name] if name in flat else fresh[name]
    # Layer scale that the source lacks is 1: its initial value would undo the weights.
    if name in optional and _is_scale(name):
      value = np.ones(expected[name].shape)
    params[name] = jnp.asarray(value, jnp.float32)
  return unflatten_dict(params, sep="/"), Report(
    path=path,
    source=found.source,
    used=tuple(n for n in expected if n in flat),
    resized=tuple(resized),
    new=optional,
    left=tuple(unused),
    pixels=folded,
    notes=tuple(notes),
  )


def family_of(encoder: Any) -> str:
  """Name of the module of `cxrjax.models` that defines an encoder."""
  return type(encoder).__module__.rpartition(".")[2]


def _check_finite(flat: Mapping[str, np.ndarray], named: str) -> None:
  for name, value in flat.items():
    bad_count = int(np.size(value) - np.isfinite(np.asarray(value, np.float32)).sum())
    if bad_count:
      raise UserError(
        f"{named} holds {bad_count} NaN or infinite numbers in what is {name!r} here; the run that "
        "wrote it diverged, or the file is damaged: take an earlier checkpoint"
      )


def _check_extra(
  flat: Mapping[str, np.ndarray], expected: Mapping[str, Any], family: str, named: str
) -> None:
  """Rejects parameters that the source's features depend on and the encoder lacks."""
  extra = sorted(n for n in flat if n not in expected and not _is_optional(n))
  if extra:
    parts = [part for pattern, part in _FOREIGN_PARTS if re.search(pattern, extra[0])]
    part = f" ({parts[0]})" if parts else ""
    raise UserError(
      f"{named} holds {extra[0]!r}{part} and {len(extra) - 1} more that the "
      f"{FAMILIES.get(family, family)} of config.model does not have; set config.model to the "
      "network of the file, if it is one of ours"
    )


def _check_missing(
  flat: Mapping[str, np.ndarray], expected: Mapping[str, Any], named: str
) -> tuple[str, ...]:
  """Lists the parameters that the source lacks; raises for those that may not start fresh."""
  missing = sorted(n for n in expected if n not in flat)
  required = [n for n in missing if not _is_optional(n)]
  if required:
    raise UserError(
      f"{named} lacks {required[0]!r} and {len(required) - 1} more of {len(expected)} "
      "parameters of config.model; the file is incomplete, or config.model is another network"
    )
  return tuple(missing)


def _is_optional(name: str) -> bool:
  """Whether networks of a family may differ in having this parameter."""
  return name in _TOKENS or _is_scale(name)


def _is_scale(name: str) -> bool:
  """Whether it is layer scale: the factors of a block's branches."""
  return name.rpartition("/")[2] in ("ls1", "ls2")


def _check_registers(flat: Mapping[str, np.ndarray], encoder: Any, named: str) -> None:
  """Validates the number of registers, on which the features depend."""
  count = len(flat.get("registers", ()))
  if count and count != encoder.registers:
    raise UserError(
      f"{named} has {count} register tokens, config.model.registers={encoder.registers}; set "
      f"config.model.registers={count}"
    )


def _check_shapes(flat: Mapping[str, np.ndarray], expected: Mapping[str, Any], named: str) -> None:
  for name, value in flat.items():
    if tuple(value.shape) != tuple(expected[name].shape):
      raise UserError(
        f"{named} has the shape {tuple(value.shape)} at {name!r}, config.model's is "
        f"{tuple(expected[name].shape)}; set config.model to the network of the file"
      )


def _check_size(
  flat: Mapping[str, np.ndarray], source: SourceNetwork, encoder: Any, named: str
) -> None:
  """Validates width, depth and heads of a vision transformer."""
  encoder_size = encoder.features, encoder.blocks, encoder.attention_heads
  width = flat["patch/kernel"].shape[-1]
  depth = 1 + max((int(n.split("/")[1]) for n in flat if n.startswith("blocks/")), default=-1)
  if encoder_size == (width, depth, source.heads or encoder_size[2]):
    return
  variants = [name for name, size in VARIANTS.items() if size[:2] == (width, depth)]
  changes = (
    [f"config.model.variant={variants[0]!r}"]
    if variants
    else [f"config.model.width={width}", f"config.model.depth={depth}"]
  )
  if source.heads and (not variants or VARIANTS[variants[0]][2] != source.heads):
    changes.append(f"config.model.heads={source.heads}")
  theirs, ours = (
    f"width {w}, {d} blocks" + (f" and {h} heads" if source.heads else "")
    for w, d, h in ((width, depth, source.heads), encoder_size)
  )
  raise UserError(
    f"{named} holds a vision transformer of {theirs}, config.model has {ours}; set "
    f"{', '.join(changes)}"
  )


def _complete_big_vision(flat: dict[str, np.ndarray], encoder: Any, notes: list[str]) -> None:
  """Adds what big_vision's files lack: computed positions, and a note on its GELU."""
  if encoder.gelu != "tanh":
    notes.append("the source's GELU is the approximation that config.model.gelu='tanh' computes")
  if "pos" not in flat:
    side, width = encoder.image_size // encoder.patch_size, encoder.features
    # Its frequencies end at 1/10000, MAE's one step earlier.
    rows, columns = np.indices((side, side)).reshape(2, -1, 1) * (
      10000.0 ** -np.linspace(0, 1, width // 4)
    )
    grid = np.concatenate([np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)], axis=1)
    flat["pos"] = np.concatenate([np.zeros((1, width)), grid])
    notes.append("positions are sines and cosines, as the source computes them")


def _fold_layer_scale(flat: dict[str, np.ndarray], expected: Mapping[str, Any]) -> None:
  """Folds layer scale that the encoder lacks into the linear layer before it."""
  for name in [n for n in flat if _is_scale(n) and n not in expected]:
    block, _, factor_name = name.rpartition("/")
    layer = f"{block}/attn/proj" if factor_name == "ls1" else f"{block}/mlp/fc2"
    factors = np.asarray(flat.pop(name), np.float32)
    for leaf in ("kernel", "bias"):
      flat[f"{layer}/{leaf}"] = np.asarray(flat[f"{layer}/{leaf}"], np.float32) * factors


def _fit_first_layer(
  flat: dict[str, np.ndarray],
  family: str,
  encoder: Any,
  source_pixels: Pixels | None,
  encoder_pixels: tuple[float, float] | None,
  named: str,
) -> Pixels | None:
  """Fits channels and pixel normalization of the first layer; returns what was folded in.

  With x = (gray - mean) / std here and (gray - m_c) / s_c in channel c of the source, the kernel of
  c is scaled by std / s_c, and the contribution of the constant (mean - m_c) / s_c is added to the
  bias, or subtracted from the running mean of the batch norm. Gray is the same in all channels, so
  that their kernels are summed.
  """
  name, norm = _FIRST_LAYERS[family]
  kernel = np.asarray(flat[name], np.float64)
  channels = kernel.shape[2]
  if channels not in (1, 3, encoder.channels):
    raise UserError(
      f"{named} is for images of {channels} channels; networks for gray (1) or colour (3) are read"
    )
  folded = source_pixels if source_pixels and encoder_pixels and not encoder.standardize else None
  if channels == 1 and folded and len(set(folded[0])) > 1:
    folded = None  # normalization of three channels, so not of this file
  if folded:
    assert encoder_pixels is not None  # otherwise nothing is folded in
    try:
      mean, std = (np.broadcast_to(np.array(v, np.float64), channels) for v in folded)
    except ValueError:
      raise UserError(
        f"{named} has {channels} channels, but its pixels' mean is {folded[0]}"
      ) from None
    offset = (kernel * ((encoder_pixels[0] - mean) / std)[:, None]).sum((0, 1, 2))
    kernel = kernel * (encoder_pixels[1] / std)[:, None]
    if norm:
      flat[f"{norm}/running_mean"] = np.asarray(flat[f"{norm}/running_mean"]) - offset
    else:
      flat["patch/bias"] = np.asarray(flat["patch/bias"]) + offset
  if channels != encoder.channels:
    if encoder.channels == 1:
      kernel = kernel.sum(2, keepdims=True)
    elif channels == 1:
      kernel = np.repeat(kernel, encoder.channels, 2) / encoder.channels
    else:
      raise UserError(
        f"{named} is for {channels} channels, config.model.channels={encoder.channels}"
      )
  flat[name] = kernel
  return folded


def _fit_grid(flat: dict[str, np.ndarray], encoder: Any, interpolation: str) -> list[str]:
  """Resamples patch kernel and positions to the encoder's sizes; returns the resampled names."""
  resized = []
  kernel = flat["patch/kernel"]
  if len(kernel) != encoder.patch_size:
    kernel = resize_patches(kernel, encoder.patch_size)
    resized.append("patch/kernel")
  flat["patch/kernel"] = kernel.reshape(-1, kernel.shape[-1])
  if "pos" not in flat:
    return resized
  pos, side = np.asarray(flat["pos"], np.float32), encoder.image_size // encoder.patch_size
  old = round((len(pos) - 1) ** 0.5)
  if old != side:
    grid = posembed.resample(jnp.asarray(pos[1:]), (old, old), (side, side), interpolation)
    flat["pos"] = np.concatenate([pos[:1], np.asarray(grid)])
    resized.append("pos")
  return resized


def resize_patches(kernel: Float[Any, "p q c d"], size: int) -> Float[np.ndarray, "n m c d"]:
  """Resamples a patch kernel for patches of another size.

  Resampling the kernel like an image would change its response: its inner product with a patch
  grows with the number of pixels. The pseudo-inverse of patch resampling gives the kernel whose
  response to a resampled patch is that of the old kernel to the patch itself: exactly for larger
  patches, with the least squared error for smaller ones (Beyer et al., FlexiViT, 2023, arXiv
  2212.08013, equation 1). Bicubic resampling is separable into rows and columns, and so is its
  inverse.
  """
  matrices = [
    np.linalg.pinv(
      np.asarray(jax.image.resize(jnp.eye(n), (size, n), "cubic", antialias=True), np.float64)
    )
    for n in kernel.shape[:2]
  ]
  return np.einsum("pn,qm,pqcd->nmcd", *matrices, np.asarray(kernel, np.float64))

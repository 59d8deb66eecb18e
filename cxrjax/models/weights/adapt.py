"""A network's parameters made to fit another of its family: sizes, channels, pixels, tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from cxrjax.core.errors import UserError
from cxrjax.models import posembed
from cxrjax.models.module import Params
from cxrjax.models.vit import VARIANTS
from cxrjax.models.weights import tree
from cxrjax.models.weights.layouts import FAMILIES, Found, Pixels
from cxrjax.models.weights.report import Report

_FIRST = {  # the kernel that sees pixels, and the batch norm behind it
  "vit": ("patch/kernel", ""),
  "resnet": ("conv1/kernel", "bn1"),
  "densenet": ("conv0/kernel", "norm0"),
  "inception": ("Conv2d_1a_3x3/conv/kernel", "Conv2d_1a_3x3/bn"),
}
_TOKENS = ("cls", "registers", "mask_token")
_PARTS = (  # of networks that ours are not
  (r"/se(_module)?/", "squeeze-and-excitation"),
  (r"(^|/)filt$", "an anti-aliasing filter"),
  (r"^(conv1|conv0)/\d", "a deep stem"),
)


def adapt(
  found: Found, encoder: Any, named: str, path: str, pixels: tuple[float, float] | None
) -> tuple[Params, Report]:
  """Parameters for `encoder`, and what became of the source's.

  Args:
    found: the source.
    encoder: of `cxrjax.models`.
    named: the source, for errors.
    path: for the report.
    pixels: mean and deviation by which the encoder's images are normalised; None to leave pixels
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
  wanted = tree.flatten(jax.eval_shape(encoder.init, jax.random.key(0)))
  flat, resized, notes = dict(found.flat), [], list(found.notes)
  _check_finite({n: v for n, v in flat.items() if n in wanted}, named)
  if family == "vit":
    _check_size(flat, found, encoder, named)
    _check_registers(flat, encoder, named)
    if found.source == "big_vision":
      _big_vision(flat, encoder, notes)
  _check_extra(flat, wanted, family, named)
  optional = _check_missing(flat, wanted, named)
  folded = None
  if family in _FIRST:
    folded = _first(flat, family, encoder, found.pixels, pixels, named)
  if family == "vit":
    _fit_branches(flat, wanted)
    resized = _fit_grid(flat, encoder, found.interpolation or encoder.interpolation)
  left = [*found.left, *(n for n in flat if n not in wanted)]
  _check_shapes({n: flat[n] for n in wanted if n in flat}, wanted, named)
  fresh = tree.flatten(encoder.init(jax.random.key(0))) if optional else {}
  if "cls" in optional:
    notes.append("the source has no class token: config.model.pool='mean' sums its patches up")
  params = {}
  for name in wanted:
    value = flat[name] if name in flat else fresh[name]
    # Factors of branches that have none are one: whatever they start as would undo the weights.
    if name in optional and _is_scale(name):
      value = np.ones(wanted[name].shape)
    params[name] = jnp.asarray(value, jnp.float32)
  return tree.nest(params), Report(
    path=path,
    source=found.source,
    used=tuple(n for n in wanted if n in flat),
    resized=tuple(resized),
    new=optional,
    left=tuple(left),
    pixels=folded,
    notes=tuple(notes),
  )


def family_of(encoder: Any) -> str:
  """The module of `cxrjax.models` that an encoder is from."""
  return type(encoder).__module__.rpartition(".")[2]


def _check_finite(flat: Mapping[str, np.ndarray], named: str) -> None:
  for name, value in flat.items():
    bad = int(np.size(value) - np.isfinite(np.asarray(value, np.float32)).sum())
    if bad:
      raise UserError(
        f"{named} holds {bad} NaN or infinite numbers in what is {name!r} here; the run that "
        "wrote it diverged, or the file is damaged: take an earlier checkpoint"
      )


def _check_extra(
  flat: Mapping[str, np.ndarray], wanted: Mapping[str, Any], family: str, named: str
) -> None:
  """Refuses what the source's features hang on and the encoder has no place for."""
  extra = sorted(n for n in flat if n not in wanted and not _is_optional(n))
  if extra:
    what = next((f" ({word})" for pattern, word in _PARTS if re.search(pattern, extra[0])), "")
    raise UserError(
      f"{named} holds {extra[0]!r}{what} and {len(extra) - 1} more that the "
      f"{FAMILIES.get(family, family)} of config.model does not have; set config.model to the "
      "network of the file, if it is one of ours"
    )


def _check_missing(
  flat: Mapping[str, np.ndarray], wanted: Mapping[str, Any], named: str
) -> tuple[str, ...]:
  """The parameters that the source lacks, all of which may start fresh."""
  missing = sorted(n for n in wanted if n not in flat)
  needed = [n for n in missing if not _is_optional(n)]
  if needed:
    raise UserError(
      f"{named} lacks {needed[0]!r} and {len(needed) - 1} more of {len(wanted)} "
      "parameters of config.model; the file is incomplete, or config.model is another network"
    )
  return tuple(missing)


def _is_optional(name: str) -> bool:
  """Whether the network may have it or not: the rest is the same."""
  return name in _TOKENS or _is_scale(name)


def _is_scale(name: str) -> bool:
  """Whether it is layer scale, the factors of a block's branches."""
  return name.rpartition("/")[2] in ("ls1", "ls2")


def _check_registers(flat: Mapping[str, np.ndarray], encoder: Any, named: str) -> None:
  """Without those that it learnt with, its features are others."""
  theirs = len(flat.get("registers", ()))
  if theirs and theirs != encoder.registers:
    raise UserError(
      f"{named} has {theirs} register tokens, config.model.registers={encoder.registers}; set "
      f"config.model.registers={theirs}"
    )


def _check_shapes(flat: Mapping[str, np.ndarray], wanted: Mapping[str, Any], named: str) -> None:
  for name, value in flat.items():
    if tuple(value.shape) != tuple(wanted[name].shape):
      raise UserError(
        f"{named} has the shape {tuple(value.shape)} at {name!r}, config.model's is "
        f"{tuple(wanted[name].shape)}; set config.model to the network of the file"
      )


def _check_size(flat: Mapping[str, np.ndarray], found: Found, encoder: Any, named: str) -> None:
  """Width, depth and heads of a vision transformer."""
  ours = encoder.features, encoder.blocks, encoder.attention_heads
  width = flat["patch/kernel"].shape[-1]
  depth = 1 + max((int(n.split("/")[1]) for n in flat if n.startswith("blocks/")), default=-1)
  if ours == (width, depth, found.heads or ours[2]):
    return
  same = [name for name, size in VARIANTS.items() if size[:2] == (width, depth)]
  way = (
    [f"config.model.variant={same[0]!r}"]
    if same
    else [f"config.model.width={width}", f"config.model.depth={depth}"]
  )
  if found.heads and (not same or VARIANTS[same[0]][2] != found.heads):
    way.append(f"config.model.heads={found.heads}")
  theirs, mine = (
    f"width {w}, {d} blocks" + (f" and {h} heads" if found.heads else "")
    for w, d, h in ((width, depth, found.heads), ours)
  )
  raise UserError(
    f"{named} holds a vision transformer of {theirs}, config.model has {mine}; set {', '.join(way)}"
  )


def _big_vision(flat: dict[str, np.ndarray], encoder: Any, notes: list[str]) -> None:
  """What its files do not say: positions where these are computed, and the kind of GELU."""
  if encoder.gelu != "tanh":
    notes.append("the source's GELU is the approximation that config.model.gelu='tanh' computes")
  if "pos" not in flat:
    side, width = encoder.image_size // encoder.patch_size, encoder.features
    # Its frequencies end at 1/10000, where MAE's stop one short of it.
    rows, columns = np.indices((side, side)).reshape(2, -1, 1) * (
      10000.0 ** -np.linspace(0, 1, width // 4)
    )
    grid = np.concatenate([np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)], axis=1)
    flat["pos"] = np.concatenate([np.zeros((1, width)), grid])
    notes.append("positions are sines and cosines, as the source computes them")


def _fit_branches(flat: dict[str, np.ndarray], wanted: Mapping[str, Any]) -> None:
  """Layer scale that the encoder has not becomes part of the linear layer before it."""
  for name in [n for n in flat if _is_scale(n) and n not in wanted]:
    block, _, which = name.rpartition("/")
    layer = f"{block}/attn/proj" if which == "ls1" else f"{block}/mlp/fc2"
    factors = np.asarray(flat.pop(name), np.float32)
    for leaf in ("kernel", "bias"):
      flat[f"{layer}/{leaf}"] = np.asarray(flat[f"{layer}/{leaf}"], np.float32) * factors


def _first(
  flat: dict[str, np.ndarray],
  family: str,
  encoder: Any,
  theirs: Pixels | None,
  ours: tuple[float, float] | None,
  named: str,
) -> Pixels | None:
  """Channels and pixel normalisation of the first layer; what was folded in, or None.

  With x = (gray - mean) / std here and (gray - m_c) / s_c in channel c there, the kernel of c is
  scaled by std / s_c, and what the constant (mean - m_c) / s_c adds goes into the bias, or out of
  the running mean of the batch norm. Gray is the same in all channels: their kernels are summed.
  """
  name, norm = _FIRST[family]
  kernel = np.asarray(flat[name], np.float64)
  channels = kernel.shape[2]
  if channels not in (1, 3, encoder.channels):
    raise UserError(
      f"{named} is for images of {channels} channels; networks for gray (1) or colour (3) are read"
    )
  folded = theirs if theirs and ours and not encoder.standardize else None
  if channels == 1 and folded and len(set(folded[0])) > 1:
    folded = None  # three channels' pixels: not this file's
  if folded:
    assert ours is not None  # else nothing is folded in
    try:
      mean, std = (np.broadcast_to(np.array(v, np.float64), channels) for v in folded)
    except ValueError:
      raise UserError(
        f"{named} has {channels} channels, but its pixels' mean is {folded[0]}"
      ) from None
    added = (kernel * ((ours[0] - mean) / std)[:, None]).sum((0, 1, 2))
    kernel = kernel * (ours[1] / std)[:, None]
    if norm:
      flat[f"{norm}/running_mean"] = np.asarray(flat[f"{norm}/running_mean"]) - added
    else:
      flat["patch/bias"] = np.asarray(flat["patch/bias"]) + added
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
  """Patch kernel and positions at the encoder's sizes; the names of what was resampled."""
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
  """A patch kernel for patches of another size.

  Resampling the kernel as if it were an image changes what it answers: its inner product with a
  patch grows with the pixels. The pseudo-inverse of the resampling of patches gives the kernel
  that answers to a resampled patch as the old one to the patch itself: exactly for larger patches,
  with the least squared error for smaller ones (Beyer et al., FlexiViT, 2023, arXiv 2212.08013,
  equation 1). Bicubic resampling works on rows and columns apart, and so does its inverse.
  """
  matrices = [
    np.linalg.pinv(
      np.asarray(jax.image.resize(jnp.eye(n), (size, n), "cubic", antialias=True), np.float64)
    )
    for n in kernel.shape[:2]
  ]
  return np.einsum("pn,qm,pqcd->nmcd", *matrices, np.asarray(kernel, np.float64))

"""Recognizes the layout of a file's arrays, and converts them to a network of ours."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cxrjax.core.errors import UserError
from cxrjax.models.weights import vit
from cxrjax.models.weights.files import File

Pixels = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: Pixels = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF: Pixels = (0.5,), (0.5,)

# Arrays that reveal the kind of network; their prefix tells which copy of it.
_ANCHORS = {
  "patch_embed.proj.weight": "vit",
  "embeddings.patch_embeddings.projection.weight": "hf",
  "embedding/kernel": "big_vision",
  "layer1.0.conv1.weight": "resnet",
  "conv0.weight": "densenet",
  "Conv2d_1a_3x3.conv.weight": "inception",
}
FAMILIES = {
  "vit": "vision transformer",
  "resnet": "ResNet",
  "densenet": "DenseNet",
  "inception": "InceptionV3",
  "vitae": "ViTAEv2",
}
_CXRJAX_ANCHORS = {
  "patch/kernel": "vit",
  "layer1/0/conv1/kernel": "resnet",
  "conv0/kernel": "densenet",
  "Conv2d_1a_3x3/conv/kernel": "inception",
  "layers/0/RC/norm1/scale": "vitae",
}
# Parameters behind an encoder, by the first part of their names: they do not affect its features.
_HEAD = re.compile(
  r"(?i)\w*head\w*|fc|fc_norm|classifier|pre_logits|pooler|attn_pool|projector|projection|predictor|"
  r"prototypes\w*|decoder\w*|auxlogits|mask_token|masked_embed"
)
# Networks whose arrays have our names and shapes but that compute something else.
_LOOKALIKES = {
  r"\w*(resnet|densenet)(aa|blur)\d": "blurs maps before its strides (anti-aliasing)",
  r"vit_\w*rope": "turns queries and keys by their positions (RoPE)",
  r"vit_\w*rpn": "has its norms behind attention and MLP",
}
# How each layout's own code resamples positions; others as timm.
_INTERPOLATIONS = {
  "dino": "dino",
  "dinov2": "dino",
  "mae": "torch",
  "hf-vit": "torch",
  "hf-dinov2": "torch",
  "big_vision": "big_vision",
}
_PREFERRED_COPIES = ("teacher", "ema")  # if a file has several copies of a network
_LAST_COPIES = ("student", "momentum", "encoder_k", "optimizer")


@dataclasses.dataclass(frozen=True)
class SourceNetwork:
  """A network of a file, in our parameters but with the file's sizes.

  Attributes:
    family: "vit", "resnet", "densenet", "inception", or another module of `cxrjax.models`.
    source: as in `Report`.
    flat: our parameters by path; the patch kernel of a ViT is [p p c d].
    left: the file's arrays without a counterpart.
    heads: number of attention heads, where known.
    pixels: mean and standard deviation of the network's input normalization, or None.
    interpolation: how the source resamples positions, of `cxrjax.models.posembed.INTERPOLATIONS`;
      None: as the target encoder.
    notes: as in `Report`.
  """

  family: str
  source: str
  flat: dict[str, np.ndarray]
  left: tuple[str, ...] = ()
  heads: int | None = None
  pixels: Pixels | None = None
  interpolation: str | None = None
  notes: tuple[str, ...] = ()


def recognize(file: File) -> SourceNetwork:
  """Recognizes the network in a file.

  Raises:
    UserError: an unknown layout, or a network with parts that ours lack.
  """
  if file.about:
    return _read_cxrjax(file)
  _check_not_lookalike(file)
  kind, prefix = _find_anchor(file)
  inside = {n[len(prefix) :]: v for n, v in file.arrays.items() if n.startswith(prefix)}
  outside = [n for n in file.arrays if not n.startswith(prefix)]
  network = (
    _read_cnn(kind, inside, file.named)
    if kind in ("resnet", "densenet", "inception")
    else _read_vit(kind, prefix, inside, outside, file)
  )
  unused = (*(prefix + name for name in sorted(network.left)), *_group(outside, prefix))
  pixels_beside = _pixels_from_config(file.beside)
  return dataclasses.replace(network, left=unused, pixels=pixels_beside or network.pixels)


def _check_not_lookalike(file: File) -> None:
  """Rejects lookalikes by name: timm's in a `config.json` or a checkpoint, or the file's."""
  for name in (str(file.beside.get("architecture", "")), file.path.name):
    for pattern, trait in _LOOKALIKES.items():
      if re.match(pattern, name):
        raise UserError(
          f"{file.named} is {name!r}, which {trait}, as config.model's networks do not; give a "
          "file of the plain network"
        )


def _find_anchor(file: File) -> tuple[str, str]:
  """Finds the kind of network, and the prefix of the copy to use."""
  candidates = []
  for name in file.arrays:
    for anchor, kind in _ANCHORS.items():
      prefix = name[: -len(anchor)]
      if name.endswith(anchor) and (not prefix or prefix[-1] in "./"):
        is_preferred = any(word in prefix for word in _PREFERRED_COPIES)
        rank = -1 if is_preferred else any(word in prefix for word in _LAST_COPIES)
        candidates.append((rank, len(prefix), prefix, kind))
  if not candidates:
    shown = ", ".join(sorted(file.arrays)[:3])
    raise UserError(
      f"{file.named} is in none of the known layouts (its arrays: {shown}, ...); known are timm, "
      "DINO, DINOv2, MAE, MoCo v3, torchvision, transformers' ViT and DINOv2, big_vision and "
      "cxrjax's own"
    )
  *_, prefix, kind = min(candidates)
  return kind, prefix


def _group(names: Iterable[str], prefix: str) -> list[str]:
  """Summarizes arrays outside the chosen copy, one entry per part of the file."""
  groups: dict[str, list[str]] = {}
  for name in names:
    common = next(
      (i for i, (a, b) in enumerate(zip(name, prefix, strict=False)) if a != b),
      min(len(name), len(prefix)),
    )
    start = max(name.rfind(".", 0, common), name.rfind("/", 0, common)) + 1
    end = re.search(r"[./]", name[start:])
    group = name[: start + end.end()] + "*" if end else name
    groups.setdefault(group, []).append(name)
  return sorted(members[0] if len(members) == 1 else group for group, members in groups.items())


def _is_head(name: str) -> bool:
  return bool(_HEAD.fullmatch(re.split("[./]", name)[0]))


def _read_cnn(kind: str, arrays: Mapping[str, Any], named: str) -> SourceNetwork:
  """Converts torchvision's names, which timm uses for these families as well."""
  flat, unused = {}, []
  for name, value in arrays.items():
    # Early densenet files write `norm.1` for today's `norm1`.
    path = re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", name)
    if _is_head(name):
      unused.append(name)
    elif not name.endswith("num_batches_tracked"):
      value = np.asarray(value, np.float32)
      stem, _, leaf = path.replace(".", "/").rpartition("/")
      leaf = {"weight": "kernel" if value.ndim == 4 else "scale"}.get(leaf, leaf)
      flat[f"{stem}/{leaf}"] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
  if not any(path.endswith("/running_mean") for path in flat):
    raise UserError(
      f"{named} holds a {FAMILIES[kind]} without running means: it normalises groups of channels, "
      "or its batch norm is folded away, and config.model's networks have batch norm; give a file "
      "of one with batch norm"
    )
  pixels = HALF if kind == "inception" else IMAGENET
  return SourceNetwork(kind, "torchvision", flat, tuple(unused), pixels=pixels)


def _read_vit(
  kind: str, prefix: str, arrays: dict[str, Any], outside: list[str], file: File
) -> SourceNetwork:
  heads = file.beside.get("num_attention_heads")
  pixels, notes, unused = IMAGENET, [], set()
  if kind == "hf":
    source = "hf-dinov2" if any("layer_scale1" in name for name in arrays) else "hf-vit"
    pixels = IMAGENET if source == "hf-dinov2" else HALF
    arrays = vit.from_hugging_face(arrays)
  elif kind == "big_vision":
    source, pixels = kind, HALF
    heads = _flax_heads(arrays)
    arrays = vit.from_big_vision(arrays)
  else:
    source = _torch_layout(prefix, arrays, outside, file)
    arrays = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", n): v for n, v in arrays.items()}
    if "register_tokens" in arrays:
      arrays["reg_token"] = arrays.pop("register_tokens")
  if source == "mae" and "mask_token" in arrays:  # the decoder's
    arrays.pop("mask_token")
    unused.add("mask_token")
  if "norm.weight" not in arrays and "fc_norm.weight" in arrays:
    arrays["norm.weight"], arrays["norm.bias"] = (
      arrays.pop("fc_norm.weight"),
      arrays.pop("fc_norm.bias"),
    )
    notes.append("the source normalises the mean of its patches, here each patch is normalised")
  flat, leftover = vit.from_timm(arrays, file.named)
  unknown = sorted(name for name in leftover if not _is_head(name))
  if unknown:
    raise UserError(
      f"{file.named} holds {unknown[0]!r}, which the vision transformers of config.model do not "
      "have; if it is part of no encoder, take it out of the file"
    )
  if source == "moco-v3" and flat["norm/scale"].shape == (384,):
    heads = 12
  interpolation = _INTERPOLATIONS.get(source, "timm")
  if "dinov2" in source and "registers" in flat:
    interpolation = "timm"
  return SourceNetwork(
    "vit",
    source,
    flat,
    tuple(leftover | unused),
    heads=heads,
    pixels=pixels,
    interpolation=interpolation,
    notes=tuple(notes),
  )


def _torch_layout(prefix: str, arrays: Mapping[str, Any], outside: list[str], file: File) -> str:
  if any(name.startswith("decoder_blocks.") for name in [*arrays, *outside]):
    return "mae"
  if "base_encoder." in prefix or "momentum_encoder." in prefix:
    return "moco-v3"
  flat_mask = "mask_token" in arrays and len(arrays["mask_token"].shape) == 2
  if "register_tokens" in arrays or flat_mask or "blocks.0.0.norm1.weight" in arrays:
    return "dinov2"
  # The published backbones have timm's names, and only their own file name tells.
  is_dino_backbone = file.path.name.startswith("dino_") and not file.beside
  return "dino" if is_dino_backbone or "backbone." in prefix else "timm"


def _flax_heads(arrays: Mapping[str, Any]) -> int | None:
  for name, value in arrays.items():
    if name.endswith("query/kernel"):
      return int(value.shape[-2])
  return None


def _pixels_from_config(beside: Mapping[str, Any]) -> Pixels | None:
  """Reads mean and std from timm's `config.json` or transformers' `preprocessor_config.json`."""
  timm = beside.get("pretrained_cfg", beside)
  mean = timm.get("mean", beside.get("image_mean"))
  std = timm.get("std", beside.get("image_std"))
  try:
    return (tuple(map(float, mean)), tuple(map(float, std)))
  except (TypeError, ValueError):
    return None


def from_cxrjax(flat: dict[str, np.ndarray], family: str, named: str) -> SourceNetwork:
  """Wraps our own flat parameters; `family` applies unless they reveal another."""
  family = next((kind for name, kind in _CXRJAX_ANCHORS.items() if name in flat), family)
  if family == "vit":
    flat["patch/kernel"] = vit.square(flat["patch/kernel"], named)
  return SourceNetwork(family, "cxrjax", flat)


def _read_cxrjax(file: File) -> SourceNetwork:
  """Reads a file by `cxrjax.export`: an .npz in our names, or safetensors in timm's."""
  about = file.about
  arrays = {name: np.asarray(value) for name, value in file.arrays.items()}
  family = about["family"]
  if about.get("names") != "timm":
    flat = {n.removeprefix("encoder/"): v for n, v in arrays.items() if n.startswith("encoder/")}
    unused = tuple(n for n in arrays if not n.startswith("encoder/"))
    flat = from_cxrjax(flat, family, file.named).flat
  elif family == "vit":
    flat, leftover = vit.from_timm(arrays, file.named)
    unused = tuple(sorted(leftover))
  else:
    network = _read_cnn(
      family, {re.sub(r"^features\.", "", n): v for n, v in arrays.items()}, file.named
    )
    flat, unused = network.flat, network.left
  pixels = None
  if about.get("mean") is not None and not about.get("standardize"):
    pixels = (float(about["mean"]),), (float(about["std"]),)
  return SourceNetwork(family, "cxrjax", flat, unused, heads=about.get("heads"), pixels=pixels)

"""Which layout a file's arrays are in, and the network of ours that they make."""

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

# The array that shows what kind of network it is, and what stands before it which copy.
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
_OWN_ANCHORS = {
  "patch/kernel": "vit",
  "layer1/0/conv1/kernel": "resnet",
  "conv0/kernel": "densenet",
  "Conv2d_1a_3x3/conv/kernel": "inception",
  "layers/0/RC/norm1/scale": "vitae",
}
# What stands behind an encoder, by the first part of its name: no place here, and no feature of it.
_HEAD = re.compile(
  r"(?i)\w*head\w*|fc|fc_norm|classifier|pre_logits|pooler|attn_pool|projector|projection|predictor|"
  r"prototypes\w*|decoder\w*|auxlogits|mask_token|masked_embed"
)
# Networks whose arrays are called and shaped like ours and who compute something else of them.
_ALIKE = {
  r"\w*(resnet|densenet)(aa|blur)\d": "blurs maps before its strides (anti-aliasing)",
  r"vit_\w*rope": "turns queries and keys by their positions (RoPE)",
  r"vit_\w*rpn": "has its norms behind attention and MLP",
}
# How the layouts' own code resamples positions; timm's way where none is named.
_INTERPOLATIONS = {
  "dino": "dino",
  "dinov2": "dino",
  "mae": "torch",
  "hf-vit": "torch",
  "hf-dinov2": "torch",
  "big_vision": "big_vision",
}
_BEST = ("teacher", "ema")  # of several copies of a network
_WORST = ("student", "momentum", "encoder_k", "optimizer")


@dataclasses.dataclass(frozen=True)
class Found:
  """A network of ours with the file's own sizes.

  Attributes:
    family: "vit", "resnet", "densenet", "inception", or another module of `cxrjax.models`.
    source: as in `Report`.
    flat: our parameters by their paths; of a ViT the patch kernel is [p p c d].
    left: the file's arrays with no place among them.
    heads: of attention, where that is known.
    pixels: mean and deviation of the gray levels that the network was fed with, or None.
    interpolation: how the source resamples positions, of `cxrjax.models.posembed.INTERPOLATIONS`;
      None: as the network that they are for.
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


def recognise(file: File) -> Found:
  """The network in a file.

  Raises:
    UserError: none of the known layouts, or a network with parts that ours have not.
  """
  if file.about:
    return _ours(file)
  _check_name(file)
  kind, prefix = _anchor(file)
  inside = {n[len(prefix) :]: v for n, v in file.arrays.items() if n.startswith(prefix)}
  outside = [n for n in file.arrays if not n.startswith(prefix)]
  found = (
    _cnn(kind, inside, file.named)
    if kind in ("resnet", "densenet", "inception")
    else _vit(kind, prefix, inside, outside, file)
  )
  left = (*(prefix + name for name in sorted(found.left)), *_grouped(outside, prefix))
  beside = _pixels_beside(file.beside)
  return dataclasses.replace(found, left=left, pixels=beside or found.pixels)


def _check_name(file: File) -> None:
  """Refuses what only a name tells: timm's in a `config.json` or a checkpoint, or the file's."""
  for name in (str(file.beside.get("architecture", "")), file.path.name):
    for pattern, what in _ALIKE.items():
      if re.match(pattern, name):
        raise UserError(
          f"{file.named} is {name!r}, which {what}, as config.model's networks do not; give a file "
          "of the plain network"
        )


def _anchor(file: File) -> tuple[str, str]:
  """The kind of network, and the prefix of the copy to take."""
  candidates = []
  for name in file.arrays:
    for anchor, kind in _ANCHORS.items():
      prefix = name[: -len(anchor)]
      if name.endswith(anchor) and (not prefix or prefix[-1] in "./"):
        rank = -1 if any(w in prefix for w in _BEST) else any(w in prefix for w in _WORST)
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


def _grouped(names: Iterable[str], prefix: str) -> list[str]:
  """Arrays outside the chosen copy, one entry for each part of the file."""
  groups: dict[str, list[str]] = {}
  for name in names:
    same = next(
      (i for i, (a, b) in enumerate(zip(name, prefix, strict=False)) if a != b),
      min(len(name), len(prefix)),
    )
    at = max(name.rfind(".", 0, same), name.rfind("/", 0, same)) + 1
    end = re.search(r"[./]", name[at:])
    groups.setdefault(name[: at + end.end()] + "*" if end else name, []).append(name)
  return sorted(members[0] if len(members) == 1 else group for group, members in groups.items())


def _is_head(name: str) -> bool:
  return bool(_HEAD.fullmatch(re.split("[./]", name)[0]))


def _cnn(kind: str, arrays: Mapping[str, Any], named: str) -> Found:
  """torchvision's names, which timm's networks of these families have as well."""
  flat, left = {}, []
  for name, value in arrays.items():
    # The first densenet files have `norm.1` for what is called `norm1` since.
    path = re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", name)
    if _is_head(name):
      left.append(name)
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
  return Found(kind, "torchvision", flat, tuple(left), pixels=pixels)


def _vit(kind: str, prefix: str, arrays: dict[str, Any], outside: list[str], file: File) -> Found:
  heads = file.beside.get("num_attention_heads")
  pixels, notes, left = IMAGENET, [], set()
  if kind == "hf":
    source = "hf-dinov2" if any("layer_scale1" in name for name in arrays) else "hf-vit"
    pixels = IMAGENET if source == "hf-dinov2" else HALF
    arrays = vit.from_hugging_face(arrays)
  elif kind == "big_vision":
    source, pixels = kind, HALF
    heads = _flax_heads(arrays)
    arrays = vit.from_big_vision(arrays)
  else:
    source = _torch_source(prefix, arrays, outside, file)
    arrays = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", n): v for n, v in arrays.items()}
    if "register_tokens" in arrays:
      arrays["reg_token"] = arrays.pop("register_tokens")
  if source == "mae" and "mask_token" in arrays:  # the decoder's
    arrays.pop("mask_token")
    left.add("mask_token")
  if "norm.weight" not in arrays and "fc_norm.weight" in arrays:
    arrays["norm.weight"], arrays["norm.bias"] = (
      arrays.pop("fc_norm.weight"),
      arrays.pop("fc_norm.bias"),
    )
    notes.append("the source normalises the mean of its patches, here each patch is normalised")
  flat, rest = vit.from_timm(arrays, file.named)
  unknown = sorted(name for name in rest if not _is_head(name))
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
  return Found(
    "vit",
    source,
    flat,
    tuple(rest | left),
    heads=heads,
    pixels=pixels,
    interpolation=interpolation,
    notes=tuple(notes),
  )


def _torch_source(prefix: str, arrays: Mapping[str, Any], outside: list[str], file: File) -> str:
  if any(name.startswith("decoder_blocks.") for name in [*arrays, *outside]):
    return "mae"
  if "base_encoder." in prefix or "momentum_encoder." in prefix:
    return "moco-v3"
  flat_mask = "mask_token" in arrays and len(arrays["mask_token"].shape) == 2
  if "register_tokens" in arrays or flat_mask or "blocks.0.0.norm1.weight" in arrays:
    return "dinov2"
  # The published backbones have timm's names and nothing beside them but their own.
  alone = file.path.name.startswith("dino_") and not file.beside
  return "dino" if alone or "backbone." in prefix else "timm"


def _flax_heads(arrays: Mapping[str, Any]) -> int | None:
  for name, value in arrays.items():
    if name.endswith("query/kernel"):
      return int(value.shape[-2])
  return None


def _pixels_beside(beside: Mapping[str, Any]) -> Pixels | None:
  """What timm's `config.json` or transformers' `preprocessor_config.json` says of pixels."""
  timm = beside.get("pretrained_cfg", beside)
  mean = timm.get("mean", beside.get("image_mean"))
  std = timm.get("std", beside.get("image_std"))
  try:
    return (tuple(map(float, mean)), tuple(map(float, std)))
  except (TypeError, ValueError):
    return None


def of_ours(flat: dict[str, np.ndarray], family: str, named: str) -> Found:
  """Parameters of a network of ours by their paths; `family` where they do not show another."""
  family = next((kind for name, kind in _OWN_ANCHORS.items() if name in flat), family)
  if family == "vit":
    flat["patch/kernel"] = vit.square(flat["patch/kernel"], named)
  return Found(family, "cxrjax", flat)


def _ours(file: File) -> Found:
  """A file that `cxrjax.export` wrote: an .npz of our own names, or timm's in safetensors."""
  about = file.about
  arrays = {name: np.asarray(value) for name, value in file.arrays.items()}
  family = about["family"]
  if about.get("names") != "timm":
    flat = {n.removeprefix("encoder/"): v for n, v in arrays.items() if n.startswith("encoder/")}
    left = tuple(n for n in arrays if not n.startswith("encoder/"))
    flat = of_ours(flat, family, file.named).flat
  elif family == "vit":
    flat, rest = vit.from_timm(arrays, file.named)
    left = tuple(sorted(rest))
  else:
    found = _cnn(family, {re.sub(r"^features\.", "", n): v for n, v in arrays.items()}, file.named)
    flat, left = found.flat, found.left
  pixels = None
  if about.get("mean") is not None and not about.get("standardize"):
    pixels = (float(about["mean"]),), (float(about["std"]),)
  return Found(family, "cxrjax", flat, left, heads=about.get("heads"), pixels=pixels)

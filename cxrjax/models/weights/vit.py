"""A vision transformer's arrays: from any published layout to timm's names, from these to ours.

Every published layout is first brought to the names and shapes that timm gives its
`VisionTransformer`, which DeiT, DINO, DINOv2, MAE and MoCo v3 share but for prefixes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cxrjax.core.errors import UserError

Arrays = dict[str, np.ndarray]
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_PARTS = {  # of a block: timm's name and ours
  "norm1.weight": "norm1/scale",
  "norm1.bias": "norm1/bias",
  "attn.qkv.weight": "attn/qkv/kernel",
  "attn.qkv.bias": "attn/qkv/bias",
  "attn.proj.weight": "attn/proj/kernel",
  "attn.proj.bias": "attn/proj/bias",
  "ls1.gamma": "ls1",
  "ls2.gamma": "ls2",
  "norm2.weight": "norm2/scale",
  "norm2.bias": "norm2/bias",
  "mlp.fc1.weight": "mlp/fc1/kernel",
  "mlp.fc1.bias": "mlp/fc1/bias",
  "mlp.fc2.weight": "mlp/fc2/kernel",
  "mlp.fc2.bias": "mlp/fc2/bias",
}
_TOP = {
  "cls_token": "cls",
  "pos_embed": "pos",
  "reg_token": "registers",
  "mask_token": "mask_token",
  "patch_embed.proj.weight": "patch/kernel",
  "patch_embed.proj.bias": "patch/bias",
  "norm.weight": "norm/scale",
  "norm.bias": "norm/bias",
}


def from_timm(arrays: Mapping[str, Any], named: str) -> tuple[Arrays, set[str]]:
  """Our flat parameters of the file's own network, and timm's names that have no place in it.

  The patch kernel comes as [p p c d], positions as [1 + n, d], of which the first is zero where
  the file has none for the class token. Without a class token there is none among the result.

  Args:
    arrays: in timm's names.
    named: the file, for errors.

  Raises:
    UserError: the blocks hold what ours have not.
  """
  ours: Arrays = {}
  left = set()
  for name, value in arrays.items():
    block = _BLOCK.fullmatch(name)
    if block and block[2] in _PARTS:
      ours[f"blocks/{block[1]}/{_PARTS[block[2]]}"] = _flip(np.asarray(value, np.float32))
    elif name in _TOP:
      value = np.asarray(value, np.float32)
      ours[_TOP[name]] = value if value.ndim != 4 else value.transpose(2, 3, 1, 0)
    elif block or name.startswith(("norm_pre.", "patch_embed.", "rope")):
      raise UserError(
        f"{named} holds {name!r}, which the vision transformers of config.model do not have"
      )
    else:
      left.add(name)
  for name in ("cls", "registers", "mask_token"):
    if name in ours:
      ours[name] = ours[name].reshape(-1, ours[name].shape[-1])
  _add_qkv_bias(ours)
  if "pos" in ours:
    _positions(ours, arrays.get("dist_token"), named)
    left.discard("dist_token")
  return ours, left


def _flip(value: np.ndarray) -> np.ndarray:
  return value.T if value.ndim == 2 else value


def _add_qkv_bias(ours: Arrays) -> None:
  """Zeros where the network was made without that bias, which is the same."""
  kernels = [name for name in ours if name.endswith("attn/qkv/kernel")]
  biases = [name.replace("kernel", "bias") for name in kernels]
  if not any(name in ours for name in biases):
    for kernel, bias in zip(kernels, biases, strict=True):
      ours[bias] = np.zeros(ours[kernel].shape[-1], np.float32)


def _positions(ours: Arrays, dist: Any, named: str) -> None:
  """Brings positions to [1 + n, d]; a distillation token becomes a register, which it is."""
  pos = ours["pos"].reshape(-1, ours["pos"].shape[-1])
  extra = next((k for k in range(4) if int((len(pos) - k) ** 0.5) ** 2 == len(pos) - k), None)
  if len(pos) == 1 or extra is None or extra > 2:
    raise UserError(f"{named} has positions for {len(pos)} tokens, which are no square of patches")
  first, grid = pos[:extra], pos[extra:]
  if dist is not None and extra == 2:
    ours["registers"] = np.asarray(dist, np.float32).reshape(1, -1) + first[1:]
  ours["pos"] = np.concatenate([first[:1] if extra else np.zeros_like(pos[:1]), grid])


def to_timm(flat: Mapping[str, Any], encoder: Any) -> tuple[Arrays, tuple[str, ...]]:
  """timm's arrays of our flat parameters, and what has no place among them.

  Where there are registers the class token takes its position with it: timm's network then has
  positions for patches alone.
  """
  flat = dict(flat)
  left = tuple(name for name in ("mask_token",) if flat.pop(name, None) is not None)
  p, c = encoder.patch_size, encoder.channels
  if "registers" in flat:
    flat["cls"], flat["pos"] = flat["cls"] + flat["pos"][:1], flat["pos"][1:]
  names = {ours: theirs for theirs, ours in _TOP.items()}
  parts = {ours: theirs for theirs, ours in _PARTS.items()}
  arrays: Arrays = {}
  for name, value in flat.items():
    if name == "patch/kernel":
      arrays[names[name]] = value.reshape(p, p, c, -1).transpose(3, 2, 0, 1)
    elif name in ("cls", "pos", "registers"):
      arrays[names[name]] = value[None]
    elif name in names:
      arrays[names[name]] = value
    else:
      _, i, part = name.split("/", 2)
      arrays[f"blocks.{i}.{parts[part]}"] = _flip(value)
  return arrays, left


def from_hugging_face(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """Names of `transformers`' ViT, DeiT, ViT-MAE, DINOv2 and DINOv2 with registers as timm's."""
  rules = [
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.mask_token", "mask_token"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"layernorm\.", "norm."),
    (r"(?:encoder\.)?layers?\.(\d+)\.", r"blocks.\1."),
    (r"(blocks\.\d+)\.layernorm_before\.", r"\1.norm1."),
    (r"(blocks\.\d+)\.layernorm_after\.", r"\1.norm2."),
    (r"(blocks\.\d+)\.layer_scale([12])\.lambda1", r"\1.ls\2.gamma"),
    (r"(blocks\.\d+)\.attention\.attention\.", r"\1.attention."),
    (r"(blocks\.\d+)\.attention\.(query|key|value)\.", r"\1.attn.\2."),
    (r"(blocks\.\d+)\.attention\.([qkv])_proj\.", r"\1.attn.\2."),
    (r"(blocks\.\d+)\.attention\.output\.dense\.", r"\1.attn.proj."),
    (r"(blocks\.\d+)\.attention\.o_proj\.", r"\1.attn.proj."),
    (r"(blocks\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
  ]
  return _join_qkv(_renamed(arrays, rules))


def _renamed(arrays: Mapping[str, Any], rules: list[tuple[str, str]]) -> dict[str, Any]:
  found = {}
  for name, value in arrays.items():
    for pattern, new in rules:
      name = re.sub(f"^{pattern}", new, name)
    found[name] = value
  return found


def _join_qkv(arrays: dict[str, Any]) -> dict[str, Any]:
  """Queries, keys and values one below the other, as timm has them."""
  found = dict(arrays)
  for name in arrays:
    match = re.fullmatch(r"(blocks\.\d+\.attn)\.(query|q)\.(weight|bias)", name)
    if match:
      letters = ("query", "key", "value") if match[2] == "query" else "qkv"
      parts = [f"{match[1]}.{letter}.{match[3]}" for letter in letters]
      if all(part in arrays for part in parts):
        found[f"{match[1]}.qkv.{match[3]}"] = np.concatenate(
          [np.asarray(found.pop(part)) for part in parts]
        )
  return found


def from_big_vision(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """Names of big_vision's ViT, and of its predecessor's (`vision_transformer`), as timm's."""
  rules = [
    (r"cls$", "cls_token"),
    (r"embedding/kernel", "patch_embed.proj.weight"),
    (r"embedding/bias", "patch_embed.proj.bias"),
    (r"(?:Transformer/)?(?:posembed_input/)?pos_embedding", "pos_embed"),
    (r"Transformer/encoder_norm/scale", "norm.weight"),
    (r"Transformer/encoder_norm/bias", "norm.bias"),
    (r"Transformer/encoderblock_(\d+)/", r"blocks.\1."),
    (r"(blocks\.\d+)\.LayerNorm_0/scale", r"\1.norm1.weight"),
    (r"(blocks\.\d+)\.LayerNorm_0/bias", r"\1.norm1.bias"),
    (r"(blocks\.\d+)\.LayerNorm_[12]/scale", r"\1.norm2.weight"),
    (r"(blocks\.\d+)\.LayerNorm_[12]/bias", r"\1.norm2.bias"),
    (r"(blocks\.\d+)\.MlpBlock_\d/Dense_0/kernel", r"\1.mlp.fc1.weight"),
    (r"(blocks\.\d+)\.MlpBlock_\d/Dense_0/bias", r"\1.mlp.fc1.bias"),
    (r"(blocks\.\d+)\.MlpBlock_\d/Dense_1/kernel", r"\1.mlp.fc2.weight"),
    (r"(blocks\.\d+)\.MlpBlock_\d/Dense_1/bias", r"\1.mlp.fc2.bias"),
    (r"(blocks\.\d+)\.MultiHeadDotProductAttention_\d/out/kernel", r"\1.attn.proj.weight"),
    (r"(blocks\.\d+)\.MultiHeadDotProductAttention_\d/out/bias", r"\1.attn.proj.bias"),
    (
      r"(blocks\.\d+)\.MultiHeadDotProductAttention_\d/(query|key|value)/kernel",
      r"\1.attn.\2.weight",
    ),
    (r"(blocks\.\d+)\.MultiHeadDotProductAttention_\d/(query|key|value)/bias", r"\1.attn.\2.bias"),
  ]
  found = _renamed(_unrolled(arrays), rules)
  shaped: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "attn.query.weight": lambda x: x.reshape(len(x), -1).T,  # from [d heads size]
    "attn.proj.weight": lambda x: x.reshape(-1, x.shape[-1]).T,  # from [heads size d]
    "attn.query.bias": np.ravel,
    "mlp.fc1.weight": np.transpose,
    "mlp.fc2.weight": np.transpose,
  }
  for part in ("key", "value"):
    for leaf in ("weight", "bias"):
      shaped[f"attn.{part}.{leaf}"] = shaped[f"attn.query.{leaf}"]
  for name, value in found.items():
    block = _BLOCK.fullmatch(name)
    if block and block[2] in shaped:
      found[name] = shaped[block[2]](np.asarray(value))
  if "patch_embed.proj.weight" in found:  # from [p p c d]
    found["patch_embed.proj.weight"] = np.asarray(found["patch_embed.proj.weight"]).transpose(
      3, 2, 0, 1
    )
  return _join_qkv(found)


def _unrolled(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """Blocks that a scan keeps stacked in one array, one by one."""
  found = {}
  for name, value in arrays.items():
    if name.startswith("Transformer/encoderblock/"):
      for i, one in enumerate(np.asarray(value)):
        found[name.replace("encoderblock/", f"encoderblock_{i}/")] = one
    else:
      found[name] = value
  return found


def square(kernel: np.ndarray, named: str) -> np.ndarray:
  """A patch kernel of ours, [p * p * c, d], as [p p c d].

  One channel or three: a square is never three times another square, so the number tells.
  """
  for channels in (1, 3):
    side = round((len(kernel) / channels) ** 0.5)
    if side * side * channels == len(kernel):
      return kernel.reshape(side, side, channels, -1)
  raise UserError(f"{named}: {len(kernel)} inputs of patch/kernel are no square of pixels")

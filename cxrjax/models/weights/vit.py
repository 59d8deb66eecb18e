"""Converts a vision transformer's arrays from any published layout to timm's, and that to ours.

Every published layout is first converted to the names and shapes of timm's `VisionTransformer`,
which DeiT, DINO, DINOv2, MAE and MoCo v3 share except for prefixes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cxrjax.core.errors import UserError

Arrays = dict[str, np.ndarray]
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_PARTS = {  # of a block: timm's name to ours
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
_TOP_LEVEL = {
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
  """Converts timm's arrays to our flat parameters; also returns timm's names without a counterpart.

  The patch kernel is [p p c d], positions are [1 + n, d], the first of which is zero where the file
  has none for the class token. Without a class token in the file the result has none either.

  Args:
    arrays: arrays by timm's names.
    named: name of the file, for errors.

  Raises:
    UserError: the blocks hold parameters that ours lack.
  """
  ours: Arrays = {}
  unused = set()
  for name, value in arrays.items():
    match = _BLOCK.fullmatch(name)
    if match and match[2] in _PARTS:
      ours[f"blocks/{match[1]}/{_PARTS[match[2]]}"] = _transpose(np.asarray(value, np.float32))
    elif name in _TOP_LEVEL:
      value = np.asarray(value, np.float32)
      ours[_TOP_LEVEL[name]] = value if value.ndim != 4 else value.transpose(2, 3, 1, 0)
    elif match or name.startswith(("norm_pre.", "patch_embed.", "rope")):
      raise UserError(
        f"{named} holds {name!r}, which the vision transformers of config.model do not have"
      )
    else:
      unused.add(name)
  for name in ("cls", "registers", "mask_token"):
    if name in ours:
      ours[name] = ours[name].reshape(-1, ours[name].shape[-1])
  _add_qkv_bias(ours)
  if "pos" in ours:
    _fit_positions(ours, arrays.get("dist_token"), named)
    unused.discard("dist_token")
  return ours, unused


def _transpose(value: np.ndarray) -> np.ndarray:
  return value.T if value.ndim == 2 else value


def _add_qkv_bias(ours: Arrays) -> None:
  """Adds a zero bias, which is equivalent, where the network has none."""
  kernels = [name for name in ours if name.endswith("attn/qkv/kernel")]
  biases = [name.replace("kernel", "bias") for name in kernels]
  if not any(name in ours for name in biases):
    for kernel, bias in zip(kernels, biases, strict=True):
      ours[bias] = np.zeros(ours[kernel].shape[-1], np.float32)


def _fit_positions(ours: Arrays, dist: Any, named: str) -> None:
  """Reshapes positions to [1 + n, d]; a distillation token becomes a register, its equivalent."""
  pos = ours["pos"].reshape(-1, ours["pos"].shape[-1])
  extra = next((k for k in range(4) if int((len(pos) - k) ** 0.5) ** 2 == len(pos) - k), None)
  if len(pos) == 1 or extra is None or extra > 2:
    raise UserError(f"{named} has positions for {len(pos)} tokens, which are no square of patches")
  prefix, grid = pos[:extra], pos[extra:]
  if dist is not None and extra == 2:
    ours["registers"] = np.asarray(dist, np.float32).reshape(1, -1) + prefix[1:]
  ours["pos"] = np.concatenate([prefix[:1] if extra else np.zeros_like(pos[:1]), grid])


def to_timm(flat: Mapping[str, Any], encoder: Any) -> tuple[Arrays, tuple[str, ...]]:
  """Converts our flat parameters to timm's arrays; also returns names without a counterpart.

  With registers the class token absorbs its position: timm's network then has positions for patches
  only.
  """
  flat = dict(flat)
  unused = tuple(name for name in ("mask_token",) if flat.pop(name, None) is not None)
  patch_size, channels = encoder.patch_size, encoder.channels
  if "registers" in flat:
    flat["cls"], flat["pos"] = flat["cls"] + flat["pos"][:1], flat["pos"][1:]
  timm_names = {name: timm_name for timm_name, name in _TOP_LEVEL.items()}
  timm_parts = {name: timm_name for timm_name, name in _PARTS.items()}
  arrays: Arrays = {}
  for name, value in flat.items():
    if name == "patch/kernel":
      arrays[timm_names[name]] = value.reshape(patch_size, patch_size, channels, -1).transpose(
        3, 2, 0, 1
      )
    elif name in ("cls", "pos", "registers"):
      arrays[timm_names[name]] = value[None]
    elif name in timm_names:
      arrays[timm_names[name]] = value
    else:
      _, i, part = name.split("/", 2)
      arrays[f"blocks.{i}.{timm_parts[part]}"] = _transpose(value)
  return arrays, unused


def from_hugging_face(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """Converts `transformers`' ViT, DeiT, ViT-MAE, DINOv2 (with or without registers) to timm's."""
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
  return _join_qkv(_rename(arrays, rules))


def _rename(arrays: Mapping[str, Any], rules: list[tuple[str, str]]) -> dict[str, Any]:
  renamed = {}
  for name, value in arrays.items():
    for pattern, replacement in rules:
      name = re.sub(f"^{pattern}", replacement, name)
    renamed[name] = value
  return renamed


def _join_qkv(arrays: dict[str, Any]) -> dict[str, Any]:
  """Concatenates queries, keys and values, as in timm."""
  joined = dict(arrays)
  for name in arrays:
    match = re.fullmatch(r"(blocks\.\d+\.attn)\.(query|q)\.(weight|bias)", name)
    if match:
      letters = ("query", "key", "value") if match[2] == "query" else "qkv"
      parts = [f"{match[1]}.{letter}.{match[3]}" for letter in letters]
      if all(part in arrays for part in parts):
        joined[f"{match[1]}.qkv.{match[3]}"] = np.concatenate(
          [np.asarray(joined.pop(part)) for part in parts]
        )
  return joined


def from_big_vision(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """Converts big_vision's ViT, and its predecessor's (`vision_transformer`), to timm's."""
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
  renamed = _rename(_unroll_blocks(arrays), rules)
  reshapes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "attn.query.weight": lambda x: x.reshape(len(x), -1).T,  # from [d heads size]
    "attn.proj.weight": lambda x: x.reshape(-1, x.shape[-1]).T,  # from [heads size d]
    "attn.query.bias": np.ravel,
    "mlp.fc1.weight": np.transpose,
    "mlp.fc2.weight": np.transpose,
  }
  for part in ("key", "value"):
    for leaf in ("weight", "bias"):
      reshapes[f"attn.{part}.{leaf}"] = reshapes[f"attn.query.{leaf}"]
  for name, value in renamed.items():
    match = _BLOCK.fullmatch(name)
    if match and match[2] in reshapes:
      renamed[name] = reshapes[match[2]](np.asarray(value))
  if "patch_embed.proj.weight" in renamed:  # from [p p c d]
    renamed["patch_embed.proj.weight"] = np.asarray(renamed["patch_embed.proj.weight"]).transpose(
      3, 2, 0, 1
    )
  return _join_qkv(renamed)


def _unroll_blocks(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """Splits blocks that a scan keeps stacked in one array."""
  unrolled = {}
  for name, value in arrays.items():
    if name.startswith("Transformer/encoderblock/"):
      for i, block in enumerate(np.asarray(value)):
        unrolled[name.replace("encoderblock/", f"encoderblock_{i}/")] = block
    else:
      unrolled[name] = value
  return unrolled


def square(kernel: np.ndarray, named: str) -> np.ndarray:
  """Reshapes our patch kernel, [p * p * c, d], to [p p c d].

  The number of inputs tells one channel from three: a square is never three times another square.
  """
  for channels in (1, 3):
    side = round((len(kernel) / channels) ** 0.5)
    if side * side * channels == len(kernel):
      return kernel.reshape(side, side, channels, -1)
  raise UserError(f"{named}: {len(kernel)} inputs of patch/kernel are no square of pixels")

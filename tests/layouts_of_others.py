"""A network of ours in the names and shapes that other projects publish theirs in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import made_up
import numpy as np


def depth(params: Mapping[str, Any]) -> int:
  return len(params["blocks"])


def timm(params: Mapping[str, Any], patch: int, channels: int) -> dict[str, np.ndarray]:
  """timm's, and those of DeiT, DINO, DINOv2, MAE and MoCo v3."""
  state = {}
  for name, array in made_up.torch_names(params):
    if name == "patch.weight":
      state["patch_embed.proj.weight"] = array.reshape(patch, patch, channels, -1).transpose(
        3, 2, 0, 1
      )
    elif name in ("cls", "pos", "registers", "mask_token"):
      state[{"cls": "cls_token", "pos": "pos_embed", "registers": "reg_token"}.get(name, name)] = (
        array[None]
      )
    else:
      name = name.replace("patch.", "patch_embed.proj.")
      name = name + ".gamma" if name.endswith((".ls1", ".ls2")) else name
      state[name] = array.T if name.endswith("weight") and array.ndim == 2 else array
  return {name: np.ascontiguousarray(array) for name, array in state.items()}


def hugging_face(params, patch, channels, *, current: bool = False) -> dict[str, np.ndarray]:
  """Of `transformers`' ViT, and of DINOv2 where there is layer scale.

  `current`: in the names that version 5 has in memory, not those that it writes.
  """
  source, state = timm(params, patch, channels), {}
  dinov2 = "blocks.0.ls1.gamma" in source
  top = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "mask_token": "embeddings.mask_token",
    "reg_token": "embeddings.register_tokens",
  }
  parts = {
    "norm1": "norm1" if dinov2 else "layernorm_before",
    "norm2": "norm2" if dinov2 else "layernorm_after",
    "attn.proj": "attention.o_proj" if current else "attention.output.dense",
    "mlp.fc1": "mlp.fc1" if dinov2 or current else "intermediate.dense",
    "mlp.fc2": "mlp.fc2" if dinov2 or current else "output.dense",
  }
  if current:
    names = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
  else:
    names = tuple(f"attention.attention.{name}" for name in ("query", "key", "value"))
  for name, array in source.items():
    if name in top:
      state[top[name]] = array[0] if name == "mask_token" else array
    elif name.startswith("patch_embed.proj."):
      state[name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")] = array
    elif name.startswith("norm."):
      state[f"layer{name}"] = array
    else:
      _, i, *rest = name.split(".")
      block = f"layers.{i}" if current and not dinov2 else f"encoder.layer.{i}"
      part, leaf = ".".join(rest[:-1]), rest[-1]
      if leaf == "gamma":
        state[f"{block}.layer_scale{part[-1]}.lambda1"] = array
      elif part == "attn.qkv":
        for new, third in zip(names, np.split(array, 3), strict=True):
          state[f"{block}.{new}.{leaf}"] = third
      else:
        state[f"{block}.{parts[part]}.{leaf}"] = array
  return state


def big_vision(params, patch, channels, heads, *, scan=False, old=False) -> dict[str, np.ndarray]:
  """Of its ViT with a class token; `old`: of the repository before it (`vision_transformer`)."""
  attention = "MultiHeadDotProductAttention_" + ("1" if old else "0")
  width = params["cls"].shape[-1]
  state = {
    "embedding/kernel": params["patch"]["kernel"].reshape(patch, patch, channels, width),
    "embedding/bias": params["patch"]["bias"],
    "Transformer/encoder_norm/scale": params["norm"]["scale"],
    "Transformer/encoder_norm/bias": params["norm"]["bias"],
  }
  if old:
    state["cls"] = params["cls"][None]
    state["Transformer/posembed_input/pos_embedding"] = params["pos"][None]
  else:  # positions are added before the class token comes
    state["cls"] = (params["cls"] + params["pos"][:1])[None]
    state["pos_embedding"] = params["pos"][None, 1:]
  blocks = []
  for i in range(depth(params)):
    block = params["blocks"][str(i)]
    parts = {}
    for leaf in ("scale", "bias"):
      parts[f"LayerNorm_0/{leaf}"] = block["norm1"][leaf]
      parts[f"LayerNorm_{2 if old else 1}/{leaf}"] = block["norm2"][leaf]
    for j, name in enumerate(("query", "key", "value")):
      third = slice(j * width, (j + 1) * width)
      parts[f"{attention}/{name}/kernel"] = block["attn"]["qkv"]["kernel"][:, third].reshape(
        width, heads, -1
      )
      parts[f"{attention}/{name}/bias"] = block["attn"]["qkv"]["bias"][third].reshape(heads, -1)
    parts[f"{attention}/out/kernel"] = block["attn"]["proj"]["kernel"].reshape(heads, -1, width)
    parts[f"{attention}/out/bias"] = block["attn"]["proj"]["bias"]
    for j, name in enumerate(("fc1", "fc2")):
      for leaf in ("kernel", "bias"):
        parts[f"MlpBlock_{3 if old else 0}/Dense_{j}/{leaf}"] = block["mlp"][name][leaf]
    blocks.append(parts)
  if scan:
    for name in blocks[0]:
      state[f"Transformer/encoderblock/{name}"] = np.stack([block[name] for block in blocks])
  else:
    for i, parts in enumerate(blocks):
      state |= {f"Transformer/encoderblock_{i}/{name}": a for name, a in parts.items()}
  return state


def with_prefix(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
  return {prefix + name: array for name, array in state.items()}

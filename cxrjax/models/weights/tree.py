"""Converts nested parameters to flat names, `blocks/0/attn/qkv/kernel`, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Flattens a tree to its leaves by path."""
  flat: dict[str, Any] = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      flat.update(flatten(value, f"{prefix}{name}/"))
    else:
      flat[prefix + str(name)] = value
  return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Inverts `flatten`."""
  tree: dict[str, Any] = {}
  for path, value in flat.items():
    *parents, last = path.split("/")
    node = tree
    for name in parents:
      node = node.setdefault(name, {})
    node[last] = value
  return tree

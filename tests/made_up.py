"""Weights that depend on their names alone, and the names that torch gives to ours."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np


def weights(shapes: Any, path: str = "") -> Any:
  """A tree like `shapes` of numbers that keep activations near one, so that no term hides.

  Args:
    shapes: `jax.eval_shape(model.init, key)`.
    path: of the tree in a larger one.
  """
  if isinstance(shapes, Mapping):
    return {name: weights(below, f"{path}/{name}") for name, below in shapes.items()}
  normal = np.random.default_rng(zlib.crc32(path.encode())).standard_normal(shapes.shape)
  name = path.rpartition("/")[2]
  value = {
    "kernel": normal * np.sqrt(2 / max(1, np.prod(shapes.shape[:-1]))),
    "scale": 1 + 0.2 * normal,
    "running_var": np.exp(0.2 * normal),
  }.get(name, 0.2 * normal)
  return value.astype(np.float32)


def images(*shape: int) -> np.ndarray:
  """Standard normal pixels, the same every time."""
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@functools.cache
def shapes(model: Any) -> Any:
  """A model's parameters by shape; tracing a deep one takes seconds."""
  return jax.eval_shape(model.init, jax.random.key(0))


def of(model: Any) -> Any:
  """Made-up parameters of a model."""
  return weights(shapes(model))


def torch_names(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
  """Every array of a network, or of its gradients, as torch calls and lays it out."""
  for name, value in tree.items():
    if isinstance(value, Mapping):
      yield from torch_names(value, f"{prefix}{name}.")
    else:
      array = np.asarray(value)
      array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
      yield prefix + {"kernel": "weight", "scale": "weight"}.get(name, name), array

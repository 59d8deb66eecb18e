"""Explanation maps of a network: a single entry point to all methods."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from cxrjax.core import compile_effort
from cxrjax.core.errors import UserError, suggest
from cxrjax.explain import attention, cams
from cxrjax.explain.occlusion import occlusion

METHODS = ("attention", "rollout", "gradcam", "gradcam++", "occlusion")
Images = Float[Array, "n h w c"] | Float[np.ndarray, "n h w c"]
OF_CLASSES = ("gradcam", "gradcam++", "occlusion")


class Head(NamedTuple):
  """A linear head on features, whose logits are explained.

  Attributes:
    kernel: weights, one column per class.
    bias: one per class.
  """

  kernel: Float[Array, "d k"] | Float[np.ndarray, "d k"]
  bias: Float[Array, "k"] | Float[np.ndarray, "k"]

  def __call__(self, features: Float[Array, "n d"]) -> Float[Array, "n k"]:
    """The logits."""
    return features.astype(jnp.float32) @ self.kernel + self.bias


def methods_for(network: Any, classes: bool = True) -> tuple[str, ...]:
  """The `METHODS` that a network supports.

  Args:
    network: an encoder.
    classes: whether there is a head whose class scores can be explained.
  """
  transformer = bool(network.attention_heads)
  return tuple(m for m in METHODS if (classes if m in OF_CLASSES else transformer))


def parse_methods(text: str) -> tuple[str, ...]:
  """Parses method names from `A+B` or `A,B`; a name itself may end in `++`."""
  words = re.findall(r"[^+,]+(?:\+\+(?=[+,]|$))?", text)
  return tuple(dict.fromkeys(word.strip() for word in words if word.strip()))


def check(method: str, network: Any, classes: bool = True, key: str = "method") -> None:
  """Raises a UserError for a method that is unknown, or that a network does not support.

  Args:
    method: its name.
    network: an encoder.
    classes: as for `methods_for`.
    key: config key in error messages.
  """
  if method not in METHODS:
    raise UserError(f"{key}={method!r} is not known{suggest(method, METHODS)}")
  available = methods_for(network, classes)
  if method not in available:
    requirement = (
      "needs a classifier or a linear probe on the features"
      if method in OF_CLASSES
      else "needs a transformer"
    )
    raise UserError(
      f"{key}={method!r} {requirement}; this network has {', '.join(available) or 'no method'}"
    )


def explain(
  method: str,
  network: Any,
  params: Any,
  x: Images,
  *,
  head: Head | None = None,
  target: int | Int[np.ndarray, "n"] | None = None,
  tap: str = "",
  fusion: str = "mean",
  window: int | None = None,
  stride: int | None = None,
  batch: int = 16,
) -> Float32[np.ndarray, "n gh gw"]:
  """Maps of what the network looks at in each image, or what the logit of a class depends on.

  Computed in float32 on any device; `enlarge` brings maps to the images' size.

  Args:
    method: of `METHODS`. "attention" is that of the last block, mean of the heads (for single heads
      and other blocks: `explain.attention.heads`); "rollout" that of all blocks
      (`explain.attention.rollout`); both are independent of classes. "gradcam", "gradcam++"
      (`explain.cams`) and "occlusion" (`explain.occlusion`) explain the logit of a class.
    network: an encoder.
    params: its parameters.
    x: normalised images of one size, as the network was trained on.
    head: of a classifier, or a linear probe; for methods that explain a class.
    target: the class, or one for each image; None for the one with the largest logit.
    tap: whose feature maps class activation maps weight; "" for `cams.default_tap`. Earlier ones
      ("stage:2" of a convolutional network) are finer and less specific to the class.
    fusion: of the heads, for "rollout".
    window: for "occlusion", pixels.
    stride: for "occlusion", pixels.
    batch: images per dispatch.

  Returns:
    Maps at the grid of the method: patches, cells of the tap's map, or `stride` pixels. Values from
    0, except for "occlusion", which is below 0 where hiding a part raises the logit.

  Raises:
    UserError: a method or tap that the network does not have.
    ValueError: a class that the head does not have, or no images.
  """
  check(method, network, head is not None)
  if not len(x):
    raise ValueError("there are no images to explain")
  network = _in_float32(network)
  if method not in OF_CLASSES:
    function = _compiled(method, network, (fusion,) if method == "rollout" else ())
    no_class = np.zeros(len(x), np.int32)
    return _batched(lambda x, c: function(params, None, x, c), batch, x, no_class)
  assert head is not None  # `check` has raised otherwise
  targets = _targets(network, params, x, head, target, batch)
  if method == "occlusion":
    function = _compiled(method, network, (window, stride))
    return _batched(lambda x, c: function(params, head, x, c), batch, x, targets)
  # Both variants of Grad-CAM share one program.
  at_tap = _compiled("at_tap", network, (tap or cams.default_tap(network),))
  combine = _cam_from_tap(method)
  return _batched(lambda x, c: combine(*at_tap(params, head, x, c)), batch, x, targets)


def _targets(
  network: Any,
  params: Any,
  x: Images,
  head: Head,
  target: int | Int[np.ndarray, "n"] | None,
  batch: int,
) -> Int[np.ndarray, "n"]:
  """The class to explain for every image."""
  targets = predicted(network, params, x, head, batch) if target is None else target
  targets = np.broadcast_to(np.asarray(targets, np.int32), (len(x),))
  if targets.min() < 0 or targets.max() >= len(head.bias):
    raise ValueError(f"target={target} is not a class; the head has {len(head.bias)}")
  return targets


def predicted(
  network: Any, params: Any, x: Images, head: Head, batch: int = 16
) -> Int[np.ndarray, "n"]:
  """The class with the largest logit for every image."""
  function = _compiled("classes", _in_float32(network), ())
  return _batched(lambda x: function(params, head, x), batch, x)


def enlarge(
  maps: Float[np.ndarray, "n gh gw"], size: tuple[int, int]
) -> Float32[np.ndarray, "n h w"]:
  """Resizes maps to (height, width) in pixels, linearly between the centres of cells."""
  rows, columns = (_interpolation_matrix(*pair) for pair in zip(maps.shape[1:], size, strict=True))
  return np.matmul(np.matmul(rows, np.asarray(maps, np.float32)), columns.T)


def _interpolation_matrix(cells: int, pixels: int) -> Float32[np.ndarray, "pixels cells"]:
  """Linear interpolation weights of pixels over cells, constant beyond the outermost centres."""
  position = (np.arange(pixels) + 0.5) * cells / pixels - 0.5
  weights = np.maximum(1 - np.abs(position[:, None] - np.arange(cells)), 0)
  return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _in_float32(network: Any) -> Any:
  """The same network in float32, because gradients by maps and differences of maps are small."""
  return dataclasses.replace(network, dtype="float32")


def _batched(function: Callable[..., Any], batch: int, *arrays: Any) -> np.ndarray:
  """Applies `function` in batches, padding the last, so that it compiles once."""
  n = len(arrays[0])
  batch, outputs = min(batch, n), []
  for start in range(0, n, batch):
    rows = [np.asarray(a[start : start + batch]) for a in arrays]
    padding = batch - len(rows[0])
    padded = [np.pad(a, [(0, padding), *[(0, 0)] * (a.ndim - 1)], mode="edge") for a in rows]
    outputs.append(np.asarray(function(*map(jnp.asarray, padded)))[: batch - padding])
  return np.concatenate(outputs)


@functools.lru_cache(maxsize=64)
def _compiled(method: str, network: Any, options: tuple[Any, ...]) -> Callable[..., Any]:
  """A compiled function per network and method; "at_tap" serves both variants of Grad-CAM."""

  def score(head: Head, target: Array) -> Callable[[Array], Array]:
    return lambda features: jnp.take_along_axis(head(features), target[:, None], axis=1)[:, 0]

  def classes(params: Any, head: Head, x: Array) -> Array:
    return head(network.encode(params, x).cls).argmax(1).astype(jnp.int32)

  def maps(params: Any, head: Head | None, x: Array, target: Array) -> Any:
    if method == "attention":
      return attention.heads(network, params, x).mean(1)
    if method == "rollout":
      return attention.rollout(network, params, x, *options)
    assert head is not None  # the remaining methods explain classes
    if method == "occlusion":
      return occlusion(network, params, x, score(head, target), *options)
    return cams.at_tap(network, params, x, score(head, target), *options)

  return jax.jit(
    classes if method == "classes" else maps, compiler_options=compile_effort.options()
  )


@functools.cache
def _cam_from_tap(method: str) -> Callable[[Array, Array], Array]:
  """Compiled Grad-CAM or Grad-CAM++, of maps and gradient at a tap."""
  return jax.jit(
    cams.gradcam if method == "gradcam" else cams.gradcam_pp,
    compiler_options=compile_effort.options(once=True),
  )

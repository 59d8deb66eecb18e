"""Maps of what a network looks at: one entry point to all methods."""

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
    kernel: of every class.
    bias: of every class.
  """

  kernel: Float[Array, "d k"] | Float[np.ndarray, "d k"]
  bias: Float[Array, "k"] | Float[np.ndarray, "k"]

  def __call__(self, features: Float[Array, "n d"]) -> Float[Array, "n k"]:
    """The logits."""
    return features.astype(jnp.float32) @ self.kernel + self.bias


def methods_for(network: Any, classes: bool = True) -> tuple[str, ...]:
  """Those of `METHODS` that a network has.

  Args:
    network: an encoder.
    classes: whether there is a head, the score of whose classes can be explained.
  """
  transformer = hasattr(network, "attention_heads")
  return tuple(m for m in METHODS if (classes if m in OF_CLASSES else transformer))


def named(text: str) -> tuple[str, ...]:
  """The methods of `A+B`, or `A,B`: names end in a plus, too."""
  words = re.findall(r"[^+,]+(?:\+\+(?=[+,]|$))?", text)
  return tuple(dict.fromkeys(word.strip() for word in words if word.strip()))


def check(method: str, network: Any, classes: bool = True, key: str = "method") -> None:
  """Raises a UserError for a method that is none, or that a network has not.

  Args:
    method: its name.
    network: an encoder.
    classes: as of `methods_for`.
    key: what names the method, for the error.
  """
  if method not in METHODS:
    raise UserError(f"{key}={method!r} is not known{suggest(method, METHODS)}")
  has = methods_for(network, classes)
  if method not in has:
    what = (
      "needs a classifier or a linear probe on the features"
      if method in OF_CLASSES
      else "needs a transformer"
    )
    raise UserError(f"{key}={method!r} {what}; this network has {', '.join(has) or 'no method'}")


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
  """A map for every image of what the network looks at, or what a class's logit rests on.

  Computed in float32 on any device; `enlarge` brings maps to the images' size.

  Args:
    method: of `METHODS`. "attention" is the last block's, mean of the heads (single heads and other
      blocks: `explain.attention.heads`); "rollout" all blocks' (`explain.attention.rollout`); they
      speak of no class. "gradcam", "gradcam++" (`explain.cams`) and "occlusion"
      (`explain.occlusion`) explain the logit of a class.
    network: an encoder.
    params: its parameters.
    x: normalised images of one size, as the network was trained on.
    head: of a classifier, or a linear probe; for methods that explain a class.
    target: the class, or one for each image; None for the one with the largest logit.
    tap: whose maps class activation maps weight; "" for `cams.default_tap`. Earlier ones ("stage:2"
      of a convolutional network) are finer and say less of the class.
    fusion: of the heads, for "rollout".
    window: for "occlusion", pixels.
    stride: for "occlusion", pixels.
    batch: images a dispatch.

  Returns:
    At the grid that the method has: patches, cells of the tap's map, or `stride` pixels. From 0 but
    for "occlusion", which is below 0 where hiding a part raises the logit.

  Raises:
    UserError: a method or tap that the network has not.
    ValueError: a class that the head has not, or no images.
  """
  check(method, network, head is not None)
  n = len(x)
  if not n:
    raise ValueError("there are no images to explain")
  options: tuple[Any, ...]
  if method in OF_CLASSES:
    assert head is not None  # or `check` has stopped
    chosen = predicted(network, params, x, head, batch) if target is None else target
    chosen = np.broadcast_to(np.asarray(chosen, np.int32), (n,))
    if chosen.min() < 0 or chosen.max() >= len(head.bias):
      raise ValueError(f"target={target} is no class; the head has {len(head.bias)}")
    options = (window, stride) if method == "occlusion" else (tap or cams.default_tap(network),)
    if method != "occlusion":  # one program serves both
      at_tap = _compiled("at_tap", _plain(network), options)
      weigh = _weigh(method)
      return _batched(lambda x, c: weigh(*at_tap(params, head, x, c)), batch, x, chosen)
  else:
    chosen, head = np.zeros(n, np.int32), None
    options = (fusion,) if method == "rollout" else ()
  function = _compiled(method, _plain(network), options)
  return _batched(lambda x, c: function(params, head, x, c), batch, x, chosen)


def predicted(
  network: Any, params: Any, x: Images, head: Head, batch: int = 16
) -> Int[np.ndarray, "n"]:
  """The class with the largest logit, of every image."""
  function = _compiled("classes", _plain(network), ())
  return _batched(lambda x: function(params, head, x), batch, x)


def enlarge(
  maps: Float[np.ndarray, "n gh gw"], size: tuple[int, int]
) -> Float32[np.ndarray, "n h w"]:
  """Maps at (height, width) in pixels, interpolated linearly between the cells' middles."""
  rows, columns = (_between(*pair) for pair in zip(maps.shape[1:], size, strict=True))
  return np.matmul(np.matmul(rows, np.asarray(maps, np.float32)), columns.T)


def _between(cells: int, pixels: int) -> Float32[np.ndarray, "pixels cells"]:
  """What every pixel of a line takes from each cell; beyond the outer middles it is one cell's."""
  at = (np.arange(pixels) + 0.5) * cells / pixels - 0.5
  weights = np.maximum(1 - np.abs(at[:, None] - np.arange(cells)), 0)
  return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _plain(network: Any) -> Any:
  """The same network in float32: gradients by maps are small, and maps differ by little."""
  return dataclasses.replace(network, dtype="float32")


def _batched(function: Callable[..., Any], batch: int, *arrays: Any) -> np.ndarray:
  """`function` of some rows at a time; the last are padded: one shape, one compilation."""
  n = len(arrays[0])
  batch, found = min(batch, n), []
  for start in range(0, n, batch):
    part = [np.asarray(a[start : start + batch]) for a in arrays]
    rest = batch - len(part[0])
    full = [np.pad(a, [(0, rest), *[(0, 0)] * (a.ndim - 1)], mode="edge") for a in part]
    found.append(np.asarray(function(*map(jnp.asarray, full)))[: batch - rest])
  return np.concatenate(found)


@functools.lru_cache(maxsize=64)
def _compiled(method: str, network: Any, options: tuple[Any, ...]) -> Callable[..., Any]:
  """One compiled function for each network and method; "at_tap" has what both of Grad-CAM weigh."""

  def score(head: Head, chosen: Array) -> Callable[[Array], Array]:
    return lambda features: jnp.take_along_axis(head(features), chosen[:, None], axis=1)[:, 0]

  def classes(params: Any, head: Head, x: Array) -> Array:
    return head(network.encode(params, x).cls).argmax(1).astype(jnp.int32)

  def maps(params: Any, head: Head | None, x: Array, chosen: Array) -> Any:
    if method == "attention":
      return attention.heads(network, params, x).mean(1)
    if method == "rollout":
      return attention.rollout(network, params, x, *options)
    assert head is not None  # the other methods are of classes
    if method == "occlusion":
      return occlusion(network, params, x, score(head, chosen), *options)
    return cams.at_tap(network, params, x, score(head, chosen), *options)

  return jax.jit(
    classes if method == "classes" else maps, compiler_options=compile_effort.options()
  )


@functools.cache
def _weigh(method: str) -> Callable[[Array, Array], Array]:
  return jax.jit(
    cams.gradcam if method == "gradcam" else cams.gradcam_pp,
    compiler_options=compile_effort.options(once=True),
  )

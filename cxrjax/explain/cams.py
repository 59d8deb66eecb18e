"""Gradient-weighted class activation maps: Grad-CAM and Grad-CAM++."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Maps features [n d] to the score that is explained, one per image.
Score = Callable[[Float[Array, "n d"]], Float[Array, "n"]]


def default_tap(network: Any) -> str:
  """The tap whose feature maps a class activation map weights.

  For a convolutional network, the last feature map, whose average gives the features. For a
  transformer, the input of its last attention, because what that block writes into the patches
  never reaches the class token; if the features average the patches, those patches.
  """
  if not network.attention_heads:
    return "stage:-1"
  return "out" if network.pool == "mean" else "norm:-1"


def at_tap(
  network: Any, params: Any, x: Float[Array, "n h w c"], score: Score, tap: str
) -> tuple[Float[Array, "n gh gw d"], Float[Array, "n gh gw d"]]:
  """Feature maps at a tap of a network, and the gradient of each image's score by them.

  Args:
    network: an encoder whose `encode` takes `add_at`.
    params: its parameters.
    x: normalised images of one size.
    score: of the features.
    tap: see the encoder's `encode`; for a transformer "block:I", "norm:I" or "out".
  """
  shape = jax.eval_shape(
    lambda x: network.encode(params, x, intermediates=(tap,)).intermediates[tap], x
  )

  def total(zero: Float[Array, "..."]) -> tuple[Float[Array, ""], Float[Array, "..."]]:
    features = network.encode(params, x, intermediates=(tap,), add_at={tap: zero})
    return score(features.cls).sum(), features.intermediates[tap]

  # Images are independent, so the gradient of the sum holds the gradient of each image.
  gradient, maps = jax.grad(total, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
  return _grid(network, maps, x.shape), _grid(network, gradient, x.shape)


def _grid(
  network: Any, values: Float[Array, "..."], shape: tuple[int, ...]
) -> Float[Array, "n gh gw d"]:
  """Arranges patch tokens in rows and columns; feature maps are returned as they are."""
  values = values.astype(jnp.float32)
  if values.ndim == 4:
    return values
  rows, columns = network.grid(shape[1:])
  patches = values[:, values.shape[1] - rows * columns :]
  return patches.reshape(len(values), rows, columns, -1)


def gradcam(
  maps: Float[Array, "n gh gw d"], gradient: Float[Array, "n gh gw d"]
) -> Float[Array, "n gh gw"]:
  """Grad-CAM: `relu(sum_k a_k A_k)`, `a_k` the mean gradient of the score by map k.

  Args:
    maps: A.
    gradient: of the score by A.

  Returns:
    Values from 0, in the score's units: where a logit is linear in the mean of the maps, the sum
    over the map before `relu` is the logit minus its bias.

  References:
    Selvaraju et al., Grad-CAM, 2017 (arXiv 1610.02391), equations 1 and 2.
  """
  weights = gradient.mean((1, 2), keepdims=True)
  return jax.nn.relu((weights * maps).sum(-1))


def gradcam_pp(
  maps: Float[Array, "n gh gw d"], gradient: Float[Array, "n gh gw d"]
) -> Float[Array, "n gh gw"]:
  """Grad-CAM++: Grad-CAM with `w_k = sum(alpha_k relu(g_k))` and a weight per location.

  `alpha = g^2 / (2 g^2 + S_k g^3)`, `S_k` the sum of map k. Derived for non-negative maps, as after
  a ReLU; for others (transformers) a negative `S_k` counts as 0.

  Args:
    maps: A.
    gradient: g, of the score by A. The paper's score, the exponential of the logit, only scales a
      map.

  Returns:
    Values from 0, without unit: comparable within a map, not between maps.

  References:
    Chattopadhyay et al., Grad-CAM++, 2018 (arXiv 1710.11063), equations 7 and 19.
  """
  positive = jax.nn.relu(gradient)
  total = jnp.maximum(maps.sum((1, 2), keepdims=True), 0.0)
  # Only locations with g above 0 count, where g^2 cancels; the denominator is at least 2.
  weights = (positive / (2.0 + total * positive)).sum((1, 2), keepdims=True)
  return jax.nn.relu((weights * maps).sum(-1))

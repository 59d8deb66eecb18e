"""Outputs of every encoder, and the optional standardization of its images."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Array, Float


class Features(NamedTuple):
  """An encoder's output for a batch of images.

  Attributes:
    cls: f32[b d], the class token after the last layer norm, or another summary of the image.
    patches: f32[b n d], the patch tokens after the last layer norm, row by row, without registers;
      None with `patches=False`.
    intermediates: the requested intermediates by name.
    stats: batch norm's new running statistics, from `encode(train=True)`; None where there is no
      batch norm.
  """

  cls: Float[Array, "b d"]
  patches: Float[Array, "b n d"] | None
  intermediates: dict[str, Array]
  stats: Any = None


def standardize(images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
  """Scales every image to mean 0 and (nearly) standard deviation 1."""
  mean = images.mean((1, 2, 3), keepdims=True)
  # 0.05 in units of normalized pixels keeps the noise of a blank image small.
  return (images - mean) / (images.std((1, 2, 3), keepdims=True) + 0.05)

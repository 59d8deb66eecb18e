"""What every encoder gives, and what it may do to its images first."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Array, Float


class Features(NamedTuple):
  """What an encoder makes of a batch of images.

  Attributes:
    cls: f32[b d], the class token after the last layer norm, or what stands for the image else.
    patches: f32[b n d], the patch tokens after the last layer norm, row by row (registers left
      out); None where the caller said `patches=False`.
    intermediates: those that were asked for.
    stats: batch norm's new running statistics, from `encode(train=True)`; None where there is no
      batch norm.
  """

  cls: Float[Array, "b d"]
  patches: Float[Array, "b n d"] | None
  intermediates: dict[str, Array]
  stats: Any = None


def standardize(images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
  """Every image with mean 0 and (nearly) deviation 1."""
  mean = images.mean((1, 2, 3), keepdims=True)
  # 0.05 in units of normalised pixels: the noise of a blank image stays small.
  return (images - mean) / (images.std((1, 2, 3), keepdims=True) + 0.05)

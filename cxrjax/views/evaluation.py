"""The view an evaluation sees: the whole radiograph, resized, nothing random."""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Float, Num

from cxrjax.core.errors import UserError
from cxrjax.views import resample


@dataclasses.dataclass(frozen=True)
class Recipe:
  """`recipe(images)`: the images at `size` x `size`, as `(x - mean) / std` with x in 0..1."""

  size: int = 224
  mean: float = 0.5
  std: float = 0.25

  def __post_init__(self):
    if self.size < 1:
      raise UserError(f"size={self.size} of an evaluation view must be at least 1 pixel")
    if self.std <= 0:
      raise UserError(f"std={self.std} of an evaluation view must be above 0")

  def __call__(self, images: Num[Array, "b h w 1"]) -> Float[Array, "b size size 1"]:
    return (resample.resize(images, self.size) - self.mean) / self.std

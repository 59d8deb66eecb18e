"""The evaluation view: the whole radiograph, resized, without randomness."""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Float, Num

from cxrjax.views import resample
from cxrjax.views.validation import Number, require_float, require_int


@dataclasses.dataclass(frozen=True)
class Recipe:
  """`recipe(images)` resizes to `size` x `size` and normalises to `(x - mean) / std`, x in 0..1.

  Attributes:
    size: side in pixels; images of another shape are squashed to it.
    mean: subtracted from the gray levels in 0..1.
    std: divides the difference.
  """

  size: int = 224
  mean: Number = 0.5
  std: Number = 0.25

  def __post_init__(self):
    require_int(self, "size", 1)
    require_float(self, "mean")
    require_float(self, "std", above=0.0)

  def __call__(self, images: Num[Array, "b h w 1"]) -> Float[Array, "b s s 1"]:
    """The views of a batch; integers (0 .. the type's maximum) or floats in 0..1."""
    return (resample.resize(images, self.size) - self.mean) / self.std

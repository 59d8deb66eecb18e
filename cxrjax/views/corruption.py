"""Corrupted images: rectangles of pixels filled with noise, zeros or other pixels.

Rectangles of random size are placed on an image until a random share of it is covered. Nothing
branches on data: many rectangles are drawn for every image, the first one that covers each pixel is
determined, and as many are used, in order, as reach the share.

References:
  Atito et al., GMML is All you Need, 2022 (arXiv 2205.14986): group masked model learning.
  Atito et al., SiT: Self-supervised vIsion Transformer, 2021 (arXiv 2104.03602).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from cxrjax.core.errors import UserError, suggest
from cxrjax.views.validation import Number

MAX_BOXES = (
  512  # rectangles drawn per image, a multiple of 32; covering three quarters takes about 100
)
FILLS = ("noise", "zeros", "copy")
CONFIG_KEY = "config.method.corruption"


@dataclasses.dataclass(frozen=True)
class Corruption:
  """`corruption(keys, images, views)` returns corrupted images and masks of corrupted pixels.

  The rectangles of an image and their fill depend on its key only, except for pixels taken from
  another image.

  Attributes:
    share: P; the minimum covered area is uniform between this share of the image and the lower of P
      and 0.5.
    fill: contents of the rectangles, one of these drawn for each image: "noise", N(0, 1) for each
      pixel (of normalised images); "zeros"; "copy", a rectangle from elsewhere in the image.
    alien: the same share for a further kind of fill, as likely as each of `fill`: the pixels of
      another image of the batch in the same place; 0 for never.
    largest: longest side as a share of the image's, less one pixel.
    align: sides and positions are multiples of this many pixels, which is also the shortest side.

  Raises:
    UserError: an option is invalid.
  """

  share: Number = 0.75
  fill: tuple[str, ...] | str = ("noise",)
  alien: Number = 0.3
  largest: Number = 0.3
  align: int = 1

  def __post_init__(self) -> None:
    if isinstance(self.fill, str):
      object.__setattr__(self, "fill", (self.fill,))
    if not self.fill:
      raise UserError(f"{CONFIG_KEY}.fill=() must have one or more of {', '.join(FILLS)}")
    for word in self.fill:
      if word not in FILLS:
        raise UserError(f"{CONFIG_KEY}.fill has {word!r}, which is unknown{suggest(word, FILLS)}")
    if not 0 < self.share <= 0.95:  # above, rectangles hit the uncovered rest too rarely
      raise UserError(f"{CONFIG_KEY}.share={self.share} must be above 0, at most 0.95")
    if not 0 <= self.alien <= 0.95:
      raise UserError(f"{CONFIG_KEY}.alien={self.alien} must be in 0 .. 0.95")
    if not 0 < self.largest <= 1:
      raise UserError(f"{CONFIG_KEY}.largest={self.largest} must be above 0, at most 1")
    if self.align < 1:
      raise UserError(f"{CONFIG_KEY}.align={self.align} must be at least 1")

  def __call__(
    self, keys: Key[Array, "n"], images: Float[Array, "n h w c"], views: int = 1
  ) -> tuple[Float[Array, "n h w c"], Bool[Array, "n h w 1"]]:
    """Corrupts images; returns them with masks of the corrupted pixels.

    Args:
      keys: one for each image.
      images: normalised; `views` of each radiograph in a row (`flatten_views`).
      views: number of views; another image's pixels are taken from its same view.

    Raises:
      UserError: there is no other image to take pixels from, or `align` exceeds an image's side.
    """
    n, height, width, _ = images.shape
    if self.align > min(height, width):
      raise UserError(
        f"{CONFIG_KEY}.align={self.align} is larger than views of {height}x{width} pixels"
      )
    if self.alien and n < 2 * views:
      raise UserError(
        f"{CONFIG_KEY}.alien={self.alien} takes pixels from other images, and the (micro)batch has "
        "one; raise config.batch_size or set it to 0"
      )
    boxes_key, place_key, noise_key = jnp.moveaxis(
      jax.vmap(lambda k: jax.random.split(k, 3))(keys), 1, 0
    )
    numbers = jax.vmap(lambda k: jax.random.uniform(k, (3 + 4 * MAX_BOXES,)))(boxes_key)
    kinds = (*self.fill, *(("alien",) if self.alien else ()))
    kind = jnp.floor(numbers[:, 0] * len(kinds)).astype(jnp.int32)
    upper = jnp.where(kind < len(self.fill), self.share, self.alien)
    lower = jnp.minimum(upper, 0.5)
    area = (lower + (upper - lower) * numbers[:, 1]) * (height * width)
    boxes = self.boxes(numbers[:, 3:].reshape(n, 4, MAX_BOXES), height, width)
    # The barrier keeps XLA from recomputing the rectangles wherever the mask is used.
    first, mask = jax.lax.optimization_barrier(_cover(boxes, area, height, width))

    filled = jnp.zeros_like(images)
    for i, name in enumerate(kinds):
      if name == "zeros":
        continue
      if name == "noise":
        pixels = jax.vmap(lambda k: jax.random.normal(k, images.shape[1:]))(noise_key)
      elif name == "copy":
        positions = jax.vmap(lambda k: jax.random.uniform(k, (2, MAX_BOXES)))(place_key)
        pixels = _elsewhere(images, boxes, positions, first)
      else:
        pixels = _others(images, numbers[:, 2], views)
      filled = jnp.where((kind == i)[:, None, None, None], pixels, filled)
    mask = mask[..., None]
    return jnp.where(mask, filled, images), mask

  def boxes(self, numbers: Float[Array, "n 4 m"], height: int, width: int) -> Int[Array, "4 n m"]:
    """top, bottom, left, right of rectangles in pixels, clipped to the image.

    Args:
      numbers: uniform in [0, 1).
      height: of the image.
      width: of the image.
    """

    def side(place: Array, length: Array, size: int) -> tuple[Array, Array]:
      longest = max(int(self.largest * size + 1e-6) - 1, self.align)
      start = jnp.floor(place * (size // self.align)).astype(jnp.int32) * self.align
      pixels = self.align + jnp.floor(length * (longest - self.align + 1)).astype(jnp.int32)
      rounded = (pixels + self.align // 2) // self.align * self.align
      return start, jnp.minimum(start + rounded, size)

    top, left, tall, wide = jnp.moveaxis(numbers, 1, 0)
    return jnp.stack([*side(top, tall, height), *side(left, wide, width)])


def _cover(
  boxes: Int[Array, "4 n m"], area: Float[Array, "n"], height: int, width: int
) -> tuple[Int[Array, "n h w"], Bool[Array, "n h w"]]:
  """The first rectangle on each pixel (m: none), and the cover of the fewest that reach an area.

  The rectangles on a row form a set of m bits, as do those on a column; the rectangles on a pixel
  are the intersection, whose first element is used. The pixels' first rectangles then give the area
  covered by any number of rectangles, and bisection finds the smallest sufficient number.
  """
  top, bottom, left, right = boxes[..., None]
  m = boxes.shape[-1]

  def bits(inside: Bool[Array, "n m s"]) -> Array:
    words = inside.reshape(inside.shape[0], m // 32, 32, -1).astype(jnp.uint32)
    return (words << jnp.arange(31, -1, -1, dtype=jnp.uint32)[:, None]).sum(2, dtype=jnp.uint32)

  y, x = jnp.arange(height), jnp.arange(width)
  rows, columns = jax.lax.optimization_barrier(
    (bits((y >= top) & (y < bottom)), bits((x >= left) & (x < right)))
  )
  first = jnp.full((boxes.shape[1], height, width), m, jnp.int32)
  for i in reversed(range(m // 32)):
    word = rows[:, i, :, None] & columns[:, i, None, :]
    first = jnp.where(word > 0, 32 * i + jax.lax.clz(word).astype(jnp.int32), first)
  first = jax.lax.optimization_barrier(first)

  low, high = jnp.zeros_like(area, jnp.int32), jnp.full_like(area, m, jnp.int32)
  for _ in range(m.bit_length()):
    middle = (low + high) // 2
    enough = (first < middle[:, None, None]).sum((1, 2)) >= area
    low, high = jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)
    low = jnp.minimum(low, high)
  return first, first < high[:, None, None]


def _elsewhere(
  images: Float[Array, "n h w c"],
  boxes: Int[Array, "4 n m"],
  places: Float[Array, "n 2 m"],
  first: Int[Array, "n h w"],
) -> Float[Array, "n h w c"]:
  """Fills every rectangle from one of equal size at a random place in the same image."""
  n, height, width, c = images.shape
  top, bottom, left, right = boxes
  index = jnp.minimum(first, boxes.shape[-1] - 1).reshape(n, -1)

  def offsets(start: Array, end: Array, place: Array, size: int) -> Array:
    target = jnp.floor(place * (size - (end - start) + 1)).astype(jnp.int32)
    offset = jnp.take_along_axis(target - start, index, axis=1)
    return offset.reshape(n, height, width)

  y = jnp.arange(height)[:, None] + offsets(top, bottom, places[:, 0], height)
  x = jnp.arange(width) + offsets(left, right, places[:, 1], width)
  flat = jnp.clip(y * width + x, 0, height * width - 1).reshape(n, -1, 1)
  return jnp.take_along_axis(images.reshape(n, -1, c), flat, axis=1).reshape(images.shape)


def _others(
  images: Float[Array, "n h w c"], numbers: Float[Array, "n"], views: int
) -> Float[Array, "n h w c"]:
  """For each image the same view of another radiograph, all others equally likely."""
  n = images.shape[0]
  count = n // views
  row = jnp.arange(n)
  shift = 1 + jnp.floor(numbers * (count - 1)).astype(jnp.int32)
  return images[(row // views + shift) % count * views + row % views]

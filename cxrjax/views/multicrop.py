"""Multi-crop: a few large and many small crops of each radiograph, made on the accelerator.

Per view: random resized crop and flip, rotation, gamma, brightness and contrast, blur and
solarisation, in that order. Everything is batched over images and views; nothing branches on data,
so the cost is the same in every step and linear in the crops' pixels.

References: Caron et al., "Unsupervised learning of visual features by contrasting cluster
assignments" (SwAV), 2020, arXiv 2006.09882 (multi-crop); Caron et al., "Emerging properties in
self-supervised vision transformers" (DINO), 2021, arXiv 2104.14294 (the defaults).
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray, UInt8

from cxrjax.core.errors import UserError
from cxrjax.views import base, intensity, resample, validation
from cxrjax.views.validation import Number, Pair

TRIES = 10  # boxes drawn before falling back, as in torchvision's RandomResizedCrop
DRAWS = 32  # uniform numbers per view; some are spare, so that a new feature changes no old run


class Draw(NamedTuple):
  """Random parameters of views; boxes in pixels of the image, sigma in pixels of the crop."""

  top: Float[Array, "b v"]
  left: Float[Array, "b v"]
  height: Float[Array, "b v"]
  width: Float[Array, "b v"]
  flip: Bool[Array, "b v"]
  angle: Float[Array, "b v"]
  brightness: Float[Array, "b v"]
  contrast: Float[Array, "b v"]
  brightness_first: Bool[Array, "b v"]
  sigma: Float[Array, "b v"]
  solarize: Bool[Array, "b v"]
  gamma: Float[Array, "b v"]


@dataclasses.dataclass(frozen=True)
class Recipe(base.Recipe):
  """Multi-crop views of gray images; the defaults are DINO's.

  `recipe(key, images)` gives `{"global": f32[global_crops b s s 1], "local": f32[...]}`,
  normalised to `(x - mean) / std` with x in 0..1; with `local_crops=0` there is no `"local"`. With
  masks there is `"global_mask"`, bool in the shape of `"global"`: the mask of each large crop.
  View `v` of image `i` depends only on `fold_in(key, i)` and `v`, not on the batch's size, its
  split over devices, or the number of views.

  Attributes:
    global_size: side of the large crops in pixels.
    global_crops: number of large crops.
    global_scale: range of their area, as a share of the image's; above 1 they contain the image
      and its repeated edge.
    local_size: side of the small crops in pixels.
    local_crops: number of small crops; 0 for none.
    local_scale: range of their area, as a share of the image's.
    ratio: range of a crop's width / height, log-uniform.
    flip: probability of swapping left and right (which moves the heart to the other side).
    gamma: gray levels in 0..1 are raised to the power e^u, u uniform in -gamma .. gamma, to
      vary exposure; 0 costs nothing.
    brightness: the factor is uniform in 1 - brightness .. 1 + brightness.
    contrast: the same, about the mean gray level of the crop.
    jitter_prob: probability of brightness and contrast, in random order.
    blur_prob: probability of a Gaussian blur: a number for each large crop in turn and a last one
      for the small crops, or a single number for all.
    blur_sigma: range of its standard deviation, in pixels.
    blur_size: side of the large crops, in pixels, that the greatest `blur_sigma` is for; it grows
      and shrinks with theirs. 0: for any.
    solarize_prob: probability of inverting the gray levels from `solarize_threshold` up; same form
      as `blur_prob`.
    solarize_threshold: in 0..1.
    rotate: largest rotation in degrees, either way; 0 costs nothing.
    mean: subtracted from the gray levels in 0..1.
    std: divides the difference.

  Raises:
    UserError: a field is out of its range.
  """

  global_size: int = 224
  global_crops: int = 2
  global_scale: Pair = (0.4, 1.0)
  local_size: int = 96
  local_crops: int = 8
  local_scale: Pair = (0.05, 0.4)
  ratio: Pair = (3 / 4, 4 / 3)
  flip: Number = 0.5
  gamma: Number = 0.0
  brightness: Number = 0.4
  contrast: Number = 0.4
  jitter_prob: Number = 0.8
  blur_prob: Number | tuple[Number, ...] = (1.0, 0.1, 0.5)
  blur_sigma: Pair = (0.1, 2.0)
  blur_size: int = 0
  solarize_prob: Number | tuple[Number, ...] = (0.0, 0.2, 0.0)
  solarize_threshold: Number = 0.5
  rotate: Number = 0.0
  mean: Number = 0.5
  std: Number = 0.25

  takes_masks = True

  def __post_init__(self):
    for name, least in (
      ("global_size", 1),
      ("global_crops", 1),
      ("local_size", 1),
      ("local_crops", 0),
      ("blur_size", 0),
    ):
      validation.require_int(self, name, least)
    for name in ("global_scale", "local_scale"):
      validation.interval(self, name, 1e-4, 4.0)
    validation.interval(self, "ratio", 1e-2, 1e2)
    validation.interval(self, "blur_sigma", 0.0)
    for name in ("flip", "jitter_prob", "solarize_threshold"):
      validation.require_float(self, name, 0.0, 1.0)
    for name in ("brightness", "contrast"):
      validation.require_float(self, name, 0.0, 1.0)
    validation.require_float(self, "gamma", 0.0, 2.0)
    for name in ("blur_prob", "solarize_prob"):
      validation.probabilities(self, name)
    validation.require_float(self, "rotate", 0.0, 180.0)
    validation.require_float(self, "mean")
    validation.require_float(self, "std", above=0.0)

  def check(self, image_size: int) -> None:
    """Raises a UserError if crops are larger, in pixels, than the stored images."""
    for name, used in (("global_size", True), ("local_size", self.local_crops > 0)):
      size = getattr(self, name)
      if used and size > image_size:
        raise UserError(
          f"config.views.{name}={size} is larger than the images, which are stored at "
          f"{image_size} px; set it to at most {image_size} or store larger images"
        )

  def __call__(
    self,
    key: PRNGKeyArray,
    images: Num[Array, "b h w 1"],
    index: Int[Array, "b"] | None = None,
    masks: UInt8[Array, "b h w 1"] | None = None,
  ) -> dict[str, Float[Array, "_ b _ _ 1"] | Bool[Array, "_ b _ _ 1"]]:
    """The views of a batch.

    Args:
      key: the step's key, threefry (other generators may depend on the batch's size).
      images: integers (0 .. the type's maximum) or floats in 0..1.
      index: position of each image in the whole batch, if `images` is a part of it; by default 0,
        1, ....
      masks: 0 or 1 per pixel.
    """
    if index is None:
      index = jnp.arange(images.shape[0])
    # Adding 0 times the images gives the index their sharding. Otherwise the crop matrices, which
    # depend on the index alone, would be replicated, and the images gathered to multiply them.
    index = index + 0 * images[:, 0, 0, 0].astype(index.dtype)
    count = self.global_crops + self.local_crops
    numbers = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (count, DRAWS)))(
      index
    )
    large = self._boxes(numbers[:, : self.global_crops], images.shape[1:3], local=False)
    views = {"global": self._views(large, images, local=False)}
    if masks is not None:
      views["global_mask"] = self._masks(large, masks)
    if self.local_crops:
      small = self._boxes(numbers[:, self.global_crops :], images.shape[1:3], local=True)
      views["local"] = self._views(small, images, local=True)
    return views

  def draw(self, numbers: Float[Array, "b v n"], height: int, width: int, local: bool) -> Draw:
    """Maps uniform numbers to parameters of large or small crops of `height` x `width` images."""
    box = random_box(
      numbers[..., : 2 * TRIES + 2],
      self.local_scale if local else self.global_scale,
      self.ratio,
      height,
      width,
    )
    flip, jittered, bright, contrast, first, blurred, sigma, solarized, angle, gamma = jnp.moveaxis(
      numbers[..., 2 * TRIES + 2 : 2 * TRIES + 12], -1, 0
    )
    jittered = jittered < self.jitter_prob
    low, high = self.blur_sigma
    if self.blur_size:
      high = high * self.global_size / self.blur_size
    count = numbers.shape[1]
    return Draw(
      *box,
      flip=flip < self.flip,
      angle=(2.0 * angle - 1.0) * math.radians(self.rotate),
      brightness=jnp.where(jittered, 1.0 + self.brightness * (2.0 * bright - 1.0), 1.0),
      contrast=jnp.where(jittered, 1.0 + self.contrast * (2.0 * contrast - 1.0), 1.0),
      brightness_first=first < 0.5,
      sigma=jnp.where(
        blurred < _per_crop(self.blur_prob, count, local), low + (high - low) * sigma, 0.0
      ),
      solarize=solarized < _per_crop(self.solarize_prob, count, local),
      gamma=jnp.exp(self.gamma * (2.0 * gamma - 1.0)),
    )

  def _boxes(self, numbers, shape, local):
    """The parameters of the large or small crops, and the matrices that cut them out."""
    height, width = shape
    size = self.local_size if local else self.global_size
    # The barrier keeps XLA from recomputing the draws for every pixel that they are used in.
    drawn = jax.lax.optimization_barrier(self.draw(numbers, height, width, local))
    # A rotation reaches beyond the box, so the crop is enlarged at the same scale.
    margin = resample.rotation_margin(size, self.rotate) if self.rotate else 0
    wide_size, margin_share = size + 2 * margin, margin / size
    rows = resample.crop_matrix(
      drawn.top - margin_share * drawn.height, drawn.height * (wide_size / size), height, wide_size
    )
    columns = resample.crop_matrix(
      drawn.left - margin_share * drawn.width,
      drawn.width * (wide_size / size),
      width,
      wide_size,
      drawn.flip,
    )
    return drawn, rows, columns

  def _masks(self, boxes, masks):
    """Masks of the large crops, bool[v b s s 1]."""
    drawn, rows, columns = boxes
    x = _cut(rows, masks, columns)
    x = resample.rotate(x, drawn.angle, self.global_size) if self.rotate else x
    return jnp.moveaxis(x > 0.5, 1, 0)[..., None]

  def _views(self, boxes, images, local):
    """The large or small crops, f32[v b s s 1]."""
    drawn, rows, columns = boxes
    size = self.local_size if local else self.global_size
    x = _cut(rows, images, columns) * resample.unit(images.dtype)
    x = jnp.clip(x, 0.0, 1.0)  # bicubic overshoots
    if self.rotate:
      x = resample.rotate(x, drawn.angle, size)
    if self.gamma:
      x = x ** drawn.gamma[..., None, None]
    if self.jitter_prob and (self.brightness or self.contrast):
      x = intensity.jitter(x, drawn.brightness, drawn.contrast, drawn.brightness_first)
    if any(_values(self.blur_prob, local)):
      x = intensity.blur(x, drawn.sigma)
    if any(_values(self.solarize_prob, local)):
      x = intensity.solarize(x, self.solarize_threshold, drawn.solarize)
    return jnp.moveaxis((x - self.mean) / self.std, 1, 0)[..., None]


def random_box(
  numbers: Float[Array, "*b n"],
  scale: tuple[float, float],
  ratio: tuple[float, float],
  height: int,
  width: int,
) -> tuple[Float[Array, "*b"], Float[Array, "*b"], Float[Array, "*b"], Float[Array, "*b"]]:
  """The box of torchvision's RandomResizedCrop, not rounded to whole pixels.

  The first of ten draws of (area, ratio) that fits into the image is taken or, if none does, the
  largest central box with an allowed ratio. If the range of the area exceeds the image's, a box's
  sides may exceed the image's accordingly, and the image lies anywhere in the box.

  Args:
    numbers: 22 uniform numbers in [0, 1): ten areas, ten ratios, the position.
    scale: range of the area as a share of the image's, uniform; at most 4.
    ratio: range of width / height, log-uniform.
    height: of the image in pixels.
    width: of the image in pixels.

  Returns:
    top, left, height, width in pixels.
  """
  area = height * width * (scale[0] + (scale[1] - scale[0]) * numbers[..., :TRIES])
  low, high = math.log(ratio[0]), math.log(ratio[1])
  aspect = jnp.exp(low + (high - low) * numbers[..., TRIES : 2 * TRIES])
  widths, heights = jnp.sqrt(area * aspect), jnp.sqrt(area / aspect)
  room = math.sqrt(max(1.0, scale[1]))
  fits = (widths <= width * room) & (heights <= height * room)
  fallback = min(max(width / height, ratio[0]), ratio[1])
  w = jnp.full(numbers.shape[:-1], min(width, height * fallback), jnp.float32)
  h = jnp.full(numbers.shape[:-1], min(height, width / fallback), jnp.float32)
  for i in reversed(range(TRIES)):  # the first that fits is written last
    w = jnp.where(fits[..., i], widths[..., i], w)
    h = jnp.where(fits[..., i], heights[..., i], h)
  has_fit = jnp.any(fits, axis=-1)
  top = (height - h) * jnp.where(has_fit, numbers[..., 2 * TRIES], 0.5)
  left = (width - w) * jnp.where(has_fit, numbers[..., 2 * TRIES + 1], 0.5)
  return top, left, h, w


def _cut(rows, images, columns):
  """Crops [b v o p] of images [b h w 1]."""
  # The pixels enter the product as integers. The first product serves all crops of an image; the
  # second is per crop.
  x = resample.product("bvoh,bhw->bvow", rows, images[..., 0])
  return resample.product("bvow,bvpw->bvop", x, columns)


def _values(prob: Number | tuple[Number, ...], local: bool) -> tuple[Number, ...]:
  """Probabilities of the large or small crops."""
  assert isinstance(prob, tuple)  # normalised by `Recipe.__post_init__`
  return prob[-1:] if local else prob[:-1]


def _per_crop(prob: Number | tuple[Number, ...], count: int, local: bool) -> Float[Array, "v"]:
  """Probability of each of `count` crops, cycling through the values."""
  values = _values(prob, local)
  return jnp.asarray([values[i % len(values)] for i in range(count)], jnp.float32)

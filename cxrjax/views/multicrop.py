"""Multi-crop: a few large and many small crops of each radiograph, made on the accelerator.

References: Caron et al., SwAV, 2020, arXiv 2006.09882 (multi-crop); Caron et al., DINO, 2021,
arXiv 2104.14294, section 3 and appendix (probabilities, scales).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from cxrjax.core.errors import UserError
from cxrjax.views import intensity, resample

TRIES = 10  # boxes drawn before falling back, as torchvision's RandomResizedCrop does
DRAWS = 4 * TRIES  # uniform numbers a view owns: its row never moves when a feature is added


class Draw(NamedTuple):
  """What is random about one view of one image. Boxes in pixels of the image."""

  top: Float[Array, "*b"]
  left: Float[Array, "*b"]
  height: Float[Array, "*b"]
  width: Float[Array, "*b"]
  flip: Bool[Array, "*b"]
  brightness: Float[Array, "*b"]
  contrast: Float[Array, "*b"]
  brightness_first: Bool[Array, "*b"]
  sigma: Float[Array, "*b"]
  solarize: Bool[Array, "*b"]
  angle: Float[Array, "*b"]


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Multi-crop views of gray images. The defaults are DINO's.

  `recipe(key, images)` gives `{"global": f32[global_crops b s s 1], "local": f32[...]}`,
  normalised to `(x - mean) / std` with x in 0..1; with `local_crops=0` there is no `"local"`.
  View `v` of image `i` is a function of `fold_in(key, i)` and nothing else: not of the batch's
  size, its split over devices, nor the number of views.

  Attributes:
    global_size: side of the large crops in pixels.
    global_crops: how many.
    global_scale: range of their area, as a share of the image's.
    local_size: side of the small crops in pixels.
    local_crops: how many; 0 for none.
    local_scale: range of their area.
    ratio: range of width / height of a crop's box, log-uniform.
    flip: probability of a left-right flip.
    brightness: factor uniform in 1 - brightness .. 1 + brightness.
    contrast: the same, about the mean of the crop.
    jitter_prob: probability of brightness and contrast, in random order.
    blur_prob: probability of a Gaussian blur: the large crops' in turn, then the small ones'.
    blur_sigma: range of its standard deviation in pixels of the crop.
    solarize_prob: probability of inverting what is brighter than `solarize_threshold`, given as
      `blur_prob` is.
    solarize_threshold: in 0..1.
    rotate: largest rotation in degrees, either way; 0 costs nothing.
    mean: subtracted from the gray levels in 0..1.
    std: divides what is left.
  """

  global_size: int = 224
  global_crops: int = 2
  global_scale: tuple[float, float] = (0.4, 1.0)
  local_size: int = 96
  local_crops: int = 8
  local_scale: tuple[float, float] = (0.05, 0.4)
  ratio: tuple[float, float] = (3 / 4, 4 / 3)
  flip: float = 0.5
  brightness: float = 0.4
  contrast: float = 0.4
  jitter_prob: float = 0.8
  blur_prob: tuple[float, ...] = (1.0, 0.1, 0.5)
  blur_sigma: tuple[float, float] = (0.1, 2.0)
  solarize_prob: tuple[float, ...] = (0.0, 0.2, 0.0)
  solarize_threshold: float = 0.5
  rotate: float = 0.0
  mean: float = 0.5
  std: float = 0.25

  def check(self, image_size: int) -> None:
    """Raises a UserError where a crop would have more pixels than the stored images."""
    for name, used in (("global_size", True), ("local_size", self.local_crops > 0)):
      size = getattr(self, name)
      if used and size > image_size:
        raise UserError(
          f"config.views.{name}={size} is larger than the images, which are stored at "
          f"{image_size} px; set it to at most {image_size} or store larger images")

  def __call__(
      self, key: PRNGKeyArray, images: Num[Array, "b h w 1"], index: Int[Array, "b"] | None = None,
  ) -> dict[str, Float[Array, "v b s s 1"]]:
    """The views of a batch.

    Args:
      key: the step's key (threefry).
      images: integers (0 .. the type's maximum) or floats in 0..1.
      index: position of each image in the whole batch; by default 0, 1, ....
    """
    if index is None:
      index = jnp.arange(images.shape[0])
    count = self.global_crops + self.local_crops
    uniform = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (count, DRAWS)))
    uniform = uniform(index)
    x = resample.to_unit(images)[..., 0]
    n = self.global_crops
    views = {"global": self._views(uniform[:, :n], x, False)}
    if self.local_crops:
      views["local"] = self._views(uniform[:, n:], x, True)
    return views

  def _views(self, u, x, local):
    d = self.draw(u, x.shape[1], x.shape[2], local)
    size = self.local_size if local else self.global_size
    rows = resample.crop_matrix(d.top, d.height, x.shape[1], size)
    columns = resample.crop_matrix(d.left, d.width, x.shape[2], size, d.flip)
    y = jnp.einsum("bvoh,bhw->bvow", rows, x)
    y = jnp.clip(jnp.einsum("bvow,bvpw->bvop", y, columns), 0.0, 1.0)
    y = intensity.jitter(y, d.brightness, d.contrast, d.brightness_first)
    y = intensity.blur(y, d.sigma)
    y = intensity.solarize(y, self.solarize_threshold, d.solarize)
    return jnp.moveaxis((y - self.mean) / self.std, 1, 0)[..., None]

  def draw(self, u: Float[Array, "b v n"], h: int, w: int, local: bool) -> Draw:
    """Turns uniform numbers into the parameters of the large or the small crops."""
    count = u.shape[1]

    def each(prob):
      values = prob[-1:] if local else prob[:-1]
      return jnp.asarray([values[i % len(values)] for i in range(count)])

    box = random_box(u[..., :4 * TRIES - 8], self.local_scale if local else self.global_scale,
                     self.ratio, h, w)
    flip, apply, b, c, order, blurred, sigma, sol = jnp.moveaxis(u[..., -8:], -1, 0)
    apply = apply < self.jitter_prob
    low, high = self.blur_sigma
    return Draw(
      *box,
      flip=flip < self.flip,
      brightness=jnp.where(apply, 1 + self.brightness * (2 * b - 1), 1.0),
      contrast=jnp.where(apply, 1 + self.contrast * (2 * c - 1), 1.0),
      brightness_first=order < 0.5,
      sigma=jnp.where(blurred < each(self.blur_prob), low + (high - low) * sigma, 0.0),
      solarize=sol < each(self.solarize_prob),
      angle=jnp.zeros_like(flip),
    )


def random_box(u, scale, ratio, h, w):
  """torchvision's RandomResizedCrop: ten tries, then the largest central box of allowed ratio."""
  area = h * w * (scale[0] + (scale[1] - scale[0]) * u[..., :TRIES])
  low, high = jnp.log(ratio[0]), jnp.log(ratio[1])
  aspect = jnp.exp(low + (high - low) * u[..., TRIES:2 * TRIES])
  width, height = jnp.sqrt(area * aspect), jnp.sqrt(area / aspect)
  fits = (width <= w) & (height <= h)
  first = fits & (jnp.cumsum(fits, axis=-1) == 1)
  any_fits = jnp.any(fits, axis=-1)
  back_w, back_h = (w, w / ratio[0]) if w / h < ratio[0] else (
    (h * ratio[1], h) if w / h > ratio[1] else (w, h))
  width = jnp.where(any_fits, jnp.sum(jnp.where(first, width, 0), -1), back_w)
  height = jnp.where(any_fits, jnp.sum(jnp.where(first, height, 0), -1), back_h)
  top = (h - height) * jnp.where(any_fits, u[..., 2 * TRIES], 0.5)
  left = (w - width) * jnp.where(any_fits, u[..., 2 * TRIES + 1], 0.5)
  return top, left, height, width

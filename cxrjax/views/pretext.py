"""Views for pretext tasks: a crop of each radiograph, and a jigsaw puzzle or a rotated crop of it.

Crops, jitter, blur and solarisation are those of `cxrjax.views.multicrop`.

References: Noroozi and Favaro, "Unsupervised learning of visual representations by solving jigsaw
puzzles", 2016, arXiv 1603.09246; Gidaris et al., "Unsupervised representation learning by
predicting image rotations", 2018, arXiv 1803.07728; Misra and van der Maaten, "Self-supervised
learning of pretext-invariant representations" (PIRL), 2019, arXiv 1912.01991 (the defaults).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from cxrjax.views import multicrop, validation
from cxrjax.views.validation import Number, Pair

SIDE = 3  # cells per side of a puzzle


@dataclasses.dataclass(frozen=True)
class _Photometric(multicrop.Recipe):
  """Multi-crop with PIRL's defaults: its crop of the image, and gray levels always changed.

  The authors also posterise, sharpen, solarise and stretch two views of three, at random.
  """

  global_scale: Pair = (0.08, 1.0)
  jitter_prob: Number = 1.0
  blur_prob: Number | tuple[Number, ...] = 0.0
  solarize_prob: Number | tuple[Number, ...] = 0.0

  takes_masks = False


@dataclasses.dataclass(frozen=True)
class Jigsaw(_Photometric):
  """One crop of each image, and nine patches of another in random order.

  `recipe(key, images)` gives `{"global": f32[1 b s s 1], "patches": f32[9 b p p 1]}`, normalised as
  multi-crop's. The crop for the patches is divided into 3x3 cells. Each patch is a random square
  inside a cell, flipped and jittered independently. It is cut directly out of the image and thus
  resampled once: a `local_size` at another scale than the crop's costs no sharpness.

  Attributes:
    local_size: side of a patch in pixels.
    local_scale: range of the area of the crop for the patches, as a share of the image's.
    local_share: side of a patch as a share of that crop's, at most 1/3. The paper resizes the crop
      to 255 pixels and takes patches of 64 (cells have 85).

  The other attributes are those of `multicrop.Recipe`.

  Raises:
    UserError: a field is out of its range.
  """

  global_crops: int = dataclasses.field(default=1, init=False)
  local_crops: int = dataclasses.field(default=SIDE * SIDE, init=False)
  local_size: int = 64
  local_scale: Pair = (0.6, 1.0)
  local_share: Number = 64 / 255

  def __post_init__(self):
    super().__post_init__()
    validation.require_float(self, "local_share", 0.01, 1 / SIDE)

  def __call__(  # type: ignore[override]
    self, key: PRNGKeyArray, images: Num[Array, "b h w 1"], index: Int[Array, "b"] | None = None
  ) -> dict[str, Float[Array, "_ b _ _ 1"]]:
    """The views of a batch; arguments as in `multicrop.Recipe`."""
    views = super().__call__(key, images, index)
    return {"global": views["global"], "patches": views["local"]}

  def draw(
    self, numbers: Float[Array, "b v n"], height: int, width: int, local: bool
  ) -> multicrop.Draw:
    """Maps uniform numbers to parameters of the crop, or of the nine patches in their order."""
    drawn = super().draw(numbers, height, width, local)
    if not local:
      return drawn
    # Patches need no random boxes, so those numbers are free for the crop that they share.
    tries = multicrop.TRIES
    crop = jnp.concatenate(
      [numbers[:, 0, :tries], numbers[:, 1, :tries], numbers[:, 2, :2]], axis=-1
    )
    top, left, tall, wide = (
      x[:, None] for x in multicrop.random_box(crop, self.local_scale, self.ratio, height, width)
    )
    down, right, rank = jnp.moveaxis(numbers[:, :, tries : tries + 3], -1, 0)
    cell = jnp.argsort(rank, axis=1)
    slack = 1 / SIDE - self.local_share
    return drawn._replace(
      top=top + tall * (cell // SIDE / SIDE + slack * down),
      left=left + wide * (cell % SIDE / SIDE + slack * right),
      height=jnp.broadcast_to(self.local_share * tall, cell.shape),
      width=jnp.broadcast_to(self.local_share * wide, cell.shape),
    )


@dataclasses.dataclass(frozen=True)
class Rotation(_Photometric):
  """One crop of each image, and another rotated by 0, 90, 180 or 270 degrees.

  `recipe(key, images)` gives `{"global": f32[1 b s s 1], "rotated": f32[1 b s s 1]}`, normalised as
  multi-crop's. The attributes are those of `multicrop.Recipe`; both crops are drawn like its large
  ones.

  Raises:
    UserError: a field is out of its range.
  """

  global_crops: int = dataclasses.field(default=2, init=False)
  local_crops: int = dataclasses.field(default=0, init=False)

  def __call__(  # type: ignore[override]
    self, key: PRNGKeyArray, images: Num[Array, "b h w 1"], index: Int[Array, "b"] | None = None
  ) -> dict[str, Float[Array, "_ b _ _ 1"]]:
    """The views of a batch; arguments as in `multicrop.Recipe`."""
    crop_key, turn_key = jax.random.split(key)
    if index is None:
      index = jnp.arange(images.shape[0])
    views = super().__call__(crop_key, images, index)["global"]
    # As in multi-crop, gives the index the images' sharding.
    index = index + 0 * images[:, 0, 0, 0].astype(index.dtype)
    turns = jax.vmap(lambda i: jax.random.randint(jax.random.fold_in(turn_key, i), (), 0, 4))(index)
    return {"global": views[:1], "rotated": quarter_turns(views[1:], turns)}


def quarter_turns(
  x: Float[Array, "v b n n 1"], turns: Int[Array, "b"]
) -> Float[Array, "v b n n 1"]:
  """Rotates square images counterclockwise by 0 to 3 times 90 degrees."""
  turns = turns[:, None, None, None]
  x = jnp.where(turns >= 2, jnp.flip(x, (2, 3)), x)
  return jnp.where(turns % 2 == 1, jnp.rot90(x, axes=(2, 3)), x)

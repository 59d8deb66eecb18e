"""Base class of encoders, which declares what a network can do besides giving features."""

from __future__ import annotations

import abc
from typing import Any

import jax

from cxrjax.models import module


class Encoder(abc.ABC):
  """A network that encodes images, as a frozen dataclass of options; parameters are apart.

  Subclasses define `features`, the length of the feature vectors, `init` and `encode`. What else
  methods, decoders and explanations ask of a network stands below, with the defaults of a network
  that does not have it.

  Attributes:
    channels: image channels; 1 for radiographs.
    standardize: whether it brings every image to mean 0 and standard deviation 1 first.
    dtype: type of the activations, which heads share.
    initial: kernel initializer, which heads share; None: the heads' own.
    patch_size: sides of images must be multiples of it, in pixels.
    pool: source of `Features.cls`: "cls", a class token; "mean", the mean of the patches; or "".
    remat: whether blocks are recomputed in the backward pass; None if they cannot be.
    drops_patches: whether `encode` takes `keep`.
    masks_patches: whether `encode` takes `mask`.
    takes_target: whether there is an option `target`, the devices that it will run on, which the
      program sets.
  """

  channels: int = 1
  standardize: bool = False
  dtype: str = "float32"
  initial: str | None = None
  patch_size: int = 1
  pool: str = ""
  remat: bool | None = None
  drops_patches = False
  masks_patches = False
  takes_target = False

  @property
  def layer_names(self) -> tuple[str, ...]:
    """Regular expressions for the parameters of each layer, input first, as for layer-wise decay.

    The last norm belongs to the head.
    """
    return ()

  @property
  def attention_heads(self) -> int:
    """Heads of every block, with the intermediates "attn:I"; 0 without global attention."""
    return 0

  @property
  def blocks(self) -> int:
    """Number of blocks, with the intermediates "block:I" and "norm:I"."""
    return 0

  @property
  def stages(self) -> int:
    """Number of stages, with the intermediates "stage:I"."""
    return 0

  @property
  def stride(self) -> int:
    """Pixels per side of a cell of the grid of `Features.patches`."""
    return self.patch_size

  def grid(self, image_shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of `Features.patches` for an image of (height, width, ...) pixels."""
    return image_shape[0] // self.stride, image_shape[1] // self.stride

  @abc.abstractmethod
  def init(self, key: jax.Array) -> module.Params:
    """Fresh parameters: a nested dict of float32 arrays, a function of the key."""

  @abc.abstractmethod
  def encode(
    self,
    params: module.Params,
    x: Any,
    *,
    keys: Any = None,
    intermediates: tuple[str, ...] = (),
    patches: bool = True,
    train: bool = False,
  ) -> Any:
    """Encodes a batch of normalized images, f32[b h w c], or a sequence of batches of other sizes.

    Args:
      params: from `init`.
      x: the images.
      keys: one PRNG key per image for drop path; None: no drop path.
      intermediates: names of additional outputs; networks with some also take `add_at`, offsets to
        add to them (see `cxrjax.models.vit.Model`).
      patches: False omits the patch features.
      train: batch norm normalizes by the batch.

    Returns:
      `Features`, or a tuple of them where `x` is a sequence.
    """

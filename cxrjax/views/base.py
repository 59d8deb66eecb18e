"""Base class of recipes, which make the views that a method learns from."""

from __future__ import annotations

import abc

from jaxtyping import Array, Float, Int, Num, PRNGKeyArray


class Recipe(abc.ABC):
  """Makes the views of a batch, on the device; a frozen dataclass of options.

  Attributes:
    takes_masks: whether `__call__` takes `masks`, lung masks bool[b h w 1], to give
      `"global_mask"`.
  """

  takes_masks = False

  def check(self, size: int) -> None:  # noqa: B027 - a recipe may go with any
    """Raises a UserError for options that do not go with images stored at `size` pixels."""

  @abc.abstractmethod
  def __call__(
    self, key: PRNGKeyArray, images: Num[Array, "b h w 1"], index: Int[Array, "b"] | None = None
  ) -> dict[str, Float[Array, "_ b _ _ 1"]]:
    """Views by name, as in `cxrjax.views.multicrop.Recipe`.

    Args:
      key: of the step.
      images: stored pixels.
      index: numbers of the images, from which, with the key, all randomness comes.
    """

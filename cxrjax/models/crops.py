"""Batches of crops of several sizes, which an encoder takes in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import Array, Float


class Crops(NamedTuple):
  """Crops of one size and what belongs to each, see `cxrjax.models.vit.Model.encode`."""

  images: Float[Array, "b h w c"]
  keys: Any = None
  keep: Any = None
  mask: Any = None


def by_size(images: Any, keys: Any = None, keep: Any = None, mask: Any = None) -> tuple[Crops, ...]:
  """Pairs each batch with its options.

  Args:
    images: a batch, or a sequence of batches.
    keys: for `images` a batch None or its option; for a sequence None or a sequence of these.
    keep: like `keys`.
    mask: like `keys`.
  """
  if not isinstance(images, Sequence):
    return (Crops(images, keys, keep, mask),)
  options = ((None,) * len(images) if option is None else option for option in (keys, keep, mask))
  return tuple(Crops(*values) for values in zip(images, *options, strict=True))

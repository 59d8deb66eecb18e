"""Pretrained weights in: files of other libraries, and of networks of another size."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from cxrjax.core.errors import UserError
from cxrjax.models.module import Params
from cxrjax.models.weights import files, layouts, tree
from cxrjax.models.weights.adapt import adapt, family_of
from cxrjax.models.weights.report import Report

__all__ = ["Report", "fit", "load"]


def load(
  path: str | pathlib.Path,
  encoder: Any,
  key: str = "config.init.path",
  *,
  mean: float = 0.5,
  std: float = 0.25,
) -> tuple[Params, Report]:
  """Parameters for `encoder` from a weights file.

  Read are .safetensors, .npz and torch's checkpoints (.pth, .pt, .bin; without torch, and without
  running what a pickle asks for) in the layouts of timm, DINO, DINOv2, MAE, MoCo v3, torchvision
  (ResNet, DenseNet, InceptionV3), transformers (ViT, DINOv2), big_vision, and `cxrjax.export`. The
  arrays' names and shapes tell which. Of several copies in a checkpoint the teacher is taken.

  Parameters agree with the source like this: where x is a gray image in 0..1, the encoder given
  (x - mean) / std computes what the source's network computes of x in all three channels, after
  the source's own normalisation. That is folded into the first layer: ImageNet's mean and
  deviation, or 0.5 and 0.5 for big_vision, transformers' ViT and Inception, unless a `config.json`
  (timm) or `preprocessor_config.json` (transformers) beside the file says otherwise. Where the
  first layer pads its images with zeros (ResNet, DenseNet), a zero is another gray than in the
  source, so that agreement ends a few pixels from the border. With `encoder.standardize` nothing is
  folded: the standardised image takes the place of the normalised one.

  Kernels for three channels are summed to one. Patches of another size and positions for another
  number of patches are resampled. What the file has no parameter for (a mask token, registers)
  starts fresh from a fixed key; layer scale that only one side has is folded in, or 1. Arrays that
  are no head's and that the encoder has no place for are an error: its features would be others.

  Args:
    path: of the file.
    encoder: of `cxrjax.models`.
    key: the config key that names the file, for errors.
    mean: subtracted from the gray levels in 0..1 of the images that the encoder will see.
    std: divides what is left.

  Returns:
    The parameters as `encoder.init` gives them, float32, and what became of the file's arrays.

  Raises:
    UserError: no weights file, a damaged or unsafe one, an unknown layout, another network,
      missing or unexpected arrays, or numbers that are not finite.
  """
  file = files.read(path, key)
  with _of_any_shape(file.named):
    return adapt(layouts.recognise(file), encoder, file.named, str(path), (mean, std))


@contextlib.contextmanager
def _of_any_shape(named: str) -> Iterator[None]:
  """Says in one line that a file's arrays, which may have any shapes, are not a network's."""
  try:
    yield
  except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, OSError) as error:
    raise UserError(
      f"{named} is damaged, or its arrays are not those of its network "
      f"({type(error).__name__}: {str(error)[:200]}); fetch it again"
    ) from error


def fit(params: Params, encoder: Any, key: str = "config.init.path") -> tuple[Params, Report]:
  """Parameters of one encoder of ours as those of another of its family.

  Image size, patch size, channels, mask token and layer scale may differ, and registers be added,
  as in `load`. Pixels are taken to be normalised alike.

  Args:
    params: as `init` of the other encoder gives them.
    encoder: that they shall fit.
    key: the config key that they are from, for errors.

  Returns:
    See `load`.

  Raises:
    UserError: another network, missing parameters, or numbers that are not finite.
  """
  flat = {name: np.asarray(value) for name, value in tree.flatten(params).items()}
  found = layouts.of_ours(flat, family_of(encoder), key)
  return adapt(found, encoder, key, "", None)

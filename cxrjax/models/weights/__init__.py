"""Loads pretrained weights of other libraries, and of networks of other sizes."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from cxrjax.core.errors import UserError
from cxrjax.models.module import Params
from cxrjax.models.weights import files, layouts
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
  """Loads parameters for `encoder` from a weights file.

  Supports .safetensors, .npz and torch's checkpoints (.pth, .pt, .bin; without torch, and without
  executing a pickle's code) in the layouts of timm, DINO, DINOv2, MAE, MoCo v3, torchvision
  (ResNet, DenseNet, InceptionV3), transformers (ViT, DINOv2), big_vision, and `cxrjax.export`,
  recognized by the arrays' names and shapes. Of several copies in a checkpoint the teacher is used.

  For a gray image x in 0..1, the encoder applied to (x - mean) / std computes what the source's
  network computes from x in all three channels, after the source's own normalization. The latter is
  folded into the first layer: ImageNet's mean and standard deviation, or 0.5 and 0.5 for
  big_vision, transformers' ViT and Inception, unless a `config.json` (timm) or
  `preprocessor_config.json` (transformers) beside the file says otherwise. Where the first layer
  pads its images with zeros (ResNet, DenseNet), a zero is a different gray than in the source, so
  that outputs differ within a few pixels of the border. With `encoder.standardize` nothing is
  folded: the standardized image takes the place of the normalized one.

  Kernels for three channels are summed to one. Patches of another size and positions for another
  number of patches are resampled. Parameters that the file lacks (a mask token, registers) start
  fresh from a fixed key; layer scale that only one side has is folded in, or 1. Arrays outside a
  head that the encoder does not have are an error: its features would differ.

  Args:
    path: path of the file.
    encoder: an encoder of `cxrjax.models`.
    key: the config key that names the file, for errors.
    mean: subtracted from the gray levels in 0..1 of the encoder's images.
    std: divides the result.

  Returns:
    The parameters in the structure of `encoder.init`, float32, and the report on the file's arrays.

  Raises:
    UserError: no weights file, a damaged or unsafe one, an unknown layout, another network,
      missing or unexpected arrays, or numbers that are not finite.
  """
  file = files.read(path, key)
  with _of_any_shape(file.named):
    return adapt(layouts.recognize(file), encoder, file.named, str(path), (mean, std))


@contextlib.contextmanager
def _of_any_shape(named: str) -> Iterator[None]:
  """Turns errors from arrays of unexpected shapes into a one-line UserError."""
  try:
    yield
  except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, OSError) as error:
    raise UserError(
      f"{named} is damaged, or its arrays are not those of its network "
      f"({type(error).__name__}: {str(error)[:200]}); fetch it again"
    ) from error


def fit(params: Params, encoder: Any, key: str = "config.init.path") -> tuple[Params, Report]:
  """Adapts parameters of one of our encoders to another of its family.

  Image size, patch size, channels, mask token and layer scale may differ, and registers be added,
  as in `load`. Pixels are assumed to be normalized alike.

  Args:
    params: parameters in the structure of `init` of the other encoder.
    encoder: the encoder to adapt them to.
    key: the config key of their origin, for errors.

  Returns:
    See `load`.

  Raises:
    UserError: another network, missing parameters, or numbers that are not finite.
  """
  flat = {name: np.asarray(value) for name, value in flatten_dict(params, sep="/").items()}
  network = layouts.from_cxrjax(flat, family_of(encoder), key)
  return adapt(network, encoder, key, "", None)

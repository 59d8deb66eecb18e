"""What a run's network looks at, for its page: maps over test images, and their lung scores."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int64

from cxrjax.data.images import Images
from cxrjax.evals import features, linear
from cxrjax.explain.maps import Head
from cxrjax.models.module import Params


def probe(
    network: Any, params: Params, images: Images, mean: float, std: float) -> Head | None:
  """A linear probe's logits as a head on the features; None without labels of two kinds."""
  def encode(params: Params, x: Any) -> Any:
    return network.encode(params, x).cls

  if not len(images.info.classes):
    return None
  x = features.extract(encode, params, images, mean=mean, std=std)
  labels = np.asarray(images.labels)
  if not np.isfinite(x).all() or not np.isfinite(labels).any():
    return None
  (fitted,) = linear.fit(x, labels, images.info.exclusive, (1e-2,))
  if not fitted.fitted.any():
    return None
  kernel = fitted.weight / fitted.scale[:, None]
  bias = np.where(fitted.fitted, fitted.bias - fitted.centre @ kernel, -np.inf)
  return Head(kernel.astype(np.float32), bias.astype(np.float32))


def chosen(images: Images, count: int) -> Int64[np.ndarray, "m"]:
  """Images of every class in turn, without labels at even steps."""
  labels = np.asarray(images.labels)
  of_class = [np.flatnonzero(labels[:, c] == 1) for c in range(labels.shape[1])]
  order = [of[i] for i in range(count) for of in of_class if i < len(of)]
  if not order:
    return np.linspace(0, len(images) - 1, min(count, len(images))).astype(np.int64)
  return np.array(list(dict.fromkeys(order))[:count], np.int64)



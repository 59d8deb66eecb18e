"""Pseudo masks: a finished segmentation run predicts lung masks for images without one.

They are cached beside the decoded images, under the fingerprint of the run that drew them.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
import tqdm
from jax.sharding import Mesh
from jaxtyping import Array, Float

from cxrjax.core import cache_folder
from cxrjax.core.atomic_files import atomic_path
from cxrjax.core.errors import UserError
from cxrjax.data.images import Images
from cxrjax.data.loading import cache_file
from cxrjax.evals import features
from cxrjax.inference import networks
from cxrjax.views import resample

OWN, NONE = ("own", "True", "true", True), ("", "False", "false", False, None)
VERSION = 1
_CHUNK = 1024  # images predicted at a time, to bound memory


def parse_option(value: Any) -> tuple[bool, str]:
  """Parses `config.data.masks`: whether to use lung masks, and the workdir to predict them with."""
  if value in NONE:
    return False, ""
  return True, "" if value in OWN else str(value)


@dataclasses.dataclass(frozen=True, eq=False)
class Segmenter:
  """A finished segmentation run, applied to decoded images of any size.

  Attributes:
    network: the restored network.
  """

  network: networks.Network

  @classmethod
  def load(cls, workdir: str) -> Segmenter:
    """Loads a workdir; raises a UserError unless it is a finished segmentation run."""
    return cls(networks.segmenter(workdir, "config.data.masks"))

  def predict(self, params: Any, gray: Float[Array, "b s s 1"]) -> Float[Array, "b s s 1"]:
    """Lung probability of every pixel of images in 0..1, at their own size."""
    network, side = self.network, gray.shape[1]
    x = (resample.resize(gray, network.image_size) - network.mean) / network.std
    return resample.resize(network.outputs(params, x)["mask"], side)

  def masks(self, images: Images, mesh: Mesh | None = None) -> np.ndarray:
    """Lung masks u8[n s s 1]: lungs 1, background 0."""
    probabilities = features.extract(
      self.predict, self.network.params, images, mean=0.0, std=1.0, mesh=mesh, vectors=False
    )[..., 0]
    masks = np.stack([self.network.lungs(probability) for probability in probabilities])
    return masks.astype(np.uint8)[..., None]


def fill(
  images: Images,
  workdir: str,
  *,
  cache_dir: str | os.PathLike | None = None,
  mesh: Mesh | None = None,
  progress: bool = True,
  look: Any = None,
) -> Images:
  """Completes lung masks: images without one get a predicted one.

  Args:
    images: decoded.
    workdir: of a finished segmentation run.
    cache_dir: as in `data.loading.decoded_cache.load_images`.
    mesh: devices to predict on; unused with several processes, each of which has all masks.
    progress: show a bar.
    look: what else determines the pixels (fit, window), JSON-able.

  Raises:
    UserError: no such run, or a cache that cannot be written.
  """
  segmenter = Segmenter.load(workdir)
  content = [
    VERSION,
    segmenter.network.run.fingerprint,
    images.info.fingerprint,
    images.info.split,
    list(images.pixels.shape),
    images.bits,
    look,
    hashlib.sha256("\0".join(images.ids).encode()).hexdigest(),
  ]
  digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]
  size = images.pixels.shape[1]
  root = cache_folder.cache_root(cache_dir)
  target = root / f"masks-{size}-{digest}.npy"
  mesh = mesh if jax.process_count() == 1 else None
  if cache_file.load(target, images.pixels.shape, np.dtype("u1")) is None:
    try:
      _write(target, segmenter, images, mesh, progress)
    except OSError as error:
      is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
      problem = "no space for" if is_full else "cannot write"
      raise UserError(
        f"{problem} predicted masks in {root}: {error.strerror or error}; name another folder in "
        "config.data.cache_dir or CXRJAX_CACHE"
      ) from error
  masks = cache_file.load(target, images.pixels.shape, np.dtype("u1"))
  if masks is None:
    raise UserError(f"the cache {target} vanished or is damaged; delete it and run again")
  return dataclasses.replace(images, masks=masks)


def _write(
  target: pathlib.Path, segmenter: Segmenter, images: Images, mesh: Mesh | None, progress: bool
) -> None:
  """Writes all masks to one file, which appears once complete."""
  with atomic_path(target) as temporary:
    masks = cache_file.allocate(temporary, images.pixels.shape, np.dtype("u1"))
    sums = np.zeros(len(images), np.uint32)
    with tqdm.tqdm(
      total=len(images),
      desc="predicting lung masks",
      unit=" images",
      disable=not progress,
      dynamic_ncols=True,
    ) as bar:
      for rows in chunks(len(images)):
        has_own = has_own_mask(images, rows)
        if images.masks is not None and has_own.any():
          masks[rows[has_own]] = images.masks[rows[has_own]]
        if not has_own.all():
          masks[rows[~has_own]] = segmenter.masks(images.take(rows[~has_own]), mesh)
        sums[rows] = cache_file.checksums_of(masks[rows])
        bar.update(len(rows))
    cache_file.seal(masks, sums)


def chunks(n: int) -> list[np.ndarray]:
  """Rows 0..n-1 in chunks of bounded size."""
  return [np.arange(i, min(i + _CHUNK, n)) for i in range(0, n, _CHUNK)]


def has_own_mask(images: Images, rows: np.ndarray) -> np.ndarray:
  """Flags the rows whose images have a mask of their own."""
  if images.masks is None:
    return np.zeros(len(rows), bool)
  return np.asarray(images.masks[rows]).max((1, 2, 3)) > 0


def count(images: Images) -> int:
  """Number of images that have a mask of their own."""
  return sum(int(has_own_mask(images, rows).sum()) for rows in chunks(len(images)))

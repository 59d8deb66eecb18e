"""Near-duplicates: the same radiograph twice, also re-encoded, brightened, labelled or cropped.

The first look compares all images with all others by signatures, their local contrast on a 64 x 64
grid, in blocked matrix products. All it has to do is miss no copy. The second look aligns the two
images of each candidate pair (`registration`) and correlates finer detail.

Its thresholds were determined on real radiographs at 192 to 256 pixels: Kermany's 5,856, 11,824 of
the COVID-19 Radiography Database, Shenzhen's 662. All of Kermany's 34 copies reach 1.000. Copies
that were cropped and re-encoded between collections reach 0.87 to 0.98, two exposures of what is
plainly one patient 0.75 to 0.93, pairs that are different patients by their names at most 0.72.
Without the second look no threshold separates these: an image correlates less with its own crop
than with other people's images.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float16, Float32, Int, Int64

from cxrjax.audit import registration
from cxrjax.data.descriptors import BATCH, Pixels, batched, downsample, gray_and_detail
from cxrjax.data.images import Images

SIDE = 64
FIRST = 0.65  # least correlation of signatures for a second look
COPY = 0.90  # least correlation of aligned detail to call a pair the same radiograph
SAME = 0.80  # least correlation to call a pair the same patient at two times
LIMIT = 50_000  # most pairs that get a second look; the most similar where there are more
_SIGMA = 4.0  # of local contrast, cells
_COARSE = 0.78  # pairs below this after coarse alignment cannot reach SAME
_BLOCK = 4096

# Rows of the first set, rows of the second one, correlations.
_Candidates = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedImages:
  """Images prepared for comparison.

  Attributes:
    images: read again for the second look.
    rows: of `images` that are compared.
    signatures: of those rows; half precision, 8 KB an image.
  """

  images: Images | Pixels
  rows: Int64[np.ndarray, "m"]
  signatures: Float16[np.ndarray, "m d"]

  def __len__(self) -> int:
    return len(self.rows)

  def at(self, which: Int[np.ndarray, "m"], side: int) -> Float32[np.ndarray, "m side side"]:
    """Images at positions `which`, averaged to `side` pixels."""
    return downsample(self.images, side, self.rows[which])


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """Pairs of images, most similar first.

  Attributes:
    i: row of one image, in the first set.
    j: row of the other image, in the second set; within one set, after `i`.
    r: correlation of finer detail after alignment.
    first: correlation of signatures.
    inspected: number of pairs that got a second look.
    threshold: lowest `first` with a second look; above the requested one if there were too many.
  """

  i: Int64[np.ndarray, "p"]
  j: Int64[np.ndarray, "p"]
  r: Float32[np.ndarray, "p"]
  first: Float32[np.ndarray, "p"]
  inspected: int
  threshold: float

  def __len__(self) -> int:
    return len(self.i)


def prepare(images: Images | Pixels, rows: Int[np.ndarray, "m"] | None = None) -> PreparedImages:
  """Prepares images, or some rows of them, for comparison."""
  rows = np.arange(len(images)) if rows is None else np.asarray(rows, np.int64)
  descriptors = np.empty((len(rows), SIDE * SIDE), np.float16)
  for start in range(0, len(rows), 1024):
    batch = rows[start : start + 1024]
    descriptors[start : start + len(batch)] = _compute_signatures(downsample(images, SIDE, batch))
  return PreparedImages(images, rows, descriptors)


def signatures(pixels: Pixels) -> Float32[np.ndarray, "n d"]:
  """Local contrast on a 64 x 64 grid, mean 0 and norm 1: dot products are correlations."""
  return _compute_signatures(downsample(pixels, SIDE))


def _compute_signatures(x: Float32[np.ndarray, "n s s"]) -> Float32[np.ndarray, "n d"]:
  return batched(functools.partial(gray_and_detail, sigma=_SIGMA), x)[1]


def within(
  images: PreparedImages | Images | Pixels,
  threshold: float = COPY,
  first: float = FIRST,
  limit: int = LIMIT,
) -> Pairs:
  """Pairs of one set whose aligned detail correlates at `threshold` or more."""
  a = _as_prepared(images)
  return _rerank(a, a, pairs(a.signatures, None, first, limit=limit), threshold)


def across(
  train: PreparedImages | Images | Pixels,
  test: PreparedImages | Images | Pixels,
  threshold: float = COPY,
  first: float = FIRST,
  limit: int = LIMIT,
) -> Pairs:
  """Pairs of one image of each of two sets whose aligned detail correlates at `threshold` or more.

  Args:
    train: first set (`i`); pass `of_images` of it to compare it more than once.
    test: second set (`j`).
    threshold: COPY for the same radiograph, SAME for the same patient as well.
    first: least correlation of signatures for a second look.
    limit: most pairs that get a second look.
  """
  a, b = _as_prepared(train), _as_prepared(test)
  return _rerank(a, b, pairs(a.signatures, b.signatures, first, limit=limit), threshold)


def pairs(
  a: Float[np.ndarray, "n d"],
  b: Float[np.ndarray, "m d"] | None = None,
  threshold: float = FIRST,
  *,
  block: int = _BLOCK,
  limit: int = LIMIT,
) -> tuple[Int64[np.ndarray, "p"], Int64[np.ndarray, "p"], Float32[np.ndarray, "p"]]:
  """All pairs of signatures that correlate at `threshold` or more; the first look.

  n m / 2 d multiplications and additions within one set, n m d across two; memory for `block`
  squared correlations on the device, and on the host for at most about twice `limit` pairs.

  Args:
    a: signatures.
    b: signatures of another set; by default, pairs i < j within `a`.
    threshold: above 0.
    block: signatures per block.
    limit: most pairs; those that correlate best where there are more.

  Returns:
    Rows of `a`, rows of `b`, correlations; highest first.
  """
  if threshold <= 0:
    raise ValueError(f"threshold={threshold} must be above 0")
  partners = a if b is None else b
  size = min(block, 1 << max(3, max(len(a), len(partners), 1) - 1).bit_length())
  candidates: _Candidates = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
  for top in range(0, len(a), size):
    rows = _to_device(a[top : top + size], size)
    for left in range(0 if b is not None else top, len(partners), size):
      columns = (
        rows if b is None and left == top else _to_device(partners[left : left + size], size)
      )
      r, count = _correlate(rows, columns, threshold, b is None and left == top)
      if count := int(count):
        i, j, r = _select_above(r, threshold, count)
        new = (i + top, j + left, r)
        i, j, r = (np.concatenate(x) for x in zip(candidates, new, strict=True))
        candidates = i, j, r
      if len(candidates[0]) > 2 * limit:
        candidates = _keep_best(candidates, limit)
        threshold = max(threshold, float(candidates[2][-1]))
  i, j, r = _keep_best(candidates, limit)
  return i.astype(np.int64), j.astype(np.int64), r.astype(np.float32)


def groups(n: int, i: Int[np.ndarray, "p"], j: Int[np.ndarray, "p"]) -> Int64[np.ndarray, "_"]:
  """Group of each of `n` images: the connected components of the pairs.

  A group's number is the index of its first image.
  """
  parent = list(range(n))

  def root(x: int) -> int:
    while parent[x] != x:
      parent[x] = parent[parent[x]]
      x = parent[x]
    return x

  for x, y in zip(i.tolist(), j.tolist(), strict=True):
    x, y = sorted((root(x), root(y)))
    parent[y] = x
  return np.array([root(x) for x in range(n)], np.int64)


def _rerank(
  a: PreparedImages, b: PreparedImages, candidates: _Candidates, threshold: float
) -> Pairs:
  """Second look: re-ranks candidate pairs by aligned correlation; keeps those above `threshold`."""
  i, j, first = candidates
  inspected, lowest = len(i), float(first[-1]) if len(first) else 1.0
  r = np.zeros(len(i), np.float32)
  batch_size = 16 * BATCH
  order = np.lexsort((j, i))  # groups the pairs of an image, so that it is read once
  for start in range(0, len(order), batch_size):
    batch = order[start : start + batch_size]
    side = registration.COARSE
    coarse_r, maps = batched(
      registration.coarse, _read_images(a, i[batch], side), _read_images(b, j[batch], side)
    )
    promising = np.flatnonzero(coarse_r >= _COARSE)
    if not len(promising):
      continue
    batch, side = batch[promising], registration.FINE
    r[batch], _ = batched(
      registration.fine,
      _read_images(a, i[batch], side),
      _read_images(b, j[batch], side),
      maps[promising],
    )
  selected = np.flatnonzero(r >= threshold)
  selected = selected[np.lexsort((j[selected], i[selected], -r[selected]))]
  return Pairs(i[selected], j[selected], r[selected], first[selected], inspected, lowest)


def _read_images(
  prepared: PreparedImages, which: np.ndarray, side: int
) -> Float32[np.ndarray, "m s s"]:
  rows, inverse = np.unique(which, return_inverse=True)
  return prepared.at(rows, side)[inverse.reshape(-1)]


def _as_prepared(images: PreparedImages | Images | Pixels) -> PreparedImages:
  return images if isinstance(images, PreparedImages) else prepare(images)


def _to_device(rows: np.ndarray, size: int) -> Array:
  """A block on the device, padded with zeros, which correlate with nothing."""
  dtype = np.float32 if jax.default_backend() == "cpu" else np.float16
  padded = np.zeros((size, rows.shape[1]), dtype)
  padded[: len(rows)] = rows
  return jnp.asarray(padded)


@functools.partial(jax.jit, static_argnames="same")
def _correlate(
  a: Float[Array, "n d"], b: Float[Array, "m d"], threshold: float | Array, same: bool
) -> tuple[Float[Array, "n m"], Int[Array, ""]]:
  r = jnp.matmul(a, b.T, preferred_element_type=jnp.float32)
  if same:
    r = jnp.where(jnp.arange(len(a))[:, None] < jnp.arange(len(b)), r, -1.0)
  return r, (r >= threshold).sum()


def _select_above(r: Float[Array, "n m"], threshold: float, count: int) -> _Candidates:
  """Rows, columns and values of the `count` correlations at or above the threshold."""
  if jax.default_backend() == "cpu":  # the correlations are in host memory already
    host = np.asarray(r)
    i, j = np.nonzero(host >= np.float32(threshold))
    return i, j, host[i, j]
  i, j, r = _select_above_on_device(r, threshold, 1 << max(8, (count - 1).bit_length()))
  return np.asarray(i)[:count], np.asarray(j)[:count], np.asarray(r)[:count]


@functools.partial(jax.jit, static_argnames="count")
def _select_above_on_device(r: Float[Array, "n m"], threshold: float | Array, count: int):
  i, j = jnp.nonzero(r >= threshold, size=count)
  return i, j, r[i, j]


def _keep_best(candidates: _Candidates, limit: int) -> _Candidates:
  i, j, r = candidates
  order = np.lexsort((j, i, -r))[:limit]
  return i[order], j[order], r[order]

"""Near-duplicates: the same radiograph twice, also re-encoded, brightened, labelled or cropped.

The first look compares all images with all as one matrix product, in blocks, of signatures: their
local contrast on a 64 x 64 grid. It only has to lose no copy. The second lays the images of each
pair it found over one another (`registration`) and correlates finer detail.

What the second look's correlation means was read off real radiographs at 192 to 256 pixels:
Kermany's 5,856, 11,824 of the COVID-19 Radiography Database, Shenzhen's 662. All of Kermany's 34
copies have 1.000. Copies that were cropped and re-encoded between collections have 0.87 to 0.98.
Two exposures of what is plainly one patient have 0.75 to 0.93; pairs that their names say are
different patients at most 0.72. Without a second look no threshold parts these: an image's own
crop correlates with it less than other people's images do.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float16, Float32, Int, Int64

from cxrjax.audit import registration
from cxrjax.data.descriptors import BATCH, Pixels, batched, gray_and_detail, small
from cxrjax.data.images import Images

SIDE = 64
FIRST = 0.65  # least correlation of signatures for a second look
COPY = 0.90  # least correlation of aligned detail to call a pair the same radiograph
SAME = 0.80  # and to call it the same patient once more
LIMIT = 50_000  # pairs that get a second look; where there are more, the most alike
_SIGMA = 4.0  # of local contrast, cells
_COARSE = 0.78  # less than this after coarse alignment has no chance of SAME
_BLOCK = 4096

_Kept = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows of one set and the other, correlations


@dataclasses.dataclass(frozen=True, eq=False)
class Looks:
  """Images as they are compared.

  Attributes:
    images: where more than the signature is read from.
    rows: which of them.
    signatures: of those rows; half precision, 8 KB an image.
  """

  images: Images | Pixels
  rows: Int64[np.ndarray, "m"]
  signatures: Float16[np.ndarray, "m d"]

  def __len__(self) -> int:
    return len(self.rows)

  def at(self, which: Int[np.ndarray, "m"], side: int) -> Float32[np.ndarray, "m side side"]:
    """Some of the images, averaged to `side` pixels."""
    return small(self.images, side, self.rows[which])


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """Pairs of images, most alike first.

  Attributes:
    i: row of the one, in the first set.
    j: row of the other, in the second set or, within one set, after `i`.
    r: correlation of their finer detail, one laid over the other.
    first: correlation of their signatures.
    looked: how many pairs got a second look.
    threshold: of `first` for a second look; higher than asked for where there were too many.
  """

  i: Int64[np.ndarray, "p"]
  j: Int64[np.ndarray, "p"]
  r: Float32[np.ndarray, "p"]
  first: Float32[np.ndarray, "p"]
  looked: int
  threshold: float

  def __len__(self) -> int:
    return len(self.i)


def of_images(images: Images | Pixels, rows: Int[np.ndarray, "m"] | None = None) -> Looks:
  """Images, or some rows of them, ready to be compared."""
  rows = np.arange(len(images)) if rows is None else np.asarray(rows, np.int64)
  found = np.empty((len(rows), SIDE * SIDE), np.float16)
  for start in range(0, len(rows), 1024):
    found[start : start + 1024] = _sign(small(images, SIDE, rows[start : start + 1024]))
  return Looks(images, rows, found)


def signatures(pixels: Pixels) -> Float32[np.ndarray, "n d"]:
  """Local contrast on a 64 x 64 grid, mean 0 and norm 1: products are correlations."""
  return _sign(small(pixels, SIDE))


def _sign(x: Float32[np.ndarray, "n s s"]) -> Float32[np.ndarray, "n d"]:
  return batched(functools.partial(gray_and_detail, sigma=_SIGMA), x)[1]


def within(
  images: Looks | Images | Pixels, threshold: float = COPY, first: float = FIRST, limit: int = LIMIT
) -> Pairs:
  """Pairs of one set whose aligned detail correlates at `threshold` or more."""
  looks = _looks(images)
  return _second(looks, looks, pairs(looks.signatures, None, first, limit=limit), threshold)


def across(
  train: Looks | Images | Pixels,
  test: Looks | Images | Pixels,
  threshold: float = COPY,
  first: float = FIRST,
  limit: int = LIMIT,
) -> Pairs:
  """Pairs of an image of one set (`i`) and one of another (`j`), in the same way.

  Args:
    train: one set; `of_images` of it where it is compared more than once.
    test: the other.
    threshold: COPY for the same radiograph, SAME for the same patient as well.
    first: least correlation of signatures for a second look.
    limit: most pairs that get one.
  """
  a, b = _looks(train), _looks(test)
  return _second(a, b, pairs(a.signatures, b.signatures, first, limit=limit), threshold)


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
    b: those of another set; by default pairs i < j within `a`.
    threshold: above 0.
    block: signatures at a time.
    limit: where there are more pairs, the `limit` that correlate best.

  Returns:
    Rows of `a`, rows of `b`, correlations; highest first.
  """
  if threshold <= 0:
    raise ValueError(f"threshold={threshold} must be above 0")
  other = a if b is None else b
  size = min(block, 1 << max(3, max(len(a), len(other), 1) - 1).bit_length())
  kept: _Kept = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
  for top in range(0, len(a), size):
    rows = _put(a[top : top + size], size)
    for left in range(0 if b is not None else top, len(other), size):
      columns = rows if b is None and left == top else _put(other[left : left + size], size)
      r, count = _products(rows, columns, threshold, b is None and left == top)
      if count := int(count):
        i, j, r = _above(r, threshold, count)
        new = (i + top, j + left, r)
        i, j, r = (np.concatenate(x) for x in zip(kept, new, strict=True))
        kept = i, j, r
      if len(kept[0]) > 2 * limit:
        kept = _best(kept, limit)
        threshold = max(threshold, float(kept[2][-1]))
  i, j, r = _best(kept, limit)
  return i.astype(np.int64), j.astype(np.int64), r.astype(np.float32)


def groups(n: int, i: Int[np.ndarray, "p"], j: Int[np.ndarray, "p"]) -> Int64[np.ndarray, "_"]:
  """The group of each of `n` images: those that pairs join, also by way of others.

  A group's number is its first image's.
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


def _second(
  a: Looks, b: Looks, found: tuple[np.ndarray, np.ndarray, np.ndarray], threshold: float
) -> Pairs:
  """Of the pairs that the first look found, those that stand the second."""
  i, j, first = found
  looked, lowest = len(i), float(first[-1]) if len(first) else 1.0
  r = np.zeros(len(i), np.float32)
  step = 16 * BATCH
  order = np.lexsort((j, i))  # an image's pairs together, so that it is read once
  for start in range(0, len(order), step):
    part = order[start : start + step]
    side = registration.COARSE
    near, maps = batched(registration.coarse, _read(a, i[part], side), _read(b, j[part], side))
    hopeful = np.flatnonzero(near >= _COARSE)
    if not len(hopeful):
      continue
    part, side = part[hopeful], registration.FINE
    r[part], _ = batched(
      registration.fine, _read(a, i[part], side), _read(b, j[part], side), maps[hopeful]
    )
  keep = np.flatnonzero(r >= threshold)
  keep = keep[np.lexsort((j[keep], i[keep], -r[keep]))]
  return Pairs(i[keep], j[keep], r[keep], first[keep], looked, lowest)


def _read(looks: Looks, which: np.ndarray, side: int) -> Float32[np.ndarray, "m s s"]:
  rows, back = np.unique(which, return_inverse=True)
  return looks.at(rows, side)[back.reshape(-1)]


def _looks(images: Looks | Images | Pixels) -> Looks:
  return images if isinstance(images, Looks) else of_images(images)


def _put(rows: np.ndarray, size: int) -> Array:
  """A block on the device, filled up with zeros: they correlate with nothing."""
  kind = np.float32 if jax.default_backend() == "cpu" else np.float16
  full = np.zeros((size, rows.shape[1]), kind)
  full[: len(rows)] = rows
  return jnp.asarray(full)


@functools.partial(jax.jit, static_argnames="same")
def _products(
  a: Float[Array, "n d"], b: Float[Array, "m d"], threshold: float | Array, same: bool
) -> tuple[Float[Array, "n m"], Int[Array, ""]]:
  r = jnp.matmul(a, b.T, preferred_element_type=jnp.float32)
  if same:
    r = jnp.where(jnp.arange(len(a))[:, None] < jnp.arange(len(b)), r, -1.0)
  return r, (r >= threshold).sum()


def _above(r: Float[Array, "n m"], threshold: float, count: int) -> _Kept:
  """Rows, columns and values of the `count` correlations that reach the threshold."""
  if jax.default_backend() == "cpu":  # where they are the host's already
    host = np.asarray(r)
    i, j = np.nonzero(host >= np.float32(threshold))
    return i, j, host[i, j]
  i, j, r = _above_on_device(r, threshold, 1 << max(8, (count - 1).bit_length()))
  return np.asarray(i)[:count], np.asarray(j)[:count], np.asarray(r)[:count]


@functools.partial(jax.jit, static_argnames="count")
def _above_on_device(r: Float[Array, "n m"], threshold: float | Array, count: int):
  i, j = jnp.nonzero(r >= threshold, size=count)
  return i, j, r[i, j]


def _best(kept: _Kept, limit: int) -> _Kept:
  i, j, r = kept
  order = np.lexsort((j, i, -r))[:limit]
  return i[order], j[order], r[order]

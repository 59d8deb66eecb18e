"""Large published sets: tables that describe images, and archives in which the images lie.

A builder of such a set says what its tables hold (`PublishedBuilder.listing`); the images are then
read in the order they lie in, one archive after the other and each only once for each split, and
never unpacked to disk. With Beam each archive is a piece of work of its own.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import json
import math
import pathlib
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from cxrjax.builders import base_builder, tfds_features
from cxrjax.core.errors import UserError
from cxrjax.data.decoding import decode, dicom
from cxrjax.data.sources import archive

_PNG = b"\x89PNG\r\n\x1a\n"
_FEW = 10  # this many images may be absent, or this share of those listed
_SHARE = 0.01


@dataclasses.dataclass(slots=True)
class Listed:
  """What the tables say of one image.

  Attributes:
    patient: shared by all images of one patient; empty where unknown.
    split: it belongs to.
    labels: in the order of the set's labels.
    age: in years.
    sex: `F`, `M`, or empty.
    view: `PA`, `AP`, `L`, or empty.
    boxes: of each box its name, [ymin, xmin, ymax, xmax] (0..1; of DICOM files in pixels) and,
      where several readers drew them, who did; None for a set without.
    inverted: bright where much X-ray came through (MONOCHROME1); it is stored the other way round.
    more: columns of the set's own, of plain numbers, texts and lists.
  """

  patient: str
  split: str
  labels: tuple[float, ...]
  age: float = float("nan")
  sex: str = ""
  view: str = ""
  boxes: list[Sequence[Any]] | None = None
  inverted: bool = False
  more: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Part:
  """An archive or a folder with images.

  Attributes:
    path: where it is.
    prefix: put before the names in it, so that they read as in the whole set.
    share: which of the images to read, of `shares` that are about equal.
    shares: 1 to read all.
  """

  path: str
  prefix: str = ""
  share: int = 0
  shares: int = 1


class Listing:
  """All images that a set's tables name.

  Args:
    labels: names of the findings; `GROUP::NAME` for those of another reader, which are stored in a
      column of their own.
    pattern: regular expression of an image's path in an archive; what its groups match, joined by
      `/`, is the key under which the tables name it, and its `id`.
    dicom: whether the images are DICOM files, whose pixels are stored as PNG, with their window.
      Age, sex and view are then the files', where these say them.
    youngest: in years; what a DICOM file says below that is unknown.

  Attributes:
    rows: what is known of each image, by its key.
    left_out: why an image that is listed is of no use, by its key.
  """

  def __init__(
    self, labels: Sequence[str], pattern: str, *, dicom: bool = False, youngest: float = 0.0
  ):
    self.labels, self.pattern = tuple(labels), pattern
    self.dicom, self.youngest = dicom, youngest
    self.rows: dict[str, Listed] = {}
    self.left_out: dict[str, str] = {}

  def __contains__(self, key: str) -> bool:
    return key in self.rows or key in self.left_out

  def add(self, key: str, row: Listed | str, place: str) -> None:
    """Adds an image, or why it is of no use.

    Raises:
      UserError: it is there already; with `place`, where it stands.
    """
    if key in self:
      raise UserError(f"{place} lists {key} a second time")
    if isinstance(row, str):
      self.left_out[key] = row
    else:
      self.rows[key] = row

  def of(self, split: str) -> dict[str, Listed]:
    """The images of one split."""
    return {key: row for key, row in self.rows.items() if row.split == split}

  def pack(self) -> bytes:
    """All of it, small, to be sent to other machines."""
    rows = [[key, *dataclasses.astuple(row)] for key, row in self.rows.items()]
    return zlib.compress(
      json.dumps(
        [self.labels, self.pattern, self.dicom, self.youngest, self.left_out, rows]
      ).encode()
    )


@functools.lru_cache(maxsize=1)
def unpack(packed: bytes) -> Listing:
  """A listing that was packed."""
  labels, pattern, of_dicom, youngest, left_out, rows = json.loads(zlib.decompress(packed))
  found = Listing(labels, pattern, dicom=of_dicom, youngest=youngest)
  found.left_out = left_out
  found.rows = {
    key: Listed(patient, split, tuple(values), *others)
    for key, patient, split, values, *others in rows
  }
  return found


class _Wanted:
  """The names of an archive that some keys are for; takes note of images that nobody lists."""

  def __init__(
    self, part: Part, listing: Listing, keys: Collection[str], unlisted: Callable[[str], None]
  ):
    self._part, self._search = part, re.compile(listing.pattern).search
    self._keys, self._listing, self._unlisted = keys, listing, unlisted

  def key(self, name: str) -> str | None:
    match = self._search(f"{self._part.prefix}/{name}" if self._part.prefix else name)
    return "/".join(group for group in match.groups() if group) if match else None

  def __contains__(self, name: object) -> bool:
    key = self.key(name) if isinstance(name, str) else None
    if key is None or zlib.crc32(key.encode()) % self._part.shares != self._part.share:
      return False
    if key not in self._listing:
      self._unlisted(key)
    return key in self._keys


def images(
  part: Part, listing: Listing, keys: Collection[str], unlisted: Callable[[str], None]
) -> Iterator[tuple[str, bytes]]:
  """Key and bytes of each image of an archive, in the order they lie in it.

  Args:
    part: the archive.
    listing: of the set.
    keys: of the images that are read; one that leaves it is not read a second time.
    unlisted: told of each image that the set's tables do not name.

  Raises:
    UserError: the archive is damaged.
  """
  with archive.Archive(part.path) as opened:
    wanted = _Wanted(part, listing, keys, unlisted)
    for name, data in opened.members(wanted):
      key = wanted.key(name)
      assert key is not None  # else it would not be wanted
      yield key, data


def damage(image: bytes) -> str:
  """Why a PNG or JPEG is not whole, or nothing where it is; without decoding it.

  Every chunk of a PNG has a checksum; a JPEG has an end. At a gigabyte a second this is done for
  sets of a terabyte, which to decode would take days.
  """
  if image.startswith(_PNG):
    at, kind = len(_PNG), b""
    while kind != b"IEND":
      size, kind = int.from_bytes(image[at : at + 4], "big"), image[at + 4 : at + 8]
      end = at + 12 + size
      if end > len(image):
        return "it is cut short"
      if zlib.crc32(memoryview(image)[at + 4 : end - 4]).to_bytes(4, "big") != image[end - 4 : end]:
        return f"it is damaged (checksum of its {kind.decode('ascii', 'replace')} chunk)"
      at = end
    return ""
  if image.startswith(b"\xff\xd8"):
    return "" if b"\xff\xd9" in image[-1024:] else "it is cut short"
  return "it is empty" if not image else "it is neither PNG nor JPEG"


def example(key: str, row: Listed, listing: Listing, image: bytes) -> dict[str, Any]:
  """What TFDS stores of an image.

  Raises:
    BadImage: it cannot be used.
  """
  window = None
  if listing.dicom:
    row, image, window = _of_dicom(row, listing.youngest, image)
  elif reason := damage(image):
    raise decode.BadImage(reason)
  if row.inverted:
    pixels = decode.decode(image)
    image = tfds_features.png(np.iinfo(pixels.dtype).max - pixels)
  others = dict(row.more)
  if row.boxes is not None:
    others["boxes"] = [
      {"label": name, "box": np.array(box)} | ({"reader": by[0]} if by else {})
      for name, box, *by in row.boxes
    ]
  for name, value in zip(listing.labels, row.labels, strict=True):
    group, _, finding = name.rpartition("::")
    others.setdefault(group or "labels", {})[finding] = np.float32(value)
  return tfds_features.example(
    _columns(listing.dicom),
    image=image,
    id=key,
    patient=row.patient,
    age=row.age,
    sex=row.sex,
    view=row.view,
    window=window,
    **others,
  )


def _of_dicom(
  row: Listed, youngest: float, image: bytes
) -> tuple[Listed, bytes, tuple[float, float] | None]:
  """What is known of an image with what its file says, its pixels as PNG, and its window."""
  found = dicom.read(image)
  assert found.pixels is not None  # they were asked for
  known: dict[str, Any] = {
    name: value for name, value in (("sex", found.sex), ("view", found.view)) if value
  }
  if found.age is not None and found.age >= youngest:
    known["age"] = found.age
  if row.boxes is not None:
    known["boxes"] = _fractions(row.boxes, found.pixels.shape[:2])
  return dataclasses.replace(row, **known), tfds_features.png(found.pixels), found.window


def _fractions(boxes: Sequence[Sequence[Any]], shape: tuple[int, int]) -> list[Sequence[Any]]:
  """Boxes in 0..1 from boxes in pixels; what is outside of the image is cut off, or left out."""
  found: list[Sequence[Any]] = []
  for name, box, *by in boxes:
    top, left, bottom, right = (
      float(np.clip(edge / size, 0, 1)) for edge, size in zip(box, 2 * shape, strict=True)
    )
    if top < bottom and left < right:
      found.append((name, [top, left, bottom, right], *by))
  return found


@functools.cache
def _columns(window: bool) -> tfds.features.FeaturesDict:
  return tfds_features.features(window=window)


def finding(text: str, name: str, place: str) -> float:
  """A finding as the CheXpert labeler writes it: 1, 0, -1 for uncertain, nothing (NaN) for unknown.

  Raises:
    UserError: something else; with `place`, where it stands.
  """
  try:
    value = tfds_features.number(text)
  except ValueError:
    value = math.inf
  if value not in (0, 1, tfds_features.UNCERTAIN) and not math.isnan(value):
    raise UserError(f"{place}: {name} is {text[:20]!r}, not 1.0, 0.0, -1.0 or empty")
  return value


def many(count: int, total: int) -> bool:
  """Whether so many of a set's images are of no use that something is wrong with the whole."""
  return count > max(_FEW, _SHARE * total)


def absent(split: str, missing: Collection[str], total: int, where: Iterable[str]) -> None:
  """Raises a UserError where too many of a split's images are absent for it to be the whole set."""
  if missing and (many(len(missing), total) or len(missing) == total):
    raise UserError(
      f"{total - len(missing):,} of the {total:,} images listed for {split} are there, and not "
      f"{min(missing)} in {', '.join(sorted(where))}: only a part of the data set, or another "
      "release of it; get the rest"
    )


def surplus(unlisted: Collection[str], listing: Listing, where: Iterable[str]) -> None:
  """Raises a UserError where so many images are in no list that the list cannot be whole."""
  if many(len(unlisted), len(listing.rows) + len(listing.left_out)):
    raise UserError(
      f"{len(unlisted):,} images such as {min(unlisted)} in {', '.join(sorted(where))} are in no "
      "list: the table is cut short, or of another release; download it again"
    )


class PublishedBuilder(base_builder.SetBuilder, skip_registration=True):  # type: ignore[call-arg]
  """A builder of a set whose tables name the images and whose archives hold them.

  Attributes:
    SPLITS: names of the splits, in order.
  """

  SPLITS: ClassVar[tuple[str, ...]] = ("train", "validation", "test")
  _counts: dict[str, int]  # images of each split that Beam read

  @abc.abstractmethod
  def listing(self, manual: pathlib.Path) -> tuple[Listing, list[Part]]:
    """What the tables in the manual folder say, and where the images lie.

    Raises:
      UserError: not the set's tables or archives, or not all of them.
    """

  def described(self, features: tfds.features.FeaturesDict, homepage: str) -> tfds.core.DatasetInfo:
    """The `DatasetInfo`, with a list of images left out."""
    self.left_out = tfds_features.LeftOut()
    self._told: set[str] = set()
    return self.dataset_info_from_configs(
      features=features, homepage=homepage, metadata=self.left_out.metadata
    )

  def leave_out(self, key: str, reason: str) -> None:
    """Takes note of an image that is left out, once."""
    if key not in self._told:
      self._told.add(key)
      self.left_out.add(key, reason)

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    listing, parts = self.listing(pathlib.Path(dl_manager.manual_dir).expanduser())
    for key, reason in listing.left_out.items():
      self.leave_out(key, reason)
    have = {row.split for row in listing.rows.values()}
    names = [name for name in self.SPLITS if name in have]
    if self.on_beam:
      from cxrjax.builders import beam_pipeline  # Beam is not installed with the rest

      return beam_pipeline.generators(parts, listing, names, str(self.data_dir))
    return {name: self._generate_examples(parts, listing, name) for name in names}

  def _generate_examples(
    self, parts: Sequence[Part], listing: Listing, split: str
  ) -> Iterator[tuple[str, dict]]:
    rows = listing.of(split)
    missing, where = set(rows), {part.path for part in parts}
    unlisted: set[str] = set()
    for part in parts:
      for key, data in images(part, listing, missing, unlisted.add):
        missing.remove(key)
        try:
          found = example(key, rows[key], listing, data)
        except decode.BadImage as error:
          self.leave_out(key, str(error))
        else:
          yield key, found
    absent(split, missing, len(rows), where)
    surplus(unlisted, listing, where)
    for key in sorted(missing):
      self.leave_out(key, ABSENT)
    for key in sorted(unlisted):
      self.leave_out(key, UNLISTED)

  def _process_pipeline_result(self, pipeline_result: Any) -> None:
    from cxrjax.builders import beam_pipeline

    left, self._counts = beam_pipeline.result(str(self.data_dir))
    for key, reason in left:
      self.leave_out(key, reason)

  def _download_and_prepare(
    self, dl_manager: tfds.download.DownloadManager, download_config: tfds.download.DownloadConfig
  ) -> None:
    self._counts = {}
    super()._download_and_prepare(dl_manager, download_config)
    for split, expected in self._counts.items():
      written = self.info.splits[split].num_examples
      if written != expected:  # seen with Beam's local runner in several processes
        raise UserError(
          f"Beam wrote {written:,} of the {expected:,} images that it read for "
          f"{split}; use another runner, or none"
        )


ABSENT = "it is listed, but not there"
UNLISTED = "it is there, but in no list"

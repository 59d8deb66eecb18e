"""Builder for large published sets: tables that describe images, and archives that hold them.

A builder of such a set parses its tables (`PublishedBuilder.listing`); the images are then read in
archive order, one archive after the other and each once per split, without unpacking to disk. With
Beam each archive is a separate piece of work.
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
_MAX_COUNT = 10  # images that may be absent or unlisted: this many, or this share
_MAX_SHARE = 0.01


@dataclasses.dataclass(slots=True)
class ImageRow:
  """One image as the tables describe it.

  Attributes:
    patient: shared by all images of one patient; empty where unknown.
    split: name of its split.
    labels: in the order of the set's labels.
    age: in years.
    sex: `F`, `M`, or empty.
    view: `PA`, `AP`, `L`, or empty.
    boxes: each with its name, [ymin, xmin, ymax, xmax] (0..1; of DICOM files in pixels) and, where
      several readers drew them, its reader; None for a set without boxes.
    inverted: bright where many X-rays came through (MONOCHROME1); it is inverted for storage.
    more: columns specific to the set, of plain numbers, texts and lists.
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
    path: of the archive or folder.
    prefix: prepended to the names in it, so that they read as in the complete set.
    share: which of `shares` roughly equal shares of the images to read.
    shares: number of shares; 1 reads all images.
  """

  path: str
  prefix: str = ""
  share: int = 0
  shares: int = 1


class Listing:
  """All images listed in a set's tables.

  Args:
    labels: names of the findings; `GROUP::NAME` for those of another reader, which are stored in a
      column of their own.
    pattern: regular expression of an image's path in an archive; its matched groups, joined by `/`,
      are the key under which the tables list the image, and its `id`.
    dicom: whether the images are DICOM files, whose pixels are stored as PNG, with their window.
      Age, sex and view are then taken from the files where they are given there.
    youngest: in years; a lower age in a DICOM file counts as unknown.

  Attributes:
    rows: usable images, by key.
    left_out: reasons why listed images are unusable, by key.
  """

  def __init__(
    self, labels: Sequence[str], pattern: str, *, dicom: bool = False, youngest: float = 0.0
  ):
    self.labels, self.pattern = tuple(labels), pattern
    self.dicom, self.youngest = dicom, youngest
    self.rows: dict[str, ImageRow] = {}
    self.left_out: dict[str, str] = {}

  def __contains__(self, key: str) -> bool:
    return key in self.rows or key in self.left_out

  def add(self, key: str, row: ImageRow | str, place: str) -> None:
    """Adds an image, or the reason why it is unusable.

    Raises:
      UserError: it is listed twice; the message names `place`, the position in the table.
    """
    if key in self:
      raise UserError(f"{place} lists {key} a second time")
    if isinstance(row, str):
      self.left_out[key] = row
    else:
      self.rows[key] = row

  def of(self, split: str) -> dict[str, ImageRow]:
    """The images of one split."""
    return {key: row for key, row in self.rows.items() if row.split == split}

  def pack(self) -> bytes:
    """Serializes and compresses the listing, to be sent to other machines."""
    rows = [[key, *dataclasses.astuple(row)] for key, row in self.rows.items()]
    content = [self.labels, self.pattern, self.dicom, self.youngest, self.left_out, rows]
    return zlib.compress(json.dumps(content).encode())


@functools.lru_cache(maxsize=1)
def unpack(packed: bytes) -> Listing:
  """Restores a listing from `Listing.pack`."""
  labels, pattern, of_dicom, youngest, left_out, rows = json.loads(zlib.decompress(packed))
  listing = Listing(labels, pattern, dicom=of_dicom, youngest=youngest)
  listing.left_out = left_out
  listing.rows = {
    key: ImageRow(patient, split, tuple(values), *others)
    for key, patient, split, values, *others in rows
  }
  return listing


class _NameFilter:
  """Set of archive names whose keys are to be read; reports images that are not listed."""

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
  """Yields key and bytes of each image of an archive, in archive order.

  Args:
    part: the archive.
    listing: of the set.
    keys: of the images to read; a key that the caller removes meanwhile is not read again.
    unlisted: called with the key of each image that the set's tables do not list.

  Raises:
    UserError: the archive is damaged.
  """
  with archive.Archive(part.path) as opened:
    selected = _NameFilter(part, listing, keys, unlisted)
    for name, data in opened.members(selected):
      key = selected.key(name)
      assert key is not None  # only names with a key are selected
      yield key, data


def find_damage(image: bytes) -> str:
  """Why a PNG or JPEG is damaged or incomplete, empty if it is intact; without decoding it.

  Every chunk of a PNG has a checksum; a JPEG has an end marker. This runs at a gigabyte a second,
  while decoding a set of a terabyte would take days.
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


def example(key: str, row: ImageRow, listing: Listing, image: bytes) -> dict[str, Any]:
  """The TFDS example of an image.

  Raises:
    BadImage: it is unusable.
  """
  window = None
  if listing.dicom:
    row, image, window = _convert_dicom(row, listing.youngest, image)
  elif reason := find_damage(image):
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


def _convert_dicom(
  row: ImageRow, youngest: float, image: bytes
) -> tuple[ImageRow, bytes, tuple[float, float] | None]:
  """The row updated from the DICOM file, its pixels as PNG, and its window."""
  radiograph = dicom.read(image)
  assert radiograph.pixels is not None  # they are read by default
  updates: dict[str, Any] = {
    name: value for name, value in (("sex", radiograph.sex), ("view", radiograph.view)) if value
  }
  if radiograph.age is not None and radiograph.age >= youngest:
    updates["age"] = radiograph.age
  if row.boxes is not None:
    updates["boxes"] = _fractions(row.boxes, radiograph.pixels.shape[:2])
  png = tfds_features.png(radiograph.pixels)
  return dataclasses.replace(row, **updates), png, radiograph.window


def _fractions(boxes: Sequence[Sequence[Any]], shape: tuple[int, int]) -> list[Sequence[Any]]:
  """Converts boxes from pixels to 0..1, clipped to the image; empty ones are dropped."""
  relative: list[Sequence[Any]] = []
  for name, box, *by in boxes:
    top, left, bottom, right = (
      float(np.clip(edge / size, 0, 1)) for edge, size in zip(box, 2 * shape, strict=True)
    )
    if top < bottom and left < right:
      relative.append((name, [top, left, bottom, right], *by))
  return relative


@functools.cache
def _columns(window: bool) -> tfds.features.FeaturesDict:
  return tfds_features.features(window=window)


def parse_finding(text: str, name: str, place: str) -> float:
  """Parses a finding as the CheXpert labeler writes it: 1, 0, -1 (uncertain), empty (NaN, unknown).

  Raises:
    UserError: any other value; the message names `place`, its position in the table.
  """
  try:
    value = tfds_features.number(text)
  except ValueError:
    value = math.inf
  if value not in (0, 1, tfds_features.UNCERTAIN) and not math.isnan(value):
    raise UserError(f"{place}: {name} is {text[:20]!r}, not 1.0, 0.0, -1.0 or empty")
  return value


def is_too_many(count: int, total: int) -> bool:
  """Whether `count` of `total` images are too many to leave out: the set itself is wrong then."""
  return count > max(_MAX_COUNT, _MAX_SHARE * total)


def check_absent(split: str, missing: Collection[str], total: int, where: Iterable[str]) -> None:
  """Raises a UserError where so many of a split's images are absent that the set is incomplete."""
  if missing and (is_too_many(len(missing), total) or len(missing) == total):
    raise UserError(
      f"{total - len(missing):,} of the {total:,} images listed for {split} are there, but not "
      f"{min(missing)} in {', '.join(sorted(where))}: only a part of the data set, or another "
      "release of it; get the rest"
    )


def check_unlisted(unlisted: Collection[str], listing: Listing, where: Iterable[str]) -> None:
  """Raises a UserError where so many images are unlisted that the list is incomplete."""
  if is_too_many(len(unlisted), len(listing.rows) + len(listing.left_out)):
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
  _counts: dict[str, int]  # images that Beam read, by split

  @abc.abstractmethod
  def listing(self, manual: pathlib.Path) -> tuple[Listing, list[Part]]:
    """Parses the tables in the manual folder and locates the images.

    Raises:
      UserError: tables or archives are missing or belong to another set.
    """

  def described(self, features: tfds.features.FeaturesDict, homepage: str) -> tfds.core.DatasetInfo:
    """Creates the `DatasetInfo`, with a list of images left out."""
    self.left_out = tfds_features.LeftOut()
    self._reported: set[str] = set()
    return self.dataset_info_from_configs(
      features=features, homepage=homepage, metadata=self.left_out.metadata
    )

  def leave_out(self, key: str, reason: str) -> None:
    """Records an image that is left out, once."""
    if key not in self._reported:
      self._reported.add(key)
      self.left_out.add(key, reason)

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    listing, parts = self.listing(pathlib.Path(dl_manager.manual_dir).expanduser())
    for key, reason in listing.left_out.items():
      self.leave_out(key, reason)
    listed = {row.split for row in listing.rows.values()}
    names = [name for name in self.SPLITS if name in listed]
    if self.on_beam:
      from cxrjax.builders import beam_pipeline  # Beam is an optional dependency

      return beam_pipeline.generators(parts, listing, names, str(self.data_dir))
    return {name: self._generate_examples(parts, listing, name) for name in names}

  def _generate_examples(
    self, parts: Sequence[Part], listing: Listing, split: str
  ) -> Iterator[tuple[str, dict]]:
    rows = listing.of(split)
    missing, paths = set(rows), {part.path for part in parts}
    unlisted: set[str] = set()
    for part in parts:
      for key, data in images(part, listing, missing, unlisted.add):
        missing.remove(key)
        try:
          features = example(key, rows[key], listing, data)
        except decode.BadImage as error:
          self.leave_out(key, str(error))
        else:
          yield key, features
    check_absent(split, missing, len(rows), paths)
    check_unlisted(unlisted, listing, paths)
    for key in sorted(missing):
      self.leave_out(key, ABSENT)
    for key in sorted(unlisted):
      self.leave_out(key, UNLISTED)

  def _process_pipeline_result(self, pipeline_result: Any) -> None:
    from cxrjax.builders import beam_pipeline

    left_out, self._counts = beam_pipeline.read_account(str(self.data_dir))
    for key, reason in left_out:
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

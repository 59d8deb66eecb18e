"""Features, vocabularies and the list of left-out images that all TFDS builders share.

Every builder in `tfds_builders/` stores the same columns under the same names, so that code that
reads one set reads all. Unknown values are encoded the same way everywhere: NaN for numbers,
`unknown` for sex and view, an empty text for a site, a black image of one pixel for a mask.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, UInt8, UInt16
from PIL import Image

from cxrjax.core.errors import UserError, suggest
from cxrjax.data.decoding import decode
from cxrjax.data.sources.label_policies import SEXES, VIEWS

_MASK_FORMATS = ("PNG", "GIF", "BMP", "TIFF", "JPEG")
UNCERTAIN = -1.0  # a finding that the reader was unsure of; NaN is one that was not assessed


def features(
  *,
  label: Sequence[str] | None = None,
  labels: Sequence[str] | None = None,
  encoding: str | None = None,
  bits: int = 8,
  mask: bool = False,
  window: bool = False,
  **others: Any,
) -> tfds.features.FeaturesDict:
  """The columns of a data set.

  Args:
    label: names of exclusive classes, one per image.
    labels: names of findings, each 1 (present), 0 (absent), -1 (uncertain) or NaN (unknown).
    encoding: `png` or `jpeg` where all images have that format; None where they differ.
    bits: 8 or 16, of the pixels as published.
    mask: whether some images have a lung mask.
    window: whether some images come with gray levels to show black and white (see
      `cxrjax.data.base.Record`).
    **others: further features, specific to the set.
  """
  image = tfds.features.Image(
    shape=(None, None, 1 if bits == 16 or encoding else None),
    dtype=np.uint16 if bits == 16 else np.uint8,
    encoding_format=encoding,
    doc="Encoded as published; some may be RGB, RGBA or palette images of a gray radiograph.",
  )
  columns: dict[str, Any] = {
    "image": image,
    "id": tfds.features.Text(doc="Unique in the data set."),
    "patient": tfds.features.Text(doc="Shared by all images of one patient; empty if unknown."),
    "age": tfds.features.Scalar(np.float32, doc="In years; NaN where unknown."),
    "sex": tfds.features.ClassLabel(names=SEXES),
    "view": tfds.features.ClassLabel(names=VIEWS),
    "site": tfds.features.Text(doc="Where the image was taken; empty where unknown."),
  }
  if label is not None:
    columns["label"] = tfds.features.ClassLabel(names=tuple(label))
  if labels is not None:
    columns["labels"] = tfds.features.FeaturesDict(
      {name: tfds.features.Scalar(np.float32) for name in labels},
      doc="1 present, 0 absent, -1 uncertain, NaN unknown.",
    )
  if mask:
    columns["mask"] = tfds.features.Image(
      shape=(None, None, 1),
      encoding_format="png",
      doc="Lungs above 0; one black pixel where the image has no mask.",
    )
  if window:
    columns["window"] = tfds.features.Tensor(
      shape=(2,), dtype=np.float32, doc="Gray levels shown black and white; NaN where not given."
    )
  return tfds.features.FeaturesDict({**columns, **others})


def example(
  columns: tfds.features.FeaturesDict,
  *,
  image: bytes,
  id: str,
  patient: str,
  age: float | None = None,
  sex: str = "",
  view: str = "",
  site: str = "",
  mask: bytes | None = None,
  window: tuple[float, float] | None = None,
  **others: Any,
) -> dict[str, Any]:
  """One example, with unknown values in the common encoding.

  Args:
    columns: of the data set; a mask or window without a column is dropped.
    image: encoded pixels, as published.
    id: unique in the data set.
    patient: shared by all images of one patient; empty where unknown.
    age: in years.
    sex: `F`, `M`, or anything else for unknown.
    view: `PA`, `AP`, `L`, or anything else for unknown.
    site: where the image was taken.
    mask: encoded pixels of the lungs.
    window: gray levels shown black and white.
    **others: `label`, `labels` and the data set's own columns.
  """
  row = {
    "image": image,
    "id": id,
    "patient": patient,
    "age": np.float32(np.nan if age is None else age),
    "sex": sex if sex in SEXES else "unknown",
    "view": view if view in VIEWS else "unknown",
    "site": site,
    **others,
  }
  if "mask" in columns:
    row["mask"] = no_mask() if mask is None else mask
  if "window" in columns:
    row["window"] = np.array((np.nan, np.nan) if window is None else window, np.float32)
  return row


@functools.cache
def no_mask() -> bytes:
  """Placeholder for a missing mask: one black pixel, which every reader can decode."""
  return png(np.zeros((1, 1, 1), np.uint8))


def png(
  pixels: UInt8[np.ndarray, "h w 1"] | UInt16[np.ndarray, "h w 1"] | Bool[np.ndarray, "h w 1"],
) -> bytes:
  """Encodes gray pixels as PNG; for sets published raw or as DICOM."""
  plane = pixels[..., 0]
  if plane.dtype == np.bool_:
    plane = plane.astype(np.uint8) * 255
  buffer = io.BytesIO()
  Image.fromarray(plane).save(buffer, "PNG", compress_level=4)
  return buffer.getvalue()


def mask(*published: bytes, like: tuple[int, int]) -> bytes:
  """Union of published masks, encoded as PNG of 0 and 255, at the image's size.

  Pixels brighter than half of the brightest count as inside, so that masks of 0 and 1, of 0 and
  255, and those blurred by JPEG are all read alike. Sizes are matched by nearest-neighbour
  interpolation.

  Args:
    *published: encoded masks (PNG, GIF, BMP, TIFF, JPEG), such as of the left and the right lung.
    like: height and width of the image.

  Raises:
    BadImage: one of them is unreadable, or all are empty.
  """
  height, width = like
  inside = np.zeros(like, np.bool_)
  for data in published:
    try:
      with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's about sizes, which are checked here
        image = Image.open(io.BytesIO(data), formats=_MASK_FORMATS)
        decode.check_shape(image.width, image.height)
        plane = image.convert("RGB" if image.mode in ("P", "RGBA") else image.mode).convert("L")
    except decode.BadImage:
      raise
    except Exception as error:  # PIL's codecs raise anything on damaged data
      raise decode.BadImage(f"its mask is damaged or not an image ({error})") from error
    plane = plane.resize((width, height), Image.Resampling.NEAREST)
    levels = np.asarray(plane)
    inside |= levels > levels.max() / 2
  if not inside.any():
    raise decode.BadImage("its mask is empty")
  return png(inside[..., None])


def find_fault(image: bytes) -> str:
  """Decodes an image to check it; returns why it is unusable, or an empty text."""
  try:
    decode.decode(image, at_least=64)
  except decode.BadImage as error:
    return str(error)
  return ""


def at_least_one(
  examples: Iterable[tuple[str, dict]], what: str, left_out: LeftOut
) -> Iterator[tuple[str, dict]]:
  """Passes on the examples of a split, and checks that there is at least one.

  Raises:
    UserError: there are none, because all were left out.
  """
  empty = True
  for example_of_split in examples:
    empty = False
    yield example_of_split
  if empty:
    listed = left_out.metadata["left_out"] or [["", ""]]
    raise UserError(f"no image of {what} can be used, such as {': '.join(listed[-1])}")


def match_files(names: Iterable[str], pattern: str) -> dict[tuple[str, ...], str]:
  """Files of an archive whose path matches a pattern, keyed by the pattern's groups.

  Re-uploads wrap a tree in folders or hold it twice: of files with equal groups the one nearest to
  the top is used.

  Args:
    names: paths in the archive.
    pattern: regular expression of the end of a path, with groups, case-insensitive; it starts at
      the beginning of a folder or file name.
  """
  files: dict[tuple[str, ...], str] = {}
  search = re.compile(rf"(?:^|/){pattern}$", re.IGNORECASE).search
  for name in names:
    match = search(name)
    if match:
      key = match.groups()
      if key not in files or (name.count("/"), name) < (files[key].count("/"), files[key]):
        files[key] = name
  return files


class LeftOut:
  """Images a builder leaves out, counted and named in the prepared data set and in reports.

  Use: `left_out = LeftOut()` in `_info`, `metadata=left_out.metadata` in the `DatasetInfo`, and
  `self.left_out.add(name, reason)` while examples are generated. The source of the data set lists
  them in `info.skipped`.
  """

  def __init__(self) -> None:
    self.metadata = tfds.core.MetadataDict(left_out=[], notes=[])

  def add(self, name: str, reason: str) -> None:
    self.metadata["left_out"].append([name, " ".join(reason.split())])

  def add_all(self, found: Iterable[tuple[str, str]]) -> None:
    """Adds several, such as the files that an archive refused."""
    for name, reason in found:
      self.add(name, reason)

  def note(self, text: str) -> None:
    """Adds a sentence for readers of a report, such as a guess that the builder had to make."""
    if text not in self.metadata["notes"]:
      self.metadata["notes"].append(text)


def number(text: str | None) -> float:
  """Parses a finding's value as published sets write it: 1.0, 0, -1, or empty (NaN, unknown)."""
  return float(text) if text is not None and text.strip() else float("nan")


def required(row: Mapping[str, str], name: str, where: str) -> str:
  """A required CSV cell; raises a UserError that names the file, the column and similar columns."""
  if row.get(name) is None:
    raise UserError(f"{where} has no column {name!r}{suggest(name, [k for k in row if k])}")
  return row[name]

"""Classifies the files of a folder: images, DICOM, tables, others."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int8

from cxrjax.data.decoding import dicom, formats
from cxrjax.data.sources import archive, table_file

PLAIN = (
  ".png",
  ".jpg",
  ".jpeg",
  ".jpe",
  ".jfif",
  ".jp2",
  ".j2k",
  ".tif",
  ".tiff",
  ".bmp",
  ".webp",
  ".gif",
  ".pgm",
  ".ppm",
  ".pnm",
)
DICOM = (".dcm", ".dicom", ".dic", ".ima", ".dcm.gz")
EXTENSIONS = (*PLAIN, *DICOM)
TABLE = "a table"
# Recognized by name alone; all other files are opened, as DICOM files may have any name.
_NON_IMAGES = {
  ".zip": "a zip within a zip, which is not opened",
  **dict.fromkeys(table_file.EXTENSIONS, TABLE),
  **dict.fromkeys(
    (
      ".txt",
      ".md",
      ".json",
      ".jsonl",
      ".xml",
      ".html",
      ".htm",
      ".yaml",
      ".yml",
      ".log",
      ".pdf",
      ".doc",
      ".docx",
      ".rtf",
      ".xls",
      ".ods",
      ".parquet",
      ".py",
      ".ipynb",
      ".sh",
      ".ini",
      ".cfg",
      ".csv.gz",
    ),
    "a document",
  ),
  **dict.fromkeys(
    (".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"),
    "an archive; unpack it, or pack it as a zip",
  ),
  **dict.fromkeys(
    (".npy", ".npz", ".pt", ".pth", ".h5", ".hdf5", ".safetensors", ".pkl", ".tfrecord", ".mat"),
    "arrays, not an image file",
  ),
  **dict.fromkeys(
    (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".raw"),
    "a volume or raw pixels; convert it to DICOM, PNG or TIFF",
  ),
  **dict.fromkeys(
    (".svg", ".heic", ".avif", ".psd", ".mp4", ".avi"),
    "of an unsupported format; convert it to PNG or TIFF",
  ),
}
IMAGE, MEDICAL, OTHER, UNKNOWN = 0, 1, 2, 3  # by extension; DICOM; no image; not yet opened


def _extension(name: str) -> str:
  """Extension of a file name in lower case; both parts of `.dcm.gz`."""
  dot = name.rfind(".")
  extension = name[dot:].lower() if dot > 0 else ""
  return os.path.splitext(name[:dot])[1].lower() + extension if extension == ".gz" else extension


def by_name(name: str) -> int:
  """Kind of a file by its name."""
  if name[0] == ".":  # hidden; archive.is_junk is too slow for a million files
    return OTHER
  extension = _extension(name)
  if extension in PLAIN:
    return IMAGE
  if extension in DICOM:
    return MEDICAL
  if extension in _NON_IMAGES or extension.endswith(".gz") or name.upper() == "DICOMDIR":
    return OTHER
  return UNKNOWN


def by_start(start: bytes) -> int:
  """Kind of a file by its first thousand bytes or so, if its name is inconclusive."""
  return MEDICAL if dicom.is_dicom(start) else IMAGE if formats.is_image(start) else OTHER


@dataclasses.dataclass(frozen=True)
class Others:
  """Files of one kind that are not images.

  Attributes:
    kind: their extension, or a description if they have none.
    paths: paths of the files; those of folders end in `/`.
    reason: why they are not images.
  """

  kind: str
  paths: tuple[str, ...]
  reason: str

  def said(self, example: str) -> str:
    """Note with their number and the reason.

    Args:
      example: displayed name of the first file.
    """
    return f"not images: {len(self.paths)} {self.kind} (such as {example}), {self.reason}"


def others(paths: Sequence[str], kinds: Int8[np.ndarray, "n"]) -> Iterator[Others]:
  """Groups the files that are not images, most frequent kind first, without system clutter."""
  groups: dict[tuple[str, str], list[str]] = {}
  for row in np.flatnonzero((kinds == OTHER) | (kinds == UNKNOWN)).tolist():
    name = paths[row].rstrip("/").rpartition("/")[2]
    extension = _extension(name)
    if archive.is_left_behind(paths[row]):
      continue
    if kinds[row] == UNKNOWN:
      group = extension or "without extension", "it cannot be read"
    elif archive.is_junk(paths[row]):
      group = "hidden", "hidden files and folders are skipped"
    elif extension in EXTENSIONS:
      group = extension, "a broken link, or not a regular file"
    elif name.upper() == "DICOMDIR":
      group = "DICOMDIR", "an index of DICOM files, which is not needed"
    else:
      reason = _NON_IMAGES.get(extension, _NON_IMAGES.get(os.path.splitext(name)[1].lower()))
      group = (
        extension or "without extension",
        reason or "its first bytes are not those of an image",
      )
    groups.setdefault(group, []).append(paths[row])
  by_size = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
  for (kind, reason), members in by_size:
    yield Others(kind, tuple(members), reason)

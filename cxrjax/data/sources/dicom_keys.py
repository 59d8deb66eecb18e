"""Images by what their DICOM headers say under a keyword: `AccessionNumber`, `StudyInstanceUID`.

Values are compared and forgotten: what is remembered are keyed hashes, as of patients.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int64, UInt8

from cxrjax.core import files
from cxrjax.core.errors import UserError, suggest
from cxrjax.data.decoding import decode, dicom
from cxrjax.data.sources import file_hashes, folder_index

KEY = "config.data.options.key"
_DIGEST = 16


def by_key(
  index: folder_index.Index, file: str, keyword: str, values: Sequence[str], numbers: Sequence[int]
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"], list[str]]:
  """Images whose header has one of some values under a keyword.

  Args:
    index: the images.
    file: the table that has the values, for errors.
    keyword: of DICOM's dictionary.
    values: one a row of the table.
    numbers: lines that they stand on.

  Returns:
    Rows of the images in the index, in its order; for each the row of the table; and remarks.

  Raises:
    UserError: no such keyword, no DICOM, no value that fits, or one that stands in two rows.
  """
  _check(keyword)
  medical = index.images[index.kinds[index.images] == folder_index.MEDICAL]
  if not len(medical):
    raise UserError(
      f"{KEY}={keyword} is read from DICOM headers, and {index.root} has no DICOM "
      "files; let the table name the images' paths, with path_column"
    )
  place: dict[bytes, int] = {}
  for i, value in enumerate(values):
    if not value:
      continue
    first = place.setdefault(hashed(value, index.key), i)
    if first != i:
      raise UserError(
        f"{file} line {numbers[i]} has the {keyword} of line {numbers[first]}; give each in one row"
      )
  found = [place.get(digest.tobytes(), -1) for digest in digests(index, medical, [keyword])[:, 0]]
  rows = np.array(found, np.int64)
  if not (rows >= 0).any():
    raise UserError(
      f"no {keyword} of the {len(medical)} DICOM files in {index.root} is in {file}; "
      "is it the right column (key_column)? Spreadsheets drop leading zeros"
    )
  unused = len(place) - len(set(rows[rows >= 0].tolist()))
  notes = [f"{unused} rows are of no image: their {keyword} is in no file"] if unused else []
  return medical[rows >= 0], rows[rows >= 0], notes


def _check(keyword: str) -> None:
  from pydicom import datadict

  if datadict.tag_for_keyword(keyword) is None:
    known = (
      "AccessionNumber",
      "PatientID",
      "StudyInstanceUID",
      "SeriesInstanceUID",
      "SOPInstanceUID",
      "StudyID",
    )
    raise UserError(f"{KEY}={keyword!r} is no keyword of DICOM{suggest(keyword, known)}, ...")


def hashed(value: str, key: bytes) -> bytes:
  """The keyed hash of a value."""
  return hashlib.blake2b(value.encode(), key=key[:64], digest_size=_DIGEST).digest()


def digests(
  index: folder_index.Index,
  rows: Int64[np.ndarray, "n"],
  keywords: Sequence[str],
  clean: Callable[[str], str] = str.strip,
) -> UInt8[np.ndarray, "n k 16"]:
  """Keyed hashes of what headers say under some keywords, zeros where they say nothing.

  Args:
    index: the images.
    rows: DICOM files of it.
    keywords: of DICOM's dictionary.
    clean: what is done to a value before it is hashed.
  """
  name = f"{index.memory.stem}.{'-'.join(keywords)}.npz"
  stamp = hashlib.sha256(
    b"".join(
      [
        index.key,
        index.states[rows].tobytes(),
        *(index.paths[row].encode("utf-8", "surrogateescape") + b"\0" for row in rows.tolist()),
      ]
    )
  )
  shape = len(rows), len(keywords), _DIGEST
  with contextlib.suppress(OSError, ValueError, KeyError):
    remembered = files.read_npz(index.memory.with_name(name))
    if str(remembered["stamp"]) == stamp.hexdigest() and remembered["digests"].shape == shape:
      return remembered["digests"]
  found = np.zeros(shape, np.uint8)

  def one(place: int) -> None:
    with (
      contextlib.suppress(OSError, UserError, decode.BadImage),
      index.open(int(rows[place])) as opened,
    ):
      for k, value in enumerate(dicom.values(opened, keywords)):
        if value := clean(value):
          found[place, k] = np.frombuffer(hashed(value, index.key), np.uint8)

  file_hashes.in_threads(np.arange(len(rows)), one, f"reading {', '.join(keywords)}")
  with contextlib.suppress(OSError), file_hashes.written(index.memory.with_name(name)) as opened:
    np.savez(opened, stamp=stamp.hexdigest(), digests=found)
  return found

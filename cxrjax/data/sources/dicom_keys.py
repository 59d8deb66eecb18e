"""Matches images to table rows by a keyword of their DICOM headers, such as `AccessionNumber`.

Values are compared but never stored: the cache holds keyed hashes, as for patients.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int64, UInt8

from cxrjax.core import files
from cxrjax.core.atomic_files import atomic_open
from cxrjax.core.errors import UserError, suggest
from cxrjax.data.decoding import decode, dicom
from cxrjax.data.sources import file_hashes, folder_index

KEY = "config.data.options.key"
_DIGEST = 16


def by_key(
  index: folder_index.Index, file: str, keyword: str, values: Sequence[str], numbers: Sequence[int]
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"], list[str]]:
  """Finds the images whose header has one of the given values of a keyword.

  Args:
    index: the images.
    file: the table of the values, for errors.
    keyword: keyword of the DICOM dictionary.
    values: one value per row of the table.
    numbers: line numbers of the values.

  Returns:
    Rows of the images in the index, in its order; the table row of each; and notes.

  Raises:
    UserError: unknown keyword, no DICOM files, no matching value, or a value in two rows.
  """
  _check_keyword(keyword)
  medical = index.images[index.kinds[index.images] == folder_index.MEDICAL]
  if not len(medical):
    raise UserError(
      f"{KEY}={keyword} is read from DICOM headers, and {index.root} has no DICOM "
      "files; let the table name the images' paths, with path_column"
    )
  table_row_of: dict[bytes, int] = {}
  for i, value in enumerate(values):
    if not value:
      continue
    first = table_row_of.setdefault(hashed(value, index.key), i)
    if first != i:
      raise UserError(
        f"{file} line {numbers[i]} has the {keyword} of line {numbers[first]}; give each in one row"
      )
  image_digests = digests(index, medical, [keyword])[:, 0]
  rows = np.array([table_row_of.get(d.tobytes(), -1) for d in image_digests], np.int64)
  is_match = rows >= 0
  if not is_match.any():
    raise UserError(
      f"no {keyword} of the {len(medical)} DICOM files in {index.root} is in {file}; "
      "is it the right column (key_column)? Spreadsheets drop leading zeros"
    )
  unused = len(table_row_of) - len(set(rows[is_match].tolist()))
  notes = [f"{unused} rows are of no image: their {keyword} is in no file"] if unused else []
  return medical[is_match], rows[is_match], notes


def _check_keyword(keyword: str) -> None:
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
    raise UserError(f"{KEY}={keyword!r} is not a DICOM keyword{suggest(keyword, known)}, ...")


def hashed(value: str, key: bytes) -> bytes:
  """Keyed hash of a value."""
  return hashlib.blake2b(value.encode(), key=key[:64], digest_size=_DIGEST).digest()


def digests(
  index: folder_index.Index,
  rows: Int64[np.ndarray, "n"],
  keywords: Sequence[str],
  clean: Callable[[str], str] = str.strip,
) -> UInt8[np.ndarray, "n k 16"]:
  """Keyed hashes of the values of some keywords in the headers; zeros for missing ones.

  Args:
    index: the images.
    rows: rows of DICOM files in the index.
    keywords: keywords of the DICOM dictionary.
    clean: normalization of a value before it is hashed.
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
    cached = files.read_npz(index.memory.with_name(name))
    if str(cached["stamp"]) == stamp.hexdigest() and cached["digests"].shape == shape:
      return cached["digests"]
  hashes = np.zeros(shape, np.uint8)

  def read_header(i: int) -> None:
    with (
      contextlib.suppress(OSError, UserError, decode.BadImage),
      index.open(int(rows[i])) as opened,
    ):
      for k, value in enumerate(dicom.header_values(opened, keywords)):
        if value := clean(value):
          hashes[i, k] = np.frombuffer(hashed(value, index.key), np.uint8)

  file_hashes.in_threads(np.arange(len(rows)), read_header, f"reading {', '.join(keywords)}")
  with (
    contextlib.suppress(OSError),
    atomic_open(index.memory.with_name(name), private=True) as opened,
  ):
    np.savez(opened, stamp=stamp.hexdigest(), digests=hashes)
  return hashes

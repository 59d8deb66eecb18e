"""Reads tables as spreadsheets save them: CSV in various encodings and delimiters, and Excel."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator

from cxrjax.core.errors import UserError
from cxrjax.data.sources import xlsx

EXTENSIONS = (".csv", ".tsv", ".xlsx")
_SAVE = "save it as CSV in UTF-8"
_DELIMITERS = ",;\t"


class TableFile:
  """Header and rows of a table.

  Spreadsheet artifacts are removed: byte order marks, a first line `sep=;`, empty lines, and empty
  cells beyond the header.

  Args:
    file: path for error messages.
    data: the file's bytes.

  Attributes:
    file: as given.
    header: names of the columns, stripped; some may be empty.
    notes: remarks for readers of the report.

  Raises:
    UserError: the table cannot be read, or two columns have the same name.
  """

  def __init__(self, file: str, data: bytes):
    self.file = file
    self.notes: list[str] = []
    if data.startswith(b"PK\x03\x04"):
      self._rows = _excel(file, data)
    else:
      self._rows = self._csv(self._decode(data))
    _, header = next(self._rows, (0, []))
    self.header = [name.strip() for name in header]
    duplicates = [name for name, n in Counter(self.header).items() if n > 1 and name]
    if duplicates:
      raise UserError(f"{file} has the column {duplicates[0]!r} twice; rename one of them")

  def rows(self) -> Iterator[tuple[int, list[str]]]:
    """Yields line number (row number in Excel) and cells of each data row; can be used once.

    Raises:
      UserError: a row has more or fewer cells than the header.
    """
    width = len(self.header)
    for number, cells in self._rows:
      if len(cells) < width or any(cells[width:]):
        raise UserError(
          f"{self.file} line {number} has {len(cells)} fields, the header {width}: "
          "is the file complete?"
        )
      yield number, cells[:width]

  def _decode(self, data: bytes) -> str:
    start = data[:400]
    if start.startswith(b"\xd0\xcf\x11\xe0"):
      raise UserError(f"{self.file} is in the old Excel format (.xls); {_SAVE}, or as .xlsx")
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
      encoding = "utf-16"
    elif b"\0" not in start:
      encoding = "utf-8-sig"
    elif b"\0" not in start[::2]:
      encoding = "utf-16-le"
    elif b"\0" not in start[1::2]:
      encoding = "utf-16-be"
    else:
      raise UserError(f"{self.file} is not text; {_SAVE}")
    try:
      return data.decode(encoding)
    except UnicodeDecodeError as error:
      if encoding != "utf-8-sig":
        raise UserError(
          f"{self.file} is damaged: it is UTF-16 up to byte {error.start}; {_SAVE}"
        ) from error
    try:
      text = data.decode("cp1252")
    except UnicodeDecodeError as error:
      raise UserError(
        f"{self.file} is text in an unknown encoding (byte {error.start}); {_SAVE}"
      ) from error
    self.notes.append(
      f"it is not UTF-8 and was read as Windows-1252; if accented letters look wrong, {_SAVE}"
    )
    return text

  def _csv(self, text: str) -> Iterator[tuple[int, list[str]]]:
    stream = io.StringIO(text, newline="")
    delimiter, skipped_lines, start = "", 0, 0
    while line := stream.readline():
      match = re.fullmatch('"?sep=(.)"?', line.strip("\r\n "), re.IGNORECASE)
      if match:
        delimiter = match[1]
      elif line.strip(_DELIMITERS + "\r\n "):
        break
      skipped_lines, start = skipped_lines + 1, stream.tell()
    # The most frequent, as commas may be decimal points in semicolon-separated tables.
    delimiter = delimiter or max(_DELIMITERS, key=line.count)
    stream.seek(start)
    reader = csv.reader(stream, delimiter=delimiter)
    try:
      for cells in reader:
        if any(map(str.strip, cells)):
          yield skipped_lines + reader.line_num, cells
    except csv.Error as error:
      number = skipped_lines + reader.line_num
      raise UserError(f"{self.file} line {number} is not valid CSV ({error})") from error


def _excel(file: str, data: bytes) -> Iterator[tuple[int, list[str]]]:
  """Yields the rows of the first sheet, padded to the width of the first row."""
  width = 0
  try:
    for number, cells in xlsx.sheet(file, data):
      width = width or max(cells, default=0)
      if any(cells.values()):
        yield number, [cells.get(k + 1, "") for k in range(max(width, max(cells)))]
  except UserError as error:
    raise UserError(
      f"{file} starts like an Excel file but cannot be read as one; {_SAVE} ({error})"
    ) from error

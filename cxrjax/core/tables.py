"""CSV that is safe to open in a spreadsheet: no cell is taken for a formula.

Text that begins with `=`, `+`, `-`, `@`, a tab or a line break is prefixed by an apostrophe, unless
it is a number. `plain` removes it again, so that names can be joined with other tables: a cell that
begins with apostrophes and one of these characters has one apostrophe more than the name.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# In some languages spreadsheets also accept the full-width forms of these characters.
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|-?inf", re.ASCII)
_NEEDS_QUOTES = re.compile('[",;\t\r\n]')  # some programs also split cells at semicolons and tabs


def cell(value: Any) -> str:
  """Formats a value as a CSV cell."""
  text = "" if value is None else str(value)
  if isinstance(value, str) and _FORMULA.match(text) and not _NUMBER.fullmatch(text):
    text = "'" + text
  return '"' + text.replace('"', '""') + '"' if _NEEDS_QUOTES.search(text) else text


def plain(text: str) -> str:
  """Inverts `cell` for text from a CSV reader."""
  return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def rows(columns: str, records: Iterable[Mapping[str, Any]]) -> Iterator[list[Any]]:
  """A header of the columns, named in one string, and a row for every record."""
  names = columns.split()
  yield list(names)
  for record in records:
    yield [record.get(name, "") for name in names]


def write(opened: io.TextIOBase, rows: Iterable[Iterable[Any]]) -> None:
  """Writes rows, each ended by a newline."""
  for row in rows:
    opened.write(",".join(map(cell, row)) + "\n")


def read(opened: io.TextIOBase) -> Iterator[list[str]]:
  """Reads the rows of a table by `write`, from a file opened with `newline=""`."""
  for row in csv.reader(opened):
    yield [plain(text) for text in row]

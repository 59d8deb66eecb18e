"""CSV that a spreadsheet can open: no cell that this program writes is taken for a formula.

A text that begins with `=`, `+`, `-`, `@`, a tab or a carriage return gets an apostrophe in front,
unless it is a number. `plain` takes it away again, so that names can be joined with other tables:
a cell that begins with apostrophes and one of these characters has one apostrophe more than the
name.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any

# Spreadsheets of some languages take the wide forms of these characters for them.
_RUNS = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|-?inf", re.ASCII)
_QUOTED = re.compile('[",;\t\r\n]')  # the semicolon and the tab divide cells for some programs


def cell(value: Any) -> str:
  """A value as it stands between two commas."""
  text = "" if value is None else str(value)
  if isinstance(value, str) and _RUNS.match(text) and not _NUMBER.fullmatch(text):
    text = "'" + text
  return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


def plain(text: str) -> str:
  """The text that `cell` was given, of what a reader of CSV gives."""
  return text[1:] if text.startswith("'") and _RUNS.match(text) else text


def write(opened: io.TextIOBase, rows: Iterable[Iterable[Any]]) -> None:
  """Adds rows, each ended by a newline."""
  for row in rows:
    opened.write(",".join(map(cell, row)) + "\n")


def read(opened: io.TextIOBase) -> Iterator[list[str]]:
  """Rows of a table that `write` wrote, to a file opened with `newline=""`."""
  for row in csv.reader(opened):
    yield [plain(text) for text in row]

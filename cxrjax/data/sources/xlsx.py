"""Tables that are published as Excel files, read with the standard library."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

from cxrjax.core.errors import UserError, suggest
from cxrjax.data.sources import archive

MAX_XML = 64 << 20  # bytes of one part; in memory it is ten times as large
_SHEET = re.compile(r"xl/worksheets/sheet(\d+)\.xml")


def rows(
  opened: archive.Archive, name: str, columns: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
  """Rows of the first sheet of an .xlsx file, with a place for errors, as `archive.rows` gives.

  The first row is the header; cells are text as stored, empty ones an empty text.

  Args:
    opened: the archive that the file lies in.
    name: of the file in it.
    columns: those it must have.

  Raises:
    UserError: it is no .xlsx file, is damaged, or a column is missing.
  """
  where = f"{opened.path}: {name}"
  header: dict[int, str] | None = None
  for number, cells in sheet(where, opened.read(name)):
    if header is None:
      header = cells
      for column in columns:
        if column not in header.values():
          raise UserError(f"{where} has no column {column!r}{suggest(column, header.values())}")
    elif cells:
      yield (f"{where} line {number}", {column: cells.get(at, "") for at, column in header.items()})


def sheet(where: str, data: bytes) -> Iterator[tuple[int, dict[int, str]]]:
  """Rows of the first sheet of an .xlsx file: number, and text of each cell by its column from 1.

  Args:
    where: the file is, for errors.
    data: its bytes.

  Raises:
    UserError: it is no .xlsx file, or is damaged.
  """
  with archive.Archive(where, content=data) as inside:
    sheets = sorted((int(match[1]), n) for n in inside.names if (match := _SHEET.fullmatch(n)))
    if not sheets:
      raise UserError(f"{where} is no Excel file: it has no sheet")
    shared = []
    if "xl/sharedStrings.xml" in inside:
      shared = [_text(item) for item in _parse(inside, "xl/sharedStrings.xml", where)]
    rows = _all(_parse(inside, sheets[0][1], where), "row")
    for at, row in enumerate(rows, 1):
      try:
        cells = dict(_cells(row, shared))
      except (ValueError, IndexError) as error:
        raise UserError(f"{where} is damaged in row {at} ({error})") from error
      given = row.get("r", "")
      yield int(given) if given.isdecimal() else at, cells


class _DocumentType(Exception):
  """No Excel file declares one; it could hold entities that explode."""


class _Tree(ElementTree.TreeBuilder):
  def doctype(self, name: str, public: str | None, system: str | None) -> None:
    raise _DocumentType


def _parse(inside: archive.Archive, name: str, where: str) -> ElementTree.Element:
  data = inside.read(name, MAX_XML)
  parser = ElementTree.XMLParser(target=_Tree())
  try:
    parser.feed(data)
    return parser.close()
  except _DocumentType as error:
    raise UserError(f"{where} is no Excel file: {name} in it declares a document type") from error
  except ElementTree.ParseError as error:
    raise UserError(f"{where} is damaged ({name}: {error})") from error


def _all(element: ElementTree.Element, tag: str) -> Iterator[ElementTree.Element]:
  """Descendants by their tag without its namespace, which differs between dialects."""
  return (found for found in element.iter() if found.tag.rpartition("}")[2] == tag)


def _text(item: ElementTree.Element) -> str:
  """A string, of one or several runs; how it is pronounced is left out."""
  parts, waiting = [], [item]
  while waiting:
    part = waiting.pop()
    tag = part.tag.rpartition("}")[2]
    if tag == "t":
      parts.append(part.text or "")
    if tag != "rPh":
      waiting += reversed(part)
  return "".join(parts)


def _cells(row: ElementTree.Element, shared: Sequence[str]) -> Iterator[tuple[int, str]]:
  at = 0
  for cell in _all(row, "c"):
    letters = re.match(r"[A-Z]+", cell.get("r", ""))
    if letters:
      at = 0
      for letter in letters[0]:
        at = at * 26 + ord(letter) - ord("A") + 1
    else:
      at += 1
    kind, value = cell.get("t"), next(_all(cell, "v"), None)
    if kind == "inlineStr":
      text = _text(cell)
    elif value is None:
      continue
    else:
      text = shared[int(value.text or "")] if kind == "s" else value.text or ""
    yield at, text.strip()

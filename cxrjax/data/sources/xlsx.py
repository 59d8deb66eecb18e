"""Reads Excel files with the standard library."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

from cxrjax.core.errors import UserError, suggest
from cxrjax.data.sources import archive

MAX_XML = 64 << 20  # bytes per part; parsed, it takes ten times as much memory
_SHEET = re.compile(r"xl/worksheets/sheet(\d+)\.xml")
_RELATIONS = "xl/_rels/workbook.xml.rels"  # which file each sheet is in


def rows(
  opened: archive.Archive, name: str, columns: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
  """Yields the rows of the first sheet of an .xlsx file, each with its place, like `archive.rows`.

  The first row is the header; cells are strings as stored, "" if empty.

  Args:
    opened: the archive that contains the file.
    name: name of the file in the archive.
    columns: required columns.

  Raises:
    UserError: not an .xlsx file, a damaged one, or a column is missing.
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
      row = {column: cells.get(position, "") for position, column in header.items()}
      yield f"{where} line {number}", row


def sheet(where: str, data: bytes) -> Iterator[tuple[int, dict[int, str]]]:
  """Yields the rows of the first sheet: row number, and the text of each cell by column from 1.

  Args:
    where: path of the file for error messages.
    data: its bytes.

  Raises:
    UserError: not an .xlsx file, or a damaged one.
  """
  with archive.Archive(where, content=data) as inside:
    first = _first_sheet(inside, where)
    shared = []  # strings that cells refer to by index
    if "xl/sharedStrings.xml" in inside:
      shared = [_text(item) for item in _parse(inside, "xl/sharedStrings.xml", where)]
    rows = _descendants(_parse(inside, first, where), "row")
    for position, row in enumerate(rows, 1):
      try:
        cells = dict(_cells(row, shared))
      except (ValueError, IndexError) as error:
        raise UserError(f"{where} is damaged in row {position} ({error})") from error
      number = row.get("r", "")
      yield int(number) if number.isdecimal() else position, cells


def _first_sheet(inside: archive.Archive, where: str) -> str:
  """Name of the first sheet in the order that spreadsheets show, in which files need not be."""
  if "xl/workbook.xml" in inside and _RELATIONS in inside:
    relations = _descendants(_parse(inside, _RELATIONS, where), "Relationship")
    targets = {relation.get("Id"): relation.get("Target", "") for relation in relations}
    for tab in _descendants(_parse(inside, "xl/workbook.xml", where), "sheet"):
      key = next((v for k, v in tab.attrib.items() if k.rpartition("}")[2] == "id"), None)
      name = posixpath.normpath(posixpath.join("/xl", targets.get(key, ""))).lstrip("/")
      if name.startswith("xl/worksheets/") and name in inside:  # not a sheet that is a chart
        return name
  numbered = [(int(match[1]), n) for n in inside.names if (match := _SHEET.fullmatch(n))]
  if not numbered:
    raise UserError(f"{where} is not an Excel file: it has no sheet")
  return min(numbered)[1]


class _DocumentType(Exception):
  """A document type declaration, which Excel never writes and which allows entity expansion."""


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
    raise UserError(
      f"{where} is not an Excel file: {name} in it declares a document type"
    ) from error
  except ElementTree.ParseError as error:
    raise UserError(f"{where} is damaged ({name}: {error})") from error


def _descendants(element: ElementTree.Element, tag: str) -> Iterator[ElementTree.Element]:
  """Descendants with a tag in any namespace, as it differs between dialects."""
  return (child for child in element.iter() if child.tag.rpartition("}")[2] == tag)


def _text(item: ElementTree.Element) -> str:
  """Text of a string of one or more runs, without phonetic hints (`rPh`)."""
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
  """Yields column, from 1, and text of the cells of a row."""
  column = 0
  for cell in _descendants(row, "c"):
    letters = re.match(r"[A-Z]+", cell.get("r", ""))
    if letters:
      column = 0
      for letter in letters[0]:
        column = column * 26 + ord(letter) - ord("A") + 1
    else:
      column += 1
    kind, value = cell.get("t"), next(_descendants(cell, "v"), None)
    if kind == "inlineStr":
      text = _text(cell)
    elif value is None:
      continue
    else:
      text = shared[int(value.text or "")] if kind == "s" else value.text or ""
    yield column, text.strip()

"""Reads the table (CSV or Excel) that describes the images below a folder."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from cxrjax.core.errors import UserError, suggest
from cxrjax.data.decoding import dicom
from cxrjax.data.sources import dicom_keys, folder_names, label_policies, spelling
from cxrjax.data.sources.folder_index import Index
from cxrjax.data.sources.table_file import TableFile

KEY = "config.data.options"
# Columns used by default, compared by letters and digits only; all others must be named.
GUESSES = {
  "path": (
    "path",
    "file",
    "filename",
    "filepath",
    "image",
    "imagepath",
    "imagefile",
    "imagename",
    "imageindex",
    "imageid",
  ),
  "label": ("label", "class"),
  "patient": ("patient", "patientid", "patientnumber", "subject", "subjectid", "mrn"),
  "split": ("split",),
  "view": ("view", "viewposition"),
  "age": ("age", "patientage"),
  "sex": ("sex", "gender", "patientsex", "patientgender"),
  "site": (),
}
_PRESENT, _ABSENT, _UNCERTAIN = ("1", "1.0"), ("0", "0.0"), ("-1", "-1.0")
_AT_A_TIME = 10_000  # rows; as strings, a row of a wide table is large
_UNKNOWN_WORDS = ("u", "o", "other", "-")  # for ages, sexes and views, beside the usual ones
_MAX_LISTED = 12  # columns in a note


@dataclasses.dataclass(frozen=True)
class Listed:
  """The images listed by a CSV; row `i` of every field is one image.

  Attributes:
    rows: row of each image in the index.
    labels: one value per class: 1, 0, NaN unknown.
    classes: names of the label columns.
    exclusive: one class per image, or several findings.
    patients: patient of each image, empty where unknown; like splits, sites, views, sexes and ages,
      None without such a column.
    patient_column: column of the patients.
    splits: split of each image, empty where it has none.
    sites, views, sexes, ages: as in `cxrjax.data.base.Table`.
    absent: listed images that are missing, with the line of each.
    notes: remarks for readers of the report.
    advice: how to get labels, if there are none.
  """

  rows: Int64[np.ndarray, "n"]
  labels: Float32[np.ndarray, "n k"]
  classes: tuple[str, ...]
  exclusive: bool
  patients: list[str] | None
  patient_column: str
  splits: list[str] | None
  sites: list[str] | None
  views: list[str] | None
  sexes: list[str] | None
  ages: Float32[np.ndarray, "n"] | None
  absent: tuple[tuple[str, int], ...]
  notes: tuple[str, ...]
  advice: str = ""


def read(
  index: Index,
  name: str,
  columns: Mapping[str, str | None],
  label_columns: Sequence[str] | None,
  uncertain: str = "ignore",
  key: str | None = None,
  key_column: str | None = None,
) -> Listed:
  """Reads a table and finds its images.

  Args:
    index: the images.
    name: path of the table, below the index's root or anywhere.
    columns: the column for each of `path`, `patient`, `split`, `site`, `view`, `age`, `sex`.
    label_columns: columns with labels.
    uncertain: value of -1: `ignore` (unknown), `zeros` (absent) or `ones` (present).
    key: a DICOM keyword: images are found by this value in their headers, not by paths.
    key_column: column with the keyword's values; by default the one named like the keyword.

  Raises:
    UserError: no such table or column, a row that names no image or a repeated one, an invalid
      value, or none of the images is there.
  """
  label_policies.check_uncertain(uncertain)
  table = _open_table(index, name)
  base = pathlib.PurePath(name).name
  positions = _column_positions(table, columns, label_columns, key, key_column)
  if not label_columns:
    label_columns = [table.header[positions["label"][0]]] if "label" in positions else []
  label_positions = [table.header.index(c) for c in label_columns]
  needed = {position for position, _ in positions.values()} | {*label_positions}
  cells, numbers = _read_columns(table, sorted(needed))
  if not numbers:
    raise UserError(f"{table.file} has no rows")
  place = cells[positions["path" if key is None else "key"][0]]
  absent: Sequence[tuple[str, int]] = ()
  key_notes: Sequence[str] = ()
  if key is None:
    image_rows, table_rows, absent = _by_path(index, table, place, numbers)
  else:
    image_rows, table_rows, key_notes = dicom_keys.by_key(index, table.file, key, place, numbers)
  where = _Where(table.file, [numbers[i] for i in table_rows.tolist()])

  def column_at(position: int) -> list[str]:
    return [cells[position][i] for i in table_rows.tolist()]

  texts = {kind: column_at(position) for kind, (position, _) in positions.items()}
  for kind in ("patient", "split", "site"):
    if kind in texts:
      texts[kind] = ["" if spelling.is_unknown(v) else v for v in texts[kind]]
  labels, classes, exclusive, label_notes = _labels(
    [column_at(p) for p in label_positions], label_columns, where, uncertain
  )
  requested = {kind: by_name for kind, (_, by_name) in positions.items()}
  patients = texts.get("patient")
  if patients is not None and "" in patients and requested["patient"]:
    raise UserError(
      f"{where[patients.index('')]} has no {columns['patient']!r}; every image needs a patient"
    )
  views, sexes, ages = _views_sexes_ages(texts, where, requested)
  notes = [
    *(f"{base}: {note}" for note in (*table.notes, *key_notes, *label_notes)),
    *_spelling_notes(base, texts, classes, label_positions, column_at),
    *_column_notes(base, table.header, positions, label_columns),
  ]
  return Listed(
    rows=image_rows,
    labels=labels,
    classes=classes,
    exclusive=exclusive,
    patients=patients,
    patient_column=table.header[positions["patient"][0]] if "patient" in positions else "",
    splits=texts.get("split"),
    sites=texts.get("site"),
    views=views,
    sexes=sexes,
    ages=None if ages is None else np.array([np.nan if a is None else a for a in ages], np.float32),
    absent=tuple(absent),
    notes=tuple(notes),
    advice="" if classes else _label_advice(base, table.header),
  )


def _by_path(
  index: Index, table: TableFile, names: Sequence[str], numbers: Sequence[int]
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"], Sequence[tuple[str, int]]]:
  """Finds images by their paths: rows of the index, the rows of the table, and what is missing."""
  image_rows, absent = folder_names.by_path(index, table.file, names, numbers)
  table_rows = np.flatnonzero(image_rows >= 0)
  if not len(table_rows):
    raise UserError(
      f"none of the {len(numbers)} images that {table.file} lists is in "
      f"{index.root} (line {numbers[0]}: {names[0]!r}); give the folder that its "
      f"paths are relative to, or the right {KEY}.path_column"
    )
  return image_rows[table_rows], table_rows, absent


def _views_sexes_ages(
  texts: Mapping[str, list[str]], where: _Where, requested: Mapping[str, bool]
) -> tuple[Any, ...]:
  """Values of the columns of views, sexes and ages; None without such a column."""
  return tuple(
    _convert(texts[kind], convert, f"{KEY}.{kind}_column", where, requested[kind])
    if kind in texts
    else None
    for kind, convert in (("view", dicom.view_of), ("sex", dicom.sex_of), ("age", dicom.age_of))
  )


def _label_advice(base: str, header: Sequence[str]) -> str:
  return (
    f"name the label columns of {base} with "
    f"data.label_columns=NAME (it has {', '.join(filter(None, header))})"
  )


def columns_of(index: Index, name: str) -> list[str]:
  """Named columns of a table among the images; empty if it cannot be read."""
  try:
    return [*filter(None, _open_table(index, name).header)]
  except UserError:
    return []


def _open_table(index: Index, name: str) -> TableFile:
  file = f"{index.root}: {name}" if index.root.is_file() else str(index.root / name)
  try:
    data = index.text(name)
    if data is None:
      raise FileNotFoundError("no such file")
  except OSError as error:
    raise UserError(f"{KEY}.csv={name!r}: cannot read {file} ({error})") from error
  return TableFile(file, data)


def _read_columns(
  table: TableFile, positions: Sequence[int]
) -> tuple[dict[int, list[str]], list[int]]:
  """The cells of some columns by position, and the line number that each row ends on."""
  cells: dict[int, list[str]] = {position: [] for position in positions}
  numbers: list[int] = []
  interned: dict[str, str] = {}  # repeated texts share one string
  rows = table.rows()
  while batch := [*itertools.islice(rows, _AT_A_TIME)]:
    numbers += [number for number, _ in batch]
    for position, column in enumerate(zip(*(row for _, row in batch), strict=True)):
      if position in cells:
        stripped = [*map(str.strip, column)]
        cells[position] += map(interned.setdefault, stripped, stripped)
  return cells, numbers


class _Where:
  """Place of each row for errors: `where[i]` is `FILE line N`."""

  def __init__(self, file: str, numbers: list[int]):
    self._file, self._numbers = file, numbers

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, i: int) -> str:
    return f"{self._file} line {self._numbers[i]}"


def _simplified(name: str) -> str:
  """Letters and digits only, in lower case: `Patient ID` and `patient_id` are equal."""
  return re.sub(r"[^a-z0-9]", "", name.casefold())


def _column_positions(
  table: TableFile,
  columns: Mapping[str, str | None],
  label_columns: Sequence[str] | None,
  key: str | None,
  key_column: str | None,
) -> dict[str, tuple[int, bool]]:
  """Position of each kind of column in the table, and whether the user asked for it by name."""
  file, header = table.file, table.header
  # Reversed, so that the first of several similar columns wins.
  by_letters = {_simplified(name): i for i, name in reversed([*enumerate(header)])}
  positions: dict[str, tuple[int, bool]] = {}
  guesses = GUESSES if key is None else {**GUESSES, "key": (_simplified(key),)}
  for kind, names in guesses.items():
    column = key_column if kind == "key" else columns.get(kind)
    if column is not None:
      _check_column(column, f"{KEY}.{kind}_column", table)
      positions[kind] = header.index(column), True
    elif not (kind == "label" and label_columns is not None):
      candidates = [by_letters[name] for name in names if name in by_letters]
      if kind == "label" and len(candidates) > 1:
        first, second = (header[i] for i in candidates[:2])
        raise UserError(
          f"{file} has the columns {first!r} and {second!r}, both "
          f"of which may hold labels; name one with {KEY}.label_columns"
        )
      if candidates:
        positions[kind] = candidates[0], False
  needed = "path" if key is None else "key"
  if needed not in positions:
    like = "looks like a path" if key is None else f"is called {key}"
    raise UserError(
      f"{file} has no column that {like}; name it with {KEY}.{needed}_column"
      + ("" if key else f", or a DICOM keyword with {KEY}.key")
      + f"; columns: {', '.join(header)}"
    )
  for name in label_columns or ():
    _check_column(name, f"{KEY}.label_columns", table)
  return positions


def _check_column(name: str, option: str, table: TableFile) -> None:
  if name not in table.header:
    raise UserError(
      f"{option}={name!r} is not a column of {table.file}{suggest(name, table.header)}"
    )


def _convert(
  texts: list[str], convert: Callable, option: str, where: _Where, is_requested: bool
) -> list:
  """Converts a column; values that cannot be converted raise only if the column was requested."""
  values = {text: convert(text) for text in dict.fromkeys(texts)}
  for text, value in values.items():
    is_unknown = spelling.is_unknown(text) or text.lower() in _UNKNOWN_WORDS
    if is_requested and value in (None, "") and not is_unknown:
      raise UserError(
        f"{where[texts.index(text)]}: {option} has {text!r}, which cannot be "
        "parsed; leave the cell empty if it is unknown"
      )
  return [values[text] for text in texts]


def _labels(
  columns: list[list[str]], names: Sequence[str], where: _Where, uncertain: str
) -> tuple[np.ndarray, tuple[str, ...], bool, list[str]]:
  """Labels, classes, whether classes are exclusive, and notes."""
  findings = {
    **dict.fromkeys(_PRESENT, 1.0),
    **dict.fromkeys(_ABSENT, 0.0),
    **dict.fromkeys(_UNCERTAIN, label_policies.UNCERTAIN[uncertain]),
  }
  if not columns:
    return np.zeros((len(where), 0), np.float32), (), True, []
  notes = _unknown_label_notes(columns)
  if len(columns) == 1:
    values_present = [v for v in dict.fromkeys(columns[0]) if not spelling.is_unknown(v)]
    if not all(v in findings for v in values_present):
      classes = tuple(sorted(values_present))
      return one_hot(columns[0], classes), classes, True, notes
  labels = np.empty((len(columns[0]), len(columns)), np.float32)
  for k, (name, column) in enumerate(zip(names, columns, strict=True)):
    values = {
      v: np.nan if spelling.is_unknown(v) else findings.get(v) for v in dict.fromkeys(column)
    }
    for text, value in values.items():
      if value is None:
        raise UserError(
          f"{where[column.index(text)]}: {name}={text!r}; a finding is 1, 0, -1 "
          "(uncertain) or, if unknown, empty"
        )
    labels[:, k] = [values[v] for v in column]
  return labels, tuple(names), False, notes


def one_hot(labels: Sequence[str], classes: Sequence[str]) -> Float32[np.ndarray, "n k"]:
  """1 for each image's class and 0 for the others; NaN for images without one."""
  rows = np.full((len(classes) + 1, len(classes)), np.nan, np.float32)  # last: unknown
  rows[:-1] = np.eye(len(classes))
  codes = {name: i for i, name in enumerate(classes)}
  return rows[[codes.get(name, -1) for name in labels]]


def _unknown_label_notes(columns: Sequence[Sequence[str]]) -> list[str]:
  """Note on words taken for an unknown label, other than an empty cell and NaN."""
  words = Counter(v for column in columns for v in column if spelling.is_unknown(v))
  counts = {v: n for v, n in words.items() if v.casefold() not in ("", "nan")}
  if not counts:
    return []
  note = f"labels {spelling.counted(counts)} count as unknown"
  if any(v.casefold() == "none" for v in counts):
    note += "; if 'none' is a class, rename it in the table, such as 'no finding'"
  return [note]


def _spelling_notes(
  base: str,
  texts: Mapping[str, list[str]],
  classes: Sequence[str],
  label_positions: Sequence[int],
  column_at: Callable[[int], list[str]],
) -> list[str]:
  """Notes on spellings that probably mean the same; patients are counted, not named."""
  notes = []
  if len(label_positions) == 1 and classes:
    labels = column_at(label_positions[0])
    notes += spelling.notes((v for v in labels if v in classes), "class", base)
  notes += spelling.notes(texts.get("site", ()), "site", base)
  groups = spelling.alike(texts.get("patient", ()))
  if groups:
    images = sum(n for group in groups for n in group.values())
    notes.append(
      f"{base}: {len(groups)} patients are probably spelt in several ways (such as 7 and "
      f"007, or a1 and A1; {images} images) and count as {sum(map(len, groups))}; "
      "spell each consistently"
    )
  return notes


def _column_notes(
  base: str,
  header: Sequence[str],
  positions: Mapping[str, tuple[int, bool]],
  label_columns: Sequence[str],
) -> list[str]:
  """Notes on a patient column used without being asked for, and on unused columns."""
  notes = []
  if "patient" in positions and not positions["patient"][1]:
    notes.append(f"{base}: patients are taken from column {header[positions['patient'][0]]!r}")
  used = {position for position, _ in positions.values()}
  unused = [
    name for i, name in enumerate(header) if name and i not in used and name not in label_columns
  ]
  if unused:
    options = [
      f"data.{kind}_column"
      for kind in ("patient", "split", "site", "view", "age", "sex")
      if kind not in positions
    ]
    options = [*([] if label_columns else ["data.label_columns"]), *options]
    listed = ", ".join(unused[:_MAX_LISTED])
    if len(unused) > _MAX_LISTED:
      listed += f" and {len(unused) - _MAX_LISTED} more"
    notes.append(
      f"{base}: unused columns: {listed}"
      + (f"; {', '.join(options)} would use one" if options else "")
    )
  return notes

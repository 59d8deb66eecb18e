"""A CSV that says what is known of the images below a folder."""

from __future__ import annotations

import csv
import dataclasses
import io
import pathlib
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Int64

from cxrjax.core.build import suggest
from cxrjax.core.errors import UserError
from cxrjax.data import choices, dicom
from cxrjax.data.folder_index import Index

KEY = "config.data.options"
_PATHS = ("path", "file", "filename", "file_name", "image", "image_path", "image_index", "image_id")
# Columns taken without being asked for; the rest only by name.
_GUESSES = {"path": _PATHS, "label": ("label", "class"), "split": ("split",), "view": ("view",),
            "age": ("age",), "sex": ("sex",), "patient": (), "site": ()}
_PRESENT, _ABSENT, _UNSURE = ("1", "1.0"), ("0", "0.0"), ("-1", "-1.0")
_UNKNOWN = ("", "nan", "na", "n/a", "none")
_NO_CLASS = ("", "nan", "NaN")  # a class may well be called "none"
_SEVERAL = -2
_AT_A_TIME = 10_000  # rows; as texts, a row of a wide table is large
_UNKNOWN_FACT = (*_UNKNOWN, "unknown", "u", "o", "other", "-")


@dataclasses.dataclass(frozen=True)
class Listed:
  """The images that a CSV lists; row `i` of everything is one of them.

  Attributes:
    rows: of the index.
    labels: one value per class: 1, 0, NaN unknown.
    classes: names of the label columns.
    exclusive: one class per image, or several findings.
    patients: None where the CSV does not tell; so for what follows.
    splits: empty where a row has none.
    sites, views, sexes, ages: as in `cxrjax.data.types.Table`.
    absent: images it lists that are not there, and why they are left out.
    notes: what a reader of the report should know.
  """

  rows: Int64[np.ndarray, "n"]
  labels: Float32[np.ndarray, "n k"]
  classes: tuple[str, ...]
  exclusive: bool
  patients: list[str] | None
  splits: list[str] | None
  sites: list[str] | None
  views: list[str] | None
  sexes: list[str] | None
  ages: Float32[np.ndarray, "n"] | None
  absent: tuple[tuple[str, str], ...]
  notes: tuple[str, ...]


def read(
    index: Index, name: str, columns: Mapping[str, str | None],
    label_columns: Sequence[str] | None, uncertain: str = "ignore") -> Listed:
  """Reads a CSV and finds its images.

  Args:
    index: the images.
    name: of the CSV, below the index's root or anywhere.
    columns: `path`, `patient`, `split`, `site`, `view`, `age`, `sex`: the column for each.
    label_columns: columns with labels.
    uncertain: what -1 counts as: `ignore` (unknown), `zeros` (absent) or `ones` (present).

  Raises:
    UserError: no such CSV or column, a row that names no image or one named before, a value that
      is none, no image of it is there.
  """
  choices.check_uncertain(uncertain)
  file, text = _text(index, name)
  lines = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
  try:
    header = next(lines, [])
    places = _places(file, header, columns, label_columns)
    wanted = sorted({place for place, _ in places.values()}
                    | {header.index(c) for c in label_columns or ()})
    cells: dict[int, list[str]] = {place: [] for place in wanted}
    numbers: list[int] = []
    same: dict[str, str] = {}  # a text that comes often is kept once
    while some := _some(lines, len(header), file, numbers):
      for place, column in enumerate(zip(*some, strict=True)):
        if place in cells:
          stripped = [*map(str.strip, column)]
          cells[place] += map(same.setdefault, stripped, stripped)
  except csv.Error as error:
    raise UserError(f"{file} line {lines.line_num} is no CSV ({error})") from error
  if not numbers:
    raise UserError(f"{file} has no rows")
  found, absent = _resolve(index, file, cells[places["path"][0]], numbers)
  kept = np.flatnonzero(found >= 0)
  if not len(kept):
    raise UserError(f"none of the {len(numbers)} images that {file} lists is in {index.root} "
                    f"(line {numbers[0]}: {cells[places['path'][0]][0]!r}); give the folder that "
                    f"its paths begin in, or the right {KEY}.path_column")

  def cut(place: int) -> list[str]:
    column = cells[place]
    return column if len(kept) == len(column) else [column[i] for i in kept.tolist()]

  where = _Where(file, [numbers[i] for i in kept.tolist()])
  texts = {kind: cut(place) for kind, (place, _) in places.items()}
  if label_columns is None:
    label_columns = (header[places["label"][0]],) if "label" in places else ()
  labels, classes, exclusive = _labels(
    [cut(header.index(c)) for c in label_columns], label_columns, where, uncertain)
  asked = {kind: given for kind, (_, given) in places.items()}
  patients = texts.get("patient")
  if patients is not None and "" in patients:
    raise UserError(f"{where[patients.index('')]} has no {columns['patient']!r}; every image needs "
                    "a patient")
  facts = {kind: None if kind not in texts else _facts(
    texts[kind], convert, f"{KEY}.{kind}_column", where, asked[kind])
    for kind, convert in (("view", dicom.view_of), ("sex", dicom.sex_of), ("age", dicom.age_of))}
  ages = None if facts["age"] is None else np.array(
    [np.nan if age is None else age for age in facts["age"]], np.float32)
  return Listed(
    rows=found[kept], labels=labels, classes=classes, exclusive=exclusive, patients=patients,
    splits=texts.get("split"), sites=texts.get("site"), views=facts["view"], sexes=facts["sex"],
    ages=ages, absent=tuple(absent), notes=_notes(index, file, found[kept], absent))


def _some(
    lines: Iterator[list[str]], width: int, file: str, numbers: list[int]) -> list[list[str]]:
  """The next rows, all of the header's width; adds the lines they end on to `numbers`."""
  some = []
  for line in lines:
    if line:
      if len(line) != width:
        raise UserError(f"{file} line {lines.line_num} has {len(line)} fields, the header {width}: "
                        "is the file whole?")
      some.append(line)
      numbers.append(lines.line_num)
      if len(some) == _AT_A_TIME:
        break
  return some


class _Where:
  """Names rows for errors: `where[i]` is `FILE line N`."""

  def __init__(self, file: str, numbers: list[int]):
    self._file, self._numbers = file, numbers

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, i: int) -> str:
    return f"{self._file} line {self._numbers[i]}"


def _text(index: Index, name: str) -> tuple[str, str]:
  """Where the CSV is, for errors, and what is in it."""
  file = f"{index.root}: {name}" if index.root.is_file() else str(index.root / name)
  try:
    data = index.text(name)
    if data is None:
      raise FileNotFoundError("no such file")
    return file, data.decode("utf-8-sig")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{KEY}.csv={name!r}: cannot read {file} ({error})") from error


def _delimiter(text: str) -> str:
  """Comma, unless the header has more semicolons (where the comma is decimal) or tabs."""
  header = text[:text.find("\n") + 1 or None]
  return max(",;\t", key=header.count)


def _places(
    file: str, header: Sequence[str], columns: Mapping[str, str | None],
    label_columns: Sequence[str] | None) -> dict[str, tuple[int, bool]]:
  """For each kind of column that is there: where, and whether it was asked for by name."""
  lower = {name.strip().lower().replace(" ", "_"): i for i, name in reversed([*enumerate(header)])}
  places: dict[str, tuple[int, bool]] = {}
  for kind, guesses in _GUESSES.items():
    given = columns.get(kind)
    if given is not None:
      if given not in header:
        raise UserError(
          f"{KEY}.{kind}_column={given!r} is no column of {file}{suggest(given, header)}")
      places[kind] = header.index(given), True
    elif not (kind == "label" and label_columns is not None):
      guess = next((lower[g] for g in guesses if g in lower), None)
      if guess is not None:
        places[kind] = guess, False
  if "path" not in places:
    raise UserError(f"{file} has no column that looks like a path; name it with "
                    f"{KEY}.path_column; columns: {', '.join(header)}")
  for name in label_columns or ():
    if name not in header:
      raise UserError(f"{KEY}.label_columns={name!r} is no column of {file}{suggest(name, header)}")
  return places


def _facts(
    texts: list[str], convert: Callable, option: str, where: _Where, asked: bool) -> list:
  """Values of a column; what cannot be understood is an error where the column was asked for."""
  values = {text: convert(text) for text in dict.fromkeys(texts)}
  for text, value in values.items():
    if asked and value in (None, "") and text.lower() not in _UNKNOWN_FACT:
      raise UserError(f"{where[texts.index(text)]}: {option} has {text!r}, which cannot be "
                      "understood; leave it empty where it is unknown")
  return [values[text] for text in texts]


def _labels(
    columns: list[list[str]], names: Sequence[str], where: _Where, uncertain: str,
    ) -> tuple[np.ndarray, tuple[str, ...], bool]:
  findings = {**dict.fromkeys(_PRESENT, 1.0), **dict.fromkeys(_ABSENT, 0.0),
              **dict.fromkeys(_UNSURE, choices.UNCERTAIN[uncertain])}
  if not columns:
    return np.zeros((len(where), 0), np.float32), (), True
  if len(columns) == 1:
    seen = dict.fromkeys(columns[0])
    if not all(v in findings or v.lower() in _UNKNOWN for v in seen):
      classes = tuple(sorted(set(seen) - set(_NO_CLASS)))
      rows = np.full((len(classes) + 1, len(classes)), np.nan, np.float32)
      rows[:-1] = np.eye(len(classes))
      code = {name: i for i, name in enumerate(classes)}
      return rows[[code.get(v, -1) for v in columns[0]]], classes, True
  labels = np.empty((len(columns[0]), len(columns)), np.float32)
  for k, (name, column) in enumerate(zip(names, columns, strict=True)):
    values = {v: np.nan if v.lower() in _UNKNOWN else findings.get(v)
              for v in dict.fromkeys(column)}
    for text, value in values.items():
      if value is None:
        raise UserError(f"{where[column.index(text)]}: {name}={text!r}; a finding is 1, 0, -1 "
                        "(uncertain) or, where unknown, empty")
    labels[:, k] = [values[v] for v in column]
  return labels, tuple(names), False


# Finding the images.


def _resolve(
    index: Index, file: str, names: Sequence[str], numbers: Sequence[int],
    ) -> tuple[np.ndarray, list[tuple[str, str]]]:
  """Row of each image in the index, -1 for those that are not there, which are named."""
  files = _Files(index)
  rows = np.array(files.find_all(names, lambda i: f"{file} line {numbers[i]}"), np.int64)
  there = rows[rows >= 0]
  if len(np.unique(there)) < len(there):
    first: dict[int, int] = {}
    for row, number in zip(rows.tolist(), numbers, strict=True):
      if row >= 0 and first.setdefault(row, number) != number:
        raise UserError(f"{file} line {number} names {index.paths[row]} again (first on line "
                        f"{first[row]})")
  absent: dict[str, int] = {}
  for i in np.flatnonzero(rows < 0).tolist():
    if absent.setdefault(names[i], numbers[i]) != numbers[i]:
      raise UserError(f"{file} line {numbers[i]} names {names[i]} again (first on line "
                      f"{absent[names[i]]})")
  reason = "it is not there, though line {} of " + pathlib.PurePath(file).name + " lists it"
  return rows, [(name, reason.format(number)) for name, number in absent.items()]


class _Files:
  """Finds the images a CSV names, whose folder may be one above or below the index's root.

  A name fits an image if one's path ends in the other's, with or without the image's extension.
  """

  def __init__(self, index: Index):
    self._index = index
    self._root = index.root.resolve()
    self._by_path = {index.paths[row]: row for row in index.images.tolist()}
    self._by_end: dict[int, dict[str, int]] = {}

  def find_all(self, names: Sequence[str], where: Callable[[int], str]) -> list[int]:
    """Row of each image, -1 where there is none."""
    rows = [self._by_path.get(name, -1) for name in names]
    for i, name in enumerate(names):
      if rows[i] < 0:
        rows[i] = self._find(name, lambda i=i: where(i))
    return rows

  def _find(self, name: str, where: Callable[[], str]) -> int:
    if not name:
      raise UserError(f"{where()} names no image")
    path = name
    if "\\" in path or path[0] == "." or "/" in path:
      path = self._below(name, where)
    depth = path.count("/") + 1
    row = self._by_path.get(path, -1)
    row = self._ends(depth).get(path, -1) if row < 0 else row
    if row == _SEVERAL:
      one, other = [p for p in self._by_path if path in _ends(p, depth)][:2]
      raise UserError(f"{where()}: {name} may be {one} or {other}; give its whole path")
    while row < 0 and "/" in path:  # the root is a folder that the CSV names
      path = path.partition("/")[2]
      row = self._by_path.get(path, -1)
    return row

  def _below(self, name: str, where: Callable[[], str]) -> str:
    """The path from the root on."""
    path = posixpath.normpath(name.replace("\\", "/"))
    if path.startswith("/"):
      roots = {str(self._index.root), str(self._root)}
      inside = next((path[len(r) + 1:] for r in roots if path.startswith(f"{r}/")), None)
      if inside is None:
        raise UserError(f"{where()}: {name} is outside {self._index.root}; give a folder that "
                        "holds all images, or paths below it")
      return inside
    if path.split("/")[0] == "..":
      raise UserError(f"{where()}: {name} leads out of {self._index.root}")
    return path

  def _ends(self, depth: int) -> dict[str, int]:
    """Images by the last `depth` parts of their paths; _SEVERAL where that fits more than one."""
    if depth not in self._by_end:
      ends = self._by_end[depth] = {}
      for path, row in self._by_path.items():
        for end in _ends(path, depth):
          if ends.setdefault(end, row) != row:
            ends[end] = _SEVERAL
    return self._by_end[depth]


def _ends(path: str, depth: int) -> tuple[str, ...]:
  """The last `depth` parts of a path, with and without its extension; nothing if it has fewer."""
  end = "/".join(path.rsplit("/", depth)[-depth:]) if depth > 1 else path.rpartition("/")[2]
  if end.count("/") != depth - 1:
    return ()
  stem, dot, _ = end.rpartition(".")
  return (end, stem) if dot and stem and not stem.endswith("/") else (end,)


def _notes(
    index: Index, file: str, rows: np.ndarray, absent: Sequence[tuple[str, str]],
    ) -> tuple[str, ...]:
  notes = []
  base = pathlib.PurePath(file).name
  if absent:
    notes.append(f"{len(absent)} images that {base} lists are not there (the first: {absent[0][0]})"
                 ": left out")
  unlisted = np.setdiff1d(index.images, rows)
  if len(unlisted):
    notes.append(f"{len(unlisted)} images are not listed in {base} (the first: "
                 f"{index.paths[unlisted[0]]}): left out")
  return tuple(notes)

"""A table that says what is known of the images below a folder."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Int64

from cxrjax.core.errors import UserError, suggest
from cxrjax.data.decoding import dicom
from cxrjax.data.sources import dicom_keys, folder_names, label_policies, spelling
from cxrjax.data.sources.folder_index import Index
from cxrjax.data.sources.table_file import TableFile

KEY = "config.data.options"
# Columns taken without being asked for, by their letters and digits alone; the rest only by name.
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
_PRESENT, _ABSENT, _UNSURE = ("1", "1.0"), ("0", "0.0"), ("-1", "-1.0")
_AT_A_TIME = 10_000  # rows; as texts, a row of a wide table is large
_NO_FACT = ("u", "o", "other", "-")  # unknown ages, sexes and views, beside the usual words
_LISTED = 12  # columns in a remark


@dataclasses.dataclass(frozen=True)
class Listed:
  """The images that a CSV lists; row `i` of everything is one of them.

  Attributes:
    rows: of the index.
    labels: one value per class: 1, 0, NaN unknown.
    classes: names of the label columns.
    exclusive: one class per image, or several findings.
    patients: None where the table does not tell; so for what follows. Empty where unknown.
    patient_column: that tells them.
    splits: empty where a row has none.
    sites, views, sexes, ages: as in `cxrjax.data.base.Table`.
    absent: images it lists that are not there, with the line of each.
    notes: what a reader of the report should know.
    advice: how it could tell labels, where it does not.
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
    name: of the table, below the index's root or anywhere.
    columns: `path`, `patient`, `split`, `site`, `view`, `age`, `sex`: the column for each.
    label_columns: columns with labels.
    uncertain: what -1 counts as: `ignore` (unknown), `zeros` (absent) or `ones` (present).
    key: a DICOM keyword: images are found by what their headers say, not by paths.
    key_column: the column that has it; by default the one called like it.

  Raises:
    UserError: no such table or column, a row that names no image or one named before, a value that
      is none, no image of it is there.
  """
  label_policies.check_uncertain(uncertain)
  table = _opened(index, name)
  base = pathlib.PurePath(name).name
  places = _places(table, columns, label_columns, key, key_column)
  label_columns = label_columns or [
    table.header[places[kind][0]] for kind in ("label",) if kind in places
  ]
  at = [table.header.index(c) for c in label_columns]
  cells, numbers = _cells(table, sorted({place for place, _ in places.values()} | {*at}))
  if not numbers:
    raise UserError(f"{table.file} has no rows")
  notes = [f"{base}: {note}" for note in table.notes]
  if key is None:
    names = cells[places["path"][0]]
    found, absent = folder_names.by_path(index, table.file, names, numbers)
    which = np.flatnonzero(found >= 0)
    found = found[which]
    if not len(which):
      raise UserError(
        f"none of the {len(numbers)} images that {table.file} lists is in "
        f"{index.root} (line {numbers[0]}: {names[0]!r}); give the folder that its "
        f"paths begin in, or the right {KEY}.path_column"
      )
  else:
    found, which, told = dicom_keys.by_key(index, table.file, key, cells[places["key"][0]], numbers)
    absent = []
    notes += [f"{base}: {note}" for note in told]

  def cut(place: int) -> list[str]:
    return [cells[place][i] for i in which.tolist()]

  where = _Where(table.file, [numbers[i] for i in which.tolist()])
  texts = {kind: cut(place) for kind, (place, _) in places.items()}
  for kind in ("patient", "split", "site"):
    if kind in texts:
      texts[kind] = ["" if spelling.is_unknown(v) else v for v in texts[kind]]
  labels, classes, exclusive, told = _labels([cut(p) for p in at], label_columns, where, uncertain)
  notes += [f"{base}: {note}" for note in told]
  asked = {kind: given for kind, (_, given) in places.items()}
  patients = texts.get("patient")
  if patients is not None and "" in patients and asked["patient"]:
    raise UserError(
      f"{where[patients.index('')]} has no {columns['patient']!r}; every image needs a patient"
    )
  facts = {
    kind: None
    if kind not in texts
    else _facts(texts[kind], convert, f"{KEY}.{kind}_column", where, asked[kind])
    for kind, convert in (("view", dicom.view_of), ("sex", dicom.sex_of), ("age", dicom.age_of))
  }
  ages = (
    None
    if facts["age"] is None
    else np.array([np.nan if age is None else age for age in facts["age"]], np.float32)
  )
  notes += [
    *_spellings(base, texts, classes, at, cut),
    *_columns(base, table.header, places, label_columns),
  ]
  return Listed(
    rows=found,
    labels=labels,
    classes=classes,
    exclusive=exclusive,
    patients=patients,
    patient_column=table.header[places["patient"][0]] if "patient" in places else "",
    splits=texts.get("split"),
    sites=texts.get("site"),
    views=facts["view"],
    sexes=facts["sex"],
    ages=ages,
    absent=tuple(absent),
    notes=tuple(notes),
    advice=""
    if classes
    else f"name the columns of {base} that have labels with "
    f"data.label_columns=NAME (it has {', '.join(filter(None, table.header))})",
  )


def columns_of(index: Index, name: str) -> list[str]:
  """The columns of a table among the images; none where it cannot be read."""
  try:
    return [*filter(None, _opened(index, name).header)]
  except UserError:
    return []


def _opened(index: Index, name: str) -> TableFile:
  file = f"{index.root}: {name}" if index.root.is_file() else str(index.root / name)
  try:
    data = index.text(name)
    if data is None:
      raise FileNotFoundError("no such file")
  except OSError as error:
    raise UserError(f"{KEY}.csv={name!r}: cannot read {file} ({error})") from error
  return TableFile(file, data)


def _cells(table: TableFile, wanted: Sequence[int]) -> tuple[dict[int, list[str]], list[int]]:
  """The cells of some columns, and the lines that the rows end on."""
  cells: dict[int, list[str]] = {place: [] for place in wanted}
  numbers: list[int] = []
  same: dict[str, str] = {}  # a text that comes often is kept once
  rows = table.rows()
  while some := [*itertools.islice(rows, _AT_A_TIME)]:
    numbers += [number for number, _ in some]
    for place, column in enumerate(zip(*(row for _, row in some), strict=True)):
      if place in cells:
        stripped = [*map(str.strip, column)]
        cells[place] += map(same.setdefault, stripped, stripped)
  return cells, numbers


class _Where:
  """Names rows for errors: `where[i]` is `FILE line N`."""

  def __init__(self, file: str, numbers: list[int]):
    self._file, self._numbers = file, numbers

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, i: int) -> str:
    return f"{self._file} line {self._numbers[i]}"


def _letters(name: str) -> str:
  return re.sub(r"[^a-z0-9]", "", name.casefold())


def _places(
  table: TableFile,
  columns: Mapping[str, str | None],
  label_columns: Sequence[str] | None,
  key: str | None,
  key_column: str | None,
) -> dict[str, tuple[int, bool]]:
  """For each kind of column that is there: where, and whether it was asked for by name."""
  file, header = table.file, table.header
  letters = {_letters(name): i for i, name in reversed([*enumerate(header)])}
  places: dict[str, tuple[int, bool]] = {}
  guessed = GUESSES if key is None else {**GUESSES, "key": (_letters(key),)}
  for kind, guesses in guessed.items():
    given = key_column if kind == "key" else columns.get(kind)
    if given is not None:
      if given not in header:
        raise UserError(
          f"{KEY}.{kind}_column={given!r} is no column of {file}{suggest(given, header)}"
        )
      places[kind] = header.index(given), True
    elif not (kind == "label" and label_columns is not None):
      fits = [letters[g] for g in guesses if g in letters]
      if kind == "label" and len(fits) > 1:
        raise UserError(
          f"{file} has the columns {header[fits[0]]!r} and {header[fits[1]]!r}, both "
          f"of which may hold labels; name one with {KEY}.label_columns"
        )
      if fits:
        places[kind] = fits[0], False
  needed = "path" if key is None else "key"
  if needed not in places:
    like = "looks like a path" if key is None else f"is called {key}"
    raise UserError(
      f"{file} has no column that {like}; name it with {KEY}.{needed}_column"
      + ("" if key else f", or a keyword of DICOM headers with {KEY}.key")
      + f"; columns: {', '.join(header)}"
    )
  for name in label_columns or ():
    if name not in header:
      raise UserError(f"{KEY}.label_columns={name!r} is no column of {file}{suggest(name, header)}")
  return places


def _facts(texts: list[str], convert: Callable, option: str, where: _Where, asked: bool) -> list:
  """Values of a column; what cannot be understood is an error where the column was asked for."""
  values = {text: convert(text) for text in dict.fromkeys(texts)}
  for text, value in values.items():
    if (
      asked
      and value in (None, "")
      and not spelling.is_unknown(text)
      and text.lower() not in _NO_FACT
    ):
      raise UserError(
        f"{where[texts.index(text)]}: {option} has {text!r}, which cannot be "
        "understood; leave it empty where it is unknown"
      )
  return [values[text] for text in texts]


def _labels(
  columns: list[list[str]], names: Sequence[str], where: _Where, uncertain: str
) -> tuple[np.ndarray, tuple[str, ...], bool, list[str]]:
  """Labels, classes, whether they exclude one another, and remarks."""
  findings = {
    **dict.fromkeys(_PRESENT, 1.0),
    **dict.fromkeys(_ABSENT, 0.0),
    **dict.fromkeys(_UNSURE, label_policies.UNCERTAIN[uncertain]),
  }
  if not columns:
    return np.zeros((len(where), 0), np.float32), (), True, []
  notes = _unknown(columns)
  if len(columns) == 1:
    seen = [v for v in dict.fromkeys(columns[0]) if not spelling.is_unknown(v)]
    if not all(v in findings for v in seen):
      classes = tuple(sorted(seen))
      rows = np.full((len(classes) + 1, len(classes)), np.nan, np.float32)
      rows[:-1] = np.eye(len(classes))
      code = {name: i for i, name in enumerate(classes)}
      return rows[[code.get(v, -1) for v in columns[0]]], classes, True, notes
  labels = np.empty((len(columns[0]), len(columns)), np.float32)
  for k, (name, column) in enumerate(zip(names, columns, strict=True)):
    values = {
      v: np.nan if spelling.is_unknown(v) else findings.get(v) for v in dict.fromkeys(column)
    }
    for text, value in values.items():
      if value is None:
        raise UserError(
          f"{where[column.index(text)]}: {name}={text!r}; a finding is 1, 0, -1 "
          "(uncertain) or, where unknown, empty"
        )
    labels[:, k] = [values[v] for v in column]
  return labels, tuple(names), False, notes


def _unknown(columns: Sequence[Sequence[str]]) -> list[str]:
  """A remark on words that say that a label is not known, but for an empty cell and NaN."""
  words = Counter(v for column in columns for v in column if spelling.is_unknown(v))
  told = {v: n for v, n in words.items() if v.casefold() not in ("", "nan")}
  if not told:
    return []
  none = any(v.casefold() == "none" for v in told)
  return [
    f"labels {spelling.counted(told)} count as unknown"
    + ("; if none is a class, call it otherwise in the table, such as no finding" if none else "")
  ]


def _spellings(
  base: str,
  texts: Mapping[str, list[str]],
  classes: Sequence[str],
  at: Sequence[int],
  cut: Callable[[int], list[str]],
) -> list[str]:
  """Remarks on what is probably one; patients are counted, not named."""
  found = []
  if len(at) == 1 and classes:
    found += spelling.notes((v for v in cut(at[0]) if v in classes), "class", base)
  found += spelling.notes(texts.get("site", ()), "site", base)
  people = spelling.alike(texts.get("patient", ()))
  if people:
    images = sum(n for group in people for n in group.values())
    found.append(
      f"{base}: {len(people)} patients are probably spelt in several ways (as 7 and "
      f"007, or a1 and A1), {images} images, and count as {sum(map(len, people))}; "
      "spell each alike"
    )
  return found


def _columns(
  base: str,
  header: Sequence[str],
  places: Mapping[str, tuple[int, bool]],
  label_columns: Sequence[str],
) -> list[str]:
  """Remarks on columns that were taken by their names, and on those that are not used."""
  notes = []
  if "patient" in places and not places["patient"][1]:
    notes.append(f"{base}: patients are those of its column {header[places['patient'][0]]!r}")
  used = {place for place, _ in places.values()}
  rest = [
    name for i, name in enumerate(header) if name and i not in used and name not in label_columns
  ]
  if rest:
    options = [
      f"data.{kind}_column"
      for kind in ("patient", "split", "site", "view", "age", "sex")
      if kind not in places
    ]
    options = [*([] if label_columns else ["data.label_columns"]), *options]
    shown = ", ".join(rest[:_LISTED]) + (
      f" and {len(rest) - _LISTED} more" if len(rest) > _LISTED else ""
    )
    notes.append(
      f"{base}: columns that are not used: {shown}"
      + (f"; {', '.join(options)} would use one" if options else "")
    )
  return notes

"""A folder of images: labels from sub-folders or from a CSV file."""

from __future__ import annotations

import csv as csv_files
import dataclasses
import hashlib
import os
import pathlib
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from cxrjax.core.build import suggest
from cxrjax.core.errors import UserError
from cxrjax.data import archive, decode, hashes, splits
from cxrjax.data.types import Record, SourceInfo, Table

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val",
               "validation": "val", "dev": "val", "test": "test", "testing": "test"}
_PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "image_path", "image_index",
                 "image_id")
_FINDING = ("0", "1", "0.0", "1.0")
_UNKNOWN = ("", "nan", "na", "n/a", "none", "-1", "-1.0")
_NO_CLASS = ("", "nan", "NaN")  # a class may well be called "none"
_KEY = "config.data.options"


@dataclasses.dataclass(frozen=True)
class _Row:
  path: str  # below the folder, `/` between parts
  label: tuple[str, ...]
  patient: str
  split: str | None
  site: str = ""


class Source:
  """Images below a folder.

  Without a CSV, an image's class is the folder it lies in: `PATH/<class>/...` or
  `PATH/<split>/<class>/...` with splits named train, val (valid, validation) and test. Images that
  lie in no class folder have no labels.

  With a CSV, each row names an image. One label column holds class names; several hold 1, 0 and,
  for unknown, nothing or -1. Where no split is given by folders or a column, patients are put into
  train, val and test (70, 10, 20 %) by a hash of their names; `split="all"` takes everything.

  Args:
    where: the folder.
    split: `train`, `val`, `test` or another name the data uses; `all` is everything.
    csv: a CSV file, in the folder or anywhere.
    path_column: the column that names the image, relative to the folder, with or without its
      extension; by default the first of path, file, filename, image and the like.
    label_columns: columns with labels; one (class names) or several (findings). By default the
      column `label` or `class`, if there is one.
    patient_column: the column that names the patient.
    split_column: the column that names the split; by default `split`, if there is one.
    site_column: the column that names the site.
    patient_regex: finds the patient in an image's path: its first group, or the whole match.
      Without it or a column every image counts as a patient of its own.
    cache_dir: where content hashes are remembered.

  Raises:
    UserError: no such folder, no images in it, a CSV that does not fit, an unknown split.
  """

  def __init__(
      self, where: str, split: str = "train", *, csv: str | None = None,
      path_column: str | None = None, label_columns: str | Sequence[str] | None = None,
      patient_column: str | None = None, split_column: str | None = None,
      site_column: str | None = None, patient_regex: str | None = None,
      cache_dir: str | None = None):
    self._root = pathlib.Path(where).expanduser()
    if not self._root.is_dir():
      raise UserError(f"config.data.source='folder:{where}': there is no such folder")
    try:
      pattern = None if patient_regex is None else re.compile(patient_regex)
    except re.error as error:
      raise UserError(f"{_KEY}.patient_regex={patient_regex!r} is no regular expression: {error}"
                      ) from error
    notes: list[str] = []
    if csv is None:
      for name, value in (("path_column", path_column), ("label_columns", label_columns),
                          ("patient_column", patient_column), ("split_column", split_column),
                          ("site_column", site_column)):
        if value is not None:
          raise UserError(f"{_KEY}.{name} needs {_KEY}.csv, the file that has the column")
      rows, classes = _from_folders(self._root)
      exclusive = True
    else:
      columns = (label_columns,) if isinstance(label_columns, str) else label_columns
      rows, classes, exclusive = _from_csv(
        self._root, csv, path_column, columns, patient_column, split_column, site_column)
    if pattern is not None:
      rows = [dataclasses.replace(row, patient=_match(pattern, row.path)) for row in rows]
    elif patient_column is None:
      notes.append("patients unknown: every image counts as a patient of its own")
    if not any(row.split for row in rows):
      carved = splits.carve([row.patient for row in rows])
      rows = [dataclasses.replace(row, split=s) for row, s in zip(rows, carved, strict=True)]
      notes.append("the data have no splits: patients were put into train, val and test "
                   "(70, 10, 20 %) by a hash of their names")
    counts = Counter(row.split for row in rows if row.split)
    order = [s for s in ("train", "val", "test") if s in counts]
    sizes = {s: counts[s] for s in [*order, *sorted(set(counts) - set(order))]}
    wanted = SPLIT_NAMES.get(split.lower(), split)
    if wanted != "all":
      rows = [row for row in rows if row.split == wanted]
      if not rows:
        raise UserError(f"folder:{where} has no split {split!r}{suggest(split, [*sizes, 'all'])}")
    self._rows = rows
    files = [self._root / row.path for row in rows]
    content = hashlib.sha256()
    for row, digest in zip(rows, hashes.content_hashes(files, cache_dir), strict=True):
      content.update(f"{row.path}\0{digest}\n".encode())
    self.table = Table(
      ids=tuple(row.path for row in rows), patients=tuple(row.patient for row in rows),
      sites=tuple(row.site for row in rows), labels=_labels(rows, classes, exclusive))
    self.info = SourceInfo(
      name=f"folder:{where}", split=wanted, classes=classes, exclusive=exclusive, splits=sizes,
      fingerprint=content.hexdigest(), notes=tuple(notes))

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Record:
    return self.read(index)

  def read(self, index: int, at_least: int | None = None) -> Record:
    """Image `index`; a JPEG may be decoded smaller, for a result of `at_least` pixels."""
    if not 0 <= index < len(self):
      raise IndexError(index)
    try:
      data = (self._root / self._rows[index].path).read_bytes()
    except OSError as error:
      raise decode.BadImage(f"it cannot be read ({error.strerror})") from error
    return Record(
      image=decode.decode(data, at_least=at_least), labels=self.table.labels[index], mask=None,
      id=self.table.ids[index], patient=self.table.patients[index], site=self.table.sites[index])


def _images(root: pathlib.Path) -> list[str]:
  """Paths of all images below a folder, sorted."""
  found, others = [], Counter()
  for folder, _, names in os.walk(root, followlinks=True):
    below = pathlib.Path(folder).relative_to(root)
    for name in names:
      path = (below / name).as_posix()
      if archive.is_junk(path):
        continue
      if name.lower().endswith(EXTENSIONS):
        found.append(path)
      else:
        others[pathlib.Path(name).suffix.lower()] += 1
  if not found:
    seen = ", ".join(f"{n} {ext or 'without extension'}" for ext, n in others.most_common(3))
    raise UserError(f"no images in {root}; they are known by {', '.join(EXTENSIONS)}"
                    + (f" (it has other files: {seen})" if seen else ""))
  return sorted(found)


def _from_folders(root: pathlib.Path) -> tuple[list[_Row], tuple[str, ...]]:
  paths = _images(root)
  parts = [path.split("/")[:-1] for path in paths]
  depth = 0  # folders around everything, such as the archive's own name
  while (all(len(p) > depth + 1 for p in parts) and len({p[depth] for p in parts}) == 1
         and parts[0][depth].lower() not in SPLIT_NAMES):
    depth += 1
  inner = [p[depth:] for p in parts]
  has_splits = any(p and p[0].lower() in SPLIT_NAMES for p in inner)
  rows = []
  for path, folders in zip(paths, inner, strict=True):
    split = None
    if has_splits:
      split = SPLIT_NAMES.get(folders[0].lower(), folders[0]) if folders else "unsplit"
      folders = folders[1:]
    rows.append(_Row(path, (folders[0] if folders else "",), path, split))
  return rows, tuple(sorted({row.label[0] for row in rows} - {""}))


def _from_csv(
    root: pathlib.Path, csv: str, path_column: str | None, label_columns: Sequence[str] | None,
    patient_column: str | None, split_column: str | None, site_column: str | None,
    ) -> tuple[list[_Row], tuple[str, ...], bool]:
  file = root / pathlib.Path(csv).expanduser()  # an absolute path stays what it is
  try:
    with open(file, newline="", encoding="utf-8-sig") as opened:
      reader = csv_files.DictReader(opened)
      header = list(reader.fieldnames or [])
      lines = list(reader)
  except (OSError, UnicodeDecodeError, csv_files.Error) as error:
    raise UserError(f"{_KEY}.csv={csv!r}: cannot read {file} ({error})") from error
  if not lines:
    raise UserError(f"{file} has no rows")
  lower = {name.strip().lower().replace(" ", "_"): name for name in header}

  def column(option: str, given: str | None, guesses: Sequence[str]) -> str | None:
    if given is not None:
      if given not in header:
        raise UserError(f"{_KEY}.{option}={given!r} is no column of {file}{suggest(given, header)}")
      return given
    return next((lower[guess] for guess in guesses if guess in lower), None)

  path_name = column("path_column", path_column, _PATH_COLUMNS)
  if path_name is None:
    raise UserError(f"{file} has no column that looks like a path; name it with "
                    f"{_KEY}.path_column; columns: {', '.join(header)}")
  patient_name = column("patient_column", patient_column, ())
  split_name = column("split_column", split_column, ("split",))
  site_name = column("site_column", site_column, ())
  if label_columns is None:
    guess = column("label_columns", None, ("label", "class"))
    label_columns = () if guess is None else (guess,)
  for name in label_columns:
    column("label_columns", name, ())

  known = _Files(root)
  rows: list[_Row] = []
  seen: dict[str, int] = {}
  for number, line in enumerate(lines, 2):
    path = known.resolve((line[path_name] or "").strip(), f"{file} line {number}")
    if path in seen:
      raise UserError(f"{file} line {number} names {path} again (first on line {seen[path]})")
    seen[path] = number
    split = (line[split_name] or "").strip() if split_name else ""
    rows.append(_Row(
      path, tuple((line[name] or "").strip() for name in label_columns),
      (line[patient_name] or "").strip() if patient_name else path,
      SPLIT_NAMES.get(split.lower(), split) or None,
      (line[site_name] or "").strip() if site_name else ""))
    if patient_name and not rows[-1].patient:
      raise UserError(f"{file} line {number} has no {patient_name!r}; every image needs a patient")
  exclusive = len(label_columns) == 1 and not _is_finding([row.label[0] for row in rows])
  if exclusive:
    return rows, tuple(sorted({row.label[0] for row in rows} - set(_NO_CLASS))), True
  for number, row in enumerate(rows, 2):
    for name, value in zip(label_columns, row.label, strict=True):
      if value.lower() not in _UNKNOWN and value not in _FINDING:
        raise UserError(f"{file} line {number}: {name}={value!r}; a finding is 1 or 0, or, where "
                        "unknown, -1 or empty")
  return rows, tuple(label_columns), not label_columns


def _is_finding(values: Sequence[str]) -> bool:
  """Whether a lone label column holds 1 and 0 rather than class names."""
  return all(v in _FINDING or v.lower() in _UNKNOWN for v in values)


class _Files:
  """Finds the images a CSV names: with or without extension, or by file name alone."""

  def __init__(self, root: pathlib.Path):
    self._root = root
    self._by_name: dict[str, list[str]] | None = None

  def resolve(self, name: str, where: str) -> str:
    if not name:
      raise UserError(f"{where} names no image")
    path = pathlib.PurePosixPath(name.replace("\\", "/"))
    if (self._root / path).is_file():
      full = self._root / path
      inside = full.is_relative_to(self._root)
      return full.relative_to(self._root).as_posix() if inside else str(full)
    if self._by_name is None:
      self._by_name = {}
      for found in _images(self._root):
        for key in {pathlib.PurePosixPath(found).name, pathlib.PurePosixPath(found).stem}:
          self._by_name.setdefault(key, []).append(found)
    matches = self._by_name.get(path.name, [])
    if len(matches) > 1:
      matches = [m for m in matches if m.endswith(str(path)) or str(path) in m] or matches
    if len(matches) > 1:
      raise UserError(f"{where}: {name} may be {matches[0]} or {matches[1]}; give its whole path")
    return matches[0] if matches else path.as_posix()  # missing: a bad image when it is read


def _match(pattern: re.Pattern, path: str) -> str:
  found = pattern.search(path)
  if found is None:
    raise UserError(f"{_KEY}.patient_regex={pattern.pattern!r} finds no patient in {path}")
  return found.group(1) if pattern.groups else found.group(0)


def _labels(rows: Sequence[_Row], classes: tuple[str, ...], exclusive: bool) -> np.ndarray:
  labels = np.full((len(rows), len(classes)), np.nan, np.float32)
  place = {name: i for i, name in enumerate(classes)}
  for i, row in enumerate(rows):
    if exclusive:
      if row.label and row.label[0] in place:
        labels[i] = 0
        labels[i, place[row.label[0]]] = 1
    else:
      labels[i] = [np.nan if v.lower() in _UNKNOWN else float(v) for v in row.label]
  return labels

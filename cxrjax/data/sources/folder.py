"""A folder or a zip of images: labels from sub-folders, from a CSV file, or none."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from cxrjax.config.instantiate import check_regex
from cxrjax.core.errors import UserError, suggest
from cxrjax.data import inspection
from cxrjax.data.base import Record, SourceInfo, Table
from cxrjax.data.decoding import decode
from cxrjax.data.sources import (
  display_names,
  file_hashes,
  folder_csv,
  folder_index,
  folder_tree,
  label_policies,
  spelling,
)
from cxrjax.data.sources.folder_csv import KEY
from cxrjax.data.sources.folder_tree import SPLIT_NAMES
from cxrjax.data.splits import patient_splits


class Source:
  """Images below a folder, in a zip, or in zips below a folder: PNG, JPEG, TIFF, BMP, DICOM, ...

  Nothing is unpacked: what is in `x/y.zip` counts as lying in a folder `x/y`. Images and DICOM are
  known by their extension or, where that says nothing, by their first bytes; files that are neither
  are counted by kind in `info.notes`.

  Without a table, an image's class is the folder it lies in: `PATH/<class>/...` or
  `PATH/<split>/<class>/...` with splits named train, val (valid, validation) and test. Images that
  lie in no class folder have no labels. Folders of one patient each, as DICOM headers have it, are
  no classes.

  With a table (CSV, or the first sheet of an .xlsx), each row names an image, or what the headers
  of some DICOM files have under a keyword. One label column holds class names; several hold 1, 0,
  -1 for uncertain and, for unknown, nothing or a word such as NA, null or none, in any column.
  Images that it lists and that are not there are left out and told of in `info.skipped`; images
  that it does not list are left out and counted in `info.notes`.

  What neither tells comes from DICOM headers: patient, age, sex and view. Patients are then called
  by their first image's path: their IDs are kept nowhere, and where a path has one it is shown
  without. So that they keep their names when images are added, set the environment variable
  CXRJAX_PATIENT_KEY to a secret of your own: they are then called by a hash that only this secret
  gives. Patients whom nothing tells are unknown.

  Where no split is given by folders or a column, patients are put into train, val and test (70, 10,
  20 %) by a hash of their names, images of unknown patients each for itself; `split="all"` takes
  everything.

  Args:
    where: the folder, or the zip.
    split: `train`, `val`, `test` or another name the data uses; `all` is everything.
    csv: a CSV or .xlsx file, in the folder (or zip) or anywhere.
    path_column: the column that names the image, relative to the folder, with or without its
      extension; by default the first of path, file, filename, image and the like.
    key: a DICOM keyword, such as AccessionNumber, PatientID or StudyInstanceUID: a row is of all
      images whose headers have its value. Values are compared and not kept.
    key_column: the column with these values; by default the one called like the keyword.
    label_columns: columns with labels; one (class names) or several (findings). By default the
      column `label` or `class`, if there is one.
    patient_column: the column that names the patient; by default `patient`, `patient_id`,
      `subject_id` and the like.
    split_column: the column that names the split; by default `split`, if there is one.
    site_column: the column that names the site.
    view_column: the column with the view (PA, AP, lateral); by default `view`.
    age_column: the column with the age in years; by default `age`.
    sex_column: the column with the sex; by default `sex`.
    patient_regex: finds the patient in an image's path: its first group, or the whole match.
    views: take only images of these views, of PA, AP, L and unknown; the rest is left out and
      told of in `info.skipped`. `("PA", "AP")` is frontal only.
    uncertain: what -1 counts as: `ignore` (unknown), `zeros` (absent) or `ones` (present).
    check: how files that have changed are noticed: `files` looks at the size and time of each,
      `names` only at which are there (faster on network disks).
    cache_dir: where the index of the folder is remembered.

  Raises:
    UserError: no such folder, no images in it, a CSV that does not fit, an unknown split or view.
  """

  def __init__(
    self,
    where: str,
    split: str = "train",
    *,
    csv: str | None = None,
    path_column: str | None = None,
    label_columns: str | Sequence[str] | None = None,
    patient_column: str | None = None,
    split_column: str | None = None,
    site_column: str | None = None,
    view_column: str | None = None,
    age_column: str | None = None,
    sex_column: str | None = None,
    patient_regex: str | None = None,
    views: str | Sequence[str] | None = None,
    uncertain: str = "ignore",
    check: str = "files",
    cache_dir: str | None = None,
    key: str | None = None,
    key_column: str | None = None,
  ):
    columns = {
      "path": path_column,
      "patient": patient_column,
      "split": split_column,
      "site": site_column,
      "view": view_column,
      "age": age_column,
      "sex": sex_column,
    }
    label_columns = (label_columns,) if isinstance(label_columns, str) else label_columns
    pattern = _pattern(patient_regex)
    if csv is None:
      for name, value in (
        *((f"{k}_column", v) for k, v in columns.items()),
        ("label_columns", label_columns),
        ("key", key),
        ("key_column", key_column),
      ):
        if value is not None:
          raise UserError(f"{KEY}.{name} needs {KEY}.csv, the file that has the column")
    self._index = folder_index.Index(where, cache_dir, check)
    listed = (
      folder_tree.by_folder(self._index)
      if csv is None
      else folder_csv.read(self._index, csv, columns, label_columns, uncertain, key, key_column)
    )
    rows = listed.rows
    paths = [self._index.paths[row] for row in rows.tolist()]
    names = display_names.of(self._index)
    ids = [names.names[i] for i in np.searchsorted(self._index.images, rows).tolist()]
    absent = [
      (
        names.hide_listed(name, line),
        f"it is not there, though line {line} of {os.path.basename(csv or '')} lists it",
      )
      for name, line in listed.absent
    ]
    unlisted = np.flatnonzero(~np.isin(self._index.images, rows)).tolist()
    notes = [
      *(names.hide(path, anybody=True) + why for path, why in self._index.notes),
      *_missing(csv, absent, [names.names[i] for i in unlisted]),
      *listed.notes,
      names.note,
      *(
        other.said(names.hide(other.paths[0], anybody=True))
        for other in self._index.others
        if other.paths != (csv,)
      ),
    ]
    headers = _Headers(self._index, rows)
    if pattern is not None:
      patients, by = [_match(pattern, path) for path in paths], f"patient_regex {patient_regex!r}"
    elif listed.patients is not None:
      patients, by = listed.patients, f"column {listed.patient_column!r}"
    else:
      patients, by = headers.patients(paths), headers.naming
    notes.append(_unknown(patients))
    assigned = listed.splits and [SPLIT_NAMES.get(s.lower(), s) for s in listed.splits]
    notes += spelling.notes(assigned or (), "split", os.path.basename(csv or "") or "folders")
    if not assigned or not any(assigned):
      assigned = patient_splits.carve([p or path for p, path in zip(patients, paths, strict=True)])
      notes.append(
        "the data have no splits: patients were put into train, val and test "
        "(70, 10, 20 %) by a hash of their names"
      )
    notes += folder_tree.uneven(listed, assigned, patients)
    shown = listed.views or headers.views()
    kept = label_policies.rows_of_views(f"folder:{where}", shown, views)
    left = np.setdiff1d(np.arange(len(rows)), kept).tolist()
    skipped = (*absent, *((ids[i], f"its view is {shown[i] or 'unknown'}") for i in left))
    counts = Counter(assigned[i] for i in kept.tolist() if assigned[i])
    order = [s for s in ("train", "val", "test") if s in counts]
    sizes = {s: counts[s] for s in [*order, *sorted(set(counts) - set(order))]}
    chosen = SPLIT_NAMES.get(split.lower(), split)
    if chosen != "all":
      kept = kept[np.array([assigned[i] == chosen for i in kept.tolist()], bool)]
      if not len(kept):
        raise UserError(f"folder:{where} has no split {split!r}{suggest(split, [*sizes, 'all'])}")
    self._rows = rows[kept]
    n = len(rows)
    self.table = Table(
      ids=tuple(ids),
      patients=tuple(patients),
      sites=tuple(listed.sites or ("",) * n),
      labels=listed.labels,
      views=tuple(shown),
      sexes=tuple(listed.sexes or headers.sexes()),
      ages=headers.ages() if listed.ages is None else listed.ages,
    ).take(kept)
    self.info = SourceInfo(
      name=f"folder:{where}",
      split=chosen,
      classes=listed.classes,
      exclusive=listed.exclusive,
      splits=sizes,
      fingerprint=self._fingerprint(),
      notes=tuple(filter(None, notes)),
      skipped=skipped,
      naming=(f"folder:{self._index.root.resolve()} by {by}",),
      advice=listed.advice,
    )

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Record:
    return self.read(index)

  @functools.cached_property
  def bits(self) -> int:
    """16 if one of a few images has 16 bits by its header, else 8."""
    for row in inspection.sample(len(self)):
      with contextlib.suppress(decode.BadImage):
        if decode.bits(self._index.read(int(self._rows[row]))) == 16:
          return 16
    return 8

  def read(self, index: int, at_least: int | None = None) -> Record:
    """Image `index`; a JPEG may be decoded smaller, for a result of `at_least` pixels."""
    if not 0 <= index < len(self):
      raise IndexError(index)
    found = decode.shown(self._index.read(int(self._rows[index])), at_least)
    table = self.table
    return Record(
      image=found.pixels,
      labels=table.labels[index],
      mask=None,
      id=table.ids[index],
      patient=table.patients[index],
      site=table.sites[index],
      window=found.window,
      notes=found.notes,
    )

  def _fingerprint(self) -> str:
    """Of the images' names and bytes."""
    self._index.learn(self._rows)
    names = "".join(f"{self._index.paths[row]}\0" for row in self._rows.tolist()).encode(
      "utf-8", "surrogateescape"
    )
    content = hashlib.sha256(names)
    content.update(self._index.facts.digests[self._rows].tobytes())
    return content.hexdigest()


class _Headers:
  """What DICOM headers tell of some images; they are read only where somebody asks."""

  def __init__(self, index: folder_index.Index, rows: np.ndarray):
    self._index, self._rows = index, rows
    self._medical = rows[index.kinds[rows] == folder_index.MEDICAL]

  @property
  def naming(self) -> str:
    """How `patients` names them: other images have other first ones."""
    if os.environ.get(file_hashes.KEY):
      return "DICOM headers and a secret of one's own"
    whole = self._index.images[self._index.kinds[self._index.images] == folder_index.MEDICAL]
    part = np.array_equal(whole, self._medical)
    return "DICOM headers" + (
      ""
      if part
      else (
        f" of {len(self._medical)} files " + hashlib.sha256(self._medical.tobytes()).hexdigest()[:8]
      )
    )

  @property
  def know_patients(self) -> bool:
    return len(self._medical) > 0 and bool(self._facts().patients[self._medical].any())

  def patients(self, paths: Sequence[str]) -> list[str]:
    """A name for each image's patient, empty where it is unknown."""
    names = [""] * len(paths)
    if not self.know_patients:
      return names
    hashed = self._facts().patients[self._rows]
    by_key = bool(os.environ.get(file_hashes.KEY))
    first: dict[bytes, str] = {}
    for i in np.flatnonzero(hashed.any(axis=1)).tolist():
      key = hashed[i].tobytes()
      names[i] = key.hex() if by_key else first.setdefault(key, paths[i])
    return names

  def views(self) -> list[str]:
    return self._texts("view_codes", file_hashes.VIEWS)

  def sexes(self) -> list[str]:
    return self._texts("sex_codes", file_hashes.SEXES)

  def ages(self) -> np.ndarray:
    return self._facts().ages[self._rows]

  def _texts(self, column: str, words: Sequence[str]) -> list[str]:
    return [words[code] for code in getattr(self._facts(), column)[self._rows].tolist()]

  def _facts(self) -> file_hashes.Facts:
    if len(self._medical):
      self._index.learn(self._medical)
    return self._index.facts


def _pattern(patient_regex: str | None) -> re.Pattern | None:
  if patient_regex is None:
    return None
  check_regex(patient_regex, f"{KEY}.patient_regex")
  return re.compile(patient_regex)


def _unknown(patients: Sequence[str]) -> str:
  """A remark on patients that nothing tells."""
  unknown = sum(not patient for patient in patients)
  if unknown in (0, len(patients)):
    return patient_splits.UNKNOWN if unknown else ""
  return (
    f"patients unknown of {unknown} of {len(patients)} images: each of them counts as a "
    "patient of its own"
  )


def _missing(
  csv: str | None, absent: Sequence[tuple[str, str]], unlisted: Sequence[str]
) -> list[str]:
  """Remarks on images that only a table or only the folder has."""
  base, notes = os.path.basename(csv or ""), []
  if absent:
    notes.append(
      f"{len(absent)} images that {base} lists are not there (the first: {absent[0][0]}): left out"
    )
  if len(unlisted):
    notes.append(
      f"{len(unlisted)} images are not listed in {base} (the first: {unlisted[0]}): left out"
    )
  return notes


def _match(pattern: re.Pattern, path: str) -> str:
  found = pattern.search(path)
  if found is None:
    raise UserError(f"{KEY}.patient_regex={pattern.pattern!r} finds no patient in {path}")
  return found.group(1) if pattern.groups else found.group(0)

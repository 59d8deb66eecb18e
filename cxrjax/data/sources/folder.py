"""Source for a folder or a zip of images, with labels from sub-folders, a CSV file, or none."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cxrjax.config.instantiate import check_regex
from cxrjax.core.errors import UserError, suggest
from cxrjax.data import base, inspection
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


class Source(base.Source):
  """Images below a folder, in a zip, or in zips below a folder: PNG, JPEG, TIFF, BMP, DICOM, ...

  Nothing is unpacked: the contents of `x/y.zip` are treated as a folder `x/y`. Images and DICOM are
  recognized by their extension or, if that is inconclusive, by their first bytes; all other files
  are counted by kind in `info.notes`.

  Without a table, an image's class is its folder: `PATH/<class>/...` or
  `PATH/<split>/<class>/...` with splits named train, val (valid, validation) and test. Images
  outside of class folders have no labels. If each folder holds a single patient according to the
  DICOM headers, folders are not taken for classes.

  With a table (CSV, or the first sheet of an .xlsx), each row names an image, or the value of a
  keyword in the headers of some DICOM files. A single label column holds class names; several hold
  1, 0, -1 for uncertain and, for unknown, nothing or a word such as NA, null or none (as in any
  column). Images listed but missing are left out and reported in `info.skipped`; images not listed
  are left out and counted in `info.notes`.

  Patient, age, sex and view otherwise come from DICOM headers. Patients are then named by the path
  of their first image: IDs are stored nowhere, and are replaced where a path contains one. To keep
  these names stable when images are added, set the environment variable CXRJAX_PATIENT_KEY to a
  secret of your own: patients are then named by a hash keyed with it. All other patients are
  unknown.

  Without splits from folders or a column, patients are assigned to train, val and test (70, 10,
  20 %) by a hash of their names, images of unknown patients one by one; `split="all"` takes
  everything.

  Args:
    where: the folder, or the zip.
    split: `train`, `val`, `test` or another name used by the data; `all` is everything.
    csv: a CSV or .xlsx file, in the folder (or zip) or anywhere.
    path_column: column of the image paths, relative to the folder, with or without extension; by
      default the first of path, file, filename, image and the like.
    key: a DICOM keyword, such as AccessionNumber, PatientID or StudyInstanceUID: a row applies to
      all images whose headers have its value. Values are compared and not stored.
    key_column: column with these values; by default the one named like the keyword.
    label_columns: columns with labels; one (class names) or several (findings). By default the
      column `label` or `class`, if there is one.
    patient_column: column of the patients; by default `patient`, `patient_id`, `subject_id` and the
      like.
    split_column: column of the splits; by default `split`, if there is one.
    site_column: column of the sites.
    view_column: column of the views (PA, AP, lateral); by default `view`.
    age_column: column of the ages in years; by default `age`.
    sex_column: column of the sexes; by default `sex`.
    patient_regex: extracts the patient from an image's path: its first group, or the whole match.
    views: take only images of these views, of PA, AP, L and unknown; others are left out and
      reported in `info.skipped`. `("PA", "AP")` is frontal only.
    uncertain: value of -1: `ignore` (unknown), `zeros` (absent) or `ones` (present).
    check: how changed files are detected: `files` compares size and times of each, `names` only the
      file names (faster on network disks).
    cache_dir: where the index of the folder is cached.

  Raises:
    UserError: no such folder, no images in it, an unsuitable CSV, an unknown split or view.
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
    pattern = _compile(patient_regex)
    if csv is None:
      _check_needs_no_table(
        **{f"{kind}_column": column for kind, column in columns.items()},
        label_columns=label_columns,
        key=key,
        key_column=key_column,
      )
    index = self._index = folder_index.Index(where, cache_dir, check)
    listed = (
      folder_tree.by_folder(index)
      if csv is None
      else folder_csv.read(index, csv, columns, label_columns, uncertain, key, key_column)
    )
    paths = [index.paths[row] for row in listed.rows.tolist()]
    headers = _Headers(index, listed.rows)
    patients, naming = _patients(listed, headers, paths, pattern)
    splits, split_notes = _splits(listed, patients, paths, csv)
    image_views = listed.views or headers.views()
    shown = label_policies.rows_of_views(f"folder:{where}", image_views, views)
    sizes = _split_sizes(splits[i] for i in shown.tolist())
    split_name = SPLIT_NAMES.get(split.lower(), split)
    in_split = [split_name in ("all", splits[i]) for i in shown.tolist()]
    selected = shown[np.array(in_split, bool)]
    if not len(selected):
      raise UserError(f"folder:{where} has no split {split!r}{suggest(split, [*sizes, 'all'])}")
    display = display_names.for_index(index)
    ids = [display.names[i] for i in np.searchsorted(index.images, listed.rows).tolist()]
    absent = _absent(listed, display, csv)
    excluded = np.setdiff1d(np.arange(len(ids)), shown).tolist()
    notes = [
      *_folder_notes(index, listed, display, csv, absent),
      _unknown_patients_note(patients),
      *split_notes,
      *folder_tree.imbalance_notes(listed, splits, patients),
    ]
    self._rows = listed.rows[selected]
    self.table = Table(
      ids=tuple(ids),
      patients=tuple(patients),
      sites=tuple(listed.sites or ("",) * len(ids)),
      labels=listed.labels,
      views=tuple(image_views),
      sexes=tuple(listed.sexes or headers.sexes()),
      ages=headers.ages() if listed.ages is None else listed.ages,
    ).take(selected)
    self.info = SourceInfo(
      name=f"folder:{where}",
      split=split_name,
      classes=listed.classes,
      exclusive=listed.exclusive,
      splits=sizes,
      fingerprint=self._fingerprint(),
      notes=tuple(filter(None, notes)),
      skipped=(
        *absent,
        *((ids[i], f"its view is {image_views[i] or 'unknown'}") for i in excluded),
      ),
      naming=(f"folder:{index.root.resolve()} by {naming}",),
      advice=listed.advice,
    )

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Record:
    return self.read(index)

  @functools.cached_property
  def bits(self) -> int:  # type: ignore[override]  # computed when asked for
    """16 if the header of any of a few sampled images says so, else 8."""
    for row in inspection.sample(len(self)):
      with contextlib.suppress(decode.BadImage):
        if decode.bit_depth(self._index.read(int(self._rows[row]))) == 16:
          return 16
    return 8

  def read(self, index: int, at_least: int | None = None) -> Record:
    """Reads image `index`; JPEGs may be decoded at reduced size, not below `at_least` pixels."""
    if not 0 <= index < len(self):
      raise IndexError(index)
    image = decode.decode_with_window(self._index.read(int(self._rows[index])), at_least)
    table = self.table
    return Record(
      image=image.pixels,
      labels=table.labels[index],
      mask=None,
      id=table.ids[index],
      patient=table.patients[index],
      site=table.sites[index],
      window=image.window,
      notes=image.notes,
    )

  def _fingerprint(self) -> str:
    """Hash of the images' paths and bytes."""
    self._index.learn(self._rows)
    paths = "".join(f"{self._index.paths[row]}\0" for row in self._rows.tolist())
    content = hashlib.sha256(paths.encode("utf-8", "surrogateescape"))
    content.update(self._index.facts.digests[self._rows].tobytes())
    return content.hexdigest()


class _Headers:
  """Patient, view, sex and age of some images from their DICOM headers, read on demand."""

  def __init__(self, index: folder_index.Index, rows: np.ndarray):
    self._index, self._rows = index, rows
    self._medical = rows[index.kinds[rows] == folder_index.MEDICAL]

  @property
  def naming(self) -> str:
    """How `patients` names them: names by first image depend on the set of images."""
    if os.environ.get(file_hashes.KEY):
      return "DICOM headers and a secret key"
    images = self._index.images
    all_medical = images[self._index.kinds[images] == folder_index.MEDICAL]
    if np.array_equal(all_medical, self._medical):
      return "DICOM headers"
    digest = hashlib.sha256(self._medical.tobytes()).hexdigest()[:8]
    return f"DICOM headers of {len(self._medical)} files {digest}"

  @property
  def know_patients(self) -> bool:
    return len(self._medical) > 0 and bool(self._facts().patients[self._medical].any())

  def patients(self, paths: Sequence[str]) -> list[str]:
    """Patient name of each image, empty where unknown."""
    names = [""] * len(paths)
    if not self.know_patients:
      return names
    hashed = self._facts().patients[self._rows]
    named_by_hash = bool(os.environ.get(file_hashes.KEY))
    first_paths: dict[bytes, str] = {}
    for i in np.flatnonzero(hashed.any(axis=1)).tolist():
      digest = hashed[i].tobytes()
      names[i] = digest.hex() if named_by_hash else first_paths.setdefault(digest, paths[i])
    return names

  def views(self) -> list[str]:
    return self._decoded("view_codes", file_hashes.VIEWS)

  def sexes(self) -> list[str]:
    return self._decoded("sex_codes", file_hashes.SEXES)

  def ages(self) -> np.ndarray:
    return self._facts().ages[self._rows]

  def _decoded(self, column: str, words: Sequence[str]) -> list[str]:
    return [words[code] for code in getattr(self._facts(), column)[self._rows].tolist()]

  def _facts(self) -> file_hashes.Facts:
    if len(self._medical):
      self._index.learn(self._medical)
    return self._index.facts


def _compile(patient_regex: str | None) -> re.Pattern | None:
  if patient_regex is None:
    return None
  check_regex(patient_regex, f"{KEY}.patient_regex")
  return re.compile(patient_regex)


def _check_needs_no_table(**options: Any) -> None:
  """Raises a UserError for an option that is about a table."""
  for name, value in options.items():
    if value is not None:
      raise UserError(f"{KEY}.{name} needs {KEY}.csv, the table with the column")


def _patients(
  listed: folder_csv.Listed, headers: _Headers, paths: Sequence[str], pattern: re.Pattern | None
) -> tuple[list[str], str]:
  """Patient of each image, empty where unknown, and what they are named by."""
  if pattern is not None:
    return [_match(pattern, path) for path in paths], f"patient_regex {pattern.pattern!r}"
  if listed.patients is not None:
    return listed.patients, f"column {listed.patient_column!r}"
  return headers.patients(paths), headers.naming


def _splits(
  listed: folder_csv.Listed, patients: Sequence[str], paths: Sequence[str], csv: str | None
) -> tuple[list[str], list[str]]:
  """Split of each image, assigned by patient where the data have none, and notes."""
  splits = [SPLIT_NAMES.get(s.lower(), s) for s in listed.splits or ()]
  notes = spelling.notes(splits, "split", os.path.basename(csv or "") or "folders")
  if any(splits):
    return splits, notes
  names = [patient or path for patient, path in zip(patients, paths, strict=True)]
  note = (
    "the data have no splits: patients were assigned to train, val and test "
    "(70, 10, 20 %) by a hash of their names"
  )
  return patient_splits.assign_by_name(names), [*notes, note]


def _split_sizes(splits: Iterable[str]) -> dict[str, int]:
  """Number of images of every split, the usual ones first."""
  counts = Counter(filter(None, splits))
  standard = [s for s in ("train", "val", "test") if s in counts]
  return {s: counts[s] for s in [*standard, *sorted(set(counts) - set(standard))]}


def _absent(
  listed: folder_csv.Listed, display: display_names.ShownNames, csv: str | None
) -> list[tuple[str, str]]:
  """Listed images that are missing, and that they are."""
  base = os.path.basename(csv or "")
  return [
    (display.hide_listed(name, line), f"it is missing, though line {line} of {base} lists it")
    for name, line in listed.absent
  ]


def _folder_notes(
  index: folder_index.Index,
  listed: folder_csv.Listed,
  display: display_names.ShownNames,
  csv: str | None,
  absent: Sequence[tuple[str, str]],
) -> list[str]:
  """Notes on files, on the table beside them, and on how names are shown."""
  unlisted = np.flatnonzero(~np.isin(index.images, listed.rows)).tolist()
  return [
    *(display.hide(path, anybody=True) + reason for path, reason in index.notes),
    *_mismatch_notes(csv, absent, [display.names[i] for i in unlisted]),
    *listed.notes,
    display.note,
    *(
      other.said(display.hide(other.paths[0], anybody=True))
      for other in index.others
      if other.paths != (csv,)
    ),
  ]


def _unknown_patients_note(patients: Sequence[str]) -> str:
  """Note on images whose patient is unknown; empty if there are none."""
  unknown = sum(not patient for patient in patients)
  if unknown in (0, len(patients)):
    return patient_splits.UNKNOWN if unknown else ""
  return (
    f"the patient is unknown for {unknown} of {len(patients)} images: each counts as a separate "
    "patient"
  )


def _mismatch_notes(
  csv: str | None, absent: Sequence[tuple[str, str]], unlisted: Sequence[str]
) -> list[str]:
  """Notes on images that are only in the table or only in the folder."""
  base, notes = os.path.basename(csv or ""), []
  if absent:
    notes.append(
      f"{len(absent)} images listed in {base} are missing (the first: {absent[0][0]}): left out"
    )
  if len(unlisted):
    notes.append(
      f"{len(unlisted)} images are not listed in {base} (the first: {unlisted[0]}): left out"
    )
  return notes


def _match(pattern: re.Pattern, path: str) -> str:
  match = pattern.search(path)
  if match is None:
    raise UserError(f"{KEY}.patient_regex={pattern.pattern!r} finds no patient in {path}")
  return match.group(1) if pattern.groups else match.group(0)

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

from cxrjax.core.build import check_regex, suggest
from cxrjax.core.errors import UserError
from cxrjax.data import choices, decode, folder_csv, folder_index, hashes, splits, store
from cxrjax.data.folder_csv import KEY
from cxrjax.data.types import Record, SourceInfo, Table

SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val",
               "validation": "val", "dev": "val", "test": "test", "testing": "test"}


class Source:
  """Images below a folder, in a zip, or in zips below a folder: PNG, JPEG, TIFF, BMP, DICOM.

  Nothing is unpacked: what is in `x/y.zip` counts as lying in a folder `x/y`. DICOM is known by its
  extension (.dcm, .dicom) or, in files without one, by its first bytes.

  Without a CSV, an image's class is the folder it lies in: `PATH/<class>/...` or
  `PATH/<split>/<class>/...` with splits named train, val (valid, validation) and test. Images that
  lie in no class folder have no labels.

  With a CSV, each row names an image. One label column holds class names; several hold 1, 0, -1 for
  uncertain and, for unknown, nothing. Images that it lists and that are not there are left out and
  told of in `info.skipped`; images that it does not list are left out and counted in `info.notes`.

  What neither tells comes from DICOM headers: patient, age, sex and view. Patients are then called
  by their first image's path: their IDs are kept nowhere. So that they keep their names when
  images are added, set the environment variable CXRJAX_PATIENT_KEY to a secret of your own: they
  are then called by a hash that only this secret gives.

  Where no split is given by folders or a column, patients are put into train, val and test (70, 10,
  20 %) by a hash of their names; `split="all"` takes everything.

  Args:
    where: the folder, or the zip.
    split: `train`, `val`, `test` or another name the data uses; `all` is everything.
    csv: a CSV file, in the folder (or zip) or anywhere.
    path_column: the column that names the image, relative to the folder, with or without its
      extension; by default the first of path, file, filename, image and the like.
    label_columns: columns with labels; one (class names) or several (findings). By default the
      column `label` or `class`, if there is one.
    patient_column: the column that names the patient.
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
      self, where: str, split: str = "train", *, csv: str | None = None,
      path_column: str | None = None, label_columns: str | Sequence[str] | None = None,
      patient_column: str | None = None, split_column: str | None = None,
      site_column: str | None = None, view_column: str | None = None,
      age_column: str | None = None, sex_column: str | None = None,
      patient_regex: str | None = None, views: str | Sequence[str] | None = None,
      uncertain: str = "ignore", check: str = "files", cache_dir: str | None = None):
    columns = {"path": path_column, "patient": patient_column, "split": split_column,
               "site": site_column, "view": view_column, "age": age_column, "sex": sex_column}
    label_columns = (label_columns,) if isinstance(label_columns, str) else label_columns
    pattern = _pattern(patient_regex)
    if csv is None:
      for name, value in (*((f"{k}_column", v) for k, v in columns.items()),
                          ("label_columns", label_columns)):
        if value is not None:
          raise UserError(f"{KEY}.{name} needs {KEY}.csv, the file that has the column")
    self._index = folder_index.Index(where, cache_dir, check)
    listed = _by_folder(self._index) if csv is None else folder_csv.read(
      self._index, csv, columns, label_columns, uncertain)
    notes = [*self._index.notes, *listed.notes]
    rows = listed.rows
    paths = [self._index.paths[row] for row in rows.tolist()]
    headers = _Headers(self._index, rows)
    if pattern is not None:
      patients = [_match(pattern, path) for path in paths]
    elif listed.patients is not None:
      patients = listed.patients
    else:
      patients = headers.patients(paths)
      if not headers.know_patients:
        notes.append("patients unknown: every image counts as a patient of its own")
    assigned = listed.splits and [SPLIT_NAMES.get(s.lower(), s) for s in listed.splits]
    if not assigned or not any(assigned):
      assigned = splits.carve(patients)
      notes.append("the data have no splits: patients were put into train, val and test "
                   "(70, 10, 20 %) by a hash of their names")
    shown = listed.views or headers.views()
    kept = choices.rows_of_views(f"folder:{where}", shown, views)
    left = np.setdiff1d(np.arange(len(rows)), kept).tolist()
    skipped = (*listed.absent, *((paths[i], f"its view is {shown[i] or 'unknown'}") for i in left))
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
      ids=tuple(paths), patients=tuple(patients), sites=tuple(listed.sites or ("",) * n),
      labels=listed.labels, views=tuple(shown), sexes=tuple(listed.sexes or headers.sexes()),
      ages=headers.ages() if listed.ages is None else listed.ages).take(kept)
    self.info = SourceInfo(
      name=f"folder:{where}", split=chosen, classes=listed.classes, exclusive=listed.exclusive,
      splits=sizes, fingerprint=self._fingerprint(), notes=tuple(notes), skipped=skipped)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Record:
    return self.read(index)

  @functools.cached_property
  def bits(self) -> int:
    """16 if one of a few images has 16 bits by its header, else 8."""
    for row in store.sample(len(self)):
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
      image=found.pixels, labels=table.labels[index], mask=None, id=table.ids[index],
      patient=table.patients[index], site=table.sites[index], window=found.window,
      notes=found.notes)

  def _fingerprint(self) -> str:
    """Of the images' names and bytes."""
    self._index.learn(self._rows)
    names = "".join(f"{name}\0" for name in self.table.ids).encode("utf-8", "surrogateescape")
    content = hashlib.sha256(names)
    content.update(self._index.facts.digests[self._rows].tobytes())
    return content.hexdigest()


class _Headers:
  """What DICOM headers tell of some images; they are read only where somebody asks."""

  def __init__(self, index: folder_index.Index, rows: np.ndarray):
    self._index, self._rows = index, rows
    self._medical = rows[index.kinds[rows] == folder_index.MEDICAL]

  @property
  def know_patients(self) -> bool:
    return len(self._medical) > 0 and bool(self._facts().patients[self._medical].any())

  def patients(self, paths: Sequence[str]) -> list[str]:
    """A name for each image's patient, its own path where it is unknown."""
    names = list(paths)
    if not self.know_patients:
      return names
    hashed = self._facts().patients[self._rows]
    by_key = bool(os.environ.get(hashes.KEY))
    first: dict[bytes, str] = {}
    for i in np.flatnonzero(hashed.any(axis=1)).tolist():
      key = hashed[i].tobytes()
      names[i] = key.hex() if by_key else first.setdefault(key, paths[i])
    return names

  def views(self) -> list[str]:
    return self._texts("view_codes", hashes.VIEWS)

  def sexes(self) -> list[str]:
    return self._texts("sex_codes", hashes.SEXES)

  def ages(self) -> np.ndarray:
    return self._facts().ages[self._rows]

  def _texts(self, column: str, words: Sequence[str]) -> list[str]:
    return [words[code] for code in getattr(self._facts(), column)[self._rows].tolist()]

  def _facts(self) -> hashes.Facts:
    if len(self._medical):
      self._index.learn(self._medical)
    return self._index.facts


def _by_folder(index: folder_index.Index) -> folder_csv.Listed:
  """Classes and splits by the folders that images lie in."""
  rows = index.images
  places = [index.paths[row].rpartition("/")[0] for row in rows.tolist()]
  parts = {place: place.split("/") if place else [] for place in dict.fromkeys(places)}
  folders = list(parts.values())
  depth = 0  # folders around everything, such as the archive's own name
  while (all(len(p) > depth + 1 for p in folders) and len({p[depth] for p in folders}) == 1
         and folders[0][depth].lower() not in SPLIT_NAMES):
    depth += 1
  has_splits = any(len(p) > depth and p[depth].lower() in SPLIT_NAMES for p in folders)
  split_of, class_of = {}, {}
  for place, names in parts.items():
    inner = names[depth:]
    if has_splits:
      split_of[place], inner = inner[0] if inner else "unsplit", inner[1:]
    class_of[place] = inner[0] if inner else ""
  classes = tuple(sorted(set(class_of.values()) - {""}))
  table = np.full((len(classes) + 1, len(classes)), np.nan, np.float32)
  table[:-1] = np.eye(len(classes))
  code = {name: i for i, name in enumerate(classes)}
  return folder_csv.Listed(
    rows=rows, labels=table[[code.get(class_of[place], -1) for place in places]], classes=classes,
    exclusive=True, patients=None, splits=[split_of[p] for p in places] if has_splits else None,
    sites=None, views=None, sexes=None, ages=None, absent=(), notes=())


def _pattern(patient_regex: str | None) -> re.Pattern | None:
  if patient_regex is None:
    return None
  check_regex(patient_regex, f"{KEY}.patient_regex")
  return re.compile(patient_regex)


def _match(pattern: re.Pattern, path: str) -> str:
  found = pattern.search(path)
  if found is None:
    raise UserError(f"{KEY}.patient_regex={pattern.pattern!r} finds no patient in {path}")
  return found.group(1) if pattern.groups else found.group(0)

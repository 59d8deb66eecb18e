"""Interprets folder names: as splits and classes, or as patients and studies of an archive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from cxrjax.data.sources import display_names, file_kinds, folder_csv, folder_index, spelling

SPLIT_NAMES = {
  "train": "train",
  "training": "train",
  "val": "val",
  "valid": "val",
  "validation": "val",
  "dev": "val",
  "test": "test",
  "testing": "test",
}
_FEW_IMAGES, _MANY_CLASSES = 5, 8  # below and above, class folders look like patients
_MAX_NOTES = 8


def by_folder(index: folder_index.Index) -> folder_csv.Listed:
  """Reads classes and splits off the images' folders.

  Folders that hold a single patient each, according to the DICOM headers, are not classes: archives
  export patients, studies and series as folders.
  """
  rows = index.images
  folder_of_image = [index.paths[row].rpartition("/")[0] for row in rows.tolist()]
  parts = {folder: folder.split("/") if folder else [] for folder in dict.fromkeys(folder_of_image)}
  depth = _common_depth([*parts.values()])
  has_splits = any(len(p) > depth and p[depth].lower() in SPLIT_NAMES for p in parts.values())
  split_of, class_of = {}, {}
  has_identities = False  # whether a class folder is named by a patient's ID or name
  display = display_names.for_index(index)
  for folder, names in parts.items():
    inner = names[depth:]
    if has_splits:
      split_of[folder], inner = inner[0] if inner else "unsplit", inner[1:]
    class_of[folder] = inner[0] if inner else ""
    class_folder = "/".join(names[: len(names) - len(inner) + 1])
    has_identities |= bool(inner) and display.hide(class_folder).rpartition("/")[2] != inner[0]
  splits = [split_of[folder] for folder in folder_of_image] if has_splits else None
  labels = [class_of[folder] for folder in folder_of_image]
  count, patients = len(set(labels) - {""}), _patients_by_class(index, labels)
  one_patient_each = 2 * len(patients) >= count > 0 and all(len(p) == 1 for p in patients.values())
  if count and (has_identities or (one_patient_each and count > 1)):
    notes = [
      f"the {count} folders that could be classes hold one patient each, according to the DICOM "
      "headers: they are treated as patients or studies, and the images have no labels"
    ]
    labels = [""] * len(labels)
  else:
    notes = _class_notes(labels, patients)
  if tables := _tables(index):
    table_name = display.hide(tables[0], anybody=True)
    notes.append(
      f"{table_name} is not used; data.csv={table_name} would take labels, patients and "
      "splits from it"
    )
  classes = tuple(sorted(set(labels) - {""}))
  return folder_csv.Listed(
    rows=rows,
    labels=folder_csv.one_hot(labels, classes),
    classes=classes,
    exclusive=True,
    patients=None,
    patient_column="",
    splits=splits,
    sites=None,
    views=None,
    sexes=None,
    ages=None,
    absent=(),
    notes=tuple(notes),
    advice="" if classes else _advice(index, display),
  )


def _common_depth(folders: Sequence[Sequence[str]]) -> int:
  """Number of outer folders that all have in common, such as an archive's own name."""
  depth = 0
  while (
    all(len(p) > depth + 1 for p in folders)
    and len({p[depth] for p in folders}) == 1
    and folders[0][depth].lower() not in SPLIT_NAMES
  ):
    depth += 1
  return depth


def _patients_by_class(index: folder_index.Index, labels: Sequence[str]) -> dict[str, set[bytes]]:
  """Patients of each class according to DICOM headers; classes without any are left out."""
  rows = index.images
  medical = index.kinds[rows] == folder_index.MEDICAL
  index.learn(rows[medical])
  patients: dict[str, set[bytes]] = {}
  for name, patient in zip(labels, index.facts.patients[rows], strict=True):
    if name and patient.any():
      patients.setdefault(name, set()).add(patient.tobytes())
  return patients


def _class_notes(labels: Sequence[str], patients: dict[str, set[bytes]]) -> list[str]:
  """Notes on suspicious class folders: similar spellings, or many with few images."""
  sizes = Counter(name for name in labels if name)
  notes = spelling.notes((name for name in labels if name), "class", "folders")
  few = sum(n < _FEW_IMAGES for n in sizes.values())
  if not patients and len(sizes) >= _MANY_CLASSES and 2 * few >= len(sizes):
    notes.append(
      f"{few} of {len(sizes)} class folders hold fewer than {_FEW_IMAGES} images: if folders "
      "are patients, name them with data.patient_regex='^([^/]+)/' and give labels in a "
      "table with data.csv"
    )
  return notes


def imbalance_notes(
  listed: folder_csv.Listed, splits: Sequence[str], patients: Sequence[str]
) -> list[str]:
  """Notes on classes that are missing from some splits, or that come from a single patient.

  Args:
    listed: the images.
    splits: split of each image.
    patients: patient of each image, empty where unknown.
  """
  notes, single_patient = [], []
  has_splits = len({s for s in splits if s}) > 1
  for name, column in zip(listed.classes, (listed.labels == 1).T, strict=True):
    rows = np.flatnonzero(column).tolist()
    class_splits, class_patients = {splits[i] for i in rows} - {""}, {patients[i] for i in rows}
    if has_splits and not class_splits:
      notes.append(f"class {name!r} has no images")
    elif has_splits and len(class_splits) == 1:
      notes.append(f"class {name!r} occurs only in the split {min(class_splits)!r}")
    if len(class_patients) == 1 and all(class_patients):
      single_patient.append(name)
  if single_patient:
    notes.insert(
      0,
      f"{len(single_patient)} of {len(listed.classes)} classes consist of one patient each, such "
      f"as {single_patient[0]!r}: a model would learn the patient, not the class",
    )
  if len(notes) <= _MAX_NOTES:
    return notes
  return [*notes[:_MAX_NOTES], f"{len(notes) - _MAX_NOTES} more such classes"]


def _advice(index: folder_index.Index, display: display_names.ShownNames) -> str:
  """How to give the images labels."""
  tables = _tables(index)
  if not tables:
    return (
      "put the images of each class into a separate folder, or name a table of labels with "
      "data.csv=FILE and its columns with data.label_columns=NAME"
    )
  columns = ", ".join(folder_csv.columns_of(index, tables[0]))
  return (
    f"name the table beside the images with data.csv={display.hide(tables[0], True)}, its "
    "labels with data.label_columns=NAME and its patients with data.patient_column=NAME"
    + (f" (it has the columns {columns})" if columns else "")
    + (
      "; if its rows have no paths, data.key=AccessionNumber, or any other DICOM keyword, "
      "finds files by their headers"
      if (index.kinds == folder_index.MEDICAL).any()
      else ""
    )
  )


def _tables(index: folder_index.Index) -> list[str]:
  return [
    path for other in index.others if other.reason == file_kinds.TABLE for path in other.paths
  ]

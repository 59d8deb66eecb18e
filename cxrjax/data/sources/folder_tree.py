"""What the folders of a tree say: splits and classes, or the patients and studies of an archive."""

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
_FEW, _MANY = 5, 8  # images of a class, and classes, that look like patients' folders


def by_folder(index: folder_index.Index) -> folder_csv.Listed:
  """Classes and splits by the folders that images lie in.

  Folders of one patient each, as DICOM headers have it, are no classes: archives export
  patients, studies and series as folders.
  """
  rows = index.images
  places = [index.paths[row].rpartition("/")[0] for row in rows.tolist()]
  parts = {place: place.split("/") if place else [] for place in dict.fromkeys(places)}
  folders = list(parts.values())
  depth = 0  # folders around everything, such as the archive's own name
  while (
    all(len(p) > depth + 1 for p in folders)
    and len({p[depth] for p in folders}) == 1
    and folders[0][depth].lower() not in SPLIT_NAMES
  ):
    depth += 1
  has_splits = any(len(p) > depth and p[depth].lower() in SPLIT_NAMES for p in folders)
  split_of, class_of = {}, {}
  named = False  # whether a class folder is called by somebody's ID or name
  shown = display_names.of(index)
  for place, names in parts.items():
    inner = names[depth:]
    if has_splits:
      split_of[place], inner = inner[0] if inner else "unsplit", inner[1:]
    class_of[place] = inner[0] if inner else ""
    folder = "/".join(names[: len(names) - len(inner) + 1])
    named |= bool(inner) and shown.hide(folder).rpartition("/")[2] != inner[0]
  splits = [split_of[p] for p in places] if has_splits else None
  of = [class_of[place] for place in places]
  count, people = len(set(of) - {""}), _patients_by_class(index, of)
  alone = 2 * len(people) >= count > 0 and all(len(p) == 1 for p in people.values())
  if count and (named or (alone and count > 1)):
    notes = [
      f"the {count} folders that could be classes are of one patient each, as DICOM headers "
      "have it: they are taken for patients or studies, and images have no labels"
    ]
    of = [""] * len(of)
  else:
    notes = _remarks(of, people)
  if tables := _tables(index):
    table_name = shown.hide(tables[0], anybody=True)
    notes.append(
      f"{table_name} is not read: data.csv={table_name} would take labels, patients and "
      "splits from it"
    )
  classes = tuple(sorted(set(of) - {""}))
  table = np.full((len(classes) + 1, len(classes)), np.nan, np.float32)
  table[:-1] = np.eye(len(classes))
  code = {name: i for i, name in enumerate(classes)}
  return folder_csv.Listed(
    rows=rows,
    labels=table[[code.get(name, -1) for name in of]],
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
    advice="" if classes else _advice(index, shown),
  )


def _patients_by_class(index: folder_index.Index, of: Sequence[str]) -> dict[str, set[bytes]]:
  """Patients of every class of which DICOM headers tell some."""
  rows = index.images
  medical = index.kinds[rows] == folder_index.MEDICAL
  index.learn(rows[medical])
  found: dict[str, set[bytes]] = {}
  for name, patient in zip(of, index.facts.patients[rows], strict=True):
    if name and patient.any():
      found.setdefault(name, set()).add(patient.tobytes())
  return found


def _remarks(of: Sequence[str], people: dict[str, set[bytes]]) -> list[str]:
  """What is odd about class folders."""
  sizes = Counter(name for name in of if name)
  notes = spelling.notes((name for name in of if name), "class", "folders")
  few = sum(n < _FEW for n in sizes.values())
  if not people and len(sizes) >= _MANY and 2 * few >= len(sizes):
    notes.append(
      f"{few} of {len(sizes)} class folders hold fewer than {_FEW} images: if folders "
      "are patients, name them with data.patient_regex='^([^/]+)/' and give labels in a "
      "table with data.csv"
    )
  return notes


def uneven(listed: folder_csv.Listed, splits: Sequence[str], patients: Sequence[str]) -> list[str]:
  """Remarks on classes that some splits lack, or that only one patient has.

  Args:
    listed: the images.
    splits: of each.
    patients: of each, empty where unknown.
  """
  present = listed.labels == 1
  where = {
    name: {split for split, there in zip(splits, column, strict=True) if there and split}
    for name, column in zip(listed.classes, present.T, strict=True)
  }
  found = []
  if len({s for s in splits if s}) > 1:
    for name, of in where.items():
      if not of:
        found.append(f"class {name!r} has no image")
      elif len(of) == 1:
        found.append(f"class {name!r} occurs in the split {min(of)!r} only")
  alone = [
    name
    for name, column in zip(listed.classes, present.T, strict=True)
    if len(own := {patients[i] for i in np.flatnonzero(column).tolist()}) == 1 and all(own)
  ]
  if alone:
    found.insert(
      0,
      f"{len(alone)} of {len(listed.classes)} classes are of one patient each, such "
      f"as {alone[0]!r}: what is learnt of them is that patient",
    )
  return found[:_MANY] + ([f"{len(found) - _MANY} more such classes"] if len(found) > _MANY else [])


def _advice(index: folder_index.Index, shown: display_names.ShownNames) -> str:
  """How the folder could have labels."""
  tables = _tables(index)
  if not tables:
    return (
      "put the images of each class into a folder of its own, or name a table of labels with "
      "data.csv=FILE and its columns with data.label_columns=NAME"
    )
  columns = ", ".join(folder_csv.columns_of(index, tables[0]))
  return (
    f"name the table beside the images with data.csv={shown.hide(tables[0], True)}, its "
    "labels with "
    "data.label_columns=NAME and its patients with data.patient_column=NAME"
    + (f" (it has the columns {columns})" if columns else "")
    + (
      "; where its rows have no paths, data.key=AccessionNumber, or any keyword of DICOM, "
      "finds files by their headers"
      if (index.kinds == folder_index.MEDICAL).any()
      else ""
    )
  )


def _tables(index: folder_index.Index) -> list[str]:
  return [
    path for other in index.others if other.reason == file_kinds.TABLE for path in other.paths
  ]

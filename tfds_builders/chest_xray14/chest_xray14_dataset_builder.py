"""NIH ChestX-ray14: 112,120 frontal radiographs with 14 findings (Wang et al. 2017)."""

from __future__ import annotations

import collections
import fnmatch
import math
import pathlib
import re
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from cxrjax.builders import csv_builder, tfds_features
from cxrjax.core.errors import UserError, suggest
from cxrjax.data.sources import archive
from cxrjax.data.splits import patient_splits

FINDINGS = (
  "Atelectasis",
  "Cardiomegaly",
  "Effusion",
  "Infiltration",
  "Mass",
  "Nodule",
  "Pneumonia",
  "Pneumothorax",
  "Consolidation",
  "Edema",
  "Emphysema",
  "Fibrosis",
  "Pleural_Thickening",
  "Hernia",
)
LABELS = (*FINDINGS, "No Finding")
WHERE = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
CANDIDATES = (
  "ChestXray-NIHCC*",
  "CXR8*",
  "ChestX-ray14*",
  "chest_xray14*",
  "nih-chest-xrays*",
  "archive.zip",
  "data.zip",
)
MARKERS = ("Data_Entry_2017*.csv",)
ARCHIVES = 12
VALIDATION = 0.1  # of the patients of train_val
SIDE = 1024  # pixels; boxes are given in these

_PATTERN = r"(?:^|/)(\d{8}_\d{3}\.png)$"
_PART = re.compile(r"(?:^|/)images_0*(\d+)(?:/|\.tar\.gz$|\.tar$|\.tgz$)")
_OLDEST = 120  # years; the first release has ages of up to 414
_AGE = re.compile(r"^0*(\d+)([YMD]?)$")
_UNITS = {"": 1.0, "Y": 1.0, "M": 12.0, "D": 365.25}
_BOXED = {name: name for name in FINDINGS} | {"Infiltrate": "Infiltration"}

Box = tuple[str, list[float]]  # its finding, and [ymin, xmin, ymax, xmax] in 0..1


class Builder(csv_builder.PublishedBuilder):
  """Builds the data set from the published archives in the manual folder."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    f"Put images_001.tar.gz to images_{ARCHIVES:03d}.tar.gz, or what they unpack to, and "
    "Data_Entry_2017_v2020.csv, train_val_list.txt, test_list.txt and BBox_List_2017.csv into the "
    f"manual folder. They are at {WHERE}."
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return self.described(
      tfds_features.features(
        labels=LABELS,
        encoding="png",
        follow_up=tfds.features.Scalar(
          np.int32, doc="Number of the image in the patient's course."
        ),
        boxes=tfds.features.Sequence(
          {"label": tfds.features.ClassLabel(names=FINDINGS), "box": tfds.features.BBoxFeature()},
          doc="By radiologists, of 880 images of the test split; [ymin, xmin, ymax, xmax] in 0..1.",
        ),
      ),
      WHERE,
    )

  def listing(self, manual: pathlib.Path) -> tuple[csv_builder.Listing, list[csv_builder.Part]]:
    path = archive.find(manual, CANDIDATES, WHERE, MARKERS)
    with archive.Archive(path) as opened:
      names = opened.names
      table = _table(opened, names, "Data_Entry_2017*.csv")
      lists = {
        split: _names(opened, _table(opened, names, f"{split}_list.txt"))
        for split in ("train_val", "test")
      }
      boxes = _boxes(opened, names)
      found = _rows(opened, table, _assign(lists, opened), boxes)
      lacking = [
        f"{split}_list.txt names {min(absent)}"
        for split, listed in lists.items()
        if (absent := set(listed) - set(found.rows))
      ]
      if lacking:
        raise UserError(f"{opened.path}: {lacking[0]}, which {table} does not have")
    return found, parts(path, names)


def parts(path: pathlib.Path, names: tuple[str, ...]) -> list[csv_builder.Part]:
  """The archives or folders with the images.

  Raises:
    UserError: one of them is not there.
  """
  numbered: dict[int, set[str]] = collections.defaultdict(set)
  for name in names:
    match = _PART.search(name)
    if match:
      numbered[int(match[1])].add(name[: match.end()])
  if not numbered:
    if not any(re.search(_PATTERN, name) for name in names):
      raise UserError(
        f"{path} has no images: neither images_001.tar.gz to "
        f"images_{ARCHIVES:03d}.tar.gz nor a folder images; get them from {WHERE}"
      )
    return [csv_builder.Part(str(path))]
  lacking = [str(i) for i in range(1, ARCHIVES + 1) if i not in numbered]
  if lacking:
    raise UserError(
      f"{path} has no images_{int(lacking[0]):03d}.tar.gz (of the {ARCHIVES} numbers "
      f"these are not there: {', '.join(lacking)}); get them from {WHERE}"
    )
  if not path.is_dir():
    return [csv_builder.Part(str(path))]  # all of them in one file
  # Where an archive and what it unpacks to are both there, the archive is what was published.
  chosen = [
    min(found, key=lambda name: (name.endswith("/"), name)) for _, found in sorted(numbered.items())
  ]
  return [csv_builder.Part(str(path / name)) for name in chosen]


def _table(
  opened: archive.Archive, names: tuple[str, ...], pattern: str, needed: bool = True
) -> str:
  found = sorted(
    (n for n in names if fnmatch.fnmatch(n.rsplit("/", 1)[-1], pattern)),
    key=lambda n: ("v2020" not in n, n.count("/"), n),
  )
  if not found and needed:
    raise UserError(f"{opened.path} has no {pattern}; get it from {WHERE}")
  return found[0] if found else ""


def _names(opened: archive.Archive, table: str) -> list[str]:
  found = opened.read(table).decode("utf-8-sig", "replace").split()
  for line, name in enumerate(found, 1):
    if not re.search(_PATTERN, name):
      raise UserError(f"{opened.path}: {table} line {line} is {name[:40]!r}, not an image's name")
  return found


def _assign(lists: dict[str, list[str]], opened: archive.Archive) -> dict[str, str]:
  """The split of each image: the official lists, and a tenth of train_val as `validation`."""
  both = set(lists["train_val"]) & set(lists["test"])
  if both:
    raise UserError(f"{opened.path}: {min(both)} is in train_val_list.txt and in test_list.txt")
  carved = patient_splits.assign_by_name(
    [patient_of(name) for name in lists["train_val"]],
    {"train": 1 - VALIDATION, "validation": VALIDATION},
  )
  return dict(zip(lists["train_val"], carved, strict=True)) | dict.fromkeys(lists["test"], "test")


def patient_of(name: str) -> str:
  """The patient that an image's name tells: its first eight digits, without zeros in front."""
  return str(int(name.split("_")[0]))


def _rows(
  opened: archive.Archive, table: str, assigned: dict[str, str], boxes: dict[str, list[Box]]
) -> csv_builder.Listing:
  found = csv_builder.Listing(LABELS, _PATTERN)
  columns = (
    "Image Index",
    "Finding Labels",
    "Follow-up #",
    "Patient ID",
    "Patient Age",
    "View Position",
  )
  for place, row in archive.rows(opened, table, columns):
    name, patient = row["Image Index"], row["Patient ID"].lstrip("0") or "0"
    if not re.search(_PATTERN, name) or patient_of(name) != patient:
      raise UserError(f"{place}: Image Index {name[:40]!r} is not of Patient ID {patient[:20]!r}")
    if name not in assigned:
      raise UserError(f"{place}: {name} is neither in train_val_list.txt nor in test_list.txt")
    sex = row.get("Patient Gender", row.get("Patient Sex"))
    if sex is None:
      raise UserError(
        f"{place.rpartition(' line')[0]} has no column 'Patient Gender' (or 'Patient Sex')"
      )
    found.add(
      name,
      csv_builder.ImageRow(
        patient=patient,
        split=assigned[name],
        labels=_labels(row["Finding Labels"], place),
        age=age(row["Patient Age"], place),
        sex=_one_of(sex, ("M", "F"), "Patient Gender", place),
        view=_one_of(row["View Position"], ("PA", "AP"), "View Position", place),
        boxes=boxes.get(name, []),
        more={"follow_up": _whole(row["Follow-up #"], place)},
      ),
      place,
    )
  return found


def _labels(text: str, place: str) -> tuple[float, ...]:
  present = text.split("|")
  for name in present:
    if name not in LABELS:
      raise UserError(f"{place}: {name[:40]!r} is not a finding of this set{suggest(name, LABELS)}")
  if "No Finding" in present and len(present) > 1:
    raise UserError(f"{place}: 'No Finding' beside findings: {text[:80]!r}")
  return tuple(float(name in present) for name in LABELS)


def age(text: str, place: str) -> float:
  """Years, from `58`, `058Y`, `011M` or `021D`; NaN for what nobody reaches."""
  match = _AGE.match(text)
  if not match:
    raise UserError(f"{place}: Patient Age is {text[:20]!r}, not a number such as 58 or 058Y")
  years = int(match[1]) / _UNITS[match[2]]
  return years if years <= _OLDEST else math.nan


def _one_of(text: str, known: tuple[str, ...], column: str, place: str) -> str:
  if text not in known:
    raise UserError(f"{place}: {column} is {text[:20]!r}, not one of {', '.join(known)}")
  return text


def _whole(text: str, place: str) -> int:
  if not text.isdecimal():
    raise UserError(f"{place}: Follow-up # is {text[:20]!r}, not a number")
  return int(text)


def _boxes(opened: archive.Archive, names: tuple[str, ...]) -> dict[str, list[Box]]:
  """Boxes of each image that has some; none at all where the file is not there."""
  table = _table(opened, names, "BBox_List_2017*.csv", needed=False)
  found: dict[str, list[Box]] = collections.defaultdict(list)
  for place, row in _box_rows(opened, table) if table else ():
    label = _BOXED.get(row["Finding Label"])
    if label is None:
      raise UserError(f"{place}: {row['Finding Label'][:40]!r} is not a finding of this set")
    try:
      x, y, w, h = (float(row[column]) for column in ("Bbox [x", "y", "w", "h]"))
    except ValueError as error:
      raise UserError(f"{place}: the box is not four numbers") from error
    edges = [float(np.clip(v / SIDE, 0, 1)) for v in (y, x, y + h, x + w)]
    found[row["Image Index"]].append((label, edges))
  return found


def _box_rows(opened: archive.Archive, table: str) -> Iterator[tuple[str, dict[str, str]]]:
  return archive.rows(opened, table, ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"))

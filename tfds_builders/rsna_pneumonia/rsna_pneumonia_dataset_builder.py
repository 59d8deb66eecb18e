"""RSNA Pneumonia Detection Challenge 2018: DICOM radiographs with boxes (Shih et al. 2019)."""

from __future__ import annotations

import math
import pathlib
import re
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from cxrjax.builders import csv_builder, release_layout, tfds_features
from cxrjax.core.errors import UserError, suggest
from cxrjax.data.sources import archive
from cxrjax.data.splits import patient_splits

CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
FINDING = "Pneumonia"
FRACTIONS = {"train": 0.7, "validation": 0.1, "test": 0.2}
WHERE = "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge"
CANDIDATES = ("rsna-pneumonia*", "rsna_pneumonia*", "archive.zip")
MARKERS = ("stage_2_train_labels.csv*",)

_KEY = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_PATTERN = rf"(?:^|/)({_KEY})\.dcm$"
_TEST = rf"(?:^|/)stage_2_test_images/(?:.*/)?({_KEY})\.dcm$"
_BOX = ("x", "y", "width", "height")


class Builder(csv_builder.PublishedBuilder):
  """Builds the data set from the challenge's archive in the manual folder."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
  SPLITS = ("train", "validation", "test", "unlabelled")
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Put rsna-pneumonia-detection-challenge.zip, or what it unpacks to, into the manual folder. It "
    f"is at {WHERE}, with a Kaggle account."
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return self.described(
      tfds_features.features(
        label=CLASSES,
        labels=(FINDING,),
        encoding="png",
        window=True,
        boxes=tfds.features.Sequence(
          {"label": tfds.features.ClassLabel(names=(FINDING,)), "box": tfds.features.BBoxFeature()},
          doc="Opacities that may be pneumonia; [ymin, xmin, ymax, xmax] in 0..1.",
        ),
      ),
      WHERE,
    )

  def listing(self, manual: pathlib.Path) -> tuple[csv_builder.Listing, list[csv_builder.Part]]:
    path = archive.find(manual, CANDIDATES, WHERE, MARKERS)
    found = csv_builder.Listing((FINDING,), _PATTERN, dicom=True)
    with release_layout.open_release(path) as release:
      boxes = _boxes(release, release_layout.find_table(release, "stage_2_train_labels", WHERE))
      classes = _classes(
        release, release_layout.find_table(release, "stage_2_detailed_class_info", WHERE), boxes
      )
      parts = release_layout.parts(path, release.names, _PATTERN)
      hidden = release_layout.without_labels(
        release, _TEST, "stage_2_sample_submission", "patientId"
      )
    for key, split in _assign(classes).items():
      found.add(
        key,
        csv_builder.ImageRow(
          patient="",
          split=split,
          labels=(float(bool(boxes[key])),),
          boxes=boxes[key],
          more={"label": classes[key]},
        ),
        str(path),
      )
    for key, place in hidden.items():
      found.add(
        key,
        csv_builder.ImageRow(
          patient="", split="unlabelled", labels=(math.nan,), boxes=[], more={"label": -1}
        ),
        place,
      )
    self.left_out.note(
      "patients unknown: every image counts as a patient of its own, but all are of ChestX-ray14, "
      "where a patient has several; do not test on one set what was trained on the other"
    )
    if not hidden:
      self.left_out.note("the images of the challenge's test, without labels, were not there")
    return found, parts


def _boxes(release: archive.Archive, table: str) -> dict[str, list[tuple[str, list[float]]]]:
  """Boxes in pixels of each image; none for an image without pneumonia."""
  found: dict[str, list[tuple[str, list[float]]]] = {}
  for place, row in archive.rows(release, table, ("patientId", *_BOX, "Target")):
    key, target, cells = row["patientId"], row["Target"], [row[name] for name in _BOX]
    if not re.fullmatch(_KEY, key):
      raise UserError(f"{place}: patientId {key[:40]!r} is not of this data set")
    if target not in ("0", "1"):
      raise UserError(f"{place}: Target is {target[:20]!r}, not 0 or 1")
    if (target == "0" and (key in found or any(cells))) or (key in found and not found[key]):
      raise UserError(f"{place}: {key} with pneumonia and without, or listed a second time")
    found.setdefault(key, [])
    if target == "1":
      try:
        x, y, width, height = map(float, cells)
      except ValueError as error:
        raise UserError(f"{place}: the box is not four numbers") from error
      found[key].append((FINDING, [y, x, y + height, x + width]))
  return found


def _classes(release: archive.Archive, table: str, boxes: dict[str, list]) -> dict[str, str]:
  """The class of each image; the table repeats a row for each box."""
  found: dict[str, str] = {}
  for place, row in archive.rows(release, table, ("patientId", "class")):
    key, name = row["patientId"], row["class"]
    if name not in CLASSES:
      raise UserError(f"{place}: {name[:40]!r} is not a class of this set{suggest(name, CLASSES)}")
    if found.setdefault(key, name) != name:
      raise UserError(f"{place}: {key[:40]} is {name!r} here and {found[key]!r} above")
    if key not in boxes:
      raise UserError(f"{place}: {key[:40]} is not in stage_2_train_labels.csv")
    if bool(boxes[key]) != (name == CLASSES[2]):
      raise UserError(
        f"{place}: {key} is {name!r}, and in stage_2_train_labels.csv it has "
        f"{len(boxes[key])} boxes"
      )
  lacking = sorted(set(boxes) - set(found))
  if lacking:
    raise UserError(
      f"{release.path}: {table} does not have {lacking[0]}, one of {len(lacking):,} "
      "in stage_2_train_labels.csv that it lacks"
    )
  return found


def _assign(classes: dict[str, str]) -> dict[str, str]:
  """The split of each image: none is official."""
  keys = sorted(classes)
  labels = np.array([[classes[key] == name for name in CLASSES] for key in keys], np.float32)
  rows = patient_splits.split_by_patient(keys, FRACTIONS, labels=labels)
  return {keys[row]: split for split, chosen in rows.items() for row in chosen}

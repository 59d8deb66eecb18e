"""VinDr-CXR: adult radiographs read by three radiologists each (Nguyen et al. 2022)."""

from __future__ import annotations

import collections
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from cxrjax.builders import csv_builder, release_layout, tfds_features
from cxrjax.core.errors import UserError, suggest
from cxrjax.data.sources import archive
from cxrjax.data.splits import patient_splits

LOCAL = (
  "Aortic enlargement",
  "Atelectasis",
  "Calcification",
  "Cardiomegaly",
  "Clavicle fracture",
  "Consolidation",
  "Edema",
  "Emphysema",
  "Enlarged PA",
  "ILD",
  "Infiltration",
  "Lung Opacity",
  "Lung cavity",
  "Lung cyst",
  "Mediastinal shift",
  "Nodule/Mass",
  "Pleural effusion",
  "Pleural thickening",
  "Pneumothorax",
  "Pulmonary fibrosis",
  "Rib fracture",
  "Other lesion",
)
LABELS = (*LOCAL, "COPD", "Lung tumor", "Pneumonia", "Tuberculosis", "Other diseases", "No finding")
KAGGLE = (
  "Aortic enlargement",
  "Atelectasis",
  "Calcification",
  "Cardiomegaly",
  "Consolidation",
  "ILD",
  "Infiltration",
  "Lung Opacity",
  "Nodule/Mass",
  "Other lesion",
  "Pleural effusion",
  "Pleural thickening",
  "Pneumothorax",
  "Pulmonary fibrosis",
  "No finding",
)
READERS = 3
CONSENSUS = "consensus"  # of the test split's five radiologists
FRACTIONS = {"train": 0.7, "validation": 0.1, "test": 0.2}
WHERE = {
  "physionet": "https://physionet.org/content/vindr-cxr/1.0.0/",
  "vinbigdata": "https://www.kaggle.com/c/vinbigdata-chest-xray-abnormalities-detection",
}
CANDIDATES = {
  "physionet": ("vindr-cxr*", "physionet.org/files/vindr-cxr", "VinDr-CXR*", "archive.zip"),
  "vinbigdata": ("vinbigdata*", "archive.zip"),
}
MARKERS = {
  "physionet": ("annotations/image_labels_train.csv*", "image_labels_train.csv*"),
  "vinbigdata": ("train.csv*",),
}

_PATTERN = r"(?:^|/)([0-9a-f]{32})\.(?:dicom|dcm)$"
_TEST = r"(?:^|/)test/([0-9a-f]{32})\.(?:dicom|dcm)$"
_ADULT = 1.0  # years: where the age is not known, the files say 000Y

# Of each image, what each of its readers found.
Readings = dict[str, dict[str, set[str]]]
Boxes = dict[str, list[tuple[str, list[float], str]]]


class Builder(csv_builder.PublishedBuilder):
  """Builds the data set from one of its two releases in the manual folder."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
  SPLITS = ("train", "validation", "test", "unlabelled")
  BUILDER_CONFIGS: ClassVar = [
    tfds.core.BuilderConfig(
      name="physionet", description="PhysioNet's: 28 labels; the test split has labels."
    ),
    tfds.core.BuilderConfig(
      name="vinbigdata", description="Kaggle's VinBigData challenge: 15 labels."
    ),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Put PhysioNet's release (config `physionet`: the folder with train, test and annotations) or "
    "Kaggle's (config `vinbigdata`: vinbigdata-chest-xray-abnormalities-detection.zip), packed or "
    "unpacked, into the manual folder. They are at "
    f"{WHERE['physionet']} and {WHERE['vinbigdata']}, after registration."
  )

  def _info(self) -> tfds.core.DatasetInfo:
    labels = LABELS if self.builder_config.name == "physionet" else KAGGLE
    return self.described(
      tfds_features.features(
        labels=labels,
        encoding="png",
        bits=16,
        window=True,
        votes=tfds.features.FeaturesDict(
          {name: tfds.features.Scalar(np.float32) for name in labels},
          doc="Share of the readers who found it; NaN where single readings are not published.",
        ),
        readers=tfds.features.Sequence(tfds.features.Text(), doc="Who read the image."),
        boxes=tfds.features.Sequence(
          {
            "label": tfds.features.ClassLabel(names=labels),
            "box": tfds.features.BBoxFeature(),
            "reader": tfds.features.Text(),
          },
          doc="As drawn by each reader; [ymin, xmin, ymax, xmax] in 0..1.",
        ),
      ),
      WHERE[self.builder_config.name],
    )

  def listing(self, manual: pathlib.Path) -> tuple[csv_builder.Listing, list[csv_builder.Part]]:
    config = self.builder_config.name
    path = archive.find(manual, CANDIDATES[config], WHERE[config], MARKERS[config])
    labels = LABELS if config == "physionet" else KAGGLE
    found = csv_builder.Listing(
      [*labels, *(f"votes::{name}" for name in labels)], _PATTERN, dicom=True, youngest=_ADULT
    )
    with release_layout.open_release(path) as release:
      (_physionet if config == "physionet" else _vinbigdata)(release, found)
      parts = release_layout.parts(path, release.names, _PATTERN)
    self.left_out.note("patients unknown: every image counts as a patient of its own")
    if config == "vinbigdata" and not found.of("unlabelled"):
      self.left_out.note("the images of the challenge's test, without labels, were not there")
    return found, parts


def _physionet(release: archive.Archive, found: csv_builder.Listing) -> None:
  """Adds all images of PhysioNet's release: train by votes, test by consensus."""
  for split in ("train", "test"):
    table = release_layout.find_table(release, f"image_labels_{split}", WHERE["physionet"])
    boxes = _boxes(
      release, release_layout.find_table(release, f"annotations_{split}", WHERE["physionet"])
    )
    readings: Readings = collections.defaultdict(dict)
    places: dict[str, str] = {}
    columns = ("image_id", *(("rad_id",) if split == "train" else ()), *LABELS)
    for place, row in archive.rows(release, table, columns):
      key, reader = row["image_id"], row["rad_id"] if split == "train" else CONSENSUS
      if reader in readings[key]:
        raise UserError(f"{place} lists {key[:50]} a second time (reader {reader[:10]})")
      readings[key][reader] = {name for name in LABELS if _present(row[name], name, place)}
      places.setdefault(key, place)
    for key, by in readings.items():
      if split == "train":
        _check(by, key, places[key])
      _add(found, key, split, by, boxes.pop(key, []), LABELS, places[key])
    if boxes:
      raise UserError(
        f"{release.path}: annotations_{split}.csv has boxes of {min(boxes)[:50]}, "
        f"which is not in {table}"
      )


def _vinbigdata(release: archive.Archive, found: csv_builder.Listing) -> None:
  """Adds all images of Kaggle's release: train by votes, split anew, and test without labels."""
  readings: Readings = collections.defaultdict(lambda: collections.defaultdict(set))
  places: dict[str, str] = {}
  table = release_layout.find_table(release, "train", WHERE["vinbigdata"])
  boxes = _boxes(release, table, KAGGLE, readings, places)
  for key, by in readings.items():
    _check(by, key, places[key])
  keys = sorted(readings)
  values = np.array([_majority(readings[key], KAGGLE) for key in keys], np.float32)
  for split, rows in patient_splits.split_by_patient(keys, FRACTIONS, labels=values).items():
    for row in rows:
      key = keys[row]
      _add(found, key, split, readings[key], boxes.get(key, []), KAGGLE, places[key])
  for key, place in release_layout.without_labels(
    release, _TEST, "sample_submission", "image_id"
  ).items():
    _add(found, key, "unlabelled", {}, [], KAGGLE, place)


def _add(
  found: csv_builder.Listing,
  key: str,
  split: str,
  by: Mapping[str, set[str]],
  boxes: list[tuple[str, list[float], str]],
  labels: Sequence[str],
  place: str,
) -> None:
  single = CONSENSUS not in by and bool(by)
  votes = _share(by, labels) if single else (math.nan,) * len(labels)
  majority = _majority(by, labels) if by else (math.nan,) * len(labels)
  found.add(
    key,
    csv_builder.ImageRow(
      patient="",
      split=split,
      labels=(*majority, *votes),
      view="PA",
      boxes=boxes,
      more={"readers": sorted(by)},
    ),
    place,
  )


def _share(by: Mapping[str, set[str]], labels: Sequence[str]) -> tuple[float, ...]:
  return tuple(sum(name in present for present in by.values()) / len(by) for name in labels)


def _majority(by: Mapping[str, set[str]], labels: Sequence[str]) -> tuple[float, ...]:
  return tuple(float(share > 0.5) for share in _share(by, labels))


def _check(by: Mapping[str, set[str]], key: str, place: str) -> None:
  if len(by) != READERS:
    raise UserError(
      f"{place}: {key[:50]} has {len(by)} reader(s) and not {READERS}: is the file whole?"
    )


def _present(text: str, name: str, place: str) -> bool:
  value = csv_builder.parse_finding(text, name, place)
  if value not in (0, 1):
    raise UserError(f"{place}: {name} is {text[:20]!r}, not 0 or 1")
  return value == 1


def _boxes(
  release: archive.Archive,
  table: str,
  labels: Sequence[str] = LABELS,
  readings: Readings | None = None,
  places: dict[str, str] | None = None,
) -> Boxes:
  """Boxes in pixels of each image; on the way, what each reader found in which image, and where.

  Args:
    release: with the table.
    table: with a row for each box, and for each reader who drew none.
    labels: that there are.
    readings: to add to.
    places: to add to: the place that first names an image.
  """
  found: Boxes = collections.defaultdict(list)
  consensus = table.rsplit("/", 1)[-1].startswith("annotations_test")
  columns = ("image_id", "class_name", *(() if consensus else ("rad_id",)), *release_layout.EDGES)
  for place, row in archive.rows(release, table, columns):
    key, name = row["image_id"], row["class_name"]
    reader = CONSENSUS if consensus else row["rad_id"]
    if name not in labels:
      raise UserError(f"{place}: {name[:40]!r} is not a finding of this set{suggest(name, labels)}")
    if readings is not None:
      readings[key][reader].add(name)
    if places is not None:
      places.setdefault(key, place)
    box = release_layout.edges(row, place)
    if box is not None:
      found[key].append((name, box, reader))
  return found

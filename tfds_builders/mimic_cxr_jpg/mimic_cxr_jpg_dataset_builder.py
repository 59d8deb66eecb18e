"""MIMIC-CXR-JPG: 377,110 radiographs with labels of two labelers (Johnson et al. 2019)."""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from cxrjax.builders import csv_builder, release_layout, tfds_features
from cxrjax.core.errors import UserError, suggest
from cxrjax.data.sources import archive

LABELS = (
  "Atelectasis",
  "Cardiomegaly",
  "Consolidation",
  "Edema",
  "Enlarged Cardiomediastinum",
  "Fracture",
  "Lung Lesion",
  "Lung Opacity",
  "No Finding",
  "Pleural Effusion",
  "Pleural Other",
  "Pneumonia",
  "Pneumothorax",
  "Support Devices",
)
READERS = ("labels", "negbio", "radiologist")
WHERE = "https://physionet.org/content/mimic-cxr-jpg (credentialed access)"
CANDIDATES = (
  "physionet.org/files/mimic-cxr-jpg/2.1.0",
  "physionet.org/files/mimic-cxr-jpg/2.0.0",
  "mimic-cxr-jpg/2.1.0",
  "mimic-cxr-jpg/2.0.0",
  "mimic-cxr-jpg*",
  "MIMIC-CXR-JPG*",
  "mimic_cxr_jpg*",
)
MARKERS = ("mimic-cxr-2.0.0-split.csv*",)
SPLITS = {"train": "train", "validate": "validation", "test": "test"}

_PATTERN = r"(?:^|/)([0-9a-f]{8}(?:-[0-9a-f]{8}){4})\.jpg$"
_FOLDER = re.compile(r"^(?:.*/)?files/(p\d\d)/")
_IMAGE = re.compile(_PATTERN)
_VIEWS = {"PA": "PA", "AP": "AP", "LATERAL": "L", "LL": "L", "RL": "L"}
_RENAMED = {"Airspace Opacity": "Lung Opacity"}  # in the table of 2.1.0's test set
_UNREAD = (math.nan,) * len(LABELS)


class Builder(csv_builder.PublishedBuilder):
  """Builds the data set from the release in the manual folder."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Put the release (2.1.0 or 2.0.0) as `wget -r` leaves it, the folder with files/p10 to "
    "files/p19 and mimic-cxr-2.0.0-metadata, -split, -chexpert and -negbio.csv.gz, or its zip, "
    f"into the manual folder. It is at {WHERE}."
  )

  def _info(self) -> tfds.core.DatasetInfo:
    findings = {name: tfds.features.Scalar(np.float32) for name in LABELS}
    return self.described(
      tfds_features.features(
        labels=LABELS,
        encoding="jpeg",
        study=tfds.features.Text(doc="Labels are of the study."),
        view_position=tfds.features.Text(doc="ViewPosition as published."),
        negbio=tfds.features.FeaturesDict(
          findings, doc="As `labels`, by NegBio in place of CheXpert."
        ),
        radiologist=tfds.features.FeaturesDict(
          findings, doc="As `labels`, by radiologists, for studies of the test split of 2.1.0."
        ),
      ),
      "https://physionet.org/content/mimic-cxr-jpg",
    )

  def listing(self, manual: pathlib.Path) -> tuple[csv_builder.Listing, list[csv_builder.Part]]:
    path = archive.find(manual, CANDIDATES, WHERE, MARKERS)
    found = csv_builder.Listing(
      [*LABELS, *(f"{reader}::{name}" for reader in READERS[1:] for name in LABELS)], _PATTERN
    )
    with archive.Archive(path) as opened:
      names = opened.names
      # The tables are called 2.0.0 in release 2.1.0 as well.
      tables = {
        kind: release_layout.find_table(opened, f"mimic-cxr-2.0.0-{kind}", WHERE)
        for kind in ("split", "metadata", "chexpert", "negbio")
      }
      readings = [dict(_readings(opened, tables[kind])) for kind in ("chexpert", "negbio")]
      experts = dict(_experts(opened))
      if not experts:
        self.left_out.note("the labels by radiologists (release 2.1.0) were not there")
      splits = dict(_splits(opened, tables["split"]))
      owner: dict[str, str] = {}
      for place, row in archive.rows(
        opened, tables["metadata"], ("dicom_id", "subject_id", "study_id", "ViewPosition")
      ):
        key, study = row["dicom_id"], (row["subject_id"], row["study_id"])
        split, its = splits.get(key, ("", study))
        if not split:
          raise UserError(f"{place}: {key[:50]} is not in {tables['split']}")
        if its != study:
          raise UserError(
            f"{place}: {key} is of subject and study {'/'.join(study)} here and of "
            f"{'/'.join(its)} in {tables['split']}"
          )
        if owner.setdefault(study[0], split) != split:
          raise UserError(f"{place}: subject {study[0]} is in {split} and in {owner[study[0]]}")
        labels = [read.get(study, _UNREAD) for read in readings]
        view = row["ViewPosition"].strip()
        found.add(
          key,
          csv_builder.ImageRow(
            patient=study[0],
            split=split,
            labels=(*labels[0], *labels[1], *experts.get(study[1], _UNREAD)),
            view=_VIEWS.get(view, ""),
            more={"study": study[1], "view_position": view},
          ),
          place,
        )
      if len(splits) > len(found.rows):
        raise UserError(
          f"{path}: {tables['split']} lists {min(set(splits) - set(found.rows))}, "
          f"which {tables['metadata']} does not have"
        )
    return found, _parts(path, names, found)


def _parts(
  path: pathlib.Path, names: tuple[str, ...], listing: csv_builder.Listing
) -> list[csv_builder.Part]:
  """One for each of `files/p10` to `files/p19`, where the release is a folder.

  Raises:
    UserError: one of those is not there that the tables name patients of.
  """
  tops: dict[str, str] = {}
  for name in names:
    match = _FOLDER.match(name)
    if match and name.endswith(".jpg"):
      tops.setdefault(match[1], match[0])
  lacking = sorted({f"p{row.patient[:2]}" for row in listing.rows.values()} - set(tops))
  if lacking:
    raise UserError(
      f"{path} has no images in files/{lacking[0]} (of {len(lacking)} such folders): "
      f"only a part of the data set; get the rest from {WHERE}"
    )
  if not path.is_dir():
    return [csv_builder.Part(str(path))]
  return [csv_builder.Part(str(path / top)) for _, top in sorted(tops.items())]


def _splits(
  opened: archive.Archive, table: str
) -> Iterator[tuple[str, tuple[str, tuple[str, str]]]]:
  """Split, subject and study of each image."""
  seen: set[str] = set()
  for place, row in archive.rows(opened, table, ("dicom_id", "study_id", "subject_id", "split")):
    key = row["dicom_id"]
    if not _IMAGE.fullmatch(f"{key}.jpg"):
      raise UserError(f"{place}: dicom_id is {key[:60]!r}, not five groups of eight hex digits")
    if row["split"] not in SPLITS:
      raise UserError(f"{place}: split is {row['split'][:20]!r}{suggest(row['split'], SPLITS)}")
    if key in seen:
      raise UserError(f"{place} lists {key} a second time")
    seen.add(key)
    yield key, (SPLITS[row["split"]], (row["subject_id"], row["study_id"]))


def _readings(
  opened: archive.Archive, table: str
) -> Iterator[tuple[tuple[str, str], tuple[float, ...]]]:
  """Labels of each study, by subject and study."""
  seen: set[tuple[str, str]] = set()
  for place, row in archive.rows(opened, table, ("subject_id", "study_id", *LABELS)):
    study = row["subject_id"], row["study_id"]
    if study in seen:
      raise UserError(f"{place} lists study {study[1]} a second time")
    seen.add(study)
    yield study, tuple(csv_builder.parse_finding(row[name], name, place) for name in LABELS)


def _experts(opened: archive.Archive) -> Iterator[tuple[str, tuple[float, ...]]]:
  """Radiologists' labels of some studies of the test split; of none in release 2.0.0."""
  table = release_layout.find_table(opened, "mimic-cxr-2.1.0-test-set-labeled")
  for place, row in archive.rows(opened, table, ("study_id",)) if table else ():
    row = {_RENAMED.get(name, name): cell for name, cell in row.items()}
    yield (
      row["study_id"],
      tuple(csv_builder.parse_finding(row.get(name, ""), name, place) for name in LABELS),
    )

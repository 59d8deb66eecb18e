"""VinDr-PCXR (PediCXR): radiographs of children with 15 diagnoses (Pham et al. 2023)."""

from __future__ import annotations

import collections
import math
import pathlib
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from cxrjax.builders import csv_builder, release_layout, tfds_features
from cxrjax.core.errors import UserError, suggest
from cxrjax.data.sources import archive

LABELS = (  # spelt as published
  "No finding",
  "Bronchitis",
  "Brocho-pneumonia",
  "Other disease",
  "Bronchiolitis",
  "Situs inversus",
  "Pneumonia",
  "Pleuro-pneumonia",
  "Diagphramatic hernia",
  "Tuberculosis",
  "Congenital emphysema",
  "CPAM",
  "Hyaline membrane disease",
  "Mediastinal tumor",
  "Lung tumor",
)
FINDINGS = (
  "Boot-shaped heart",
  "Peribronchovascular interstitial opacity",
  "Reticulonodular opacity",
  "Bronchial thickening",
  "Enlarged PA",
  "Cardiomegaly",
  "Diffuse aveolar opacity",
  "Other opacity",
  "Other lesion",
  "Consolidation",
  "Mediastinal shift",
  "Anterior mediastinal mass",
  "Dextro cardia",
  "Pleural effusion",
  "Stomach on the right side",
  "Atelectasis",
  "Lung hyperinflation",
  "Egg on string sign",
  "Interstitial lung disease - ILD",
  "Infiltration",
  "Lung cavity",
  "Pneumothorax",
  "Edema",
  "Pleural thickening",
  "Other nodule/mass",
  "Clavicle fracture",
  "Chest wall mass",
  "Lung cyst",
  "Emphysema",
  "Bronchectasis",
  "Expanded edges of the anterior ribs",
  "Pulmonary fibrosis",
  "Paraveterbral mass",
  "Aortic enlargement",
  "Calcification",
  "Intrathoracic digestive structure",
)
WHERE = "https://physionet.org/content/vindr-pcxr/1.0.0/"
CANDIDATES = ("vindr-pcxr*", "physionet.org/files/vindr-pcxr", "VinDr-PCXR*", "archive.zip")
MARKERS = ("image_labels_train.csv*",)

_PATTERN = r"(?:^|/)([0-9a-f]{32})\.(?:dicom|dcm)$"

Boxes = dict[str, list[tuple[str, list[float], str]]]


class Builder(csv_builder.PublishedBuilder):
  """Builds the data set from PhysioNet's release in the manual folder."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Put the release (the folder with train, test, image_labels_train.csv and the other tables), "
    f"packed or unpacked, into the manual folder. It is at {WHERE}, after registration."
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return self.described(
      tfds_features.features(
        labels=LABELS,
        encoding="png",
        bits=16,
        window=True,
        findings=tfds.features.FeaturesDict(
          {name: tfds.features.Scalar(np.float32) for name in FINDINGS},
          doc="1 where a box of it was drawn, 0 where none; NaN where the image has no annotation.",
        ),
        reader=tfds.features.Text(doc="Who read the image; empty where unknown."),
        boxes=tfds.features.Sequence(
          {
            "label": tfds.features.ClassLabel(names=FINDINGS),
            "box": tfds.features.BBoxFeature(),
            "reader": tfds.features.Text(),
          },
          doc="[ymin, xmin, ymax, xmax] in 0..1.",
        ),
      ),
      WHERE,
    )

  def listing(self, manual: pathlib.Path) -> tuple[csv_builder.Listing, list[csv_builder.Part]]:
    path = archive.find(manual, CANDIDATES, WHERE, MARKERS)
    found = csv_builder.Listing(
      [*LABELS, *(f"findings::{name}" for name in FINDINGS)], _PATTERN, dicom=True
    )
    with release_layout.open_release(path) as release:
      for split in ("train", "test"):
        table = release_layout.find_table(release, f"image_labels_{split}", WHERE)
        seen, boxes = _annotations(
          release, release_layout.find_table(release, f"annotations_{split}", WHERE)
        )
        for place, row in archive.rows(release, table, ("image_id",)):
          _check(row, place)
          key, its = row["image_id"], boxes.get(row["image_id"], [])
          drawn = {name for name, *_ in its}
          findings = (float(name in drawn) if key in seen else math.nan for name in FINDINGS)
          found.add(
            key,
            csv_builder.ImageRow(
              patient="",
              split=split,
              view="PA",
              boxes=its,
              labels=(*(_present(row[name], name, place) for name in LABELS), *findings),
              more={"reader": _reader(row)},
            ),
            place,
          )
        lost = seen - set(found.rows)
        if lost:
          raise UserError(
            f"{path}: annotations_{split}.csv names {min(lost)[:50]}, which is not in {table}"
          )
      parts = release_layout.parts(path, release.names, _PATTERN)
    self.left_out.note("patients unknown: every image counts as a patient of its own")
    return found, parts


def _reader(row: dict[str, str]) -> str:
  return row.get("rad_ID", row.get("rad_id", ""))


def _check(row: dict[str, str], place: str) -> None:
  """Raises a UserError where the table is another set's, or of another form."""
  where = place.rpartition(" line")[0]
  if "Aortic enlargement" in row:
    raise UserError(f"{where} is of VinDr-CXR: prepare tfds:vindr_cxr")
  lacking = [name for name in LABELS if name not in row]
  if lacking:
    raise UserError(f"{where} has no column {lacking[0]!r}{suggest(lacking[0], row)}")


def _present(text: str, name: str, place: str) -> float:
  value = csv_builder.parse_finding(text, name, place)
  if value not in (0, 1):
    raise UserError(f"{place}: {name} is {text[:20]!r}, not 0 or 1")
  return value


def _annotations(release: archive.Archive, table: str) -> tuple[set[str], Boxes]:
  """The images that were annotated, and boxes in pixels of those that have some."""
  seen: set[str] = set()
  boxes: Boxes = collections.defaultdict(list)
  for place, row in archive.rows(release, table, ("image_id", "class_name", *release_layout.EDGES)):
    key, name = row["image_id"], row["class_name"]
    seen.add(key)
    box = release_layout.edges(row, place)
    if name not in FINDINGS and (box is not None or name not in LABELS):
      raise UserError(
        f"{place}: {name[:40]!r} is not a finding of this set{suggest(name, FINDINGS)}"
      )
    if box is not None:
      boxes[key].append((name, box, _reader(row)))
  return seen, boxes

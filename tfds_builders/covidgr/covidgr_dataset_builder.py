"""Chest radiographs with and without COVID-19 from Granada (COVIDGR 1.0, Tabik et al. 2020)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from cxrjax.builders import base_builder, tfds_features
from cxrjax.core.errors import UserError, suggest
from cxrjax.data.sources import archive
from cxrjax.data.splits import patient_splits

LABELS = {"N": "negative", "P": "positive"}
GRADES = {"NORMAL-PCR+": "Normal-PCR+", "MILD": "Mild", "MODERATE": "Moderate", "SEVERE": "Severe"}
SEVERITIES = ("negative", *GRADES.values(), "unknown")
FOLDS = tuple(f"fold{i}" for i in range(5))
PUBLISHED = 852
WHERE = "https://github.com/ari-dasci/OD-covidgr/releases/tag/1.0"
CANDIDATES = ("COVIDGR*.zip", "COVIDGR*", "OD-covidgr*", "severity.csv", "Data", "N", "P")

_MEMBER = r"([NP])/([^/]+)\.(jpe?g|png)"
_HEX = frozenset("0123456789abcdef")


@dataclasses.dataclass(frozen=True)
class Example:
  """One published image: where it lies, and how ill the patient was."""

  member: str
  id: str
  label: str
  severity: str


class Builder(base_builder.SetBuilder):
  """Builds the data set from the published archive in the manual folder."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Put the archive of release 1.0 (COVIDGR*.zip), or the folder it unpacks to, into the manual "
    f"folder. It is at {WHERE}."
  )

  def _info(self) -> tfds.core.DatasetInfo:
    self.left_out = tfds_features.LeftOut()
    return self.dataset_info_from_configs(
      features=tfds_features.features(
        label=tuple(LABELS.values()),
        encoding="jpeg",
        severity=tfds.features.ClassLabel(names=SEVERITIES),
      ),
      supervised_keys=("image", "label"),
      homepage="https://github.com/ari-dasci/OD-covidgr",
      metadata=self.left_out.metadata,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
    with archive.gather(dl_manager.manual_dir, CANDIDATES, WHERE) as opened:
      found = examples(opened, self.left_out)
    return {
      name: tfds_features.at_least_one(
        self._generate_examples(dl_manager.manual_dir, chosen), name, self.left_out
      )
      for name, chosen in assign(found).items()
    }

  def _generate_examples(self, folder, chosen: list[Example]) -> Iterator[tuple[str, dict]]:
    with archive.gather(folder, CANDIDATES, WHERE) as opened:
      for example in chosen:
        image = opened.read(example.member)
        if reason := tfds_features.find_fault(image):
          self.left_out.add(example.id, reason)
          continue
        yield (
          example.id,
          tfds_features.example(
            self.info.features,
            image=image,
            id=example.id,
            patient="",
            view="PA",
            label=example.label,
            severity=example.severity,
          ),
        )


def examples(opened: archive.Archive, left_out: tfds_features.LeftOut) -> list[Example]:
  """All images of the archive, sorted by id.

  Raises:
    UserError: it is another archive or only a part of this one, or its grades make no sense.
  """
  left_out.add_all(opened.refused)
  members: dict[str, tuple[str, str]] = {}
  for (folder, name, _), member in sorted(tfds_features.match_files(opened.names, _MEMBER).items()):
    if len(name) != 32 or not _HEX.issuperset(name):
      left_out.add(member, "its name is not of this data set (32 hexadecimal digits)")
    elif name in members:
      raise UserError(f"{opened.path}: {name} is there twice, as {members[name][1]} and {member}")
    else:
      members[name] = (LABELS[folder.upper()], member)
  for folder, label in LABELS.items():
    if not any(kind == label for kind, _ in members.values()):
      raise UserError(
        f"{opened.path} has no images in a folder {folder} ({label}): not this data set's archive, "
        f"or only a part of it; get it from {WHERE}"
      )
  if len(members) != PUBLISHED:
    left_out.note(f"{len(members)} images, where {PUBLISHED} are published")
  grades = severities(opened, left_out)
  for name, (_, place) in grades.items():
    if name not in members:
      left_out.add(name, "severity.csv lists it, but there is no image")
    elif members[name][0] == "negative":
      raise UserError(f"{place} gives a severity to {name}, which lies in N (negative)")
  return [
    Example(
      member,
      name,
      label,
      "negative" if label == "negative" else grades.get(name, ("unknown", ""))[0],
    )
    for name, (label, member) in sorted(members.items())
  ]


def severities(
  opened: archive.Archive, left_out: tfds_features.LeftOut
) -> dict[str, tuple[str, str]]:
  """Grade of each listed image, and where it stands.

  Raises:
    UserError: a column is missing, a grade is unknown, or an image has two different ones.
  """
  tables = tfds_features.match_files(opened.names, r"severity\.csv")
  if not tables:
    left_out.note("there is no severity.csv: the severity of positive images is unknown")
  found: dict[str, tuple[str, str]] = {}
  for table in tables.values():
    for place, row in archive.rows(opened, table, ("Name", "Severity")):
      name, grade = row["Name"].strip(), row["Severity"].strip()
      name = name.removesuffix(".jpg")
      if grade.upper() not in GRADES:
        raise UserError(f"{place} has the severity {grade!r}{suggest(grade, GRADES)}")
      grade = GRADES[grade.upper()]
      if name in found and found[name][0] != grade:
        raise UserError(f"{place} calls {name} {grade}, and {found[name][1]} {found[name][0]}")
      found.setdefault(name, (grade, place))
  return found


def assign(found: list[Example]) -> dict[str, list[Example]]:
  """The images of each fold."""
  labels = np.array([[float(e.severity == s) for s in SEVERITIES] for e in found], np.float32)
  rows = patient_splits.split_by_patient(
    [e.id for e in found], dict.fromkeys(FOLDS, 1 / len(FOLDS)), seed=0, labels=labels
  )
  return {name: [found[i] for i in chosen] for name, chosen in rows.items()}

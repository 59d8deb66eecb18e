"""Paediatric chest radiographs with bacterial and viral pneumonia (Kermany et al. 2018)."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from cxrjax.builders import base_builder, tfds_features
from cxrjax.core.errors import UserError
from cxrjax.data.sources import archive
from cxrjax.data.splits import patient_splits

SUBTYPES = ("normal", "bacterial", "viral")
WHERE = (
  "https://data.mendeley.com/datasets/rscbjbr9sj (ChestXRay2017.zip) or "
  "https://www.kaggle.com/datasets/paultimothymooney/chest-xray-pneumonia"
)
CANDIDATES = (
  "chest_xray.zip",
  "chest-xray-pneumonia.zip",
  "ChestXRay2017.zip",
  "ZhangLabData.zip",
  "archive.zip",
  "chest_xray",
  "chest-xray-pneumonia",
  "ChestXRay2017",
  "CellData",
)

_MEMBER = r"(train|val|test)/(NORMAL|PNEUMONIA)/([^/]+\.jpe?g)"
_KAGGLE_NORMAL = re.compile(r"^((?:NORMAL2-)?IM-\d+)-\d+(?:-\d+)*\.")
_KAGGLE_PNEUMONIA = re.compile(r"^(person\d+)_(bacteria|virus)_\d+(?:_\d+)*\.")
_MENDELEY = re.compile(r"^((NORMAL|BACTERIA|VIRUS)-\d+)-\d+\.")
_KINDS = {"NORMAL": "normal", "BACTERIA": "bacterial", "VIRUS": "viral"}


@dataclasses.dataclass(frozen=True)
class Example:
  """One published image: where it lies and what its name says."""

  member: str
  split: str
  file: str
  label: str
  subtype: str
  patient: str

  @property
  def id(self) -> str:
    return f"{self.split}/{self.file}"


class Builder(base_builder.SetBuilder):
  """Builds the data set from the published archive in the manual folder."""

  VERSION = tfds.core.Version("1.1.0")
  RELEASE_NOTES: ClassVar = {
    "1.0.0": "First version.",
    "1.1.0": "The columns that all data sets here have; images that cannot be read are left out.",
  }
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Put the published archive, or the folder it unpacks to, into the manual folder: "
    f"{', '.join(CANDIDATES)}. It is at {WHERE}."
  )

  def _info(self) -> tfds.core.DatasetInfo:
    self.left_out = tfds_features.LeftOut()
    return self.dataset_info_from_configs(
      features=tfds_features.features(
        label=("normal", "pneumonia"),
        encoding="jpeg",
        subtype=tfds.features.ClassLabel(names=SUBTYPES),
        official_split=tfds.features.ClassLabel(names=("train", "val", "test")),
      ),
      supervised_keys=("image", "label"),
      homepage="https://data.mendeley.com/datasets/rscbjbr9sj",
      metadata=self.left_out.metadata,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
    path = archive.find(dl_manager.manual_dir, CANDIDATES, WHERE)
    with archive.Archive(path) as opened:
      found = examples(opened, self.left_out)
    return {
      name: tfds_features.at_least_one(self._generate_examples(path, chosen), name, self.left_out)
      for name, chosen in assign(found).items()
      if chosen
    }

  def _generate_examples(self, path, chosen: list[Example]) -> Iterator[tuple[str, dict]]:
    with archive.Archive(path) as opened:
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
            patient=example.patient,
            view="AP",
            label=example.label,
            subtype=example.subtype,
            official_split=example.split,
          ),
        )


def examples(opened: archive.Archive, left_out: tfds_features.LeftOut) -> list[Example]:
  """All images of the archive, sorted by id, copies of the whole tree left out.

  Raises:
    UserError: it is another archive, or holds only a part of this one.
  """
  left_out.add_all(opened.refused)
  # Kaggle's archive has the tree twice, the copy one folder deeper.
  members = tfds_features.match_files(opened.names, _MEMBER)
  parsed = {
    member: _parse(split.lower(), folder.upper(), file, member)
    for (split, folder, file), member in members.items()
  }
  for member, example in sorted(parsed.items()):
    if example is None:
      left_out.add(member, "its name is of neither publication, so its patient is not known")
  found = [example for example in parsed.values() if example is not None]
  have = collections.Counter((e.split, e.label) for e in found)
  for split in ("train", "test"):
    for folder in ("NORMAL", "PNEUMONIA"):
      if not have[split, folder.lower()]:
        raise UserError(
          f"{opened.path} has no images in {split}/{folder}: not this data set's archive, or only "
          f"a part of it; get it from {WHERE}"
        )
  return sorted(found, key=lambda e: e.id)


def _parse(split: str, folder: str, file: str, member: str) -> Example | None:
  label = "normal" if folder == "NORMAL" else "pneumonia"
  if match := _MENDELEY.match(file):
    subtype, patient = _KINDS[match[2]], match[1]
  elif folder == "NORMAL" and (match := _KAGGLE_NORMAL.match(file)):
    subtype, patient = "normal", match[1]
  elif folder == "PNEUMONIA" and (match := _KAGGLE_PNEUMONIA.match(file)):
    subtype = "bacterial" if match[2] == "bacteria" else "viral"
    # Person numbers start again in the test folder: equal numbers there are other children. Those
    # of val were taken out of train and keep their numbers.
    patient = f"{'test' if split == 'test' else 'train'}-{match[1]}"
  else:
    return None
  if (subtype == "normal") != (label == "normal"):
    raise UserError(f"{member} lies in {folder}, but its name says {subtype}")
  return Example(member, split, file, label, subtype, patient)


def assign(found: list[Example]) -> dict[str, list[Example]]:
  """The images of each split: the official ones, and a tenth of train as `validation`."""
  train = [example for example in found if example.split == "train"]
  labels = np.array([[float(e.subtype == s) for s in SUBTYPES] for e in train], np.float32)
  rows = patient_splits.split_by_patient(
    [e.patient for e in train], {"train": 0.9, "validation": 0.1}, seed=0, labels=labels
  )
  return {name: [train[i] for i in chosen] for name, chosen in rows.items()} | {
    "official_val": [example for example in found if example.split == "val"],
    "test": [example for example in found if example.split == "test"],
  }

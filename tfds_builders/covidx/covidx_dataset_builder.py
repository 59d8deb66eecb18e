"""COVIDx CXR-3 and CXR-4: COVID-19 in radiographs pooled from many sources."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import ClassVar

import tensorflow_datasets as tfds

from cxrjax.builders import csv_builder, release_layout, tfds_features
from cxrjax.core.errors import UserError, suggest
from cxrjax.data.sources import archive

LABELS = ("negative", "positive")
DIAGNOSES = ("normal", "pneumonia", "COVID-19")
# What the third field of a line may be: the label, and the diagnosis where it tells.
CLASSES = {
  "negative": (0, -1),
  "positive": (1, 2),
  "normal": (0, 0),
  "pneumonia": (0, 1),
  "COVID-19": (1, 2),
}
SOURCES = {"rnsa": "rsna"}  # misspelt in the published lists
WHERE = "https://www.kaggle.com/datasets/andyczhao/covidx-cxr2"
CANDIDATES = ("covidx*", "COVIDx*", "archive.zip")

_LINE = re.compile(r"(\S+) (.*\S) (\S+) (\S+)")
_FOLDERS = {"train": ("train",), "validation": ("val",), "test": ("test", "competition_test")}
_PATTERN = r"(?:^|/)(train|val|test|competition_test)/([^/]+\.(?i:png|jpe?g))$"
_SHOWN = 3


@dataclasses.dataclass
class Config(tfds.core.BuilderConfig):
  """One of the releases.

  Attributes:
    lists: names of each split's list, the first that is there counts.
    refined: names of each split's list that tells normal from pneumonia.
  """

  lists: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  refined: dict[str, str] = dataclasses.field(default_factory=dict)


class Builder(csv_builder.PublishedBuilder):
  """Builds one of the releases from its archive in the manual folder."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
  BUILDER_CONFIGS: ClassVar = [
    Config(
      name="cxr4",
      description="CXR-4: 84,818 images, with a validation split (Wu et al. 2023).",
      lists={"train": ("train.txt",), "validation": ("val.txt",), "test": ("test.txt",)},
    ),
    Config(
      name="cxr3",
      description="CXR-3: 30,882 images (Pavlova et al. 2022).",
      lists={s: (f"{s}.txt", f"{s}_COVIDx9B.txt") for s in ("train", "test")},
      refined={s: f"{s}_COVIDx9A.txt" for s in ("train", "test")},
    ),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Put the archive with train.txt, test.txt, train and test (and, of CXR-4, val.txt and val), or "
    f"what it unpacks to, into the manual folder. It is at {WHERE}: CXR-3 is its version 5, CXR-4 "
    "its version 9."
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return self.described(
      tfds_features.features(
        label=LABELS,
        diagnosis=tfds.features.ClassLabel(
          names=DIAGNOSES, doc="-1 where the lists do not tell normal from pneumonia."
        ),
      ),
      WHERE,
    )

  def listing(self, manual: pathlib.Path) -> tuple[csv_builder.Listing, list[csv_builder.Part]]:
    config = self.builder_config
    path = archive.find(manual, CANDIDATES, WHERE, ("train.txt", "train_COVIDx9B.txt"))
    found = csv_builder.Listing((), _PATTERN)
    with release_layout.open_release(path) as release:
      names = release.names
      lists = {split: _list(names, files) for split, files in config.lists.items()}
      _check(path, config, lists, _list(names, ("val.txt",)))
      parts = release_layout.parts(path, names, _PATTERN)
      folders = {match[1] for name in names if (match := re.search(_PATTERN, name))}
      for split, table in lists.items():
        folder = next((f for f in _FOLDERS[split] if f in folders), _FOLDERS[split][0])
        better = _list(names, (config.refined.get(split, ""),))
        refined = _refined(release, better) if better else {}
        for place, patient, file, (label, diagnosis), source in _lines(release, table):
          if label == 0:
            diagnosis = refined.get(file, diagnosis)
          found.add(
            f"{folder}/{file}",
            csv_builder.ImageRow(
              patient=patient,
              split=split,
              labels=(),
              more={"label": label, "diagnosis": diagnosis, "site": source},
            ),
            place,
          )
    for note in crossing(found):
      self.left_out.note(note)
    return found, parts


def _list(names: tuple[str, ...], files: tuple[str, ...]) -> str:
  """The first of these lists that is there, nearest to the top; empty where none is."""
  for file in files:
    found = tfds_features.match_files(names, f"({re.escape(file)})") if file else {}
    if found:
      return min(found.values())
  return ""


def _check(path: pathlib.Path, config: Config, lists: dict[str, str], validation: str) -> None:
  if config.name == "cxr3" and validation:
    raise UserError(f"{path} has {validation}, so it is CXR-4: prepare tfds:covidx/cxr4")
  lacking = [split for split, table in lists.items() if not table]
  if lacking == ["validation"]:
    raise UserError(
      f"{path} has no val.txt, so it is CXR-3 or older: prepare tfds:covidx/cxr3, or "
      f"get version 9 from {WHERE}"
    )
  if lacking:
    raise UserError(
      f"{path} has no {config.lists[lacking[0]][0]}: only a part of the data set; "
      f"get it from {WHERE}"
    )


def _lines(
  release: archive.Archive, table: str
) -> Iterator[tuple[str, str, str, tuple[int, int], str]]:
  """Place, patient, file, classes and source of each line of a list."""
  where = f"{release.path}: {table}"
  for number, line in enumerate(release.read(table).decode("utf-8-sig", "replace").splitlines(), 1):
    if not line.strip():
      continue
    place = f"{where} line {number}"
    match = _LINE.fullmatch(line.strip())
    if not match:
      raise UserError(f"{place} is {line[:60]!r}, not a patient, a file, a class and a source")
    patient, file, name, source = match.groups()
    if name not in CLASSES:
      raise UserError(f"{place}: {name[:30]!r} is not a class of this set{suggest(name, CLASSES)}")
    if "/" in file or "\\" in file:
      raise UserError(f"{place}: {file[:60]!r} is not a file name")
    yield place, patient, file, CLASSES[name], SOURCES.get(source, source)


def _refined(release: archive.Archive, table: str) -> dict[str, int]:
  """Whether the negative images of a list are normal or pneumonia."""
  return {
    file: diagnosis for _, _, file, (label, diagnosis), _ in _lines(release, table) if label == 0
  }


def crossing(found: csv_builder.Listing) -> list[str]:
  """A sentence for each two splits that share patients."""
  patients = collections.defaultdict(set)
  for row in found.rows.values():
    patients[row.split].add(row.patient)
  names, notes = list(patients), []
  for i, one in enumerate(names):
    for other in names[i + 1 :]:
      shared = sorted(patients[one] & patients[other])
      if shared:
        some = ", ".join(shared[:_SHOWN]) + (", ..." if len(shared) > _SHOWN else "")
        notes.append(f"{len(shared)} patient(s) are in {one} and in {other}, as published: {some}")
  return notes

"""Chest radiographs with and without tuberculosis: Shenzhen and Montgomery (Jaeger et al. 2014)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from cxrjax.builders import base_builder, tfds_features
from cxrjax.core.errors import UserError
from cxrjax.data.decoding import decode
from cxrjax.data.sources import archive
from cxrjax.data.splits import patient_splits

LABELS = ("normal", "tuberculosis")
FRACTIONS = {"train": 0.7, "validation": 0.1, "test": 0.2}
WHERE = "https://data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets/"

_BOTH = (
  "pulmonary-chest-xray-abnormalities*",
  "chest-xray-masks-and-labels*",
  "Lung Segmentation*",
  "archive.zip",
  "CXR_png",
  "ClinicalReadings",
  "mask",
  "masks",
)
_SEX = re.compile(r"\b(f|fem\w*|m|males?|mal)\b", re.IGNORECASE)
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*(y|mo|m\b|w|d)?", re.IGNORECASE)
_UNITS = {"y": 1.0, "m": 1 / 12, "w": 7 / 365.25, "d": 1 / 365.25}  # years
_OLDEST = 120


@dataclasses.dataclass
class Config(tfds.core.BuilderConfig):
  """One of the two sets.

  Attributes:
    start: of its file names.
    images: how many are published.
    candidates: archives and folders in the manual folder.
  """

  start: str = ""
  images: int = 0
  candidates: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Example:
  """One published image, and what else is known of its patient."""

  id: str
  member: str
  masks: tuple[str, ...]
  age: float | None
  sex: str
  reading: str

  @property
  def label(self) -> str:
    return LABELS[int(self.id[-1])]


class Builder(base_builder.SetBuilder):
  """Builds one of the sets from the published archives in the manual folder."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
  BUILDER_CONFIGS: ClassVar = [
    Config(
      name="shenzhen",
      description="662 images from Shenzhen, China; 566 with a lung mask.",
      start="CHNCXR",
      images=662,
      candidates=("ChinaSet_AllFiles.zip", "ChinaSet*", "Shenzhen*", "shcxr-lung-mask*", *_BOTH),
    ),
    Config(
      name="montgomery",
      description="138 images from Montgomery County, USA; all with lung masks.",
      start="MCUCXR",
      images=138,
      candidates=(
        "NLM-MontgomeryCXRSet.zip",
        "NLM-Montgomery*",
        "Montgomery*",
        "ManualMask",
        *_BOTH,
      ),
    ),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Put ChinaSet_AllFiles.zip (and shcxr-lung-mask.zip, the lung masks) or "
    "NLM-MontgomeryCXRSet.zip, or the folders they unpack to, into the manual folder. They are at "
    f"{WHERE}."
  )

  def _info(self) -> tfds.core.DatasetInfo:
    self.left_out = tfds_features.LeftOut()
    return self.dataset_info_from_configs(
      features=tfds_features.features(
        label=LABELS,
        encoding="png",
        mask=True,
        reading=tfds.features.Text(doc="Findings of the clinical reading; may be empty."),
      ),
      supervised_keys=("image", "label"),
      homepage=WHERE,
      metadata=self.left_out.metadata,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
    with self._open(dl_manager.manual_dir) as opened:
      found = examples(opened, self.builder_config, self.left_out)
    return {
      name: tfds_features.at_least_one(
        self._generate_examples(dl_manager.manual_dir, chosen), name, self.left_out
      )
      for name, chosen in assign(found).items()
    }

  def _open(self, folder) -> archive.Archive:
    return archive.gather(folder, self.builder_config.candidates, WHERE)

  def _generate_examples(self, folder, chosen: list[Example]) -> Iterator[tuple[str, dict]]:
    with self._open(folder) as opened:
      for example in chosen:
        image = opened.read(example.member)
        try:
          size = decode.decode(image).shape[:2]
        except decode.BadImage as error:
          self.left_out.add(example.id, str(error))
          continue
        mask = None
        try:
          if example.masks:
            mask = tfds_features.mask(*map(opened.read, example.masks), like=size)
        except decode.BadImage as error:
          self.left_out.note(f"{example.id} counts as having no mask: {error}")
        yield (
          example.id,
          tfds_features.example(
            self.info.features,
            image=image,
            id=example.id,
            patient=example.id[:-2],
            age=example.age,
            sex=example.sex,
            view="PA",
            mask=mask,
            label=example.label,
            site=self.builder_config.name,
            reading=example.reading,
          ),
        )


def examples(
  opened: archive.Archive, config: Config, left_out: tfds_features.LeftOut
) -> list[Example]:
  """All images of a set, sorted by id.

  Raises:
    UserError: they are other archives, or hold only a part of the set.
  """
  left_out.add_all(opened.refused)
  name = rf"({config.start}_\d{{4}}_[01])"
  images = {
    key: member
    for (key,), member in tfds_features.match_files(opened.names, rf"CXR_png/{name}\.png").items()
  }
  for label, digit in zip(LABELS, "01", strict=True):
    if not any(key.endswith(digit) for key in images):
      raise UserError(
        f"{opened.path} has no image CXR_png/{config.start}_*_{digit}.png ({label}): not the "
        f"{config.name} set, or only a part of it; get it from {WHERE}"
      )
  numbers: dict[str, str] = {}
  for key in images:
    if numbers.setdefault(key[:-2], key) != key:
      raise UserError(f"{opened.path} calls one patient normal and ill: {numbers[key[:-2]]}, {key}")
  for (key,), member in tfds_features.match_files(opened.names, r"CXR_png/([^/]+\.\w+)").items():
    if not re.fullmatch(r"(CHNCXR|MCUCXR)_\d{4}_[01]\.png", key, re.IGNORECASE):
      left_out.add(member, "its name is not of this data set")
  readings = {
    key: member
    for (key,), member in tfds_features.match_files(
      opened.names, rf"ClinicalReadings/{name}\.txt"
    ).items()
  }
  for key in sorted(set(readings) - set(images)):
    left_out.add(key, "it has a clinical reading, but there is no image")
  masks = _masks(opened, name, left_out)
  found = []
  for key, member in sorted(images.items()):
    age, sex, text = parse(_text(opened.read(readings[key]))) if key in readings else (None, "", "")
    found.append(Example(key, member, masks.get(key, ()), age, sex, text))
  _tell(found, config, left_out)
  return found


def _masks(
  opened: archive.Archive, name: str, left_out: tfds_features.LeftOut
) -> dict[str, tuple[str, ...]]:
  """The mask files of each image that has them."""
  whole = tfds_features.match_files(opened.names, rf"{name}_mask\.png")
  whole |= tfds_features.match_files(opened.names, rf"masks/{name}\.png")
  sides = tfds_features.match_files(opened.names, rf"(left|right)Mask/{name}\.png")
  found = {key: (member,) for (key,), member in whole.items()}
  lungs: dict[str, list[str]] = {}
  for (_, key), member in sorted(sides.items()):
    lungs.setdefault(key, []).append(member)
  for key, members in lungs.items():
    if len(members) == 2:
      found[key] = tuple(members)
    else:
      left_out.note(f"{key} counts as having no mask: it has one of one lung only")
  return found


def _tell(found: list[Example], config: Config, left_out: tfds_features.LeftOut) -> None:
  """Notes for readers of reports."""
  unknown = {
    "age": sum(e.age is None for e in found),
    "sex": sum(not e.sex for e in found),
    "lung mask": sum(not e.masks for e in found),
  }
  if len(found) != config.images:
    left_out.note(f"{len(found)} images, where {config.images} are published")
  for what, n in unknown.items():
    if n:
      left_out.note(f"{n} of {len(found)} images have no {what}")


def _text(data: bytes) -> str:
  try:
    return data.decode("utf-8-sig")
  except UnicodeDecodeError:
    return data.decode("latin-1")


def parse(text: str) -> tuple[float | None, str, str]:
  """Age in years, sex and findings from a clinical reading.

  Shenzhen's begin `male 45yrs`; Montgomery's have lines `Patient's Sex: F`, `Patient's Age: 027Y`.
  What is not understood is unknown.
  """
  lines = [line.strip() for line in text.replace("\0", "").splitlines() if line.strip()]
  head = [line for line in lines if line.lower().startswith("patient")] or lines[:1]
  about = " ".join(line.split(":", 1)[-1] for line in head)
  sex, age = _SEX.search(about), _AGE.search(about)
  if sex is None and not (age and age[2]):
    return None, "", " ".join(lines)  # what comes first is a finding already
  years = float(age[1]) * _UNITS[(age[2] or "y")[0].lower()] if age else None
  return (
    years if years is not None and years <= _OLDEST else None,
    sex[1][0].upper() if sex else "",
    " ".join(line for line in lines if line not in head),
  )


def assign(found: list[Example]) -> dict[str, list[Example]]:
  """The images of each split, of which none is official."""
  labels = np.array([[float(e.label == name) for name in LABELS] for e in found], np.float32)
  rows = patient_splits.split_by_patient(
    [e.id[:-2] for e in found], FRACTIONS, seed=0, labels=labels
  )
  return {name: [found[i] for i in chosen] for name, chosen in rows.items()}

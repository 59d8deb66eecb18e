"""Chest films with and without a lung nodule (JSRT), and SCR masks of lungs, heart, clavicles."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt16

from cxrjax.builders import base_builder, tfds_features
from cxrjax.core.errors import UserError, suggest
from cxrjax.data.decoding import decode, dicom
from cxrjax.data.sources import archive

LABELS = {"JPCNN": "non-nodule", "JPCLN": "nodule"}
MALIGNANCIES = ("non-nodule", "benign", "malignant", "unknown")
STRUCTURES = ("left lung", "right lung", "heart", "left clavicle", "right clavicle")
NUMBERS = ("age", "subtlety", "nodule_size", "nodule_x", "nodule_y")
WHITE = 4095  # of 12 bits
PUBLISHED = 247
WHERE = "http://db.jsrt.or.jp/eng.php (masks: https://www.isi.uu.nl/Research/Databases/SCR/)"
CANDIDATES = (
  "All247images*",
  "JSRT*",
  "Nodule154images*",
  "NonNodule93images*",
  "JPC*.IMG",
  "JPC*.dcm",
  "Clinical*",
  "CLNDAT*",
  "CNNDAT*",
  "scratch*",
  "scr",
  "scr.zip",
  "SCR_*",
  "fold1",
  "fold2",
)

_IMAGE = r"(JPC[LN]N\d{3})\.(IMG|dcm)"


@dataclasses.dataclass(frozen=True)
class Patient:
  """What the clinical tables say of one image.

  Attributes:
    place: file and line, for errors.
    sex: `F` or `M`.
    malignancy: one of MALIGNANCIES.
    diagnosis: place and diagnosis of the nodule, as published.
    numbers: of NUMBERS, those that are known.
  """

  place: str = ""
  sex: str = ""
  malignancy: str = "unknown"
  diagnosis: str = ""
  numbers: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Example:
  """One published image: its file, its masks' files by structure, and what the tables say."""

  id: str
  member: str
  masks: dict[str, str]
  patient: Patient

  @property
  def label(self) -> str:
    return LABELS[self.id[:5]]

  @property
  def fold(self) -> str:
    return "fold1" if int(self.id[5:]) % 2 else "fold2"


class Builder(base_builder.SetBuilder):
  """Builds the data set from the published archives in the manual folder."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Put the images (All247images, or an archive JSRT*), CLNDAT_EN.txt, CNNDAT_EN.TXT and SCR's "
    f"masks (scratch.zip) into the manual folder. They are at {WHERE}."
  )

  def _info(self) -> tfds.core.DatasetInfo:
    self.left_out = tfds_features.LeftOut()
    masks = {
      _column(name): tfds.features.Image(
        shape=(None, None, 1),
        encoding_format="png",
        doc=f"The {name} above 0; one black pixel where there is no mask.",
      )
      for name in STRUCTURES
    }
    return self.dataset_info_from_configs(
      features=tfds_features.features(
        label=tuple(LABELS.values()),
        encoding="png",
        bits=16,
        mask=True,
        window=True,
        malignancy=tfds.features.ClassLabel(names=MALIGNANCIES),
        diagnosis=tfds.features.Text(doc="Place and diagnosis of the nodule, as published."),
        **{
          name: tfds.features.Scalar(np.float32, doc="NaN where there is none or it is unknown.")
          for name in NUMBERS[1:]
        },
        **masks,
      ),
      supervised_keys=("image", "label"),
      homepage="http://db.jsrt.or.jp/eng.php",
      metadata=self.left_out.metadata,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
    with archive.gather(dl_manager.manual_dir, CANDIDATES, WHERE) as opened:
      found = examples(opened, self.left_out)
    folds = {name: [e for e in found if e.fold == name] for name in ("fold1", "fold2")}
    return {
      name: tfds_features.at_least_one(
        self._generate_examples(dl_manager.manual_dir, chosen), name, self.left_out
      )
      for name, chosen in folds.items()
    }

  def _generate_examples(self, folder, chosen: list[Example]) -> Iterator[tuple[str, dict]]:
    with archive.gather(folder, CANDIDATES, WHERE) as opened:
      for example in chosen:
        try:
          pixels, window = film(opened.read(example.member))
        except decode.BadImage as error:
          self.left_out.add(example.id, str(error))
          continue
        masks, lungs = self._masks(opened, example, pixels.shape[:2])
        known = example.patient
        numbers = {name: np.float32(known.numbers.get(name, np.nan)) for name in NUMBERS}
        yield (
          example.id,
          tfds_features.example(
            self.info.features,
            image=tfds_features.png(pixels),
            id=example.id,
            patient=example.id,
            age=float(numbers.pop("age")),
            sex=known.sex,
            view="PA",
            window=window,
            mask=lungs,
            label=example.label,
            malignancy=known.malignancy,
            diagnosis=known.diagnosis,
            **numbers,
            **masks,
          ),
        )

  def _masks(
    self, opened: archive.Archive, example: Example, size: tuple[int, int]
  ) -> tuple[dict[str, bytes], bytes | None]:
    """Each structure's mask, and that of both lungs, in the size of the image."""
    published, found = {}, {}
    for name in STRUCTURES:
      column = _column(name)
      found[column] = tfds_features.no_mask()
      if name in example.masks:
        data = opened.read(example.masks[name])
        try:
          found[column] = tfds_features.mask(data, like=size)
          published[name] = data
        except decode.BadImage as error:
          self.left_out.note(f"{example.id} counts as having no mask of the {name}: {error}")
    both = [published[name] for name in STRUCTURES[:2] if name in published]
    return found, tfds_features.mask(*both, like=size) if len(both) == 2 else None


def _column(structure: str) -> str:
  return f"{structure.replace(' ', '_')}_mask"


def film(data: bytes) -> tuple[UInt16[np.ndarray, "s s 1"], tuple[float, float]]:
  """Pixels of a published image, bone bright, and the gray levels shown black and white.

  Raises:
    BadImage: it is no square of 12-bit big-endian pixels, nor DICOM.
  """
  if dicom.is_dicom(data):
    read = dicom.read(data)
    return read.pixels.astype(np.uint16), read.window or (0.0, float(2**read.bits - 1))
  side = math.isqrt(len(data) // 2)
  if 2 * side * side != len(data):
    raise decode.BadImage(
      f"it has {len(data):,} bytes, not those of a square of 16-bit pixels: is it cut short?"
    )
  decode.check_shape(side, side)
  levels = np.frombuffer(data, ">u2").reshape(side, side, 1)
  if levels.max() > WHITE:
    raise decode.BadImage(f"it has values up to {levels.max()}, not 12 bits in big-endian order")
  return (WHITE - levels).astype(np.uint16), (0.0, float(WHITE))


def examples(opened: archive.Archive, left_out: tfds_features.LeftOut) -> list[Example]:
  """All images, sorted by id.

  Raises:
    UserError: they are other archives, or hold only a part of the set, or its tables make no sense.
  """
  left_out.add_all(opened.refused)
  images: dict[str, str] = {}
  for (name, kind), member in sorted(tfds_features.match_files(opened.names, _IMAGE).items()):
    if kind.lower() == "img" or name.upper() not in images:  # the raw file is the original
      images[name.upper()] = member
  for start, label in LABELS.items():
    if not any(name.startswith(start) for name in images):
      raise UserError(
        f"{opened.path} has no {start}*.IMG ({label}): not this data set, or only a "
        f"part of it; get it from {WHERE}"
      )
  for member in tfds_features.match_files(opened.names, r"([^/]+)\.IMG").values():
    if member not in images.values() and not re.search(_IMAGE + "$", member, re.IGNORECASE):
      left_out.add(member, "its name is not of this data set")
  if len(images) != PUBLISHED:
    left_out.note(f"{len(images)} images, where {PUBLISHED} are published")
  patients = clinical(opened)
  for name in sorted(set(patients) - set(images)):
    left_out.add(name, "a clinical table lists it, but there is no image")
  unknown = len(set(images) - set(patients))
  if unknown:
    left_out.note(f"{unknown} images are in no clinical table: age, sex and nodule are unknown")
  masks: dict[str, dict[str, str]] = {}
  pattern = rf"masks/({'|'.join(STRUCTURES)})/(JPC[LN]N\d{{3}})\.(?:gif|png|bmp|tiff?)"
  for (structure, name), member in tfds_features.match_files(opened.names, pattern).items():
    masks.setdefault(name.upper(), {})[structure.lower()] = member
  lacking = sum(len(masks.get(name, ())) < len(STRUCTURES) for name in images)
  if lacking:
    left_out.note(f"{lacking} images lack masks of {', '.join(STRUCTURES)}, or some of them")
  return [
    Example(
      name,
      member,
      masks.get(name, {}),
      patients.get(
        name, Patient(malignancy="non-nodule" if name.startswith("JPCNN") else "unknown")
      ),
    )
    for name, member in sorted(images.items())
  ]


def clinical(opened: archive.Archive) -> dict[str, Patient]:
  """What CLNDAT_EN.txt and CNNDAT_EN.TXT say, by image; both end their lines with CR alone.

  Raises:
    UserError: a line has too few fields, an unknown value, or an image that another line has.
  """
  found: dict[str, Patient] = {}
  for (kind,), member in tfds_features.match_files(opened.names, r"(CLN|CNN)DAT_EN\.txt").items():
    text = opened.read(member).decode("latin-1")
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
      if not line.strip(" \t\0\x1a"):
        continue
      place = f"{opened.path}: {member} line {number}"
      name, patient = (_nodule if kind.upper() == "CLN" else _healthy)(line, place)
      if name in found:
        raise UserError(f"{place} lists {name} again, after {found[name].place}")
      found[name] = patient
  return found


def _nodule(line: str, place: str) -> tuple[str, Patient]:
  fields = [field.strip() for field in line.split("\t")]
  if len(fields) < 8:
    raise UserError(f"{place} has {len(fields)} fields between tabs; 8 are needed")
  malignancy = fields[7].lower()
  if malignancy not in MALIGNANCIES[1:3]:
    raise UserError(f"{place} has {fields[7]!r}{suggest(malignancy, MALIGNANCIES[1:3])}")
  numbers = {
    name: _number(fields[at], place)
    for name, at in zip(
      ("subtlety", "nodule_size", "age", "nodule_x", "nodule_y"), (1, 2, 3, 5, 6), strict=True
    )
  }
  if numbers["subtlety"] not in (1, 2, 3, 4, 5):
    raise UserError(f"{place} has the subtlety {fields[1]!r}; valid: 1, 2, 3, 4, 5")
  return _name(fields[0], place), Patient(
    place, _sex(fields[4]), malignancy, " ".join(" ".join(fields[8:]).split()), numbers
  )


def _healthy(line: str, place: str) -> tuple[str, Patient]:
  fields = line.split()
  if len(fields) < 4 or fields[3].lower() != "non-nodule":
    raise UserError(f"{place} is not name, age, sex and 'non-nodule'")
  return _name(fields[0], place), Patient(
    place, _sex(fields[2]), "non-nodule", "", {"age": _number(fields[1], place)}
  )


def _name(field: str, place: str) -> str:
  match = re.fullmatch(r"(JPC[LN]N\d{3})(\.IMG)?", field, re.IGNORECASE)
  if not match:
    raise UserError(f"{place} names {field!r}, which is not an image of this data set")
  return match[1].upper()


def _sex(field: str) -> str:
  return {"male": "M", "female": "F"}.get(field.lower(), "")


def _number(field: str, place: str) -> float:
  try:
    return float(field) if field and field != "?" else float("nan")
  except ValueError as error:
    raise UserError(f"{place} has {field!r} where a number should be") from error

"""CheXpert v1.0: 224,316 radiographs with uncertainty labels (Irvin et al. 2019)."""

from __future__ import annotations

import contextlib
import math
import pathlib
import re
from collections.abc import Sequence
from typing import ClassVar

import tensorflow_datasets as tfds

from cxrjax.builders import csv_builder, tfds_features
from cxrjax.core.errors import UserError, suggest
from cxrjax.data.sources import archive

LABELS = (
  "No Finding",
  "Enlarged Cardiomediastinum",
  "Cardiomegaly",
  "Lung Opacity",
  "Lung Lesion",
  "Edema",
  "Consolidation",
  "Pneumonia",
  "Atelectasis",
  "Pneumothorax",
  "Pleural Effusion",
  "Pleural Other",
  "Fracture",
  "Support Devices",
)
WHERE = "https://stanfordmlgroup.github.io/competitions/chexpert"
CANDIDATES = {
  "small": ("CheXpert-v1.0-small.zip", "CheXpert-v1.0-small", "chexpert-small*", "archive.zip"),
  "full": ("CheXpert-v1.0.zip", "CheXpert-v1.0", "chexpertchestxrays*"),
}
MARKERS = {"small": ("train.csv",), "full": ("train.csv", "CheXpert-v1.0 batch *")}
TABLES = {"train": "train.csv", "validation": "valid.csv"}
TEST_TABLES = ("test_labels.csv", "test.csv", "groundtruth.csv")
TESTS = ("test", "test.zip", "CheXpert", "CheXpert.zip", "chexlocalize*", "CheXlocalize*")
BATCHES = 4

# Patients' numbers go on from train to valid to test, so that a path's end is enough. The batches
# of the full release have it without `train/` in front.
_PATTERN = r"(?:^|/)(patient\d{5})/(study\d+)/(view\d+_(?:frontal|lateral)\.jpg)$"
_BATCH = re.compile(r"CheXpert-v1\.0 batch (\d)")
_SEXES = {"Female": "F", "Male": "M", "Unknown": ""}
_FRONTAL = {"AP": "AP", "PA": "PA", "LL": "", "RL": "", "": ""}
_OLDEST = 120


class Builder(csv_builder.PublishedBuilder):
  """Builds the data set from the published archives in the manual folder."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
  BUILDER_CONFIGS: ClassVar = [
    tfds.core.BuilderConfig(
      name="small", description="About 390 x 320 pixels (CheXpert-v1.0-small, 11 GB)."
    ),
    tfds.core.BuilderConfig(
      name="full", description="As taken (CheXpert-v1.0, 439 GB, in one archive or four batches)."
    ),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Put CheXpert-v1.0-small.zip (config `small`), or CheXpert-v1.0.zip or its four batches "
    "(config `full`), or what they unpack to, into the manual folder; and, for the test split, the "
    f"folder with test_labels.csv or groundtruth.csv. They are at {WHERE}, after registration."
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return self.described(
      tfds_features.features(
        labels=LABELS, encoding="jpeg", study=tfds.features.Text(doc="Patient and study.")
      ),
      WHERE,
    )

  def listing(self, manual: pathlib.Path) -> tuple[csv_builder.Listing, list[csv_builder.Part]]:
    config = self.builder_config.name
    root = archive.find(manual, CANDIDATES[config], WHERE, MARKERS[config])
    batches = _batches(root)
    images = batches or _folders(root)
    tests = _tests(manual, images)
    places = batches or [root]
    if batches and (root / TABLES["train"]).is_file():
      places.append(root)
    found, used = csv_builder.Listing(LABELS, _PATTERN), []
    with contextlib.ExitStack() as stack:
      opened = {place: stack.enter_context(archive.Archive(place)) for place in [*places, *tests]}
      for split in self.SPLITS:
        for place in [*places, *tests] if split == "test" else places:
          name = _table(opened[place].names, split)
          if name:
            _rows(opened[place], name, split, found, config)
            used.append(place)
            break
        else:
          if split != "test":
            raise UserError(
              f"{root} has no {TABLES[split]}: only a part of the data set; get it from {WHERE}"
            )
          self.left_out.note("CheXpert's test labels were not there: it has no test split")
    images += [place for place in tests if place in used]
    return found, [csv_builder.Part(str(place)) for place in images]


def _batches(root: pathlib.Path) -> list[pathlib.Path]:
  """The archives or folders of the full release in batches; none where it is in one piece.

  Raises:
    UserError: one is not there.
  """
  found: dict[int, list[pathlib.Path]] = {}
  for path in sorted(root.glob("CheXpert-v1.0 batch *")) if root.is_dir() else []:
    match = _BATCH.match(path.name)
    if match and (path.is_dir() or archive.is_archive(path)):
      found.setdefault(int(match[1]), []).append(path)
  lacking = [i for i in range(1, BATCHES + 1) if i not in found]
  if found and lacking:
    raise UserError(
      f"{root} has no 'CheXpert-v1.0 batch {lacking[0]} (...).zip', of {BATCHES}; "
      f"get it from {WHERE}"
    )
  # Where an archive and what it unpacks to are both there, the archive is what was published.
  return [min(paths, key=pathlib.Path.is_dir) for _, paths in sorted(found.items())]


def _tests(manual: pathlib.Path, images: Sequence[pathlib.Path]) -> list[pathlib.Path]:
  """Places beside the rest where the test set may lie, which was published later."""
  found = [path for pattern in TESTS for path in sorted(manual.glob(pattern))]
  return [
    path
    for path in dict.fromkeys(found)
    if not {path, *path.parents} & set(images) and (path.is_dir() or archive.is_archive(path))
  ]


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
  """The folders of an unpacked archive (`train`, `valid` perhaps `test`), or what it is else."""
  if not (root / "train").is_dir():
    return [root]
  return sorted(path for path in root.iterdir() if path.is_dir())


def _table(names: tuple[str, ...], split: str) -> str:
  """The table of a split, the one nearest to the top."""
  files = TEST_TABLES if split == "test" else (TABLES[split],)
  found = [name for name in names if name.rsplit("/", 1)[-1] in files]
  return min(found, key=lambda name: (name.count("/"), name), default="")


def _rows(
  opened: archive.Archive, table: str, split: str, found: csv_builder.Listing, config: str
) -> None:
  """Adds the images of one table."""
  described = () if split == "test" else ("Sex", "Age", "Frontal/Lateral", "AP/PA")
  for place, row in archive.rows(opened, table, ("Path", *described, *LABELS)):
    path = row["Path"]
    match = re.search(_PATTERN, path)
    if not match:
      raise UserError(
        f"{place}: Path is {path[:80]!r}, not an image such as "
        "train/patient00001/study1/view1_frontal.jpg"
      )
    other = _release(path)
    if split == "train" and other not in ("", config):
      raise UserError(
        f"{place} is of the {other} release: prepare tfds:chexpert/{other}, or put "
        f"the {config} one there"
      )
    patient, study, file = match.groups()
    found.add(
      f"{patient}/{study}/{file}",
      csv_builder.ImageRow(
        patient=patient,
        split=split,
        labels=tuple(csv_builder.parse_finding(row[name], name, place) for name in LABELS),
        age=_age(row["Age"], place) if described else math.nan,
        sex=_known(row["Sex"], _SEXES, "Sex", place) if described else "",
        view=_view(row, file, place) if described else "L" if "lateral" in file else "",
        more={"study": f"{patient}/{study}"},
      ),
      place,
    )


def _release(path: str) -> str:
  root = path.split("/")[0]
  return {"CheXpert-v1.0-small": "small", "CheXpert-v1.0": "full"}.get(root, "")


def _age(text: str, place: str) -> float:
  try:
    years = tfds_features.number(text)
  except ValueError as error:
    raise UserError(f"{place}: Age is {text[:20]!r}, not a number") from error
  return years if 0 <= years <= _OLDEST else math.nan


def _view(row: dict[str, str], file: str, place: str) -> str:
  side = _known(
    row["Frontal/Lateral"], {"Frontal": "frontal", "Lateral": "lateral"}, "Frontal/Lateral", place
  )
  if side not in file:
    raise UserError(f"{place}: Frontal/Lateral is {row['Frontal/Lateral']}, Path {file}")
  return "L" if side == "lateral" else _known(row["AP/PA"], _FRONTAL, "AP/PA", place)


def _known(text: str, meanings: dict[str, str], column: str, place: str) -> str:
  if text not in meanings:
    raise UserError(f"{place}: {column} is {text[:20]!r}{suggest(text, meanings)}")
  return meanings[text]

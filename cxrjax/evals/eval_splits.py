"""Labelled train, val and test images for evaluation, with no patient in two of them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from cxrjax.core.errors import UserError
from cxrjax.data import open_source
from cxrjax.data.base import Source
from cxrjax.data.loading.decoded_cache import Images, load_images
from cxrjax.data.splits import leakage
from cxrjax.data.splits.partial_labels import labelled
from cxrjax.data.splits.patient_splits import patient_keys, split_by_patient
from cxrjax.evals import label_matching
from cxrjax.metrics import intervals

SPLITS = ("train", "val", "test")
SMALL_VAL = 50
NAMES = {"train": "training", "val": "validation", "test": "test"}
NO_SHARED_PATIENTS = "no patient is in two of train, val and test"
TRAIN_ONLY_OPTIONS = ("subset", "labelled")  # source options that apply to train only


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
  """Decoded images of an evaluator, divided into train, val and test.

  Attributes:
    images: decoded images by the split they come from.
    rows: for train, val and test, the key into `images` and the rows of that entry.
    shared: patients in more than one split.
    unlabelled: number of images left out of each split because their class is unknown.
    notes: how the splits came about.
  """

  images: Mapping[str, Images]
  rows: Mapping[str, tuple[str, Int[np.ndarray, "n"]]]
  shared: tuple[str, ...]
  unlabelled: Mapping[str, int]
  notes: tuple[str, ...]

  @property
  def classes(self) -> tuple[str, ...]:
    return self.images["train"].info.classes

  @property
  def exclusive(self) -> bool:
    return self.images["train"].info.exclusive

  def select(self, split: str) -> Images:
    """The images of a split; pixels are not copied."""
    key, rows = self.rows[split]
    return self.images[key].take(rows)

  def labels(self, split: str) -> Float32[np.ndarray, "n k"]:
    key, rows = self.rows[split]
    return self.images[key].labels[rows]

  def patients(self, split: str) -> list[str]:
    key, rows = self.rows[split]
    return [self.images[key].patients[i] for i in rows]

  def ids(self, split: str) -> list[str]:
    key, rows = self.rows[split]
    return [self.images[key].ids[i] for i in rows]


def load(
  data: Mapping[str, Any],
  size: int,
  *,
  val_fraction: float = 0.15,
  max_train: int | None = None,
  allow_shared_patients: bool = False,
  other: Mapping[str, Any] | None = None,
  whose: str = "the probe",
  **decoding: Any,
) -> Data:
  """Opens train, val and test, checks that they share no patient, and decodes them.

  Args:
    data: `name` and options of a source, as for `open_source`; `train`, `val` and `test` name its
      splits (by default those words). `val="carve"` takes validation from train by patient, which
      also happens where the source has no such split, or a very small one. `subset` and `labelled`
      reduce train only: a probe that learns from few labels is judged on all test images.
    size: side of the decoded images, pixels.
    val_fraction: share of train's patients carved for validation.
    max_train: approximate limit on training images (whole patients, drawn by a hash of the id).
    allow_shared_patients: count patients that are in two splits, instead of raising.
    other: `name`, `test` and options of another source, which provides the test split, mapped to
      the classes of `data` (see `label_matching.match`).
    whose: name of the evaluator in error messages.
    **decoding: options of `data.loading.decoded_cache.load_images`.

  Raises:
    UserError: no labels, one class only, patients in two splits, or a source that cannot be opened.
  """
  notes: list[str] = []
  sources = _open_sources(data, other, whose, notes)
  known = _known_rows(sources, notes)
  unlabelled = {split: len(s) - len(known[split]) for split, s in sources.by_split.items()}
  if "val" not in sources.by_split:
    known |= _carve_val(sources, known["train"], val_fraction, notes)
  available = len(known["train"])
  if max_train is not None and available > max_train:
    table = sources.train.table
    _, known["train"] = divide(table.patients, table.labels, known["train"], max_train / available)
    notes.append(
      f"training: {len(known['train'])} of {available} images, whole patients (max_train)"
    )
  images, rows = _decode(sources, known, size, decoding)
  result = Data(images, rows, (), unlabelled, tuple(notes))
  shared = _shared_patients(result)
  if shared and not allow_shared_patients:
    raise UserError(
      f"{sources.name}: {len(shared)} patients are in more than one of train, val and test, so "
      f"results would flatter; split by patient, or set {whose}'s allow_shared_patients=True"
    )
  _check_classes(result, sources)
  return dataclasses.replace(result, shared=shared)


@dataclasses.dataclass(frozen=True, eq=False)
class _Sources:
  """Opened sources of an evaluator.

  Attributes:
    by_split: train, test and, unless it is to be carved from train, val.
    published: what each of the three is called in its source.
    name: of the source of train, in messages.
    is_foreign: whether the test images are of another source.
    whose: name of the evaluator in error messages.
  """

  by_split: Mapping[str, Source]
  published: Mapping[str, Any]
  name: str
  is_foreign: bool
  whose: str

  @property
  def train(self) -> Source:
    return self.by_split["train"]


def _open_sources(
  data: Mapping[str, Any], other: Mapping[str, Any] | None, whose: str, notes: list[str]
) -> _Sources:
  """Opens the sources of all splits; raises a UserError unless their classes agree."""
  _require_name(data, whose)
  options = _source_options(data)
  published = {split: data.get(split, split) for split in SPLITS}
  train = open_source(data["name"], split=published["train"], **_source_options(data, True))
  if other is None:
    test = open_source(data["name"], split=published["test"], **options)
  else:
    published["test"] = other.get("test", "test")
    test = open_source(other["name"], split=published["test"], **_source_options(other))
  name = data["name"] if isinstance(data["name"], str) else train.info.name
  classes = train.info.classes
  if not classes:
    advice = train.info.advice or f"give {whose}'s data.name a labelled source"
    raise UserError(
      f"{name} has no labels to judge by; {advice}, or remove {whose} from config.evals"
    )
  if other is None and test.info.classes != classes:
    raise UserError(
      f"{name}: split {published['test']!r} has classes {list(test.info.classes)}, "
      f"split {published['train']!r} has {list(classes)}; they must be the same"
    )
  val = _open_val(data["name"], published["val"], options, train, notes)
  by_split = {"train": train, "test": test} | ({} if val is None else {"val": val})
  return _Sources(by_split, published, name, other is not None, whose)


def _open_val(
  name: str | Sequence[Any],
  published: Any,
  options: Mapping[str, Any],
  train: Source,
  notes: list[str],
) -> Source | None:
  """Opens the source's validation split; None where one has to be carved from train."""
  if published in (None, "carve") or (published == "val" and "val" not in train.info.splits):
    return None
  source = open_source(name, split=published, **options)
  if published == "val" and len(source) < SMALL_VAL:
    notes.append(f"the source's own val split has only {len(source)} images and is not used")
    return None
  return source


def _known_rows(sources: _Sources, notes: list[str]) -> dict[str, Int[np.ndarray, "n"]]:
  """Rows of every source whose class is known; raises a UserError for a source without any."""
  known = {}
  for split, source in sources.by_split.items():
    labels, name = source.table.labels, sources.name
    if sources.is_foreign and split == "test":
      name, key = source.info.name, f"{sources.whose}'s data"
      labels = label_matching.match(labels, source.info, sources.train.info, notes, key)
    known[split] = np.flatnonzero(labelled(labels, sources.train.info.exclusive))
    if not len(known[split]):
      raise UserError(
        f"{name} split {sources.published[split]!r} has no image with a known label; "
        f"give {sources.whose}'s data.{split} another split"
      )
  return known


def _carve_val(
  sources: _Sources, rows: Int[np.ndarray, "n"], fraction: float, notes: list[str]
) -> dict[str, Int[np.ndarray, "_"]]:
  """Divides the rows of train, by patient, into those of train and of val."""
  table = sources.train.table
  if len({table.patients[i] or f"image {i}" for i in rows}) < 2:
    raise UserError(
      f"{sources.name} split {sources.published['train']!r} has one patient, too few to carve a "
      f"validation split from; give {sources.whose}'s data.val a split of its own"
    )
  train, val = divide(table.patients, table.labels, rows, fraction)
  notes.append(f"validation: {len(val)} of the {len(rows)} training images, carved by patient")
  return {"train": train, "val": val}


def _decode(
  sources: _Sources, known: Mapping[str, np.ndarray], size: int, decoding: Mapping[str, Any]
) -> tuple[dict[str, Images], dict[str, tuple[str, np.ndarray]]]:
  """`images` and `rows` of `Data`; those of a carved val are among the images of train."""
  is_carved = "val" not in sources.by_split
  images: dict[str, Images] = {}
  for split, source in sources.by_split.items():
    index = known[split]
    if split == "train" and is_carved:
      index = np.sort(np.concatenate([index, known["val"]]))
    selected = None if len(index) == len(source) else index
    images[split] = load_images(source, size, indices=selected, **decoding)
  rows = {split: (split, np.arange(len(of_split))) for split, of_split in images.items()}
  if is_carved:
    val_ids = {sources.train.table.ids[i] for i in known["val"]}
    in_val = np.array([i in val_ids for i in images["train"].ids])
    rows |= {"train": ("train", np.flatnonzero(~in_val)), "val": ("train", np.flatnonzero(in_val))}
  if sources.is_foreign:
    images["test"] = label_matching.as_classes(images["test"], sources.train.info)
  return images, rows


def load_split(
  data: Mapping[str, Any], split: str, size: int, *, whose: str = "the evaluator", **decoding: Any
) -> Data:
  """Opens and decodes a single split, stored as "test" whichever it is.

  Args:
    data: as for `load`.
    split: "train", "val" or "test".
    size: side of the decoded images, pixels.
    whose: name of the evaluator in error messages.
    **decoding: options of `data.loading.decoded_cache.load_images`.

  Raises:
    UserError: no labels, or a source that cannot be opened.
  """
  _require_name(data, whose)
  source = open_source(data["name"], split=data.get(split, split), **_source_options(data))
  usable = labelled(source.table.labels, source.info.exclusive)
  if not usable.any():
    raise UserError(
      f"{source.info.name} split {source.info.split!r} has no image with a known "
      f"label; give {whose}'s data.{split} another split"
    )
  rows = None if usable.all() else np.flatnonzero(usable)
  images = load_images(source, size, indices=rows, **decoding)
  return Data(
    {"train": images, "test": images},
    {"test": ("test", np.arange(len(images)))},
    (),
    {"test": int(np.sum(~usable))},
    (),
  )


def test_metadata(data: Data) -> dict[str, np.ndarray]:
  """Labels and identity of the test images, stored beside their scores for figures and comparisons.

  Returns:
    `labels` f32[m k]; `patient` i64[m], a number per patient; `classes`, and whether they are
    `exclusive`; `id` of every image.
  """
  labels = data.labels("test")
  patient, _ = intervals.clusters(data.patients("test"), len(labels))
  return {
    "labels": labels,
    "patient": patient,
    "classes": np.asarray(data.classes),
    "exclusive": np.asarray(data.exclusive),
    "id": np.asarray(data.ids("test")),
  }


def _require_name(data: Mapping[str, Any], whose: str) -> None:
  if not data.get("name"):
    raise UserError(f"{whose}'s data.name is missing; give a source such as 'phantom'")


def _source_options(data: Mapping[str, Any], is_train: bool = False) -> dict[str, Any]:
  """Options for `open_source`: `data` without its name and splits."""
  left_out = (*SPLITS, "name", *(() if is_train else TRAIN_ONLY_OPTIONS))
  return {k: v for k, v in data.items() if k not in left_out}


def divide(
  patients: Sequence[str],
  labels: Float32[np.ndarray, "n k"],
  rows: Int[np.ndarray, "m"],
  fraction: float,
) -> tuple[Int[np.ndarray, "a"], Int[np.ndarray, "b"]]:
  """Divides rows of a table in two by patient, balanced over classes and deterministic.

  Args:
    patients: one id per image of the table; an image with an empty one is a patient of its own.
    labels: 1, 0 or NaN per class.
    rows: which images to divide.
    fraction: share of the second set.

  Returns:
    The rows of both sets, ascending.

  Raises:
    UserError: fewer than two patients.
  """
  patient_ids = [patients[i] or f"image {i}" for i in rows]
  shares = {"first": 1 - fraction, "second": fraction}
  halves = split_by_patient(patient_ids, shares, labels=labels[rows])
  return rows[halves["first"]], rows[halves["second"]]


def describe(data: Data) -> dict[str, Any]:
  """Facts about the splits for `run.json`: sizes, classes, patients, fingerprints, remarks."""
  result: dict[str, Any] = {split: describe_split(data, split) for split in SPLITS}
  patient_note = shared_patients_note(data)
  result["shared_patients"] = (
    len(data.shared) if data.shared or patient_note == NO_SHARED_PATIENTS else None
  )
  result["notes"] = [*data.notes, patient_note]
  return result


def shared_patients_note(data: Data) -> str:
  """A sentence on whether any patient is in two splits, as far as that is known."""
  known = [
    leakage.count_known(data.patients(split), data.images[data.rows[split][0]].info)
    for split in SPLITS
  ]
  return leakage.summary(
    len(data.shared),
    known,
    [f"{NAMES[split]} images" for split in SPLITS],
    some=f"{len(data.shared)} patients are in more than one of train, val and test",
    none=NO_SHARED_PATIENTS,
    whether="whether a patient is in two of train, val and test",
  )


def describe_split(data: Data, split: str) -> dict[str, Any]:
  """Facts about one split for `run.json`."""
  images = data.images[data.rows[split][0]]
  labels, patients = data.labels(split), data.patients(split)
  return {
    "name": images.info.name,
    "split": images.info.split,
    "n": len(labels),
    "patients": len(set(patients)) if all(patients) else None,
    "classes": list(images.info.classes),
    "class_counts": {c: int(np.sum(labels[:, i] == 1)) for i, c in enumerate(images.info.classes)},
    "unlabelled": data.unlabelled.get(split, 0),
    "splits": dict(images.info.splits),
    "fingerprint": images.info.fingerprint,
    "notes": list(images.info.notes),
    "skipped": [list(s) for s in images.skipped],
  }


def _shared_patients(data: Data) -> tuple[str, ...]:
  """Keys of the patients in more than one split, sorted."""
  keys = {key: patient_keys(images) for key, images in data.images.items()}
  split_counts = Counter(
    p for key, rows in data.rows.values() for p in {keys[key][i] for i in rows} - {""}
  )
  return tuple(sorted(p for p, n in split_counts.items() if n > 1))


def _check_classes(data: Data, sources: _Sources) -> None:
  """Raises a UserError unless train has two classes, or both values of some label."""
  labels = data.labels("train")
  present = [c for c in range(len(data.classes)) if np.any(labels[:, c] == 1)]
  absent = [c for c in range(len(data.classes)) if np.any(labels[:, c] == 0)]
  if not set(present) & set(absent):
    only = [data.classes[c] for c in present]
    raise UserError(
      f"{sources.name} split {sources.published['train']!r} has images of one class only ({only}); "
      f"two are needed: give {sources.whose}'s data.train another split or source"
    )

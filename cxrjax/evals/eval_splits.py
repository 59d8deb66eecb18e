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
from cxrjax.data.base import SourceInfo
from cxrjax.data.loading.decoded_cache import Images, load_images
from cxrjax.data.splits import leakage
from cxrjax.data.splits.partial_labels import labelled
from cxrjax.data.splits.patient_splits import patient_keys, split_by_patient
from cxrjax.evals import classification_metrics
from cxrjax.metrics import intervals

PARTS = ("train", "val", "test")
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
    shared: patients in more than one part.
    unlabelled: number of images left out of each part because their class is unknown.
    notes: how the parts were made.
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

  def labels(self, part: str) -> Float32[np.ndarray, "n k"]:
    key, rows = self.rows[part]
    return self.images[key].labels[rows]

  def patients(self, part: str) -> list[str]:
    key, rows = self.rows[part]
    return [self.images[key].patients[i] for i in rows]

  def ids(self, part: str) -> list[str]:
    key, rows = self.rows[part]
    return [self.images[key].ids[i] for i in rows]


def check(evaluator: Any, whose: str, positive: Sequence[str]) -> None:
  """Validates the options that all evaluators share; raises a UserError for a bad one.

  Args:
    evaluator: with `threshold_for` and `val_fraction`.
    whose: name of the evaluator in error messages.
    positive: names of the options that must be above 0.
  """
  if evaluator.threshold_for not in classification_metrics.CRITERIA:
    raise UserError(
      f"{whose}'s threshold_for={evaluator.threshold_for!r} is not an option; valid: "
      f"{', '.join(classification_metrics.CRITERIA)}"
    )
  for name in positive:
    if not getattr(evaluator, name) > 0:
      raise UserError(f"{whose}'s {name}={getattr(evaluator, name)} must be above 0")
  if not 0 < evaluator.val_fraction < 1:
    raise UserError(f"{whose}'s val_fraction={evaluator.val_fraction} must lie between 0 and 1")


def load(
  data: Mapping[str, Any],
  size: int,
  *,
  val_fraction: float = 0.15,
  max_train: int | None = None,
  allow_shared_patients: bool = False,
  fit: str = "squash",
  on_bad_image: str = "error",
  bits: str | int = "auto",
  window: str | Sequence[float] = "auto",
  cache_dir: Any = None,
  progress: bool = True,
  other: Mapping[str, Any] | None = None,
  whose: str = "the probe",
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
    allow_shared_patients: count patients that are in two parts, instead of raising.
    fit: how an image that is not square is made square.
    on_bad_image: "error" or "skip".
    bits: "auto", 8 or 16, of the stored pixels; see `data.loading.decoded_cache.load_images`.
    window: intensity window of 16-bit images; see there.
    cache_dir: folder of the decoded-image cache.
    progress: show bars on stderr.
    other: `name`, `test` and options of another source, which provides the test part, mapped to the
      classes of `data` (see `match`).
    whose: name of the evaluator in error messages.

  Raises:
    UserError: no labels, one class only, patients in two parts, or a source that cannot be opened.
  """
  options = _source_options(data)
  name = data.get("name")
  if not name:
    raise UserError(f"{whose}'s data.name is missing; give a source such as 'phantom'")
  split = {part: data.get(part, part) for part in PARTS}
  train_only = {key: options.pop(key, None) for key in TRAIN_ONLY_OPTIONS}
  train = open_source(name, split=split["train"], **train_only, **options)
  if other is None:
    test = open_source(name, split=split["test"], **options)
  else:
    split["test"] = other.get("test", "test")
    other_options = {k: v for k, v in _source_options(other).items() if k not in TRAIN_ONLY_OPTIONS}
    test = open_source(other["name"], split=split["test"], **other_options)
  name = train.info.name if not isinstance(name, str) else name
  classes = train.info.classes
  if not classes:
    advice = train.info.advice or f"give {whose}'s data.name a labelled source"
    raise UserError(
      f"{name} has no labels to judge by; {advice}, or remove {whose} from config.evals"
    )
  if other is None and test.info.classes != classes:
    raise UserError(
      f"{name}: split {split['test']!r} has classes {list(test.info.classes)}, "
      f"split {split['train']!r} has {list(classes)}; they must be the same"
    )
  notes: list[str] = []
  val = _open_val(data["name"], split, options, train, notes)

  sources = {"train": train, "test": test} | ({} if val is None else {"val": val})
  unlabelled, known_rows = {}, {}
  for part, source in sources.items():
    labels = source.table.labels
    if other is not None and part == "test":
      labels = match(labels, source.info, train.info, notes, f"{whose}'s data")
    usable = labelled(labels, train.info.exclusive)
    known_rows[part] = np.flatnonzero(usable)
    unlabelled[part] = int(np.sum(~usable))
    if not len(known_rows[part]):
      title = source.info.name if other is not None and part == "test" else name
      raise UserError(
        f"{title} split {split[part]!r} has no image with a known label; "
        f"give {whose}'s data.{part} another split"
      )
  table = train.table
  if val is None:
    patient_ids = {table.patients[i] or f"image {i}" for i in known_rows["train"]}
    if len(patient_ids) < 2:
      raise UserError(
        f"{name} split {split['train']!r} has one patient, too few to carve a "
        f"validation split from; give {whose}'s data.val a split of its own"
      )
    train_rows, val_rows = divide(table.patients, table.labels, known_rows["train"], val_fraction)
    notes.append(
      f"validation: {len(val_rows)} of the {len(known_rows['train'])} training images, "
      "carved by patient"
    )
    unlabelled["val"] = 0
  else:
    train_rows, val_rows = known_rows["train"], known_rows["val"]
  if max_train is not None and len(train_rows) > max_train:
    available = len(train_rows)
    _, train_rows = divide(table.patients, table.labels, train_rows, max_train / available)
    notes.append(f"training: {len(train_rows)} of {available} images, whole patients (max_train)")

  decode = {
    "fit": fit,
    "cache_dir": cache_dir,
    "on_bad_image": on_bad_image,
    "progress": progress,
    "bits": bits,
    "window": window,
  }
  images: dict[str, Images] = {}
  rows: dict[str, tuple[str, np.ndarray]] = {}
  indices = {"train": train_rows, "test": known_rows["test"]}
  if val is None:
    indices["train"] = np.sort(np.concatenate([train_rows, val_rows]))
  else:
    indices["val"] = val_rows
  for part, index in indices.items():
    source = sources[part]
    selected = None if len(index) == len(source) else index
    images[part] = load_images(source, size, indices=selected, **decode)
    rows[part] = (part, np.arange(len(images[part])))
  if other is not None:
    images["test"] = as_classes(images["test"], train.info)
  if val is None:
    val_ids = {table.ids[i] for i in val_rows}
    in_val = np.array([i in val_ids for i in images["train"].ids])
    rows["train"] = ("train", np.flatnonzero(~in_val))
    rows["val"] = ("train", np.flatnonzero(in_val))
  result = Data(images, rows, (), unlabelled, ())
  shared = _shared_patients(result)
  if shared and not allow_shared_patients:
    raise UserError(
      f"{name}: {len(shared)} patients are in more than one of train, val and test, so results "
      f"would flatter; split by patient, or set {whose}'s allow_shared_patients=True"
    )
  _check_classes(result, name, split, whose)
  return dataclasses.replace(result, shared=shared, notes=tuple(notes))


def load_part(
  data: Mapping[str, Any], part: str, size: int, *, whose: str = "the evaluator", **decode: Any
) -> Data:
  """Opens and decodes a single part, stored as "test" whichever split it comes from.

  Args:
    data: as for `load`.
    part: "train", "val" or "test", the part whose split is opened.
    size: side of the decoded images, pixels.
    whose: name of the evaluator in error messages.
    **decode: options of `data.loading.decoded_cache.load_images`.

  Raises:
    UserError: no labels, or a source that cannot be opened.
  """
  if not data.get("name"):
    raise UserError(f"{whose}'s data.name is missing; give a source such as 'phantom'")
  options = {k: v for k, v in _source_options(data).items() if k not in TRAIN_ONLY_OPTIONS}
  source = open_source(data["name"], split=data.get(part, part), **options)
  usable = labelled(source.table.labels, source.info.exclusive)
  if not usable.any():
    raise UserError(
      f"{source.info.name} split {source.info.split!r} has no image with a known "
      f"label; give {whose}'s data.{part} another split"
    )
  rows = None if usable.all() else np.flatnonzero(usable)
  images = load_images(source, size, indices=rows, **decode)
  return Data(
    {"train": images, "test": images},
    {"test": ("test", np.arange(len(images)))},
    (),
    {"test": int(np.sum(~usable))},
    (),
  )


def match(
  labels: Float32[np.ndarray, "n k"],
  own: SourceInfo,
  to: SourceInfo,
  notes: list[str],
  key: str = "data",
) -> Float32[np.ndarray, "n c"]:
  """Maps labels to the classes of another source by name, ignoring case.

  Where the classes of `to` are exclusive, an image that has none of them, or several, becomes
  unknown. Findings that the source does not label are unknown.

  Args:
    labels: of the images.
    own: the source of the labels.
    to: the source that defines the classes.
    notes: remarks on what was left out are appended.
    key: config key in error messages.

  Raises:
    UserError: no class has a name in both.
  """
  column_of = {c.casefold(): i for i, c in enumerate(own.classes)}
  columns = [column_of.get(c.casefold()) for c in to.classes]
  if all(c is None for c in columns):
    raise UserError(
      f"{key}: {own.name} has the classes {list(own.classes)}, none of which is among those of "
      f"{to.name}, {list(to.classes)}; give a set that shares some"
    )
  matched = np.stack(
    [np.full(len(labels), np.nan, np.float32) if c is None else labels[:, c] for c in columns], 1
  )
  missing = [c for c, column in zip(to.classes, columns, strict=True) if column is None]
  if missing:
    notes.append(f"{own.name} does not know {', '.join(missing)}")
  if to.exclusive:
    matched = np.where(np.isnan(matched), 0, matched) if own.exclusive else matched
    has_one = (matched == 1).sum(1) == 1
    # Of findings, the one that is present decides the others, known or not.
    matched = np.where(has_one[:, None], matched == 1, np.nan).astype(np.float32)
    left_out = int(np.sum(~has_one))
    if left_out:
      notes.append(
        f"{left_out} of {len(labels)} images of {own.name} have none, or several, of the "
        f"classes {', '.join(to.classes)} and are left out"
      )
  return matched


def as_classes(images: Images, to: SourceInfo) -> Images:
  """Relabels decoded images with the classes of another source; see `match`."""
  labels = match(images.labels, images.info, to, [])
  return dataclasses.replace(
    images,
    table=dataclasses.replace(images.table, labels=labels),
    info=dataclasses.replace(images.info, classes=to.classes, exclusive=to.exclusive),
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


def _source_options(data: Mapping[str, Any]) -> dict[str, Any]:
  """Options for `open_source`: `data` without its name and splits."""
  return {k: v for k, v in data.items() if k not in (*PARTS, "name")}


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
    fraction: share of the second part.

  Returns:
    The rows of both parts, ascending.

  Raises:
    UserError: fewer than two patients.
  """
  patient_ids = [patients[i] or f"image {i}" for i in rows]
  parts = split_by_patient(
    patient_ids, {"first": 1 - fraction, "second": fraction}, labels=labels[rows]
  )
  return rows[parts["first"]], rows[parts["second"]]


def describe(data: Data) -> dict[str, Any]:
  """Facts about the parts for `run.json`: sizes, classes, patients, fingerprints, remarks."""
  result: dict[str, Any] = {part: describe_part(data, part) for part in PARTS}
  patient_note = shared_patients_note(data)
  result["shared_patients"] = (
    len(data.shared) if data.shared or patient_note == NO_SHARED_PATIENTS else None
  )
  result["notes"] = [*data.notes, patient_note]
  return result


def shared_patients_note(data: Data) -> str:
  """A sentence on whether any patient is in two parts, as far as that is known."""
  known = [
    leakage.count_known(data.patients(part), data.images[data.rows[part][0]].info) for part in PARTS
  ]
  return leakage.summary(
    len(data.shared),
    known,
    [f"{NAMES[part]} images" for part in PARTS],
    some=f"{len(data.shared)} patients are in more than one of train, val and test",
    none=NO_SHARED_PATIENTS,
    whether="whether a patient is in two of train, val and test",
  )


def describe_part(data: Data, part: str) -> dict[str, Any]:
  """Facts about one part for `run.json`."""
  images = data.images[data.rows[part][0]]
  labels, patients = data.labels(part), data.patients(part)
  return {
    "name": images.info.name,
    "split": images.info.split,
    "n": len(labels),
    "patients": len(set(patients)) if all(patients) else None,
    "classes": list(images.info.classes),
    "class_counts": {c: int(np.sum(labels[:, i] == 1)) for i, c in enumerate(images.info.classes)},
    "unlabelled": data.unlabelled.get(part, 0),
    "splits": dict(images.info.splits),
    "fingerprint": images.info.fingerprint,
    "notes": list(images.info.notes),
    "skipped": [list(s) for s in images.skipped],
  }


def _open_val(
  name: str | Sequence[Any],
  split: Mapping[str, Any],
  options: Mapping[str, Any],
  train: Any,
  notes: list[str],
) -> Any:
  """Opens the source's validation split; None where one has to be carved from train."""
  if split["val"] in (None, "carve"):
    return None
  if split["val"] == "val" and "val" not in train.info.splits:
    return None
  source = open_source(name, split=split["val"], **options)
  if split["val"] == "val" and len(source) < SMALL_VAL:
    notes.append(f"the source's own val split has only {len(source)} images and is not used")
    return None
  return source


def _shared_patients(data: Data) -> tuple[str, ...]:
  """Keys of the patients in more than one part, sorted."""
  keys = {key: patient_keys(images) for key, images in data.images.items()}
  part_counts = Counter(
    p for key, rows in data.rows.values() for p in {keys[key][i] for i in rows} - {""}
  )
  return tuple(sorted(p for p, n in part_counts.items() if n > 1))


def _check_classes(data: Data, name: str, split: Mapping[str, Any], whose: str) -> None:
  """Raises a UserError unless train has two classes, or both values of some label."""
  labels = data.labels("train")
  present = [c for c in range(len(data.classes)) if np.any(labels[:, c] == 1)]
  absent = [c for c in range(len(data.classes)) if np.any(labels[:, c] == 0)]
  if not set(present) & set(absent):
    only = [data.classes[c] for c in present]
    raise UserError(
      f"{name} split {split['train']!r} has images of one class only ({only}); two are "
      f"needed: give {whose}'s data.train another split or source"
    )

"""Labelled images for judging an encoder: train, val and test, with no patient in two of them."""

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
APART = "no patient is in two of train, val and test"
FEW = ("subset", "labelled")  # options of a source that take from train alone


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
  """What an evaluator works on.

  Attributes:
    images: decoded images by the split they come from.
    rows: for train, val and test, which of `images` and which rows of it.
    shared: patients that stand in more than one part.
    unlabelled: images of each part left out because their class is unknown.
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
  """Raises a UserError for an option of an evaluator that is none.

  Args:
    evaluator: with `threshold_for` and `val_fraction`.
    whose: what it is called in errors.
    positive: its options that must be above 0.
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
  """Opens the parts, separates patients, decodes.

  Args:
    data: `name` and options of a source, as for `open_source`; `train`, `val` and `test` name its
      splits (by default those words). `val="carve"` takes validation from train by patient, which
      also happens where the source has none, or a very small one. `subset` and
      `labelled` take part of train alone: who learns from few labels is judged by all test images.
    size: side of the decoded images, pixels.
    val_fraction: share of train's patients to carve.
    max_train: about this many at most training images (whole patients, drawn by a hash of the id).
    allow_shared_patients: only count patients that stand in two parts, instead of stopping.
    fit: how an image that is not square is made so.
    on_bad_image: "error" or "skip".
    bits: "auto", 8 or 16, of the stored pixels; see `data.loading.decoded_cache.load_images`.
    window: the gray levels of 16-bit images that are shown; see there.
    cache_dir: of decoded images.
    progress: bars on stderr.
    other: `name`, `test` and options of another source: its images are the test part, with the
      classes of `data` (see `match`).
    whose: who asks, for errors.

  Raises:
    UserError: no labels, one class only, patients in two parts, or a source that cannot be opened.
  """
  options = _options(data)
  name = data.get("name")
  if not name:
    raise UserError(f"{whose}'s data.name is missing; give a source such as 'phantom'")
  split = {part: data.get(part, part) for part in PARTS}
  few = {key: options.pop(key, None) for key in FEW}
  train = open_source(name, split=split["train"], **few, **options)
  if other is None:
    test = open_source(name, split=split["test"], **options)
  else:
    split["test"] = other.get("test", "test")
    own = {k: v for k, v in _options(other).items() if k not in FEW}
    test = open_source(other["name"], split=split["test"], **own)
  name = train.info.name if not isinstance(name, str) else name
  classes = train.info.classes
  if not classes:
    way = train.info.advice or f"give {whose}'s data.name a labelled source"
    raise UserError(f"{name} has no labels to judge by; {way}, or remove {whose} from config.evals")
  if other is None and test.info.classes != classes:
    raise UserError(
      f"{name}: split {split['test']!r} has classes {list(test.info.classes)}, "
      f"split {split['train']!r} has {list(classes)}; they must be the same"
    )
  notes: list[str] = []
  val = _own_val(data["name"], split, options, train, notes)

  sources = {"train": train, "test": test} | ({} if val is None else {"val": val})
  unlabelled, rows = {}, {}
  for part, source in sources.items():
    labels = source.table.labels
    if other is not None and part == "test":
      labels = match(labels, source.info, train.info, notes, f"{whose}'s data")
    usable = labelled(labels, train.info.exclusive)
    rows[part] = np.flatnonzero(usable)
    unlabelled[part] = int(np.sum(~usable))
    if not len(rows[part]):
      of = source.info.name if other is not None and part == "test" else name
      raise UserError(
        f"{of} split {split[part]!r} has no image with a known label; "
        f"give {whose}'s data.{part} another split"
      )
  table = train.table
  if val is None:
    owners = {table.patients[i] or f"image {i}" for i in rows["train"]}
    if len(owners) < 2:
      raise UserError(
        f"{name} split {split['train']!r} has one patient, too few to carve a "
        f"validation split from; give {whose}'s data.val a split of its own"
      )
    train_rows, val_rows = divide(table.patients, table.labels, rows["train"], val_fraction)
    notes.append(
      f"validation: {len(val_rows)} of the {len(rows['train'])} training images, carved by patient"
    )
    unlabelled["val"] = 0
  else:
    train_rows, val_rows = rows["train"], rows["val"]
  if max_train is not None and len(train_rows) > max_train:
    before = len(train_rows)
    _, train_rows = divide(table.patients, table.labels, train_rows, max_train / before)
    notes.append(f"training: {len(train_rows)} of {before} images, whole patients (max_train)")

  decode = {
    "fit": fit,
    "cache_dir": cache_dir,
    "on_bad_image": on_bad_image,
    "progress": progress,
    "bits": bits,
    "window": window,
  }
  images: dict[str, Images] = {}
  found: dict[str, tuple[str, np.ndarray]] = {}
  wanted = {"train": train_rows, "test": rows["test"]}
  if val is None:
    wanted["train"] = np.sort(np.concatenate([train_rows, val_rows]))
  else:
    wanted["val"] = val_rows
  for part, index in wanted.items():
    source = sources[part]
    whole = len(index) == len(source)
    images[part] = load_images(source, size, indices=None if whole else index, **decode)
    found[part] = (part, np.arange(len(images[part])))
  if other is not None:
    images["test"] = as_classes(images["test"], train.info)
  if val is None:
    held = {table.ids[i] for i in val_rows}
    inside = np.array([i in held for i in images["train"].ids])
    found["train"] = ("train", np.flatnonzero(~inside))
    found["val"] = ("train", np.flatnonzero(inside))
  result = Data(images, found, (), unlabelled, ())
  shared = _shared(result)
  if shared and not allow_shared_patients:
    raise UserError(
      f"{name}: {len(shared)} patients are in more than one of train, val and test, so results "
      f"would flatter; split by patient, or set {whose}'s allow_shared_patients=True"
    )
  _check_classes(result, name, split, whose)
  return dataclasses.replace(result, shared=shared, notes=tuple(notes))


def one(
  data: Mapping[str, Any], part: str, size: int, *, whose: str = "the evaluator", **decode: Any
) -> Data:
  """Opens and decodes one part, which judges: it is "test" whatever split it is of.

  Args:
    data: as for `load`.
    part: of "train", "val" and "test", whose split is opened.
    size: side of the decoded images, pixels.
    whose: who asks, for errors.
    **decode: options of `data.loading.decoded_cache.load_images`.

  Raises:
    UserError: no labels, or a source that cannot be opened.
  """
  if not data.get("name"):
    raise UserError(f"{whose}'s data.name is missing; give a source such as 'phantom'")
  options = {k: v for k, v in _options(data).items() if k not in FEW}
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
  """Labels of one source as those of another's classes, by name, upper and lower case alike.

  Where the classes of `to` exclude one another, an image has to have one of them: one that has
  none, or several, becomes unknown. Findings that the source does not know are unknown.

  Args:
    labels: of the images.
    own: what `labels` are of.
    to: whose classes are wanted.
    notes: what was left out is appended.
    key: who asks, for errors.

  Raises:
    UserError: no class has a name in both.
  """
  names = {c.casefold(): i for i, c in enumerate(own.classes)}
  columns = [names.get(c.casefold()) for c in to.classes]
  if all(c is None for c in columns):
    raise UserError(
      f"{key}: {own.name} has the classes {list(own.classes)}, none of which is among those of "
      f"{to.name}, {list(to.classes)}; give a set that shares some"
    )
  found = np.stack(
    [np.full(len(labels), np.nan, np.float32) if c is None else labels[:, c] for c in columns], 1
  )
  missing = [c for c, at in zip(to.classes, columns, strict=True) if at is None]
  if missing:
    notes.append(f"{own.name} does not know {', '.join(missing)}")
  if to.exclusive:
    found = np.where(np.isnan(found), 0, found) if own.exclusive else found
    one_of_them = (found == 1).sum(1) == 1
    # Findings: the one that is there settles the others, known or not.
    found = np.where(one_of_them[:, None], found == 1, np.nan).astype(np.float32)
    left = int(np.sum(~one_of_them))
    if left:
      notes.append(
        f"{left} of {len(labels)} images of {own.name} have none, or several, of the "
        f"classes {', '.join(to.classes)} and are left out"
      )
  return found


def as_classes(images: Images, to: SourceInfo) -> Images:
  """Decoded images with the classes of another source; see `match`."""
  labels = match(images.labels, images.info, to, [])
  return dataclasses.replace(
    images,
    table=dataclasses.replace(images.table, labels=labels),
    info=dataclasses.replace(images.info, classes=to.classes, exclusive=to.exclusive),
  )


def about(data: Data) -> dict[str, np.ndarray]:
  """What scores of the test images need beside them, for figures and comparisons.

  Returns:
    `labels` f32[m k]; `patient` i64[m], numbers that say which images are of one patient;
    `classes` and whether they are `exclusive`; `id` of every image.
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


def _options(data: Mapping[str, Any]) -> dict[str, Any]:
  return {k: v for k, v in data.items() if k not in (*PARTS, "name")}


def divide(
  patients: Sequence[str],
  labels: Float32[np.ndarray, "n k"],
  rows: Int[np.ndarray, "m"],
  fraction: float,
) -> tuple[Int[np.ndarray, "a"], Int[np.ndarray, "b"]]:
  """Divides rows of a table in two by patient, evenly over classes; the same every time.

  Args:
    patients: one id per image of the table; an empty one stands for a patient of its own.
    labels: 1, 0 or NaN per class.
    rows: which images to divide.
    fraction: share of the second part.

  Returns:
    The rows of both parts, ascending.

  Raises:
    UserError: fewer than two patients.
  """
  owners = [patients[i] or f"image {i}" for i in rows]
  found = split_by_patient(owners, {"first": 1 - fraction, "second": fraction}, labels=labels[rows])
  return rows[found["first"]], rows[found["second"]]


def describe(data: Data) -> dict[str, Any]:
  """Facts of the parts for `run.json`: sizes, classes, patients, fingerprints, remarks."""
  result: dict[str, Any] = {part: describe_part(data, part) for part in PARTS}
  told = patients(data)
  result["shared_patients"] = len(data.shared) if data.shared or told == APART else None
  result["notes"] = [*data.notes, told]
  return result


def patients(data: Data) -> str:
  """Whether a patient is in two of the parts, as far as that is known."""
  sets = [
    leakage.known(data.patients(part), data.images[data.rows[part][0]].info) for part in PARTS
  ]
  return leakage.said(
    len(data.shared),
    sets,
    [f"{NAMES[part]} images" for part in PARTS],
    some=f"{len(data.shared)} patients are in more than one of train, val and test",
    none=APART,
    whether="whether a patient is in two of train, val and test",
  )


def describe_part(data: Data, part: str) -> dict[str, Any]:
  """Facts of one part."""
  images, labels, patients = data.images[data.rows[part][0]], data.labels(part), data.patients(part)
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


def _own_val(
  name: str | Sequence[Any],
  split: Mapping[str, Any],
  options: Mapping[str, Any],
  train: Any,
  notes: list[str],
) -> Any:
  """The source's validation split, or None where one must be carved."""
  if split["val"] in (None, "carve"):
    return None
  if split["val"] == "val" and "val" not in train.info.splits:
    return None
  source = open_source(name, split=split["val"], **options)
  if split["val"] == "val" and len(source) < SMALL_VAL:
    notes.append(f"the source's own val split has only {len(source)} images and is not used")
    return None
  return source


def _shared(data: Data) -> tuple[str, ...]:
  """Keys of the patients in more than one part, sorted."""
  keys = {key: patient_keys(images) for key, images in data.images.items()}
  count = Counter(
    p for key, rows in data.rows.values() for p in {keys[key][i] for i in rows} - {""}
  )
  return tuple(sorted(p for p, n in count.items() if n > 1))


def _check_classes(data: Data, name: str, split: Mapping[str, Any], whose: str) -> None:
  """Training must show at least two classes, or both values of some label."""
  labels = data.labels("train")
  present = [c for c, title in enumerate(data.classes) if np.any(labels[:, c] == 1)]
  absent = [c for c, title in enumerate(data.classes) if np.any(labels[:, c] == 0)]
  if not set(present) & set(absent):
    only = [data.classes[c] for c in present]
    raise UserError(
      f"{name} split {split['train']!r} has images of one class only ({only}); two are "
      f"needed: give {whose}'s data.train another split or source"
    )

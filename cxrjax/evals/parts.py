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
from cxrjax.data.splits import split_by_patient
from cxrjax.data.store import Images, load_images

PARTS = ("train", "val", "test")
SMALL_VAL = 50


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
) -> Data:
  """Opens the parts, separates patients, decodes.

  Args:
    data: `name` and options of a source, as for `open_source`; `train`, `val` and `test` name its
      splits (by default those words). `val="carve"` takes validation from train by patient, which
      also happens where the source has none, or a very small one. `subset` takes part of train
      alone: whoever learns from few labels is judged by all test images.
    size: side of the decoded images, pixels.
    val_fraction: share of train's patients to carve.
    max_train: about this many at most training images (whole patients, drawn by a hash of the id).
    allow_shared_patients: only count patients that stand in two parts, instead of stopping.
    fit: how an image that is not square is made so.
    on_bad_image: "error" or "skip".
    bits: "auto", 8 or 16, of the stored pixels; see `data.store.load_images`.
    window: the gray levels of 16-bit images that are shown; see there.
    cache_dir: of decoded images.
    progress: bars on stderr.

  Raises:
    UserError: no labels, one class only, patients in two parts, or a source that cannot be opened.
  """
  options = {k: v for k, v in data.items() if k not in (*PARTS, "name")}
  name = data.get("name")
  if not name:
    raise UserError("the probe's data.name is missing; give a source such as 'phantom'")
  split = {part: data.get(part, part) for part in PARTS}
  few = options.pop("subset", None)
  train = open_source(name, split=split["train"], subset=few, **options)
  test = open_source(name, split=split["test"], **options)
  name = train.info.name if not isinstance(name, str) else name
  classes = train.info.classes
  if not classes:
    raise UserError(f"{name} has no labels to judge an encoder by; give the probe's data.name a "
                    "labelled source, or remove the probe from config.evals")
  if test.info.classes != classes:
    raise UserError(f"{name}: split {split['test']!r} has classes {list(test.info.classes)}, "
                    f"split {split['train']!r} has {list(classes)}; they must be the same")
  notes: list[str] = []
  val = _own_val(data["name"], split, options, train, notes)

  sources = {"train": train, "test": test} | ({} if val is None else {"val": val})
  unlabelled, rows = {}, {}
  for part, source in sources.items():
    labels = source.table.labels
    known = ~np.isnan(labels)
    usable = known.all(1) if source.info.exclusive else known.any(1)
    rows[part] = np.flatnonzero(usable)
    unlabelled[part] = int(np.sum(~usable))
    if not len(rows[part]):
      raise UserError(f"{name} split {split[part]!r} has no image with a known label; "
                      f"give the probe's data.{part} another split")
  table = train.table
  if val is None:
    owners = {table.patients[i] or f"image {i}" for i in rows["train"]}
    if len(owners) < 2:
      raise UserError(f"{name} split {split['train']!r} has one patient, too few to carve a "
                      "validation split from; give the probe's data.val a split of its own")
    train_rows, val_rows = divide(table.patients, table.labels, rows["train"], val_fraction)
    notes.append(f"validation: {len(val_rows)} of the {len(rows['train'])} training images, carved "
                 "by patient")
    unlabelled["val"] = 0
  else:
    train_rows, val_rows = rows["train"], None
  if max_train is not None and len(train_rows) > max_train:
    before = len(train_rows)
    _, train_rows = divide(table.patients, table.labels, train_rows, max_train / before)
    notes.append(f"training: {len(train_rows)} of {before} images, whole patients (max_train)")

  decode = {"fit": fit, "cache_dir": cache_dir, "on_bad_image": on_bad_image, "progress": progress,
            "bits": bits, "window": window}
  images: dict[str, Images] = {}
  found: dict[str, tuple[str, np.ndarray]] = {}
  wanted = {"train": train_rows, "test": rows["test"]}
  if val is None:
    wanted["train"] = np.sort(np.concatenate([train_rows, val_rows]))
  else:
    wanted["val"] = rows["val"]
  for part, index in wanted.items():
    source = sources[part]
    whole = len(index) == len(source)
    images[part] = load_images(source, size, indices=None if whole else index, **decode)
    found[part] = (part, np.arange(len(images[part])))
  if val is None:
    held = {table.ids[i] for i in val_rows}
    inside = np.array([i in held for i in images["train"].ids])
    found["train"] = ("train", np.flatnonzero(~inside))
    found["val"] = ("train", np.flatnonzero(inside))
  result = Data(images, found, (), unlabelled, ())
  shared = _shared(result)
  if shared and not allow_shared_patients:
    raise UserError(
      f"{name}: {len(shared)} patients are in more than one of train, val and test (e.g. "
      f"{shared[0]!r}), so results would flatter; split by patient, or set the probe's "
      "allow_shared_patients=True")
  _check_classes(result, name, split)
  return dataclasses.replace(result, shared=shared, notes=tuple(notes))


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
  result: dict[str, Any] = {}
  for part in PARTS:
    key, _ = data.rows[part]
    info, labels = data.images[key].info, data.labels(part)
    patients = data.patients(part)
    result[part] = {
      "name": info.name,
      "split": info.split,
      "n": len(labels),
      "patients": len(set(patients)) if all(patients) else None,
      "classes": list(info.classes),
      "class_counts": {c: int(np.sum(labels[:, i] == 1)) for i, c in enumerate(info.classes)},
      "unlabelled": data.unlabelled.get(part, 0),
      "splits": dict(info.splits),
      "fingerprint": info.fingerprint,
      "notes": list(info.notes),
      "skipped": [list(s) for s in data.images[key].skipped],
    }
  result["shared_patients"] = len(data.shared)
  result["notes"] = list(data.notes)
  return result


def _own_val(
    name: str | Sequence[Any], split: Mapping[str, Any], options: Mapping[str, Any], train: Any,
    notes: list[str]) -> Any:
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
  """Patients in more than one part, sorted."""
  count = Counter(p for part in PARTS for p in set(data.patients(part)) if p)
  return tuple(sorted(p for p, n in count.items() if n > 1))


def _check_classes(data: Data, name: str, split: Mapping[str, Any]) -> None:
  """Training must show at least two classes, or both values of some label."""
  labels = data.labels("train")
  present = [c for c, title in enumerate(data.classes) if np.any(labels[:, c] == 1)]
  absent = [c for c, title in enumerate(data.classes) if np.any(labels[:, c] == 0)]
  if not set(present) & set(absent):
    only = [data.classes[c] for c in present]
    raise UserError(
      f"{name} split {split['train']!r} has images of one class only ({only}); a probe needs two: "
      "give the probe's data.train another split or source")

"""Keeps training away from the patients and the images that judge it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt64

from cxrjax.config.instantiate import suggest
from cxrjax.core import files, zoo
from cxrjax.core.errors import UserError
from cxrjax.data.base import SourceInfo
from cxrjax.data.sources import file_hashes
from cxrjax.data.splits import image_hashes, leakage, patient_splits
from cxrjax.evals.eval_splits import Data

FILE = "learnt.npz"  # in a workdir: hashes of the patients and images learnt from, see `Learnt`
CHOICES = ("error", "allow")
FIRST, PAIRS = 0.85, 1000  # at the start of a run: least first correlation, most pairs looked at


def shared_patients(train: Any, evaluations: Mapping[str, Data], choice: str) -> list[str]:
  """Refuses test images of patients that are learnt from; returns a remark for each evaluation.

  Args:
    train: the source that is learnt from.
    evaluations: what judges the run, by name; only their test images count.
    choice: `config.data.shared_patients`, "error" or "allow".

  Raises:
    UserError: there are such patients, and `choice` is "error".
  """
  if choice not in CHOICES:
    raise UserError(f"config.data.shared_patients={choice!r} is no option"
                    f"{suggest(str(choice), CHOICES)}")
  learnt = patient_splits.patient_keys(train)
  seen, told = set(learnt) - {""}, leakage.known(learnt, train.info)
  remarks = []
  for name, data in evaluations.items():
    test, info = test_patients(data)
    rows = [i for i, key in enumerate(test) if key in seen]
    both = len({test[i] for i in rows})
    if both and choice == "error":
      raise UserError(
        f"{both} patients ({len(rows)} images, e.g. {data.ids('test')[rows[0]]}) of "
        f"config.evals.{name}'s test split are in the training data {train.info.name} "
        f"[{train.info.split}], so results would flatter; train on another split, or set "
        "config.data.shared_patients='allow'")
    remarks.append(f"{name}: " + leakage.said(
      both, (leakage.known(test, info), told), ("test images", "training images"),
      some=f"{both} of {len(set(test) - {''})} test patients are in the training data",
      none="no patient of the test images is in the training data",
      whether="whether a patient of the test images is in the training data"))
  return remarks


def test_patients(data: Data) -> tuple[list[str], SourceInfo]:
  """Keys of the test images' patients, and the source they come from."""
  key, rows = data.rows["test"]
  keys = patient_splits.patient_keys(data.images[key])
  return [keys[i] for i in rows.tolist()], data.images[key].info


def near_duplicates(
    loader: Any, evaluations: Mapping[str, Data], threshold: float) -> list[str]:
  """Remarks on test images that are nearly the same as a training image.

  Args:
    loader: of the training images; only decoded ones are looked at.
    evaluations: what judges the run, by name.
    threshold: `config.data.near_duplicates`, a correlation (see `cxrjax.audit.duplicates`); 0 does
      not look. A run looks closely at the likeliest pairs only, an audit at all.
  """
  if not threshold:
    return []
  if loader.images is None:
    return ["near-duplicates were not looked for, as the training images are streamed: "
            "configs/audit.py finds them"]
  from cxrjax.audit import duplicates

  train = duplicates.of_images(loader.images)
  remarks = []
  for name, data in evaluations.items():
    key, rows = data.rows["test"]
    found = duplicates.across(
      train, duplicates.of_images(data.images[key], rows), threshold, FIRST, limit=PAIRS)
    if not len(found.i):
      remarks.append(f"{name}: no near-duplicate of a training image was found among the test "
                     "images")
      continue
    best = int(np.argmax(found.r))
    a = loader.images.table.ids[int(found.i[best])]
    b = data.images[key].table.ids[int(rows[int(found.j[best])])]
    remarks.append(
      f"{name}: {len(set(found.j.tolist()))} of {len(rows)} test images are near-duplicates of "
      f"training images (their detail correlates at {threshold:g} or more), e.g. {b} of {a} at "
      f"{found.r[best]:.3f}; configs/audit.py shows them")
  return remarks


@dataclasses.dataclass(frozen=True)
class Learnt:
  """What a run, and the one it started from, learnt from: kept in its workdir for later runs.

  Attributes:
    known: how far the patients were known.
    patients: of `leaks.remember`; empty in a run that is handed on.
    hashes: of `data.splits.image_hashes`, of the images that were decoded.
    unseen: images without a hash, as they were streamed.
  """

  known: leakage.Known
  patients: UInt64[np.ndarray, "_"]
  hashes: UInt8[np.ndarray, "n b"]
  unseen: int

  def save(self, file: pathlib.Path) -> None:
    """Writes it to a file."""
    np.savez(file, patients=self.patients, hashes=self.hashes, images=self.known.images,
             unknown=self.known.unknown, naming=np.array(self.known.naming), unseen=self.unseen)

  def without_patients(self) -> Learnt:
    """The same for others, to whom what is known of patients is of no use."""
    return dataclasses.replace(
      self, patients=self.patients[:0], known=leakage.Known(self.known.images, self.known.images, ()))


def remember(
    loader: Any, train: Any, workdir: pathlib.Path, before: str = "",
    cache_dir: str | None = None) -> None:
  """Notes in the workdir whose images were learnt from, as hashes, for later runs.

  Args:
    loader: of the training images.
    train: the source that is learnt from.
    workdir: of the run.
    before: workdir of the run that it started from; what that learnt from counts as well, its
      patients as unknown, since only that run's hashes tell them.
    cache_dir: where the secret lies that patients' hashes are made with.
  """
  keys = patient_splits.patient_keys(train)
  patients = leakage.remember(keys, file_hashes.patient_key(cache_dir))
  told = leakage.known(keys, train.info)
  shown, unseen = np.zeros((0, image_hashes.BYTES), np.uint8), len(keys)
  if loader.images is not None:
    shown, unseen = image_hashes.of_images(loader.images), 0
  if (old := learnt(before)) is not None:
    told = leakage.Known(told.images + old.known.images, told.unknown + old.known.images,
                       tuple(dict.fromkeys((*told.naming, *old.known.naming))))
    shown, unseen = np.concatenate([shown, old.hashes]), unseen + old.unseen
  Learnt(told, patients, shown, unseen).save(workdir / FILE)


def learnt(workdir: str) -> Learnt | None:
  """What a run learnt from; None where its workdir does not say.

  Raises:
    UserError: the file that says so is damaged.
  """
  file = zoo.place(workdir) / FILE
  if not workdir or not file.is_file():
    return None
  try:
    found = files.read_npz(file)
    known = leakage.Known(int(found["images"]), int(found["unknown"]),
                        tuple(map(str, found["naming"].tolist())))
    shapes = found["patients"].shape[1:], found["hashes"].shape[1:]
    if (found["patients"].dtype, found["hashes"].dtype) != (np.uint64, np.uint8) or (
        shapes != ((), (image_hashes.BYTES,))):
      raise files.Damaged("it has hashes of another kind")
    return Learnt(known, found["patients"], found["hashes"], int(found["unseen"]))
  except (OSError, ValueError, OverflowError, KeyError, TypeError) as error:
    raise UserError(f"{file} is damaged ({error}): it says what the run learnt from; train it "
                    "again, or start from its weights exported to a file") from error

"""Hashes of the patients and images that a run learnt from, kept in its workdir for later runs."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt64

from cxrjax.core import files, zoo
from cxrjax.core.errors import UserError
from cxrjax.data.sources import file_hashes
from cxrjax.data.splits import image_hashes, leakage, patient_splits

FILE = "learnt.npz"  # in a workdir: hashes of the patients and images learnt from, see `Learnt`


@dataclasses.dataclass(frozen=True)
class Learnt:
  """What a run, and the one it started from, learnt from: kept in its workdir for later runs.

  Attributes:
    known: how far the patients were known.
    patients: of `data.splits.leakage.remember`; empty in a run that is handed on.
    hashes: of `data.splits.image_hashes`, of the images that were decoded.
    unseen: images without a hash, as they were streamed.
  """

  known: leakage.Known
  patients: UInt64[np.ndarray, "_"]
  hashes: UInt8[np.ndarray, "n b"]
  unseen: int

  def save(self, file: pathlib.Path) -> None:
    """Writes it to a file."""
    np.savez(
      file,
      patients=self.patients,
      hashes=self.hashes,
      images=self.known.images,
      unknown=self.known.unknown,
      naming=np.array(self.known.naming),
      unseen=self.unseen,
    )

  def without_patients(self) -> Learnt:
    """The same for others, to whom what is known of patients is of no use."""
    return dataclasses.replace(
      self,
      patients=self.patients[:0],
      known=leakage.Known(self.known.images, self.known.images, ()),
    )


def remember(
  loader: Any, train: Any, workdir: pathlib.Path, before: str = "", cache_dir: str | None = None
) -> None:
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
    told = leakage.Known(
      told.images + old.known.images,
      told.unknown + old.known.images,
      tuple(dict.fromkeys((*told.naming, *old.known.naming))),
    )
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
    known = leakage.Known(
      int(found["images"]), int(found["unknown"]), tuple(map(str, found["naming"].tolist()))
    )
    shapes = found["patients"].shape[1:], found["hashes"].shape[1:]
    if (found["patients"].dtype, found["hashes"].dtype) != (np.uint64, np.uint8) or (
      shapes != ((), (image_hashes.BYTES,))
    ):
      raise files.Damaged("it has hashes of another kind")
    return Learnt(known, found["patients"], found["hashes"], int(found["unseen"]))
  except (OSError, ValueError, OverflowError, KeyError, TypeError) as error:
    raise UserError(
      f"{file} is damaged ({error}): it says what the run learnt from; train it "
      "again, or start from its weights exported to a file"
    ) from error

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
  """Hashes of what a run, and the run it started from, learnt from; kept for later runs.

  Attributes:
    known: how many of the patients were known.
    patients: from `data.splits.leakage.fingerprint`; empty in an exported run.
    hashes: from `data.splits.image_hashes`, of the images that were decoded.
    unseen: number of images without a hash, because they were streamed.
  """

  known: leakage.PatientCounts
  patients: UInt64[np.ndarray, "_"]
  hashes: UInt8[np.ndarray, "n b"]
  unseen: int

  def save(self, file: pathlib.Path) -> None:
    """Writes the hashes to a file."""
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
    """A copy to share, without patients, whose hashes are of no use to others."""
    return dataclasses.replace(
      self,
      patients=self.patients[:0],
      known=leakage.PatientCounts(self.known.images, self.known.images, ()),
    )


def remember(
  loader: Any, train: Any, workdir: pathlib.Path, before: str = "", cache_dir: str | None = None
) -> None:
  """Stores hashes of the patients and images learnt from in the workdir, for later runs.

  Args:
    loader: of the training images.
    train: the source that is learnt from.
    workdir: of the run.
    before: workdir of the run that it started from; what that learnt from counts as well, its
      patients as unknown, since only that run's hashes identify them.
    cache_dir: location of the secret key of the patients' hashes.
  """
  keys = patient_splits.patient_keys(train)
  patients = leakage.fingerprint(keys, file_hashes.patient_key(cache_dir))
  knowledge = leakage.count_known(keys, train.info)
  hashes, unseen = np.zeros((0, image_hashes.BYTES), np.uint8), len(keys)
  if loader.images is not None:
    hashes, unseen = image_hashes.of_images(loader.images), 0
  if (previous := learnt(before)) is not None:
    knowledge = leakage.PatientCounts(
      knowledge.images + previous.known.images,
      knowledge.unknown + previous.known.images,
      tuple(dict.fromkeys((*knowledge.naming, *previous.known.naming))),
    )
    hashes, unseen = np.concatenate([hashes, previous.hashes]), unseen + previous.unseen
  Learnt(knowledge, patients, hashes, unseen).save(workdir / FILE)


def learnt(workdir: str) -> Learnt | None:
  """Reads what a run learnt from; None if its workdir does not say.

  Raises:
    UserError: the file is damaged.
  """
  file = zoo.resolve_workdir(workdir) / FILE
  if not workdir or not file.is_file():
    return None
  try:
    arrays = files.read_npz(file)
    known = leakage.PatientCounts(
      int(arrays["images"]), int(arrays["unknown"]), tuple(map(str, arrays["naming"].tolist()))
    )
    shapes = arrays["patients"].shape[1:], arrays["hashes"].shape[1:]
    if (arrays["patients"].dtype, arrays["hashes"].dtype) != (np.uint64, np.uint8) or (
      shapes != ((), (image_hashes.BYTES,))
    ):
      raise files.Damaged("its hashes are of another kind")
    return Learnt(known, arrays["patients"], arrays["hashes"], int(arrays["unseen"]))
  except (OSError, ValueError, OverflowError, KeyError, TypeError) as error:
    raise UserError(
      f"{file} is damaged ({error}): it records the run's training data; train the run "
      "again, or start from its weights exported to a file"
    ) from error

"""Patients that training must not have seen: across sources, and across runs."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import UInt64

from cxrjax.data.base import Source, SourceInfo
from cxrjax.data.splits import patient_splits

_SALT = 2  # words of 64 bits at the beginning; then one that tells the secret


@dataclasses.dataclass(frozen=True)
class Known:
  """How far the patients of some images are known.

  Attributes:
    images: how many there are.
    unknown: those of them whose patient is unknown.
    naming: of `SourceInfo`.
  """

  images: int
  unknown: int
  naming: tuple[str, ...]


def known(keys: Sequence[str], info: SourceInfo) -> Known:
  """How far patients are known.

  Args:
    keys: of the images, of `splits.patient_keys`.
    info: of their source.
  """
  return Known(len(keys), sum(not key for key in keys), info.naming)


def said(
  shared: int, sets: Sequence[Known], names: Sequence[str], *, some: str, none: str, whether: str
) -> str:
  """The one sentence on patients in two sets of images, for terminal, pages and `run.json`.

  That there are none is said only where the patients of all images are known, by names that mean
  the same in all sets.

  Args:
    shared: patients that were found in two sets.
    sets: what is known of each.
    names: of the sets, as in "test images".
    some: what is said of shared patients, as in "3 of 12 test patients are in the training data".
    none: what is said where there are none.
    whether: what could not be checked, as in "whether a test patient is in the training data".
  """
  gaps = [
    f"of {k.unknown} of {k.images} {name}" for k, name in zip(sets, names, strict=True) if k.unknown
  ]
  gaps = [f"patients are not known {' and '.join(gaps)}"] if gaps else []
  namings = list(dict.fromkeys(n for k in sets for n in k.naming if k.unknown < k.images))
  if len(namings) > 1:
    gaps.append(f"{' and '.join(namings)} name patients each in a way of its own")
  if shared or not gaps:
    return "; ".join([some, *gaps] if shared else [none])
  told = "could be checked in part only, and none was found"
  if any(k.unknown == k.images for k in sets) or not set.intersection(
    *(set(k.naming) for k in sets)
  ):
    told = "could not be checked"
  return f"{', and '.join(gaps)}, so {whether} {told}"


def check(train: Sequence[Source], test: Source) -> tuple[str, ...]:
  """Patients of `test` that are in one of `train`, as `dataset/patient`, sorted.

  Unknown patients are never shared. A patient whom two data sets name differently is not found,
  for whom there are the near-duplicates of `cxrjax.audit.duplicates`; `said` tells what that means.

  Args:
    train: sources whose patients are learnt from.
    test: the source that will judge.
  """
  seen = {key for source in train for key in patient_splits.patient_keys(source)}
  return tuple(sorted((set(patient_splits.patient_keys(test)) & seen) - {""}))


def remember(keys: Iterable[str], secret: bytes) -> UInt64[np.ndarray, "_"]:
  """What a run keeps of its patients, so that a later run can tell whether it meets them again.

  A random salt, a word that tells whether a secret is the same, and 64-bit hashes (BLAKE2b, keyed
  with the secret, salted), ascending, each once. Without the secret a guessed name cannot be
  confirmed, nor can it be told whether two runs share patients; with it both can, which is what it
  is for. Two of a million patients are taken for one with a probability of 3e-8.

  Args:
    keys: of `splits.patient_keys`; empty ones do not count.
    secret: of `hashes.patient_key`.
  """
  salt = secrets.token_bytes(8 * _SALT)
  head = np.frombuffer(salt, "<u8").astype(np.uint64)
  found = np.unique(_hashes(sorted(set(keys) - {""}), secret, salt))
  return np.concatenate([head, _mark(secret, salt), found])


def overlap(
  remembered: UInt64[np.ndarray, "_"], keys: Iterable[str], secret: bytes
) -> tuple[str, ...] | None:
  """Those of `keys` that `remember` was given, sorted, each once.

  Args:
    remembered: of `remember`.
    keys: of `splits.patient_keys`; empty ones do not count.
    secret: that it was given.

  Returns:
    None where the secret is another, so that nothing can be told.
  """
  salt = remembered[:_SALT].astype("<u8").tobytes()
  if not np.array_equal(remembered[_SALT : _SALT + 1], _mark(secret, salt)):
    return None
  names = sorted(set(keys) - {""})
  found = np.isin(_hashes(names, secret, salt), remembered[_SALT + 1 :])
  return tuple(name for name, there in zip(names, found.tolist(), strict=True) if there)


def _mark(secret: bytes, salt: bytes) -> np.ndarray:
  return _hashes([""], secret, salt)  # which no patient is called


def _hashes(names: Sequence[str], secret: bytes, salt: bytes) -> np.ndarray:
  digests = b"".join(
    hashlib.blake2b(
      name.encode("utf-8", "surrogateescape"), digest_size=8, key=secret, salt=salt
    ).digest()
    for name in names
  )
  return np.frombuffer(digests, dtype="<u8").astype(np.uint64)

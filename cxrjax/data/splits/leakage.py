"""Patient leakage: finds patients shared by training and test, across sources and across runs."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import UInt64

from cxrjax.data.base import Source, SourceInfo
from cxrjax.data.splits import patient_splits

_SALT_WORDS = 2  # leading 64-bit words; the next one identifies the secret


@dataclasses.dataclass(frozen=True)
class PatientCounts:
  """How many images of a set have a known patient.

  Attributes:
    images: number of images.
    unknown: number of images with an unknown patient.
    naming: `SourceInfo.naming` of their source.
  """

  images: int
  unknown: int
  naming: tuple[str, ...]


def count_known(keys: Sequence[str], info: SourceInfo) -> PatientCounts:
  """Counts the images with a known patient.

  Args:
    keys: `splits.patient_keys` of the images.
    info: description of their source.
  """
  return PatientCounts(len(keys), sum(not key for key in keys), info.naming)


def summary(
  shared: int,
  sets: Sequence[PatientCounts],
  names: Sequence[str],
  *,
  some: str,
  none: str,
  whether: str,
) -> str:
  """Sentence on patients shared by sets of images, for terminal, pages and `run.json`.

  It states that there are none only if the patients of all images are known, by names that are
  comparable across all sets.

  Args:
    shared: number of patients found in two sets.
    sets: counts of known patients in each set.
    names: names of the sets, as in "test images".
    some: text if patients are shared, as in "3 of 12 test patients are in the training data".
    none: text if none are shared.
    whether: the open question, as in "whether a test patient is in the training data".
  """
  unknown = [
    f"for {k.unknown} of {k.images} {name}"
    for k, name in zip(sets, names, strict=True)
    if k.unknown
  ]
  gaps = [f"patients are unknown {' and '.join(unknown)}"] if unknown else []
  namings = list(dict.fromkeys(n for k in sets for n in k.naming if k.unknown < k.images))
  if len(namings) > 1:
    gaps.append(f"{' and '.join(namings)} name patients in different ways")
  if shared or not gaps:
    return "; ".join([some, *gaps] if shared else [none])
  outcome = "could only be checked in part, and none was found"
  shared_namings = set.intersection(*(set(k.naming) for k in sets))
  if any(k.unknown == k.images for k in sets) or not shared_namings:
    outcome = "could not be checked"
  return f"{', and '.join(gaps)}, so {whether} {outcome}"


def shared_patients(train: Sequence[Source], test: Source) -> tuple[str, ...]:
  """Patients of `test` that are in one of `train`, as `dataset/patient`, sorted.

  Unknown patients are never shared. A patient named differently by two data sets is not found; the
  near-duplicates of `cxrjax.audit.duplicates` cover those, and `said` reports the limitation.

  Args:
    train: training sources.
    test: the test source.
  """
  train_keys = {key for source in train for key in patient_splits.patient_keys(source)}
  test_keys = set(patient_splits.patient_keys(test))
  return tuple(sorted((test_keys & train_keys) - {""}))


def fingerprint(keys: Iterable[str], secret: bytes) -> UInt64[np.ndarray, "_"]:
  """Fingerprint of a run's patients, by which a later run recognizes them.

  A random salt, a word that identifies the secret, and unique, ascending 64-bit hashes (BLAKE2b,
  keyed with the secret, salted). Confirming a guessed name and comparing the patients of two runs
  are possible only with the secret. The probability that any two of a million patients collide is
  3e-8.

  Args:
    keys: `splits.patient_keys`; empty ones are ignored.
    secret: key from `file_hashes.patient_key`.
  """
  salt = secrets.token_bytes(8 * _SALT_WORDS)
  salt_words = np.frombuffer(salt, "<u8").astype(np.uint64)
  hashes = np.unique(_hashes(sorted(set(keys) - {""}), secret, salt))
  return np.concatenate([salt_words, _secret_mark(secret, salt), hashes])


def overlap(
  remembered: UInt64[np.ndarray, "_"], keys: Iterable[str], secret: bytes
) -> tuple[str, ...] | None:
  """Unique, sorted keys that were among those passed to `remember`.

  Args:
    remembered: result of `remember`.
    keys: `splits.patient_keys`; empty ones are ignored.
    secret: the secret passed to `remember`.

  Returns:
    The shared keys; None if the secret differs, so that they cannot be determined.
  """
  salt = remembered[:_SALT_WORDS].astype("<u8").tobytes()
  if not np.array_equal(remembered[_SALT_WORDS : _SALT_WORDS + 1], _secret_mark(secret, salt)):
    return None
  names = sorted(set(keys) - {""})
  is_shared = np.isin(_hashes(names, secret, salt), remembered[_SALT_WORDS + 1 :])
  return tuple(name for name, shared in zip(names, is_shared.tolist(), strict=True) if shared)


def _secret_mark(secret: bytes, salt: bytes) -> np.ndarray:
  return _hashes([""], secret, salt)  # no patient has an empty key


def _hashes(names: Sequence[str], secret: bytes, salt: bytes) -> np.ndarray:
  digests = b"".join(
    hashlib.blake2b(
      name.encode("utf-8", "surrogateescape"), digest_size=8, key=secret, salt=salt
    ).digest()
    for name in names
  )
  return np.frombuffer(digests, dtype="<u8").astype(np.uint64)

"""Patients that training must not have seen: across sources, and across runs."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import UInt64

from cxrjax.data import splits
from cxrjax.data.types import Source

_SALT = 2  # words of 64 bits at the beginning; then one that tells the secret


def check(train: Sequence[Source], test: Source) -> tuple[str, ...]:
  """Patients of `test` that are in one of `train`, as `dataset/patient`, sorted.

  Unknown patients are never shared. Two folders with different paths are two data sets, so a
  patient in both is not found; neither is a patient whom two data sets name differently, for whom
  there are the near-duplicates of `cxrjax.data.duplicates`.

  Args:
    train: sources whose patients are learnt from.
    test: the source that will judge.
  """
  seen = {key for source in train for key in splits.patient_keys(source)}
  return tuple(sorted((set(splits.patient_keys(test)) & seen) - {""}))


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
    remembered: UInt64[np.ndarray, "_"], keys: Iterable[str], secret: bytes,
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
  if not np.array_equal(remembered[_SALT:_SALT + 1], _mark(secret, salt)):
    return None
  names = sorted(set(keys) - {""})
  found = np.isin(_hashes(names, secret, salt), remembered[_SALT + 1:])
  return tuple(name for name, there in zip(names, found.tolist(), strict=True) if there)


def _mark(secret: bytes, salt: bytes) -> np.ndarray:
  return _hashes([""], secret, salt)  # which no patient is called


def _hashes(names: Sequence[str], secret: bytes, salt: bytes) -> np.ndarray:
  digests = b"".join(
    hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8, key=secret,
                    salt=salt).digest() for name in names)
  return np.frombuffer(digests, dtype="<u8").astype(np.uint64)

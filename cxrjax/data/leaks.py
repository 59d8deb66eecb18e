"""Patients that training must not have seen: across sources, and across runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import UInt64

from cxrjax.data import splits
from cxrjax.data.types import Source

_SALT = b"cxrjax/patients"


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


def remember(keys: Iterable[str]) -> UInt64[np.ndarray, "_"]:
  """What a run keeps of its patients, so that a later run can tell whether it meets them again.

  Salted 64-bit hashes (BLAKE2b), ascending, each once; no name can be read off them, nor how many
  images a patient has. They do not withstand a guess: whoever knows a name can test it, which is
  what they are for. Two of a million patients are taken for one with a probability of 3e-8.

  Args:
    keys: of `splits.patient_keys`; empty ones do not count.
  """
  return np.unique(_hashes(sorted(set(keys) - {""})))


def overlap(remembered: UInt64[np.ndarray, "_"], keys: Iterable[str]) -> tuple[str, ...]:
  """Those of `keys` that `remember` was given, sorted, each once.

  Args:
    remembered: of `remember`.
    keys: of `splits.patient_keys`; empty ones do not count.
  """
  names = sorted(set(keys) - {""})
  found = np.isin(_hashes(names), remembered)
  return tuple(name for name, there in zip(names, found.tolist(), strict=True) if there)


def _hashes(names: Sequence[str]) -> np.ndarray:
  digests = b"".join(
    hashlib.blake2b(name.encode(), digest_size=8, key=_SALT).digest() for name in names)
  return np.frombuffer(digests, dtype="<u8").astype(np.uint64)

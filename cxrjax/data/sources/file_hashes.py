"""Facts from one read of each image file, for millions of files.

Its hash, and age, sex, view and patient of a DICOM header, in numeric columns without names: a
patient is a keyed hash.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import io
import os
import secrets
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tqdm
from jaxtyping import Bool, Float32, Int64, UInt8

from cxrjax.core import cache_folder
from cxrjax.core.atomic_files import atomic_open
from cxrjax.core.errors import UserError
from cxrjax.data.decoding import decode, dicom, worker_pool

SEXES, VIEWS = ("", "F", "M"), ("", "PA", "AP", "L")  # indexed by code; empty is unknown
KEY = "CXRJAX_PATIENT_KEY"  # environment variable: a secret that keeps patient names stable
_DIGEST = 16  # bytes kept of a SHA-256
FRESH = 2_000_000_000  # ns; the coarsest tick of a file system's clock
_BLOCK = 64  # files per task of a thread
_SAVE_EVERY = 50_000  # files between saves


class Facts:
  """Columns of facts read from each of `n` files; row `i` is file `i`.

  Attributes:
    known: whether the file was read.
    digests: the first 16 bytes of the SHA-256 of its bytes.
    ages: from a DICOM header, in years; NaN where unknown.
    patients: keyed hash of a DICOM header's patient; zeros where there is none.
    sex_codes, view_codes: indices into SEXES and VIEWS.
  """

  COLUMNS = ("known", "digests", "ages", "patients", "sex_codes", "view_codes")

  def __init__(self, n: int):
    self.known: Bool[np.ndarray, "n"] = np.zeros(n, bool)
    self.digests: UInt8[np.ndarray, "n 16"] = np.zeros((n, _DIGEST), np.uint8)
    self.ages: Float32[np.ndarray, "n"] = np.full(n, np.nan, np.float32)
    self.patients: UInt8[np.ndarray, "n 16"] = np.zeros((n, 16), np.uint8)
    self.sex_codes: UInt8[np.ndarray, "n"] = np.zeros(n, np.uint8)
    self.view_codes: UInt8[np.ndarray, "n"] = np.zeros(n, np.uint8)

  def take_over(
    self, other: Facts, mine: Int64[np.ndarray, "_"], theirs: Int64[np.ndarray, "_"]
  ) -> None:
    """Copies the rows `theirs` of `other` to the rows `mine`."""
    for name in self.COLUMNS:
      getattr(self, name)[mine] = getattr(other, name)[theirs]

  def learn(
    self,
    rows: Int64[np.ndarray, "_"],
    opened: Callable[[int], contextlib.AbstractContextManager],
    key: bytes,
    save: Callable[[], None],
    doing: str,
  ) -> None:
    """Reads the files that have not been read yet; unreadable files stay unknown.

    Args:
      rows: rows of the files.
      opened: opens the file of a row for reading.
      key: secret key of the patients' hashes.
      save: saves the facts; called periodically.
      doing: label of the progress bar.
    """
    rows = rows[~self.known[rows]]
    if not len(rows):
      return

    def read_row(row: int) -> None:
      with contextlib.suppress(OSError, UserError), opened(row) as file:
        self._read(row, file, key)

    in_threads(rows, read_row, doing, save)

  def _read(self, row: int, file: io.BufferedIOBase, key: bytes) -> None:
    start = file.read(dicom.START)
    if dicom.is_dicom(start):
      file.seek(0)
      with contextlib.suppress(decode.BadImage):  # reported when its pixels are decoded
        header = dicom.read(file, pixels=False, key=key)
        self.ages[row] = np.nan if header.age is None else header.age
        self.patients[row] = np.frombuffer(bytes.fromhex(header.patient or "00" * 16), np.uint8)
        self.sex_codes[row] = SEXES.index(header.sex)
        self.view_codes[row] = VIEWS.index(header.view)
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").digest()
    self.digests[row] = np.frombuffer(digest[:_DIGEST], np.uint8)
    self.known[row] = True


def file_state(found: os.stat_result) -> tuple[int, int, int]:
  """Size in bytes, modification time and change time (ctime) in ns of a file."""
  return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def maybe_stale(states: Any, looked: int) -> Any:
  """Whether a later write within the same clock tick would leave the state of files unchanged.

  Args:
    states: of the files, a tuple or columns.
    looked: when they were read, in ns.
  """
  return np.maximum(states[1], states[2]) >= looked - FRESH


def in_threads(
  rows: Int64[np.ndarray, "_"],
  one: Callable[[int], None],
  doing: str,
  save: Callable[[], None] | None = None,
) -> None:
  """Calls `one` with each row, in threads; shows a progress bar after two seconds."""

  def run_block(block: np.ndarray) -> int:
    for row in block.tolist():
      one(row)
    return len(block)

  bar = tqdm.tqdm(
    total=len(rows),
    desc=doing,
    unit=" files",
    file=sys.stderr,
    delay=2,
    mininterval=0.5,
    dynamic_ncols=True,
    leave=False,
  )
  with bar, concurrent.futures.ThreadPoolExecutor(worker_pool.num_threads()) as pool:
    for start in range(0, len(rows), _SAVE_EVERY):
      part = rows[start : start + _SAVE_EVERY]
      blocks = [part[i : i + _BLOCK] for i in range(0, len(part), _BLOCK)]
      for count in pool.map(run_block, blocks):
        bar.update(count)
      if save is not None:
        save()


def patient_key(cache_dir: str | os.PathLike | None = None) -> bytes:
  """Secret key of the patients' hashes: from the environment, or kept in the cache folder."""
  secret = os.environ.get(KEY, "")
  if secret:
    return hashlib.sha256(secret.encode()).digest()
  file = cache_folder.cache_root(cache_dir) / "patients.key"
  with contextlib.suppress(OSError):
    if not file.exists():
      with atomic_open(file, private=True) as opened:
        opened.write(secrets.token_bytes(32))
    key = file.read_bytes()
    if len(key) == 32:
      return key
  return secrets.token_bytes(32)

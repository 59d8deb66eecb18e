"""Display names of images: their paths, with patients' IDs and names removed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from cxrjax.core import tables
from cxrjax.core.atomic_files import atomic_open
from cxrjax.data.sources import dicom_keys, folder_index

_IDENTITIES = ("PatientID", "PatientName", "AccessionNumber")
_MIN_LENGTH = 4  # letters that part of a file name must have to be taken for an identity
_MAX_WORDS = 3  # words of an ID or a name that is only part of a file name
_cache: dict[bytes, ShownNames] = {}  # the latest only; a run opens every split of a folder


class ShownNames:
  """Paths as displayed: patients' IDs and names, as found in DICOM headers, are replaced.

  Args:
    index: the images.

  Attributes:
    names: path of each of `index.images`, with any patient ID, name or accession number replaced by
      `patient3` or the like. Patients are numbered in the order of the paths.
    note: remark on replaced paths; empty if there are none.
  """

  def __init__(self, index: folder_index.Index):
    rows = index.images
    paths = [index.paths[row] for row in rows.tolist()]
    self.names, self.note = paths, ""
    self._hidden: dict[str, str] = {}  # path of a folder or file -> its displayed name
    self._key = index.key
    self._numbers: dict[bytes, int] = {}  # hashed identity -> number of the patient
    self._matches: dict[str, list[tuple[int, int, bytes]]] = {}
    medical = np.flatnonzero(index.kinds[rows] == folder_index.MEDICAL)
    if not len(medical):
      return
    digests = dicom_keys.digests(index, rows[medical], _IDENTITIES, _letters)
    identities = [[value.tobytes() for value in row if value.any()] for row in digests]
    patient_numbers: dict[bytes, int] = {}
    for values in filter(None, identities):
      number = patient_numbers.setdefault(values[0], len(patient_numbers) + 1)
      for value in values:
        self._numbers.setdefault(value, number)
    for i, values in zip(medical.tolist(), identities, strict=True):
      if values:
        self._hide(paths[i], dict.fromkeys(values, patient_numbers[values[0]]))
    if not self._hidden:
      return
    self.names = _unique([self.hide(path) for path in paths])
    self.note = self._keep_originals(index, paths)

  def _keep_originals(self, index: folder_index.Index, paths: Sequence[str]) -> str:
    """Writes the replaced paths to a private file; returns the remark on them."""
    changed = [(new, old) for new, old in zip(self.names, paths, strict=True) if new != old]
    note = (
      f"{len(changed)} paths contain a patient's ID or name from the DICOM headers; they are shown "
      "with patient1, ... in its place"
    )
    file = index.memory.with_name(f"{index.memory.stem}.names.csv")
    # Kept beside the index, which contains the paths anyway; readable by its owner only.
    with contextlib.suppress(OSError), atomic_open(file, private=True) as opened:
      text = io.StringIO()
      tables.write(text, [("shown", "path"), *changed])
      opened.write(text.getvalue().encode("utf-8", "surrogateescape"))
      note += f"; {file} lists the originals"
    return note

  def hide(self, path: str, anybody: bool = False) -> str:
    """Displayed form of any path of the folder.

    Args:
      path: path below the root.
      anybody: replace the identities of all patients, for files that are not images.
    """
    parts, numbers = path.split("/"), self._numbers if anybody else {}
    return "/".join(
      self._hidden.get("/".join(parts[: k + 1]), self._clean(part, numbers))
      for k, part in enumerate(parts)
    )

  def hide_listed(self, path: str, line: int) -> str:
    """Displayed form of a path listed by a table but missing, which may be of any patient."""
    return f"a path on line {line}" if self._hidden else self.hide(path, anybody=True)

  def _clean(self, part: str, numbers: Mapping[bytes, int]) -> str:
    """Replaces the identities in `numbers` in one part of a path."""
    clean, position = "", 0
    for start, end, value in self._identities_in(part):
      if value in numbers and start >= position:
        clean, position = f"{clean}{part[position:start]}patient{numbers[value]}", end
    return clean + part[position:]

  def _hide(self, path: str, numbers: Mapping[bytes, int]) -> None:
    """Records the parts of a path that contain one of a patient's identities."""
    parts = path.split("/")
    for k, part in enumerate(parts):
      if (clean := self._clean(part, numbers)) != part:
        self._hidden["/".join(parts[: k + 1])] = clean

  def _identities_in(self, part: str) -> list[tuple[int, int, bytes]]:
    """Start, end and hash of each known identity in a part of a path, longest first per start."""
    if part not in self._matches:
      words = [*re.finditer(r"[^\W_]+", part)]
      matches = self._matches[part] = []
      for k, first in enumerate(words):
        remaining = len(words) - k
        lengths = {*range(1, min(_MAX_WORDS, remaining) + 1), remaining}
        for length in sorted(lengths, reverse=True):
          start, end = first.start(), words[k + length - 1].end()
          text = _letters(part[start:end])
          if len(text) >= _MIN_LENGTH or length == len(words):
            value = dicom_keys.hashed(text, self._key)
            if value in self._numbers:
              matches.append((start, end, value))
    return self._matches[part]


def for_index(index: folder_index.Index) -> ShownNames:
  """Display names of a folder's images; those of the latest set of files are cached."""
  if not (index.kinds == folder_index.MEDICAL).any():
    return ShownNames(index)
  stamp = hashlib.sha256(
    b"".join(
      [
        index.key,
        bytes(str(index.memory), "utf-8"),
        index.states.tobytes(),
        index.kinds.tobytes(),
        *(path.encode("utf-8", "surrogateescape") + b"\0" for path in index.paths),
      ]
    )
  ).digest()
  if stamp not in _cache:
    _cache.clear()
    _cache[stamp] = ShownNames(index)
  return _cache[stamp]


def _unique(names: list[str]) -> list[str]:
  """Makes names unique by numbering repeated ones."""
  counts: Counter[str] = Counter()
  unique = []
  for name in names:
    counts[name] += 1
    unique.append(f"{name}~{counts[name]}" if counts[name] > 1 else name)
  return unique


def _letters(text: str) -> str:
  """Letters and digits only, in lower case: `DOE^JANE` and `doe_jane` are equal."""
  return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).casefold())

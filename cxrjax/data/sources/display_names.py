"""What images are called for others to see: by their paths, without anybody's ID or name."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping

import numpy as np

from cxrjax.core import tables
from cxrjax.data.sources import dicom_keys, file_hashes, folder_index

_IDENTITIES = ("PatientID", "PatientName", "AccessionNumber")
_SHORT = 4  # letters that a part of a name must have to be taken for somebody's number
_WORDS = 3  # that an ID or a name may have beside others in the name of a file
_known: dict[bytes, ShownNames] = {}  # the last one; a run opens every split of a folder


class ShownNames:
  """Paths as they are shown: a patient's ID or name in them, as DICOM headers have it, is replaced.

  Args:
    index: the images.

  Attributes:
    names: of each of `index.images` its path, with `patient3` where that has somebody's ID, name or
      accession number. Patients are numbered in the order of the paths.
    note: what a reader should know of it; empty where all is as it was.
  """

  def __init__(self, index: folder_index.Index):
    rows = index.images
    paths = [index.paths[row] for row in rows.tolist()]
    self.names, self.note = paths, ""
    self._hidden: dict[str, str] = {}  # folders and files as they are, and as they are shown
    self._key = index.key
    self._numbers: dict[bytes, int] = {}  # of everybody's values
    self._stretches: dict[str, list[tuple[int, int, bytes]]] = {}
    medical = np.flatnonzero(index.kinds[rows] == folder_index.MEDICAL)
    if not len(medical):
      return
    found = dicom_keys.digests(index, rows[medical], _IDENTITIES, _letters)
    each = [[value.tobytes() for value in row if value.any()] for row in found]
    numbers: dict[bytes, int] = {}
    for own in filter(None, each):
      number = numbers.setdefault(own[0], len(numbers) + 1)
      for value in own:
        self._numbers.setdefault(value, number)
    for i, own in zip(medical.tolist(), each, strict=True):
      if own:
        self._hide(paths[i], dict.fromkeys(own, numbers[own[0]]))
    if not self._hidden:
      return
    self.names = _unique([self.hide(path) for path in paths])
    changed = [(new, old) for new, old in zip(self.names, paths, strict=True) if new != old]
    self.note = (
      f"{len(changed)} paths have a patient's ID or name in them, as DICOM headers have "
      "it; here they are shown with patient1, ... in its place"
    )
    file = index.memory.with_name(f"{index.memory.stem}.names.csv")
    # It lies beside the index, which has the paths as well, and is readable by its owner only.
    with contextlib.suppress(OSError), file_hashes.written(file) as opened:
      text = io.StringIO()
      tables.write(text, [("shown", "path"), *changed])
      opened.write(text.getvalue().encode("utf-8", "surrogateescape"))
      self.note += f", and {file} says which is which"

  def hide(self, path: str, anybody: bool = False) -> str:
    """Any path of the folder as it may be shown.

    Args:
      path: below the root.
      anybody: of a file that is no image: whosever ID or name is in it.
    """
    parts, numbers = path.split("/"), self._numbers if anybody else {}
    return "/".join(
      self._hidden.get("/".join(parts[: k + 1]), self._clean(part, numbers))
      for k, part in enumerate(parts)
    )

  def hide_listed(self, path: str, line: int) -> str:
    """The same of a path that a table names and that is not there: it may be of anybody."""
    return f"a path on line {line}" if self._hidden else self.hide(path, anybody=True)

  def _clean(self, part: str, numbers: Mapping[bytes, int]) -> str:
    """A part of a path in which the values that `numbers` has are replaced."""
    clean, at = "", 0
    for start, end, value in self._of(part):
      if value in numbers and start >= at:
        clean, at = f"{clean}{part[at:start]}patient{numbers[value]}", end
    return clean + part[at:]

  def _hide(self, path: str, own: Mapping[bytes, int]) -> None:
    """Notes the parts of a path in which one of a patient's values stands."""
    parts = path.split("/")
    for k, part in enumerate(parts):
      if (clean := self._clean(part, own)) != part:
        self._hidden["/".join(parts[: k + 1])] = clean

  def _of(self, part: str) -> list[tuple[int, int, bytes]]:
    """Where somebody's values stand in a part of a path, the longest first at each place."""
    if part not in self._stretches:
      words = [*re.finditer(r"[^\W_]+", part)]
      found = self._stretches[part] = []
      for k, first in enumerate(words):
        for length in sorted({*range(1, min(_WORDS, len(words) - k) + 1), len(words) - k})[::-1]:
          start, end = first.start(), words[k + length - 1].end()
          text = _letters(part[start:end])
          if len(text) >= _SHORT or length == len(words):
            value = dicom_keys.hashed(text, self._key)
            if value in self._numbers:
              found.append((start, end, value))
    return self._stretches[part]


def of(index: folder_index.Index) -> ShownNames:
  """The names of a folder's images; of the same files as before, those made before."""
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
  if stamp not in _known:
    _known.clear()
    _known[stamp] = ShownNames(index)
  return _known[stamp]


def _unique(names: list[str]) -> list[str]:
  """Names that are not the same, numbered where two were."""
  taken: Counter[str] = Counter()
  found = []
  for name in names:
    taken[name] += 1
    found.append(f"{name}~{taken[name]}" if taken[name] > 1 else name)
  return found


def _letters(text: str) -> str:
  """Letters and digits alone: `DOE^JANE` and `doe_jane` are one."""
  return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).casefold())

"""Texts of tables: which mean that nothing is known, and which are probably one."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

# What spreadsheets, databases and libraries write for a value that is not there; in lower case.
UNKNOWN = frozenset(
  (
    "",
    "nan",
    "na",
    "n/a",
    "n.a.",
    "<na>",
    "#n/a",
    "#na",
    "nat",
    "none",
    "null",
    "nil",
    "(null)",
    "unknown",
    "?",
  )
)
_SHOWN = 4


def is_unknown(text: str) -> bool:
  """Whether a cell says that its value is not known: the same words in every column."""
  return text.strip().casefold() in UNKNOWN


def fold(text: str) -> str:
  """What spellings of one thing have in common: `Normal`, `normal `; `7`, `7.0`, `007`; accents."""
  text = re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", text).strip()).casefold()
  number = re.fullmatch(r"0*(\d+?)(?:\.0*)?", text)
  return number[1] if number else text


def alike(values: Iterable[str]) -> list[dict[str, int]]:
  """Spellings that are probably one, with how often each occurs; the most frequent first."""
  groups: dict[str, dict[str, int]] = {}
  for text, n in Counter(values).most_common():
    if not is_unknown(text):
      groups.setdefault(fold(text), {})[text] = n
  return [group for group in groups.values() if len(group) > 1]


def counted(texts: Mapping[str, int]) -> str:
  """`'Normal' (30) and 'normal' (2)`."""
  return " and ".join(f"{text!r} ({n})" for text, n in texts.items())


def notes(values: Iterable[str], one: str, of: str) -> list[str]:
  """Remarks on spellings that are probably one.

  Args:
    values: of all images.
    one: what a value is, such as "class".
    of: where they are from.
  """
  found = alike(values)
  told = [
    f"{of}: {counted(group)} are probably one {one}, and count as {len(group)}; spell them alike"
    for group in found[:_SHOWN]
  ]
  more = len(found) - _SHOWN
  return [*told, f"{of}: {more} more of such spellings"] if more > 0 else told

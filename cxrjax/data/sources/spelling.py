"""Recognizes table cells that mean unknown, and different spellings of the same value."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

# Placeholders of spreadsheets, databases and libraries for missing values, in lower case.
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
_MAX_NOTES = 4


def is_unknown(text: str) -> bool:
  """Whether a cell means that its value is unknown; the words are the same for every column."""
  return text.strip().casefold() in UNKNOWN


def fold(text: str) -> str:
  """Normal form of a text, equal for `Normal` and `normal `; `7`, `7.0` and `007`; accents."""
  text = re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", text).strip()).casefold()
  number = re.fullmatch(r"0*(\d+?)(?:\.0*)?", text)
  return number[1] if number else text


def alike(values: Iterable[str]) -> list[dict[str, int]]:
  """Groups of spellings that probably mean the same, with counts; the most frequent first."""
  groups: dict[str, dict[str, int]] = {}
  for text, n in Counter(values).most_common():
    if not is_unknown(text):
      groups.setdefault(fold(text), {})[text] = n
  return [group for group in groups.values() if len(group) > 1]


def counted(texts: Mapping[str, int]) -> str:
  """Texts with their counts: `'Normal' (30) and 'normal' (2)`."""
  return " and ".join(f"{text!r} ({n})" for text, n in texts.items())


def notes(values: Iterable[str], one: str, of: str) -> list[str]:
  """Notes on spellings that probably mean the same.

  Args:
    values: one value per image.
    one: noun for a value, such as "class".
    of: origin of the values, such as the table's name.
  """
  groups = alike(values)
  messages = [
    f"{of}: {counted(group)} are probably one {one}, and count as {len(group)}; spell them alike"
    for group in groups[:_MAX_NOTES]
  ]
  omitted = len(groups) - _MAX_NOTES
  if omitted > 0:
    messages.append(f"{of}: {omitted} more of such spellings")
  return messages

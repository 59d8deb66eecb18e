"""Names that others chose, as they can be shown: nothing in them steers a terminal or a page."""

from __future__ import annotations

import re

# What is not seen or moves what is seen: control characters, marks of the direction of writing and
# of no width, separators of lines, tags; and halves of pairs, as bytes that are no text come.
_HIDDEN = re.compile(
  "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff"
  "\U000e0000-\U000e007f]"
)
_HALVES = re.compile("[\ud800-\udfff]")  # no text, and what looks as if it were:
_NO_TEXT = re.compile(r"[\ud800-\udfff]|\\(x[0-9a-f]{2}|u[0-9a-f]{4}|\\)")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def shown(text: str, keep: str = "") -> str:
  r"""The text with what is not seen written out: ESC as `\x1b`, U+202E as `\u202e`.

  Args:
    text: of a name, say.
    keep: characters that stay, such as a newline between lines.
  """
  if not _HIDDEN.search(text):
    return text
  return _HIDDEN.sub(lambda match: match[0] if match[0] in keep else _written(match[0]), text)


def identifier(name: str) -> str:
  r"""A path as text: as it is, but for bytes that are no UTF-8, which become `\xff`.

  No two paths have the same: in a path with such bytes, or with what looks like them, a backslash
  is doubled.
  """
  if not _NO_TEXT.search(name):
    return name
  return _HALVES.sub(lambda match: _written(match[0]), name.replace("\\", "\\\\"))


def _written(char: str) -> str:
  code = ord(char)
  if 0xDC80 <= code <= 0xDCFF:  # a byte of a file's name
    code -= 0xDC00
  if char in _SHORT:
    return _SHORT[char]
  if code < 256:
    return f"\\x{code:02x}"
  return f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"

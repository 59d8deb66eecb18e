"""Escapes untrusted names, so that nothing in them can control a terminal or a page."""

from __future__ import annotations

import re

# Invisible characters, and those that rearrange visible ones: control characters, directional and
# zero-width marks, line separators, tags; and surrogates, which stand for bytes that are not UTF-8.
_HIDDEN = re.compile(
  "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff"
  "\U000e0000-\U000e007f]"
)
_SURROGATES = re.compile("[\ud800-\udfff]")  # bytes that are not UTF-8
# Surrogates, and text that looks like their escapes.
_AMBIGUOUS = re.compile(r"[\ud800-\udfff]|\\(x[0-9a-f]{2}|u[0-9a-f]{4}|\\)")
_SHORT_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escape(text: str, keep: str = "") -> str:
  r"""Escapes invisible characters: ESC as `\x1b`, U+202E as `\u202e`.

  Args:
    text: a name, for instance.
    keep: characters that stay as they are, such as newlines.
  """
  if not _HIDDEN.search(text):
    return text
  return _HIDDEN.sub(lambda match: match[0] if match[0] in keep else _escape(match[0]), text)


def identifier(name: str) -> str:
  r"""Converts a path to text: unchanged, except for bytes that are not UTF-8, as `\xff`.

  The text is unique: in a path with such bytes, or with text that looks like their escapes,
  backslashes are doubled.
  """
  if not _AMBIGUOUS.search(name):
    return name
  return _SURROGATES.sub(lambda match: _escape(match[0]), name.replace("\\", "\\\\"))


def _escape(char: str) -> str:
  code = ord(char)
  if 0xDC80 <= code <= 0xDCFF:  # an undecodable byte of a file name
    code -= 0xDC00
  if char in _SHORT_ESCAPES:
    return _SHORT_ESCAPES[char]
  if code < 256:
    return f"\\x{code:02x}"
  return f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"

"""Parses the part of `--config=file.py:arg` after the colon."""

from __future__ import annotations

import ast
from typing import Any

from cxrjax.core.errors import UserError, suggest


def literal(text: str) -> Any:
  """Parses a Python literal (number, boolean, None, tuple, list); other text is returned as is."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def split_items(arg: str | None) -> list[str]:
  """Splits an argument at its commas, but for those within brackets or quotes."""
  items, start, depth, quote = [], 0, 0, ""
  text = arg or ""
  for i, character in enumerate(text):
    if quote:
      quote = "" if character == quote else quote
    elif character in "'\"":
      quote = character
    elif character in "([{":
      depth += 1
    elif character in ")]}":
      depth = max(0, depth - 1)
    elif character == "," and not depth:
      items.append(text[start:i])
      start = i + 1
  return [item for item in (*items, text[start:]) if item]


def parse_arg(arg: str | None, **defaults: Any) -> dict[str, Any]:
  """Overrides `defaults` by an argument such as `"tiny,model=S,image_size=96"`.

  A bare word sets a boolean option to True; values are read as Python literals where possible,
  else as text. An option keeps the type of its default.

  Raises:
    UserError: an option that is not among `defaults`, or a value of the wrong type.
  """
  values = dict(defaults)
  for item in split_items(arg):
    name, equals, text = item.partition("=")
    name = name.strip()
    if name not in defaults:
      raise UserError(
        f"--config=...:{item} is not an option of this config{suggest(name, defaults)}"
      )
    value: Any = True
    if equals:
      value = literal(text)
    default_type = type(defaults[name])
    if default_type is float and isinstance(value, int) and not isinstance(value, bool):
      value = float(value)
    if default_type is str and not isinstance(value, str):
      value = text
    if defaults[name] is not None and not isinstance(value, default_type):
      raise UserError(
        f"--config=...:{item} must be of type {default_type.__name__}, like {defaults[name]!r}"
      )
    values[name] = value
  return values

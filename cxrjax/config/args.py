"""The part of `--config=file.py:arg` after the colon."""

from __future__ import annotations

import ast
from typing import Any

from cxrjax.core.errors import UserError, suggest


def literal(text: str) -> Any:
  """A number, truth value, None, tuple or list that is written as in Python; else the text."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def parse_arg(arg: str | None, **defaults: Any) -> dict[str, Any]:
  """`"tiny,model=S,image_size=96"` over `defaults`.

  A bare word sets a boolean option to True; values are read as Python literals where they are
  one, else as text. The type of a default is kept.

  Raises:
    UserError: an option that is not among `defaults`, or a value of the wrong type.
  """
  values = dict(defaults)
  for item in filter(None, (arg or "").split(",")):
    name, equals, text = item.partition("=")
    name = name.strip()
    if name not in defaults:
      raise UserError(
        f"--config=...:{item} is not an option of this config{suggest(name, defaults)}"
      )
    value: Any = True
    if equals:
      value = literal(text)
    kind = type(defaults[name])
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
      value = float(value)
    if kind is str and not isinstance(value, str):
      value = text
    if defaults[name] is not None and not isinstance(value, kind):
      raise UserError(
        f"--config=...:{item} must be of type {kind.__name__}, like {defaults[name]!r}"
      )
    values[name] = value
  return values

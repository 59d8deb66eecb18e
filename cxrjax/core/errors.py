"""The exception for mistakes that a user can fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from cxrjax.core.text import escape


class UserError(Exception):
  """A mistake in a config, a file or the machine: one line that names it and how to fix it.

  `cxrjax.main` prints it as `error: ...` and exits with status 2, without a traceback. File names
  in it are escaped by `cxrjax.core.text.escape`.
  """

  def __str__(self) -> str:
    return escape(super().__str__())


def suggest(word: str, valid: Iterable[str]) -> str:
  """Formats `; did you mean 'x'?`, where a close match exists, and the list of valid words."""
  valid = sorted(valid)
  close = difflib.get_close_matches(word, valid, n=1)
  hint = f"; did you mean {close[0]!r}?" if close else ""
  return f"{hint} valid: {', '.join(valid)}" if hint else f"; valid: {', '.join(valid)}"

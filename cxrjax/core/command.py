"""What every command has in common: lines for the user, one line for a mistake, an exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from cxrjax.core.errors import UserError
from cxrjax.core.text import shown


def say(line: str) -> None:
  """Prints a line or several, at once; names in it cannot steer the terminal."""
  print(shown(line, keep="\n\t"), flush=True)  # noqa: T201


def run(command: Callable[[], int | None]) -> NoReturn:
  """Ends the program by a command's exit status; 2 and one line on stderr for a UserError."""
  try:
    sys.exit(command())
  except UserError as error:
    sys.stderr.write(f"error: {error}\n")
    sys.exit(2)

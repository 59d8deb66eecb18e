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


def stop(error: object) -> NoReturn:
  """Ends the program by status 2 and one line on stderr."""
  sys.stderr.write(f"error: {shown(' '.join(str(error).split()))}\n")
  sys.exit(2)


def run(command: Callable[[], int | None]) -> NoReturn:
  """Ends the program by a command's exit status; see `stop` for a UserError."""
  try:
    sys.exit(command())
  except UserError as error:
    stop(error)

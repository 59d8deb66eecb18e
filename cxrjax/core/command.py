"""Shared parts of all commands: output lines, one-line errors and the exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from cxrjax.core.errors import UserError
from cxrjax.core.text import escape


def say(line: str) -> None:
  """Prints one or more lines and flushes; names in them cannot control the terminal."""
  print(escape(line, keep="\n\t"), flush=True)  # noqa: T201


def stop(error: object) -> NoReturn:
  """Exits with status 2 and one line on stderr."""
  sys.stderr.write(f"error: {escape(' '.join(str(error).split()))}\n")
  sys.exit(2)


def run(command: Callable[[], int | None]) -> NoReturn:
  """Runs a command and exits with its status; a UserError ends as in `stop`."""
  try:
    sys.exit(command())
  except UserError as error:
    stop(error)

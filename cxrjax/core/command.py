"""Shared parts of all commands: output lines, one-line errors and the exit status."""

from __future__ import annotations

import os
import signal
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
    status = command()
    sys.stdout.flush()
  except UserError as error:
    stop(error)
  except BrokenPipeError:  # its reader, such as `head`, has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    status = 128 + signal.SIGPIPE
  sys.exit(status)

"""Files that are replaced atomically: a reader, or a kill, sees the old file or the new one."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import BinaryIO

# Names of unfinished files, which only a killed process leaves behind.
LEFTOVERS = ".*.tmp"


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Temporary path, in the same folder, that replaces `path` when the block ends without an error.

  The folder is created if missing.
  """
  target = pathlib.Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
  try:
    yield temporary
    temporary.replace(target)
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_open(path: str | os.PathLike[str], *, private: bool = False) -> Iterator[BinaryIO]:
  """Opens a file for writing; it replaces `path`, flushed to disk, as in `atomic_path`.

  Args:
    path: of the file.
    private: only its owner may read it.
  """
  with atomic_path(path) as temporary:
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
    with os.fdopen(handle, "wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())

"""Content hashes of files, remembered by size and time: only changed files are read again."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Sequence

from cxrjax.data import store


def content_hashes(
    files: Sequence[pathlib.Path], cache_dir: str | os.PathLike | None = None) -> list[str]:
  """SHA-256 of each file's bytes; an empty string for a file that cannot be read.

  Hashes are kept in the cache folder with each file's size and modification time. That memory is a
  convenience: where it cannot be read or written, the files are read.
  """
  if not files:
    return []
  parents = "\n".join(sorted({str(f.parent.resolve()) for f in files}))
  memory = (store.cache_root(cache_dir) / "hashes" /
            f"{hashlib.sha256(parents.encode()).hexdigest()[:24]}.json")
  known: dict[str, list] = {}
  with contextlib.suppress(OSError, ValueError):
    known = json.loads(memory.read_text())

  def one(file: pathlib.Path) -> tuple[str, list]:
    name = str(file.resolve())
    try:
      stat = file.stat()
      state = [stat.st_size, stat.st_mtime_ns]
      if known.get(name, [])[:2] == state:
        return name, known[name]
      with open(file, "rb") as opened:
        return name, [*state, hashlib.file_digest(opened, "sha256").hexdigest()]
    except OSError:
      return name, [-1, -1, ""]

  with concurrent.futures.ThreadPoolExecutor(store.workers()) as pool:
    found = list(pool.map(one, files))
  if any(known.get(name) != entry for name, entry in found):
    with contextlib.suppress(OSError):
      memory.parent.mkdir(parents=True, exist_ok=True)
      handle, temporary = tempfile.mkstemp(dir=memory.parent)
      with os.fdopen(handle, "w") as opened:
        json.dump(known | dict(found), opened)
      os.replace(temporary, memory)
  return [entry[2] for _, entry in found]

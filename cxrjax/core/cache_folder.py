"""The folder that decoded images, indexes and keys are kept in between runs."""

from __future__ import annotations

import os
import pathlib
import shutil


def cache_root(cache_dir: str | os.PathLike | None) -> pathlib.Path:
  """The folder that decoded images are kept in."""
  chosen = cache_dir or os.environ.get("CXRJAX_CACHE") or "~/.cache/cxrjax"
  return pathlib.Path(chosen).expanduser()


def free_bytes(cache_dir: str | os.PathLike | None) -> int:
  """What the disk of the folder for decoded images has free."""
  folder = cache_root(cache_dir).absolute()
  while not folder.exists():
    folder = folder.parent
  return shutil.disk_usage(folder).free

"""The cache folder, which keeps decoded images, indexes and keys between runs."""

from __future__ import annotations

import os
import pathlib
import shutil


def cache_root(cache_dir: str | os.PathLike | None) -> pathlib.Path:
  """The cache folder: the given one, CXRJAX_CACHE or `~/.cache/cxrjax`."""
  chosen = cache_dir or os.environ.get("CXRJAX_CACHE") or "~/.cache/cxrjax"
  return pathlib.Path(chosen).expanduser()


def free_bytes(cache_dir: str | os.PathLike | None) -> int:
  """Free bytes on the disk of the cache folder."""
  folder = cache_root(cache_dir).absolute()
  while not folder.exists():
    folder = folder.parent
  return shutil.disk_usage(folder).free

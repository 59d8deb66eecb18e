"""Checksums of what is kept on disk, so that damage is found before it is used.

CRC-32, as in zip and PNG: it finds any error within 32 bits, and misses one of four thousand
million others. It does not withstand somebody who changes a file on purpose.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import imagecodecs

from cxrjax.core.files import MAX_JSON, parse_json, read

# The same sum; with it those of a checkpoint take 2 % of the time of writing it, with zlib's 7 %.
crc32: Callable[..., int] = imagecodecs.zlibng_crc32 if imagecodecs.ZLIBNG.available else zlib.crc32

MANIFEST = "manifest.json"  # in a folder: size and checksums of every file in it
_BLOCK = 16 << 20  # bytes under one checksum; blocks are summed in parallel
_PART = 256 << 10  # of a block, read at a time: it stays in the processor's cache
_SEAL = "crc32"


def of_file(path: pathlib.Path) -> list[int]:
  """One checksum for every 16 MiB of a file."""

  def one(start: int) -> int:
    found, buffer = 0, memoryview(bytearray(_PART))
    with open(path, "rb", buffering=0) as opened:
      opened.seek(start)
      for _ in range(_BLOCK // _PART):
        found = crc32(buffer[: opened.readinto(buffer)], found)
    return found

  starts = range(0, path.stat().st_size, _BLOCK)
  if len(starts) < 2:
    return [one(start) for start in starts]
  with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    return list(pool.map(one, starts))


def sealed(content: Mapping[str, Any]) -> str:
  """JSON with a checksum of its own; see `unsealed`."""
  return json.dumps({**content, _SEAL: _seal(content)}, indent=1) + "\n"


def unsealed(text: str | bytes) -> dict[str, Any]:
  """What `sealed` was given.

  Raises:
    ValueError: the text is damaged.
  """
  try:
    found = parse_json(text)
    seal = found.pop(_SEAL)
  except (ValueError, KeyError, AttributeError, TypeError) as error:
    raise ValueError("it is no JSON with a checksum") from error
  if seal != _seal(found):
    raise ValueError("its checksum differs")
  return found


def _seal(content: Mapping[str, Any]) -> int:
  return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def write_manifest(folder: pathlib.Path) -> None:
  """Writes size and checksums of all files in a folder, and below it, into its `manifest.json`."""
  files = {
    name: [(folder / name).stat().st_size, of_file(folder / name)] for name in _names(folder)
  }
  work = folder / (MANIFEST + ".tmp")
  with open(work, "w", encoding="utf-8") as opened:
    opened.write(sealed({"files": files}))
    opened.flush()
    os.fsync(opened.fileno())
  work.replace(folder / MANIFEST)


def damage(folder: pathlib.Path, only: Callable[[str], bool] = lambda name: True) -> str:
  """What is wrong with a folder that `write_manifest` has described; "" where it is whole.

  Args:
    folder: with its manifest.
    only: which files to look at, by their names below the folder.
  """
  try:
    files = dict(unsealed(read(folder / MANIFEST, MAX_JSON))["files"])
    sizes = {name: int(size) for name, (size, _) in files.items()}
  except FileNotFoundError:
    return f"it has no {MANIFEST}"
  except (OSError, ValueError, TypeError, KeyError) as error:
    return f"{MANIFEST} is damaged: {error}"
  try:
    for name, (_, sums) in files.items():
      path = folder / name
      if only(name) and (path.stat().st_size != sizes[name] or of_file(path) != sums):
        return f"the checksum of {name} differs"
  except OSError as error:
    return f"{name} cannot be read: {error.strerror or error}"
  return ""


def _names(folder: pathlib.Path) -> list[str]:
  return sorted(
    str(path.relative_to(folder))
    for path in folder.rglob("*")
    if path.is_file() and path.name not in (MANIFEST, MANIFEST + ".tmp")
  )

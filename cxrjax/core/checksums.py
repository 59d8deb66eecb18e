"""Checksums of files on disk, so that damage is detected before they are used.

CRC-32, as in zip and PNG: it detects every error burst of up to 32 bits and misses one in four
billion others. It does not protect against deliberate changes.
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

from cxrjax.core.atomic_files import LEFTOVERS, atomic_open
from cxrjax.core.files import MAX_JSON, parse_json, read

# Same result, but faster: 2 % of the time of writing a checkpoint, against 7 % with zlib.
crc32: Callable[..., int] = imagecodecs.zlibng_crc32 if imagecodecs.ZLIBNG.available else zlib.crc32

MANIFEST = "manifest.json"  # of a folder: size and checksums of every file in it
_BLOCK_BYTES = 16 << 20  # bytes per checksum; blocks are processed in parallel
_READ_BYTES = 256 << 10  # bytes read at a time: they stay in the processor's cache
_CHECKSUM_KEY = "crc32"


def of_file(path: pathlib.Path) -> list[int]:
  """Checksums of a file, one per 16 MiB."""

  def block_checksum(start: int) -> int:
    checksum, buffer = 0, memoryview(bytearray(_READ_BYTES))
    with open(path, "rb", buffering=0) as opened:
      opened.seek(start)
      for _ in range(_BLOCK_BYTES // _READ_BYTES):
        checksum = crc32(buffer[: opened.readinto(buffer)], checksum)
    return checksum

  starts = range(0, path.stat().st_size, _BLOCK_BYTES)
  if len(starts) < 2:
    return [block_checksum(start) for start in starts]
  with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    return list(pool.map(block_checksum, starts))


def seal(content: Mapping[str, Any]) -> str:
  """Serializes to JSON that includes its own checksum; see `unseal`."""
  return json.dumps({**content, _CHECKSUM_KEY: _checksum(content)}, indent=1) + "\n"


def unseal(text: str | bytes) -> dict[str, Any]:
  """Parses and verifies the output of `seal`.

  Raises:
    ValueError: the text is damaged.
  """
  try:
    content = parse_json(text)
    checksum = content.pop(_CHECKSUM_KEY)
  except (ValueError, KeyError, AttributeError, TypeError) as error:
    raise ValueError("it is not JSON with a checksum") from error
  if checksum != _checksum(content):
    raise ValueError("its checksum does not match")
  return content


def _checksum(content: Mapping[str, Any]) -> int:
  return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def write_manifest(folder: pathlib.Path) -> None:
  """Writes sizes and checksums of all files of a folder, recursively, to its `manifest.json`."""
  files = {
    name: [(folder / name).stat().st_size, of_file(folder / name)] for name in _file_names(folder)
  }
  with atomic_open(folder / MANIFEST) as opened:
    opened.write(seal({"files": files}).encode())


def find_damage(folder: pathlib.Path, only: Callable[[str], bool] = lambda name: True) -> str:
  """Verifies a folder against its manifest: describes the first defect, or "" if intact.

  Args:
    folder: a folder that `write_manifest` has processed.
    only: which files to verify, by their relative names.
  """
  try:
    files = dict(unseal(read(folder / MANIFEST, MAX_JSON))["files"])
    sizes = {name: int(size) for name, (size, _) in files.items()}
  except FileNotFoundError:
    return f"it has no {MANIFEST}"
  except (OSError, ValueError, TypeError, KeyError) as error:
    return f"{MANIFEST} is damaged: {error}"
  try:
    for name, (_, checksums) in files.items():
      path = folder / name
      if only(name) and (path.stat().st_size != sizes[name] or of_file(path) != checksums):
        return f"the checksum of {name} does not match"
  except OSError as error:
    return f"{name} cannot be read: {error.strerror or error}"
  return ""


def _file_names(folder: pathlib.Path) -> list[str]:
  return sorted(
    str(path.relative_to(folder))
    for path in folder.rglob("*")
    if path.is_file() and path.name != MANIFEST and not path.match(LEFTOVERS)
  )

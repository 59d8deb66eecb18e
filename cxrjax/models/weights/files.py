"""Weights files as arrays by name, whatever format they are in."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save

from cxrjax.core import files as careful
from cxrjax.core.errors import UserError
from cxrjax.models.weights import pickles

OURS = "cxrjax"  # the metadata, or the array of an .npz, in which a file of ours describes itself
SUM = "cxrjax_crc32"  # beside it: see `checksum`


@dataclasses.dataclass(frozen=True)
class File:
  """What a weights file holds.

  Attributes:
    named: the file and the config key that gave it, for errors.
    arrays: by name; read from disk where they are turned into arrays (`np.asarray`).
    about: how a file of ours describes itself; {} for others'.
    beside: what `config.json` and `preprocessor_config.json` beside it say, as Hugging Face's hub
      lays files out, and the `architecture` that a checkpoint of timm's names; {} where there are
      none.
  """

  path: pathlib.Path
  named: str
  arrays: Mapping[str, Any]
  about: Mapping[str, Any]
  beside: Mapping[str, Any]


def read(path: str | pathlib.Path, key: str) -> File:
  """Reads a .safetensors, an .npz, or a checkpoint of torch's (.pth, .pt, .bin, .ckpt, .tar).

  The content decides, not the name.

  Args:
    path: of the file.
    key: the config key that names it, for errors.

  Raises:
    UserError: no such file, none of these formats, damaged, or a pickle that wants to run code.
  """
  file = pathlib.Path(path).expanduser()
  named = f"{key}={str(path)!r}"
  about: Any = {}
  beside = _beside(file.parent)
  try:
    with careful.opened(file) as opened:
      head = opened.read(16)
    if len(head) > 8 and head[8:9] == b"{":
      arrays, metadata = careful.read_safetensors(file)
      _check_scales(arrays)
      about = _description(arrays, metadata)
    elif head[:2] == b"PK" and _is_npz(file):
      arrays = careful.read_npz(file)
      about = _description(
        arrays, {name: str(arrays.pop(name)) for name in (OURS, SUM) if name in arrays}
      )
    else:
      tree = pickles.read(file)
      arrays = pickles.tensors(tree)
      if isinstance(tree, dict) and isinstance(tree.get("arch"), str):
        beside.setdefault("architecture", tree["arch"])  # what timm's training calls the network
    if not isinstance(about, dict):
      raise careful.Damaged("its description is damaged")
  except pickles.Refused as error:
    raise UserError(
      f"{named} is a pickle that names {error}, which no plain weights need; it was not run. If "
      "you trust the file, load it with torch where it was made and save its state_dict() as "
      ".safetensors"
    ) from error
  except (OSError, ValueError, zipfile.BadZipFile) as error:
    reason = getattr(error, "strerror", None) or str(error)[:200]
    raise UserError(
      f"{named} cannot be read: {reason}; give a .safetensors, .npz, .pth or .bin file of "
      "weights, or the workdir of a finished run"
    ) from error
  odd = [
    name
    for name, x in arrays.items()
    if isinstance(x, np.ndarray) and not np.can_cast(x.dtype, np.float64, "same_kind")
  ]
  for name in odd:  # texts and complex numbers are nobody's weights
    del arrays[name]
  if not arrays:
    raise UserError(f"{named} holds no arrays; give a file with a network's weights")
  return File(file, named, arrays, about, beside)


def write(file: pathlib.Path, arrays: Mapping[str, np.ndarray], about: str, **texts: str) -> None:
  """Writes a .safetensors of ours.

  Args:
    file: to write.
    arrays: by name.
    about: the description, JSON.
    **texts: what else its metadata say.
  """
  # Not by save_file, which makes files that nobody else can read.
  file.write_bytes(save(dict(arrays), {**texts, OURS: about, SUM: checksum(arrays, about)}))


def checksum(arrays: Mapping[str, np.ndarray], about: str) -> str:
  """Of all that a file of ours holds: names, types, shapes and values of arrays, its description.

  Args:
    arrays: by name.
    about: the description, JSON.
  """
  found = zlib.crc32(about.encode())
  for name in sorted(arrays):
    array = np.asarray(arrays[name], order="C")
    found = zlib.crc32(f"{name} {array.dtype.str} {array.shape}".encode(), found)
    found = zlib.crc32(array.tobytes(), found)
  return f"{found:08x}"


def _description(arrays: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> Any:
  """How a file of ours describes itself; {} for others'. Raises ValueError for a damaged one."""
  if OURS not in texts and SUM not in texts:
    return {}
  if texts.get(SUM) != checksum(arrays, texts.get(OURS, "")):
    raise ValueError("it is damaged, as its checksum shows")
  return careful.parse_json(texts.get(OURS, ""))


def _check_scales(arrays: Mapping[str, np.ndarray]) -> None:
  """Refuses 8-bit floats that are to be multiplied by another array of the file."""
  small = any(x.dtype.itemsize == 1 and x.dtype.kind not in "biu" for x in arrays.values())
  scales = [name for name in arrays if re.search(r"[._]scale(_inv)?$", name)]
  if small and scales:
    raise careful.Damaged(f"its 8-bit floats have scales ({scales[0]}, ...), which are not applied")


def _is_npz(file: pathlib.Path) -> bool:
  with careful.opened(file) as opened, careful.open_zip(opened) as archive:
    return all(name.endswith(".npy") for name in archive.namelist())


def _beside(folder: pathlib.Path) -> dict[str, Any]:
  found: dict[str, Any] = {}
  for name in ("config.json", "preprocessor_config.json"):
    try:
      found |= careful.read_mapping(folder / name)
    except (OSError, careful.Damaged):
      continue
  return found

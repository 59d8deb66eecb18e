"""Weights files as arrays by name, whatever format they are in."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from cxrjax.core import files as careful
from cxrjax.core.errors import UserError
from cxrjax.models.weights import pickles

OURS = "cxrjax"  # the metadata, or the array of an .npz, in which a file of ours describes itself


@dataclasses.dataclass(frozen=True)
class File:
  """What a weights file holds.

  Attributes:
    named: the file and the config key that gave it, for errors.
    arrays: by name; read from disk where they are turned into arrays (`np.asarray`).
    about: how a file of ours describes itself; {} for others'.
    beside: what `config.json` and `preprocessor_config.json` beside it say, as Hugging Face's hub
      lays files out; {} where there are none.
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
  try:
    with careful.opened(file) as opened:
      head = opened.read(16)
    if len(head) > 8 and head[8:9] == b"{":
      arrays, metadata = careful.read_safetensors(file)
      _check_scales(arrays)
      about = careful.parse_json(metadata.get(OURS, "{}"))
    elif head[:2] == b"PK" and _is_npz(file):
      arrays = careful.read_npz(file)
      if OURS in arrays:
        about = careful.parse_json(str(arrays.pop(OURS)))
    else:
      arrays = pickles.read(file)
    if not isinstance(about, dict):
      raise careful.Damaged("its description is damaged")
  except pickles.Refused as error:
    raise UserError(
      f"{named} is a pickle that names {error}, which no plain weights need; it was not run. If "
      "you trust the file, load it with torch where it was made and save its state_dict() as "
      ".safetensors") from error
  except (OSError, ValueError, zipfile.BadZipFile) as error:
    reason = getattr(error, "strerror", None) or str(error)[:200]
    raise UserError(
      f"{named} cannot be read: {reason}; give a .safetensors, .npz, .pth or .bin file of "
      "weights, or the workdir of a finished run") from error
  odd = [name for name, x in arrays.items()
         if isinstance(x, np.ndarray) and not np.can_cast(x.dtype, np.float64, "same_kind")]
  for name in odd:  # texts and complex numbers are nobody's weights
    del arrays[name]
  if not arrays:
    raise UserError(f"{named} holds no arrays; give a file with a network's weights")
  return File(file, named, arrays, about, _beside(file.parent))


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

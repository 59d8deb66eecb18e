"""Reads weights files of all supported formats as arrays by name."""

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

DESCRIPTION_KEY = "cxrjax"  # key of our description, in the metadata or as an array of an .npz
CHECKSUM_KEY = "cxrjax_crc32"  # key of its checksum, see `checksum`


@dataclasses.dataclass(frozen=True)
class File:
  """Contents of a weights file.

  Attributes:
    named: the config key and the file, for errors.
    arrays: arrays by name; read from disk on conversion (`np.asarray`).
    about: description in a file of ours; {} for others.
    beside: settings from `config.json` and `preprocessor_config.json` beside it, as in Hugging
      Face's hub, and the `architecture` named by a timm checkpoint; {} if there are none.
  """

  path: pathlib.Path
  named: str
  arrays: Mapping[str, Any]
  about: Mapping[str, Any]
  beside: Mapping[str, Any]


def read(path: str | pathlib.Path, key: str) -> File:
  """Reads a .safetensors, an .npz, or a torch checkpoint (.pth, .pt, .bin, .ckpt, .tar).

  The format is determined by the content, not by the name.

  Args:
    path: path of the file.
    key: the config key that names it, for errors.

  Raises:
    UserError: no such file, none of these formats, damaged, or a pickle that wants to run code.
  """
  file = pathlib.Path(path).expanduser()
  named = f"{key}={str(path)!r}"
  about: Any = {}
  beside = _read_configs(file.parent)
  try:
    with careful.open_regular(file) as handle:
      magic = handle.read(16)
    if len(magic) > 8 and magic[8:9] == b"{":
      arrays, metadata = careful.read_safetensors(file)
      _check_scales(arrays)
      about = _parse_description(arrays, metadata)
    elif magic[:2] == b"PK" and _is_npz(file):
      arrays = careful.read_npz(file)
      about = _parse_description(
        arrays,
        {name: str(arrays.pop(name)) for name in (DESCRIPTION_KEY, CHECKSUM_KEY) if name in arrays},
      )
    else:
      tree = pickles.read(file)
      arrays = pickles.tensors(tree)
      if isinstance(tree, dict) and isinstance(tree.get("arch"), str):
        beside.setdefault("architecture", tree["arch"])  # timm's name of the network
    if not isinstance(about, dict):
      raise careful.Damaged("its description is damaged")
  except pickles.RefusedPickle as error:
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
  not_numeric = [
    name
    for name, x in arrays.items()
    if isinstance(x, np.ndarray) and not np.can_cast(x.dtype, np.float64, "same_kind")
  ]
  for name in not_numeric:  # texts and complex numbers are no weights
    del arrays[name]
  if not arrays:
    raise UserError(f"{named} holds no arrays; give a file with a network's weights")
  return File(file, named, arrays, about, beside)


def write(file: pathlib.Path, arrays: Mapping[str, np.ndarray], about: str, **texts: str) -> None:
  """Writes a .safetensors with our description.

  Args:
    file: path to write.
    arrays: arrays by name.
    about: the description, JSON.
    **texts: further metadata.
  """
  # Not save_file, which creates files that only their owner can read.
  file.write_bytes(
    save(dict(arrays), {**texts, DESCRIPTION_KEY: about, CHECKSUM_KEY: checksum(arrays, about)})
  )


def checksum(arrays: Mapping[str, np.ndarray], about: str) -> str:
  """Checksum of a file of ours: names, types, shapes and values of arrays, and the description.

  Args:
    arrays: arrays by name.
    about: the description, JSON.
  """
  crc = zlib.crc32(about.encode())
  for name in sorted(arrays):
    array = np.asarray(arrays[name], order="C")
    crc = zlib.crc32(f"{name} {array.dtype.str} {array.shape}".encode(), crc)
    crc = zlib.crc32(array.tobytes(), crc)
  return f"{crc:08x}"


def _parse_description(arrays: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> Any:
  """Parses the description of a file of ours; {} for others. Raises ValueError if damaged."""
  if DESCRIPTION_KEY not in texts and CHECKSUM_KEY not in texts:
    return {}
  if texts.get(CHECKSUM_KEY) != checksum(arrays, texts.get(DESCRIPTION_KEY, "")):
    raise ValueError("it is damaged, as its checksum shows")
  return careful.parse_json(texts.get(DESCRIPTION_KEY, ""))


def _check_scales(arrays: Mapping[str, np.ndarray]) -> None:
  """Rejects 8-bit floats that another array of the file scales."""
  small = any(x.dtype.itemsize == 1 and x.dtype.kind not in "biu" for x in arrays.values())
  scales = [name for name in arrays if re.search(r"[._]scale(_inv)?$", name)]
  if small and scales:
    raise careful.Damaged(f"its 8-bit floats have scales ({scales[0]}, ...), which are not applied")


def _is_npz(file: pathlib.Path) -> bool:
  with careful.open_regular(file) as opened, careful.open_zip(opened) as archive:
    return all(name.endswith(".npy") for name in archive.namelist())


def _read_configs(folder: pathlib.Path) -> dict[str, Any]:
  """Settings from the JSON configs in a folder; unreadable ones are skipped."""
  settings: dict[str, Any] = {}
  for name in ("config.json", "preprocessor_config.json"):
    try:
      settings |= careful.read_mapping(folder / name)
    except (OSError, careful.Damaged):
      continue
  return settings

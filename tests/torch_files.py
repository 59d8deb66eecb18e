"""Checkpoints as `torch.save` writes them, made without torch, opcode by opcode."""

from __future__ import annotations

import io
import pathlib
import struct
import zipfile
from typing import Any

import numpy as np

NAMES = {
  "<f4": "FloatStorage",
  "<f8": "DoubleStorage",
  "<f2": "HalfStorage",
  "<i8": "LongStorage",
  "|b1": "BoolStorage",
  "bfloat16": "BFloat16Storage",
}


class Code:
  """Opcodes to put into a pickle as they are."""

  def __init__(self, code: bytes):
    self.code = code


def call(module: str, name: str, *args: Any) -> Code:
  """Calls a function when it is loaded."""
  return Code(f"c{module}\n{name}\n".encode() + _encode(args, []) + b"R")


def _text(value: str) -> bytes:
  data = value.encode()
  return b"X" + struct.pack("<I", len(data)) + data


def _tensor(array: np.ndarray, storages: list[np.ndarray]) -> bytes:
  base = array if array.base is None or array.base.dtype != array.dtype else array.base
  base = base if base.flags.c_contiguous else np.ascontiguousarray(base)
  key = next((i for i, s in enumerate(storages) if s is base), len(storages))
  if key == len(storages):
    storages.append(base)
  offset = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
  kind = NAMES.get(array.dtype.str) or NAMES[array.dtype.name]
  pid = (
    b"("
    + _text("storage")
    + f"ctorch\n{kind}\n".encode()
    + _text(str(key))
    + _text("cpu")
    + _encode(int(base.size), storages)
    + b"tQ"
  )
  strides = tuple(s // array.itemsize for s in array.strides)
  return (
    b"ctorch._utils\n_rebuild_tensor_v2\n("
    + pid
    + _encode(offset // array.itemsize, [])
    + _encode(tuple(map(int, array.shape)), [])
    + _encode(strides, [])
    + b"\x89ccollections\nOrderedDict\n)RtR"
  )


def _encode(value: Any, storages: list[np.ndarray]) -> bytes:
  if isinstance(value, Code):
    return value.code
  if isinstance(value, np.ndarray):
    return _tensor(value, storages)
  if isinstance(value, dict):
    return (
      b"}(" + b"".join(_encode(k, storages) + _encode(v, storages) for k, v in value.items()) + b"u"
    )
  if isinstance(value, tuple):
    return b"(" + b"".join(_encode(v, storages) for v in value) + b"t"
  if isinstance(value, list):
    return b"](" + b"".join(_encode(v, storages) for v in value) + b"e"
  if isinstance(value, str):
    return _text(value)
  if value is None:
    return b"N"
  if isinstance(value, float):
    return b"G" + struct.pack(">d", value)
  data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
  return b"\x8a" + bytes([len(data)]) + data


def pickled(value: Any, storages: list[np.ndarray] | None = None) -> bytes:
  return b"\x80\x02" + _encode(value, [] if storages is None else storages) + b"."


def save(value: Any, path: pathlib.Path) -> pathlib.Path:
  """In the format of torch since 1.6."""
  storages: list[np.ndarray] = []
  content = pickled(value, storages)
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", content)
    archive.writestr("archive/byteorder", "little")
    for i, storage in enumerate(storages):
      archive.writestr(f"archive/data/{i}", storage.tobytes())
    archive.writestr("archive/version", "3\n")
  return path


def save_legacy(value: Any, path: pathlib.Path) -> pathlib.Path:
  """In the format of torch before 1.6: views of storages have one more entry in their id."""
  storages: list[np.ndarray] = []
  content = pickled(value, storages).replace(b"tQ", b"NtQ")
  out = io.BytesIO()
  for part in (0x1950A86A20F9469CFC6C, 1001):
    out.write(pickled(part))
  out.write(pickled({"protocol_version": 1001, "little_endian": Code(b"\x88"), "type_sizes": {}}))
  out.write(content)
  out.write(pickled([str(i) for i in range(len(storages))]))
  for storage in storages:
    out.write(struct.pack("<q", storage.size) + storage.tobytes())
  path.write_bytes(out.getvalue())
  return path

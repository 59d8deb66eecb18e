"""The safetensors format, read and written with NumPy alone.

Eight bytes of header length (little endian), a JSON header that gives every tensor's type, shape
and stretch of the rest of the file, then the tensors, row-major and little endian. The package of
that name does the same; its NumPy side knows no bfloat16, which published weights are in.

Reference: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np

TYPES = {
  "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"),
  "BF16": np.dtype(ml_dtypes.bfloat16), "I64": np.dtype("<i8"), "I32": np.dtype("<i4"),
  "I16": np.dtype("<i2"), "I8": np.dtype("i1"), "U8": np.dtype("u1"), "BOOL": np.dtype("bool"),
}
_MOST = 100_000_000  # bytes of a header, the format's own limit


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """The tensors by name, mapped into memory and not copied, and the metadata.

  Raises:
    ValueError: the file is cut short, or not of this format.
  """
  size = path.stat().st_size
  with path.open("rb") as file:
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(_MOST, size - 8):
      raise ValueError("its header is damaged")
    header = json.loads(file.read(length))
  if not isinstance(header, dict):
    raise ValueError("its header is damaged")
  metadata = header.pop("__metadata__", {})
  if not isinstance(metadata, dict):
    raise ValueError("its header is damaged")
  data = np.memmap(path, np.uint8, "r", offset=8 + length) if size > 8 + length else np.empty(
    0, np.uint8)
  found = {}
  for name, entry in header.items():
    try:
      kind, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
      dtype = TYPES.get(kind)
      count = math.prod(shape)
    except (KeyError, TypeError, ValueError) as error:
      raise ValueError(f"its header is damaged at {name!r}") from error
    if dtype is None:
      raise ValueError(f"{name!r} is of the type {kind!r}, which is not known here")
    if not 0 <= start <= end <= len(data) or end - start != count * dtype.itemsize:
      raise ValueError(f"it is cut short: {name!r} ends after the end of the file")
    found[name] = data[start:end].view(dtype).reshape(shape)
  return found, metadata


def write(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
  """Writes the tensors in the order of their names.

  Args:
    path: of the new file.
    tensors: of a type in `TYPES`.
    metadata: strings by name.
  """
  kinds = {dtype: kind for kind, dtype in TYPES.items()}
  header: dict[str, object] = {"__metadata__": dict(metadata)}
  at, arrays = 0, []
  for name in sorted(tensors):
    array = np.ascontiguousarray(tensors[name]).reshape(np.shape(tensors[name]))
    header[name] = {
      "dtype": kinds[array.dtype], "shape": list(array.shape),
      "data_offsets": [at, at + array.nbytes]}
    at += array.nbytes
    arrays.append(array)
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # so that the tensors are aligned
  with path.open("wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for array in arrays:
      file.write(array.tobytes())

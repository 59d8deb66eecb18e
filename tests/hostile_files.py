"""Files as strangers may make them: good ones of every kind that is read, and damage done to them.

python tests/hostile_files.py 10000   # that many damaged files of each kind, with another seed
"""

from __future__ import annotations

import io
import json
import pathlib
import re
import resource
import struct
import sys
import tarfile
import tempfile
import time
import tracemalloc
import zipfile

import numpy as np
import torch_files

from cxrjax.core import files
from cxrjax.core.errors import UserError
from cxrjax.data.sources import archive
from cxrjax.models import weights
from cxrjax.models.weights import layouts

ARRAYS = {
  "blocks.0.norm1.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
  "patch_embed.proj.weight": np.ones((2, 1, 2, 2), np.float16),
  "n": np.array([3]),
}
# Why good files of these arrays fit no network: they are of none.
OTHER = "none of the known layouts|'n', which the vision transformers of config.model do not have"
BYTES = 32 << 20  # of memory that no small file may cost


def safetensors(header: dict, data: bytes = b"", length: int | None = None) -> bytes:
  text = json.dumps(header).encode()
  return struct.pack("<Q", len(text) if length is None else length) + text + data


def npy(descr: str, shape: str, data: bytes = b"") -> bytes:
  head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
  return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + data


def zipped(members: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
  opened = io.BytesIO()
  with zipfile.ZipFile(opened, "w", kind) as made:
    for name, data in members.items():
      made.writestr(name, data)
  return opened.getvalue()


def tarred(members: dict[str, bytes], kind: str) -> bytes:
  opened = io.BytesIO()
  with tarfile.open(fileobj=opened, mode=f"w:{kind}") as made:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      made.addfile(info, io.BytesIO(data))
  return opened.getvalue()


def good() -> dict[str, bytes]:
  """One small whole file of each kind."""
  npz = io.BytesIO()
  np.savez_compressed(npz, **ARRAYS)
  header, data = {"__metadata__": {"format": "pt"}}, b""
  for name, x in ARRAYS.items():
    kind = {"float32": "F32", "float16": "F16", "int64": "I64"}[x.dtype.name]
    header[name] = {
      "dtype": kind,
      "shape": list(x.shape),
      "data_offsets": [len(data), len(data) + x.nbytes],
    }
    data += x.tobytes()
  members = {"a/1.png": b"one" * 300, "b/2.csv": b"x,y\n1,2\n" * 20}
  with tempfile.TemporaryDirectory() as folder:
    torch = {
      name: getattr(torch_files, name)(
        {"model": ARRAYS, "epoch": 3}, pathlib.Path(folder) / "x"
      ).read_bytes()
      for name in ("save", "save_legacy")
    }
  return {
    "x.json": json.dumps({"status": "finished", "data": {"train": [1, 2.5, None, "ä"]}}).encode(),
    "x.npz": npz.getvalue(),
    "x.npy": npy("'<f4'", "(2, 3)", bytes(24)),
    "x.safetensors": safetensors(header, data),
    "x.pth": torch["save"],
    "old.pth": torch["save_legacy"],
    "x.zip": zipped(members),
    "stored.zip": zipped(members, zipfile.ZIP_STORED),
    "x.tar": tarred(members, ""),
    "x.tar.gz": tarred(members, "gz"),
    "x.tar.xz": tarred(members, "xz"),
  }


def read(path: pathlib.Path) -> None:
  """Reads it whole; only a UserError or `Damaged` may come of it."""
  if path.suffix == ".json":
    files.read_mapping(path)
  elif path.suffix == ".npy":
    files.parse_npy(path.read_bytes())
  elif archive.is_archive(path):
    with archive.Archive(path, nested=True) as opened:
      for name in opened.names:
        opened.read(name)
  else:
    file = weights.files.read(path, "config.init.path")
    for value in file.arrays.values():
      np.asarray(value)
    with weights._of_any_shape(file.named):
      layouts.recognize(file)


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
  """Bytes changed, cut out, doubled, or numbers replaced by extreme ones."""
  out = bytearray(data)
  for _ in range(int(rng.integers(1, 6))):
    at, n = int(rng.integers(len(out) + 1)), int(rng.integers(1, 9))
    match int(rng.integers(6)):
      case 0:
        out[at : at + n] = rng.bytes(min(n, len(out) - at))
      case 1:
        del out[at : at + n]
      case 2:
        out[at:at] = out[at : at + 64]
      case 3:
        del out[at:]
      case 4:
        out[at : at + n] = [b"\xff", b"\0", b"\x7f", b"(", b"9", b"["][int(rng.integers(6))] * n
      case _:
        if at < len(out):
          out[at] ^= 1 << int(rng.integers(8))
    out = out or bytearray(1)
  return bytes(out)


def check(path: pathlib.Path) -> str | None:
  """Why a file that was read could not be, in a line; anything but that is an error."""
  try:
    read(path)
  except (UserError, files.Damaged, OSError) as error:
    text = str(error)
    assert text and "\n" not in text and len(text) < 1000, text
    return text
  return None


def run(count: int, seed: int) -> dict[str, int]:
  """Damages each good file `count` times; how many of each were refused."""
  refused = {}
  with tempfile.TemporaryDirectory() as folder:
    for kind, (name, data) in enumerate(good().items()):
      path = pathlib.Path(folder) / name
      path.write_bytes(data)
      assert check(path) is None or re.search(OTHER, str(check(path))), check(path)
      for i in range(count):
        rng = np.random.default_rng((seed, kind, i))
        path.write_bytes(damaged(data, rng))
        try:
          refused[name] = refused.get(name, 0) + (check(path) is not None)
        except Exception as error:
          raise AssertionError(f"{name}, seed {seed}, number {i}: {error!r}") from error
  return refused


def cost(path: pathlib.Path) -> tuple[float, int]:
  """Seconds and bytes of memory that a file took to be refused."""
  tracemalloc.start()
  begun = time.perf_counter()
  try:
    check(path)
    return time.perf_counter() - begun, tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()


if __name__ == "__main__":
  begun = time.perf_counter()
  found = run(int(sys.argv[1]), seed=int(time.time()) if len(sys.argv) < 3 else int(sys.argv[2]))
  print(f"{sum(found.values()):,} refused of {int(sys.argv[1]) * len(found):,}: {found}")
  print(
    f"{time.perf_counter() - begun:.0f} s, at most "
    f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
  )

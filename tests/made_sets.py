"""Small archives in the layouts of published data sets."""

from __future__ import annotations

import functools
import importlib.util
import io
import os
import pathlib
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cxrjax.core.errors import UserError
from cxrjax.data import open_source
from cxrjax.data.sources import tfds_prepare


def pixels(seed: int, bits: int = 8) -> np.ndarray:
  """Noise of 17 x 20 pixels."""
  kind = np.uint8 if bits == 8 else np.uint16
  return np.random.default_rng(seed).integers(0, 2**bits, (20, 17), dtype=kind)


@functools.cache
def encoded(seed: int, mode: str = "L", kind: str = "PNG", bits: int = 8) -> bytes:
  """The noise as a file."""
  image = Image.fromarray(pixels(seed, bits))
  buffer = io.BytesIO()
  (image if bits == 16 else image.convert(mode)).save(buffer, kind)
  return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
  """Gray pixels of a file."""
  return np.asarray(Image.open(io.BytesIO(data)).convert("L"))[..., None]


def table(header: str, *rows: str, end: str = "\n") -> bytes:
  """A CSV."""
  return "\n".join([header, *rows]).encode() + end.encode()


def folder(path: pathlib.Path, files: Mapping[str, bytes]) -> pathlib.Path:
  """Files in a folder, as unpacked."""
  for name, data in files.items():
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(data)
  return path


def packed(path: pathlib.Path, files: Mapping[str, bytes]) -> pathlib.Path:
  """Files in a zip or a tar."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == ".zip":
    with zipfile.ZipFile(path, "w") as opened:
      for name, data in files.items():
        opened.writestr(name, data)
  else:
    with tarfile.open(path, "w:gz", compresslevel=1) as opened:
      for name, data in files.items():
        info = tarfile.TarInfo(name)
        info.size = len(data)
        opened.addfile(info, io.BytesIO(data))
  return path


def prepare(
  name: str, manual: pathlib.Path, split: str = "train", data: str = "data", **options: Any
) -> Any:
  """A split of a set, prepared from the manual folder where it is not yet."""
  return open_source(
    f"tfds:{name}",
    split=split,
    data_dir=str(manual.parent / data),
    manual_dir=str(manual),
    **options,
  )


def refused(name: str, manual: pathlib.Path) -> str:
  """The one line that says why a set cannot be prepared; nothing of it is left behind."""
  with pytest.raises(UserError) as caught:
    prepare(name, manual)
  assert "\n" not in str(caught.value)
  assert not list((manual.parent / "data").rglob("dataset_info.json"))
  return str(caught.value)


def command(name: str, manual: pathlib.Path, data: pathlib.Path, *flags: str) -> None:
  """Builds a set as a user does, with `tfds build`; skips the test where that cannot run."""
  if any(importlib.util.find_spec(found) is None for found in ("tensorflow", "apache_beam")):
    pytest.skip("tfds build needs the extra `tfds`")
  root = pathlib.Path(tfds_prepare.BUILDERS).parent
  done = subprocess.run(
    [
      pathlib.Path(sys.executable).with_name("tfds"),
      "build",
      tfds_prepare.BUILDERS / name,
      f"--manual_dir={manual}",
      f"--data_dir={data}",
      "--file_format=array_record",
      *flags,
    ],
    env=os.environ | {"PYTHONPATH": str(root)},
    cwd=manual.parent,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]

"""What the TFDS builders inherit: splits of more than a gigabyte without TensorFlow, and Beam.

TFDS 4.9 puts the examples of a large split into files on disk before it writes them in their final
order, and opens these files with TensorFlow. Here they are opened with Python where there is none.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import types
from collections.abc import Iterator
from typing import IO, Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle


class SetBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """A TFDS builder whose splits may be larger than a gigabyte without TensorFlow.

  Attributes:
    on_beam: whether Beam was asked for, by `tfds build --beam_pipeline_options=...` or a
      `beam_runner` in the `DownloadConfig`; known once examples are generated.
  """

  on_beam = False

  def _download_and_prepare(
    self, dl_manager: tfds.download.DownloadManager, download_config: tfds.download.DownloadConfig
  ) -> None:
    self.on_beam = bool(download_config.beam_runner or download_config.beam_options)
    with without_tensorflow():
      super()._download_and_prepare(dl_manager, download_config)


class _Written:
  """A file that is opened for each write: TFDS keeps a thousand, close to what a system allows."""

  def __init__(self, path: str | os.PathLike):
    self._path = pathlib.Path(path)
    self._path.write_bytes(b"")

  def write(self, data: bytes) -> None:
    with open(self._path, "ab") as opened:
      opened.write(data)

  def flush(self) -> None:
    """There is nothing to flush."""

  def close(self) -> None:
    """There is nothing to close."""


def _open(path: str | os.PathLike, mode: str) -> _Written | IO[Any]:
  """What TFDS asks of `tf.io.gfile.GFile`: `wb`, and later `rb`."""
  return _Written(path) if mode == "wb" else open(path, mode)


@contextlib.contextmanager
def without_tensorflow() -> Iterator[None]:
  """While this lasts, TFDS writes large splits without TensorFlow, if there is none."""
  if importlib.util.find_spec("tensorflow") is not None:
    yield
    return
  before = shuffle.tf
  shuffle.tf = types.SimpleNamespace(
    io=types.SimpleNamespace(
      gfile=types.SimpleNamespace(GFile=_open, exists=os.path.exists, remove=os.remove)
    ),
    errors=types.SimpleNamespace(ResourceExhaustedError=_NeverRaised),
  )
  try:
    yield
  finally:
    shuffle.tf = before


class _NeverRaised(Exception):
  """TFDS catches this one when too many files are open."""

"""Base class of the TFDS builders: Beam, and splits over a gigabyte without TensorFlow.

TFDS 4.9 buffers the examples of a large split in files on disk before it writes them in their final
order, and opens these files with TensorFlow. Without TensorFlow they are opened with Python here.
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
    on_beam: whether Beam was requested, by `tfds build --beam_pipeline_options=...` or a
      `beam_runner` in the `DownloadConfig`; set before examples are generated.
  """

  on_beam = False

  def _download_and_prepare(
    self, dl_manager: tfds.download.DownloadManager, download_config: tfds.download.DownloadConfig
  ) -> None:
    self.on_beam = bool(download_config.beam_runner or download_config.beam_options)
    with without_tensorflow():
      super()._download_and_prepare(dl_manager, download_config)


class _AppendFile:
  """A file reopened for each write: TFDS holds a thousand, close to the system's limit."""

  def __init__(self, path: str | os.PathLike):
    self._path = pathlib.Path(path)
    self._path.write_bytes(b"")

  def write(self, data: bytes) -> None:
    with open(self._path, "ab") as opened:
      opened.write(data)

  def flush(self) -> None:
    """Does nothing: each write is flushed."""

  def close(self) -> None:
    """Does nothing: each write closes the file."""


def _open(path: str | os.PathLike, mode: str) -> _AppendFile | IO[Any]:
  """Replaces `tf.io.gfile.GFile` as TFDS uses it: `wb`, and later `rb`."""
  return _AppendFile(path) if mode == "wb" else open(path, mode)


@contextlib.contextmanager
def without_tensorflow() -> Iterator[None]:
  """Context in which TFDS writes large splits without TensorFlow, if it is not installed."""
  if importlib.util.find_spec("tensorflow") is not None:
    yield
    return
  original_tf = shuffle.tf
  shuffle.tf = types.SimpleNamespace(
    io=types.SimpleNamespace(
      gfile=types.SimpleNamespace(GFile=_open, exists=os.path.exists, remove=os.remove)
    ),
    errors=types.SimpleNamespace(ResourceExhaustedError=_NeverRaised),
  )
  try:
    yield
  finally:
    shuffle.tf = original_tf


class _NeverRaised(Exception):
  """Stands in for the error that TFDS catches when too many files are open."""

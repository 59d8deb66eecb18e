"""TensorBoard's event files, in the workdir; every run writes them."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2

from cxrjax.report.writers import base

FOLDER = "tensorboard"


class Writer(base.Writer):
  """Writes event files, each opened at its first value.

  Args:
    workdir: holds the folder `tensorboard`.
    config: of the run; not written.

  Raises:
    OSError: in every method, when a file cannot be written.
  """

  def __init__(self, workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    super().__init__(workdir, config)
    self._events: EventsWriter | None = None
    self._purge_step: int | None = None

  def write(self, step: int, values: Mapping[str, float]) -> None:
    if self._events is None:
      folder = self.workdir / FOLDER
      folder.mkdir(exist_ok=True)
      # The name holds the second only; the suffix keeps a quick restart from overwriting.
      suffix = f".{os.getpid()}.{time.time_ns() % 10**9:09d}"
      self._events = EventsWriter(str(folder / "events"), suffix)
      if self._purge_step is not None:
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write_event(self._purge_step, session_log=start)
    summary = summary_pb2.Summary(
      value=[
        summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()
      ]
    )
    self._write_event(step, summary=summary)
    self._events.flush()

  def _write_event(self, step: int, **content: object) -> None:
    assert self._events is not None  # opened by `write`
    self._events.write_event(event_pb2.Event(wall_time=time.time(), step=step, **content))

  def truncate(self, step: int) -> None:
    self.close()
    self._purge_step = step + 1

  def close(self) -> None:
    if self._events is not None:
      events, self._events = self._events, None
      events.close()

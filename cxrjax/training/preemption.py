"""Turns SIGTERM and SIGINT into a flag that the loop checks between dispatches."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class PreemptionHandler:
  """While entered, the first SIGTERM or SIGINT sets `signal`; a second one acts as usual."""

  def __init__(self) -> None:
    self.signal: int | None = None
    self._old_handlers: dict[int, object] = {}

  def __enter__(self) -> PreemptionHandler:
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._old_handlers[number] = signal.signal(number, self._set)
    return self

  def _set(self, number: int, frame: FrameType | None) -> None:
    self.signal = number
    signal.signal(number, self._old_handlers[number])  # type: ignore[arg-type]

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    for number, handler in self._old_handlers.items():
      signal.signal(number, handler)  # type: ignore[arg-type]

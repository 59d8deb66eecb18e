"""Prefetching of an iterator in a background thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator


def ahead(make: Callable[[], Iterator], depth: int) -> Iterator:
  """Runs an iterator in a thread, up to `depth` items ahead of its consumer.

  Exceptions are raised in the consumer. A consumer that stops early ends the thread.
  """
  results: queue.Queue = queue.Queue(maxsize=depth)
  stop = threading.Event()

  def put(item: tuple) -> bool:
    while not stop.is_set():
      try:
        results.put(item, timeout=0.1)
        return True
      except queue.Full:
        continue
    return False

  def work() -> None:
    try:
      for item in make():
        if not put(("item", item)):
          return
      put(("end", None))
    except BaseException as error:  # whatever it is, the consumer must see it
      put(("error", error))

  thread = threading.Thread(target=work, name="cxrjax-loader", daemon=True)
  thread.start()
  try:
    while True:
      kind, value = results.get()
      if kind == "end":
        return
      if kind == "error":
        raise value
      yield value
  finally:
    stop.set()
    thread.join()

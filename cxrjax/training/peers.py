"""Ends all processes of a run together, each with a one-line reason.

Left alone, a process whose neighbour died waits in a collective for as long as the backend likes,
or raises a socket error of the collective that offers no way out. So process 0 holds a connection
to each of the others. The kernel closes it when a process dies, for whatever reason; a machine that
vanishes falls silent; a process that fails sends its reason. The others then print their line and
exit, however deep in a collective they are. Nothing is saved on the way out: checkpoints are
complete or absent, and the same command resumes from the newest.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from cxrjax.core.errors import UserError
from cxrjax.training import rendezvous

GONE = 75  # exit status after another process died: EX_TEMPFAIL, the same command may succeed
FAILED = 1  # after another process raised anything but a UserError, whose status is 2
BEAT = 5.0  # seconds between heartbeats
SILENCE = 25.0  # seconds without one after which a machine counts as gone; gloo gives up at 30
GRACE = 2.0  # seconds for a process that fails for its own reason to report that instead
CLEAN_UP = 15.0  # seconds a failing process has for its files once the others are gone

_peers: Peers | None = None


@contextlib.contextmanager
def process_group(
  coordinator: str | None, processes: int, process: int, newest_step: Callable[[], int | None]
) -> Iterator[None]:
  """Joins the other processes, watches them, and leaves when all have finished.

  An exception ends this process: a UserError with one line and status 2, any other with its
  traceback. So does the death of another process; see the module.

  Args:
    coordinator: `host:port` of process 0; 'auto' asks the cluster; None for a single process, for
      which nothing is done.
    processes: their number.
    process: index of this one.
    newest_step: step of the checkpoint from which the same command would resume, if any.
  """
  global _peers
  if not coordinator:
    yield
    return
  # Ahead of JAX's own timeout, which aborts with a stack dump.
  join_timer = threading.Timer(
    rendezvous.JOIN,
    end_process,
    [
      f"error: --coordinator={coordinator}: not all processes connected within {rendezvous.JOIN} "
      "s; start the same command on every machine, each with its own --process and all with the "
      "address of process 0",
      GONE,
    ],
  )
  join_timer.daemon = True
  join_timer.start()
  try:
    host = rendezvous.initialize(coordinator, processes, process)
    import jax

    index, count = jax.process_index(), jax.process_count()
    links = rendezvous.connect(host, index, count) if count > 1 else {}
  except UserError as error:
    end_process(f"error: {error}", 2)
  join_timer.cancel()
  _peers = Peers(index, count, links, newest_step)
  try:
    yield
  except BaseException as error:
    _peers.fail(error)
  _peers.leave()
  _peers = None


def report_error(error: BaseException) -> None:
  """Reports an error to the others before this process waits for files, which may need them."""
  if _peers is not None:
    _peers.tell(error)


def barrier() -> None:
  """Barrier: returns when all processes have arrived, however late.

  On CPU a reduce-scatter gives up after 30 s (https://github.com/jax-ml/jax/issues/40831), so
  whatever may take one process longer than another, such as compiling, has to be over before it.
  """
  if _peers is not None:
    _peers.meet()


class Peers:
  """Process 0's connections to all others, or another process's connection to process 0.

  Messages are lines of JSON: `beat`; `here` and `all here` with the number of a meeting; `end` with
  the process that failed, the exit status for the others, and the reason.

  Args:
    me: index of this process.
    count: number of processes.
    links: connected sockets by process.
    newest_step: see `together`.
    end: `end(line, status)` writes the line and ends the process.
    beat, silence, grace, clean_up: seconds, see the constants.
  """

  def __init__(
    self,
    me: int,
    count: int,
    links: Mapping[int, socket.socket],
    newest_step: Callable[[], int | None],
    *,
    end: Callable[[str, int], None] | None = None,
    beat: float = BEAT,
    silence: float = SILENCE,
    grace: float = GRACE,
    clean_up: float = CLEAN_UP,
  ) -> None:
    self.me, self.count = me, count
    self._links, self._newest_step, self._end = dict(links), newest_step, end or end_process
    self._beat, self._silence, self._grace, self._clean_up = beat, silence, grace, clean_up
    self._changed = threading.Condition()  # guards everything below
    self._open = set(links)
    self._failing: set[int] = set()  # processes that have announced their end
    self._verdict: tuple[int, int, str] | None = None  # who ends the run, with which status, why
    self._own_exit: tuple[str, int] | None = None  # this process's own last line and status
    self._deadline: float | None = None
    self._meetings, self._met = 0, 0
    self._last: int | None = None  # the number of the last meeting
    self._arrived: dict[int, set[int]] = {}
    self._thread = threading.Thread(target=self._run, name="peers", daemon=True)
    self._thread.start()

  # Called by the main thread.

  def meet(self) -> None:
    """See the module's `meet`."""
    with self._changed:
      self._meetings += 1
      number = self._meetings
    self._arrive(self.me, number)
    with self._changed:
      self._changed.wait_for(lambda: self._met >= number)

  def leave(self) -> None:
    """Meets the others for the last time; after that they may close their connections."""
    with self._changed:
      self._last = self._meetings + 1
    self.meet()
    self._thread.join()

  def tell(self, error: BaseException) -> None:
    """Reports why this process ends, unless another's end is the cause."""
    if isinstance(error, Exception) and not isinstance(error, UserError):
      # A collective fails at the same moment as the connection to the dead process closes.
      with self._changed:
        self._changed.wait_for(lambda: self._verdict is not None, self._beat)
        is_consequence = self._verdict is not None and self._own_exit is None
      if is_consequence:
        self._thread.join()  # the thread ends the process
    with self._changed:
      if self._own_exit is not None:
        return
      text = " ".join(str(error).split())[:500]
      if isinstance(error, UserError):
        self._own_exit = f"error: {text}", 2
      else:
        name = type(error).__name__
        text = f"{name}: {text}" if text else name
        self._own_exit = f"error: {text}", FAILED
      status = self._own_exit[1]
      if self._deadline is not None:
        self._deadline = time.monotonic() + self._clean_up
    self._send_all({"kind": "end", "process": self.me, "status": status, "reason": text})

  def fail(self, error: BaseException) -> NoReturn:
    """Ends this process with its own error, once the others know of it."""
    self.tell(error)
    with self._changed:  # closing a socket with unread data loses data in flight
      self._changed.wait_for(lambda: self._open <= self._failing, self._grace + self._beat)
    if isinstance(error, UserError):
      assert self._own_exit is not None  # set by `tell`
      self._end(*self._own_exit)
    else:
      self._end("".join(traceback.format_exception(error)).rstrip(), FAILED)
    raise error  # reached only if a test's `end` returns

  # Run by the watching thread.

  def _run(self) -> None:
    selector, buffers = selectors.DefaultSelector(), dict.fromkeys(self._links, b"")
    last_heard, last_beat = dict.fromkeys(self._links, time.monotonic()), 0.0
    for i, link in self._links.items():
      selector.register(link, selectors.EVENT_READ, i)
    while not self._is_over():
      for key, _ in selector.select(min(self._beat, self._grace) / 4):
        i = key.data
        last_heard[i] = time.monotonic()
        try:
          data = self._links[i].recv(1 << 16)
        except OSError:  # a reset means the same as an orderly close
          data = b""
        if not data:
          selector.unregister(key.fileobj)
          self._on_lost(i, "it was killed, or its machine is down")
          continue
        *lines, buffers[i] = (buffers[i] + data).split(b"\n")
        for line in lines:
          self._handle(i, json.loads(line))
      now = time.monotonic()
      if now - last_beat >= self._beat:
        last_beat = now
        self._send_all({"kind": "beat"})
      for i in sorted(self._open):
        if now - last_heard[i] > self._silence:
          self._on_lost(i, f"nothing has been heard from it for {self._silence:.0f} s")
      with self._changed:
        due = self._deadline is not None and time.monotonic() >= self._deadline
      if due:
        self._finish()
        break
    selector.close()  # the connections stay open: closing one early would look like a death

  def _is_over(self) -> bool:
    with self._changed:
      return self._last is not None and self._met >= self._last

  def _handle(self, i: int, message: dict[str, Any]) -> None:
    if message["kind"] == "here":
      self._arrive(i, message["meeting"])
    elif message["kind"] == "all here":
      with self._changed:
        self._met = message["meeting"]
        self._changed.notify_all()
    elif message["kind"] == "end":
      with self._changed:
        self._failing.add(i)
        self._changed.notify_all()
      self._set_verdict(message["process"], message["status"], message["reason"])

  def _arrive(self, i: int, meeting: int) -> None:
    """Counts arrivals in process 0; the others report theirs to it."""
    if self.me != 0:
      self._send_all({"kind": "here", "meeting": meeting})
      return
    with self._changed:
      arrived = self._arrived.setdefault(meeting, set())
      arrived.add(i)
      if len(arrived) < self.count:
        return
      del self._arrived[meeting]
      self._send_all({"kind": "all here", "meeting": meeting})
      self._met = meeting
      self._changed.notify_all()

  def _on_lost(self, i: int, why: str) -> None:
    if self._is_over():
      return
    with self._changed:
      self._open.discard(i)
      if self._own_exit is not None:  # this process is ending and need not wait for that one
        self._deadline = self._deadline or time.monotonic() + self._clean_up
      self._changed.notify_all()
      expected = i in self._failing
    if not expected:
      self._set_verdict(i, GONE, why)

  def _set_verdict(self, process: int, status: int, why: str) -> None:
    """Records the first process to end, which all others then name."""
    with self._changed:
      if self._verdict is not None:
        return
      self._verdict = process, status, why
      if self._own_exit is None:
        # At once after a death: a restarted process must not meet this one.
        self._deadline = time.monotonic() + (0.0 if status == GONE else self._grace)
      self._changed.notify_all()
    if self.me == 0:  # the others are connected to process 0 only
      self._send_all({"kind": "end", "process": process, "status": status, "reason": why})

  def _finish(self) -> None:
    with self._changed:
      own_exit, verdict = self._own_exit, self._verdict
    # Process 0's progress bar has left its line unfinished.
    prefix = "\n" if self.me == 0 else ""
    if own_exit is not None:
      self._end(prefix + own_exit[0], own_exit[1])
      return
    assert verdict is not None  # nothing else sets a deadline
    process, status, why = verdict
    try:
      step = self._newest_step()
      outlook = "it starts from the beginning" if step is None else f"it resumes from step {step}"
    except OSError:  # the disk was on the other machine
      outlook = "it resumes from the last checkpoint"
    advice = f"run the same command again: {outlook}"
    failed = f"process {process} of {self.count}"
    if status == GONE:
      self._end(f"{prefix}error: {failed} is gone ({why}); {advice}", status)
    elif status == FAILED:
      self._end(
        f"{prefix}error: {failed} has failed ({why}), see its own output; once fixed, {advice}",
        status,
      )
    else:
      self._end(f"{prefix}error: {failed} has ended ({why}); once fixed, {advice}", status)

  def _send_all(self, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    with self._changed:
      for i in self._open:
        with contextlib.suppress(OSError):  # a closed connection is handled where it is read
          self._links[i].sendall(data)


_end_lock = threading.Lock()


def end_process(line: str, status: int) -> NoReturn:
  """Writes a line to stderr and ends the process, from any thread; only the first call counts.

  Skips the exit handlers of Python and JAX, which would wait for processes that are gone.
  """
  _end_lock.acquire()  # never released
  with contextlib.suppress(OSError, ValueError):  # nobody reads stdout any more
    sys.stdout.flush()
  with contextlib.suppress(OSError):
    os.write(2, f"{line}\n".encode())
  os._exit(status)

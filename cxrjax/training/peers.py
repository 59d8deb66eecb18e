"""The processes of one run end together, and each says why in one line.

Left alone they do not. A process whose neighbour died waits in a collective for as long as the
backend pleases, or raises what the collective says of its sockets; it names no way out. So process
0 has a connection to each of the others. The kernel closes it when a process dies, whatever killed
it; a machine that vanishes falls silent; a process that fails says why. The rest then write their
line and end, however deep in a collective they are, and nothing is saved on the way out:
checkpoints are whole or not at all, and the same command goes on from the newest.
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

GONE = 75  # exit status of those whose neighbour died: EX_TEMPFAIL, the same command may go well
FAILED = 1  # of those whose neighbour raised something else than a UserError, whose status is 2
BEAT = 5.0  # seconds between signs of life
SILENCE = 25.0  # seconds without one after which a machine counts as gone; gloo gives up at 30
GRACE = 2.0  # seconds in which a process that fails for a reason of its own says that instead
CLEAN_UP = 15.0  # seconds a failing process has for its files once the others are gone

_peers: Peers | None = None


@contextlib.contextmanager
def together(
  coordinator: str | None, processes: int, process: int, newest_step: Callable[[], int | None]
) -> Iterator[None]:
  """Joins the other processes, watches them, and leaves when all have come to the end.

  An exception ends this process, a UserError as one line and with status 2, another one with its
  traceback. The death of another process ends it as well, see the module.

  Args:
    coordinator: `host:port` of process 0; 'auto' asks the cluster; None for a process alone, for
      which nothing is done.
    processes: how many.
    process: which of them this is.
    newest_step: of the checkpoint from which the same command would go on, if there is one.
  """
  global _peers
  if not coordinator:
    yield
    return
  # JAX itself aborts then, with a dump of its stack.
  late = threading.Timer(
    rendezvous.JOIN,
    end_process,
    [
      f"error: --coordinator={coordinator}: not all processes have come within {rendezvous.JOIN} "
      "s; start the same command on every machine, each with its own --process and all with the "
      "address of process 0",
      GONE,
    ],
  )
  late.daemon = True
  late.start()
  try:
    host = rendezvous.initialize(coordinator, processes, process)
    import jax

    me, count = jax.process_index(), jax.process_count()
    links = rendezvous.connect(host, me, count) if count > 1 else {}
  except UserError as error:
    end_process(f"error: {error}", 2)
  late.cancel()
  _peers = Peers(me, count, links, newest_step)
  try:
    yield
  except BaseException as error:
    _peers.fail(error)
  _peers.leave()
  _peers = None


def tell(error: BaseException) -> None:
  """The others learn of an error before this process waits for its files, which may take them."""
  if _peers is not None:
    _peers.tell(error)


def meet() -> None:
  """Returns when all processes have come here, however much later than this one.

  On CPU a reduce-scatter gives up after 30 s (https://github.com/jax-ml/jax/issues/40831), so what
  may take one process longer than another, such as compiling, has to be over before it.
  """
  if _peers is not None:
    _peers.meet()


class Peers:
  """Process 0's connections to all others, or another's to process 0, and what they say.

  Messages are lines of JSON: `beat`; `here` and `all here` with the number of a meeting; `end` with
  the process that failed, the exit status that the others take from it, and its reason.

  Args:
    me: this process.
    count: of processes.
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
    self._changed = threading.Condition()  # guards all below
    self._open = set(links)
    self._failing: set[int] = set()  # processes that have said that they end
    self._verdict: tuple[int, int, str] | None = None  # who ends the run, with which status, why
    self._own: tuple[str, int] | None = None  # this process's own last line and status
    self._deadline: float | None = None
    self._meetings, self._met = 0, 0
    self._last: int | None = None  # the number of the last meeting
    self._here: dict[int, set[int]] = {}
    self._thread = threading.Thread(target=self._run, name="peers", daemon=True)
    self._thread.start()

  # What the main thread calls.

  def meet(self) -> None:
    """See the function."""
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
    """Says why this process ends, unless that is but what follows from the end of another."""
    if isinstance(error, Exception) and not isinstance(error, UserError):
      # A collective fails in the same moment in which the connection to the dead process closes.
      with self._changed:
        self._changed.wait_for(lambda: self._verdict is not None, self._beat)
        follows = self._verdict is not None and self._own is None
      if follows:
        self._thread.join()  # which ends the process
    with self._changed:
      if self._own is not None:
        return
      text = " ".join(str(error).split())[:500]
      if isinstance(error, UserError):
        self._own = f"error: {text}", 2
      else:
        name = type(error).__name__
        text = f"{name}: {text}" if text else name
        self._own = f"error: {text}", FAILED
      status = self._own[1]
      if self._deadline is not None:
        self._deadline = time.monotonic() + self._clean_up
    self._send_all({"kind": "end", "process": self.me, "status": status, "reason": text})

  def fail(self, error: BaseException) -> NoReturn:
    """Ends this process with its own error, once the others know of it."""
    self.tell(error)
    with self._changed:  # data on its way is lost where a process closes what it has not read
      self._changed.wait_for(lambda: self._open <= self._failing, self._grace + self._beat)
    if isinstance(error, UserError):
      assert self._own is not None  # `tell` has written it
      self._end(*self._own)
    else:
      self._end("".join(traceback.format_exception(error)).rstrip(), FAILED)
    raise error  # where a test's `end` came back

  # The thread.

  def _run(self) -> None:
    selector, texts = selectors.DefaultSelector(), dict.fromkeys(self._links, b"")
    heard, beaten = dict.fromkeys(self._links, time.monotonic()), 0.0
    for i, link in self._links.items():
      selector.register(link, selectors.EVENT_READ, i)
    while not self._over():
      for key, _ in selector.select(min(self._beat, self._grace) / 4):
        i = key.data
        heard[i] = time.monotonic()
        try:
          data = self._links[i].recv(1 << 16)
        except OSError:  # a reset, which means the same as an orderly end
          data = b""
        if not data:
          selector.unregister(key.fileobj)
          self._lost(i, "it was killed, or its machine went down")
          continue
        *lines, texts[i] = (texts[i] + data).split(b"\n")
        for line in lines:
          self._take(i, json.loads(line))
      now = time.monotonic()
      if now - beaten >= self._beat:
        beaten = now
        self._send_all({"kind": "beat"})
      for i in sorted(self._open):
        if now - heard[i] > self._silence:
          self._lost(i, f"nothing has been heard of it for {self._silence:.0f} s")
      with self._changed:
        due = self._deadline is not None and time.monotonic() >= self._deadline
      if due:
        self._finish()
        break
    selector.close()  # the connections stay: to close one first would look like a death

  def _over(self) -> bool:
    with self._changed:
      return self._last is not None and self._met >= self._last

  def _take(self, i: int, message: dict[str, Any]) -> None:
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
      self._judge(message["process"], message["status"], message["reason"])

  def _arrive(self, i: int, meeting: int) -> None:
    """Counts those who have come, in process 0; tells it, in the others."""
    if self.me != 0:
      self._send_all({"kind": "here", "meeting": meeting})
      return
    with self._changed:
      here = self._here.setdefault(meeting, set())
      here.add(i)
      if len(here) < self.count:
        return
      del self._here[meeting]
      self._send_all({"kind": "all here", "meeting": meeting})
      self._met = meeting
      self._changed.notify_all()

  def _lost(self, i: int, why: str) -> None:
    if self._over():
      return
    with self._changed:
      self._open.discard(i)
      if self._own is not None:  # this one is ending; it need not wait for that process any more
        self._deadline = self._deadline or time.monotonic() + self._clean_up
      self._changed.notify_all()
      expected = i in self._failing
    if not expected:
      self._judge(i, GONE, why)

  def _judge(self, process: int, status: int, why: str) -> None:
    """The first to end is the one that all name."""
    with self._changed:
      if self._verdict is not None:
        return
      self._verdict = process, status, why
      if self._own is None:  # at once for a death: one that is started again must not find this one
        self._deadline = time.monotonic() + (0.0 if status == GONE else self._grace)
      self._changed.notify_all()
    if self.me == 0:  # of the others each knows process 0 alone
      self._send_all({"kind": "end", "process": process, "status": status, "reason": why})

  def _finish(self) -> None:
    with self._changed:
      own, verdict = self._own, self._verdict
    # Process 0's progress bar stands on a line that is not finished.
    start = "\n" if self.me == 0 else ""
    if own is not None:
      self._end(start + own[0], own[1])
      return
    assert verdict is not None  # nothing else sets a deadline
    process, status, why = verdict
    try:
      step = self._newest_step()
      goes_on = "it starts from the beginning" if step is None else f"it goes on from step {step}"
    except OSError:  # the disk was the other machine's
      goes_on = "it goes on from the last checkpoint"
    again = f"run the same command again, {goes_on}"
    who = f"process {process} of {self.count}"
    if status == GONE:
      self._end(f"{start}error: {who} is gone ({why}); {again}", status)
    elif status == FAILED:
      self._end(
        f"{start}error: {who} has failed ({why}), see its own output; once mended, {again}", status
      )
    else:
      self._end(f"{start}error: {who} has ended ({why}); once mended, {again}", status)

  def _send_all(self, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    with self._changed:
      for i in self._open:
        with contextlib.suppress(OSError):  # a dead one's connection: reading it says so as well
          self._links[i].sendall(data)


_ending = threading.Lock()


def end_process(line: str, status: int) -> NoReturn:
  """Writes a line to stderr and ends the process, from any thread; the first call counts.

  Without what Python and JAX do at exit, which would wait for the processes that are gone.
  """
  _ending.acquire()  # never let go of
  with contextlib.suppress(OSError, ValueError):  # nobody reads them any more
    sys.stdout.flush()
  with contextlib.suppress(OSError):
    os.write(2, f"{line}\n".encode())
  os._exit(status)

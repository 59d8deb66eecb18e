"""Processes that decode images, so that a crash, a hang or a bomb costs one file and no more.

Decoders are native code, and files come from anywhere: one that ends its process ends a process of
this module, which is replaced, and the file is a bad image like any other. A process has bounds on
its memory and on the processor time of a file; both are far above what a radiograph needs, so that
no healthy file depends on the machine; one that waits instead of working is ended after minutes.
Processes are started when they are first needed, one for each thread that decodes at the same time,
and end with the program.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from cxrjax.core.errors import UserError
from cxrjax.data.decoding.samples import BadImage

SECONDS = (30, 2.0)  # of processor time for a file, and for each megabyte of it
PATIENCE = 600.0  # more seconds by the clock, on a machine that has other work as well
MEMORY = (1 << 30, 4)  # bytes for a file beside the process's own, and for each byte of it
_PIPE = 1 << 20  # bytes that a pipe holds, where that can be chosen
_REQUEST = struct.Struct("<qq")  # at_least or -1, bytes that follow
_REPLY = struct.Struct("<q")  # bytes of JSON that follow
_START = (
  "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
  "from cxrjax.data.decoding.worker_pool import serve; serve()"
)


class Answer(NamedTuple):
  """What a process made of a file.

  Attributes:
    pixels: gray levels [h w 1], uint8 or uint16.
    facts: the rest, plain values.
  """

  pixels: np.ndarray
  facts: dict[str, Any]


class _Order(NamedTuple):
  """What a process is to do; see `Pool`."""

  function: str
  seconds: tuple[float, float]
  memory: tuple[int, int]
  patience: float

  def bounds(self, size: int) -> tuple[float, int]:
    """Seconds and bytes for a file of so many bytes."""
    return (self.seconds[0] + self.seconds[1] * size / 1e6, self.memory[0] + self.memory[1] * size)


class Pool:
  """Decoding processes, each used by one thread at a time.

  Args:
    function: `module:name` of what decodes: bytes and `at_least` to an `Answer`.
    seconds: of processor time for a file, and for each megabyte of it.
    memory: bytes for a file beside the process's own, and for each byte of it.
    patience: more seconds by the clock.
  """

  def __init__(
    self,
    function: str = "cxrjax.data.decoding.decode:decode_here",
    seconds: tuple[float, float] = SECONDS,
    memory: tuple[int, int] = MEMORY,
    patience: float = PATIENCE,
  ):
    self._order = _Order(function, seconds, memory, patience)
    self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
    self._all: set[_Process] = set()
    self._lock = threading.Lock()
    atexit.register(self.close)
    if hasattr(os, "register_at_fork"):
      os.register_at_fork(after_in_child=self._forget)  # pipes have one owner

  def decode(self, data: bytes, at_least: int | None = None) -> Answer:
    """What the function makes of a file's bytes.

    Raises:
      BadImage: raised by the function, or the file ended its process.
      UserError: raised by the function.
    """
    with self._process() as process:
      try:
        return process.ask(data, at_least)
      except (OSError, EOFError):
        raise BadImage(process.end(len(data))) from None

  def close(self) -> None:
    """Ends the processes that are idle; others start when they are needed."""
    with contextlib.suppress(queue.Empty):
      while True:
        self._drop(self._idle.get_nowait())

  @contextlib.contextmanager
  def _process(self) -> Iterator[_Process]:
    try:
      process = self._idle.get_nowait()
    except queue.Empty:
      process = _Process(self._order)
      with self._lock:
        self._all.add(process)
    whole = False
    try:
      yield process
      whole = True
    except (BadImage, UserError):
      whole = process.alive
      raise
    finally:
      if whole:
        self._idle.put(process)
      else:  # it died, or was left in the middle of an answer
        self._drop(process)

  def _drop(self, process: _Process) -> None:
    process.close()
    with self._lock:
      self._all.discard(process)

  def _forget(self) -> None:
    self._idle, self._all, self._lock = queue.LifoQueue(), set(), threading.Lock()


class _Process:
  """One process, at the other end of two pipes."""

  def __init__(self, order: _Order):
    self._order = order
    # Threads of numerical libraries only take memory there.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    self._child = subprocess.Popen(
      [sys.executable, "-c", _START, json.dumps(sys.path), json.dumps(order)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      env=environment,
      bufsize=0,
    )
    assert self._child.stdin is not None and self._child.stdout is not None
    self._stdin, self._stdout = self._child.stdin, self._child.stdout
    for pipe in (self._stdin, self._stdout):
      with contextlib.suppress(OSError, AttributeError):  # Linux, within the user's limits
        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE)
    self._answers = select.poll()
    self._answers.register(self._stdout, select.POLLIN)

  @property
  def alive(self) -> bool:
    return self._child.poll() is None

  def ask(self, data: bytes, at_least: int | None) -> Answer:
    """Raises OSError or EOFError where the process has died."""
    _write(self._stdin, _REQUEST.pack(-1 if at_least is None else at_least, len(data)), data)
    seconds = self._order.bounds(len(data))[0] + self._order.patience
    if not self._answers.poll(1000 * seconds):
      self._child.kill()
      self._child.wait()
      raise BadImage(f"decoding it did not end within {seconds:.0f} s")
    said = json.loads(bytes(_read(self._stdout, *_REPLY.unpack(_read(self._stdout, _REPLY.size)))))
    if "bad" in said:
      raise BadImage(said["bad"])
    if "user" in said:
      raise UserError(said["user"])
    if "failed" in said:
      raise RuntimeError(f"decoding failed in its process:\n{said['failed']}")
    pixels = np.empty(said.pop("shape"), said.pop("dtype"))
    _read_into(self._stdout, pixels.data.cast("B"))
    return Answer(pixels, said)

  def end(self, size: int) -> str:
    """Why the process has died over a file of so many bytes."""
    try:
      status = self._child.wait(timeout=10)
    except subprocess.TimeoutExpired:  # it closed its pipes and lives
      self._child.kill()
      status = self._child.wait()
    if -status == getattr(signal, "SIGXCPU", None):
      seconds, _ = self._order.bounds(size)
      return f"decoding it took more than {seconds:.0f} s of processor time"
    return f"decoding it ended the decoder ({_signal(status)}): it is damaged, or made to do so"

  def close(self) -> None:
    self._child.kill()
    self._child.wait()
    self._stdin.close()
    self._stdout.close()


def _signal(status: int) -> str:
  try:
    return signal.Signals(-status).name
  except ValueError:
    return f"status {status}"


def _write(pipe: Any, *parts: Any) -> None:
  for part in parts:
    rest = memoryview(part).cast("B")
    while rest:
      rest = rest[pipe.write(rest) :]


def _read(pipe: Any, size: int) -> memoryview:
  found = memoryview(bytearray(size))
  _read_into(pipe, found)
  return found


def _read_into(pipe: Any, rest: memoryview) -> None:
  while rest:
    count = pipe.readinto(rest)
    if not count:
      raise EOFError("the process has ended")
    rest = rest[count:]


def serve() -> None:
  """Decodes what comes in until the pipe is closed: the program of a process."""
  import importlib

  signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends when the program that started it does
  requests, replies = os.fdopen(os.dup(0), "rb", 0), os.fdopen(os.dup(1), "wb", 0)
  os.dup2(2, 1)  # what a decoder prints is no answer
  order = _Order(*json.loads(sys.argv[2]))
  module, name = order.function.split(":")
  function = getattr(importlib.import_module(module), name)
  own = _own_memory()
  with contextlib.suppress(EOFError, BrokenPipeError):
    while True:
      at_least, size = _REQUEST.unpack(_read(requests, _REQUEST.size))
      data = bytes(_read(requests, size))
      _bound(*order.bounds(size), own)
      pixels = None
      try:
        pixels, said = function(data, None if at_least < 0 else at_least)
        pixels = np.ascontiguousarray(pixels)
        said = {**said, "shape": pixels.shape, "dtype": pixels.dtype.str}
      except BadImage as error:
        said = {"bad": str(error)}
      except MemoryError:
        said = {"bad": "decoding it takes more memory than a radiograph does"}
      except UserError as error:
        said = {"user": str(error)}
      except Exception:
        said = {"failed": traceback.format_exc()}
      text = json.dumps(said).encode()
      _write(replies, _REPLY.pack(len(text)), text, *([] if pixels is None else [pixels]))


def _own_memory() -> int:
  """Bytes of address space in use before the first file; 0 where the system does not say."""
  with contextlib.suppress(OSError), open("/proc/self/statm") as opened:
    return int(opened.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
  return 0


def _bound(seconds: float, memory: int, own: int) -> None:
  """Bounds what the next file may take."""
  import resource

  used = resource.getrusage(resource.RUSAGE_SELF)
  bounds = {resource.RLIMIT_CPU: int(used.ru_utime + used.ru_stime + seconds) + 1}
  if own:
    bounds[resource.RLIMIT_AS] = own + memory
  for kind, bound in bounds.items():
    most = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (bound if most == resource.RLIM_INFINITY else min(bound, most), most))


def workers() -> int:
  """Threads to decode with: one more than processors, as each waits for a process of its own."""
  with contextlib.suppress(AttributeError):
    return len(os.sched_getaffinity(0)) + 1
  return (os.cpu_count() or 1) + 1

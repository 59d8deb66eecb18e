"""Pool of decoding processes, so that a crash, a hang or a decompression bomb costs one file only.

Decoders are native code, and files come from anywhere: one that kills its process kills a worker of
this module, which is replaced, and the file is a bad image like any other. A worker is limited in
memory and in processor time per file; both limits are far above what a radiograph needs, so that no
healthy file depends on the machine; one that blocks instead of working is killed after minutes.
Workers are started when first needed, one for each thread that decodes at the same time, and end
with the program.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import io
import json
import mmap
import os
import queue
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from typing import IO, Any, NamedTuple, cast

import numpy as np

from cxrjax.core.errors import UserError
from cxrjax.data.decoding.samples import BadImage

SECONDS = (30, 2.0)  # of processor time per file, and per megabyte of it
PATIENCE = 600.0  # further seconds of wall time, on a machine that is also busy with other work
MEMORY = (1 << 30, 4)  # bytes per file beyond the process's own, and per byte of it
_PIPE = 1 << 20  # capacity of a pipe in bytes, where it can be set
_SHARED = (
  1 << 22
)  # bytes of memory shared with a worker, in which files and pixels travel if they fit
_REQUEST = struct.Struct("<qq")  # at_least or -1, bytes of the file
_REPLY = struct.Struct("<q")  # bytes of JSON that follow
_START = (
  "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
  "from cxrjax.data.decoding.worker_pool import serve; serve()"
)


class DecodeResult(NamedTuple):
  """Result of decoding one file.

  Attributes:
    pixels: gray levels [h w 1], uint8 or uint16.
    facts: further results, of plain types.
  """

  pixels: np.ndarray
  facts: dict[str, Any]


class _WorkerSpec(NamedTuple):
  """Decoding function and limits of a worker; see `Pool`."""

  function: str
  seconds: tuple[float, float]
  memory: tuple[int, int]
  patience: float

  def bounds(self, size: int) -> tuple[float, int]:
    """Limits for a file of `size` bytes: seconds of CPU time, and bytes of memory."""
    return (self.seconds[0] + self.seconds[1] * size / 1e6, self.memory[0] + self.memory[1] * size)


class Pool:
  """Decoding processes, each used by one thread at a time.

  Args:
    function: `module:name` of the decoder, from bytes and `at_least` to an `Answer`.
    seconds: of processor time per file, and per megabyte of it.
    memory: bytes per file beyond the process's own, and per byte of it.
    patience: further seconds of wall time.
  """

  def __init__(
    self,
    function: str = "cxrjax.data.decoding.decode:decode_here",
    seconds: tuple[float, float] = SECONDS,
    memory: tuple[int, int] = MEMORY,
    patience: float = PATIENCE,
  ):
    self._spec = _WorkerSpec(function, seconds, memory, patience)
    self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
    self._all: set[_Process] = set()
    self._lock = threading.Lock()
    atexit.register(self.close)
    if hasattr(os, "register_at_fork"):
      os.register_at_fork(after_in_child=self._forget)  # a pipe has one owner

  def decode(self, data: bytes, at_least: int | None = None) -> DecodeResult:
    """Runs the function on a file's bytes, in a worker.

    Raises:
      BadImage: raised by the function, or the file killed its worker.
      UserError: raised by the function.
    """
    with self._process() as process:
      try:
        return process.decode(data, at_least)
      except (OSError, EOFError):
        raise BadImage(process.death_reason(len(data))) from None

  def close(self) -> None:
    """Ends the idle workers; new ones start when needed."""
    with contextlib.suppress(queue.Empty):
      while True:
        self._drop(self._idle.get_nowait())

  @contextlib.contextmanager
  def _process(self) -> Iterator[_Process]:
    try:
      process = self._idle.get_nowait()
    except queue.Empty:
      process = _Process(self._spec)
      with self._lock:
        self._all.add(process)
    is_reusable = False
    try:
      yield process
      is_reusable = True
    except (BadImage, UserError):
      is_reusable = process.alive
      raise
    finally:
      if is_reusable:
        self._idle.put(process)
      else:  # it died, or was interrupted in the middle of a reply
        self._drop(process)

  def _drop(self, process: _Process) -> None:
    process.close()
    with self._lock:
      self._all.discard(process)

  def _forget(self) -> None:
    self._idle, self._all, self._lock = queue.LifoQueue(), set(), threading.Lock()


class _Process:
  """A worker process: two pipes to it, and memory shared with it, which is cheaper than a pipe."""

  def __init__(self, spec: _WorkerSpec):
    self._spec = spec
    # Threads of numerical libraries would only take memory.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    shared = _anonymous_file(_SHARED)
    try:
      self._shared = mmap.mmap(shared, _SHARED)
      self._child = subprocess.Popen(
        [sys.executable, "-c", _START, json.dumps(sys.path), json.dumps(spec), str(shared)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        pass_fds=(shared,),
        bufsize=0,
      )
    finally:
      os.close(shared)
    assert self._child.stdin is not None and self._child.stdout is not None
    self._stdin = self._child.stdin
    self._stdout = io.BufferedReader(cast(io.RawIOBase, self._child.stdout))
    for pipe in (self._stdin, self._stdout):
      with contextlib.suppress(OSError, AttributeError):  # Linux only, within the user's limits
        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE)
    self._replies = select.poll()
    self._replies.register(self._stdout, select.POLLIN)

  @property
  def alive(self) -> bool:
    return self._child.poll() is None

  def decode(self, data: bytes, at_least: int | None) -> DecodeResult:
    """Sends a file and waits for the reply; raises OSError or EOFError if the process dies."""
    request = _REQUEST.pack(-1 if at_least is None else at_least, len(data))
    _send(self._stdin, self._shared, request, data)
    seconds = self._spec.bounds(len(data))[0] + self._spec.patience
    if not self._replies.poll(1000 * seconds):
      self._child.kill()
      self._child.wait()
      raise BadImage(f"decoding it did not finish within {seconds:.0f} s")
    (size,) = _REPLY.unpack(_read(self._stdout, _REPLY.size))
    reply = json.loads(_read(self._stdout, size))
    if "bad" in reply:
      raise BadImage(reply["bad"])
    if "user" in reply:
      raise UserError(reply["user"])
    if "failed" in reply:
      raise RuntimeError(f"decoding failed in its process:\n{reply['failed']}")
    pixels = np.empty(reply.pop("shape"), reply.pop("dtype"))
    _receive_into(self._stdout, self._shared, pixels)
    return DecodeResult(pixels, reply)

  def death_reason(self, size: int) -> str:
    """Why the process died on a file of `size` bytes."""
    try:
      status = self._child.wait(timeout=10)
    except subprocess.TimeoutExpired:  # it closed its pipes but is alive
      self._child.kill()
      status = self._child.wait()
    if -status == getattr(signal, "SIGXCPU", None):
      seconds, _ = self._spec.bounds(size)
      return f"decoding it took more than {seconds:.0f} s of CPU time"
    cause = _signal_name(status)
    return f"decoding it crashed the decoder ({cause}): it is damaged, or malicious"

  def close(self) -> None:
    self._child.kill()
    self._child.wait()
    self._stdin.close()
    self._stdout.close()
    self._shared.close()


def _signal_name(status: int) -> str:
  try:
    return signal.Signals(-status).name
  except ValueError:
    return f"status {status}"


def _anonymous_file(size: int) -> int:
  """Descriptor of a new file of `size` bytes without a name, in memory where the system can."""
  if hasattr(os, "memfd_create"):
    descriptor = os.memfd_create("cxrjax-decoder")
  else:
    with tempfile.TemporaryFile() as file:
      descriptor = os.dup(file.fileno())
  os.truncate(descriptor, size)
  return descriptor


def _send(pipe: IO[bytes], shared: mmap.mmap, head: bytes, payload: bytes | np.ndarray) -> None:
  """Sends `head` through the pipe, and the payload in shared memory, or after it if too large."""
  content = memoryview(cast(Any, payload)).cast("B")
  unsent = [memoryview(head)]
  if len(content) <= _SHARED:
    shared[: len(content)] = content
  else:
    unsent.append(content)
  for part in unsent:
    while part:
      part = part[pipe.write(part) :]


def _receive_into(pipe: IO[bytes], shared: mmap.mmap, pixels: np.ndarray) -> None:
  """Fills an array with the payload that `_send` sent."""
  buffer = pixels.data.cast("B")
  if len(buffer) <= _SHARED:
    buffer[:] = memoryview(shared)[: len(buffer)]
  elif cast(io.BufferedReader, pipe).readinto(buffer) < len(buffer):
    raise EOFError("the process has ended")


def _read(pipe: IO[bytes], size: int) -> bytes:
  data = pipe.read(size)
  if len(data) < size:
    raise EOFError("the process has ended")
  return data


def serve() -> None:
  """Main loop of a worker: decodes requests until the pipe is closed."""
  import importlib

  signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with its parent
  requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", 0)
  os.dup2(2, 1)  # keeps a decoder's prints out of the replies
  spec = _WorkerSpec(*json.loads(sys.argv[2]))
  shared = mmap.mmap(int(sys.argv[3]), _SHARED)
  module, name = spec.function.split(":")
  function = getattr(importlib.import_module(module), name)
  base_memory = _memory_in_use()
  with contextlib.suppress(EOFError, BrokenPipeError):
    while True:
      at_least, size = _REQUEST.unpack(_read(requests, _REQUEST.size))
      data = shared[:size] if size <= _SHARED else _read(requests, size)
      _set_limits(*spec.bounds(size), base_memory)
      pixels = np.empty(0, np.uint8)
      try:
        pixels, facts = function(data, None if at_least < 0 else at_least)
        pixels = np.ascontiguousarray(pixels)
        reply = {**facts, "shape": pixels.shape, "dtype": pixels.dtype.str}
      except BadImage as error:
        reply = {"bad": str(error)}
      except MemoryError:
        reply = {"bad": "decoding it takes more memory than a radiograph does"}
      except UserError as error:
        reply = {"user": str(error)}
      except Exception:
        reply = {"failed": traceback.format_exc()}
      text = json.dumps(reply).encode()
      _send(replies, shared, _REPLY.pack(len(text)) + text, pixels)


def _memory_in_use() -> int:
  """Address space of this process in bytes; 0 where the system does not report it."""
  with contextlib.suppress(OSError), open("/proc/self/statm") as opened:
    return int(opened.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
  return 0


def _set_limits(seconds: float, memory: int, base_memory: int) -> None:
  """Limits the processor time and memory of this process for the next file."""
  import resource

  used = resource.getrusage(resource.RUSAGE_SELF)
  bounds = {resource.RLIMIT_CPU: int(used.ru_utime + used.ru_stime + seconds) + 1}
  if base_memory:
    bounds[resource.RLIMIT_AS] = base_memory + memory
  for kind, bound in bounds.items():
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))


def num_threads() -> int:
  """Number of decoding threads: one more than processors, as each waits for its own process."""
  with contextlib.suppress(AttributeError):
    return len(os.sched_getaffinity(0)) + 1
  return (os.cpu_count() or 1) + 1

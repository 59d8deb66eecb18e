"""Connects the processes of one run: JAX's own connections, and those of `peers`.

JAX's coordination service lives in process 0. When that dies, the runtime of every other process
aborts it at once, with a dump of its C++ stack, before anything in Python can say what happened
(up to JAX 0.12 at least, a custom callback crashes, and `jax_enable_recoverability` does not cover
process 0). So the others reach the service through a `Relay` of their own: with process 0 gone, the
runtime sees a silent connection instead of a closed one, which it tolerates for longer than `peers`
needs.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import secrets
import shutil
import socket
import tempfile
import threading
import time
from typing import Any

from cxrjax.core.errors import UserError

JOIN = 300  # seconds within which all processes must have been started
TIMEOUT = 25.0  # seconds within which they connect, once JAX has brought them together
SEND = 5.0  # seconds for a message, which never fills the buffer of a live process


def initialize(coordinator: str, processes: int, process: int) -> str:
  """Calls `jax.distributed.initialize`, in all processes but the first through a relay.

  Returns:
    The host of process 0; empty if only JAX knows it.

  Raises:
    UserError: a flag is wrong, or there is no cluster to ask.
  """
  import jax

  address, index = coordinator, process
  options: dict[str, Any] = {}
  if coordinator == "auto":
    address, index = _detect()
  elif ":" in coordinator and coordinator.rpartition(":")[2].isdigit():
    options = {"coordinator_address": address, "num_processes": processes, "process_id": process}
  else:
    raise UserError(f"--coordinator={coordinator} must be host:port of process 0, or 'auto'")
  host, _, port = address.rpartition(":")
  host = host.strip("[]")
  try:
    if index and address:
      with Relay(host, int(port)) as relay:
        jax.distributed.initialize(
          **options | {"coordinator_address": relay.address}, initialization_timeout=2 * JOIN
        )
        relay.hold = True
    else:
      jax.distributed.initialize(**options, initialization_timeout=2 * JOIN)
  except (RuntimeError, ValueError) as error:
    reason = " ".join(str(error).split())[:300]
    raise UserError(
      f"--coordinator={coordinator}: the processes cannot find each other ({reason}); give the "
      "address of process 0, --processes and --process, or 'auto' on a cluster"
    ) from error
  return host


def _detect() -> tuple[str, int]:
  """Process 0's address and the index of this process, as the cluster reports them.

  JAX has no public function for this. If the private one goes, `initialize` still finds the cluster
  but there is no relay: when process 0 dies, JAX's own message ends the others.
  """
  try:
    from jax._src.clusters import ClusterEnv

    detect = ClusterEnv.auto_detect_unset_distributed_params
  except (ImportError, AttributeError):
    return "", 0
  address, _, index, _ = detect(None, None, None, None, None, 2 * JOIN)
  return address or "", index or 0


def connect(host: str, me: int, count: int) -> dict[int, socket.socket]:
  """Connects process 0 with each of the others, which learn its address through JAX.

  Args:
    host: of process 0; empty to use the name that it reports.
    me: index of this process.
    count: number of processes.

  Returns:
    Sockets by process: of all others in process 0, of process 0 in the others.

  Raises:
    UserError: they cannot reach each other.
  """
  import numpy as np
  from jax.experimental import multihost_utils

  server, port, token = None, 0, secrets.token_hex(16)
  if me == 0:
    dual = socket.has_dualstack_ipv6()
    server = socket.create_server(
      ("", 0),
      family=socket.AF_INET6 if dual else socket.AF_INET,
      dualstack_ipv6=dual,
      backlog=count,
    )
    port = server.getsockname()[1]
  message = json.dumps([socket.gethostname(), port, token]).encode().ljust(512)
  message = multihost_utils.broadcast_one_to_all(np.frombuffer(message, np.uint8))
  name, port, token = json.loads(np.asarray(message).tobytes())
  if server is not None:
    with server:
      links = _accept(server, count, token)
  else:
    try:
      links = {0: socket.create_connection((host or name, port), timeout=TIMEOUT)}
      links[0].sendall(f"{token} {me}\n".encode())
    except OSError as error:
      raise UserError(
        f"process {me} cannot reach process 0 at {host or name}:{port} ({error}); open the ports "
        "between their machines"
      ) from error
  for link in links.values():
    link.settimeout(SEND)
  return links


def _accept(server: socket.socket, count: int, token: str) -> dict[int, socket.socket]:
  links: dict[int, socket.socket] = {}
  deadline = time.monotonic() + TIMEOUT
  while len(links) < count - 1:
    try:
      server.settimeout(max(deadline - time.monotonic(), 0.001))
      link, _ = server.accept()
    except OSError as error:
      missing = min(set(range(1, count)) - set(links))
      raise UserError(
        f"process {missing} of {count} has not connected to process 0 within {TIMEOUT:.0f} s; open "
        "the ports between their machines, or check the output of that process"
      ) from error
    link.settimeout(SEND)
    try:
      # Unbuffered: nothing after the line may be consumed.
      with link.makefile("rb", buffering=0) as raw:
        link_token, _, process = raw.readline(100).decode("ascii", "replace").partition(" ")
    except OSError:  # a stranger that sent nothing
      link_token = ""
    if link_token == token:
      links[int(process)] = link
    else:  # not a process of this run
      link.close()
  return links


class Relay:
  """A local socket that relays to `host:port` and hides when the remote end closes.

  It accepts connections while entered; open ones outlive the context. It is a Unix socket because
  gRPC would reach a port through an HTTP proxy if the environment names one.

  Attributes:
    address: for gRPC.
    hold: once True, the local side is no longer closed when the remote side closes.
  """

  def __init__(self, host: str, port: int) -> None:
    self._remote, self.hold = (host, port), False
    # A socket's path may have 107 characters, and TMPDIR may be deep.
    self._folder = pathlib.Path(tempfile.mkdtemp(prefix="cxrjax-", dir="/tmp"))
    self.address = f"unix:{self._folder / 'relay'}"
    self._server = socket.socket(socket.AF_UNIX)
    self._server.bind(str(self._folder / "relay"))
    self._server.listen()

  def __enter__(self) -> Relay:
    threading.Thread(target=self._accept, name="relay", daemon=True).start()
    return self

  def __exit__(self, *_: object) -> None:
    with contextlib.suppress(OSError):  # wakes the thread that accepts; not everywhere possible
      self._server.shutdown(socket.SHUT_RDWR)
    self._server.close()
    shutil.rmtree(self._folder)

  def _accept(self) -> None:
    while True:
      try:
        near, _ = self._server.accept()
      except OSError:  # closed
        return
      try:
        far = socket.create_connection(self._remote, timeout=TIMEOUT)
      except OSError:  # process 0 is not up yet: gRPC retries
        near.close()
        continue
      far.settimeout(None)
      threading.Thread(target=self._serve, args=(near, far), name="relay", daemon=True).start()

  def _serve(self, near: socket.socket, far: socket.socket) -> None:
    """Relays until the local side closes or resets."""
    with near, far:
      back = threading.Thread(
        target=self._forward_back, args=(near, far), name="relay", daemon=True
      )
      back.start()
      with contextlib.suppress(OSError):
        while data := near.recv(1 << 16):
          # On hold, data for a remote side that is gone is dropped.
          with contextlib.suppress(*[OSError] if self.hold else []):
            far.sendall(data)
      for end in (near, far):
        with contextlib.suppress(OSError):
          end.shutdown(socket.SHUT_RDWR)
      back.join()

  def _forward_back(self, near: socket.socket, far: socket.socket) -> None:
    with contextlib.suppress(OSError):
      while data := far.recv(1 << 16):
        near.sendall(data)
    if not self.hold:
      with contextlib.suppress(OSError):
        near.shutdown(socket.SHUT_RDWR)

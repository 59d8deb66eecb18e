"""How the processes of one run find each other: JAX's own connections, and those of `peers`.

JAX's coordination service lives in process 0. When that dies, the runtime of every other process
aborts it at once, with a dump of its C++ stack, before anything in Python can say what happened
(up to JAX 0.12 at least, a callback of one's own crashes, and `jax_enable_recoverability` does not
cover process 0). So the others reach the service through a `Relay` in themselves: with process 0
gone, the runtime sees a connection that is silent instead of closed, which it bears for longer than
`peers` needs.
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

from cxrjax.core.errors import UserError

JOIN = 300  # seconds within which all processes must have been started
TIMEOUT = 25.0  # seconds within which they connect, once JAX has brought them together

def initialize(coordinator: str, processes: int, process: int) -> str:
  """`jax.distributed.initialize`, in all processes but the first through a relay.

  Returns:
    The host of process 0; empty where only JAX knows it.

  Raises:
    UserError: the processes did not find each other.
  """
  import jax

  address, index, given = coordinator, process, {}
  if coordinator == "auto":
    address, index = _detect()
  elif ":" in coordinator and coordinator.rpartition(":")[2].isdigit():
    given = {"coordinator_address": address, "num_processes": processes, "process_id": process}
  else:
    raise UserError(f"--coordinator={coordinator} must be host:port of process 0, or 'auto'")
  host, _, port = address.rpartition(":")
  host = host.strip("[]")
  try:
    if index and address:
      with Relay(host, int(port)) as relay:
        jax.distributed.initialize(
          **given | {"coordinator_address": relay.address}, initialization_timeout=JOIN)
        relay.hold = True
    else:
      jax.distributed.initialize(**given, initialization_timeout=JOIN)
  except (RuntimeError, ValueError) as error:
    reason = " ".join(str(error).split())[:300]
    raise UserError(
      f"--coordinator={coordinator}: the processes did not find each other ({reason}); start all "
      f"--processes within {JOIN} s, with --process=0, 1, ... and the address of process 0"
      ) from error
  return host


def _detect() -> tuple[str, int]:
  """What the cluster says of process 0's address, and which process this is.

  JAX has no public function for it. Should this one go, `initialize` still finds the cluster, only
  the relay falls away: when process 0 dies, JAX's own message ends the others.
  """
  try:
    from jax._src.clusters import ClusterEnv
    detect = ClusterEnv.auto_detect_unset_distributed_params
  except (ImportError, AttributeError):
    return "", 0
  address, _, index, _ = detect(None, None, None, None, None, JOIN)
  return address or "", index or 0


def connect(host: str, me: int, count: int) -> dict[int, socket.socket]:
  """The watch's sockets by process. Process 0 says through JAX where it listens."""
  import numpy as np
  from jax.experimental import multihost_utils

  token, server = secrets.token_hex(16), None
  if me == 0:
    dual = socket.has_dualstack_ipv6()
    server = socket.create_server(
      ("", 0), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual,
      backlog=count)
  port = server.getsockname()[1] if server else 0
  told = json.dumps([socket.gethostname(), port, token]).encode().ljust(512)
  told = bytes(np.asarray(multihost_utils.broadcast_one_to_all(np.frombuffer(told, np.uint8))))
  name, port, token = json.loads(told)
  links: dict[int, socket.socket] = {}
  if server is None:
    try:
      links[0] = socket.create_connection((host or name, port), timeout=TIMEOUT)
    except OSError as error:
      raise UserError(
        f"process {me} cannot reach process 0 at {host or name}:{port} ({error}); let its machine "
        "accept connections from this one") from error
    links[0].sendall(f"{token} {me}\n".encode())
  else:
    with server:
      server.settimeout(TIMEOUT)
      while len(links) < count - 1:
        try:
          link, _ = server.accept()
          link.settimeout(TIMEOUT)
          with link.makefile("rb") as first:
            word, _, i = first.readline(100).decode(errors="replace").partition(" ")
        except OSError as error:
          missing = sorted(set(range(1, count)) - set(links))
          raise UserError(
            f"process {missing[0]} of {count} has not connected ({error}); let this machine "
            "accept connections from it, then run the same command again") from error
        if secrets.compare_digest(word, token):  # whoever else knocks is no process of this run
          links[int(i)] = link
        else:
          link.close()
  for link in links.values():
    link.settimeout(5.0)  # for what is sent: it never fills the buffer of a process that lives
  return links


class Relay:
  """A local socket whose bytes go to and from `host:port`, and that never says when that is gone.

  Entered, it accepts connections; those that it has stay when it is left. A file and not a port,
  as gRPC would ask an HTTP proxy for the latter where the environment names one.

  Attributes:
    address: for gRPC.
    hold: from now on the local side is not told that the other one has closed.
  """

  def __init__(self, host: str, port: int) -> None:
    self._there, self.hold = (host, port), False
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
        far = socket.create_connection(self._there, timeout=TIMEOUT)
      except OSError:  # process 0 is not there yet: gRPC asks again
        near.close()
        continue
      far.settimeout(None)
      for pair in ((near, far), (far, near)):
        threading.Thread(target=self._pump, args=pair, name="relay", daemon=True).start()

  def _pump(self, source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):  # a reset is an end like any other
      while data := source.recv(1 << 16):
        target.sendall(data)
    if source.family == socket.AF_UNIX or not self.hold:
      for end in (source, target):
        with contextlib.suppress(OSError):
          end.shutdown(socket.SHUT_RDWR)

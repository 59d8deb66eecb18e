"""Each process says why a run of many ends, whoever of them it was; fake processes in threads."""

import contextlib
import socket
import threading

import pytest

from cxrjax.core.errors import UserError
from cxrjax.training import peers, rendezvous
from cxrjax.training.peers import Peers


class Run:
  """Processes in this one, connected by socket pairs. `ends[i]`: what the i-th ended with."""

  def __init__(self, count, **options):
    options = {"beat": 0.05, "silence": 60.0, "grace": 0.05, "clean_up": 0.05} | options
    self.ends, self.ended = {i: [] for i in range(count)}, threading.Condition()
    pairs = {i: socket.socketpair() for i in range(1, count)}
    self.sockets = {
      0: {i: a for i, (a, _) in pairs.items()},
      **{i: {0: b} for i, (_, b) in pairs.items()},
    }
    self.options, self.count, self.peers = options, count, {}

  def start(self, *who):
    for i in who:
      self.peers[i] = Peers(
        i,
        self.count,
        self.sockets[i],
        lambda: 40,
        end=lambda *e, i=i: self.end(i, e),
        **self.options,
      )
    return self

  def end(self, i, how):
    with self.ended:
      self.ends[i].append(how)
      self.ended.notify_all()

  def end_of(self, i):
    """Line and status; only the first counts, as the real one does not come back."""
    with self.ended:
      assert self.ended.wait_for(lambda: self.ends[i], 60)
      return self.ends[i][0]

  def kill(self, i):
    for s in self.sockets[i].values():
      s.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def run():
  runs = []

  def make(*args, **options):
    runs.append(Run(*args, **options))
    return runs[-1]

  yield make
  for each in runs:
    for i in each.sockets:
      each.kill(i)
    for one in each.peers.values():
      one._thread.join()
    for sockets in each.sockets.values():
      for s in sockets.values():
        s.close()


AGAIN = "run the same command again: it resumes from step 40"


def test_one_that_dies_is_named_by_all_others(run):
  three = run(3).start(0, 1)
  three.kill(2)
  line = "error: process 2 of 3 is gone (it was killed, or its machine is down); " + AGAIN
  assert three.end_of(0) == ("\n" + line, peers.GONE)  # below its progress bar
  assert three.end_of(1) == (line, peers.GONE)


def test_the_first_process_may_be_the_one(run):
  three = run(3).start(1, 2)
  three.kill(0)
  for i in (1, 2):
    line, status = three.end_of(i)
    assert line.startswith("error: process 0 of 3 is gone") and status == peers.GONE


def test_one_that_is_silent_is_gone(run):
  line, status = run(2, silence=0.3).start(0).end_of(0)
  assert "process 1 of 2 is gone (nothing has been heard from it for 0 s)" in line
  assert status == peers.GONE


def test_before_the_first_checkpoint_it_begins_anew(run):
  two = run(2).start(0)
  two.peers[0]._newest_step = lambda: None
  two.kill(1)
  assert two.end_of(0)[0].endswith("run the same command again: it starts from the beginning")


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize(
  ("error", "own", "others"),
  [
    (
      UserError("the disk is full; free some"),
      ("error: the disk is full; free some", 2),
      ("has ended (the disk is full; free some); once fixed, " + AGAIN, 2),
    ),
    (
      TypeError("not a number"),
      ("TypeError: not a number", 1),
      ("has failed (TypeError: not a number), see its own output; once fixed, " + AGAIN, 1),
    ),
  ],
)
def test_one_that_fails_says_why_and_so_do_the_others(run, who, error, own, others):
  two = run(2).start(0, 1)
  with pytest.raises(type(error)):
    two.peers[who].fail(error)
  line, status = two.end_of(who)
  assert line.splitlines()[-1] == own[0] and status == own[1]
  line, status = two.end_of(1 - who)
  assert line.strip() == f"error: process {who} of 2 {others[0]}" and status == others[1]


def test_each_says_its_own_mistake_where_all_make_one(run):
  two = run(2, grace=60.0, beat=1.0).start(0, 1)

  def fail(i):
    with contextlib.suppress(UserError):
      two.peers[i].fail(UserError(f"mistake {i}"))

  threads = [threading.Thread(target=fail, args=[i]) for i in (0, 1)]
  for thread in threads:
    thread.start()
  for i in (0, 1):
    assert two.end_of(i) == (f"error: mistake {i}", 2)
  for thread in threads:
    thread.join()


def test_what_follows_from_a_death_is_not_told_as_an_error(run):
  two = run(2, beat=60.0).start(0)
  two.kill(1)
  with pytest.raises(RuntimeError):
    two.peers[0].fail(RuntimeError("Gloo AllReduce failed: connection closed by peer"))
  assert "process 1 of 2 is gone" in two.end_of(0)[0]


def test_one_that_hangs_while_it_fails_ends_all_the_same(run):
  two = run(2).start(0)
  two.peers[0].tell(UserError("the disk is full"))  # and then waits for its files, without end
  two.kill(1)
  assert two.end_of(0) == ("\nerror: the disk is full", 2)


def test_they_meet_and_leave_together(run):
  two, past = run(2).start(0, 1), threading.Event()

  def first():
    two.peers[0].meet()
    past.set()
    two.peers[0].leave()

  thread = threading.Thread(target=first)
  thread.start()
  assert not past.wait(0.2)
  two.peers[1].meet()
  assert past.wait(60)
  two.peers[1].leave()
  thread.join()
  two.kill(0)
  assert two.ends == {0: [], 1: []}


@pytest.mark.parametrize("hold", [False, True])
def test_a_relay_keeps_quiet_about_a_service_that_is_gone(hold):
  with socket.create_server(("127.0.0.1", 0)) as server:
    with rendezvous.Relay(*server.getsockname()) as relay:
      near = socket.socket(socket.AF_UNIX)
      near.connect(relay.address.removeprefix("unix:"))
      far, _ = server.accept()
      relay.hold = hold
    near.sendall(b"asked")
    assert far.recv(5) == b"asked"
    far.sendall(b"answered")
    assert near.recv(8) == b"answered"
    far.close()
    with near:
      if hold:  # not even where it speaks to nobody
        for _ in range(3):
          near.sendall(b"asked")
      near.settimeout(0.3 if hold else 60)
      if hold:
        with pytest.raises(TimeoutError):
          near.recv(1)
      else:
        assert near.recv(1) == b""


def test_the_cluster_says_where_the_first_process_is(monkeypatch):
  for name, value in {
    "SLURM_JOB_ID": "5",
    "SLURM_STEP_NODELIST": "node[3-4]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
  }.items():
    monkeypatch.setenv(name, value)
  address, index = rendezvous._detect()
  assert address.startswith("node3:") and index == 1


def test_a_coordinator_without_a_port_is_a_mistake():
  with pytest.raises(UserError, match="--coordinator=host must be host:port"):
    rendezvous.initialize("host", 2, 1)

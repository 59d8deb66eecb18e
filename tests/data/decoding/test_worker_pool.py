"""Files that end, hang or fill the process that decodes them."""

import contextlib
import os
import signal
import threading
import time

import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.data.decoding.samples import BadImage
from cxrjax.data.decoding.worker_pool import Pool


@pytest.fixture
def pool():
  pool = Pool("hostile_decoder:act")
  yield pool
  pool.close()


@pytest.mark.parametrize("size", [3_000_000, 9_000_000], ids=["shared memory", "pipe"])
def test_answers_come_back_whole_and_the_process_is_used_again(pool, size):
  data = b"x " + np.random.default_rng(0).bytes(size)
  first = pool.decode(data, 7)
  assert first.pixels.tobytes() == data and first.facts["n"] == 7
  again = pool.decode(b"print this")
  assert again.pixels.tobytes() == b"print this" and again.facts["n"] is None
  assert again.facts["pid"] == first.facts["pid"] != os.getpid()


@pytest.mark.parametrize(
  "word, reason",
  [
    ("crash", r"crashed the decoder \(SIGSEGV\)"),
    ("abort", r"crashed the decoder \(SIGABRT\)"),
    ("exit", "crashed the decoder"),
    ("fill", "more memory than a radiograph"),
  ],
)
def test_what_ends_the_process_is_a_bad_image_and_costs_nothing_else(pool, word, reason):
  assert pool.decode(b"fine").pixels.size == 4
  with pytest.raises(BadImage, match=reason):
    pool.decode(word.encode())
  assert pool.decode(b"fine").pixels.size == 4


def test_processor_time_is_bounded():
  with contextlib.closing(Pool("hostile_decoder:act", seconds=(0.1, 0.0))) as pool:
    with pytest.raises(BadImage, match="more than 0 s of CPU time"):
      pool.decode(b"spin")
    assert pool.decode(b"fine").pixels.size == 4


def test_a_process_that_only_waits_is_ended():
  pool = Pool("hostile_decoder:act", seconds=(0.1, 0.0), patience=0.5)
  with contextlib.closing(pool), pytest.raises(BadImage, match="did not finish within 1 s"):
    pool.decode(b"wait")


def test_errors_are_told_apart(pool):
  with pytest.raises(BadImage, match=r"^it is bad$"):
    pool.decode(b"bad")
  with pytest.raises(UserError, match=r"^install something$"):
    pool.decode(b"user")
  with pytest.raises(RuntimeError, match="ZeroDivisionError: a mistake of ours"):
    pool.decode(b"bug")
  assert pool.decode(b"fine").pixels.size == 4


def test_threads_have_processes_of_their_own(pool):
  found, start = {}, threading.Barrier(3)

  def work(i):
    start.wait()
    found[i] = {pool.decode(f"{i} {k}".encode()).pixels.tobytes() for k in range(20)}

  threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == {i: {f"{i} {k}".encode() for k in range(20)} for i in range(3)}
  assert len(pool._all) <= 3


def test_processes_end_with_the_program_and_survive_ctrl_c(pool):
  pid = pool.decode(b"fine").facts["pid"]
  os.kill(pid, signal.SIGINT)
  assert pool.decode(b"fine").facts["pid"] == pid
  pool.close()
  for _ in range(100):
    try:
      os.kill(pid, 0)
    except ProcessLookupError:
      return
    time.sleep(0.05)
  pytest.fail("the process is still there")


@pytest.mark.filterwarnings("ignore:os.fork")  # JAX warns of it, which the child does not use
def test_a_forked_child_does_not_use_its_parents_processes(pool):
  pid = pool.decode(b"fine").facts["pid"]
  reader, writer = os.pipe()
  child = os.fork()
  if not child:
    try:
      os.write(writer, str(pool.decode(b"fine").facts["pid"]).encode())
      pool.close()
    finally:
      os._exit(0)
  os.waitpid(child, 0)
  assert int(os.read(reader, 100)) not in (0, pid)
  assert pool.decode(b"fine").facts["pid"] == pid

"""A process that dies ends the others, which say so in one line; the same command goes on."""

import functools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import small
from small import LENGTH, REPOSITORY, assert_same, broken, free_port, lines, losses, tiny, two

from cxrjax.training import peers
from cxrjax.training.checkpoint import newest_step

pytestmark = pytest.mark.full

finish = functools.partial(small.finish, timeout=1800)  # a machine may be slow, not the product


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly():
  """Most of the time of these runs is compilation, in every process of each."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """Ten steps of two processes without interruption."""
  workdir = tmp_path_factory.mktemp("runs") / "straight"
  with two(tiny(**LENGTH), workdir, free_port()) as both:
    for process in both:
      finish(process)
  return workdir


def last_line(err):
  """What a process ended with, beside its progress bars; there is no traceback and no dump."""
  said = [line for line in err.splitlines() if line.strip() and "%|" not in line]
  assert len(said) == 1, err
  return said[0]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_the_same_command_goes_on(straight, tmp_path, victim):
  config, workdir = broken(tmp_path, at=8, process=victim, how="SIGKILL"), tmp_path / "run"
  port = free_port()
  with two(config, workdir, port, path=tmp_path) as both:
    finish(both[victim], -signal.SIGKILL)
    died = time.monotonic()
    _, err = finish(both[1 - victim], peers.GONE)
    assert time.monotonic() - died < 60
  step = newest_step(workdir / "checkpoints")
  assert step in (3, 6)
  assert last_line(err) == (
    f"error: process {victim} of 2 is gone (it was killed, or its machine is down); run the same "
    f"command again: it resumes from step {step}"
  )
  with two(config, workdir, port, path=tmp_path) as both:
    for process in both:
      finish(process)
  assert_same(workdir, straight)
  np.testing.assert_array_equal(losses(workdir), losses(straight))
  assert [r["step"] for r in lines(workdir)] == list(range(1, 11))


def test_a_process_that_falls_silent_ends_the_other(tmp_path):
  config, workdir = broken(tmp_path, at=5, process=1, how="SIGSTOP"), tmp_path / "run"
  with two(config, workdir, free_port(), path=tmp_path) as both:
    _, err = finish(both[0], peers.GONE)
  assert "process 1 of 2 is gone (nothing has been heard from it for 25 s)" in last_line(err)
  assert time.time() - (tmp_path / "broken").stat().st_mtime < 90


def test_a_mistake_in_one_process_is_told_by_all(tmp_path):
  config, workdir = broken(tmp_path, at=2, process=1, how="mistake"), tmp_path / "run"
  with two(config, workdir, free_port(), path=tmp_path) as both:
    _, err = finish(both[0], 2)
    _, own = finish(both[1], 2)
  assert last_line(own) == "error: the disk is full; free some space"
  assert "process 1 of 2 has ended (the disk is full; free some space)" in last_line(err)


def test_a_process_that_nobody_joins_ends():
  program = (
    "from cxrjax.training import peers, rendezvous\nrendezvous.JOIN = 2\n"
    f"with peers.process_group('127.0.0.1:{free_port()}', 2, {{}}, lambda: None): pass"
  )
  for process in (0, 1):
    done = subprocess.run(
      [sys.executable, "-c", program.format(process)],
      env=os.environ | {"JAX_PLATFORMS": "cpu"},
      cwd=REPOSITORY,
      capture_output=True,
      text=True,
      timeout=300,
    )
    assert done.returncode == peers.GONE
    assert "not all processes connected within 2 s" in last_line(done.stderr)

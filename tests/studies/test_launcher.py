"""Runs in processes of their own: what they are given, how they end, what waits for them."""

import json
import os
import signal
import threading
import time
import types

import pytest

from cxrjax.studies import launcher


@pytest.fixture
def program(tmp_path, monkeypatch):
  """Stands in for Python: runs these lines of shell instead."""

  def make(text):
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setattr(launcher.sys, "executable", str(path))
    return launcher.Job("dino-seed0", ("--config=a b",))

  return make


@pytest.mark.parametrize(
  "text, why",
  [
    ("exit 0", None),
    ("printf '1\\r2\\rerror: it is cold\\n' >&2; exit 2", "it is cold"),
    ("echo Traceback; echo 'KeyError: 3'; exit 1", "KeyError: 3"),
    ("exit 3", "exit status 3"),
    ("kill -KILL $$", "ended by SIGKILL (out of memory?)"),
  ],
)
def test_a_run_in_a_process_of_its_own(program, tmp_path, text, why):
  failed = {"dino-seed0": "of another time"}
  job = program(f'echo "$@" > {tmp_path / "given"}; {text}')
  assert launcher.launch(job, tmp_path, failed) is None
  assert failed == ({} if why is None else {"dino-seed0": why})
  given = (tmp_path / "given").read_text().split()
  assert given == ["-m", "cxrjax.main", "--config=a", "b", f"--workdir={tmp_path / 'dino-seed0'}"]
  log = (tmp_path / "dino-seed0.log").read_text()
  assert "\r" not in log and (why in log if why == "it is cold" else True)


def test_a_signal_reaches_the_run(program, tmp_path):
  job = program("trap 'echo saved; exit 143' TERM; echo on; while :; do sleep 0.05; done")

  def stop():
    while "on" not in (log.read_text() if log.exists() else ""):
      time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)

  log = tmp_path / "dino-seed0.log"
  thread = threading.Thread(target=stop)
  thread.start()
  assert launcher.launch(job, tmp_path, {}) == signal.SIGTERM
  thread.join()
  assert log.read_text().split() == ["on", "saved"]


CONFIG = """from ml_collections import ConfigDict
def get_config(arg=""):
  return ConfigDict({"arg": arg, "a": {"rate": 0.1, "name": "x", "pairs": ((1, "2 %"),)}})
"""


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "config.py"
  path.write_text(CONFIG)
  return path


class Board:
  """Stands in for the runs and their page; what is in `broken` fails."""

  NAME = "page.html"

  def __init__(self, monkeypatch, broken=()):
    self.broken, self.launched, self.said = set(broken), [], []
    monkeypatch.setattr(launcher, "launch", self.launch)

  def launch(self, job, workdir, failed):
    self.launched.append(job.name)
    failed.pop(job.name, None)
    if job.name in self.broken:
      failed[job.name] = "it is cold"
      return signal.SIGTERM if job.name == "stopped" else None
    folder = workdir / job.name
    folder.mkdir()
    (folder / "run.json").write_text('{"status": "finished"}')
    (folder / "config.json").write_text(json.dumps(job.config))
    return None

  def take(self, jobs, workdir):
    show = launcher.Reporting(
      key="board",
      begins=lambda job: f"{job.name} begins",
      ended=lambda job, why: why or "ends",
      collect=lambda failed: {"failed": dict(failed)},
      rows=lambda found: [list(found["failed"])],
      page=types.SimpleNamespace(
        write=lambda workdir: workdir / self.NAME, table=lambda found: "the table"
      ),
    )
    self.launched, self.said = [], []
    return launcher.run_jobs(
      jobs, workdir, show, command="c", opening=["now"], say=self.said.append
    )


def test_what_begins_with_a_failed_run_waits_and_the_rest_goes_on(file, tmp_path, monkeypatch):
  def job(name, *needs):
    return launcher.Job(name, (f"--config={file}:{name}",), needs=needs)

  jobs = [job("a"), job("b", "a"), job("c", "b"), job("d")]
  board = Board(monkeypatch, ["a"])
  workdir = tmp_path / "run"
  assert board.take(jobs, workdir) == 1
  assert board.launched == ["a", "d"]
  said = "\n".join(board.said)
  assert "  2/4   b: waits for a, which did not end" in said and "c: waits for b" in said
  assert "failed    a: it is cold" in said and said.endswith(f"report    {workdir / 'page.html'}")
  board.broken.clear()
  assert board.take(jobs, workdir) == 0
  assert board.launched == ["a", "b", "c"]  # the same command goes on there
  assert board.take(jobs, workdir) == 0 and board.launched == []
  file.write_text(CONFIG.replace("0.1", "0.2"))
  assert board.take([launcher.Job("a", (f"--config={file}:a",))], workdir) == 1
  assert any("was begun with another config (config.a.rate: 0.1 -> 0.2)" in s for s in board.said)


def test_a_config_that_cannot_be_made_is_a_run_that_failed(file, tmp_path, monkeypatch):
  jobs = [
    launcher.Job("a", (f"--config={tmp_path}/none.py",)),
    launcher.Job("b", (f"--config={file}",)),
  ]
  (tmp_path / "run" / "a").mkdir(parents=True)
  (tmp_path / "run" / "a" / "run.json").write_text("{}")
  (tmp_path / "run" / "a" / "config.json").write_text("{}")
  board = Board(monkeypatch)
  assert board.take(jobs, tmp_path / "run") == 1 and board.launched == ["b"]
  facts = json.loads((tmp_path / "run" / "run.json").read_text())
  assert "none.py is no file" in facts["board"]["failed"]["a"]


def test_a_signal_ends_all(file, tmp_path, monkeypatch):
  jobs = [launcher.Job(n, (f"--config={file}",)) for n in ("stopped", "b")]
  board = Board(monkeypatch, ["stopped"])
  assert board.take(jobs, tmp_path / "run") == 128 + signal.SIGTERM
  assert board.launched == ["stopped"] and "goes on from there" in board.said[-1]
  facts = json.loads((tmp_path / "run" / "run.json").read_text())
  assert facts["status"] == "stopped: SIGTERM"

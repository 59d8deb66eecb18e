"""Killed at any moment, the same command goes on and ends as if it had not been.

A moment is an event of the file system: the n-th time that a process of the command is about to
open a file to write, rename, remove or make something below its folder. So the moments are the same
on fast machines and slow ones, and lie where something may be left half done.
"""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from small import REPOSITORY

from cxrjax.training.checkpoint import load_flat

pytestmark = pytest.mark.full

# Imported by every Python that a command starts. One byte is one event, of whichever process.
DRILL = """
import os, signal, sys
folder, counter, at = os.environ["DRILL"].split(os.pathsep)
events = os.open(counter, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def hook(event, args):
  if event == "open":
    if not (isinstance(args[1], str) and set(args[1]) & set("wax+")
            or args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
      return
  elif event not in ("os.rename", "os.remove", "os.mkdir", "os.truncate", "os.rmdir"):
    return
  if isinstance(args[0], int) or not os.fsdecode(args[0]).startswith(folder):
    return
  os.write(events, b".")
  if os.fstat(events).st_size == int(at):
    os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
"""
KEEP = ["--config.checkpoint.every=3 steps", "--config.log_every=1 steps"]
COMMANDS = {
  "train": [
    "-m",
    "cxrjax.main",
    "--config=configs/dino.py:tiny",
    *KEEP,
    "--config.duration=9 steps",
  ],
  "finetune": [
    "-m",
    "cxrjax.main",
    "--config=configs/finetune.py:tiny,duration=9 steps,eval_every=3 steps",
    *KEEP,
  ],
  "segment": [
    "-m",
    "cxrjax.main",
    "--config=configs/segment.py:tiny,duration=6 steps,eval_every=3 steps",
    *KEEP,
  ],
  "study": [
    "-m",
    "cxrjax.main",
    "--config=configs/label_efficiency.py:tiny,inits=scratch,fractions=50+100,seeds=0",
  ],
}


class Command:
  """A command in folders below `tmp_path`, killed where it is wanted."""

  def __init__(self, arguments, flag, tmp_path):
    self._arguments, self._flag, self._tmp = arguments, flag, tmp_path
    (tmp_path / "drill").mkdir()
    (tmp_path / "drill" / "sitecustomize.py").write_text(DRILL)

  def __call__(self, name, at=0):
    """Runs it until it ends; returns its status, the number of events, and what it printed."""
    counter = self._tmp / "events"
    counter.unlink(missing_ok=True)
    folder = self._tmp / name
    env = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "DRILL": os.pathsep.join([str(folder), str(counter), str(at)]),
      "PYTHONPATH": os.pathsep.join([str(self._tmp / "drill"), str(REPOSITORY)]),
    }
    done = subprocess.run(
      [sys.executable, *self._arguments, f"--{self._flag}={folder}"],
      env=env,
      cwd=REPOSITORY,
      capture_output=True,
      text=True,
    )
    assert "Traceback" not in done.stderr, done.stderr[-4000:]
    return done.returncode, counter.stat().st_size, done.stdout + done.stderr


def drill(command, seed):
  """Two folders, each with two kills: one at any moment, one in what is left."""
  status, events, said = command("straight")
  assert status == 0 and events > 10, said
  rng, kills = np.random.default_rng(seed), 0
  for name in ("one", "two"):
    first = int(rng.integers(1, events))
    for at in (first, int(rng.integers(1, max(2, (events - first) // 2)))):
      status, _, said = command(name, at)
      # A study outlives one of its runs, and says so.
      assert status in (-signal.SIGKILL, 0) or (status == 1 and "the same command goes on" in said)
      kills += status != 0
    status, _, said = command(name)
    assert status == 0, said
    yield command._tmp / name, command._tmp / "straight"
  assert kills >= 3  # the last may come after the end


def record(workdir):
  """All lines of a run's metrics but for its speed, by what they are of; each is there once."""
  found = {}
  for line in (workdir / "metrics.jsonl").read_text().splitlines():
    line = json.loads(line)
    key = tuple(line.pop(k, "") for k in ("kind", "step", "evaluator", "encoder"))
    assert key not in found
    line.pop("images_per_s", None)
    found[key] = line
  return found


def same_run(workdir, straight):
  (step, arrays), (last, wanted) = (
    load_flat(folder / "checkpoints") for folder in (workdir, straight)
  )
  assert step == last and arrays.keys() == wanted.keys()
  for name, array in wanted.items():
    np.testing.assert_array_equal(arrays[name], array, err_msg=name)
  assert record(workdir) == record(straight)
  assert json.loads((workdir / "run.json").read_text())["status"] == "finished"
  drawn = sorted(p.name for p in (straight / "figures").iterdir())
  assert sorted(p.name for p in (workdir / "figures").iterdir()) == drawn
  for name in drawn:
    with np.load(workdir / "figures" / name) as a, np.load(straight / "figures" / name) as b:
      assert a.files == b.files
      for array in a.files:
        np.testing.assert_array_equal(a[array], b[array], err_msg=f"{name} {array}")
  page, facts = ((workdir / name).stat().st_mtime_ns for name in ("report.html", "run.json"))
  assert page >= facts
  assert not list(workdir.rglob("*.damaged*")) and not (workdir / ".reserve").exists()


@pytest.mark.parametrize(("name", "seed"), [("train", 1), ("finetune", 2), ("segment", 3)])
def test_a_run(name, seed, tmp_path):
  for workdir, straight in drill(Command(COMMANDS[name], "workdir", tmp_path), seed):
    same_run(workdir, straight)


def test_a_study(tmp_path):
  for workdir, straight in drill(Command(COMMANDS["study"], "workdir", tmp_path), 4):
    for run in ("scratch-50pct-seed0", "scratch-100pct-seed0"):
      same_run(workdir / run, straight / run)
    assert rows(workdir / "table.csv") == rows(straight / "table.csv")


def test_predictions(tmp_path):
  make = Command([*COMMANDS["finetune"]], "workdir", tmp_path)
  assert make("net")[0] == 0
  rng = np.random.default_rng(0)
  (tmp_path / "images").mkdir()
  for i in range(12):
    Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)).save(
      tmp_path / "images" / f"{i}.png"
    )
  (tmp_path / "images" / "bad.png").write_bytes(b"bad")
  pathlib.Path(tmp_path / "drill" / "sitecustomize.py").unlink()
  (tmp_path / "drill").rmdir()
  arguments = [
    "-m",
    "cxrjax.predict",
    f"--workdir={tmp_path / 'net'}",
    str(tmp_path / "images"),
    "--embed",
    "--overlays=occlusion",
    "--batch_size=4",
    "--format=parquet",
  ]
  for out, straight in drill(Command(arguments, "out", tmp_path), 5):
    for name in ("predictions.csv", "skipped.csv", "embeddings.npy"):
      assert (out / name).read_bytes() == (straight / name).read_bytes(), name
    assert json.loads((out / "predictions.json").read_text())["status"] == "finished"
    assert (out / "predictions.parquet").exists()
    pictures = sorted((straight / "overlays").iterdir())
    assert len(pictures) == 12
    for picture in pictures:
      assert (out / "overlays" / picture.name).read_bytes() == picture.read_bytes()


def rows(path):
  """Of a table, but for how long runs took, and where."""
  with open(path, newline="") as opened:
    return [
      {k: v for k, v in row.items() if k not in ("total_s", "command")}
      for row in csv.DictReader(opened)
    ]

"""Trains several methods on the same radiographs for the same budget, and compares them."""

from __future__ import annotations

import csv
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import cxrjax
from cxrjax.report import compare as page
from cxrjax.report.page import save
from cxrjax.report.run import environment
from cxrjax.report.writer import FACTS, Writer
from cxrjax.tasks import compare_facts
from cxrjax.tasks.compare_plan import Job, plan
from cxrjax.tasks.train import now
from cxrjax.training import workdir as workdirs
from cxrjax.training.signals import Stopping

PLATFORM = "cpu"  # of this process, which only counts; the runs have the accelerator
LOG = "run.log"  # of each run, beside its folder
ASKS = 0.2  # seconds between looks for a signal


def run(config: Mapping[str, Any], workdir: pathlib.Path, command: str = "",
        say: Callable[[str], None] = lambda line: print(line, flush=True)) -> int:  # noqa: T201
  """Runs what `config` compares, one run after the other; returns the exit status.

  The workdir then holds a folder for each run, `report.html`, `table.csv` (a line for each run,
  data set and classifier) and all facts in `run.json`. Runs that are finished are not repeated,
  others go on from their last checkpoint.

  Returns:
    0; 1 where a run failed (the others are compared); 128 + signal where one stopped it.

  Raises:
    UserError: a comparison that cannot be, or a workdir of another one.
  """
  # Runs can be added to a comparison; what they have in common must stay.
  several = ("methods", "seeds", "folder", "measure")
  workdirs.settle_config(workdir, {k: v for k, v in config.items() if k not in several})
  jobs = plan(config)
  (workdir / FACTS).unlink(missing_ok=True)  # facts are merged
  with Writer(workdir) as writer:
    writer.facts(command=command or " ".join(sys.argv), started=now(), finished=None,
                 status="running", **environment())
    for line in _announce(jobs, workdir):
      say(line)
    failed: dict[str, str] = {}
    stopped = None
    for number, job in enumerate(jobs, 1):
      if not done(job, workdir):
        say(f"{number:>3}/{len(jobs)}   {job.name}: {job.steps:,} steps of {job.batch_size} images")
        stopped = _launch(job, workdir, failed)
      _write(writer, jobs, workdir, failed)
      if stopped:
        break
      say(f"{number:>3}/{len(jobs)}   {compare_facts.said(job, workdir, failed.get(job.name))}")
    status = f"stopped: {signal.Signals(stopped).name}" if stopped else "finished"
    writer.facts(status=status, finished=now())
  if stopped:
    say(f"stopped by {signal.Signals(stopped).name}; the same command goes on from there")
    return 128 + stopped
  found = _write(None, jobs, workdir, failed)
  say(page.table(found))
  for name, why in failed.items():
    say(f"failed    {name}: {why}")
  say(f"report    {workdir / page.NAME}")
  return 1 if failed else 0


def done(job: Job, workdir: pathlib.Path) -> bool:
  """Whether a run of exactly this config is over."""
  folder = workdir / job.name
  try:
    facts = json.loads((folder / FACTS).read_text())
    config = json.loads((folder / "config.json").read_text())
  except (OSError, ValueError):
    return False
  wanted = json.loads(json.dumps(job.config, default=lambda item: item.to_dict()))
  return facts.get("status") == "finished" and config == wanted


def _announce(jobs: list[Job], workdir: pathlib.Path) -> list[str]:
  first = jobs[0]
  lines = [f"data      {first.examples} images",
           f"budget    {first.budget:.3g} forward FLOPs each",
           f"workdir   {workdir}", ""]
  width = max(len(job.method) for job in jobs)
  for job in {job.method: job for job in jobs}.values():
    images = job.steps * job.batch_size
    lines.append(
      f"{job.method:<{width}}  {job.flops_per_image / 1e6:>9,.1f} MFLOPs an image forward, "
      f"{job.steps:>7,} steps, {images / job.examples:>7.4g} epochs")
  return [*lines, ""]


def _launch(job: Job, workdir: pathlib.Path, failed: dict[str, str]) -> int | None:
  """One run to its end; notes why it failed, returns the signal that stopped it.

  What it prints goes to `METHOD-seedS.log`, and to a terminal.
  """
  here = pathlib.Path(cxrjax.__file__).parents[1]
  environment = os.environ | {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(here), os.environ.get("PYTHONPATH")]))}
  log = workdir / f"{job.name}.log"
  failed.pop(job.name, None)
  with Stopping() as stopping, open(log, "ab") as file:
    process = subprocess.Popen(
      [sys.executable, "-m", "cxrjax.main", *job.flags, f"--workdir={workdir / job.name}"],
      env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)
    last: list[str] = []
    reader = threading.Thread(target=_copy, args=(process.stdout, file, last), daemon=True)
    reader.start()
    while process.poll() is None:
      if stopping.signal:
        process.send_signal(signal.SIGTERM)
        process.wait()
      else:
        try:
          process.wait(ASKS)
        except subprocess.TimeoutExpired:
          continue
    reader.join()
  if stopping.signal:
    return stopping.signal
  if process.returncode:
    failed[job.name] = _reason(process.returncode, last)
  return None


def _copy(stream: Any, file: Any, last: list[str]) -> None:
  """A run's output into its log, a progress bar as the last it said, and to a terminal whole."""
  rest = b""
  while part := stream.read(4096):
    if sys.stderr.isatty():
      sys.stderr.buffer.write(part)
      sys.stderr.flush()
    *lines, rest = (rest + part).split(b"\n")
    for line in lines:
      text = line.rstrip(b"\r").rpartition(b"\r")[2]
      file.write(text + b"\n")
      last.append(text.decode("utf-8", errors="replace").strip())
      del last[:-50]
    file.flush()
    rest = rest[-65536:]
  file.write(rest)
  last.append(rest.decode("utf-8", errors="replace").strip())


def _reason(status: int, last: list[str]) -> str:
  """Why a run failed, in a line: its own error, or the end of what it said."""
  said = [line for line in last if line]
  errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
  if errors:
    return errors[-1]
  if status < 0:
    name = signal.Signals(-status).name
    return f"ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
  return said[-1] if said else f"exit status {status}"


def _write(writer: Writer | None, jobs: list[Job], workdir: pathlib.Path,
           failed: Mapping[str, str]) -> dict[str, Any]:
  """Everything known so far: facts, table, page."""
  found = compare_facts.collect(jobs, workdir, failed)
  if writer is not None:
    writer.facts(compare=found)
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows(compare_facts.rows(found))
  save(workdir / "table.csv", text.getvalue())
  page.write(workdir)
  return found

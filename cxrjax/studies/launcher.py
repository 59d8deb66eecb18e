"""Launcher of studies: runs one after the other, each in its own folder and process.

A finished run is not repeated, an interrupted one resumes from its last checkpoint, and a failed
one blocks only the runs that start from it. The same command resumes the study.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cxrjax.config import instantiate, overrides
from cxrjax.core import files, zoo
from cxrjax.core.errors import UserError
from cxrjax.report.pages import run_page
from cxrjax.report.pages.run_page import save_table
from cxrjax.report.run_files import environment
from cxrjax.report.run_writer import FACTS, Writer, now
from cxrjax.training.preemption import PreemptionHandler
from cxrjax.training.workdir import differences, in_use, locked

POLL_SECONDS = 0.2  # seconds between checks for a signal
LAUNCHERS = ("processes", "here", "commands")  # `config.launcher`


@dataclasses.dataclass(frozen=True)
class Job:
  """One run.

  Attributes:
    name: of its folder in the workdir.
    flags: of `python -m cxrjax.main`, without the workdir; `--config=FILE:ARGUMENT` is the first.
    needs: names of the runs that it starts from, which come before it.
  """

  name: str
  flags: tuple[str, ...]
  needs: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)

  @functools.cached_property
  def config(self) -> dict[str, Any]:
    """The config that the flags resolve to; runs in `needs` may have to be finished first."""
    return overrides.resolve(self.flags)

  def prepare(self) -> None:
    """Writes the files that the flags name, before the run is launched."""

  def command(self, workdir: pathlib.Path) -> str:
    """The shell command of this run."""
    return shlex.join(
      ["python", "-m", "cxrjax.main", *self.flags, f"--workdir={workdir / self.name}"]
    )


@dataclasses.dataclass(frozen=True)
class Reporting:
  """How a study reports on its runs; `failed` maps failed runs to the reason.

  Attributes:
    key: of the facts in `run.json`.
    begins: gives the line before a run.
    ended: gives the line after it, from the reason of its failure or None.
    collect: gathers the facts of all runs so far.
    rows: gives the header and rows of `table.csv`, from these facts.
    page: a module with `write(workdir)`, which returns the page's path, and `table(facts)`, for the
      terminal.
  """

  key: str
  begins: Callable[[Any], str]
  ended: Callable[[Any, str | None], str]
  collect: Callable[[Mapping[str, str]], dict[str, Any]]
  rows: Callable[[Mapping[str, Any]], Iterable[Sequence[Any]]]
  page: Any


def run_jobs(
  jobs: Sequence[Job],
  workdir: pathlib.Path,
  show: Reporting,
  *,
  command: str,
  opening: Iterable[str],
  say: Callable[[str], None],
  start: str = "processes",
) -> int:
  """Launches all unfinished runs; page and tables are updated after each.

  Args:
    jobs: in the order of their launch.
    workdir: of the study.
    show: how it reports.
    command: that was typed.
    opening: lines before the first run.
    say: prints a line.
    start: one of `LAUNCHERS`: each run in a process of its own; in this process, on its device; or
      not at all, with the shell commands of the unfinished runs printed.

  Returns:
    0; 1 if a run failed; 128 + signal if a signal stopped the study.

  Raises:
    UserError: `start` is none of these.
  """
  if start not in LAUNCHERS:
    raise UserError(f"config.launcher={start!r} must be one of {', '.join(LAUNCHERS)}")
  if start == "commands":
    return _print_commands(jobs, workdir, say)
  (workdir / FACTS).unlink(missing_ok=True)  # facts are merged
  failed: dict[str, str] = {}
  waiting: set[str] = set()
  stop_signal = None
  with Writer(workdir) as writer:
    writer.facts(
      command=command or " ".join(sys.argv),
      started=now(),
      finished=None,
      status="running",
      **environment(),
    )
    for line in opening:
      say(line)
    for i, job in enumerate(jobs, 1):
      progress = f"{i:>3}/{len(jobs)}   "
      missing = next((n for n in job.needs if n in waiting or n in failed), None)
      if missing:
        waiting.add(job.name)
        say(f"{progress}{job.name}: waits for {missing}, which did not end")
        continue
      try:
        if not is_finished(job, workdir):
          say(f"{progress}{show.begins(job)}")
          job.prepare()
          stop_signal = (launch_here if start == "here" else launch)(job, workdir, failed)
          _update(writer, show, workdir, failed)
      except UserError as error:  # from a config that starts from an earlier run
        failed[job.name] = str(error)
      if stop_signal:
        break
      say(f"{progress}{show.ended(job, failed.get(job.name))}")
    facts = _update(writer, show, workdir, failed)
    status = f"stopped: {signal.Signals(stop_signal).name}" if stop_signal else "finished"
    writer.facts(status=status, finished=now())
  report = show.page.write(workdir)
  if stop_signal:
    say(f"stopped by {signal.Signals(stop_signal).name}; the same command goes on from there")
    return 128 + stop_signal
  say(show.page.table(facts))
  for name, why in failed.items():
    say(f"failed    {name}: {why}")
  if failed:
    say(f"the same command goes on there; what they said is in {workdir}/NAME.log")
  say(f"report    {report}")
  return 1 if failed else 0


def _print_commands(jobs: Sequence[Job], workdir: pathlib.Path, say: Callable[[str], None]) -> int:
  """Prints the commands of the runs whose turn has come, for a shell or a cluster's queue."""
  finished: set[str] = set()
  waiting = 0
  for job in jobs:
    if not finished.issuperset(job.needs):
      waiting += 1
    elif is_finished(job, workdir):
      finished.add(job.name)
    else:
      try:
        job.prepare()
        say(job.command(workdir))
      except UserError:  # its config depends on runs that have not finished
        waiting += 1
  if waiting:
    say(f"# {waiting} more after these: the same command again prints them")
  say("# then the same command without the launcher writes the page")
  return 0


def _update(
  writer: Writer, show: Reporting, workdir: pathlib.Path, failed: Mapping[str, str]
) -> dict[str, Any]:
  facts = show.collect(failed)
  writer.facts(**{show.key: facts})
  save_table(workdir / "table.csv", show.rows(facts))
  show.page.write(workdir)
  return facts


def is_finished(job: Job, workdir: pathlib.Path) -> bool:
  """Whether a run has finished.

  Raises:
    UserError: it is older than a run that it starts from, which was repeated; or it was started
      with another config.
  """
  folder = workdir / job.name
  try:
    facts = files.read_mapping(folder / FACTS)
    config = files.read_mapping(folder / "config.json")
  except (OSError, ValueError):
    return False
  for name in job.needs:
    needed_finished = files.read_mapping(workdir / name / FACTS).get("finished")
    if needed_finished and str(facts.get("started") or needed_finished) < needed_finished:
      raise UserError(
        f"{folder} is older than {name}, which it begins with and which was run "
        f"again; remove {folder} to repeat it, too"
      )
  expected = json.loads(json.dumps(job.config, default=lambda item: item.to_dict()))
  if changed := differences(config, expected):
    raise UserError(
      f"{folder} was begun with another config ({'; '.join(changed)}); restore these "
      "values, or remove it to begin anew"
    )
  if facts.get("status") != "finished":
    return False
  if (folder / run_page.NAME).exists():
    run_page.complete(folder)
  return True


def launch(job: Job, workdir: pathlib.Path, failed: dict[str, str]) -> int | None:
  """Runs one job; records a failure in `failed` and returns the signal that stopped it, if any.

  Its output goes to `NAME.log` in the workdir, and to the terminal if there is one.
  """
  root = pathlib.Path(__file__).parents[2]
  variables = os.environ | {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
    instantiate.TRUST: ",".join(instantiate.trusted()),
  }
  log = workdir / f"{job.name}.log"
  failed.pop(job.name, None)
  with PreemptionHandler() as handler, open(log, "ab") as file:
    # A run left behind by a killed study may still be working, or end when it cannot print.
    while in_use(workdir / job.name) and not handler.signal:
      time.sleep(POLL_SECONDS)
    process = subprocess.Popen(
      [sys.executable, "-m", "cxrjax.main", *job.flags, f"--workdir={workdir / job.name}"],
      env=variables,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      bufsize=0,
    )
    output: list[str] = []
    reader = threading.Thread(target=_copy_output, args=(process.stdout, file, output), daemon=True)
    reader.start()
    while process.poll() is None:
      if handler.signal:
        process.send_signal(signal.SIGTERM)
        process.wait()
      else:
        try:
          process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
          continue
    reader.join()
  if handler.signal:
    return handler.signal
  if process.returncode:
    failed[job.name] = _failure_reason(process.returncode, output)
  return None


def launch_here(job: Job, workdir: pathlib.Path, failed: dict[str, str]) -> int | None:
  """Runs one job in this process; reports like `launch`."""
  folder = workdir / job.name
  failed.pop(job.name, None)
  try:
    task = instantiate.locate(job.config.get("task", "cxrjax.tasks.train"), "run", "config.task")
    with locked(folder):
      status = task(job.config, folder, command=job.command(workdir))
  except UserError as error:
    failed[job.name] = str(error)
    return None
  if status > 128:
    return int(status - 128)
  if status:
    failed[job.name] = f"exit status {status}"
  return None


def _copy_output(stream: Any, file: Any, recent_lines: list[str]) -> None:
  """Copies output to the log, with only the last state of progress bars, and raw to a terminal."""
  unfinished = b""
  while chunk := stream.read(4096):
    if sys.stderr.isatty():
      sys.stderr.buffer.write(chunk)
      sys.stderr.flush()
    *lines, unfinished = (unfinished + chunk).split(b"\n")
    for line in lines:
      text = line.rstrip(b"\r").rpartition(b"\r")[2]
      file.write(text + b"\n")
      recent_lines.append(text.decode("utf-8", errors="replace").strip())
      del recent_lines[:-50]
    file.flush()
    unfinished = unfinished[-65536:]
  file.write(unfinished)
  recent_lines.append(unfinished.decode("utf-8", errors="replace").strip())


def _failure_reason(status: int, output: list[str]) -> str:
  """One-line reason of a failure: the run's own error, or its last line of output."""
  lines = [line for line in output if line]
  errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
  if errors:
    return errors[-1]
  if status < 0:
    name = signal.Signals(-status).name
    return f"ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
  return lines[-1] if lines else f"exit status {status}"


def parse_runs(text: str, least: int) -> dict[str, pathlib.Path]:
  """Parses `config.runs`, `A,B` or `NAME=A,NAME=B`, into workdirs by name.

  Raises:
    UserError: fewer than `least`, or two of the same name.
  """
  items = [item.strip() for item in text.split(",") if item.strip()]
  if len(items) < least:
    quantity = "" if least == 1 else "at least two "
    raise UserError(
      f"config.runs={text!r} must name workdirs of {quantity}finished runs, like "
      "--config.runs=runs/scratch,runs/dino"
    )
  workdirs: dict[str, pathlib.Path] = {}
  for item in items:
    name, equals, path = item.partition("=")
    if not equals or pathlib.Path(item).is_dir():
      name, path = "", item
    folder = zoo.resolve_workdir(path, "config.runs")
    name = name or folder.resolve().name
    if name in workdirs:
      raise UserError(
        f"config.runs has two runs named {name!r}; name them, like "
        f"--config.runs=first={workdirs[name]},second={path}"
      )
    workdirs[name] = folder
  return workdirs


def seed(text: Any) -> int:
  """Parses one of `config.seeds`."""
  try:
    return int(text)
  except ValueError:
    raise UserError(f"config.seeds={text!r} is no seed; write them like 0+1+2") from None

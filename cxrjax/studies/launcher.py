"""Several runs one after the other, each in a folder and a process of its own, and what they show.

A run that is finished is not repeated, one that was stopped goes on from its last checkpoint, and
one that failed costs those that begin with it, not the others. The same command goes on.
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
from cxrjax.report.pages.run_page import save_table
from cxrjax.report.run_files import environment
from cxrjax.report.run_writer import FACTS, Writer, now
from cxrjax.training.preemption import PreemptionHandler
from cxrjax.training.workdir import differences, in_use

ASKS = 0.2  # seconds between looks for a signal


@dataclasses.dataclass(frozen=True)
class Job:
  """One run.

  Attributes:
    name: of its folder in the workdir.
    flags: of `python -m cxrjax.main`, but for the workdir; `--config=FILE:ARGUMENT` is the first.
    needs: names of the runs that it begins with; they stand before it.
  """

  name: str
  flags: tuple[str, ...]
  needs: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)

  @functools.cached_property
  def config(self) -> dict[str, Any]:
    """What the flags make; one that takes something from an earlier run needs that to be there."""
    return overrides.resolve(self.flags)

  def command(self, workdir: pathlib.Path) -> str:
    """To be typed."""
    return shlex.join(
      ["python", "-m", "cxrjax.main", *self.flags, f"--workdir={workdir / self.name}"]
    )


@dataclasses.dataclass(frozen=True)
class Show:
  """What is made of the runs; `failed` has for each run that failed why.

  Attributes:
    key: of the facts in `run.json`.
    begins: a line before a run.
    ended: a line after it, from why it failed or None.
    collect: everything known so far, as facts.
    rows: a header and the lines of `table.csv`, from these.
    page: a module with `write(workdir)`, which returns the page's path, and `table(facts)`, for the
      terminal.
  """

  key: str
  begins: Callable[[Any], str]
  ended: Callable[[Any, str | None], str]
  collect: Callable[[Mapping[str, str]], dict[str, Any]]
  rows: Callable[[Mapping[str, Any]], Iterable[Sequence[Any]]]
  page: Any


def take(
  jobs: Sequence[Job],
  workdir: pathlib.Path,
  show: Show,
  *,
  command: str,
  opening: Iterable[str],
  say: Callable[[str], None],
) -> int:
  """Runs all that are not done and shows them; page and tables are written after each.

  Returns:
    0; 1 where a run failed; 128 + signal where one stopped it.
  """
  (workdir / FACTS).unlink(missing_ok=True)  # facts are merged
  failed: dict[str, str] = {}
  waiting: set[str] = set()
  stopped = None
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
    for number, job in enumerate(jobs, 1):
      count = f"{number:>3}/{len(jobs)}   "
      lacking = next((n for n in job.needs if n in waiting or n in failed), None)
      if lacking:
        waiting.add(job.name)
        say(f"{count}{job.name}: waits for {lacking}, which did not end")
        continue
      try:
        if not done(job, workdir):
          say(f"{count}{show.begins(job)}")
          stopped = launch(job, workdir, failed)
          _write(writer, show, workdir, failed)
      except UserError as error:  # of a config that begins with an earlier run
        failed[job.name] = str(error)
      if stopped:
        break
      say(f"{count}{show.ended(job, failed.get(job.name))}")
    found = _write(writer, show, workdir, failed)
    status = f"stopped: {signal.Signals(stopped).name}" if stopped else "finished"
    writer.facts(status=status, finished=now())
  report = show.page.write(workdir)
  if stopped:
    say(f"stopped by {signal.Signals(stopped).name}; the same command goes on from there")
    return 128 + stopped
  say(show.page.table(found))
  for name, why in failed.items():
    say(f"failed    {name}: {why}")
  if failed:
    say(f"the same command goes on there; what they said is in {workdir}/NAME.log")
  say(f"report    {report}")
  return 1 if failed else 0


def _write(
  writer: Writer, show: Show, workdir: pathlib.Path, failed: Mapping[str, str]
) -> dict[str, Any]:
  found = show.collect(failed)
  writer.facts(**{show.key: found})
  save_table(workdir / "table.csv", show.rows(found))
  show.page.write(workdir)
  return found


def done(job: Job, workdir: pathlib.Path) -> bool:
  """Whether a run is over.

  Raises:
    UserError: it began before a run that it begins with had ended, for that was run again; or with
      another config.
  """
  folder = workdir / job.name
  try:
    facts = files.read_mapping(folder / FACTS)
    config = files.read_mapping(folder / "config.json")
  except (OSError, ValueError):
    return False
  for name in job.needs:
    earlier = files.read_mapping(workdir / name / FACTS).get("finished")
    if earlier and str(facts.get("started") or earlier) < earlier:
      raise UserError(
        f"{folder} is older than {name}, which it begins with and which was run "
        f"again; remove {folder} to repeat it, too"
      )
  wanted = json.loads(json.dumps(job.config, default=lambda item: item.to_dict()))
  if changed := differences(config, wanted):
    raise UserError(
      f"{folder} was begun with another config ({'; '.join(changed)}); restore these "
      "values, or remove it to begin anew"
    )
  return facts.get("status") == "finished"


def launch(job: Job, workdir: pathlib.Path, failed: dict[str, str]) -> int | None:
  """One run to its end; notes why it failed, returns the signal that stopped it.

  What it prints goes to `NAME.log` in the workdir, and to a terminal.
  """
  here = pathlib.Path(__file__).parents[2]
  variables = os.environ | {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(here), os.environ.get("PYTHONPATH")])),
    instantiate.TRUST: ",".join(instantiate.trusted()),
  }
  log = workdir / f"{job.name}.log"
  failed.pop(job.name, None)
  with PreemptionHandler() as stopping, open(log, "ab") as file:
    # What a study that was killed has left behind works on, or ends where it cannot say a line.
    while in_use(workdir / job.name) and not stopping.signal:
      time.sleep(ASKS)
    process = subprocess.Popen(
      [sys.executable, "-m", "cxrjax.main", *job.flags, f"--workdir={workdir / job.name}"],
      env=variables,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      bufsize=0,
    )
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


def named(text: str, least: int) -> dict[str, pathlib.Path]:
  """Workdirs of finished runs by name, from `A,B` or `NAME=A,NAME=B`, of `config.runs`.

  Raises:
    UserError: fewer than `least`, or two of one name.
  """
  items = [item.strip() for item in text.split(",") if item.strip()]
  if len(items) < least:
    count = "" if least == 1 else "at least two "
    raise UserError(
      f"config.runs={text!r} must name workdirs of {count}finished runs, like "
      "--config.runs=runs/scratch,runs/dino"
    )
  found: dict[str, pathlib.Path] = {}
  for item in items:
    name, equals, path = item.partition("=")
    if not equals or pathlib.Path(item).is_dir():
      name, path = "", item
    folder = zoo.place(path, "config.runs")
    name = name or folder.resolve().name
    if name in found:
      raise UserError(
        f"config.runs has two runs named {name!r}; name them, like "
        f"--config.runs=first={found[name]},second={path}"
      )
    found[name] = folder
  return found


def seed(text: Any) -> int:
  """One of `config.seeds`."""
  try:
    return int(text)
  except ValueError:
    raise UserError(f"config.seeds={text!r} is no seed; write them like 0+1+2") from None

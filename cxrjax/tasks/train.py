"""Trains a method on a source, evaluates it as it goes, and writes the report."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from cxrjax.config.instantiate import locate
from cxrjax.core.command import say
from cxrjax.core.errors import UserError
from cxrjax.core.memory import peak
from cxrjax.explain import feature_artifacts, saliency_artifacts
from cxrjax.report import terminal
from cxrjax.report.pages import run_page
from cxrjax.report.run_files import environment
from cxrjax.report.run_writer import FULL, Writer, now
from cxrjax.report.writers.base import open_writers
from cxrjax.tasks import run_evaluation
from cxrjax.tasks.training_run import Run
from cxrjax.training import learnt_from, peers
from cxrjax.training import workdir as workdirs
from cxrjax.training.checkpoint import Checkpoints
from cxrjax.training.dispatch import Start, compile_in_background
from cxrjax.training.divergence import Diverged, DivergenceMonitor
from cxrjax.training.loop import TrainLoop, TrainResult


def run(
  config: Mapping[str, Any],
  workdir: pathlib.Path,
  command: str = "",
  say: Callable[[str], None] = say,
) -> int:
  """Trains `config` in `workdir` and writes the report; returns the exit status.

  0: finished, now or before; 128 + signal: stopped by a signal, after saving.

  Raises:
    UserError: an error that the user can fix; the workdir keeps all that was saved.
  """
  is_main = jax.process_index() == 0
  say = say if is_main else lambda line: None
  if workdirs.holds_finished_run(workdir, config):
    if is_main:
      run_page.complete(workdir)
    say(f"{workdir} holds a finished run of this config; its report is {workdir / run_page.NAME}")
    return 0

  for name in config.get("sections", ()):
    locate(name, "section", "config.sections")  # a misspelt name is an error now, not at the end
  writers = open_writers(config.get("writers", ()), workdir, config) if is_main else []
  run = Run(config)
  pending_start = compile_in_background(run.train_step, run.loader)
  facts = run.describe()
  say(terminal.run_summary(facts, workdir))
  for remark in terminal.data_remarks(facts):
    say(f"note: {remark}")

  with (
    Writer(workdir, active=is_main, others=writers) as writer,
    contextlib.ExitStack() as at_exit,  # after an error was recorded, and other processes know it
    _recorded_errors(writer),
  ):
    started = {"started": now(), "finished": None, "status": "running"}
    writer.facts(command=command or " ".join(sys.argv), **started, **environment(), **facts)
    if is_main:
      initial_run = (config.get("init") or {}).get("path", "")
      cache_dir = config["data"]["cache_dir"] or None
      learnt_from.remember(run.loader, run.training_data.source, workdir, initial_run, cache_dir)
    checkpoints = Checkpoints(
      workdir / "checkpoints", keep=config["checkpoint"]["keep"], config=config
    )
    at_exit.callback(checkpoints.close)
    outcome = _train_and_evaluate(run, writer, checkpoints, pending_start, say)

  if outcome.stopped:
    say(
      f"stopped by {signal.Signals(outcome.stopped).name} after saving step {outcome.step}; "
      "the same command resumes from there"
    )
  if is_main:
    page = run_page.write(workdir)
    say(terminal.results_table(workdir))
    for remark in terminal.remarks(workdir):
      say(f"note: {remark}")
    say(f"report    {page}")
  return 128 + outcome.stopped if outcome.stopped else 0


def _train_and_evaluate(
  run: Run,
  writer: Writer,
  checkpoints: Checkpoints,
  pending_start: Callable[[], Start] | None,
  say: Callable[[str], None],
) -> TrainResult:
  """Trains with evaluations on the way, evaluates the chosen checkpoint, and writes all results."""
  writer.arrays("views", **saliency_artifacts.views(run))
  run_evaluation.thumbnail_baselines(run, writer)
  health = run.config["health"]
  grace = run.clock.steps(health["grace"], "config.health.grace")
  loop = TrainLoop(
    run.train_step,
    run.loader,
    run.clock,
    checkpoints=checkpoints,
    writer=writer,
    # The page can be read during training.
    evaluations=run_evaluation.during_training(run, writer, lambda: _write_page(writer)),
    log_every=run.log_every,
    save_every=run.save_every,
    monitor=DivergenceMonitor(run.method.check_collapse, health["patience"], grace),
    progress=run.progress,
    say=say,
  )
  outcome = loop.run(pending_start)
  state = run_evaluation.chosen_checkpoint(run, writer, checkpoints, outcome)
  if not outcome.stopped:
    feature_artifacts.write(run, state, writer)
    for line in saliency_artifacts.write(run, state, writer):
      say(line)
  writer.facts(
    status=f"stopped: {signal.Signals(outcome.stopped).name}" if outcome.stopped else "finished",
    finished=now(),
    timing=outcome.timing,
    notes=outcome.remarks,
    memory=peak(),
  )
  return outcome


@contextlib.contextmanager
def _recorded_errors(writer: Writer) -> Iterator[None]:
  """Records the error that ends a run in its workdir, and tells the other processes."""
  try:
    yield
  except BaseException as error:
    peers.report_error(error)  # before this process waits for any of them
    if isinstance(error, OSError) and error.errno in FULL:
      error = UserError(
        f"no space left on device ({error.filename or writer.workdir}); free some, then "
        "run the same command again"
      )
    with contextlib.suppress(UserError, OSError):  # a full disk has no room for the page either
      writer.facts(status=_error_status(error), finished=now())
      _write_page(writer)
    raise error


def _error_status(error: BaseException) -> str:
  """Status text of a run that an error ended."""
  if isinstance(error, KeyboardInterrupt):
    return "stopped: SIGINT"
  if isinstance(error, UserError):
    return f"{'diverged' if isinstance(error, Diverged) else 'failed'}: {error}"
  return f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _write_page(writer: Writer) -> None:
  if writer.active:
    run_page.write(writer.workdir)

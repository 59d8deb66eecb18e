"""Runs the task of a config in a workdir, for the command line and for `cxrjax.train`."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from cxrjax.config.instantiate import locate
from cxrjax.core.memory import keep_compiled, keep_freed_memory


def run_config(
  config: Mapping[str, Any],
  workdir: pathlib.Path,
  command: str,
  *,
  text: Callable[[], str] | None = None,
  coordinator: str | None = None,
  processes: int = 1,
  process: int = 0,
) -> int:
  """Runs `config.task`; the same workdir again resumes. Returns the exit status.

  Args:
    config: the resolved config, as plain Python.
    workdir: of the run; locked meanwhile.
    command: what was typed, for the report.
    text: the config as a file, kept as `config.py` in the workdir.
    coordinator: `host:port` of process 0, for a run over several processes.
    processes: how many.
    process: which of them this is.

  Raises:
    UserError: the config, the workdir or the data do not allow it.
  """
  keep_freed_memory()
  task = locate(config.get("task", "cxrjax.tasks.train"), "run", "config.task")
  import jax

  # A task that launches others leaves them the accelerator: JAX reserves most of its memory.
  platform = getattr(sys.modules[task.__module__], "PLATFORM", None)
  if platform:
    jax.config.update("jax_platforms", platform)
  keep_compiled()

  from cxrjax.training import checkpoint, peers
  from cxrjax.training.workdir import locked

  newest = functools.partial(checkpoint.newest_step, workdir / "checkpoints")
  with (
    peers.process_group(coordinator, processes, process, newest),
    contextlib.ExitStack() as stack,
  ):
    if jax.process_index() == 0:
      stack.enter_context(locked(workdir))
      if text is not None and not (workdir / "config.py").exists():
        (workdir / "config.py").write_text(text(), encoding="utf-8")
    status: int = task(config, workdir, command=command)
  return status

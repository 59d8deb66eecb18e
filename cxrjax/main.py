"""`python -m cxrjax.main --config=configs/X.py[:arg] [--workdir=DIR] [--config.a.b=value]`."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import shlex
import sys
import time

from absl import flags
from ml_collections import config_flags

from cxrjax.config import overrides
from cxrjax.config.instantiate import locate, trust
from cxrjax.core import command, package_folders
from cxrjax.core.errors import UserError
from cxrjax.core.memory import keep_compiled, keep_freed_memory

try:
  _CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The experiment, NAME[:arg] of configs/ or a file; --config.a.b=value changes a key.",
    lock_config=True,
  )
except flags.Error as error:  # absl reads a --flagfile already here
  command.stop(str(error).removeprefix("ERROR:: "))
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Checkpoints, metrics and report; the same one again resumes. Default: runs/<config>-<time>.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "host:port of process 0, for a run over several processes; 'auto' asks the "
  "cluster (TPU pod, Slurm, Open MPI).",
)
_PROCESSES = flags.DEFINE_integer("processes", 1, "How many processes, with --coordinator.")
_PROCESS = flags.DEFINE_integer("process", 0, "Which of them this is, with --coordinator.")
_TRUST = flags.DEFINE_list("trust", [], "Your own modules that configs and runs may name.")


def parse_flags(argv: list[str]) -> list[str]:
  """Parses flags with absl; errors in a config become one line instead of a traceback."""
  if "--help" in argv[1:]:
    sys.stdout.write(f"{__doc__}\n\n{flags.FLAGS.module_help('__main__')}\n")
    sys.exit(0)
  with overrides.in_one_line():
    positional = flags.FLAGS(package_folders.with_config_path(argv))
    if _CONFIG.value is not None:
      _CONFIG.value.to_dict()  # loading errors surface only here
    return positional


def set_up_jax(platform: str | None) -> None:
  """Sets JAX's platform and the compilation cache."""
  import jax

  if platform:
    jax.config.update("jax_platforms", platform)
  keep_compiled()


def main(argv: list[str]) -> int:
  if len(argv) > 1:
    raise UserError(f"{argv[1]!r} is not a flag; flags begin with --")
  if _CONFIG.value is None:
    raise UserError("--config is missing; try --config=configs/dino.py")
  keep_freed_memory()
  trust(_TRUST.value)
  config = _CONFIG.value.to_dict()
  task = locate(config.get("task", "cxrjax.tasks.train"), "run", "config.task")
  # A task that launches others leaves them the accelerator: JAX reserves most of its memory.
  set_up_jax(getattr(sys.modules[task.__module__], "PLATFORM", None))
  import jax

  from cxrjax.training import checkpoint, peers
  from cxrjax.training.workdir import locked

  name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0]).stem
  workdir = pathlib.Path(_WORKDIR.value or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}")
  newest = functools.partial(checkpoint.newest_step, workdir / "checkpoints")
  with (
    peers.process_group(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value, newest),
    locked(workdir) if jax.process_index() == 0 else contextlib.nullcontext(),
  ):
    return task(config, workdir, command=shlex.join(["python", "-m", "cxrjax.main", *sys.argv[1:]]))


def run() -> None:
  """Entry point of the program; see `command.run`."""
  command.run(lambda: main(parse_flags(sys.argv)))


if __name__ == "__main__":
  run()

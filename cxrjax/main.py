"""`python -m cxrjax.main --config=configs/X.py[:arg] [--workdir=DIR] [--config.a.b=value]`."""

from __future__ import annotations

import functools
import pathlib
import shlex
import sys
import time
from unittest import mock

from absl import flags
from ml_collections import config_flags

from cxrjax.config import describe, overrides
from cxrjax.config.instantiate import trust
from cxrjax.core import command as commands
from cxrjax.core.errors import UserError
from cxrjax.tasks.run import run_config

try:
  _CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The experiment, NAME[:arg] of configs/ or a file; --config.a.b=value changes a key.",
    lock_config=True,
  )
except flags.Error as error:  # absl reads a --flagfile already here
  commands.stop(str(error).removeprefix("ERROR:: "))
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
_PRINT_CONFIG = flags.DEFINE_boolean(
  "print_config", False, "Print the config as a file, with the origin of each value, and end."
)
_TRUST = flags.DEFINE_list("trust", [], "Your own modules that configs and runs may name.")


def parse_flags(argv: list[str]) -> list[str]:
  """Parses flags with absl; errors in a config become one line instead of a traceback."""
  if "--help" in argv[1:]:
    sys.stdout.write(f"{__doc__}\n\n{flags.FLAGS.module_help('__main__')}\n")
    if describe.config_arguments(argv):
      sys.stdout.write(f"\nKeys of the config:\n\n{describe.as_table(describe.describe(argv))}")
    sys.exit(0)
  with overrides.in_one_line():
    expanded, constants = overrides.split_constants(overrides.expand(argv))
    with mock.patch.object(sys, "argv", expanded):  # where the config's flags are looked up
      positional = flags.FLAGS(expanded)
    if _CONFIG.value is not None:
      overrides.set_constants(_CONFIG.value, constants)
    return positional


def command() -> str:
  """The command that was typed."""
  return shlex.join(["python", "-m", "cxrjax.main", *sys.argv[1:]])


def main(argv: list[str]) -> int:
  """Runs the task of the config that the flags name; returns the exit status."""
  if len(argv) > 1:
    raise UserError(f"{argv[1]!r} is not a flag; flags begin with --")
  if _CONFIG.value is None:
    raise UserError("--config is missing; try --config=configs/dino.py")
  text = functools.partial(describe.as_file, sys.argv[1:], f"Config of {command()}")
  if _PRINT_CONFIG.value:
    sys.stdout.write(text())
    return 0
  trust(_TRUST.value)
  name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0]).stem
  return run_config(
    _CONFIG.value.to_dict(),
    pathlib.Path(_WORKDIR.value or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"),
    command(),
    text=text,
    coordinator=_COORDINATOR.value,
    processes=_PROCESSES.value,
    process=_PROCESS.value,
  )


def run() -> None:
  """Entry point of the program; see `command.run`."""
  commands.run(lambda: main(parse_flags(sys.argv)))


if __name__ == "__main__":
  run()

"""`python -m cxrjax.main --config=configs/X.py[:arg] [--workdir=DIR] [--config.a.b=value]`."""

from __future__ import annotations

import functools
import pathlib
import shlex
import sys
import time

from absl import flags

from cxrjax.config import describe, overrides
from cxrjax.config.config_files import with_config_path
from cxrjax.config.instantiate import trust
from cxrjax.core import command as commands
from cxrjax.core.errors import UserError
from cxrjax.tasks.run import run_config

_CONFIG = flags.DEFINE_string(
  "config",
  None,
  "The experiment, NAME[:presets,key=value] of configs/ or a file; --config.a.b=value sets a key.",
)
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


def parse_flags(argv: list[str]) -> tuple[list[str], list[str]]:
  """Parses flags with absl; returns what is no flag, and those of the config for `overrides`."""
  if "--help" in argv[1:]:
    sys.stdout.write(f"{__doc__}\n\n{flags.FLAGS.module_help('__main__')}\n")
    sys.stdout.write(f"\nShort for keys of the config:\n\n{describe.aliases_as_table()}")
    if describe.config_arguments(argv):
      sys.stdout.write(f"\nKeys of the config:\n\n{describe.as_table(describe.describe(argv))}")
    sys.exit(0)
  try:
    argv = flags.FLAGS.read_flags_from_files(with_config_path(argv), force_gnu=False)
    positional = flags.FLAGS([arg for arg in argv if not arg.startswith("--config.")])
  except flags.Error as error:
    raise UserError(str(error).removeprefix("ERROR:: ")) from error
  return positional, describe.config_arguments(argv)


def command() -> str:
  """The command that was typed."""
  return shlex.join(["python", "-m", "cxrjax.main", *sys.argv[1:]])


def main(positional: list[str], arguments: list[str]) -> int:
  """Runs the task of the config that the flags name; returns the exit status."""
  if len(positional) > 1:
    raise UserError(f"{positional[1]!r} is not a flag; flags begin with --")
  if not _CONFIG.value:
    raise UserError("--config is missing; try --config=configs/dino.py")
  text = functools.partial(describe.as_file, arguments, f"Config of {command()}")
  if _PRINT_CONFIG.value:
    sys.stdout.write(text())
    return 0
  trust(_TRUST.value)
  name = pathlib.Path(_CONFIG.value.partition(":")[0]).stem
  return run_config(
    overrides.resolve(arguments),
    pathlib.Path(_WORKDIR.value or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"),
    command(),
    text=text,
    coordinator=_COORDINATOR.value,
    processes=_PROCESSES.value,
    process=_PROCESS.value,
  )


def run() -> None:
  """Entry point of the program; see `command.run`."""
  commands.run(lambda: main(*parse_flags(sys.argv)))


if __name__ == "__main__":
  run()

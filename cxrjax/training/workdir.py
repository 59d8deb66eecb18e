"""A run's folder: locked while in use, and resumed only with the config that it started with."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cxrjax.core import files
from cxrjax.core.atomic_files import atomic_path
from cxrjax.core.errors import UserError
from cxrjax.report.run_writer import FACTS
from cxrjax.training import checkpoint


@contextlib.contextmanager
def locked(workdir: pathlib.Path, flag: str = "--workdir") -> Iterator[None]:
  """Holds `workdir/.lock`, which the kernel releases however the process ends.

  Args:
    workdir: created if missing.
    flag: command-line flag of the folder, for errors.

  Raises:
    UserError: the folder cannot be written, or another process is using it.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    handle = open(workdir / ".lock", "a+")  # noqa: SIM115 (held for the whole run)
  except OSError as error:
    raise UserError(
      f"{flag}={workdir} cannot be written ({error.strerror}); choose another folder"
    ) from error
  with handle:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      handle.seek(0)
      owner = handle.read().strip() or "unknown"
      raise UserError(
        f"{flag}={workdir} is in use by process {owner}; wait for it, or choose another folder"
      ) from error
    handle.truncate(0)
    handle.write(str(os.getpid()))
    handle.flush()
    yield


def in_use(workdir: pathlib.Path) -> bool:
  """Whether a process holds the lock of a folder; see `locked`."""
  try:
    with open(workdir / ".lock", "rb") as handle:
      fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except FileNotFoundError:
    return False
  except BlockingIOError:
    return True
  return False


IGNORED_KEYS = {"explain", "sections", "writers"}  # parts of a config that affect no result


def differences(
  old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "config"
) -> list[str]:
  """`config.a.b: 1 -> 2` for every key in which two nested configs differ, except `DRAWN`."""
  changes = []
  for key in sorted((set(old) | set(new)) - (IGNORED_KEYS if prefix == "config" else set())):
    name = f"{prefix}.{key}"
    if key not in new:
      changes.append(f"{name}: {old[key]!r} -> (absent)")
    elif key not in old:
      changes.append(f"{name}: (absent) -> {new[key]!r}")
    elif isinstance(old[key], Mapping) and isinstance(new[key], Mapping):
      changes += differences(old[key], new[key], name)
    elif old[key] != new[key]:
      changes.append(f"{name}: {old[key]!r} -> {new[key]!r}")
  return changes


def settle_config(workdir: pathlib.Path, config: Mapping[str, Any]) -> bool:
  """Writes `config.json`, or checks `config` against the existing one.

  The config of a run that never began (because of a mistake in it, say) is replaced. One that was
  trained with is binding: checkpoints hold it, so it counts even if `config.json` is missing or
  different.

  Returns:
    True if the folder already holds a run with this config.

  Raises:
    UserError: the folder holds a run with another config; lists the keys that differ.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  config = json.loads(json.dumps(config))  # tuples become lists, as when read back
  path = workdir / "config.json"
  has_begun = any((workdir / name).exists() for name in ("run.json", "checkpoints"))
  trained_config = checkpoint.config_of(workdir / "checkpoints")
  if trained_config is not None:
    changes = differences(trained_config, config)
    if changes:
      raise UserError(
        f"the checkpoints in --workdir={workdir} were trained with another config "
        f"({'; '.join(changes)}); restore these values or choose another folder"
      )
  if path.exists() and has_begun:
    try:
      old = files.read_mapping(path)
    except (OSError, files.Damaged) as error:
      raise UserError(f"{path} cannot be read ({error}); choose another --workdir") from error
    changes = differences(old, config)
    if changes:
      raise UserError(
        f"--workdir={workdir} holds a run with another config ({'; '.join(changes)}); restore "
        "these values or choose another folder"
      )
    return True
  with atomic_path(path) as temporary:
    temporary.write_text(json.dumps(config, indent=2) + "\n")
  return trained_config is not None


def holds_finished_run(workdir: pathlib.Path, config: Mapping[str, Any]) -> bool:
  """Whether the workdir holds a finished run of this config; process 0 decides for all.

  Raises:
    UserError: it holds a run with another config, or cannot be read.
  """
  is_finished = False
  if jax.process_index() == 0:
    facts_path = workdir / FACTS
    try:
      is_finished = (
        settle_config(workdir, config)
        and facts_path.exists()
        and files.read_mapping(facts_path).get("status") == "finished"
      )
    except (OSError, files.Damaged) as error:
      raise UserError(
        f"{facts_path} cannot be read ({error}); remove it, and the same command resumes "
        "from the last checkpoint"
      ) from error
  if jax.process_count() > 1:
    is_finished = bool(multihost_utils.broadcast_one_to_all(np.bool_(is_finished)))
  return is_finished

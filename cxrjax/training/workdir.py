"""A run's folder: locked while in use, and resumed only with the config it was started with."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from cxrjax.core import files
from cxrjax.core.errors import UserError
from cxrjax.training import checkpoint


@contextlib.contextmanager
def locked(workdir: pathlib.Path, flag: str = "--workdir") -> Iterator[None]:
  """Holds `workdir/.lock`; the kernel lets go of it however the process ends.

  Args:
    workdir: made where it is not there.
    flag: that names it, for errors.

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
  """Whether a process holds a folder, see `locked`."""
  try:
    with open(workdir / ".lock", "rb") as handle:
      fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except FileNotFoundError:
    return False
  except BlockingIOError:
    return True
  return False


DRAWN = {"explain"}  # parts of a config that change no result


def differences(
  old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "config"
) -> list[str]:
  """`config.a.b: 1 -> 2` for every key in which two nested configs differ, but for `DRAWN`."""
  found = []
  for key in sorted((set(old) | set(new)) - (DRAWN if prefix == "config" else set())):
    name = f"{prefix}.{key}"
    if key not in new:
      found.append(f"{name}: {old[key]!r} -> (absent)")
    elif key not in old:
      found.append(f"{name}: (absent) -> {new[key]!r}")
    elif isinstance(old[key], Mapping) and isinstance(new[key], Mapping):
      found += differences(old[key], new[key], name)
    elif old[key] != new[key]:
      found.append(f"{name}: {old[key]!r} -> {new[key]!r}")
  return found


def settle_config(workdir: pathlib.Path, config: Mapping[str, Any]) -> bool:
  """Writes `config.json`, or holds `config` against the one that is there.

  A run that never began (its config had a mistake, say) binds nobody: its config is replaced. What
  was trained binds: checkpoints hold their config, so it counts also where `config.json` is gone
  or another.

  Returns:
    True when the folder already holds a run with this config.

  Raises:
    UserError: it holds a run with another config; the keys that differ are listed.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  config = json.loads(json.dumps(config))  # tuples become lists, as they will be read back
  path = workdir / "config.json"
  began = any((workdir / name).exists() for name in ("run.json", "checkpoints"))
  trained = checkpoint.config_of(workdir / "checkpoints")
  if trained is not None:
    changed = differences(trained, config)
    if changed:
      raise UserError(
        f"the checkpoints in --workdir={workdir} were trained with another config "
        f"({'; '.join(changed)}); restore these values or choose another folder"
      )
  if path.exists() and began:
    try:
      old = files.read_mapping(path)
    except (OSError, files.Damaged) as error:
      raise UserError(f"{path} cannot be read ({error}); choose another --workdir") from error
    changed = differences(old, config)
    if changed:
      raise UserError(
        f"--workdir={workdir} holds a run with another config ({'; '.join(changed)}); restore "
        "these values or choose another folder"
      )
    return True
  temporary = path.with_suffix(".tmp")
  temporary.write_text(json.dumps(config, indent=2) + "\n")
  temporary.replace(path)
  return trained is not None

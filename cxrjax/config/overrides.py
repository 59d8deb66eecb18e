"""Parses `--config=FILE:ARG --config.a.b=value`, for the command line and for study plans."""

from __future__ import annotations

import contextlib
import pathlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from cxrjax.config.args import literal, split_items
from cxrjax.config.config_files import load_config, with_config_path
from cxrjax.core.errors import UserError


def resolve(arguments: Sequence[str]) -> dict[str, Any]:
  """Builds the config from flags, as plain Python; see `load`."""
  return load(arguments).to_dict()


def load(arguments: Sequence[str]) -> ConfigDict:
  """Builds the config from flags, as `python -m cxrjax.main` reads them.

  Args:
    arguments: `--config=FILE:ARG`, and `--config.a.b=value` after it.

  Raises:
    UserError: no such file, option or key, or a value of another type.
  """
  values = flags.FlagValues()
  argv, constants = split_constants(expand(["", *arguments]))
  config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values, sys_argv=argv)
  with in_one_line(), warnings.catch_warnings():
    # ml_collections loads the file with a deprecated importer.
    warnings.filterwarnings("ignore", r"the load_module\(\)", DeprecationWarning)
    values(argv)
    set_constants(values.config, constants)
    return values.config


def expand(argv: Sequence[str]) -> list[str]:
  """Replaces a config's name by its path, and keys after its colon by flags.

  `--config=dino:small,method.hidden=64` becomes
  `--config=configs/dino.py:small --config.method.hidden=64`. A study, whose own config has no
  `method`, keeps them for its runs; options of the source, `data.csv=labels.csv`, stay as well,
  where `data` has no such key.

  Raises:
    UserError: no such file or name.
  """
  expanded: list[str] = []
  for arg in with_config_path(argv):
    flag, _, value = arg.partition("=")
    path, _, text = value.partition(":")
    items = split_items(text)
    keys = [item for item in items if _is_key(item)] if flag == "--config" else []
    if keys:
      options = ",".join(item for item in items if item not in keys)
      config = _unchanged(f"{path}:{options}")
      keys = [key for key in keys if not _takes_any(config, key)]
      arg = f"--config={path}:{','.join(item for item in items if item not in keys)}"
    expanded += [arg, *(f"--config.{key}" for key in keys)]
  return expanded


def _is_key(item: str) -> bool:
  """Whether an item after the colon sets a key, `method.hidden=64`, and not an option."""
  name, equals, _ = item.partition("=")
  return bool(equals) and "." in name and not name.startswith("args.")


def _unchanged(value: str) -> ConfigDict:
  """The config `FILE:ARG` before any key is changed."""
  path, colon, arg = value.partition(":")
  get_config: Any = load_config(pathlib.Path(path))
  with in_one_line():
    config: ConfigDict = get_config(arg) if colon else get_config()
  return config


def _takes_any(config: ConfigDict, item: str) -> bool:
  """Whether the config's file handles a key itself.

  A study does, and whoever has options of a source or of a user's own model.
  """
  first, *others = item.partition("=")[0].strip().split(".")
  outer = config.get(first)
  takes_options = first == "data" or (
    isinstance(outer, ConfigDict)
    and not str(outer.get("name", "cxrjax")).startswith(("cxrjax", "optax"))
  )
  return outer is None or (takes_options and others[0] not in outer)


def split_constants(argv: Sequence[str]) -> tuple[list[str], dict[str, float]]:
  """Takes the flags out that give a number for a schedule, which makes it constant.

  Returns:
    The other arguments, and the numbers by key: `method.teacher_temp`.
  """
  file = next((arg for arg in argv if arg.startswith("--config=")), "")
  numbers = {
    match[1]: float(match[2])
    for match in (re.fullmatch(r"--config\.([\w.]+)=(.+)", arg) for arg in argv)
    if match and type(literal(match[2])) in (int, float)
  }
  if not file or not numbers:
    return list(argv), {}
  config = _unchanged(file.removeprefix("--config="))
  constants = {key: number for key, number in numbers.items() if _is_schedule(config, key)}
  removed = tuple(f"--config.{key}=" for key in constants)
  return [arg for arg in argv if not arg.startswith(removed or ("\0",))], constants


def set_constants(config: ConfigDict, constants: Mapping[str, float]) -> None:
  """Replaces schedules of a config, once its flags are parsed, by numbers."""
  config.to_dict()  # loading errors surface only here
  with config.ignore_type():
    for key, number in constants.items():
      config.update_from_flattened_dict({key: number})


def _is_schedule(config: ConfigDict, key: str) -> bool:
  value: Any = config
  for word in key.split("."):
    value = value.get(word) if isinstance(value, ConfigDict) else None
  return isinstance(value, ConfigDict) and "start" in value


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
  """Turns mistakes in a config or its flags into a one-line UserError."""
  try:
    yield
  except UserError:
    raise
  except (AttributeError, KeyError) as error:
    raise UserError(
      f"a --config.KEY=value names a key this config does not have: "
      f"{_one_line(error.args[0])}; the config file lists its keys"
    ) from error
  except (flags.Error, TypeError, ValueError, OSError) as error:
    raise UserError(_one_line(error)) from error


def _one_line(error: object) -> str:
  return " ".join(str(error).split())[:500]

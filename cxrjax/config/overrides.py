"""Parses `--config=FILE:ARG --config.a.b=value`, for the command line and for study plans."""

from __future__ import annotations

import contextlib
import inspect
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from cxrjax.config import presets
from cxrjax.config.args import split_items
from cxrjax.config.config_files import load_config, with_config_path
from cxrjax.core.errors import UserError


def resolve(arguments: Sequence[str]) -> dict[str, Any]:
  """Builds the config from flags, as plain Python; see `load`."""
  return load(arguments).to_dict()


def load(arguments: Sequence[str]) -> ConfigDict:
  """Builds the config from flags, as `python -m cxrjax.main` reads them.

  A file that puts its own presets and keys over its config, by `presets.apply`, is given the flags
  with what stands after its colon. Of another file, a study for example, keys are set in the config
  that it returns; keys after the colon that this lacks are left to it.

  Args:
    arguments: `--config=FILE:ARG`, and `--config.a.b=value`; the last `--config` counts.

  Raises:
    UserError: no such file, option or key, or a value of another type.
  """
  argv = with_config_path(arguments)
  file = [arg.removeprefix("--config=") for arg in argv if arg.startswith("--config=")][-1]
  typed = [arg.removeprefix("--config.") for arg in argv if arg.startswith("--config.")]
  path, _, text = file.partition(":")
  with in_one_line():
    get_config = load_config(pathlib.Path(path))
    if getattr(get_config, "__globals__", {}).get("presets") is presets:
      return _called(get_config, ",".join([text, *map(_quoted, typed)]))
    return _with_keys(get_config, split_items(text), typed)


def _with_keys(
  get_config: Callable[..., Any], items: Sequence[str], typed: Sequence[str]
) -> ConfigDict:
  """The config of a file that leaves keys to the command."""
  keys = [item for item in items if _is_key(item)]
  config = _called(get_config, ",".join(item for item in items if item not in keys))
  groups = [key for key in config if key not in ("data", "model")]  # a source has own options
  others = [
    item
    for item in keys
    if item.partition(".")[0] not in groups and not presets.has(config, item.partition("=")[0])
  ]
  if others:
    keys = [item for item in keys if item not in others]
    config = _called(get_config, ",".join(item for item in items if item not in keys))
  values = presets.Values(config)
  for item in (*keys, *typed):
    name, equals, value = item.partition("=")
    values.put({name.strip(): presets.Typed(value if equals else "True")})
  values.set_keys()
  return config


def _called(get_config: Callable[..., Any], arg: str) -> ConfigDict:
  if not arg.strip(",") and not inspect.signature(get_config).parameters:
    return get_config()
  return get_config(arg)


def _is_key(item: str) -> bool:
  """Whether an item after the colon sets a key, `method.hidden=64`, and not an option."""
  name, equals, _ = item.partition("=")
  return bool(equals) and "." in name and not name.startswith("args.")


def _quoted(item: str) -> str:
  """A flag's `key=value`, to stand among others with commas between."""
  name, equals, value = item.partition("=")
  return item if split_items(f"{item},x") == [item, "x"] else f"{name}{equals}{value!r}"


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
  """Turns mistakes in a config file into a one-line UserError."""
  try:
    yield
  except UserError:
    raise
  except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    raise UserError(" ".join(str(error).split())[:500]) from error

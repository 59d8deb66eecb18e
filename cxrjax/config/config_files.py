"""Config files of the package, by name or path: loads them, and completes `--config=NAME`."""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from cxrjax.core.errors import UserError, suggest
from cxrjax.core.package_folders import folder


def load_config(name: str | pathlib.Path) -> Callable[[str], Any]:
  """Loads `get_config` of a config of the package, or of a file, as a base for another config.

  Raises:
    UserError: there is no such config.
  """
  path = name if isinstance(name, pathlib.Path) else folder("configs") / f"{name}.py"
  spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
  if not path.is_file() or spec is None or spec.loader is None:
    raise UserError(f"{name} is no config of the package")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  get_config: Callable[[str], Any] = module.get_config
  return get_config


def with_config_path(argv: Sequence[str]) -> list[str]:
  """Replaces the name of a config of the package by its path in the arguments.

  `--config=dino:small` and `--config=configs/dino.py:small` are equivalent in any folder; an
  existing file of that name takes precedence. `--config NAME` becomes one argument.

  Raises:
    UserError: no such file or name.
  """
  resolved: list[str] = []
  remaining = iter(argv)
  for arg in remaining:
    flag, equals, value = arg.partition("=")
    if flag in ("--config", "-config") and not equals:
      value = next(remaining, "")
      equals = value and "="
    if flag not in ("--config", "-config") or not equals:
      resolved.append(arg)
      continue
    path, colon, options = value.partition(":")
    resolved.append(f"--config={_config_path(path)}{colon}{options}")
  return resolved


def _config_path(path: str) -> pathlib.Path:
  """Path of a config that is given by its name, or by its path from any folder."""
  if pathlib.Path(path).is_file():
    return pathlib.Path(path)
  if path.isidentifier():
    name = path
  else:
    name = pathlib.Path(path).stem if pathlib.Path(path).parent.name == "configs" else ""
  file = folder("configs") / f"{name}.py"
  if not file.is_file():
    known = suggest(name or path, config_names())
    raise UserError(f"--config={path} is no file, and no config of the package{known}")
  return file


def config_names() -> list[str]:
  """Names of the configs of the package, sorted."""
  return sorted(config.stem for config in folder("configs").glob("*.py"))

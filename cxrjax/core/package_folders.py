"""Folders at the top of the repository, which an installed package contains."""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

from cxrjax.core.errors import UserError, suggest

PACKAGE = pathlib.Path(__file__).parents[1]


def folder(name: str) -> pathlib.Path:
  """Path of `configs` or `tfds_builders`, in a checkout or an installed package."""
  inside = PACKAGE / name
  return inside if inside.is_dir() else PACKAGE.parent / name


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


def with_config_path(argv: list[str]) -> list[str]:
  """Replaces the name of a config of the package by its path in the arguments.

  `--config=dino:small` and `--config=configs/dino.py:small` are equivalent in any folder; an
  existing file of that name takes precedence.

  Raises:
    UserError: no such file or name.
  """
  resolved = list(argv)
  for i, arg in enumerate(argv):
    flag, equals, value = arg.partition("=")
    if flag not in ("--config", "-config") or (not equals and i + 1 == len(argv)):
      continue
    path, colon, options = (value if equals else argv[i + 1]).partition(":")
    if pathlib.Path(path).is_file():
      continue
    if path.isidentifier():
      name = path
    else:
      name = pathlib.Path(path).stem if pathlib.Path(path).parent.name == "configs" else ""
    file = folder("configs") / f"{name}.py"
    if not file.is_file():
      known = [config.stem for config in file.parent.glob("*.py")]
      raise UserError(
        f"--config={path} is no file, and no config of the package{suggest(name or path, known)}"
      )
    resolved[i if equals else i + 1] = f"{flag + equals if equals else ''}{file}{colon}{options}"
  return resolved

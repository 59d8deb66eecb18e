"""Folders that lie at the top of the repository, and within the package where it is installed."""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

from cxrjax.core.errors import UserError, suggest

PACKAGE = pathlib.Path(__file__).parents[1]


def folder(name: str) -> pathlib.Path:
  """The folder `configs` or `tfds_builders`, of a checkout or of an installed package."""
  inside = PACKAGE / name
  return inside if inside.is_dir() else PACKAGE.parent / name


def load_config(name: str | pathlib.Path) -> Callable[[str], Any]:
  """`get_config` of a config that comes with the package, or of a file: to begin another with.

  Raises:
    UserError: there is none.
  """
  path = name if isinstance(name, pathlib.Path) else folder("configs") / f"{name}.py"
  spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
  if not path.is_file() or spec is None or spec.loader is None:
    raise UserError(f"{name} is no config of the package")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  found: Callable[[str], Any] = module.get_config
  return found


def with_config_path(argv: list[str]) -> list[str]:
  """The arguments with the path of a config that comes with the package, named or by its path.

  `--config=dino:small` and `--config=configs/dino.py:small` mean the same from any folder; a file
  that is called so goes first.

  Raises:
    UserError: no such file or name.
  """
  found = list(argv)
  for i, arg in enumerate(argv):
    flag, equals, value = arg.partition("=")
    if flag not in ("--config", "-config") or (not equals and i + 1 == len(argv)):
      continue
    path, colon, rest = (value if equals else argv[i + 1]).partition(":")
    name = (
      path
      if path.isidentifier()
      else pathlib.Path(path).stem
      if (pathlib.Path(path).parent.name == "configs")
      else ""
    )
    file = folder("configs") / f"{name}.py"
    if pathlib.Path(path).is_file():
      continue
    if not file.is_file():
      known = [config.stem for config in file.parent.glob("*.py")]
      raise UserError(
        f"--config={path} is no file, and no config of the package{suggest(name or path, known)}"
      )
    found[i if equals else i + 1] = f"{flag + equals if equals else ''}{file}{colon}{rest}"
  return found

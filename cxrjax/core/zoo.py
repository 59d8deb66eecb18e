"""Networks that come with the package, as runs named `zoo:NAME`."""

from __future__ import annotations

import os
import pathlib

from cxrjax.core.errors import UserError, suggest

PREFIX = "zoo:"
_FOLDER = pathlib.Path(__file__).parent.parent / "zoo"


def names() -> tuple[str, ...]:
  """Names of all networks of the package."""
  return tuple(sorted(path.name for path in _FOLDER.glob("*/") if (path / "config.json").is_file()))


def resolve_workdir(workdir: str | os.PathLike[str], key: str = "workdir") -> pathlib.Path:
  """Resolves a workdir: `zoo:NAME` to the folder in the package, anything else to its path.

  Args:
    workdir: a run's workdir, or `zoo:NAME`.
    key: the option that names it, for errors.

  Raises:
    UserError: there is no such network.
  """
  text = os.fspath(workdir)
  if not text.startswith(PREFIX):
    return pathlib.Path(text).expanduser()
  name = text.removeprefix(PREFIX)
  if name not in names():
    raise UserError(
      f"{key}={text!r} is not a network that comes with the package{suggest(name, names())}"
    )
  return _FOLDER / name

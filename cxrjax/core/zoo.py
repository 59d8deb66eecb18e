"""Networks that come with the package, as runs named `zoo:NAME`."""

from __future__ import annotations

import os
import pathlib

from cxrjax.core.errors import UserError, suggest

PREFIX = "zoo:"
_FOLDER = pathlib.Path(__file__).parent.parent / "zoo"


def names() -> tuple[str, ...]:
  """Of all networks."""
  return tuple(sorted(path.name for path in _FOLDER.glob("*/") if (path / "config.json").is_file()))


def place(workdir: str | os.PathLike[str], key: str = "workdir") -> pathlib.Path:
  """The folder of a run: of `zoo:NAME` that in the package, of all else its path.

  Args:
    workdir: of a run, or `zoo:NAME`.
    key: the option that names it, for errors.

  Raises:
    UserError: there is no such network.
  """
  text = os.fspath(workdir)
  if not text.startswith(PREFIX):
    return pathlib.Path(text).expanduser()
  name = text.removeprefix(PREFIX)
  if name not in names():
    raise UserError(f"{key}={text!r} is no network of the package{suggest(name, names())}")
  return _FOLDER / name

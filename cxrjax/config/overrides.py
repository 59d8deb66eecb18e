"""Parses `--config=FILE:ARG --config.a.b=value`, for the command line and for study plans."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from cxrjax.core.errors import UserError
from cxrjax.core.package_folders import with_config_path


def resolve(arguments: Sequence[str]) -> dict[str, Any]:
  """Builds the config from flags, as `python -m cxrjax.main` reads them.

  Args:
    arguments: `--config=FILE:ARG`, and `--config.a.b=value` after it.

  Raises:
    UserError: no such file, option or key, or a value of another type.
  """
  values, argv = flags.FlagValues(), with_config_path(["", *arguments])
  config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values, sys_argv=argv)
  with in_one_line(), warnings.catch_warnings():
    # ml_collections loads the file with a deprecated importer.
    warnings.filterwarnings("ignore", r"the load_module\(\)", DeprecationWarning)
    values(argv)
    return values.config.to_dict()


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

"""Base class of metric writers, and the writers that a config names."""

from __future__ import annotations

import abc
import importlib
import pathlib
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from cxrjax.config.instantiate import locate
from cxrjax.core.errors import UserError


class Writer(abc.ABC):
  """Takes the metrics of a run elsewhere, in the process that writes its files.

  Subclasses define `write`. Nothing may be opened before it is called for the first time.

  Args:
    workdir: of the run; the same run again, when it resumes, has the same.
    config: of the run, for the record.
  """

  def __init__(self, workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    self.workdir, self.config = workdir, config

  @abc.abstractmethod
  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes values by name, `train/loss` or `probe/trained/knn5/auroc`; NaN where undefined."""

  def truncate(self, step: int) -> None:  # noqa: B027 - not all can
    """Discards what was written after `step`, as the run resumes there and writes it again."""

  def close(self) -> None:  # noqa: B027 - not all have to
    """Flushes; safe to call twice, and where nothing was written."""


def open_writers(
  names: Iterable[str], workdir: pathlib.Path, config: Mapping[str, Any]
) -> list[Writer]:
  """The writers of `config.writers`.

  Args:
    names: `wandb`, `mlflow`, or your own, `my_package.my_file` or `my_package.my_file:MyWriter`.
    workdir: of the run.
    config: of the run.

  Raises:
    UserError: an unknown name, or a package that is not installed.
  """
  writers = []
  for name in names:
    is_own = "." in name or ":" in name
    factory: Any = locate(name if is_own else f"{__package__}.{name}", "Writer", "config.writers")
    writers.append(factory(workdir, config))
  return writers


def load_package(name: str) -> ModuleType:
  """Imports the package that a writer needs; raises a UserError where it is not installed."""
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise UserError(
      f"config.writers has {name!r}, which cannot be imported ({error}); pip install {name}, or "
      "leave it out"
    ) from error

"""Finds a TFDS data set, and prepares it on first use if its builder and archive are available."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import pathlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from cxrjax.core import files, package_folders
from cxrjax.core.errors import UserError, suggest

BUILDERS = package_folders.folder("tfds_builders")
_DISK_ERRORS = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EACCES,
  errno.EROFS,
  errno.EPERM,
  errno.ENOTDIR,
  errno.ENOENT,
)
_KEY = "config.data.options"


def prepared(where: str, data_dir: str | None, manual_dir: str | None) -> Any:
  """Builder of a prepared data set in array_record format, which needs no TensorFlow."""
  name, _, config = where.partition("/")
  root = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
  root = root.expanduser()
  cls = builder_class(name)
  if cls is not None:
    try:
      with _quiet():
        options = {"data_dir": str(root), "config": config or None}
        builder = cls(**options)
        is_prepared = builder.is_prepared()
        if not is_prepared:
          builder = cls(**options, file_format="array_record")
    except ValueError as error:
      if not config:
        raise
      configs = [c.name for c in cls.BUILDER_CONFIGS]
      raise UserError(f"tfds:{name} has no config {config!r}{suggest(config, configs)}") from error
    if not is_prepared:
      _prepare(builder, where, root, manual_dir)
  else:
    folder = _newest(root / where)
    if folder is None:
      builders = sorted(p.parent.name for p in BUILDERS.glob("*/*_dataset_builder.py"))
      raise UserError(
        f"tfds:{where} is not prepared in {root}, and there is no builder for it"
        f"{suggest(name, builders) if builders else ''}; or name the folder of prepared data "
        f"sets in {_KEY}.data_dir"
      )
    _check_features(folder / "features.json")
    builder = tfds.builder_from_directory(str(folder))
  file_format = builder.info.file_format
  if file_format is None or file_format.value != "array_record":
    raise UserError(
      f"{builder.data_path} holds {getattr(file_format, 'value', 'other')} files, which need "
      "TensorFlow to read; rebuild it: tfds build --overwrite --file_format=array_record"
    )
  return builder


def _check_features(file: pathlib.Path) -> None:
  """Rejects prepared data sets with features from outside of TFDS, which TFDS would import."""
  try:
    waiting = [files.read_json(file)]
    while waiting:
      item = waiting.pop()
      if isinstance(item, str) and item.lstrip().startswith(("{", "[")):
        waiting.append(files.parse_json(item))  # older versions nest JSON in strings
      elif isinstance(item, list):
        waiting += item
      elif isinstance(item, dict):
        waiting += item.values()
        for key in ("pythonClassName", "python_class_name", "type"):
          name = item.get(key)
          if isinstance(name, str) and not name.startswith("tensorflow_datasets."):
            raise UserError(
              f"{file} names {name}, which is not a TFDS feature; it was not imported"
            )
  except (OSError, files.Damaged) as error:
    raise UserError(f"{file} cannot be read ({error}); prepare the data set again") from error


def _newest(folder: pathlib.Path) -> pathlib.Path | None:
  versions = [
    p
    for p in folder.glob("*.*.*")
    if (p / "dataset_info.json").is_file() and all(part.isdigit() for part in p.name.split("."))
  ]
  return max(versions, key=lambda p: [int(part) for part in p.name.split(".")], default=None)


def builder_class(name: str) -> type[Any] | None:
  """Builder class in `tfds_builders/NAME/NAME_dataset_builder.py`, or None."""
  file = BUILDERS / name / f"{name}_dataset_builder.py"
  if not name.isidentifier() or not file.is_file():
    return None
  package = sys.modules.setdefault(BUILDERS.name, types.ModuleType(BUILDERS.name))
  # Set even if another package has this name; TFDS needs `__file__`.
  package.__path__, package.__file__ = [str(BUILDERS)], str(BUILDERS / "__init__.py")
  builder = importlib.import_module(f"{BUILDERS.name}.{name}.{name}_dataset_builder").Builder
  builder.pkg_dir_path = tfds.core.Path(file.parent)
  return builder


def _prepare(builder: Any, where: str, root: pathlib.Path, manual_dir: str | None) -> None:
  manual = pathlib.Path(manual_dir).expanduser() if manual_dir else root / "downloads" / "manual"
  if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not (manual.is_dir() and any(manual.iterdir())):
    raise UserError(
      f"tfds:{where} is not prepared in {root}, and its manual folder {manual} does not exist or "
      f"is empty; name it in {_KEY}.manual_dir. {builder.MANUAL_DOWNLOAD_INSTRUCTIONS}"
    )
  try:
    root.mkdir(parents=True, exist_ok=True)
    with _exclusive_lock(root / f".{builder.name}.lock"):
      with _quiet():
        if builder.is_prepared():
          return
      sys.stderr.write(f"preparing tfds:{where} from {manual} in {root}, once\n")
      if not sys.stderr.isatty():
        tfds.disable_progress_bar()
      with contextlib.redirect_stdout(sys.stderr):
        builder.download_and_prepare(
          download_config=tfds.download.DownloadConfig(manual_dir=str(manual))
        )
  except Exception as error:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError | OSError):
      cause = cause.__cause__ or cause.__context__
    if isinstance(cause, UserError):
      while isinstance(cause.__cause__, UserError):  # the innermost one, as TFDS prefixes messages
        cause = cause.__cause__
      raise UserError(str(cause)) from error
    if isinstance(cause, OSError) and cause.errno in _DISK_ERRORS:
      raise UserError(
        f"cannot prepare tfds:{where} in {root}: {cause.strerror}; name another "
        f"folder in {_KEY}.data_dir"
      ) from error
    raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Silences TFDS's warning about unprepared data sets, which are about to be prepared."""
  before = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(before)


@contextlib.contextmanager
def _exclusive_lock(lock: pathlib.Path) -> Iterator[None]:
  """Admits one process at a time; those that waited then find the data set prepared."""
  try:
    import fcntl
  except ImportError:  # not on this system, where concurrent processes prepare the data set twice
    yield
    return
  with open(lock, "w") as opened:
    fcntl.flock(opened, fcntl.LOCK_EX)
    yield

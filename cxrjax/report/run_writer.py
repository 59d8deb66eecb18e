"""Writes the files of a run: `metrics.jsonl`, `run.json`, `figures/*.npz`, and passes metrics on.

A run may be killed at any byte. A JSON line is written with one call, a torn last line is dropped
when the file is opened again, and whole files are replaced atomically. A disk may be full: some
room is held back, so that `run.json` can still say how the run ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, SupportsFloat, SupportsInt

import numpy as np

from cxrjax.core import files
from cxrjax.core.atomic_files import LEFTOVERS, atomic_open
from cxrjax.core.errors import UserError
from cxrjax.report.writers import base, tensorboard

METRICS = "metrics.jsonl"
FACTS = "run.json"
FIGURES = "figures"
_RESERVE = ".reserve"  # a file that is deleted to make room for `run.json` on a full disk
_ROOM = 1 << 20  # its size in bytes


FULL = (errno.ENOSPC, errno.EDQUOT)


class Writer:
  """Writer of the metrics, facts and figures of a run; nothing else writes metrics.

  Args:
    workdir: created if missing.
    active: whether this process writes. In a run of several processes only process 0 does; the
      methods of the others do nothing.
    others: writers that take the metrics as well, besides TensorBoard's.

  Raises:
    UserError: here and in every method, when a file cannot be written (no permission, full disk).
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    *,
    active: bool = True,
    others: Sequence[base.Writer] = (),
  ):
    self.workdir = pathlib.Path(workdir)
    self.active = active
    self._writers = (tensorboard.Writer(self.workdir, {}), *others)
    self._metrics_file: int | None = None
    if not active:
      return
    with user_errors(self.workdir):
      self.workdir.mkdir(parents=True, exist_ok=True)
      for folder in (self.workdir, self.workdir / FIGURES):  # leftovers of a killed run
        for leftover in folder.glob(LEFTOVERS):
          leftover.unlink()
      with open(self.workdir / _RESERVE, "wb") as reserve:
        reserve.write(bytes(_ROOM))
    self._path = self.workdir / METRICS
    with user_errors(self._path):
      self._metrics_file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
      _drop_torn_line(self._metrics_file)

  def __enter__(self) -> Writer:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def scalars(self, step: SupportsInt, epoch: SupportsFloat, values: Mapping[str, Any]) -> None:
    """One line of training metrics; values are numbers or arrays with one element."""
    if not self.active:
      return
    numbers = {name: _json_number(value) for name, value in values.items()}
    self._append({"step": int(step), "epoch": _json_number(epoch), "kind": "train", **numbers})
    self._pass_on(step, {f"train/{name}": value for name, value in numbers.items()})

  def results(
    self,
    step: SupportsInt,
    epoch: SupportsFloat,
    evaluator: str,
    encoder: str,
    metrics: Mapping[str, Any],
  ) -> None:
    """One line of evaluation results.

    Args:
      step: of the training run.
      epoch: of the training run.
      evaluator: e.g. `"probe"`.
      encoder: whose features: `"trained"`, `"random"` (before training) or `"floor"` (thumbnails).
      metrics: per name (`"knn5/auroc"`) a `metrics.intervals.Interval`, a mapping with `value`,
        `low`, `high`, `n`, `method`, or a bare number.
    """
    if not self.active:
      return
    converted = {name: _json_interval(value) for name, value in metrics.items()}
    self._append(
      {
        "step": int(step),
        "epoch": _json_number(epoch),
        "kind": "eval",
        "evaluator": evaluator,
        "encoder": encoder,
        "metrics": converted,
      },
      sync=True,
    )
    values = {f"{evaluator}/{encoder}/{k}": v.get("value") for k, v in converted.items()}
    self._pass_on(step, values)

  def facts(self, **facts: Any) -> None:
    """Merges facts into `run.json`; nested mappings are merged too, lists are replaced."""
    if not self.active:
      return
    path = self.workdir / FACTS
    with user_errors(path):
      try:
        known = files.read_mapping(path)
      except (FileNotFoundError, ValueError):
        known = {}
      merged = _merge(known, _json_value(facts))
      text = json.dumps(merged, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
      try:
        _replace(path, text)
      except OSError as error:
        if error.errno not in FULL:
          raise
        (self.workdir / _RESERVE).unlink(missing_ok=True)
        _replace(path, text)

  def has(self, evaluator: str, encoder: str) -> bool:
    """Whether there are results of an evaluator for that encoder; False where nothing is written.

    They are written after the figures and facts that belong to them.
    """
    if not self.active:
      return False
    with user_errors(self._path):
      records = [_parse_record(line) for line in self._path.read_bytes().splitlines()]
    return any(
      r.get("kind") == "eval" and r.get("evaluator") == evaluator and r.get("encoder") == encoder
      for r in records
    )

  def arrays(self, name: str, **arrays: Any) -> None:
    """Writes `figures/<name>.npz`, e.g. `arrays("views", source=..., local=...)`."""
    if not self.active:
      return
    path = self.workdir / FIGURES / f"{name}.npz"
    with user_errors(path):
      converted: dict[str, Any] = {k: np.asarray(v) for k, v in arrays.items()}
      with atomic_open(path) as file:
        np.savez_compressed(file, **converted)

  def truncate(self, step: SupportsInt) -> int:
    """Discards records after `step`; to be called when a run begins or resumes from a checkpoint.

    Drops lines that the run will write again: training metrics and results of the trained encoder
    after `step`, at step 0 also those of the random encoder; other writers are told to do the same.

    Returns:
      Number of training lines up to `step`.
    """
    if not self.active:
      return 0
    with user_errors(self._path):
      data = self._path.read_bytes()
      lines = data.splitlines(keepends=True)
      remaining = [line for line in lines if not _is_rewritten(_parse_record(line), int(step))]
      if len(remaining) < len(lines):
        assert self._metrics_file is not None  # open until `close`
        os.close(self._metrics_file)
        self._metrics_file = None
        with atomic_open(self._path) as file:
          file.writelines(remaining)
        self._metrics_file = os.open(self._path, os.O_RDWR | os.O_APPEND, 0o644)
    for writer in self._writers:
      with _errors_of(writer):
        writer.truncate(int(step))
    return sum(_parse_record(line).get("kind") == "train" for line in remaining)

  def close(self) -> None:
    """Flushes and closes all files; safe to call twice."""
    if self.active:
      (self.workdir / _RESERVE).unlink(missing_ok=True)
    for writer in self._writers:
      with _errors_of(writer):
        writer.close()
    if self._metrics_file is not None:
      file, self._metrics_file = self._metrics_file, None
      with user_errors(self._path):
        try:
          os.fsync(file)
        finally:
          os.close(file)

  def _append(self, record: Mapping[str, Any], sync: bool = False) -> None:
    text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
    data = text.encode("utf-8")
    with user_errors(self._path):
      if self._metrics_file is None:
        raise UserError(f"{self._path}: the writer is closed")
      end = os.fstat(self._metrics_file).st_size
      try:
        written = os.write(self._metrics_file, data)
        while written < len(data):  # a nearly full disk takes a part, then raises ENOSPC
          written += os.write(self._metrics_file, data[written:])
        if sync:
          os.fsync(self._metrics_file)
      except OSError:
        with contextlib.suppress(OSError):
          os.ftruncate(self._metrics_file, end)
        raise

  def _pass_on(self, step: SupportsInt, values: Mapping[str, float | int | None]) -> None:
    numbers = {name: math.nan if value is None else value for name, value in values.items()}
    for writer in self._writers:
      with _errors_of(writer):
        writer.write(int(step), numbers)


@contextlib.contextmanager
def _errors_of(writer: base.Writer) -> Iterator[None]:
  """Turns an OSError of a metric writer into a UserError that names its files, or the writer."""
  try:
    yield
  except OSError as error:
    if isinstance(writer, tensorboard.Writer):
      with user_errors(writer.workdir / tensorboard.FOLDER):
        raise
    name = type(writer).__module__
    raise UserError(
      f"config.writers: {name!r} failed ({error}); fix it, or leave it out"
    ) from error


def _replace(path: pathlib.Path, text: str) -> None:
  with atomic_open(path) as file:
    file.write(text.encode("utf-8"))


@contextlib.contextmanager
def user_errors(path: pathlib.Path) -> Iterator[None]:
  """Turns an OSError into a UserError that names the file."""
  try:
    yield
  except OSError as error:
    raise UserError(
      f"{path} cannot be written ({error.strerror or error}); free some space, or choose another "
      "folder with --workdir"
    ) from error


def _drop_torn_line(file: int) -> None:
  """Truncates after the last newline: a kill may have left a partial line."""
  size = os.fstat(file).st_size
  end, block = size, 1 << 16
  while end > 0:
    start = max(0, end - block)
    newline = os.pread(file, end - start, start).rfind(b"\n")
    if newline >= 0:
      end = start + newline + 1
      break
    end = start
  if end != size:
    os.ftruncate(file, end)


def _parse_record(line: bytes) -> dict[str, Any]:
  """Parses a line of `metrics.jsonl`; {} where it is not a valid record."""
  try:
    record = json.loads(line)
  except ValueError:
    return {}
  return record if isinstance(record, dict) and isinstance(record.get("step"), int) else {}


def _is_rewritten(record: Mapping[str, Any], step: int) -> bool:
  """Whether a run that resumes at `step` will write this record again."""
  if record.get("kind") == "eval" and record.get("encoder") == "random":
    return step == 0
  is_later = bool(record) and record["step"] > step
  return is_later and (record.get("kind") == "train" or record.get("encoder") == "trained")


def _json_number(value: Any) -> float | int | None:
  """A JSON number with the digits of a float32; None for NaN and the infinities."""
  if value is None:
    return None
  number = np.asarray(value).reshape(()).item()
  if isinstance(number, bool | int):
    return int(number)
  return float(f"{number:.9g}") if math.isfinite(number) else None


def _json_interval(value: Any) -> dict[str, Any]:
  if hasattr(value, "_asdict"):
    value = value._asdict()
  elif dataclasses.is_dataclass(value) and not isinstance(value, type):
    value = dataclasses.asdict(value)
  elif not isinstance(value, Mapping):
    value = {"value": value}
  return {
    k: _json_number(v) if k in ("value", "low", "high") else _json_value(v)
    for k, v in value.items()
  }


def _json_value(value: Any) -> Any:
  """Converts the value of a fact to JSON types."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    value = dataclasses.asdict(value)
  if isinstance(value, Mapping):
    return {str(k): _json_value(v) for k, v in value.items()}
  if isinstance(value, list | tuple | set | frozenset):
    return [_json_value(v) for v in value]
  if value is None or isinstance(value, str | bool | int):
    return value
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if hasattr(value, "tolist"):
    return _json_value(value.tolist())
  return str(value)


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
  merged = dict(old)
  for key, value in new.items():
    is_nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
    merged[key] = _merge(merged[key], value) if is_nested else value
  return merged


def now() -> str:
  """The time in UTC, ISO 8601."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

"""A folder of predictions that grows batch by batch and resumes after an interruption.

- `predictions.csv`: see `inference.predictions`; with `parquet`, `predictions.parquet` as well.
- `embeddings.npy`: float32, one row for each row of the table.
- `masks/ID.png` (1 bit), `overlays/ID.png`: one picture per image.
- `skipped.csv`: images that could not be used, and why.
- `predictions.json`: the network that made them, and the progress.

`predictions.json` is written before anything else. A batch counts once it is recorded there; what
an interrupted process wrote beyond that is truncated.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import io
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from cxrjax.core import files
from cxrjax.core import tables as csv
from cxrjax.core.atomic_files import atomic_path
from cxrjax.core.errors import UserError
from cxrjax.core.text import identifier
from cxrjax.inference import predictions as tables

ABOUT, TABLE, SKIPPED, EMBEDDINGS = (
  "predictions.json",
  "predictions.csv",
  "skipped.csv",
  "embeddings.npy",
)
PARQUET = "predictions.parquet"
_PARQUET_CHUNK = 65_536  # rows converted to Parquet at a time
_MAX_NAME = 255  # bytes of a file name, on all common file systems
_MAX_PATH = 3000  # bytes of a path below the folder; systems allow 4,096 in all


class Journal:
  """Predictions of one network, on disk.

  Args:
    folder: created if missing.
    about: what determines the predictions, JSON-able; a folder is resumed only if it is the same.
    overwrite: start over whatever the folder holds.

  Attributes:
    done: `core.text.identifier` of the images that are predicted or skipped.
    rows: number of predicted images.
    skipped: number of skipped images.

  Raises:
    UserError: the folder holds other predictions, or its files were changed or truncated.
  """

  def __init__(self, folder: pathlib.Path, about: Mapping[str, Any], overwrite: bool = False):
    self.folder = folder
    self._about = json.loads(json.dumps(about))
    self._state: dict[str, Any] = {"rows": 0, "skipped": 0, "bytes": {}}
    self.done: set[str] = set()
    previous = None if overwrite else self._read_state()
    if previous is None:
      self._write(status="running")  # marks the folder as written by this program
    else:
      self._state = {name: previous[name] for name in self._state}
    if not self.rows + self.skipped:
      for name in (TABLE, SKIPPED, EMBEDDINGS, PARQUET):
        (folder / name).unlink(missing_ok=True)
    else:
      self._truncate()
      self.done = {row[0] for name in (TABLE, SKIPPED) for row in self._read_rows(name)}
    self._table_file, self._skipped_file = (
      tables.open_text(folder / name, "a") for name in (TABLE, SKIPPED)
    )
    self._threads = concurrent.futures.ThreadPoolExecutor()
    self._embeddings: io.BufferedRandom | None = None

  @property
  def rows(self) -> int:
    return self._state["rows"]

  @property
  def skipped(self) -> int:
    return self._state["skipped"]

  def add(self, predictions: tables.Predictions) -> None:
    """Writes the predictions of a batch, pictures first."""
    pictures = [
      ("masks", name, mask.astype(bool))
      for name, mask in zip(predictions.ids, predictions.masks or (), strict=False)
    ]
    pictures += [
      ("overlays", name, picture)
      for name, picture in zip(predictions.ids, predictions.overlays or (), strict=False)
    ]
    list(self._threads.map(lambda item: _draw(self.folder, *item), pictures))
    if len(predictions):
      tables.write_rows(self._table_file, predictions, header=not self.rows)
      if predictions.embeddings is not None:
        self._add_embeddings(predictions.embeddings)
    if predictions.skipped and not self.skipped:
      csv.write(self._skipped_file, [("id", "reason")])
    csv.write(self._skipped_file, (map(identifier, item) for item in predictions.skipped))
    self._state["rows"] += len(predictions)
    self._state["skipped"] += len(predictions.skipped)
    for name, file in ((TABLE, self._table_file), (SKIPPED, self._skipped_file)):
      file.flush()
      self._state["bytes"][name] = os.fstat(file.fileno()).st_size
    self._write(status="running")

  def close(self) -> None:
    """Closes the files; what has been added stays."""
    self._threads.shutdown()
    for file in (self._table_file, self._skipped_file, self._embeddings):
      if file is not None:
        file.close()
    if not self.skipped:
      (self.folder / SKIPPED).unlink(missing_ok=True)

  def finish(self, parquet: bool = False, **facts: Any) -> None:
    """Marks all images as done, with further facts for `predictions.json`."""
    self.close()
    if parquet and self.rows:
      self._to_parquet()
    self._write(status="finished", **facts)

  def reasons(self, count: int) -> list[tuple[str, str]]:
    """The first images that were skipped, and why."""
    skipped = []
    for name, why in self._read_rows(SKIPPED):
      skipped.append((name, why))
      if len(skipped) == count:
        break
    return skipped

  def _read_state(self) -> dict[str, Any] | None:
    """Reads the state of a folder of the same predictions; None for a new folder."""
    path = self.folder / ABOUT
    if not path.exists():
      existing = [name for name in (TABLE, EMBEDDINGS) if (self.folder / name).exists()]
      if existing:
        raise UserError(
          f"{self.folder / existing[0]} was not written by this program and would be "
          "overwritten; choose another --out, or --overwrite"
        )
      return None
    try:
      state = files.read_mapping(path)
      old = state["about"]
      int(state["rows"]), int(state["skipped"]), dict(state["bytes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise UserError(
        f"{path} is damaged ({error}); choose another --out, or --overwrite"
      ) from error
    changed = [key for key in sorted({*old, *self._about}) if old.get(key) != self._about.get(key)]
    if changed:
      raise UserError(
        f"{self.folder} holds predictions made with other settings "
        f"({', '.join(changed)}); choose another --out, or --overwrite"
      )
    return state

  def _truncate(self) -> None:
    """Truncates files to the last recorded batch."""
    sizes = dict(self._state["bytes"])
    if self._about.get("embed") and self.rows:
      with open(self.folder / EMBEDDINGS, "rb") as file:
        shape = _npy_shape(file)
        sizes[EMBEDDINGS] = file.tell() + 4 * self.rows * shape[1]
    for name, size in sizes.items():
      path = self.folder / name
      actual = path.stat().st_size if path.exists() else 0
      if actual < size:
        raise UserError(
          f"{path} has been truncated or changed; choose another --out, or --overwrite"
        )
      if actual > size:
        os.truncate(path, size)

  def _read_rows(self, name: str) -> Iterator[list[str]]:
    """Reads the rows of a CSV below its header; none if it is missing."""
    path = self.folder / name
    if path.exists():
      with tables.open_text(path, "r") as file:
        rows = csv.read(file)
        next(rows, None)
        yield from rows

  def _add_embeddings(self, x: np.ndarray) -> None:
    if self._embeddings is None:
      path = self.folder / EMBEDDINGS
      self._embeddings = open(path, "r+b" if self.rows else "w+b")  # noqa: SIM115 (until close)
      if not self.rows:
        self._embeddings.write(_npy_header(0, x.shape[1]))
    self._embeddings.seek(0, os.SEEK_END)
    self._embeddings.write(np.ascontiguousarray(x, "<f4").tobytes())
    self._embeddings.seek(0)
    self._embeddings.write(_npy_header(self.rows + len(x), x.shape[1]))
    self._embeddings.flush()

  def _write(self, **facts: Any) -> None:
    text = json.dumps({"about": self._about, **self._state, **facts}, indent=2) + "\n"
    with atomic_path(self.folder / ABOUT) as temporary:
      temporary.write_text(text)

  def _to_parquet(self) -> None:
    """Converts the whole table to Parquet in chunks, with the embeddings."""
    import pyarrow.parquet  # takes a third of a second, not needed for CSV

    embeddings = None
    if self._about.get("embed"):
      embeddings = np.load(self.folder / EMBEDDINGS, mmap_mode="r")
    with tables.output_path(self.folder / PARQUET) as target, contextlib.ExitStack() as stack:
      csv_file = stack.enter_context(tables.open_text(self.folder / TABLE, "r"))
      rows = csv.read(csv_file)
      names, writer = next(rows), None
      for start in range(0, self.rows, _PARQUET_CHUNK):
        chunk = zip(*itertools.islice(rows, _PARQUET_CHUNK), strict=True)
        table = tables.arrow(
          dict(zip(names, map(list, chunk), strict=True)),
          None if embeddings is None else embeddings[start : start + _PARQUET_CHUNK],
        )
        if writer is None:
          writer = stack.enter_context(pyarrow.parquet.ParquetWriter(target, table.schema))
        writer.write_table(table)


def file_of(name: str) -> str:
  """Relative path of an image's picture, a PNG; names that are too long end in a hash."""
  parts = [part for part in name.split("/") if part not in ("", ".")]
  parts = ["_up" if part == ".." else part for part in parts]
  parts[-1] += ".png"
  path = "/".join(_shortened(part) for part in parts)
  if len(os.fsencode(path)) <= _MAX_PATH:
    return path
  return _shortened(name.replace("/", "_") + ".png", 0)


def _shortened(part: str, longest: int = _MAX_NAME) -> str:
  """Shortens a part of a path to what file systems allow."""
  raw = os.fsencode(part)
  if len(raw) <= longest:
    return part
  ending = f"-{hashlib.sha256(raw).hexdigest()[:16]}{'.png' if part.endswith('.png') else ''}"
  return raw[:200].decode("utf-8", "ignore") + ending


def _draw(folder: pathlib.Path, kind: str, name: str, pixels: np.ndarray) -> None:
  path = folder / kind / file_of(name)
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path, compress_level=1)


def _npy_header(rows: int, columns: int) -> bytes:
  """Header of a .npy file; its length does not depend on the number of rows."""
  buffer = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    buffer, {"descr": "<f4", "fortran_order": False, "shape": (rows, columns)}
  )
  return buffer.getvalue()


def _npy_shape(file: Any) -> tuple[int, ...]:
  np.lib.format.read_magic(file)
  return np.lib.format.read_array_header_1_0(file)[0]

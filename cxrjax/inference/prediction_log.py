"""A folder of predictions that grows batch by batch, and goes on where it was stopped.

- `predictions.csv`: see `inference.predictions`; with `parquet`, `predictions.parquet` as well.
- `embeddings.npy`: float32, one row for each row of the table.
- `masks/ID.png` (1 bit), `overlays/ID.png`: one picture an image.
- `skipped.csv`: images that could not be used, and why.
- `predictions.json`: which network made them, and how far they are.

`predictions.json` is there before anything else. A batch counts once it says so; what a stopped
process wrote beyond is cut off.
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
_CHUNK = 65_536  # rows that are made Parquet at a time
_LONGEST = 255  # bytes of a file's name, on all usual file systems
_PATH = 3000  # bytes of a path below the folder, of the 4,096 that a system takes


class Journal:
  """Predictions of one network, on disk.

  Args:
    folder: made where it is not there.
    about: what decides the predictions, for JSON; a folder is gone on with only if it is the same.
    overwrite: begin anew whatever is there.

  Attributes:
    done: `core.text.identifier` of the images that are predicted or skipped.
    rows: predicted.
    skipped: skipped.

  Raises:
    UserError: the folder holds other predictions, or files of it were changed or cut.
  """

  def __init__(self, folder: pathlib.Path, about: Mapping[str, Any], overwrite: bool = False):
    self.folder = folder
    self._about = json.loads(json.dumps(about))
    self._state: dict[str, Any] = {"rows": 0, "skipped": 0, "bytes": {}}
    self.done: set[str] = set()
    found = None if overwrite else self._found()
    if found is None:
      self._write(status="running")  # from here on the folder is known as this program's
    else:
      self._state = {name: found[name] for name in self._state}
    if not self.rows + self.skipped:
      for name in (TABLE, SKIPPED, EMBEDDINGS, PARQUET):
        (folder / name).unlink(missing_ok=True)
    else:
      self._cut()
      self.done = {row[0] for name in (TABLE, SKIPPED) for row in self._table(name)}
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
    """Writes what a batch gave, after its pictures."""
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
        self._embed(predictions.embeddings)
    if predictions.skipped and not self.skipped:
      csv.write(self._skipped_file, [("id", "reason")])
    csv.write(self._skipped_file, (map(identifier, item) for item in predictions.skipped))
    self._state["rows"] += len(predictions)
    self._state["skipped"] += len(predictions.skipped)
    for name, opened in ((TABLE, self._table_file), (SKIPPED, self._skipped_file)):
      opened.flush()
      self._state["bytes"][name] = os.fstat(opened.fileno()).st_size
    self._write(status="running")

  def close(self) -> None:
    """Closes the files; what has been added stays."""
    self._threads.shutdown()
    for opened in (self._table_file, self._skipped_file, self._embeddings):
      if opened is not None:
        opened.close()
    if not self.skipped:
      (self.folder / SKIPPED).unlink(missing_ok=True)

  def finish(self, parquet: bool = False, **facts: Any) -> None:
    """Says that all images are done, with facts for `predictions.json`."""
    self.close()
    if parquet and self.rows:
      self._to_parquet()
    self._write(status="finished", **facts)

  def reasons(self, count: int) -> list[tuple[str, str]]:
    """The first images that were skipped, and why."""
    found = []
    for name, why in self._table(SKIPPED):
      found.append((name, why))
      if len(found) == count:
        break
    return found

  def _found(self) -> dict[str, Any] | None:
    """What the folder says of itself, if it holds predictions of this network."""
    path = self.folder / ABOUT
    if not path.exists():
      held = [name for name in (TABLE, EMBEDDINGS) if (self.folder / name).exists()]
      if held:
        raise UserError(
          f"{self.folder / held[0]} was not written by this program, which would "
          "write over it; choose another --out, or --overwrite"
        )
      return None
    try:
      found = files.read_mapping(path)
      old = found["about"]
      int(found["rows"]), int(found["skipped"]), dict(found["bytes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise UserError(
        f"{path} is damaged ({error}); choose another --out, or --overwrite"
      ) from error
    changed = [key for key in sorted({*old, *self._about}) if old.get(key) != self._about.get(key)]
    if changed:
      raise UserError(
        f"{self.folder} holds predictions that were made otherwise "
        f"({', '.join(changed)} differ); choose another --out, or --overwrite"
      )
    return found

  def _cut(self) -> None:
    """Takes away what was written after the last batch that counts."""
    sizes = dict(self._state["bytes"])
    if self._about.get("embed") and self.rows:
      with open(self.folder / EMBEDDINGS, "rb") as opened:
        shape = _shape(opened)
        sizes[EMBEDDINGS] = opened.tell() + 4 * self.rows * shape[1]
    for name, size in sizes.items():
      path = self.folder / name
      there = path.stat().st_size if path.exists() else 0
      if there < size:
        raise UserError(f"{path} has been cut or changed; choose another --out, or --overwrite")
      if there > size:
        os.truncate(path, size)

  def _table(self, name: str) -> Iterator[list[str]]:
    """Rows of a CSV below its header."""
    path = self.folder / name
    if path.exists():
      with tables.open_text(path, "r") as opened:
        rows = csv.read(opened)
        next(rows, None)
        yield from rows

  def _embed(self, x: np.ndarray) -> None:
    if self._embeddings is None:
      path = self.folder / EMBEDDINGS
      self._embeddings = open(path, "r+b" if self.rows else "w+b")  # noqa: SIM115 (until close)
      if not self.rows:
        self._embeddings.write(_header(0, x.shape[1]))
    self._embeddings.seek(0, os.SEEK_END)
    self._embeddings.write(np.ascontiguousarray(x, "<f4").tobytes())
    self._embeddings.seek(0)
    self._embeddings.write(_header(self.rows + len(x), x.shape[1]))
    self._embeddings.flush()

  def _write(self, **facts: Any) -> None:
    work = self.folder / (ABOUT + ".tmp")
    work.write_text(json.dumps({"about": self._about, **self._state, **facts}, indent=2) + "\n")
    work.replace(self.folder / ABOUT)

  def _to_parquet(self) -> None:
    """The whole table, some rows at a time, with the embeddings."""
    import pyarrow.parquet  # a third of a second, which a CSV need not wait for

    embeddings = None
    if self._about.get("embed"):
      embeddings = np.load(self.folder / EMBEDDINGS, mmap_mode="r")
    with tables.written(self.folder / PARQUET) as file, contextlib.ExitStack() as stack:
      opened = stack.enter_context(tables.open_text(self.folder / TABLE, "r"))
      rows = csv.read(opened)
      names, writer = next(rows), None
      for start in range(0, self.rows, _CHUNK):
        part = zip(*itertools.islice(rows, _CHUNK), strict=True)
        table = tables.arrow(
          dict(zip(names, map(list, part), strict=True)),
          None if embeddings is None else embeddings[start : start + _CHUNK],
        )
        if writer is None:
          writer = stack.enter_context(pyarrow.parquet.ParquetWriter(file, table.schema))
        writer.write_table(table)


def file_of(name: str) -> str:
  """A path below a folder for the picture of an image, a PNG; what is too long ends in a hash."""
  parts = [part for part in name.split("/") if part not in ("", ".")]
  parts = ["_up" if part == ".." else part for part in parts]
  parts[-1] += ".png"
  path = "/".join(_shortened(part) for part in parts)
  return path if len(os.fsencode(path)) <= _PATH else _shortened(name.replace("/", "_") + ".png", 0)


def _shortened(part: str, longest: int = _LONGEST) -> str:
  """A part of a path that a file system takes."""
  raw = os.fsencode(part)
  if len(raw) <= longest:
    return part
  ending = f"-{hashlib.sha256(raw).hexdigest()[:16]}{'.png' if part.endswith('.png') else ''}"
  return raw[:200].decode("utf-8", "ignore") + ending


def _draw(folder: pathlib.Path, kind: str, name: str, pixels: np.ndarray) -> None:
  path = folder / kind / file_of(name)
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path, compress_level=1)


def _header(rows: int, columns: int) -> bytes:
  """Of a .npy file; as long for any number of rows."""
  buffer = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    buffer, {"descr": "<f4", "fortran_order": False, "shape": (rows, columns)}
  )
  return buffer.getvalue()


def _shape(opened: Any) -> tuple[int, ...]:
  np.lib.format.read_magic(opened)
  return np.lib.format.read_array_header_1_0(opened)[0]

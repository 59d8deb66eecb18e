"""Predictions as a table: CSV and Parquet.

Columns: `id`; for every class NAME `probability_NAME`; of exclusive classes `called`, the name of
the called class, else `called_NAME`, 1 or 0; `lung_share`, the share of the image that lungs fill,
if there are lung masks. Numbers are written so that float32 is read back exactly.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from cxrjax.core import tables
from cxrjax.core.atomic_files import atomic_path
from cxrjax.core.errors import UserError
from cxrjax.core.text import identifier

EMBEDDING = "embedding"
Skipped = tuple[tuple[str, str], ...]
TEXTS = ("id", "called", "note")  # text columns; all others are numeric


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
  """Predictions of a network for some images; row `i` of every field is one image.

  Attributes:
    ids: paths as given, or relative to the given folder; indices of arrays.
    classes: names of the columns of `probabilities`; empty if there are none.
    exclusive: one class per image, or several findings at once.
    probabilities: calibrated, of every class; None if the network is no classifier.
    called: which classes are called, see `Network.thresholds`.
    embeddings: features of the encoder, if requested.
    masks: lungs 1, background 0, at each image's own size, if requested.
    overlays: explanation maps over each image, if requested.
    skipped: images that could not be used, and why.
    notes: of each image, what a user should know about how it was read; mostly empty.
  """

  ids: tuple[str, ...]
  classes: tuple[str, ...] = ()
  exclusive: bool = True
  probabilities: Float32[np.ndarray, "n k"] | None = None
  called: Bool[np.ndarray, "n k"] | None = None
  embeddings: Float32[np.ndarray, "n d"] | None = None
  masks: tuple[UInt8[np.ndarray, "_ _"], ...] | None = None
  overlays: tuple[UInt8[np.ndarray, "_ _ 3"], ...] | None = None
  skipped: Skipped = ()
  notes: tuple[tuple[str, ...], ...] = ()

  def __len__(self) -> int:
    return len(self.ids)

  def to_dict(self) -> dict[str, list[Any]]:
    """Columns by name, as in the CSV, and `embedding` if there are any: `pandas.DataFrame(...)`.

    Lung masks become the column `lung_share`, the share of the image that they fill.
    """
    return columns(self)

  def to_csv(self, path: str | os.PathLike[str]) -> None:
    """Writes a table with one row per image, without embeddings (NumPy and Parquet hold those).

    Raises:
      UserError: it cannot be written.
    """
    write_csv(path, self)

  def to_parquet(self, path: str | os.PathLike[str]) -> None:
    """Writes the same table with the embeddings; needs pyarrow.

    Raises:
      UserError: it cannot be written, or pyarrow is not installed.
    """
    write_parquet(path, self)


def concatenate(parts: Sequence[Predictions]) -> Predictions:
  """Concatenates predictions."""
  nonempty = [part for part in parts if len(part)]
  skipped = tuple(item for part in parts for item in part.skipped)
  if not nonempty:
    return Predictions((), skipped=skipped)

  def concatenated(name: str) -> np.ndarray | None:
    values = [getattr(part, name) for part in nonempty]
    return None if values[0] is None else np.concatenate(values)

  def flattened(name: str) -> tuple[np.ndarray, ...] | None:
    values = [getattr(part, name) for part in nonempty]
    return None if values[0] is None else tuple(picture for part in values for picture in part)

  return dataclasses.replace(
    nonempty[0],
    ids=tuple(name for part in nonempty for name in part.ids),
    skipped=skipped,
    notes=tuple(note for part in nonempty for note in part.notes),
    probabilities=concatenated("probabilities"),
    called=concatenated("called"),
    embeddings=concatenated("embeddings"),
    masks=flattened("masks"),
    overlays=flattened("overlays"),
  )


def columns(predictions: Predictions) -> dict[str, list[Any]]:
  """Columns by name, with `embedding` if there are any."""
  table: dict[str, list[Any]] = {"id": [identifier(name) for name in predictions.ids]}
  if predictions.probabilities is not None:
    called = predictions.called
    assert called is not None  # set along with probabilities
    classes = [identifier(name) for name in predictions.classes]
    for k, name in enumerate(classes):
      table[f"probability_{name}"] = predictions.probabilities[:, k].tolist()
    if predictions.exclusive:
      table["called"] = [classes[k] for k in called.argmax(1).tolist()]
    else:
      for k, name in enumerate(classes):
        table[f"called_{name}"] = called[:, k].astype(int).tolist()
  if predictions.masks is not None:
    table["lung_share"] = [float(mask.mean()) for mask in predictions.masks]
  table["note"] = ["; ".join(notes) for notes in predictions.notes or [()] * len(predictions)]
  if predictions.embeddings is not None:
    table[EMBEDDING] = list(predictions.embeddings)
  return table


def write_rows(opened: io.TextIOBase, predictions: Predictions, header: bool) -> None:
  """Appends rows to a CSV, preceded by the column names if `header`."""
  table = columns(predictions)
  table.pop(EMBEDDING, None)
  if header:
    tables.write(opened, [table])
  tables.write(
    opened,
    (
      [f"{x:.9g}" if isinstance(x, float) else x for x in row]
      for row in zip(*table.values(), strict=True)
    ),
  )


def write_csv(path: str | os.PathLike[str], predictions: Predictions) -> None:
  """Writes one row per image, without embeddings.

  Raises:
    UserError: it cannot be written.
  """
  with output_path(path) as file, open_text(file, "w") as text_file:
    write_rows(text_file, predictions, header=True)


def write_parquet(path: str | os.PathLike[str], predictions: Predictions) -> None:
  """Writes the table, with a column `embedding` if there are any.

  Raises:
    UserError: it cannot be written.
  """
  import pyarrow.parquet  # takes a third of a second, not needed for CSV

  table = columns(predictions)
  table.pop(EMBEDDING, None)
  with output_path(path) as file:
    pyarrow.parquet.write_table(arrow(table, predictions.embeddings), file)


def arrow(table: dict[str, list[Any]], embeddings: np.ndarray | None = None) -> Any:
  """Arrow table of columns, whose values may be text as in a CSV, and of embeddings."""
  import pyarrow

  def column(name: str, values: list[Any]) -> Any:
    if name in TEXTS:
      return pyarrow.array(values, pyarrow.string())
    if name.startswith("called_"):
      return pyarrow.array([value in (1, "1") for value in values], pyarrow.bool_())
    return pyarrow.array(np.array(values, np.float32))

  arrays = {name: column(name, values) for name, values in table.items()}
  if embeddings is not None:
    flat = pyarrow.array(np.asarray(embeddings, np.float32).reshape(-1))
    arrays[EMBEDDING] = pyarrow.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
  return pyarrow.table(arrays)


def open_text(file: pathlib.Path, mode: Literal["r", "w", "a"]) -> io.TextIOWrapper:
  """Opens a text file for a table."""
  return open(file, mode, encoding="utf-8", newline="")


@contextlib.contextmanager
def output_path(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Temporary path that replaces `path`; a UserError where that cannot be written."""
  try:
    with atomic_path(pathlib.Path(path).expanduser()) as temporary:
      yield temporary
  except OSError as error:
    raise UserError(f"{path} cannot be written: {error.strerror or error}") from error

"""Builds a published set with Apache Beam: every archive is read by one worker, once.

DICOM files are slow to decode and store, so an archive of these is divided among many workers.

The workers need this package and the folder with the archives; the listing is sent to them.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from cxrjax.builders import csv_builder
from cxrjax.core.errors import UserError
from cxrjax.data.decoding import decode
from cxrjax.data.sources import archive

try:
  import apache_beam as beam
except ImportError as error:
  raise UserError('Beam is requested but not installed: pip install -e ".[tfds]"') from error

SHARES = 64  # pieces of work per archive of DICOM files
_ACCOUNT = "account.json"


def read_part(part: csv_builder.Part, packed: bytes) -> Iterator[Any]:
  """Reads an archive: `(split, (id, example))`, and `(key, reason)` with the tag `outcomes`.

  The reason is empty for an image that is present and usable.
  """
  listing = csv_builder.unpack(packed)
  unlisted: list[str] = []
  unread = set(listing.rows)
  for key, data in csv_builder.images(part, listing, unread, unlisted.append):
    unread.remove(key)
    reason = ""
    try:
      row = listing.rows[key]
      yield row.split, (key, csv_builder.example(key, row, listing, data))
    except decode.BadImage as error:
      reason = str(error)
    yield beam.pvalue.TaggedOutput("outcomes", (key, reason))
  for key in unlisted:
    yield beam.pvalue.TaggedOutput("outcomes", (key, csv_builder.UNLISTED))


def write_account(
  told: list[tuple[str, str]], packed: bytes, paths: Sequence[str], folder: str
) -> None:
  """Records which images are left out and how many are read; fails where too many are missing."""
  listing = csv_builder.unpack(packed)
  reasons, counts = dict(told), {}
  for split in dict.fromkeys(row.split for row in listing.rows.values()):
    rows = listing.of(split)
    missing = [key for key in rows if key not in reasons]
    csv_builder.check_absent(split, missing, len(rows), paths)
    reasons |= dict.fromkeys(missing, csv_builder.ABSENT)
    counts[split] = sum(not reasons[key] for key in rows)
  unlisted = [key for key, reason in reasons.items() if reason == csv_builder.UNLISTED]
  csv_builder.check_unlisted(unlisted, listing, paths)
  left_out = sorted((key, reason) for key, reason in reasons.items() if reason)
  epath.Path(os.path.join(folder, _ACCOUNT)).write_text(json.dumps([left_out, counts]))


def read_account(folder: str) -> tuple[list[tuple[str, str]], dict[str, int]]:
  """Reads and removes the pipeline's record: images left out, and images read per split."""
  path = epath.Path(os.path.join(folder, _ACCOUNT))
  left_out, counts = json.loads(path.read_text())
  path.unlink()
  return [(key, reason) for key, reason in left_out], counts


def split_into_shares(
  part: csv_builder.Part, listing: csv_builder.Listing
) -> list[csv_builder.Part]:
  """Divides an archive into pieces of work; a tar, which is read from its start, is one piece."""
  if not listing.dicom or archive.is_tar(part.path):
    return [part]
  return [dataclasses.replace(part, share=i, shares=SHARES) for i in range(SHARES)]


class _Reading:
  """Reading step for the images of all splits, added to the pipeline by the first split."""

  def __init__(self, parts: Sequence[csv_builder.Part], listing: csv_builder.Listing, folder: str):
    self._parts = [piece for part in parts for piece in split_into_shares(part, listing)]
    self._packed, self._folder = listing.pack(), folder
    self._examples = None

  def examples(self, pipeline: Any) -> Any:
    if self._examples is None:
      read = (
        pipeline
        | "Archives" >> beam.Create(self._parts)
        | "Spread" >> beam.Reshuffle()
        | "Read"
        >> beam.FlatMap(read_part, packed=self._packed).with_outputs("outcomes", main="examples")
      )
      _ = (
        read.outcomes
        | "All" >> beam.combiners.ToList()
        | "Account"
        >> beam.Map(
          write_account,
          packed=self._packed,
          folder=self._folder,
          paths=sorted({part.path for part in self._parts}),
        )
      )
      self._examples = read.examples
    return self._examples


class _Split(beam.PTransform):
  """Selects the examples of one split."""

  def __init__(self, reading: _Reading, name: str):
    super().__init__()
    self._reading, self._name = reading, name

  def expand(self, start: Any) -> Any:
    name = self._name
    return (
      self._reading.examples(start.pipeline)
      | "Of" >> beam.Filter(lambda item: item[0] == name)
      | "Example" >> beam.Values()
    )


def generators(
  parts: Sequence[csv_builder.Part],
  listing: csv_builder.Listing,
  splits: Sequence[str],
  folder: str,
) -> dict[str, Any]:
  """A transform per split that yields `(id, example)`.

  Args:
    parts: the archives.
    listing: of the set.
    splits: names of the splits.
    folder: where the data set is written; workers must be able to write there too.
  """
  reading = _Reading(parts, listing, folder)
  return {name: _Split(reading, name) for name in splits}

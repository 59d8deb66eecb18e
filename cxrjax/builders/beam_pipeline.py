"""Builds a published set with Apache Beam: every archive is read by one worker, once.

DICOM files take long to decode and to store, so that an archive of these is shared by many workers.

The workers need this package and the folder with the archives; what the tables say is sent to them.
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
  raise UserError('Beam is asked for but not installed: pip install -e ".[tfds]"') from error

SHARES = 64  # of an archive of DICOM files
_ACCOUNT = "account.json"


def read_part(part: csv_builder.Part, packed: bytes) -> Iterator[Any]:
  """All images of one archive: `(split, (id, example))`, and tagged `told`: `(key, reason)`.

  The reason is empty for an image that is there and can be used.
  """
  listing = csv_builder.unpack(packed)
  unlisted: list[str] = []
  left = set(listing.rows)
  for key, data in csv_builder.images(part, listing, left, unlisted.append):
    left.remove(key)
    reason = ""
    try:
      row = listing.rows[key]
      yield row.split, (key, csv_builder.example(key, row, listing, data))
    except decode.BadImage as error:
      reason = str(error)
    yield beam.pvalue.TaggedOutput("told", (key, reason))
  for key in unlisted:
    yield beam.pvalue.TaggedOutput("told", (key, csv_builder.UNLISTED))


def account(told: list[tuple[str, str]], packed: bytes, paths: Sequence[str], folder: str) -> None:
  """Writes down which images are left out and how many are not, and fails where too many are."""
  listing = csv_builder.unpack(packed)
  found, counts = dict(told), {}
  for split in dict.fromkeys(row.split for row in listing.rows.values()):
    rows = listing.of(split)
    missing = [key for key in rows if key not in found]
    csv_builder.absent(split, missing, len(rows), paths)
    found |= dict.fromkeys(missing, csv_builder.ABSENT)
    counts[split] = sum(not found[key] for key in rows)
  csv_builder.surplus(
    [key for key, reason in found.items() if reason == csv_builder.UNLISTED], listing, paths
  )
  left = sorted((key, reason) for key, reason in found.items() if reason)
  epath.Path(os.path.join(folder, _ACCOUNT)).write_text(json.dumps([left, counts]))


def result(folder: str) -> tuple[list[tuple[str, str]], dict[str, int]]:
  """What the pipeline left out, and how many images of each split it read; once."""
  path = epath.Path(os.path.join(folder, _ACCOUNT))
  left, counts = json.loads(path.read_text())
  path.unlink()
  return [(key, reason) for key, reason in left], counts


def shares(part: csv_builder.Part, listing: csv_builder.Listing) -> list[csv_builder.Part]:
  """The pieces of work that an archive is; one for a tar, which is read from its start."""
  if not listing.dicom or archive.is_tar(part.path):
    return [part]
  return [dataclasses.replace(part, share=i, shares=SHARES) for i in range(SHARES)]


class _Reading:
  """The images of all splits, read once: whichever split is asked for first adds it."""

  def __init__(self, parts: Sequence[csv_builder.Part], listing: csv_builder.Listing, folder: str):
    self._parts = [piece for part in parts for piece in shares(part, listing)]
    self._packed, self._folder = listing.pack(), folder
    self._examples = None

  def examples(self, pipeline: Any) -> Any:
    if self._examples is None:
      read = (
        pipeline
        | "Archives" >> beam.Create(self._parts)
        | "Spread" >> beam.Reshuffle()
        | "Read"
        >> beam.FlatMap(read_part, packed=self._packed).with_outputs("told", main="examples")
      )
      _ = (
        read.told
        | "All" >> beam.combiners.ToList()
        | "Account"
        >> beam.Map(
          account,
          packed=self._packed,
          folder=self._folder,
          paths=sorted({part.path for part in self._parts}),
        )
      )
      self._examples = read.examples
    return self._examples


class _Split(beam.PTransform):
  """The examples of one split."""

  def __init__(self, reading: _Reading, name: str):
    super().__init__()
    self._reading, self._name = reading, name

  def expand(self, start: Any) -> Any:
    name = self._name
    return (
      self._reading.examples(start.pipeline)
      | "Of" >> beam.Filter(lambda found: found[0] == name)
      | "Example" >> beam.Values()
    )


def generators(
  parts: Sequence[csv_builder.Part],
  listing: csv_builder.Listing,
  splits: Sequence[str],
  folder: str,
) -> dict[str, Any]:
  """For each split a transform that yields `(id, example)`.

  Args:
    parts: the archives.
    listing: what the tables say.
    splits: names of the splits.
    folder: that the data set is written to; workers can write there too.
  """
  reading = _Reading(parts, listing, folder)
  return {name: _Split(reading, name) for name in splits}

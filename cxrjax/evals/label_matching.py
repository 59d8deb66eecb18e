"""Labels of one source as the classes of another, matched by name."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float32

from cxrjax.core.errors import UserError
from cxrjax.data.base import SourceInfo
from cxrjax.data.images import Images


def match(
  labels: Float32[np.ndarray, "n k"],
  own: SourceInfo,
  to: SourceInfo,
  notes: list[str],
  key: str = "data",
) -> Float32[np.ndarray, "n c"]:
  """Maps labels to the classes of another source by name, ignoring case.

  Where the classes of `to` are exclusive, an image that has none of them, or several, becomes
  unknown. Findings that the source does not label are unknown.

  Args:
    labels: of the images.
    own: the source of the labels.
    to: the source that defines the classes.
    notes: remarks on what was left out are appended.
    key: config key in error messages.

  Raises:
    UserError: no class has a name in both.
  """
  column_of = {c.casefold(): i for i, c in enumerate(own.classes)}
  columns = [column_of.get(c.casefold()) for c in to.classes]
  if all(c is None for c in columns):
    raise UserError(
      f"{key}: {own.name} has the classes {list(own.classes)}, none of which is among those of "
      f"{to.name}, {list(to.classes)}; give a set that shares some"
    )
  matched = np.stack(
    [np.full(len(labels), np.nan, np.float32) if c is None else labels[:, c] for c in columns], 1
  )
  missing = [c for c, column in zip(to.classes, columns, strict=True) if column is None]
  if missing:
    notes.append(f"{own.name} does not know {', '.join(missing)}")
  if to.exclusive:
    matched = np.where(np.isnan(matched), 0, matched) if own.exclusive else matched
    has_one = (matched == 1).sum(1) == 1
    # Of findings, the one that is present decides the others, known or not.
    matched = np.where(has_one[:, None], matched == 1, np.nan).astype(np.float32)
    left_out = int(np.sum(~has_one))
    if left_out:
      notes.append(
        f"{left_out} of {len(labels)} images of {own.name} have none, or several, of the "
        f"classes {', '.join(to.classes)} and are left out"
      )
  return matched


def as_classes(images: Images, to: SourceInfo) -> Images:
  """Relabels decoded images with the classes of another source; see `match`."""
  labels = match(images.labels, images.info, to, [])
  return dataclasses.replace(
    images,
    table=dataclasses.replace(images.table, labels=labels),
    info=dataclasses.replace(images.info, classes=to.classes, exclusive=to.exclusive),
  )

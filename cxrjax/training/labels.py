"""Labels of the training images: counts by class, and remarks on classes without a positive one."""

from __future__ import annotations

from typing import Any

import numpy as np

from cxrjax.core.errors import UserError
from cxrjax.methods.base import Labels


def labels_of(table: Any, info: Any) -> Labels:
  """Classes of the training images, with their positive and known counts.

  Raises:
    UserError: a label is neither 0 nor 1 nor unknown.
  """
  wrong = np.argwhere(~(np.isnan(table.labels) | np.isin(table.labels, (0, 1))))
  if len(wrong):
    row, column = wrong[0].tolist()
    raise UserError(
      f"{info.name} [{info.split}]: label {info.classes[column]!r} of {table.ids[row]!r} is "
      f"{table.labels[row, column]:g}, which is neither 0 nor 1 nor unknown; fix the source, or "
      "give it a meaning with config.data.options.uncertain"
    )
  return Labels(
    tuple(info.classes),
    info.exclusive,
    tuple((table.labels == 1).sum(0).tolist()),
    tuple((~np.isnan(table.labels)).sum(0).tolist()),
    info.advice,
  )


def absent_class_notes(labels: Labels) -> list[str]:
  """Remarks on classes without a positive training image."""
  if not any(labels.known):
    return []
  absent = [name for name, n in zip(labels.classes, labels.positive, strict=True) if not n]
  return [
    f"no training image has the class {name!r}: its output is not trained, yet means over "
    "classes include it"
    for name in absent
  ]

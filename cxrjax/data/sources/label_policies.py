"""Choices for any labelled source: which views to take, and how to treat uncertain findings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from cxrjax.core.errors import UserError, suggest

SEXES = ("F", "M", "unknown")
VIEWS = ("PA", "AP", "L", "unknown")
UNCERTAIN = {"ignore": np.nan, "zeros": 0.0, "ones": 1.0}  # value of a finding of -1
_KEY = "config.data.options"


def check_uncertain(policy: str) -> None:
  """Validates the uncertainty policy; raises a UserError for an unknown one."""
  if policy not in UNCERTAIN:
    raise UserError(f"{_KEY}.uncertain={policy!r} is not a policy{suggest(policy, UNCERTAIN)}")


def rows_of_views(
  name: str, views: Sequence[str], wanted: str | Sequence[str] | None
) -> Int64[np.ndarray, "_"]:
  """Rows of the images with one of the requested views.

  Args:
    name: name of the source, for errors.
    views: view of each image; empty where unknown.
    wanted: some of VIEWS; None takes all images.

  Raises:
    UserError: an unknown view, or no image with any of the views.
  """
  if wanted is None:
    return np.arange(len(views))
  wanted = (wanted,) if isinstance(wanted, str) else tuple(wanted)
  for view in wanted:
    if view not in VIEWS:
      raise UserError(f"{_KEY}.views={view!r} is not a view{suggest(view, VIEWS)}")
  rows = np.array([i for i, view in enumerate(views) if (view or "unknown") in wanted], np.int64)
  if not len(rows):
    available = ", ".join(sorted({view or "unknown" for view in views}))
    raise UserError(f"{name} has no image of {_KEY}.views={wanted}; it has {available}")
  return rows

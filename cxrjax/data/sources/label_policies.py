"""What a user may choose of any labelled source: which views, and what an uncertain finding is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from cxrjax.core.errors import UserError, suggest

SEXES = ("F", "M", "unknown")
VIEWS = ("PA", "AP", "L", "unknown")
UNCERTAIN = {"ignore": np.nan, "zeros": 0.0, "ones": 1.0}  # what a finding of -1 counts as
_KEY = "config.data.options"


def check_uncertain(policy: str) -> None:
  """Raises a UserError for what is no policy."""
  if policy not in UNCERTAIN:
    raise UserError(f"{_KEY}.uncertain={policy!r} is no policy{suggest(policy, UNCERTAIN)}")


def rows_of_views(
  name: str, views: Sequence[str], wanted: str | Sequence[str] | None
) -> Int64[np.ndarray, "_"]:
  """Rows of the images whose view is wanted.

  Args:
    name: of the source, for errors.
    views: of each image; empty where unknown.
    wanted: some of VIEWS; None takes all images.

  Raises:
    UserError: a view that is none, or no image has.
  """
  if wanted is None:
    return np.arange(len(views))
  wanted = (wanted,) if isinstance(wanted, str) else tuple(wanted)
  for view in wanted:
    if view not in VIEWS:
      raise UserError(f"{_KEY}.views={view!r} is no view{suggest(view, VIEWS)}")
  rows = np.array([i for i, view in enumerate(views) if (view or "unknown") in wanted], np.int64)
  if not len(rows):
    have = ", ".join(sorted({view or "unknown" for view in views}))
    raise UserError(f"{name} has no image of {_KEY}.views={wanted}; it has {have}")
  return rows

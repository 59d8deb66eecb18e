"""Validates a recipe's fields, with errors that name the field and the rule."""

from __future__ import annotations

import math
import numbers
from typing import Any

from cxrjax.core.errors import UserError

CONFIG_KEY = "config.views"

Number = int | float  # accepted in a config where a float is meant; stored as a float
Pair = tuple[Number, Number]


def field_error(recipe: Any, name: str, rule: str) -> UserError:
  """The error for a field that breaks `rule`."""
  return UserError(f"{CONFIG_KEY}.{name}={getattr(recipe, name)!r} must be {rule}")


def require_int(recipe: Any, name: str, least: int) -> None:
  """Requires a whole number of at least `least`."""
  value = getattr(recipe, name)
  if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
    raise field_error(recipe, name, f"a whole number, at least {least}")
  object.__setattr__(recipe, name, int(value))


def require_float(
  recipe: Any, name: str, low: float = -math.inf, high: float = math.inf, above: float = -math.inf
) -> None:
  """Requires a number in `[low, high]` and above `above`; stored as a float."""
  value = getattr(recipe, name)
  if not (_is_number(value) and low <= value <= high and value > above):
    raise field_error(recipe, name, "a number" + _bounds(low, high, above))
  object.__setattr__(recipe, name, float(value))


def interval(recipe: Any, name: str, low: float, high: float = math.inf) -> None:
  """Requires a pair (least, greatest) of numbers in `[low, high]`."""
  value = getattr(recipe, name)
  is_valid = isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_number, value))
  if not (is_valid and low <= value[0] <= value[1] <= high):
    raise field_error(recipe, name, f"two numbers (least, greatest){_bounds(low, high)}")
  object.__setattr__(recipe, name, tuple(map(float, value)))


def probabilities(recipe: Any, name: str) -> None:
  """Requires a probability for all crops, or (large crop, ..., large crop, small crops)."""
  value = getattr(recipe, name)
  value = (value, value) if _is_number(value) else value
  is_valid = isinstance(value, tuple | list) and len(value) >= 2 and all(map(_is_number, value))
  if not (is_valid and all(0 <= p <= 1 for p in value)):
    raise field_error(
      recipe, name, "a probability, or one for each large crop and last the small crops'"
    )
  object.__setattr__(recipe, name, tuple(map(float, value)))


def _is_number(value: Any) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _bounds(low: float, high: float, above: float = -math.inf) -> str:
  if above > -math.inf:
    return f" above {above:g}"
  if high < math.inf:
    return f" in {low:g} .. {high:g}"
  return f", at least {low:g}" if low > -math.inf else ""

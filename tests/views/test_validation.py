"""Values of the wrong kind, which the annotations of the recipes keep out only under test."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.views import validation


@dataclasses.dataclass(frozen=True)
class Options:
  value: Any


@pytest.mark.parametrize(
  "check, value, rule",
  [
    (lambda o: validation.require_int(o, "value", 1), 1.5, "a whole number, at least 1"),
    (lambda o: validation.require_int(o, "value", 1), "2", "a whole number, at least 1"),
    (lambda o: validation.require_float(o, "value", 0.0, 1.0), "half", "a number in 0 .. 1"),
    (lambda o: validation.require_float(o, "value", 0.0, 1.0), None, "a number in 0 .. 1"),
    (lambda o: validation.require_float(o, "value"), True, "a number"),
    (
      lambda o: validation.interval(o, "value", 0.0),
      0.4,
      "two numbers (least, greatest), at least 0",
    ),
    (lambda o: validation.interval(o, "value", 0.0), (1, 2, 3), "two numbers (least, greatest)"),
    (lambda o: validation.interval(o, "value", 0.0), ("a", "b"), "two numbers (least, greatest)"),
    (lambda o: validation.probabilities(o, "value"), "often", "a probability, or one for each"),
    (lambda o: validation.probabilities(o, "value"), None, "a probability"),
  ],
)
def test_a_wrong_kind_is_named(check, value, rule):
  with pytest.raises(UserError) as error:
    check(Options(value))
  assert str(error.value).startswith(f"config.views.value={value!r} must be {rule}")


def test_numbers_become_plain_floats_and_tuples():
  for check, value, wanted in (
    (lambda o: validation.require_int(o, "value", 0), np.int64(3), 3),
    (lambda o: validation.require_float(o, "value"), 1, 1.0),
    (lambda o: validation.interval(o, "value", 0.0), [0, np.float32(1)], (0.0, 1.0)),
    (lambda o: validation.probabilities(o, "value"), [0, 1, 0.5], (0.0, 1.0, 0.5)),
  ):
    options = Options(value)
    check(options)
    assert options.value == wanted
    assert repr(options.value) == repr(wanted)

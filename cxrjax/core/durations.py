"""Durations in steps, epochs, examples or percent, and schedules over them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cxrjax.core import compile_effort
from cxrjax.core.errors import UserError

Step = Int[Array, ""] | int
Schedule = Callable[[Step], Float[Array, ""]]

_DURATION = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*(epochs?|steps?|examples?|%)\s*", re.I)


@dataclasses.dataclass(frozen=True)
class Clock:
  """Length of a run, and conversion of epochs, examples and percentages into steps.

  Attributes:
    total_steps: optimizer updates of the whole run.
    steps_per_epoch: examples / batch size, not rounded: an epoch may end inside a batch.
    batch_size: images per update, over all devices and accumulated microbatches.
  """

  total_steps: int
  steps_per_epoch: float
  batch_size: int

  @classmethod
  def start(
    cls, duration: str, num_examples: int, batch_size: int, key: str = "config.duration"
  ) -> Clock:
    """The clock of a run of `duration`, which cannot be a percentage.

    Raises:
      UserError: not a duration, or shorter than one step.
    """
    clock = cls(0, num_examples / batch_size, batch_size)
    if isinstance(duration, str) and "%" in duration:
      raise UserError(f"{key}={duration!r}: a whole run cannot be a percentage; try '10 epochs'")
    total = clock.steps(duration, key)
    if total < 1:
      raise UserError(f"{key}={duration!r} is shorter than one step of {batch_size} images")
    return cls(total, num_examples / batch_size, batch_size)

  def steps(self, duration: str, key: str = "duration") -> int:
    """Converts a duration to whole steps, rounded to the nearest.

    Args:
      duration: `"100 epochs"`, `"5000 steps"`, `"1e6 examples"` or `"10 %"` (of the run).
      key: the config key, for errors.

    Raises:
      UserError: not a duration.
    """
    match = _DURATION.fullmatch(duration) if isinstance(duration, str) else None
    if not match:
      raise UserError(
        f"{key}={duration!r} is not a duration; write '100 epochs', '5000 steps', "
        "'1e6 examples' or '10 %'"
      )
    value, unit = float(match[1]), match[2].lower()
    if unit.startswith("epoch"):
      value *= self.steps_per_epoch
    elif unit.startswith("example"):
      value /= self.batch_size
    elif unit == "%":
      value *= self.total_steps / 100
    return round(value)

  @property
  def num_examples(self) -> int:
    """Number of images in the dataset."""
    return round(self.steps_per_epoch * self.batch_size)

  def epoch(self, step: int) -> float:
    """Number of passes over the data after `step` steps."""
    return step / self.steps_per_epoch


def cosine(start: float, end: float, steps: int, warmup: int = 0, peak: str = "last") -> Schedule:
  """Linear from 0 to `start` over `warmup` steps, then half a cosine to `end`.

  Step `i` of the warm-up has `start * i / (warmup - 1)`, which reaches `start` at its last step, or
  with `peak="next"` `start * i / warmup`, which reaches it one step later, as in the code of MAE,
  MoCo v3, BYOL and SimCLR. A later step `i` has
  `end + (start - end) (1 + cos(pi (i - warmup) / (steps - warmup))) / 2`.

  References:
    Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021
    (arXiv 2104.14294), section 3.2 and its training code's schedule.
  """
  span = max(steps - warmup, 1)

  def value(step: Step) -> Float[Array, ""]:
    step = jnp.asarray(step, jnp.float32)
    rise = start * step / max(warmup - (peak == "last"), 1)
    progress = jnp.clip((step - warmup) / span, 0.0, 1.0)
    fall = end + 0.5 * (start - end) * (1 + jnp.cos(jnp.pi * progress))
    return jnp.where(step < warmup, jnp.minimum(rise, start), fall)

  return value


def stairs(start: float, end: float, epochs: float, steps_per_epoch: float) -> Schedule:
  """From `start` to `end` in equal steps, one at the start of each of `epochs` epochs, then `end`.

  Epoch `e` has `start + (end - start) * min(e / (epochs - 1), 1)`: DINO's teacher temperature.
  """
  count = max(math.floor(epochs + 1e-6), 0)

  def value(step: Step) -> Float[Array, ""]:
    # Plus 1e-4: float32 division must not assign the first step of an epoch to the previous one.
    epoch = jnp.floor(jnp.asarray(step, jnp.float32) / steps_per_epoch + 1e-4)
    rise = epoch / max(count - 1, 1)
    return start + (end - start) * jnp.where(epoch < count, jnp.clip(rise, 0.0, 1.0), 1.0)

  return value


def linear(start: float, end: float, steps: int) -> Schedule:
  """`start + (end - start) i / (steps - 1)` at step `i`, then `end`: DINOv2's temperature."""

  def value(step: Step) -> Float[Array, ""]:
    share = jnp.asarray(step, jnp.float32) / max(steps - 1, 1)
    return start + (end - start) * (jnp.minimum(share, 1.0) if steps else jnp.ones(()))

  return value


def sigmoid(start: float, end: float, steps: int) -> Schedule:
  """`start + (end - start) exp(-5 (1 - t)^2)` with `t = min(i / steps, 1)` at step `i`.

  References:
    Laine and Aila, Temporal Ensembling for Semi-Supervised Learning, 2016 (arXiv 1610.02242),
    section 2.1.
  """

  def value(step: Step) -> Float[Array, ""]:
    t = jnp.minimum(jnp.asarray(step, jnp.float32) / max(steps, 1), 1.0)
    # Without a ramp-up the value is `end` from the first step.
    return start + (end - start) * (jnp.exp(-5 * (1 - t) ** 2) if steps else jnp.ones(()))

  return value


def from_config(spec: Mapping[str, Any] | float, clock: Clock, key: str) -> Schedule:
  """Builds a schedule from a number (constant) or `{"start": .., "end": .., "warmup": duration}`.

  `kind="cosine"` (default; with `peak`), or `"linear"`, `"stairs"` or `"sigmoid"`, which ramp over
  `warmup`.

  Raises:
    UserError: unknown keys, kinds or durations.
  """
  if isinstance(spec, int | float):
    constant = float(spec)
    return lambda step: jnp.full((), constant, jnp.float32)
  if not isinstance(spec, Mapping):
    raise UserError(f"{key}={spec!r} must be a number, or a mapping with start and end")
  unknown = set(spec) - {"kind", "start", "end", "warmup", "peak"}
  if unknown:
    raise UserError(f"{key}.{min(unknown)} is not an option; valid: kind, start, end, warmup, peak")
  if "start" not in spec:
    raise UserError(f"{key}.start is missing")
  start = float(spec["start"])
  end = float(spec.get("end", start))
  warmup = clock.steps(spec.get("warmup", "0 steps"), f"{key}.warmup")
  kind = spec.get("kind", "cosine")
  if kind == "cosine":
    if warmup > clock.total_steps:
      raise UserError(
        f"{key}.warmup={spec['warmup']!r} is longer than the run ({clock.total_steps} steps)"
      )
    peak = spec.get("peak", "last")
    if peak not in ("last", "next"):
      raise UserError(f"{key}.peak={peak!r} is unknown; valid: last, next")
    return cosine(start, end, clock.total_steps, warmup, peak)
  if kind == "linear":
    return linear(start, end, warmup)
  if kind == "stairs":
    return stairs(start, end, warmup / clock.steps_per_epoch, clock.steps_per_epoch)
  if kind == "sigmoid":
    return sigmoid(start, end, warmup)
  raise UserError(f"{key}.kind={kind!r} is unknown; valid: cosine, linear, stairs, sigmoid")


def tabulate(schedule: Schedule, steps: int, points: int = 200) -> tuple[list[int], list[float]]:
  """Evaluates a schedule at `points` evenly spaced steps, for plots."""
  at = sorted({round(i * (steps - 1) / max(points - 1, 1)) for i in range(points)})
  # One small program; evaluated eagerly it would be twenty, a tenth of a second each.
  values = jax.jit(jax.vmap(schedule), compiler_options=compile_effort.options(once=True))
  return at, np.asarray(values(jnp.asarray(at)), np.float64).tolist()

"""Stops a run that cannot recover, with advice on what to change."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from cxrjax.core.errors import UserError


class Diverged(UserError):
  """The loss is NaN or infinite, or the representation has collapsed."""


class DivergenceMonitor:
  """Checks the metrics of every log interval for divergence and collapse.

  Args:
    check_collapse: the method's; takes mean metrics and returns a sentence or None.
    patience: log intervals in a row that must look collapsed.
    grace: initial steps without a check for collapse (the teacher starts uniform).
  """

  def __init__(
    self, check_collapse: Callable[[Mapping[str, float]], str | None], patience: int, grace: int
  ) -> None:
    self.check_collapse, self.patience, self.grace = check_collapse, patience, grace
    self.strikes = 0

  def check(self, first_step: int, metrics: Mapping[str, np.ndarray]) -> None:
    """Raises Diverged for metrics `[k]` of steps `first_step ... first_step + k - 1`."""
    for name in ("loss", "grad_norm"):
      values = np.asarray(metrics[name])
      if not np.isfinite(values).all():
        offset = int(np.flatnonzero(~np.isfinite(values))[0])
        raise Diverged(
          f"{name} became {values[offset]} at step {first_step + offset}; lower "
          "config.optimizer.lr.start or config.optimizer.clip (0.3 helps), lengthen "
          "config.optimizer.lr.warmup, or set config.model.dtype='float32'; the last checkpoint "
          "precedes it"
        )
    if first_step < self.grace:
      return
    means = {name: float(np.mean(v)) for name, v in metrics.items()}
    problem = self.check_collapse(means)
    self.strikes = self.strikes + 1 if problem else 0
    if problem and self.strikes >= self.patience:
      raise Diverged(f"collapsed at step {first_step}: {problem}")

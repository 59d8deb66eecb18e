"""Weights & Biases (`pip install wandb`); `WANDB_MODE=offline` keeps all in the workdir."""

from __future__ import annotations

import pathlib
import uuid
from collections.abc import Mapping
from typing import Any

from cxrjax.report.writers import base


class Writer(base.Writer):
  """Logs to a run of Weights & Biases, which goes on when the run resumes.

  Project, entity and mode are the environment's: `WANDB_PROJECT`, `WANDB_ENTITY`, `WANDB_MODE`.
  After a kill the steps since the last checkpoint are there twice.
  """

  def __init__(self, workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    super().__init__(workdir, config)
    self._wandb: Any = base.load_package("wandb")
    self._run: Any = None

  def write(self, step: int, values: Mapping[str, float]) -> None:
    if self._run is None:
      name = self.workdir / "wandb" / "id"
      name.parent.mkdir(parents=True, exist_ok=True)
      if not name.exists():
        name.write_text(uuid.uuid4().hex[:8])
      self._run = self._wandb.init(
        dir=str(self.workdir),
        id=name.read_text(),
        name=self.workdir.name,
        config=dict(self.config),
        resume="allow",
      )
      # The own step of Weights & Biases never goes back, as a run does that resumes.
      self._run.define_metric("*", step_metric="step")
    self._run.log({**values, "step": step})

  def close(self) -> None:
    if self._run is not None:
      self._run.finish()
      self._run = None

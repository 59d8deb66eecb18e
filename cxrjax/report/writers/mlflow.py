"""MLflow (`pip install mlflow`); without `MLFLOW_TRACKING_URI` all stays in the workdir."""

from __future__ import annotations

import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from cxrjax.report.writers import base


class Writer(base.Writer):
  """Logs to a run of MLflow, which goes on when the run resumes.

  Experiment and server are the environment's: `MLFLOW_EXPERIMENT_NAME`, `MLFLOW_TRACKING_URI`.
  After a kill the steps since the last checkpoint are there twice. Undefined values are left out.
  """

  def __init__(self, workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    super().__init__(workdir, config)
    base.load_package("mlflow")
    self._client: Any = None
    self._run = ""

  def write(self, step: int, values: Mapping[str, float]) -> None:
    if self._client is None:
      self._open()
    from mlflow.entities import Metric

    now = time.time_ns() // 10**6
    metrics = [Metric(k, v, now, step) for k, v in values.items() if math.isfinite(v)]
    self._client.log_batch(self._run, metrics)

  def _open(self) -> None:
    from mlflow.tracking import MlflowClient

    folder = self.workdir / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    local = f"sqlite:///{folder.absolute()}/mlflow.db"
    self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or local)
    name = folder / "id"
    if not name.exists():
      experiment_name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "cxrjax")
      experiment = self._client.get_experiment_by_name(experiment_name)
      number = (
        experiment.experiment_id
        if experiment
        else self._client.create_experiment(experiment_name, folder.absolute().as_uri())
      )
      run = self._client.create_run(number, run_name=self.workdir.name)
      name.write_text(run.info.run_id)
      for key, value in self.config.items():
        self._client.log_param(run.info.run_id, key, str(value)[:500])
    self._run = name.read_text()

  def close(self) -> None:
    if self._client is not None:
      self._client.set_terminated(self._run)
      self._client = None

"""Metrics go where a config says, besides the run's own files."""

import math
import sys
import types

import pytest

from cxrjax.core.errors import UserError
from cxrjax.report.run_writer import Writer
from cxrjax.report.writers import base


class Listing(base.Writer):
  """Keeps what it is told."""

  def __init__(self, workdir, config):
    super().__init__(workdir, config)
    self.told = []

  def write(self, step, values):
    self.told.append((step, dict(values)))

  def truncate(self, step):
    self.told.append(step)

  def close(self):
    self.told.append("closed")


@pytest.fixture
def mine(monkeypatch):
  """A user's own module with writers, which the user trusts."""
  module = types.ModuleType("my_metrics")
  module.Writer = Listing
  monkeypatch.setitem(sys.modules, "my_metrics", module)
  monkeypatch.setenv("CXRJAX_TRUST", "my_metrics")
  return module


def test_a_writer_of_the_users_own(tmp_path, mine):
  (listing,) = base.open_writers(["my_metrics:Writer"], tmp_path, {"seed": 3})
  assert listing.config == {"seed": 3} and listing.workdir == tmp_path
  with Writer(tmp_path, others=[listing]) as writer:
    writer.truncate(4)
    writer.scalars(5, 0.1, {"loss": 2.5, "bad": float("inf")})
    writer.results(5, 0.1, "probe", "trained", {"knn5/auroc": {"value": 0.75, "low": 0.5}})
  start, (step, train), result, end = listing.told
  assert (start, step, train["train/loss"], end) == (4, 5, 2.5, "closed")
  assert math.isnan(train["train/bad"]) and result == (5, {"probe/trained/knn5/auroc": 0.75})
  assert (tmp_path / "metrics.jsonl").exists() and (tmp_path / "tensorboard").is_dir()


def test_what_a_writer_raises_names_it(tmp_path, mine):
  class Broken(Listing):
    def write(self, step, values):
      raise ConnectionError("no route")

  Broken.__module__ = "my_metrics"
  with (
    Writer(tmp_path, others=[Broken(tmp_path, {})]) as writer,
    pytest.raises(UserError, match=r"config\.writers: 'my_metrics' failed \(no route\)"),
  ):
    writer.scalars(5, 0.1, {"loss": 2.5})


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing(tmp_path, name, monkeypatch):
  monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
  with pytest.raises(UserError, match=rf"config\.writers has '{name}', .*pip install {name}"):
    base.open_writers([name], tmp_path, {})


@pytest.mark.parametrize(
  "name, reason",
  [("wandbb", "did you mean 'wandb'"), ("mine:Writer", "--trust=mine"), ("base", "not what is")],
)
def test_unknown_writers(tmp_path, name, reason):
  with pytest.raises(UserError, match=reason):
    base.open_writers([name], tmp_path, {})


def test_weights_and_biases_goes_on_with_the_same_run(tmp_path, monkeypatch):
  calls = []

  class Run:
    def define_metric(self, name, step_metric):
      calls.append((name, step_metric))

    def log(self, values):
      calls.append(values)

    def finish(self):
      calls.append("finished")

  def init(**options):
    calls.append(options)
    return Run()

  module = types.ModuleType("wandb")
  module.init = init
  monkeypatch.setitem(sys.modules, "wandb", module)
  for step in (1, 2):
    (wandb,) = base.open_writers(["wandb"], tmp_path, {"seed": 3})
    with Writer(tmp_path, others=[wandb]) as writer:
      writer.scalars(step, 0.1, {"loss": 2.5})
  first, step_metric, logged, finished, again, *_ = calls
  assert first == again and first["resume"] == "allow" and first["config"] == {"seed": 3}
  assert step_metric == ("*", "step") and finished == "finished"
  assert logged == {"train/loss": 2.5, "step": 1}


@pytest.mark.full
def test_mlflow_goes_on_with_the_same_run(tmp_path, monkeypatch):
  tracking = pytest.importorskip("mlflow.tracking")
  monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
  for step in (1, 2):
    (mlflow,) = base.open_writers(["mlflow"], tmp_path, {"seed": 3})
    with Writer(tmp_path, others=[mlflow]) as writer:
      writer.scalars(step, 0.1, {"loss": 2.5 * step, "bad": float("nan")})
  client = tracking.MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
  run = client.get_run((tmp_path / "mlflow" / "id").read_text())
  assert run.data.params["seed"] == "3" and set(run.data.metrics) == {"train/loss"}
  history = client.get_metric_history(run.info.run_id, "train/loss")
  assert [(m.step, m.value) for m in history] == [(1, 2.5), (2, 5.0)]

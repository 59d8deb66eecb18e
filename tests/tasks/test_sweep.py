"""A sweep of learning rates, with made-up runs in place of training."""

import csv
import json

import pytest
from finished import _finish
from pages import Checked
from small import REPOSITORY

from cxrjax.config import overrides
from cxrjax.config.config_files import load_config
from cxrjax.core.errors import UserError
from cxrjax.metrics.intervals import Interval
from cxrjax.report import run_files
from cxrjax.report.run_writer import Writer
from cxrjax.studies import launcher
from cxrjax.tasks import sweep

PATH = REPOSITORY / "configs" / "sweep.py"
ARG = "tiny,grid=lr=0.001+0.01+1.0;method.mixup=0.0+0.2,seeds=0+1"


def config(arg=ARG):
  return load_config(PATH)(arg).to_dict()


class Made:
  """Stands in for `launcher.launch`; a rate of 1 diverges, one of 0.01 with mixup is best."""

  def __init__(self, broken=()):
    self.launched, self.broken = [], broken

  def __call__(self, job, workdir, failed):
    self.launched.append(job.name)
    failed.pop(job.name, None)
    # What the command names is the config.
    assert overrides.resolve(job.flags) == job.config
    folder = workdir / job.name
    if job.name in self.broken:
      failed[job.name] = "it is cold"
      return
    diverged = "lr-1.0" in job.name
    value = 0.7 + 0.1 * ("lr-0.01" in job.name) + 0.5 * job.config["method"]["mixup"]
    value += 0.01 * job.config["seed"]
    interval = {"auroc": Interval(value, value - 0.05, value + 0.05, 60, "none")}
    worse = {"auroc": Interval(value - 0.3, value - 0.35, value - 0.25, 60, "none")}
    status = {"status": "diverged: NaN" if diverged else "finished"}
    if diverged:
      failed[job.name] = "NaN"
    evaluator = "test" if "test" in job.config["evals"] else "validation"
    _finish(folder, job.config, evaluator, interval, 100, status, {"name": "phantom", "n": 60})
    with Writer(folder) as writer:
      writer.results(2, 0.1, "validation", "trained", interval)
      writer.results(10, 0.5, "validation", "trained", worse)


def facts(workdir):
  return json.loads((workdir / "run.json").read_text())["sweep"]


def take(workdir, made, monkeypatch, arg=ARG):
  said = []
  monkeypatch.setattr(launcher, "launch", made)
  status = sweep.run(config(arg), workdir, "the command", say=said.append)
  return status, "\n".join(said)


def test_the_best_in_validation_is_tested_once(tmp_path, monkeypatch):
  workdir, made = tmp_path / "run", Made()
  status, said = take(workdir, made, monkeypatch)
  assert status == 1  # some diverged, which is no reason to wait
  assert len(made.launched) == 14 and made.launched[-2:] == ["chosen-seed0", "chosen-seed1"]
  found = facts(workdir)
  assert found["chosen"] == {"lr": "0.01", "method.mixup": "0.2"}
  best = found["points"][0]
  assert best["score"]["value"] == pytest.approx(0.905)  # of the best step, over seeds
  assert "chosen: lr=0.01, method.mixup=0.2" in said
  for job in made.launched:
    tested = "test" in json.loads((workdir / job / "config.json").read_text())["evals"]
    assert tested == job.startswith("chosen")
  with open(workdir / "table.csv", newline="") as opened:
    rows = list(csv.DictReader(opened))
  assert {r["run"] for r in rows if r["set"] == "test"} == {"chosen-seed0", "chosen-seed1"}
  one = next(r for r in rows if r["run"] == "lr-0.001_method.mixup-0.2_seed1")
  assert (one["lr"], one["method.mixup"], one["seed"]) == ("0.001", "0.2", "1")
  assert float(one["value"]) == pytest.approx(0.81) and one["metric"] == "auroc"
  assert [r["value"] for r in rows if "lr-1.0" in r["run"]] == [""] * 4
  page = Checked((workdir / "report.html").read_text())
  text = " ".join(" ".join(page.text).split())
  assert "lr=0.01, method.mixup=0.2 is the best on validation images" in text


def test_nothing_is_chosen_before_all_have_finished(tmp_path, monkeypatch):
  workdir, made = tmp_path / "run", Made(["lr-0.001_method.mixup-0.0_seed0"])
  status, said = take(workdir, made, monkeypatch)
  assert status == 1 and not any("chosen" in name for name in made.launched)
  assert "lr-0.001_method.mixup-0.0_seed0 has not finished; the best is chosen after all" in said
  assert facts(workdir)["chosen"] is None
  Checked((workdir / "report.html").read_text())
  made.broken, made.launched = [], []
  take(workdir, made, monkeypatch)  # goes on there; what diverged is tried again
  assert [n for n in made.launched if "lr-1.0" not in n] == [
    "lr-0.001_method.mixup-0.0_seed0",
    "chosen-seed0",
    "chosen-seed1",
  ]


def test_commands_are_printed_in_their_turn(tmp_path, monkeypatch):
  arg = "tiny,grid=lr=0.001+0.01,launcher=commands"
  status, said = take(tmp_path / "run", Made(), monkeypatch, arg)
  commands = [line for line in said.splitlines() if line.startswith("python -m cxrjax.main")]
  assert status == 0 and len(commands) == 2
  assert "lr-0.001_seed0.py" in commands[0] and "lr-0.01_seed0.py" in commands[1]
  assert "1 more after these" in said and not (tmp_path / "run" / "run.json").exists()
  made = Made()
  take(tmp_path / "run", made, monkeypatch, "tiny,grid=lr=0.001+0.01")
  assert made.launched == ["lr-0.001_seed0", "lr-0.01_seed0", "chosen-seed0"]


@pytest.mark.parametrize(
  "arg, error",
  [
    ("grid=lr", "grid=lr has no values"),
    ("grid=lr=0.1+0.1", "has a value twice"),
    ("grid=lrr=0.1+0.2", "lrr"),
    ("config=dino.py,grid=lr=0.1+0.2", "needs a score and an evaluator of validation"),
    ("seeds=a", "is no seed"),
    ("launcher=cloud", "config.launcher='cloud' must be one of processes, here, commands"),
  ],
)
def test_mistakes_are_named(tmp_path, arg, error):
  with pytest.raises(UserError, match=error):
    sweep.run(config(f"tiny,{arg}"), tmp_path / "run", say=lambda line: None)


@pytest.mark.full
def test_a_whole_sweep_in_this_process(tmp_path):
  workdir = tmp_path / "run"
  assert sweep.run(config("tiny,launcher=here"), workdir, say=lambda line: None) == 0
  found = facts(workdir)
  assert [row["status"] for row in found["rows"]] == ["finished"] * 3
  name = f"lr-{found['chosen']['lr']}_seed0"
  chosen, same = (run_files.read(workdir / folder) for folder in ("chosen-seed0", name))
  # It is the same run, with the evaluators of the test images.
  curves = [run.curves["loss"].value.tolist() for run in (chosen, same)]
  assert curves[0] == curves[1] and same.evaluators() == ["validation"]
  assert "test" in found["rows"][-1]["results"]

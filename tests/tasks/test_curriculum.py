"""Stages one after another, with made-up runs in place of training."""

import json
import shutil

import numpy as np
import pytest
from finished import LABELS, PATIENTS, classify, probabilities, segment
from pages import Checked
from small import REPOSITORY

from cxrjax.config.config_files import load_config
from cxrjax.core.errors import UserError
from cxrjax.evals import classification_metrics
from cxrjax.studies import launcher
from cxrjax.tasks import curriculum

CONFIGS = ("curriculum", "sstl", "spcxr", "dino_cxr")
SKILL = {"scratch": 0.5, "pirl_rotation": 0.3, "simclr": 3.0, "gmml": 2.0}
ARG = "tiny,tasks=pirl_rotation+simclr"


def load(name):
  return load_config(name)


class Made:
  """Stands in for `runs.launch`."""

  def __init__(self, monkeypatch, broken=()):
    self.launched, self.broken = [], broken
    monkeypatch.setattr(launcher, "launch", self.launch)

  def launch(self, job, workdir, failed):
    self.launched.append(job.name)
    failed.pop(job.name, None)
    if job.name in self.broken:
      failed[job.name] = "config.batch_size=8 is too cold"
      return
    make = segment if job.stage == "lungs" else classify
    # Of a folder that was there the model is taken; a stage's has one.
    make(workdir / job.name, job.config, SKILL[job.start], job.seed)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Two stages and fine-tuning from four starts."""
  workdir, said = tmp_path_factory.mktemp("stages") / "run", []
  with pytest.MonkeyPatch.context() as patch:
    made = Made(patch)
    config = load("curriculum")(f"{ARG},seeds=0+1").to_dict()
    assert curriculum.run(config, workdir, "the command", say=said.append) == 0
  return workdir, made.launched, "\n".join(said)


def test_stages_in_order_then_the_last_from_every_start(whole):
  workdir, launched, said = whole
  assert launched == [
    "pirl_rotation",
    "simclr",
    "finetune-seed0",
    "finetune-seed1",
    *(f"finetune-from-{start}-seed{s}" for s in (0, 1) for start in ("scratch", "pirl_rotation")),
  ]
  assert "stages    pirl_rotation > simclr > finetune" in said and "after simclr" in said
  read = {name: json.loads((workdir / name / "config.json").read_text()) for name in launched}
  assert read["pirl_rotation"]["init"]["path"] == ""
  assert read["simclr"]["init"]["path"] == str(workdir / "pirl_rotation")
  assert read["finetune-seed1"]["init"]["path"] == str(workdir / "simclr")
  assert read["finetune-from-pirl_rotation-seed0"]["init"]["path"] == str(workdir / "pirl_rotation")
  # From scratch the weights are missing and layers' rates are the same, all else is equal.
  one, two = dict(read["finetune-seed0"]), dict(read["finetune-from-scratch-seed0"])
  assert two["optimizer"].pop("layer_decay") == 1.0 != one["optimizer"].pop("layer_decay")
  assert two.pop("init") == {**one.pop("init"), "path": ""} and one == two


def test_what_every_stage_brought_is_from_the_predictions(whole):
  found = json.loads((whole[0] / "run.json").read_text())["stages"]
  points = {p["start"]: p for p in found["points"]}
  assert list(points) == ["scratch", "pirl_rotation", "simclr"]

  def auroc(skill, s):
    return classification_metrics.evaluate(
      "", probabilities(skill, s), LABELS, PATIENTS, ("a", "b"), True
    )["auroc"].value

  mean = {k: np.mean([auroc(SKILL[k], s) for s in (0, 1)]) for k in points}
  for start, point in points.items():
    assert point["sets"]["test"]["auroc"]["value"] == pytest.approx(mean[start])
  assert "gains" not in points["scratch"]
  for key, other in (("gains", "scratch"), ("steps", "pirl_rotation")):
    gain = points["simclr"][key]["test"]["auroc"]
    assert gain["value"] == pytest.approx(mean["simclr"] - mean[other])
    assert gain["low"] < gain["value"] < gain["high"]


def test_the_page(whole):
  words = " ".join("".join(Checked((whole[0] / "report.html").read_text()).text).split())
  assert "could not be drawn" not in words and "Some files could not be read" not in words
  for said in (
    "pirl rotation, then simclr, then finetune: ViT-Nu/8",
    "from scratch 0.",
    "beyond the interval better than from scratch: after simclr; worse: after pirl rotation.",
    "over the line above",
    "finetune, phantom: difference from scratch",
    "finetune-from-scratch-seed1",
    "the command",
  ):
    assert said in words, said


def test_a_failed_stage_is_said_and_gone_on_with(tmp_path, monkeypatch):
  made, said = Made(monkeypatch, ["simclr"]), []
  config, workdir = load("curriculum")(ARG).to_dict(), tmp_path / "run"
  assert curriculum.run(config, workdir, say=said.append) == 1
  # The other starts have the network of the stage that failed.
  assert made.launched == ["pirl_rotation", "simclr"]
  assert "failed    simclr: config.batch_size=8 is too cold" in said
  assert any("finetune-seed0: waits for simclr" in line for line in said)
  words = "".join(Checked((workdir / "report.html").read_text()).text)
  assert "simclr failed: config.batch_size=8 is too cold" in words
  assert "could not be drawn" not in words
  made.launched, made.broken = [], []
  assert curriculum.run(config, workdir, say=said.append) == 0
  assert made.launched == [
    "simclr",
    "finetune-seed0",
    "finetune-from-scratch-seed0",
    "finetune-from-pirl_rotation-seed0",
  ]
  # A stage that was repeated leaves what came of its first run behind.
  shutil.rmtree(workdir / "simclr")
  monkeypatch.setattr("finished.now", lambda: "2999-01-01T00:00:00+00:00")
  made.launched = []
  said.clear()
  assert curriculum.run(config, workdir, say=said.append) == 1
  assert made.launched == ["simclr"]
  assert any("is older than simclr, which it begins with" in line for line in said)


def test_two_last_stages_and_weights(tmp_path, monkeypatch):
  made = Made(monkeypatch)
  SKILL["weights"] = 1.0
  weights = tmp_path / "weights.npz"
  weights.write_bytes(b"")
  config = load("spcxr")(f"tiny,weights={weights}").to_dict()
  workdir = tmp_path / "run"
  assert curriculum.run(config, workdir, say=lambda line: None) == 0
  assert made.launched == [
    "gmml",
    "finetune-seed0",
    "lungs-seed0",
    "finetune-from-scratch-seed0",
    "finetune-from-weights-seed0",
    "lungs-from-scratch-seed0",
    "lungs-from-weights-seed0",
  ]
  read = json.loads((workdir / "lungs-from-weights-seed0" / "config.json").read_text())
  assert read["init"]["path"] == str(weights)
  found = json.loads((workdir / "run.json").read_text())["stages"]
  lungs = [p for p in found["points"] if p["stage"] == "lungs"]
  gain = lungs[2]["gains"]["test"]["dice"]
  assert [p["start"] for p in lungs] == ["scratch", "weights", "gmml"]
  assert gain["value"] == pytest.approx(0.03) and gain["low"] == pytest.approx(0.03)
  assert "Dice" in (workdir / "report.html").read_text()


def test_only_the_chain(tmp_path):
  jobs = curriculum.plan(load("curriculum")(f"{ARG},each=False").to_dict(), tmp_path)
  assert [j.name for j in jobs] == ["pirl_rotation", "simclr", "finetune-seed0"]


def test_pooling_is_of_the_network_and_unlabelled_sources_are_another_option(tmp_path):
  jobs = curriculum.plan(
    load("curriculum")(f"{ARG},model.pool=mean,unlabelled=phantom+phantom*2,each=False").to_dict(),
    tmp_path,
  )
  last = jobs[-1].config
  assert last["model"]["pool"] == "mean" and last["data"]["source"] == "phantom"
  assert [part["source"] for part in jobs[0].config["data"]["source"]] == ["phantom", "phantom"]


@pytest.mark.parametrize("preset", ["", "small", "paper"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_stage_takes_its_arguments(name, preset, tmp_path):
  jobs = curriculum.plan(load(name)(preset).to_dict(), tmp_path)
  assert {job.start for job in jobs if job.last} >= {"scratch"}


def spec(**changes):
  return {"name": "a", "config": "dino.py:tiny", "flags": (), "init": "", **changes}


@pytest.mark.parametrize(
  "given, message",
  [
    ((), "config.stages is empty"),
    ((spec(init="previous"),), "config.stages[0].init='previous', but no stage is before it"),
    ((spec(init="b"), spec(name="b")), "config.stages[0].init='b' is no stage before it"),
    ((spec(), spec()), "config.stages[1].name='a' must be a new name"),
    ((spec(name="scratch"),), "config.stages[0].name='scratch'"),
    ((spec(name="a/b"),), "config.stages[0].name='a/b'"),
    ((spec(colour="red"),), "takes config, flags, init, name, scratch"),
    ((spec(config="none.py"),), "none.py is no file"),
    ((spec(config="dino.py:colour=red"),), "colour=red is not an option"),
    ((spec(flags=("--config.colour=red",)),), "colour=red is not an option"),
  ],
)
def test_mistakes_are_one_line(tmp_path, given, message):
  config = {
    "task": "t",
    "folder": str(REPOSITORY / "configs"),
    "stages": given,
    "each": True,
    "seeds": ("0",),
  }
  with pytest.raises(UserError) as error:
    curriculum.run(config, tmp_path / "run", say=lambda line: None)
  assert message in str(error.value) and "\n" not in str(error.value)

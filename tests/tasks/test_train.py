"""The whole road on small runs: every config's `:tiny`, what lands in the workdir, wrong inputs."""

import functools
import json
import re

import numpy as np
import pytest
from PIL import Image
from small import REPOSITORY, lines, tiny

from cxrjax.config.config_files import load_config
from cxrjax.core.errors import UserError
from cxrjax.methods.base import Labels
from cxrjax.report import terminal
from cxrjax.tasks import train
from cxrjax.tasks.training_run import Run
from cxrjax.training.divergence import Diverged
from cxrjax.training.labels import absent_class_notes
from cxrjax.training.workdir import holds_finished_run

CONFIGS = sorted((REPOSITORY / "configs").glob("*.py"))


def load(path, arg):
  return load_config(path)(arg)


# Judged by the probe; what is judged otherwise has its own tests.
TRAINING = [p for p in CONFIGS if "probe" in load(p, "tiny").get("evals", {})]


@pytest.fixture(
  scope="module",
  params=[
    pytest.param(p, id=p.stem, marks=() if p.stem == "dino" else pytest.mark.full) for p in TRAINING
  ],
)
def finished(request, tmp_path_factory):
  """A config's `:tiny`, run to its end; its workdir and what it said."""
  workdir = tmp_path_factory.mktemp(request.param.stem) / "run"
  config, said = load(request.param, "tiny").to_dict(), []
  if request.param.stem != "dino":  # one as it is, the others with a network that compiles sooner
    config["model"] |= {"width": 32, "depth": 1, "heads": 2}
  assert train.run(config, workdir, say=said.append) == 0
  return workdir, "\n".join(said)


@pytest.mark.parametrize("content", [b'{"status": "run', b'{"status": "\xff"}', b"[1]"])
def test_a_damaged_record_of_a_run_is_named(content, tmp_path):
  assert not holds_finished_run(tmp_path, {"a": 1})
  (tmp_path / "run.json").write_bytes(content)
  with pytest.raises(UserError, match=r"run.json cannot be read .*the same command resumes"):
    holds_finished_run(tmp_path, {"a": 1})


def test_a_run_says_what_it_will_do_and_where_its_report_is(finished):
  workdir, said = finished
  for word in ("data", "device", "model", "method", "GFLOPs per image", "steps", "AUROC"):
    assert word in said
  assert f"report    {workdir / 'report.html'}" in said
  assert "finished" in json.loads((workdir / "run.json").read_text())["status"]


def test_the_workdir_is_complete(finished):
  workdir, _ = finished
  for name in (
    "config.json",
    "run.json",
    "metrics.jsonl",
    "report.html",
    "checkpoints",
    "figures/views.npz",
    "figures/attention.npz",
    "figures/features.npz",
    "tensorboard",
  ):
    assert (workdir / name).exists(), name
  html = (workdir / "report.html").read_text()
  assert "research use only" in html.lower()
  assert not re.search(r'(src|href)="https?:', html)


def test_random_trained_and_floor_stand_side_by_side(finished):
  workdir, _ = finished
  found = {r["encoder"]: r["metrics"] for r in lines(workdir, "eval")}
  assert set(found) == {"random", "trained", "floor"}
  for encoder in ("random", "trained"):
    for name in (
      "knn1/auroc",
      "knn5/auroc",
      "knn20/auroc",
      "linear/auroc",
      "linear/f1",
      "linear/accuracy",
      "linear/balanced_accuracy",
    ):
      value = found[encoder][name]
      assert value["low"] <= value["value"] <= value["high"], (encoder, name)


@pytest.mark.full
def test_training_changes_what_is_evaluated(tmp_path):
  from small import saved

  config = tiny(
    optimizer__lr={"start": 1e-2}, optimizer__lr_batch=0, duration="3 steps", method__momentum=0.5
  )
  train.run(config, tmp_path / "run", say=lambda s: None)
  arrays = saved(tmp_path / "run")
  moved = [k for k in arrays if k.startswith("extra/teacher/encoder/") and "kernel" in k]
  student = [k.replace("extra/teacher/", "params/") for k in moved]
  assert moved
  assert any(
    np.abs(arrays[a] - arrays[b]).max() > 1e-4 for a, b in zip(moved, student, strict=True)
  )


def test_paper_recipe_is_the_papers():
  config = load("dino", "paper")
  assert (config.model.variant, config.model.patch_size) == ("S", 16)
  assert config.model.initial == "normal"
  assert config.method.hidden == 2048 and config.method.bottleneck == 256
  assert not config.method.batch_norm and config.method.center_momentum == 0.9
  views = config.views
  assert (views.global_size, views.global_crops, views.local_size, views.local_crops) == (
    224,
    2,
    96,
    8,
  )
  assert views.blur_sigma == (0.1, 2.0) and views.solarize_prob == (0.0, 0.2, 0.0)
  assert views.global_scale == (0.4, 1.0) and views.local_scale == (0.05, 0.4)
  assert config.optimizer.clip == 3.0
  assert config.optimizer.weight_decay.to_dict() == {"start": 0.04, "end": 0.4}
  assert config.optimizer.freeze == (("head/prototypes", "1 epochs"),)


@pytest.mark.parametrize("model, steps", [("Nu", 2), ("resnet18", 1)])
def test_convolutions_go_step_by_step_on_a_cpu(model, steps):
  """In a loop they are several times slower there."""
  config = load("simclr", f"tiny,model={model},eval_data=none")
  assert Run(config.to_dict(), progress=False).train_step.block == steps


@pytest.mark.full
def test_nan_stops_the_run_and_the_page_says_why(tmp_path):
  config = tiny(
    duration="12 steps",
    optimizer__lr={"start": 1e30},
    optimizer__lr_batch=0,
    checkpoint__every="1 steps",
    optimizer__clip=0.0,
  )
  with pytest.raises(Diverged, match=r"became (nan|inf).* at step .*lower config\.optimizer\.lr"):
    train.run(config, tmp_path / "run", say=lambda s: None)
  assert json.loads((tmp_path / "run" / "run.json").read_text())["status"].startswith("diverged")
  assert "lower config.optimizer.lr" in (tmp_path / "run" / "report.html").read_text()
  # What was saved last is from before.
  from small import saved

  assert all(np.isfinite(v).all() for v in saved(tmp_path / "run").values())


@pytest.mark.full
def test_a_collapse_stops_the_run(tmp_path):
  # A teacher this soft gives every image the uniform answer.
  config = tiny(
    duration="12 steps", method__teacher_temp=100.0, health__grace="0 steps", health__patience=2
  )
  with pytest.raises(Diverged, match=r"uniform answer; lower config\.method\.teacher_temp"):
    train.run(config, tmp_path / "run", say=lambda s: None)


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"batch_size": 100}, r"config\.batch_size=100 is larger than the data"),
    ({"batch_size": 0}, r"config\.batch_size=0"),
    ({"views__global_size": 64}, r"config\.views\.global_size=64 is larger than the images"),
    ({"method__name": "cxrjax.methods.dyno"}, "did you mean 'dino'"),
    ({"model__variant": "XL"}, r"config\.model\.variant='XL'"),
    ({"model__name": "cxrjax.models.vitt"}, "did you mean 'vit'"),
    ({"data__source": "phantasm"}, r"config\.data\.source='phantasm'"),
    ({"data__storage": "cloud"}, r"config\.data\.storage='cloud'"),
    ({"duration": "forever"}, r"config\.duration='forever' is not a duration"),
    ({"accumulate": 3}, r"config\.accumulate=3 does not divide config\.batch_size=8"),
    ({"mesh__fsdp": 3}, r"config\.mesh\.fsdp=3 does not divide 1 devices"),
    ({"optimizer": {"speed": 1}}, r"config\.optimizer\.speed is not an option"),
  ],
)
def test_mistakes_are_one_line(tmp_path, changes, message):
  with pytest.raises(UserError, match=message) as error:
    train.run(tiny(**changes), tmp_path / "run", say=lambda s: None)
  assert "\n" not in str(error.value)


@pytest.mark.full
def test_a_folder_without_labels_trains_without_a_probe(tmp_path):
  rng = np.random.default_rng(0)
  folder = tmp_path / "images"
  folder.mkdir()
  for i in range(12):
    Image.fromarray(rng.integers(0, 255, (40, 50), np.uint8)).save(folder / f"{i}.png")
  arg = f"tiny,data=folder:{folder},split=all"
  config = load("dino", arg).to_dict()
  assert config["evals"] == {}
  config["model"] |= {"width": 32, "depth": 2, "heads": 2}
  assert train.run(config, tmp_path / "run", say=lambda s: None) == 0
  assert (tmp_path / "run" / "report.html").exists()


def test_what_is_to_be_known_of_the_data_is_said_before_training():
  labels = Labels(("a", "b", "tb"), True, (3, 2, 0), (5, 5, 5))
  (untaught,) = absent_class_notes(labels)
  assert untaught.startswith("no training image has the class 'tb'")
  assert absent_class_notes(Labels(("a", "b"), True, (0, 0), (0, 0))) == []  # no labels at all
  facts = {
    "data": {
      "train": {"notes": ["one", "two"]},
      "site": {"notes": ["8 left out", "one"], "test": {"notes": ["of its own", "two"]}, "n": 3},
    }
  }
  assert terminal.data_remarks(facts) == ["one", "two", "site: 8 left out", "site: of its own"]


def test_a_method_that_needs_labels_says_how_a_folder_could_have_them(tmp_path):
  for k in range(4):
    pixels = np.arange(32 * 32).reshape(32, 32).astype(np.uint8) // (k + 1)
    Image.fromarray(pixels).save(tmp_path / f"{k}.png")
  (tmp_path / "labels.csv").write_text(
    "path,diagnosis,who\n" + "".join(f"{k}.png,{'ab'[k % 2]},{k}\n" for k in range(4))
  )
  tune = functools.partial(load, "finetune")
  source = f"tiny,data=folder:{tmp_path},split=all"
  with pytest.raises(
    UserError,
    match=r"no labels.*data.csv=labels.csv, its labels with data.label_"
    r"columns=NAME and its patients with data.patient_column=NAME .*diagnosis",
  ):
    Run(tune(source).to_dict(), progress=False)
  with pytest.raises(UserError, match=r"no labels.*data.label_columns=NAME .it has path, diagno"):
    Run(tune(f"{source},data.csv=labels.csv").to_dict(), progress=False)
  run = Run(
    tune(f"{source},data.csv=labels.csv,data.label_columns=diagnosis").to_dict(), progress=False
  )
  assert run.training_data.labels.classes == ("a", "b")

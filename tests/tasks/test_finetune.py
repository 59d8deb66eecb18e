"""Fine-tuning from a run, from a file, from nothing; judged by what did not choose it."""

import json

import jax
import numpy as np
import pytest
from small import REPOSITORY, lines

from cxrjax.config.config_files import load_config
from cxrjax.core.errors import UserError
from cxrjax.tasks import train
from cxrjax.tasks.training_run import Run
from cxrjax.training.checkpoint import load_flat
from cxrjax.training.labels import labels_of
from cxrjax.training.restore import restore


def config_of(name, arg="tiny"):
  return load_config(name)(arg).to_dict()


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
  """The workdir of a short run of SimSiam on a small network."""
  workdir = tmp_path_factory.mktemp("pretrained") / "run"
  config = config_of("simsiam", "tiny,eval_data=none,model=Nu")
  config["model"] |= {"width": 32, "depth": 2, "heads": 2}
  assert train.run(config, workdir, say=lambda line: None) == 0
  return workdir


@pytest.fixture(scope="module")
def tuned(pretrained, tmp_path_factory):
  """A fine-tuning from it, and what it said."""
  workdir, said = tmp_path_factory.mktemp("tuned") / "run", []
  config = config_of("finetune", f"tiny,init={pretrained},model=B,subset=50 %,method.momentum=0.5")
  assert train.run(config, workdir, say=said.append) == 0
  return workdir, "\n".join(said)


@pytest.mark.full
def test_takes_the_network_of_the_run_and_says_so(pretrained, tuned):
  workdir, said = tuned
  config = json.loads((workdir / "config.json").read_text())
  assert config["model"]["width"] == 32 and config["model"]["variant"] == "Nu"
  assert f"start     {pretrained} (simsiam): " in said
  facts = json.loads((workdir / "run.json").read_text())
  assert facts["init"]["source"] == "simsiam" and not facts["init"]["new"]
  assert facts["chosen"]["by"] == "auroc" and facts["chosen"]["evaluators"] == ["test"]
  assert any(
    "no patient of the test images is among those that" in note
    for note in facts["data"]["train"]["notes"]
  )
  # Half of the labels that are learnt from; all of those that validate.
  assert facts["data"]["train"]["n"] == 20 and facts["data"]["validation"]["n"] == 8


@pytest.mark.full
def test_test_images_are_judged_once_and_validation_as_it_goes(tuned):
  results = lines(tuned[0], "eval")
  steps = {
    name: sorted(
      {
        r["step"]
        for r in results
        if r["evaluator"] == name and r["encoder"] in ("trained", "random")
      }
    )
    for name in ("validation", "test")
  }
  assert steps["validation"] == [0, 4] and len(steps["test"]) == 1


def test_training_starts_at_the_pretrained_parameters(pretrained):
  config = config_of("finetune", f"tiny,init={pretrained}")
  run = Run(config, progress=False)
  state = run.train_step.init(run.spec)
  source = restore(pretrained, "test")
  for a, b in zip(
    jax.tree.leaves(state["params"]["encoder"]), jax.tree.leaves(source.encoder_params), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  # A method with a teacher: both start there.
  dino = Run(config_of("dino", f"tiny,init={pretrained},eval_data=none"), progress=False)
  state = dino.train_step.init(dino.spec)
  for tree in (state["params"]["encoder"], state["method_state"]["teacher"]["encoder"]):
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(source.encoder_params), strict=True):
      np.testing.assert_array_equal(a, b)


@pytest.mark.full
def test_a_finished_classifier_is_restored(tuned):
  workdir, _ = tuned
  run = restore(workdir, "test")
  assert run.method.labels.classes == ("normal", "opacity")
  images = jax.random.normal(jax.random.key(0), (3, 32, 32, 1))
  p = run.method.predict(run.method.network_params(run.params, run.method_state), images)
  np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
  average = load_flat(workdir / "checkpoints")[1]["extra/average/head/bias"]
  np.testing.assert_array_equal(
    run.method.network_params(run.params, run.method_state)["head"]["bias"], average
  )


@pytest.mark.full
def test_a_start_that_knows_the_test_patients_is_refused(tmp_path):
  config = config_of("simsiam", "tiny,eval_data=none,split=test")
  assert train.run(config, tmp_path / "seen", say=lambda line: None) == 0
  config = config_of("finetune", f"tiny,init={tmp_path / 'seen'}")
  with pytest.raises(
    UserError,
    match=r"images of config\.evals\.test's test split are of "
    r"\d+ patients whom config\.init\.path=.* learnt from",
  ):
    train.run(config, tmp_path / "run", say=lambda line: None)
  config["data"]["shared_patients"] = "allow"
  assert train.run(config, tmp_path / "allowed", say=lambda line: None) == 0


@pytest.mark.parametrize(
  "path, words",
  [
    ("nowhere", "'nowhere' does not exist; give the workdir"),
    ("README.md", "config.init.path='README.md'"),
  ],
)
def test_what_is_no_start_is_said_in_a_line(path, words, monkeypatch):
  monkeypatch.chdir(REPOSITORY)
  with pytest.raises(UserError, match=words):
    Run(config_of("finetune", f"tiny,init={path}"), progress=False)


def test_the_network_of_another_run_must_be_the_same(pretrained):
  config = config_of("finetune", f"tiny,init={pretrained}")
  config["model"]["width"] = 64
  with pytest.raises(UserError, match=r"config\.init\.path.*(32.*64|64.*32)"):
    Run(config, progress=False)


def test_labels_that_are_none_are_refused():
  table = type("Table", (), {"labels": np.array([[0.0], [-1.0]]), "ids": ("a", "b")})()
  info = type(
    "Info", (), {"name": "set", "split": "train", "classes": ("edema",), "exclusive": False}
  )()
  with pytest.raises(UserError, match="label 'edema' of 'b' is -1, which is neither"):
    labels_of(table, info)

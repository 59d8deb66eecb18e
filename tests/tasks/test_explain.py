"""`configs/explain.py` on two small runs, and the maps on a run's own page."""

import csv
import json
import shutil

import numpy as np
import pages
import pytest

from cxrjax.config.config_files import load_config
from cxrjax.core.errors import UserError
from cxrjax.tasks import explain, train

MODEL = {"width": 16, "depth": 2, "heads": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, repository):
  """A classifier that has learnt nothing yet, and the same with a name of its own."""
  folder = tmp_path_factory.mktemp("runs")
  config = load_config(repository / "configs" / "finetune.py")("tiny").to_dict()
  config["model"] |= MODEL
  config["explain"] = {"images": 3, "lungs": 16, "methods": "attention+rollout+gradcam"}
  said = []
  assert train.run(config, folder / "a", say=said.append) == 0
  shutil.copytree(folder / "a", folder / "b")
  return folder, "\n".join(said)


def config_of(repository, text):
  return load_config(repository / "configs" / "explain.py")(text).to_dict()


@pytest.fixture(scope="module")
def explained(runs, tmp_path_factory, repository):
  folder, _ = runs
  workdir, said = tmp_path_factory.mktemp("explain"), []
  config = config_of(
    repository, f"images=12,shown=2,runs=first={folder}/a+{folder}/b,methods=rollout+gradcam++"
  )
  assert explain.run(config, workdir, command="python -m cxrjax.main", say=said.append) == 0
  return workdir, "\n".join(said)


def test_a_run_has_maps_and_lung_scores_on_its_page(runs):
  folder, said = runs
  with np.load(folder / "a" / "figures" / "attention.npz") as file:
    arrays = dict(file)
  assert arrays["attn"].shape == (3, 2, 4, 4) == arrays["attn_before"].shape
  assert arrays["rollout"].shape == (3, 4, 4) == arrays["gradcam"].shape
  assert arrays["mask"].shape == arrays["image"].shape
  look = json.loads((folder / "a" / "run.json").read_text())["look"]
  assert set(look["lungs"]) == {"attention", "rollout", "gradcam"} and look["masked"] == 16
  assert "lungs" in said and "gradcam" in said
  html = (folder / "a" / "report.html").read_text()
  for text in ("Where it looks", "Attention rollout", "Grad-CAM, for", "Pointing game", "head 2"):
    assert text in html


def test_everything_is_written(explained):
  workdir, said = explained
  facts = json.loads((workdir / "run.json").read_text())["explain"]
  assert [r["name"] for r in facts["runs"]] == ["first", "b"]
  assert facts["methods"] == ["rollout", "gradcam++"] and facts["reference"] == "first"
  assert facts["masks"]["published"] == 12 and not facts["masks"]["predicted"]
  assert sorted(p.name for p in (workdir / "arrays").iterdir()) == [
    "b-gradcampp.npz",
    "b-rollout.npz",
    "first-gradcampp.npz",
    "first-rollout.npz",
  ]
  assert len(list((workdir / "maps").glob("*.png"))) == 2 * 2 * 2
  with np.load(workdir / "arrays" / "b-rollout.npz") as file:
    assert file["maps"].shape == (12, 4, 4) and len(file["id"]) == 12
  rows = list(csv.DictReader((workdir / "scores.csv").open()))
  assert len(rows) == 2 * 2 * 12
  mean = np.mean(
    [float(r["energy"]) for r in rows if (r["run"], r["method"]) == ("first", "rollout")]
  )
  assert facts["scores"]["first"]["rollout"]["all"]["energy"]["value"] == pytest.approx(
    mean, rel=1e-4
  )
  assert "first" in said and "by chance" in said


def test_equal_runs_do_not_differ(explained):
  facts = json.loads((explained[0] / "run.json").read_text())["explain"]
  for of in facts["differences"]["b"].values():
    for gain in of.values():
      assert gain["value"] == 0 and gain["p"] == 1
  assert set(facts["random"]["first"]) == {"rollout", "gradcam++"}


def test_the_page(explained):
  parsed = pages.Checked((explained[0] / "report.html").read_text())
  assert {"lungs", "maps", "mean", "check", "runs", "again"} <= set(parsed.ids)


@pytest.mark.parametrize(
  ("text", "wanted"),
  [
    ("runs=", "config.runs"),
    ("runs=nowhere", "holds no run"),
    ("runs={a},methods=gradcan", "did you mean"),
    ("runs={a},target=cat", "not a class of a"),
    ("runs={a}+{a}", "two runs named"),
    ("runs={a},data=phantm", "phantm"),
    ("runs={a},tap=stage:1,methods=gradcam", "norm:I"),
  ],
)
def test_mistakes_are_one_line(runs, repository, tmp_path, text, wanted):
  text = text.format(a=runs[0] / "a")
  with pytest.raises(UserError, match=wanted) as caught:
    explain.run(config_of(repository, f"tiny,{text}"), tmp_path, say=lambda line: None)
  assert "\n" not in str(caught.value)

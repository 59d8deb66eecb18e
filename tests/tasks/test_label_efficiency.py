"""A sweep over shares of the labels, with made-up runs in place of training."""

import csv
import json

import numpy as np
import pytest
from finished import IDS, LABELS, PATIENTS, classify, probabilities
from pages import Checked
from small import REPOSITORY

from cxrjax.config.config_files import load_config
from cxrjax.core.errors import UserError
from cxrjax.evals import classification_metrics
from cxrjax.report.run_files import Run
from cxrjax.studies import launcher, transfer_results
from cxrjax.tasks import label_efficiency

PATH = REPOSITORY / "configs" / "label_efficiency.py"
ARG = "tiny,inits=scratch+dino=dino.py,fractions=10+100,seeds=0+1"
SKILL = {"scratch": 1.0, "dino": 3.0}
SHARE = {"10 %": 0.3, "100 %": 1.0}


def config(arg=ARG):
  return load_config(PATH)(arg).to_dict()


class Made:
  """Stands in for `runs.launch`."""

  def __init__(self, broken=()):
    self.launched, self.broken = [], broken

  def __call__(self, job, workdir, failed):
    self.launched.append(job.name)
    failed.pop(job.name, None)
    if job.name in self.broken:
      failed[job.name] = "it is cold"
    else:
      skill = SKILL[job.init] * SHARE.get(job.fraction, 1)
      classify(
        workdir / job.name,
        job.config,
        skill,
        job.seed,
        images=round(200 * SHARE.get(job.fraction, 1)),
      )


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
  workdir, made, said = tmp_path_factory.mktemp("sweep") / "run", Made(), []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(launcher, "launch", made)
    assert label_efficiency.run(config(), workdir, "the command", say=said.append) == 0
  return workdir, made, "\n".join(said)


def facts(workdir):
  return json.loads((workdir / "run.json").read_text())["sweep"]


def test_runs_in_order_and_once(swept, monkeypatch):
  workdir, made, said = swept
  assert made.launched == [
    "pretrain-dino",
    *(
      f"{init}-{share}pct-seed{seed}"
      for seed in (0, 1)
      for share in (10, 100)
      for init in ("scratch", "dino")
    ),
  ]
  assert "runs      8, after 1 pretraining" in said and "labels    10 %, 100 %" in said
  again = Made()
  monkeypatch.setattr(launcher, "launch", again)
  assert label_efficiency.run(config(), workdir, say=lambda line: None) == 0
  assert again.launched == []
  more = config("tiny,inits=scratch+dino=dino.py,fractions=10+50+100,seeds=0")
  assert label_efficiency.run(more, workdir, say=lambda line: None) == 0
  assert again.launched == ["scratch-50pct-seed0", "dino-50pct-seed0"]
  with pytest.raises(UserError, match=r"config\.arg: 'tiny' -> 'tiny,lr=0\.5'"):
    label_efficiency.run(config(f"{ARG},lr=0.5"), workdir, say=lambda line: None)
  assert label_efficiency.run(config(), workdir, "the command", say=lambda line: None) == 0


def test_all_starts_learn_from_the_same_labels_with_the_same_network(tmp_path):
  jobs = label_efficiency.plan(config(), tmp_path)
  start = f"init={tmp_path / 'pretrain-dino'}"
  for job in jobs[1:]:
    items = job.flags[0].partition(":")[2].split(",")
    assert start in items and f"seed={job.seed}" in items and f"data.split_seed={job.seed}" in items
    assert ("subset=10 %" in items) == (job.fraction == "10 %") and "subset=100 %" not in items
    assert (job.flags[1:] == ("--config.init.path=",)) == (job.init == "scratch")
    assert job.needs == ("pretrain-dino",)
    assert ("optimizer.layer_decay=1.0" in items) == (job.init == "scratch")


def test_what_learns_from_all_images_has_other_labels_hidden(tmp_path):
  jobs = label_efficiency.plan(
    config("tiny,inits=scratch,methods=finetune+mean_teacher,fractions=10+100,seeds=3"), tmp_path
  )
  found = {job.name: job.flags[0].partition(":")[2] for job in jobs}
  start, seeds = "tiny,optimizer.layer_decay=1.0", "seed=3,data.split_seed=3"
  assert found == {
    "scratch-10pct-seed3": f"{start},subset=10 %,{seeds}",
    "mean_teacher-scratch-10pct-seed3": f"{start},data.labelled=10 %,{seeds}",
    "scratch-100pct-seed3": f"{start},{seeds}",
    "mean_teacher-scratch-100pct-seed3": f"{start},data.labelled=100 %,{seeds}",
  }
  assert [job.curve for job in jobs[:2]] == ["scratch", "scratch, mean_teacher"]
  assert jobs[3].config["data"]["labelled"] == "100 %"


def test_numbers_are_those_of_the_predictions(swept):
  found = facts(swept[0])
  point = next(p for p in found["points"] if p["curve"] == "dino" and p["fraction"] == "10 %")
  assert point["labelled"] == 60 and found["reference"] == "scratch"
  each = [
    classification_metrics.evaluate("", probabilities(0.9, s), LABELS, PATIENTS, ("a", "b"), True)[
      "auroc"
    ].value
    for s in (0, 1)
  ]
  auroc = point["sets"]["test"]["auroc"]
  assert auroc["value"] == pytest.approx(np.mean(each)) and auroc["seeds"] == 2
  assert (auroc["low"], auroc["high"]) == pytest.approx((min(each), max(each)))
  gain = point["gains"]["test"]["auroc"]
  alone = [
    classification_metrics.difference(
      probabilities(0.9, s), probabilities(0.3, s), LABELS, PATIENTS, True
    )
    for s in (0, 1)
  ]
  assert gain["value"] == pytest.approx(np.mean([a.value for a in alone]))
  assert (gain["least"], gain["most"]) == pytest.approx(
    (min(a.value for a in alone), max(a.value for a in alone))
  )
  # Two seeds are surer than one, and not as sure as twice the images.
  half = [(a.high - a.low) / 2 for a in alone]
  assert np.hypot(*half) / 2 * 0.8 < (gain["high"] - gain["low"]) / 2 < max(half)
  hits = [
    (probabilities(k, s)[:, 1] >= 0.5) == (LABELS[:, 1] == 1) for k in (0.9, 0.3) for s in (0, 1)
  ]
  assert point["gains"]["test"]["accuracy"]["value"] == pytest.approx(
    np.mean(hits[:2]) - np.mean(hits[2:])
  )


def test_the_table_has_every_metric_of_every_run(swept):
  with open(swept[0] / "table.csv", newline="") as opened:
    found = list(csv.DictReader(opened))
  runs_of = [r for r in found if r["seed"] != "ensemble"]
  assert {r["metric"] for r in runs_of} == {"auroc", "accuracy", "balanced_accuracy"}
  one = next(r for r in found if r["run"] == "scratch-100pct-seed1" and r["metric"] == "auroc")
  value = classification_metrics.evaluate(
    "", probabilities(1.0, 1), LABELS, PATIENTS, ("a", "b"), True
  )["auroc"]
  assert float(one["value"]) == pytest.approx(value.value, abs=1e-5)
  assert (one["curve"], one["fraction"], one["labelled"], one["seed"]) == (
    "scratch",
    "100 %",
    "200",
    "1",
  )


def test_seeds_together_are_an_ensemble(swept):
  points = facts(swept[0])["points"]
  point = next(p for p in points if p["curve"] == "dino" and p["fraction"] == "100 %")
  p = np.mean([probabilities(3.0, seed) for seed in (0, 1)], 0)
  expected = classification_metrics.evaluate(
    "", p, LABELS, PATIENTS, ("a", "b"), True, None, ("auroc", "specificity")
  )
  for name, value in expected.items():
    found = point["ensembles"]["test"][name]
    assert (found["value"], found["low"]) == pytest.approx((value.value, value.low))
  assert "2 seeds as an ensemble" in (swept[0] / "report.html").read_text()
  assert "  as an ensemble" in swept[2]


class Judged(Run):
  """A run that judged some images."""

  def __init__(self, rows, skill, seed):
    vars(self).update(p=probabilities(skill, seed)[rows], rows=rows)

  def arrays(self, name):
    return {
      "probability": self.p,
      "labels": LABELS[self.rows],
      "id": IDS[self.rows],
      "patient": PATIENTS[self.rows],
      "exclusive": np.array(True),
    }


def test_over_folds_every_image_counts_once():
  folds = np.split(np.arange(len(LABELS)), 3)  # of whole patients
  ours, others = ([Judged(rows, skill, 7) for rows in folds] for skill in (3.0, 1.0))
  each = [
    classification_metrics.evaluate(
      "", run.p, LABELS[run.rows], PATIENTS[run.rows], ("a", "b"), True
    )["auroc"]
    for run in ours
  ]
  found = transfer_results.mean("test", "auroc", ours)
  assert found.value == pytest.approx(np.mean([e.value for e in each])) and found.n == len(LABELS)
  apart = [
    classification_metrics.difference(a.p, b.p, LABELS[a.rows], PATIENTS[a.rows], True)
    for a, b in zip(ours, others, strict=True)
  ]
  gain = transfer_results.gain("test", "auroc", ours, others)
  assert gain.value == pytest.approx(np.mean([d.value for d in apart]))
  # Folds share no patient: their doubts add up as those of independent means do.
  half = np.linalg.norm([(d.high - d.low) / 2 for d in apart]) / 3
  assert (gain.high - gain.low) / 2 == pytest.approx(half, rel=0.03)
  whole = probabilities(3.0, 7)[:, 1] >= 0.5
  assert transfer_results.mean("test", "accuracy", ours).value == pytest.approx(
    np.mean(whole == (LABELS[:, 1] == 1))
  )
  assert (
    "not judged on the same images"
    in transfer_results.gain("test", "auroc", ours, others[::-1]).undefined
  )


def test_a_run_for_each_fold(tmp_path):
  found = config("tiny,inits=scratch,fractions=100,seeds=3,folds=2 by image")
  jobs = label_efficiency.plan(found, tmp_path)
  assert [job.name for job in jobs] == ["scratch-100pct-seed3-fold1", "scratch-100pct-seed3-fold2"]
  made = jobs[1].config
  assert made["data"]["fold"] == "2 of 2 by image" == made["evals"]["test"]["data"]["fold"]
  assert (
    made["data"]["shared_patients"] == "allow" and made["evals"]["test"]["allow_shared_patients"]
  )
  patients = label_efficiency.plan(
    config("tiny,inits=scratch,fractions=100,seeds=3,folds=2"), tmp_path
  )[0].config
  assert patients["data"]["shared_patients"] == "error"


def test_folds_are_shown_with_intervals_over_patients(tmp_path, monkeypatch):
  monkeypatch.setattr(launcher, "launch", Made())
  found = config("tiny,inits=scratch,fractions=100,seeds=0+1,folds=2")
  said = []
  assert label_efficiency.run(found, tmp_path / "run", say=said.append) == 0
  (point,) = facts(tmp_path / "run")["points"]
  assert point["ensembles"] == {} and point["sets"]["test"]["auroc"]["n"] == len(LABELS)
  assert point["sets"]["test"]["balanced_accuracy"]["low"] is None
  text = (tmp_path / "run" / "report.html").read_text()
  assert "2 folds, 2 seeds" in text and "Each fold leaves out another part of all patients" in text
  by_image = config("tiny,inits=scratch,fractions=100,seeds=0,folds=2 by image")
  with pytest.raises(UserError, match=r"config\.folds: '?2'? -> '2 by image'"):
    label_efficiency.run(by_image, tmp_path / "run", say=said.append)
  assert label_efficiency.run(by_image, tmp_path / "other", say=said.append) == 0
  text = (tmp_path / "other" / "report.html").read_text()
  assert "a patient may be in both splits" in text and "part of all patients" not in text
  assert "95 % intervals; gains" in "\n".join(said)


def test_the_page(swept):
  text = (swept[0] / "report.html").read_text()
  words = " ".join("".join(Checked(text).text).split())
  assert "could not be drawn" not in words and "Some files could not be read" not in words
  for said in (
    "8 fine-tunings of ViT-Nu",
    "from scratch and dino",
    "Research use only",
    "the AUROC from scratch is 0.",
    "with 10 % of the labels (60 radiographs) and 0.",
    "From dino, against scratch: above with 10 % (+0.",
    "10 %, 60 radiographs",
    "mean over seeds, from the lowest to the highest",
    "the command",
    "--config=",
  ):
    assert said in words, said


def test_a_pretraining_that_failed_costs_its_own_start(tmp_path, monkeypatch):
  made, said = Made(["pretrain-dino"]), []
  monkeypatch.setattr(launcher, "launch", made)
  workdir = tmp_path / "run"
  arg = "tiny,inits=scratch+dino=dino.py+old=OLD,fractions=100,seeds=0".replace(
    "OLD", str(tmp_path / "old.npz")
  )
  (tmp_path / "old.npz").write_bytes(b"")
  SKILL["old"] = 2.0
  assert label_efficiency.run(config(arg), workdir, say=said.append) == 1
  # From scratch is the network of `dino`, which there is not.
  assert made.launched == ["pretrain-dino", "old-100pct-seed0"]
  assert "failed    pretrain-dino: it is cold" in said
  words = "".join(Checked((workdir / "report.html").read_text()).text)
  assert "pretrain-dino failed: it is cold" in words and "could not be drawn" not in words


@pytest.mark.parametrize(
  "arg, message",
  [
    ("tiny,inits=scratch+dino=nowhere", "dino=nowhere, which is neither"),
    ("tiny,inits=scratch+scratch", "every name once"),
    ("tiny,inits=dino", "'dino='"),
    ("tiny,inits=scratch,fractions=0", "config.fractions='0' is no share"),
    ("tiny,inits=scratch,fractions=120", "is no share"),
    ("tiny,inits=scratch,seeds=one", "config.seeds='one' is no seed"),
    ("tiny,inits=scratch,colour=red", "colour=red is not an option"),
    ("tiny,inits=scratch,methods=none", "none.py is no file"),
    ("tiny,args.dino=colour=red", "colour=red is not an option"),
  ],
)
def test_mistakes_are_one_line(tmp_path, arg, message):
  with pytest.raises(UserError) as error:
    label_efficiency.run(config(arg), tmp_path / "run", say=lambda line: None)
  assert message in str(error.value) and "\n" not in str(error.value)


def test_what_is_handed_on():
  found = config(
    "small,data=folder:/a,data.csv=l.csv,model.patch_size=4,optimizer.layer_decay=0.5,"
    "args.dino=lr=1e-3,inits=scratch+dino=dino.py"
  )
  assert (
    found["arg"]
    == "small,data=folder:/a,data.csv=l.csv,model.patch_size=4,optimizer.layer_decay=0.5"
  )
  assert found["inits"] == (
    ("scratch", "", "optimizer.layer_decay=1.0"),
    ("dino", "dino.py", "small,data=folder:/a,data.csv=l.csv,model.patch_size=4,lr=1e-3"),
  )
  assert found["fractions"] == ("1", "5", "10", "50", "100")

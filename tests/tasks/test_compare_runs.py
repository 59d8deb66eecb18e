"""Runs side by side: the numbers of the pairs, what is refused, the table and the page."""

import csv
import json
import math

import numpy as np
import pytest
from pages import Checked

from cxrjax.core.errors import UserError
from cxrjax.evals import classification_metrics
from cxrjax.metrics import precision_recall, roc
from cxrjax.report.run_writer import Writer
from cxrjax.tasks import compare_runs

N = 120
PATIENTS = np.arange(N) // 2


def truth(classes=2, seed=0):
  return np.eye(classes, dtype=np.float32)[np.random.default_rng(seed).integers(0, classes, N)]


def probabilities(labels, strength, seed):
  logits = strength * labels + np.random.default_rng(seed).normal(size=labels.shape)
  p = np.exp(logits)
  return p / p.sum(1, keepdims=True)


def finished(
  folder,
  p,
  labels,
  *,
  classes=("normal", "opacity"),
  exclusive=True,
  ids=None,
  fingerprint="f1",
  shuffle=False,
  status="finished",
  lr=0.1,
  key="probability",
  name="test",
):
  """A workdir as `tasks.train` leaves it, for what the comparison reads."""
  folder.mkdir(parents=True)
  order = np.random.default_rng(1).permutation(N) if shuffle else np.arange(N)
  ids = np.array([f"i{i:03}" for i in range(N)]) if ids is None else ids
  thresholds = np.full(len(classes), 0.5)
  start = "" if key == "probability" else key
  metrics = classification_metrics.evaluate(
    start,
    p,
    labels,
    PATIENTS.astype(str),
    classes,
    exclusive,
    thresholds,
    classification_metrics.ALL if key == "probability" else classification_metrics.MEASURES,
    classification_metrics.PER_CLASS if key == "probability" else ("auroc",),
  )
  (folder / "config.json").write_text(
    json.dumps({"seed": 0, "lr": lr, "evals": {"validation": {"part": "val"}}})
  )
  with Writer(folder) as writer:
    writer.facts(
      status=status,
      method="classify",
      learns_from="labels",
      model={"name": "vit"},
      steps=10,
      epochs=1.0,
      command=f"python -m cxrjax.main --workdir={folder}",
      chosen={"step": 5, "by": "auroc", "evaluators": [name]},
      data={
        "train": {"name": "phantom", "n": 40, "split": "train"},
        name: {"test": {"name": "phantom", "n": N, "fingerprint": fingerprint}},
      },
    )
    writer.results(5, 0.5, "validation", "trained", metrics)
    writer.results(5, 0.5, name, "trained", metrics)
    writer.arrays(
      f"scores_{name}_trained",
      **{key: p[order]},
      labels=labels[order],
      id=ids[order],
      patient=PATIENTS[order],
      classes=np.array(classes),
      exclusive=np.array(exclusive),
      threshold=thresholds,
      age=np.full(N, np.nan, np.float32),
    )
  return folder


@pytest.fixture
def pair(tmp_path):
  labels = truth()
  p, q = probabilities(labels, 1.0, 1), probabilities(labels, 2.5, 2)
  finished(tmp_path / "a", p, labels)
  finished(tmp_path / "b", q, labels, shuffle=True, lr=0.2)
  return tmp_path, labels, p, q


def compare(folder, runs, evals="", say=lambda line: None):
  config = {"task": "cxrjax.tasks.compare_runs", "runs": runs, "evals": evals}
  assert compare_runs.run(config, folder / "out", "python -m cxrjax.main", say) == 0
  return json.loads((folder / "out" / "run.json").read_text())["compare_runs"]


def test_differences_are_those_of_pairs(pair):
  folder, labels, p, q = pair
  found = compare(folder, f"{folder}/a,{folder}/b")
  assert list(found["sets"]) == ["test"]  # validation chose the checkpoint
  metrics = found["sets"]["test"]["metrics"]
  assert set(metrics) == set(classification_metrics.ALL)
  owners = [str(i) for i in PATIENTS]
  area = roc.auroc_difference(q[:, 1:], p[:, 1:], labels[:, 1:], owners)
  got = metrics["auroc"]["gains"]["b"]
  assert (got["value"], got["p"]) == pytest.approx((area.value, area.p), rel=1e-6)
  assert (got["low"], got["high"]) == pytest.approx((area.low, area.high), rel=1e-6)
  gain = precision_recall.difference(q[:, 1:], p[:, 1:], labels[:, 1:], owners)
  assert metrics["auprc"]["gains"]["b"]["low"] == pytest.approx(gain.low)
  right = [(x.argmax(1) == labels.argmax(1)).astype(float) for x in (q, p)]
  gain = metrics["accuracy"]["gains"]["b"]
  assert gain["value"] == pytest.approx(np.mean(right[0] - right[1]))
  drawn = np.random.default_rng(0).integers(0, N // 2, (4000, N // 2))
  means = (right[0] - right[1]).reshape(-1, 2).mean(1)[drawn].mean(1)
  assert (gain["low"], gain["high"]) == pytest.approx(
    tuple(np.quantile(means, [0.025, 0.975])), abs=0.012
  )
  for metric, values in metrics.items():
    of = values["runs"]
    assert values["gains"]["b"]["value"] == pytest.approx(
      of["b"]["value"] - of["a"]["value"], abs=1e-6
    ), metric
  assert metrics["brier"]["gains"]["b"]["value"] < 0 < metrics["auroc"]["gains"]["b"]["value"]


def test_table_page_and_terminal(pair):
  folder, *_ = pair
  said = []
  compare(folder, f"reference={folder}/a,{folder}/b", say=said.append)
  lines = list(csv.DictReader((folder / "out" / "table.csv").open()))
  assert len(lines) == 2 * len(classification_metrics.ALL)
  first = [line for line in lines if line["metric"] == "auroc"]
  assert [line["run"] for line in first] == ["reference", "b"]
  assert first[0]["difference"] == "" and float(first[1]["difference"]) > 0
  assert first[1]["reference"] == "reference" and first[1]["test"] == "DeLong, paired"
  page = Checked((folder / "out" / "report.html").read_text())
  text = " ".join(page.text)
  for words in (
    "reference, b compared",
    "Differences from reference",
    "Log loss",
    "1 key differs",
    "config.lr: 0.1 -> 0.2",
    "ROC curves",
    "better",
  ):
    assert words in text, words
  assert "could not be drawn" not in text and "missing" not in text
  assert "AUROC" in "\n".join(said) and "difference" in "\n".join(said)


def test_other_runs_in_the_same_workdir(pair):
  folder, labels, *_ = pair
  compare(folder, f"{folder}/a,{folder}/b")
  finished(folder / "c", probabilities(labels, 2.0, 5), labels)
  found = compare(folder, f"{folder}/a,{folder}/b,{folder}/c")
  gains = found["sets"]["test"]["metrics"]["auroc"]["gains"]
  assert list(gains) == ["b", "c"]
  assert all(g["p_holm"] >= g["p"] for g in gains.values())
  assert "p (Holm)" in (folder / "out" / "report.html").read_text()


def test_classes_and_probes(tmp_path):
  labels = truth(3)
  names = ("x", "y", "z")
  for name, strength in (("a", 1.0), ("b", 2.0)):
    finished(tmp_path / name, probabilities(labels, strength, 3), labels, classes=names)
  found = compare(tmp_path, f"{tmp_path}/a,{tmp_path}/b")["sets"]["test"]["metrics"]
  for metric in ("auroc/x", "auprc/y", "sensitivity/z", "hm/x"):
    runs = found[metric]["runs"]
    assert found[metric]["gains"]["b"]["value"] == pytest.approx(
      runs["b"]["value"] - runs["a"]["value"], abs=1e-6
    ), metric
  assert "Per class" in (tmp_path / "out" / "report.html").read_text()
  labels = truth()
  for name, strength in (("c", 1.0), ("d", 2.0)):
    finished(
      tmp_path / name, probabilities(labels, strength, 3), labels, key="linear", name="probe"
    )
  found = compare(tmp_path, f"{tmp_path}/c,{tmp_path}/d")["sets"]["probe"]["metrics"]
  assert found["linear/auroc"]["gains"]["d"]["value"] > 0


@pytest.mark.parametrize(
  "change,said",
  [
    ({"ids": np.array([f"j{i}" for i in range(N)])}, "120 and 120, 0 of them the same"),
    ({"fingerprint": "f2"}, "their content is not"),
    ({"labels": truth(seed=9)}, "labels or classes"),
    ({"status": "failed: no space"}, "has not finished"),
    ({"name": "other"}, "no evaluator judged all of them"),
  ],
)
def test_what_cannot_be_compared_is_refused(pair, change, said):
  folder, labels, *_ = pair
  labels = change.pop("labels", labels)
  finished(folder / "c", probabilities(labels, 1.0, 4), labels, **change)
  with pytest.raises(UserError, match=said) as error:
    compare(folder, f"{folder}/a,{folder}/c")
  assert "\n" not in str(error.value)


def test_what_names_no_runs(pair):
  folder, *_ = pair
  for runs, said in (
    ("", "at least two"),
    (f"{folder}/a,{folder}/none", "holds no run"),
    (f"{folder}/a,{folder}/a", "two runs named 'a'"),
  ):
    with pytest.raises(UserError, match=said):
      compare(folder, runs)
  with pytest.raises(UserError, match="judged none of the runs"):
    compare(folder, f"{folder}/a,{folder}/b", "elsewhere")


def test_a_workdir_of_something_else_is_left_alone(pair):
  folder, *_ = pair
  before = (folder / "a" / "run.json").read_text()
  with pytest.raises(UserError, match="another config"):
    compare_runs.run({"task": "x", "runs": f"{folder}/a,{folder}/b", "evals": ""}, folder / "a")
  assert (folder / "a" / "run.json").read_text() == before


def test_holm():
  # By hand: 3 * .01, 2 * .02 and 1 * .03, never less than the one before.
  assert compare_runs.holm([0.03, 0.01, math.nan, 0.02]) == pytest.approx(
    [0.04, 0.03, math.nan, 0.04], nan_ok=True
  )
  assert compare_runs.holm([0.9, 0.8]) == [1.0, 1.0]


def test_masks(tmp_path):
  rng = np.random.default_rng(0)
  dice = {"a": 0.8 + 0.05 * rng.random(N), "b": 0.9 + 0.05 * rng.random(N)}
  for name, values in dice.items():
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with Writer(folder) as writer:
      writer.facts(
        status="finished",
        method="segment",
        learns_from="masks",
        data={"test": {"name": "phantom", "n": N, "fingerprint": "f"}},
      )
      writer.results(
        5,
        0.5,
        "test",
        "trained",
        {m: {"value": float(values.mean()), "n": N} for m in ("dice", "iou", "hd95")},
      )
      writer.arrays(
        "scores_test_trained",
        dice_all=values,
        iou_all=values,
        id_all=np.array([f"i{i}" for i in range(N)]),
        patient_all=PATIENTS.astype(str),
      )
  found = compare(tmp_path, f"{tmp_path}/a,{tmp_path}/b")["sets"]["test"]["metrics"]
  gain = found["dice"]["gains"]["b"]
  assert gain["value"] == pytest.approx(np.mean(dice["b"] - dice["a"])) and gain["low"] > 0.08
  assert found["hd95"]["gains"] == {}  # not kept of single images
  assert "could not be drawn" not in (tmp_path / "out" / "report.html").read_text()

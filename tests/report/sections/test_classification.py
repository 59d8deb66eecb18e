"""The page of a classification run: words, curves, calibration, subgroups."""

import json

import numpy as np
import pytest
from pages import Checked

from cxrjax.metrics.intervals import Interval, undefined
from cxrjax.report import terminal
from cxrjax.report.html import format
from cxrjax.report.pages import run_page
from cxrjax.report.run_writer import Writer


def interval(value, n=200):
  return Interval(value, value - 0.02, value + 0.02, n, "bootstrap over patients")


def made(folder, classes=("normal", "tb <x>"), exclusive=True, subgroups=True):
  rng = np.random.default_rng(0)
  k = len(classes)
  labels = np.eye(k, dtype=np.float32)[rng.integers(0, k, 200)]
  p = np.clip(labels * 0.4 + 0.5 * rng.random(labels.shape), 0.01, 0.99)
  p = p / p.sum(1, keepdims=True)
  bins = [
    {"low": i / 15, "high": (i + 1) / 15, "n": 20, "probability": (i + 0.5) / 15, "came": i + 2}
    for i in range(15)
  ]
  group = {
    "by": "site",
    "class": classes[1],
    "n": 100,
    "patients": 60,
    "positives": 40,
    "auroc": vars(interval(0.8)),
    "sensitivity": vars(interval(0.7)),
    "specificity": vars(undefined("fewer than 5 patients without it")),
  }
  metrics = {
    m: interval(0.81) for m in ("auroc", "auprc", "accuracy", "sensitivity", "specificity", "hm")
  }
  metrics |= {
    "brier": interval(0.12),
    "ece": interval(0.031),
    "ece/uncalibrated": interval(0.092),
    "nll": interval(0.4),
  }
  if k > 2:
    metrics |= {f"{m}/{c}": interval(0.7) for m in ("auroc", "hm") for c in classes}
  with Writer(folder) as writer:
    (folder / "config.json").write_text(json.dumps({"model": {"patch_size": 8}}))
    writer.facts(
      status="finished",
      method="classify",
      learns_from="labels",
      steps=100,
      epochs=5.0,
      batch_size=16,
      model={"name": "cxrjax.models.vit", "variant": "Nu"},
      chosen={"step": 75, "by": "auroc", "evaluators": ["test"]},
      data={
        "train": {"name": "phantom", "n": 320},
        "test": {"test": {"name": "phantom", "split": "test", "n": 200}},
      },
      evaluation={
        "test": {
          "trained": {
            "temperature": [1.8],
            "temperature_remarks": [],
            "ece_by_chance": [0.02, 0.04],
            "reliability": {"calibrated": bins, "uncalibrated": bins[::2]},
            "subgroups": [group | {"group": g} for g in ("A", "B")] if subgroups else [],
            "subgroup_remarks": ["age: not known of any image"],
          }
        }
      },
    )
    for step, value in ((0, 0.5), (50, 0.8), (75, 0.9), (100, 0.89)):
      writer.results(
        step,
        step / 20,
        "validation",
        "trained" if step else "random",
        {"auroc": interval(value), "nll": interval(1 - value)},
      )
    writer.results(0, 0.0, "test", "floor", {"auroc": interval(0.7)})
    writer.results(75, 3.75, "test", "trained", metrics)
    about = {"labels": labels, "classes": np.array(classes), "exclusive": np.array(exclusive)}
    writer.arrays("scores_test_trained", probability=p, threshold=np.full(k, 0.4), **about)
    writer.arrays("scores_test_floor", linear=p.astype(np.float32), **about)
  return folder


@pytest.fixture
def text(tmp_path):
  checked = Checked(run_page.write(made(tmp_path)).read_text())
  return " ".join(" ".join(checked.text).split())


def test_what_the_page_says(text):
  for said in (
    "Classification · ViT-Nu/8 on phantom",
    "its AUROC is",
    "against 0.700",
    "with the checkpoint of step 75, the best on validation (AUROC)",
    "Before training",
    "Precision and recall: tb <x>",
    "Confusion matrix",
    "score is at least 0.4",
    "temperature of 1.80",
    "before 0.092",
    "gives 0.020 by chance",
    "Subgroups",
    "age: not known of any image",
    "Log loss",
    "Harmonic mean (HM)",
  ):
    assert said in text, said
  assert "could not be drawn" not in text and "linear probe" not in text
  assert text.index("200 test images") < text.index("200 validation images")  # what was judged once


def test_the_less_is_the_better_of_errors(tmp_path):
  whole = run_page.write(made(tmp_path)).read_text()
  table = whole[whole.index("Validation images</h3>") :]
  row = table[table.index("Log loss") :]
  row = row[: row.index("</tr>")]
  assert "<b>0.110" in row and "<b>0.500" not in row  # the trained one's last, before training's


def test_many_classes(tmp_path):
  classes = ("a", "b", "c", "d", "e")
  checked = Checked(run_page.write(made(tmp_path, classes)).read_text())
  text = " ".join(checked.text)
  assert "Per class" in text and "AUROC, a" in text and "The first 4 of 5 classes" in text


def test_an_old_or_broken_evaluation_costs_its_part_only(tmp_path):
  made(tmp_path, subgroups=False)
  path = tmp_path / "run.json"
  facts = json.loads(path.read_text())
  facts["evaluation"]["test"]["trained"] = {"reliability": {"calibrated": [{"n": "?"}]}}
  path.write_text(json.dumps(facts))
  text = " ".join(Checked(run_page.write(tmp_path).read_text()).text)
  assert "ROC" in text and "Subgroups" not in text


def test_names_of_metrics():
  assert format.split("knn5/auroc/a/b") == ("knn5", "auroc", "a/b")
  assert format.split("auroc/a/b") == ("", "auroc", "a/b")
  assert format.split("dice") == ("", "dice", "")
  assert format.title("linear/f1") == "Linear probe: F1"
  assert format.title("auroc/tb") == "AUROC, tb"
  assert format.title("ece/uncalibrated") == "Calibration error (ECE), uncalibrated"
  assert [
    format.of_class(m) for m in ("auroc/tb", "ece/uncalibrated", "knn5/auroc", "knn5/auroc/x")
  ] == [True, False, False, True]
  names = {"nll", "auroc", "hm", "auroc/b", "auroc/a", "ece", "ece/uncalibrated", "linear/auroc"}
  assert terminal.sort_metrics(names) == [
    "linear/auroc",
    "auroc",
    "hm",
    "ece",
    "ece/uncalibrated",
    "nll",
    "auroc/a",
    "auroc/b",
  ]

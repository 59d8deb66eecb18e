"""The model card: whole for every kind of run, its numbers those of the run, its YAML sound."""

import json
import shutil

import finished
import numpy as np
import pytest
import yaml

from cxrjax.report import model_card, run_files
from cxrjax.report.pages import run_page
from cxrjax.report.run_writer import Writer

SECTIONS = [
  "Model",
  "Intended use",
  "Training data",
  "Test data",
  "Results",
  "Where it looks",
  "Limits",
  "How to reproduce it",
]


def read(workdir):
  """Front matter, and the text below it."""
  run_page.write(workdir)
  _, front, text = (workdir / model_card.NAME).read_text().split("---\n", 2)
  return yaml.safe_load(front), text


def sections(text):
  return [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]


def rows(text):
  """Every table's cells."""
  lines = [line for line in text.splitlines() if line.startswith("| ")]
  return [[c.strip() for c in line.strip("|").split(" | ")] for line in lines]


@pytest.fixture(scope="module")
def small(tmp_path_factory, make_workdir):
  return make_workdir(tmp_path_factory.mktemp("run"), steps=40, every=20, evals=1, crop=32)


def test_a_pretraining(small):
  front, text = read(small)
  assert front["library_name"] == "cxrjax" and front["license"] == "unknown"
  assert front["pipeline_tag"] == "image-feature-extraction"
  assert {"chest-x-ray", "self-supervised-learning", "dino"} <= set(front["tags"])
  assert sections(text) == SECTIONS
  assert "Research use only" in text and "learnt from 17,702 radiographs" in text
  latest = run_files.read(small).latest()
  value = latest["trained"]["linear/auroc"]
  told = f"{value.value:.3f} ({value.low:.3f}\N{EN DASH}{value.high:.3f})"
  row = next(r for r in rows(text) if r[0] == "Linear probe: AUROC")
  assert row[1] == told and len(row) == 4 and row[3].startswith("0.901 (")
  found = front["model-index"][0]["results"][0]["metrics"]
  assert {m["type"] for m in found} == {"roc_auc"}
  assert found[-1]["value"] == pytest.approx(value.value, abs=5e-5)
  assert "python -m cxrjax.main --config=configs/dino.py:paper" in text
  assert "b9d1" * 4 in text and "77aa" * 4 in text  # fingerprints
  assert "2 images could not be used" in text
  # Neighbours share the site more often than by chance; the label is what they should share.
  assert "site: shared by 0.840 (0.810" in text
  assert "Features also encode the site" in text


@pytest.mark.parametrize(
  "kind, method, learns_from, tag",
  [
    ("classify", "classify", "labels", "image-classification"),
    ("classify", "somebodys_own", "labels", "image-classification"),
    ("segment", "segment", "masks", "image-segmentation"),
  ],
)
def test_what_learnt_from_labels(tmp_path, kind, method, learns_from, tag):
  make = getattr(finished, kind)
  make(tmp_path, {"model": {}}, 3.0, 0, method=method, learns_from=learns_from)
  front, text = read(tmp_path)
  assert front["pipeline_tag"] == tag
  assert "self-supervised-learning" not in front["tags"]
  assert {"Model", "Intended use", "Results", "Limits"} <= set(sections(text))
  assert "images are synthetic" in text  # phantoms
  assert {m["type"] for m in front["model-index"][0]["results"][0]["metrics"]} == (
    {"roc_auc", "accuracy"} if kind == "classify" else {"dice"}
  )


def test_subgroups_are_told_with_their_intervals_and_what_is_unknown(tmp_path):
  finished.classify(tmp_path, {}, 3.0, 0, method="classify", learns_from="labels")
  interval = {"value": 0.91, "low": 0.85, "high": 0.95}
  few = {"value": None, "low": None, "high": None, "undefined": "few"}
  with Writer(tmp_path) as writer:
    writer.facts(
      evaluation={
        "test": {
          "trained": {
            "subgroups": [
              {
                "by": "sex",
                "group": "female",
                "class": "b",
                "n": 30,
                "positives": 14,
                "auroc": interval,
                "sensitivity": interval,
                "specificity": few,
              }
            ],
            "subgroup_remarks": ["age: not known of any image"],
          }
        }
      }
    )
  _, text = read(tmp_path)
  assert [
    "sex",
    "female",
    "b",
    "30",
    "14",
    "0.910 (0.850\N{EN DASH}0.950)",
    "0.910 (0.850\N{EN DASH}0.950)",
    "n/a",
  ] in rows(text)
  assert "subgroups not evaluated: age: not known of any image" in text


def test_limits_follow_from_the_facts(tmp_path):
  finished.classify(tmp_path, {}, 3.0, 0, method="classify", learns_from="labels")
  _, text = read(tmp_path)
  assert "Tested only on the source that it was trained on" in text
  assert "The patients of the training images are unknown" in text
  with Writer(tmp_path) as writer:
    writer.facts(
      data={
        "train": {"name": "tfds:a", "patients": 60},
        "test": {"name": "tfds:b", "shared_patients": 3},
      }
    )
    writer.facts(data={"test": {"test": {"name": "tfds:b", "n": 60}}})
  _, text = read(tmp_path)
  assert (
    "source that it was trained on" not in text and "patients of the training images" not in text
  )
  assert "images are synthetic" not in text
  assert "Some patients are in more than one split of test" in text


def test_where_it_looks(small, tmp_path):
  workdir = shutil.copytree(small, tmp_path / "run")
  with Writer(workdir) as writer:
    writer.facts(
      look={
        "lungs": {
          "gradcam": {"all": {"energy_ratio": {"value": 1.8, "low": 1.6, "high": 2.0}}},
          "rollout": {"all": {"energy_ratio": {"value": None}}},
        }
      }
    )
  _, text = read(workdir)
  assert "gradcam: 1.800 (1.600" in text and "rollout" not in text


def test_what_chose_the_checkpoint_is_no_result_for_the_hub(tmp_path):
  finished.classify(tmp_path, {}, 3.0, 0, method="classify", learns_from="labels")
  with Writer(tmp_path) as writer:
    writer.results(5, 0.2, "validation", "trained", {"auroc": 0.999})
    writer.facts(data={"validation": {"name": "phantom", "split": "val"}})
  front, text = read(tmp_path)
  assert [r["dataset"]["name"] for r in front["model-index"][0]["results"]] == ["phantom"]
  assert "0.999" in text


def test_a_run_that_did_not_end_says_so(small, tmp_path):
  workdir = shutil.copytree(small, tmp_path / "run")
  with Writer(workdir) as writer:
    writer.facts(status="failed: the disk is full")
  assert "**This run is failed: the disk is full;" in read(workdir)[1]


def test_names_are_shown_as_they_are_and_break_nothing(small, tmp_path):
  workdir = shutil.copytree(small, tmp_path / "run")
  hostile = 'a|b "c": #d\n## e <script> [x](http://y) `z` *w* \x00'
  with Writer(workdir) as writer:
    writer.facts(
      method=hostile,
      model={"name": hostile},
      data={"train": {"name": hostile, "notes": [hostile], "classes": [hostile]}},
    )
  front, text = read(workdir)
  assert sections(text) == SECTIONS
  assert len({len(r) for r in rows(text.split("## Training data")[1].split("##")[0])}) == 1
  assert "<script>" not in text.replace("\\<script\\>", "") and "[x](" not in text
  assert front["model-index"][0]["name"].startswith(hostile[0].upper()) or "b" in str(front)


@pytest.mark.parametrize("value", [None, -1.5, True, "text", [None], {}, {"a": [{}]}])
def test_facts_of_the_wrong_kind_never_cost_the_card(small, tmp_path, value):
  workdir = tmp_path / "run"
  workdir.mkdir()
  shutil.copy(small / "metrics.jsonl", workdir)
  facts = json.loads((small / "run.json").read_text())
  for key in facts:
    (workdir / "run.json").write_text(json.dumps({**facts, key: value}))
    text = model_card.render(run_files.read(workdir))
    assert isinstance(yaml.safe_load(text.split("---\n")[1]), dict)
    assert "Research use only" in text


def test_an_empty_workdir(tmp_path):
  front, text = read(tmp_path)
  assert front["library_name"] == "cxrjax" and "Research use only" in text
  assert "Not evaluated on any labelled images" in text


def test_is_a_pure_function_of_the_workdir(small):
  assert model_card.render(run_files.read(small)) == model_card.render(run_files.read(small))
  assert np.all(
    ["nan" not in line.lower() for line in model_card.render(run_files.read(small)).splitlines()]
  )

import json
import math
import shutil

import numpy as np
import pytest
from pages import Checked
from small import full

from cxrjax.core.errors import UserError
from cxrjax.report.pages import run_page
from cxrjax.report.run_writer import Writer

SECTIONS = [
  "results",
  "attention",
  "features",
  "data",
  "curves",
  "schedules",
  "views",
  "speed",
  "again",
  "terms",
]
HOSTILE = '</code><script>alert("x")</script><img src=x onerror=alert(1)>'


def check(workdir):
  path = run_page.write(workdir)
  assert path == workdir / "report.html"
  text = path.read_text(encoding="utf-8")
  assert path.stat().st_size < 5e6
  assert text.startswith("<!doctype html>")
  parsed = Checked(text)
  parsed.words = " ".join(" ".join(parsed.text).split())
  return parsed


@pytest.fixture(scope="module")
def small(tmp_path_factory, make_workdir):
  return make_workdir(tmp_path_factory.mktemp("run"), steps=400, every=40, evals=2, crop=64)


@pytest.fixture
def workdir(small, tmp_path):
  return shutil.copytree(small, tmp_path / "run")


def test_a_finished_run(workdir):
  parsed = check(workdir)
  assert parsed.ids == SECTIONS
  words = parsed.words
  assert "could not be drawn" not in words and "Some files could not be read" not in words
  assert "A ViT-S/16 (21.7 M parameters) learnt from 17,702 radiographs" in words
  assert "without their labels, by DINO, for 30 epochs (400 steps of 64" in words
  assert "images), in 3 h 12 min on NVIDIA H200" in words
  assert "On 624 held-out radiographs" in words
  assert "a linear model on raw thumbnails (the floor) 0.901 (0.876\N{EN DASH}0.924)" in words
  assert "lies above that of the encoder before training" in words
  assert "ln K = ln 4,096 = 8.32" in words
  assert "Research use only" in words
  assert "Peak memory, accelerator 54 GB" in words and "Peak memory, process 3.21 GB" in words
  assert "python -m cxrjax.main --config=configs/dino.py:paper" in words
  assert "1 value not finite" in words  # the NaN in the loss
  assert "2 images were skipped" in words and "one gray level" in words
  assert all(
    x in words for x in ("radiograph", "large crop 1", "large crop 2", "small crop 8", "head 6")
  )
  assert parsed.images == 4 * (1 + 2 + 8) + 4 * (2 + 6) + 1 + 4 * (1 + 5) + 4 * 2
  assert "<title>" in (workdir / "report.html").read_text()


def test_is_a_pure_function_of_the_workdir(workdir):
  first = run_page.write(workdir).read_bytes()
  assert run_page.write(workdir).read_bytes() == first


def test_results_table_has_the_numbers_with_the_best_in_bold(workdir):
  with Writer(workdir) as writer:
    for encoder, value in (("trained", 0.873), ("random", 0.7)):
      writer.results(
        10**6,
        99.0,
        "probe",
        encoder,
        {"knn5/auroc": {"value": value, "low": value - 0.031, "high": value + 0.028, "n": 9}},
      )
  run_page.write(workdir)
  text = (workdir / "report.html").read_text()
  assert "<b>0.873</b> <small>(0.842\N{EN DASH}0.901)</small>" in text
  assert "<span>0.700</span> <small>(0.669\N{EN DASH}0.728)</small>" in text


@pytest.mark.parametrize(
  "missing",
  [
    "config.json",
    "run.json",
    "metrics.jsonl",
    "figures/views.npz",
    "figures/attention.npz",
    "figures/features.npz",
    "figures/scores_probe_trained.npz",
    "figures",
  ],
)
def test_without_a_file(workdir, missing):
  path = workdir / missing
  shutil.rmtree(path) if path.is_dir() else path.unlink()
  parsed = check(workdir)
  assert "could not be drawn" not in parsed.words
  said = f"{missing} is missing" in parsed.words
  assert said == missing.endswith(("json", "jsonl"))


def test_an_empty_workdir(tmp_path):
  parsed = check(tmp_path)
  assert "metrics.jsonl is missing" in parsed.words and parsed.ids == []


@pytest.mark.parametrize(
  "broken",
  [
    "config.json",
    "run.json",
    "metrics.jsonl",
    "figures/views.npz",
    "figures/attention.npz",
    "figures/features.npz",
  ],
)
def test_a_torn_file(workdir, broken):
  path = workdir / broken
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])
  parsed = check(workdir)
  assert "could not be drawn" not in parsed.words
  assert path.name in parsed.words


@pytest.mark.parametrize(
  "value", [None, [None], {"a": [{}]}, full(-1.5), full(True), full("text"), full({})]
)
def test_facts_of_the_wrong_kind_never_cost_the_page(workdir, value):
  shutil.rmtree(workdir / "figures")  # they cost time and do not read the facts
  facts = json.loads((workdir / "run.json").read_text())
  for key in facts:
    (workdir / "run.json").write_text(json.dumps({**facts, key: value}))
    assert "Research use only" in check(workdir).words


def test_everything_is_escaped(make_workdir, tmp_path):
  workdir = make_workdir(
    tmp_path / "a",
    steps=40,
    every=20,
    evals=2,
    crop=32,
    name=f"folder:/data/{HOSTILE}",
    status=f"failed: {HOSTILE}",
  )
  with Writer(workdir) as writer:
    writer.facts(
      command=HOSTILE,
      method=HOSTILE,
      versions={HOSTILE: HOSTILE},
      notes=[HOSTILE],
      model={"name": HOSTILE},
      device={"kind": HOSTILE},
      timing={HOSTILE: HOSTILE},
      schedules={HOSTILE: {"step": [0, 1], "value": [0, 1]}},
      data={
        "train": {"classes": [HOSTILE], "skipped": [[HOSTILE, HOSTILE]], HOSTILE: HOSTILE},
        "probe": {"test": {"class_counts": {HOSTILE: 3}}},
      },
    )
    writer.scalars(40, 2.0, {HOSTILE: 1.0})
    writer.results(
      40,
      2.0,
      HOSTILE,
      HOSTILE,
      {f"{HOSTILE}/{HOSTILE}/{HOSTILE}": {"value": 0.5, "method": HOSTILE}},
    )
    writer.arrays(
      "attention",
      image=np.zeros((1, 8, 8), np.uint8),
      attn=np.ones((1, 1, 2, 2), np.float32),
      label=[HOSTILE],
    )
    writer.arrays(
      "scores_trained",
      labels=np.eye(2, dtype=np.float32),
      linear=np.eye(2, dtype=np.float32),
      classes=[HOSTILE, "b"],
    )
  (workdir / "config.json").write_text(json.dumps({HOSTILE: HOSTILE}))
  parsed = check(workdir)
  assert HOSTILE in "".join(parsed.text)
  text = (workdir / "report.html").read_text()
  assert "<script" not in text and "<img src=x" not in text


def test_control_characters_and_lone_surrogates_of_file_names(workdir):
  with Writer(workdir) as writer:
    writer.facts(data={"train": {"name": "a\x00b\x1bc"}})
  facts = (workdir / "run.json").read_text().replace('"split": "train"', '"split": "\\udc80"', 1)
  (workdir / "run.json").write_text(facts)
  check(workdir)


@pytest.mark.parametrize(
  ("status", "said"),
  [
    ("failed: the disk is full", "This run failed at step 400 of 400. the disk is full"),
    ("stopped: SIGTERM", "This run was stopped at step 400 of 400. SIGTERM"),
    ("diverged: loss is NaN at step 7", "This run diverged at step 400 of 400. loss is NaN"),
    ("running", "This run had not finished when the page was written; it was at step 400"),
  ],
)
def test_says_how_a_run_ended(workdir, status, said):
  with Writer(workdir) as writer:
    writer.facts(status=status)
  assert said in check(workdir).words


def test_a_run_cut_short_says_how_far_it_came(workdir):
  with Writer(workdir) as writer:
    writer.facts(status="stopped: SIGTERM", steps=1000)
    writer.facts(data={"train": {"name": "folder:/a" + "/long_name" * 9 + "/pictures"}})
  words = check(workdir).words
  assert "for 400 of 1,000 steps of 64 images, in" in words
  assert "radiographs of folder:\N{HORIZONTAL ELLIPSIS}/pictures (train)" in words


def test_warns_of_a_collapse(workdir):
  with Writer(workdir) as writer:
    writer.scalars(401, 30.1, {"teacher_entropy": math.log(4096), "feature_std": 0.001})
  words = check(workdir).words
  assert "nearly the same uniform distribution for every image" in words
  assert "nearly the same features" in words


def test_all_values_not_finite(tmp_path):
  nan = float("nan")
  with Writer(tmp_path) as writer:
    writer.facts(status="diverged: NaN", schedules={"lr": {"step": [0, None], "value": [None, 1]}})
    for step in range(5):
      writer.scalars(step, nan, {"loss": nan, "teacher_entropy": nan, "feature_std": nan})
      for encoder in ("trained", "random", "floor"):
        writer.results(
          step,
          nan,
          "probe",
          encoder,
          {
            "linear/auroc": {
              "value": nan,
              "low": nan,
              "high": nan,
              "n": 0,
              "method": "none",
              "undefined": "one class only",
            }
          },
        )
    writer.arrays("attention", image=np.full((2, 8, 8), np.nan), attn=np.full((2, 2, 2, 2), np.nan))
    writer.arrays("views", source=np.full((1, 8, 8), np.nan))
    writer.arrays("scores_trained", labels=np.full((3, 2), np.nan), linear=np.full((3, 2), np.nan))
  words = check(tmp_path).words
  assert "could not be drawn" not in words
  assert "n/a" in words and "one class only" in words and "No finite value yet" in words


def test_one_step_and_one_evaluation(tmp_path):
  with Writer(tmp_path) as writer:
    writer.scalars(1, 0.01, {"loss": 3.0})
    writer.results(1, 0.01, "probe", "trained", {"knn5/auroc": 0.75})
  words = check(tmp_path).words
  assert "could not be drawn" not in words and "0.750 with k-nearest neighbours (k = 5)" in words


def test_several_findings_and_several_evaluators(tmp_path):
  classes = ["Atelectasis", "Effusion", "Nodule", "Pneumothorax", "Mass"]
  with Writer(tmp_path) as writer:
    metrics = {"linear/auroc": 0.8, **{f"linear/auroc/{c}": 0.7 for c in classes}}
    for name in ("probe", "shenzhen"):
      writer.results(1, 0.0, name, "trained", metrics)
    labels = (np.random.default_rng(0).random((50, 5)) > 0.5).astype(np.float32)
    labels[0, 0] = np.nan
    writer.arrays("scores_probe_trained", labels=labels, linear=labels, classes=classes)
  parsed = check(tmp_path)
  assert "could not be drawn" not in parsed.words
  assert "The first 4 of 5 classes" in parsed.words and "shenzhen" in parsed.words
  assert "AUROC, Effusion" in parsed.words and "Confusion" not in parsed.words


def test_a_long_run_stays_small(make_workdir, tmp_path):
  workdir = make_workdir(tmp_path / "a", steps=40, every=20, evals=40, crop=512, heads=16)
  with open(workdir / "metrics.jsonl", "a") as file:
    for step in range(100, 10_000):
      values = {f"metric_{i}": (step * (i + 1)) % 17 / 3 for i in range(10)}
      file.write(json.dumps({"step": step, "epoch": step / 100, "kind": "train", **values}) + "\n")
  with Writer(workdir) as writer:
    noise = np.random.default_rng(0).integers(0, 256, (2, 14, 512, 512), dtype=np.uint8)
    writer.arrays("views", **{"source": noise[0], "global": noise})
    writer.facts(data={"train": {"skipped": [[f"{i}.png", "bad"] for i in range(20_000)]}})
  parsed = check(workdir)
  assert "and 19,950 more" in parsed.words


def test_a_page_that_cannot_be_written(workdir):
  (workdir / "report.html").mkdir()
  with pytest.raises(UserError, match=r"report\.html cannot be written"):
    run_page.write(workdir)


def test_sections_of_the_users_own(workdir, tmp_path, monkeypatch):
  """Each under its name; one that fails, or is a stranger's, costs itself alone."""
  (tmp_path / "my_sections.py").write_text(
    "from cxrjax.report.html.element import el\n"
    "def status_of_the_run(run): return el('p', 'it has ' + run.fact('status') + ' <all right>')\n"
    "def nothing(run): return None\n"
    "def broken(run): return 1 / 0\n"
  )
  marker = tmp_path / "marker"
  (tmp_path / "canary.py").write_text(f"open({str(marker)!r}, 'w')\ndef section(run): pass\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setenv("CXRJAX_TRUST", "my_sections")
  own = ["my_sections:status_of_the_run", "my_sections.nothing", "my_sections:broken"]
  config = json.loads((workdir / "config.json").read_text()) | {"sections": [*own, "canary", 3]}
  (workdir / "config.json").write_text(json.dumps(config))
  parsed = check(workdir)
  before, after = SECTIONS.index("views") + 1, SECTIONS.index("speed")
  shown = ["own0", "own2", "own3", "own4"]
  assert parsed.ids == [*SECTIONS[:before], *shown, *SECTIONS[after:]]
  assert "Status of the run it has finished <all right>" in parsed.words
  assert "Broken This section could not be drawn (ZeroDivisionError" in parsed.words
  assert "add --trust=canary" in parsed.words and not marker.exists()

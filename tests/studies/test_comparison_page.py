"""The page of a comparison, from made-up facts."""

import json
import math
import re

import pytest
from pages import Checked

from cxrjax.report.html import forest_chart
from cxrjax.report.run_writer import Writer
from cxrjax.studies import comparison_charts, comparison_page

HOSTILE = '</code><script>alert("x")</script><img src=x onerror=alert(1)>'
BETTER, WORSE, OPEN = (0.05, 0.02, 0.08), (-0.05, -0.08, -0.02), (0.01, -0.02, 0.04)


def interval(value, low, high):
  return {"value": value, "low": low, "high": high, "n": 624}


def row(method, gain, status="finished", seed=0, **more):
  found = {
    "name": f"{method}-seed{seed}",
    "method": method,
    "seed": seed,
    "status": status,
    "why": None,
    "command": f"python -m cxrjax.main --config=configs/{method}.py",
    "flops_per_image": 4.06e8,
    "steps": 100,
    "images": 6400,
    "epochs": 0.5,
    **more,
  }
  if status != "finished":
    return found
  judged = {
    "trained": interval(0.85 + gain[0], 0.8, 0.95),
    "random": interval(0.85, 0.8, 0.9),
    "gain": interval(*gain),
    "course": [[0.0, 0.85, 0.8, 0.9], [1e12, 0.9, 0.85, 0.95]],
  }
  sets = {
    name: {"knn20": judged, "linear": {**judged, "over_floor": interval(*WORSE)}}
    for name in ("kermany", "nlm_tb")
  }
  return found | {
    "training_flops_per_image": 8e8,
    "images_per_s": 120.0,
    "training_s": 53.3,
    "total_s": 80.0,
    "memory": {"peak_rss_bytes": 2.1e9},
    "sets": sets,
    **more,
  }


def made(path, *rows, status="finished", **more):
  sets = {
    name: {
      "test": {"name": f"tfds:{name}", "n": 624, "class_counts": {"a": 1}},
      "train": 4693,
      "floor": interval(0.9, 0.87, 0.92),
    }
    for name in ("kermany", "nlm_tb")
  }
  (path / "config.json").write_text("{}")
  with Writer(path) as writer:
    writer.facts(
      status=status,
      command="the command",
      compare={
        "budget": 1e12,
        "examples": 13433,
        "model": "ViT-Mu/8",
        "parameters": 810_000,
        "sets": sets,
        "notes": ["a remark"],
        "data": {"name": "a + b", "n": 13433},
        "rows": list(rows),
        **more,
      },
    )
  return path


def words(path):
  text = comparison_page.write(path).read_text()
  return " ".join("".join(Checked(text).text).split())


def test_what_is_better_is_said_at_once(tmp_path):
  said = words(
    made(tmp_path, row("dino", BETTER), row("mae", OPEN), row("byol", WORSE), row("sit", BETTER))
  )
  assert "could not be drawn" not in said and "Some files could not be read" not in said
  assert "4 runs trained ViT-Mu/8 on 13,433 radiographs without labels, each for 1 TFLOP" in said
  assert (
    "On kermany (624 test radiographs), better than the same network before training, beyond "
    "the 95 % interval:by kNN (k = 20) 2 of 4: dino, sit (worse: byol).by linear probe 2 of "
    "4: dino, sit (worse: byol)."
  ) in said
  assert "+0.050 \N{BLACK UP-POINTING TRIANGLE} (+0.020 to +0.080)" in said
  assert "\N{MINUS SIGN}0.050 \N{BLACK DOWN-POINTING TRIANGLE}" in said
  assert "+0.010 (\N{MINUS SIGN}0.020 to +0.040)" in said
  for text in (
    "nlm tb, 624 test radiographs",
    "2.1 GB",
    "1 min 20 s",
    "406 MFLOP",
    "a remark",
    "0.900 (0.870\N{EN DASH}0.920)",
  ):
    assert text in said, text


def test_failed_and_waiting_runs_stay_in_the_tables(tmp_path):
  said = words(
    made(
      tmp_path,
      row("dino", BETTER),
      row("mae", OPEN, "failed", why="it is cold"),
      row("byol", OPEN, "waiting"),
      status="running",
    )
  )
  assert "mae failed: it is cold" in said and "1 run is not finished" in said
  assert "maefailed" in said and "byolwaiting" in said


def test_seeds_have_names(tmp_path):
  said = words(made(tmp_path, row("dino", BETTER), row("dino", WORSE, seed=1)))
  assert "by linear probe 1 of 2: dino 0 (worse: dino 1)." in said


@pytest.mark.parametrize("rows", [[], [row("dino", OPEN, "waiting")]])
def test_before_anything_is_finished(tmp_path, rows):
  said = words(made(tmp_path, *rows, status="running", sets={}, data=None, notes=None))
  assert "could not be drawn" not in said


def test_an_empty_workdir(tmp_path):
  assert "Research use only" in words(tmp_path)


def test_what_is_not_known(tmp_path):
  nan = (math.nan,) * 3
  bare = row("dino", nan, memory=None, images_per_s=None, training_s=None, total_s=None)
  for judged in bare["sets"].values():
    judged["knn20"] = {"trained": interval(*nan), "random": None, "gain": None, "course": []}
  said = words(made(tmp_path, bare))
  assert "could not be drawn" not in said and "by kNN (k = 20) nothing is known yet" in said


def test_everything_is_escaped(tmp_path):
  text = json.dumps(row("dino", BETTER, why=HOSTILE)).replace("dino", json.dumps(HOSTILE)[1:-1])
  path = made(
    tmp_path,
    json.loads(text),
    row("mae", OPEN, "failed", why=HOSTILE),
    model=HOSTILE,
    notes=[HOSTILE],
  )
  said = words(path)
  assert "alert" in said and "<script" not in (path / "report.html").read_text()


def test_the_terminals_table(tmp_path):
  path = made(tmp_path, row("dino", BETTER), row("mae", OPEN))
  text = comparison_page.table(json.loads((path / "run.json").read_text())["compare"])
  first = text.split("\n\n")[0].splitlines()
  assert len(text.split("\n\n")) == 2 and first[0].startswith("kermany")
  assert "+0.050 \N{PLUS-MINUS SIGN} 0.030 +" in first[2] and "2.1 GB" in first[2]
  assert first[-3].startswith("thumbnail floor") and first[-3].index("0.900") == (
    first[0].index("linear probe")
  )


def test_a_forest_has_a_row_for_each_and_keeps_inside():
  rows = [
    forest_chart.Row(
      f"a method with a long name {i}",
      [forest_chart.Mark(0.5 + i / 50, 0.4, 0.6), forest_chart.Mark(math.nan)],
    )
    for i in range(16)
  ]
  text = forest_chart.chart(
    "t", rows, [("s1", "kNN")], x_label="x", levels=[comparison_charts.Level("floor", 0.9)]
  )
  Checked(text)
  assert text.count("<circle") == 16 and text.count("whisker") == 16
  at = [float(x) for x in re.findall(r'cx="([0-9.]+)"', text)]
  assert (
    min(at) > forest_chart.LEFT
    and max(at) < forest_chart.WIDTH - forest_chart.RIGHT
    and at == sorted(at)
  )
  assert "Nothing to show yet" in forest_chart.chart("t", [], [], x_label="x")

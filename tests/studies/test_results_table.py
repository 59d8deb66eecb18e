"""The lines of a study's table.csv."""

import math

from cxrjax.studies import results_table

COMMON = {"seed": 0, "why": None, "command": "python"}
FAILED = COMMON | {"name": "b", "status": "failed", "why": "no data", "seed": 1}


def interval(value):
  return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 9}


def lines(rows):
  header, *rows = rows
  return [dict(zip(header, row, strict=True)) for row in rows]


def test_a_curriculum_has_a_line_for_every_result_and_one_for_a_failed_run():
  stage = {"stage": "s", "begins": "scratch"}
  finished = stage | COMMON | {"name": "a", "status": "finished", "images": 12, "data": "source"}
  finished |= {
    "sets": {"test": {"auroc": interval(0.75), "dice": interval(math.nan)}},
    "features": {"probe": {"knn5": {"trained": interval(0.5)}}},
  }
  first, second, third, last = lines(
    results_table.of_curriculum({"rows": [finished, stage | FAILED]})
  )
  assert first["begins_with"] == "scratch" and first["run"] == "a" and first["images"] == "12"
  assert (first["data"], first["metric"], first["value"]) == ("test", "auroc", "0.75")
  assert (second["metric"], second["value"]) == ("dice", "")
  assert (third["data"], third["metric"], third["low"]) == ("probe", "knn5/auroc", "0.4")
  assert (last["status"], last["data"], last["value"], last["why"]) == ("failed", "", "", "no data")


def test_a_comparison_has_a_line_for_every_head():
  head = {"trained": interval(0.75), "random": None, "gain": interval(0.25)}
  row = COMMON | {"method": "dino", "status": "finished", "memory": {"peak_rss_bytes": 7}}
  study = {
    "sets": {"probe": {"floor": interval(0.5)}},
    "rows": [row | {"sets": {"probe": {"linear": head}}}, FAILED | {"method": "mae"}],
  }
  first, last = lines(results_table.of_comparison(study))
  assert (first["head"], first["trained"], first["random"], first["gain_high"]) == (
    "linear",
    "0.75",
    "",
    "0.35",
  )
  assert (first["floor"], first["peak_rss_bytes"]) == ("0.5", "7")
  assert (last["method"], last["head"], last["why"]) == ("mae", "", "no data")

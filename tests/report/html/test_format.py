import math

import pytest

from cxrjax.metrics.intervals import Interval
from cxrjax.report import terminal
from cxrjax.report.html import format
from cxrjax.report.html.element import el
from cxrjax.report.html.format import Estimate
from cxrjax.report.run_writer import Writer


def test_estimates():
  dash = "\N{EN DASH}"
  assert format.estimate(Estimate(0.8731, 0.842, 0.9006)) == f"0.873 (0.842{dash}0.901)"
  assert format.estimate(Estimate(0.5)) == "0.500"
  assert format.estimate(Estimate(math.nan, 0.1, 0.2)) == "n/a"


@pytest.mark.parametrize(
  ("seconds", "text"),
  [
    (0.84, "0.8 s"),
    (42, "42 s"),
    (250, "4 min 10 s"),
    (3000, "50 min"),
    (11520, "3 h 12 min"),
    (360_000, "4.2 days"),
    (3599.9, "1 h 0 min"),
    (-1, ""),
    (math.nan, ""),
    (None, ""),
    ("3", ""),
  ],
)
def test_durations(seconds, text):
  assert format.duration(seconds) == text


def test_counts_and_sizes():
  assert format.count(17702, "radiograph") == "17,702 radiographs"
  assert format.count(1, "radiograph") == "1 radiograph"
  assert format.count(None, "radiograph") == format.count([], "x") == format.count(math.inf) == ""
  assert format.compact(21_665_664) == "21.7 M" and format.compact(5.1e10, "FLOP") == "51 GFLOP"
  assert format.short(0.000125) == "1.25e\N{MINUS SIGN}4"
  assert format.short(12345.6) == "12,346" and format.short(math.nan) == "not finite"


def test_names_of_metrics():
  assert format.title("knn20/auroc") == "kNN, k = 20: AUROC"
  assert format.title("whitened20/auroc") == "kNN on whitened features, k = 20: AUROC"
  assert format.title("linear/balanced_accuracy") == "Linear probe: Balanced accuracy"
  assert format.title("linear/auroc/Effusion") == "Linear probe: AUROC, Effusion"
  assert format.title("own_score") == "Own score"


def test_markup_escapes_all_but_its_own():
  assert el("p", "<b>", el("i", 'a"&'), None, title='"<') == (
    '<p title="&quot;&lt;">&lt;b&gt;<i>a&quot;&amp;</i></p>'
  )
  assert el("meta", name_="x", hidden=True, open=False) == '<meta name="x" hidden>'


def test_terminal_table(tmp_path):
  trained = {
    "linear/auroc": Interval(0.95, 0.93, 0.97, 9, "DeLong"),
    "knn20/auroc": {"value": 0.9, "low": 0.88, "high": 0.92},
    "knn5/auroc": 0.875,
  }
  results = {
    "random": {"knn5/auroc": 0.75},
    "trained": trained,
    "floor": {"linear/auroc": Interval(math.nan, math.nan, math.nan, 0, "none", "why")},
  }
  table = terminal.results_table(results)
  assert table.splitlines() == [
    "                     Trained              Before training  Thumbnail floor",
    "--------------------------------------------------------------------------",
    "kNN, k = 5: AUROC    0.875                0.750            -",
    "kNN, k = 20: AUROC   0.900 (0.880-0.920)  -                -",
    "Linear probe: AUROC  0.950 (0.930-0.970)  -                n/a",
    "--------------------------------------------------------------------------",
    "95 % intervals in brackets",
  ]
  with Writer(tmp_path) as writer:
    for encoder, metrics in results.items():
      writer.results(3, 1.0, "probe", encoder, metrics)
  assert terminal.results_table(tmp_path) == table
  assert terminal.results_table({}) == "" == terminal.results_table(tmp_path / "none")


def test_remarks_of_evaluators_reach_the_terminal(tmp_path):
  nothing = Interval(math.nan, math.nan, math.nan, 8, "none", "test images are of one class")
  with Writer(tmp_path) as writer:
    writer.results(3, 1.0, "site", "trained", {"auroc": nothing, "auprc": nothing})
    writer.results(3, 1.0, "test", "trained", {"auroc": Interval(0.9, 0.8, 1.0, 8, "DeLong")})
    writer.facts(
      data={"site": {"notes": ["8 of 16 images of folder:x have none of the classes a, b"]}},
      evaluation={"test": {"trained": {"threshold_remarks": ["label a: threshold 0.5"]}}},
    )
  assert terminal.remarks(tmp_path) == [
    "site: 8 of 16 images of folder:x have none of the classes a, b",
    "site: AUROC; AUPRC: n/a, test images are of one class",
    "test: label a: threshold 0.5",
  ]
  assert terminal.remarks(tmp_path / "none") == []

import math
import re

import numpy as np
import pytest

from cxrjax.report.html import line_chart


@pytest.mark.parametrize(
  ("low", "high", "n", "expected"),
  [
    (0, 10, 5, [0, 2, 4, 6, 8, 10]),
    (0.82, 0.93, 5, [0.825, 0.85, 0.875, 0.9, 0.925]),
    (-1, 1, 4, [-1, -0.5, 0, 0.5, 1]),
    (0, 5e-4, 5, [0, 1e-4, 2e-4, 3e-4, 4e-4, 5e-4]),
    (3, 3, 4, [3]),
  ],
)
def test_ticks_are_round_and_inside(low, high, n, expected):
  np.testing.assert_allclose(line_chart.ticks(low, high, n), expected, atol=1e-12)


def test_log_ticks():
  np.testing.assert_allclose(line_chart.log_ticks(0.01, 100), [0.01, 0.1, 1, 10, 100])
  found = line_chart.log_ticks(0.2, 1.5)
  assert len(found) >= 3 and all(0.19 < t < 1.6 for t in found)
  assert len(line_chart.log_ticks(1.0, 1.2)) >= 2
  assert len(line_chart.log_ticks(1e-30, 1e30)) <= 8


@pytest.mark.parametrize(
  ("values", "expected"),
  [
    ([0.825, 0.85], ["0.825", "0.850"]),
    ([0, 5, 10], ["0", "5", "10"]),
    ([-1, 0], ["\N{MINUS SIGN}1", "0"]),
    ([0, 2e-4], ["0", "2e\N{MINUS SIGN}4"]),
    ([0, 25000.0], ["0", "25,000"]),
    ([2e6], ["2e6"]),
  ],
)
def test_tick_labels_share_their_decimals(values, expected):
  assert line_chart.tick_labels(values) == expected


def line(y, x=None, **kw):
  y = np.asarray(y, np.float64)
  return line_chart.Line("a", np.arange(len(y), dtype=np.float64) if x is None else x, y, **kw)


def test_long_curves_become_means_with_their_range():
  y = np.arange(1600.0)
  y[5] = np.nan
  binned = line_chart._bin(line(y))
  assert len(binned.x) == line_chart.BINS
  np.testing.assert_allclose(binned.y[1], y[10:20].mean())
  np.testing.assert_allclose(binned.y[0], np.nanmean(y[:10]))
  assert binned.low[1] == 10 and binned.high[1] == 19
  assert line_chart._bin(line(np.full(1600, np.nan))).y.shape == (line_chart.BINS,)


def test_short_curves_are_drawn_point_by_point():
  x = np.array([3.0, 1.0, 2.0])
  svg = line_chart.chart("t", [line([30, 10, 20], x)], x_label="step")
  (path,) = re.findall(r'<path d="([^"]*)" class="line s1">', svg)
  points = np.array([[float(v) for v in p.split()] for p in re.split("[ML]", path)[1:]])
  assert points.shape == (3, 2)
  assert (np.diff(points[:, 0]) > 0).all() and (np.diff(points[:, 1]) < 0).all()
  np.testing.assert_allclose(points[1], points[[0, 2]].mean(0), atol=0.06)
  assert (
    points[:, 0].min() >= line_chart.LEFT
    and points[:, 0].max() <= line_chart.WIDTH - line_chart.RIGHT
  )
  assert points[:, 1].min() >= line_chart.TOP
  assert points[:, 1].max() <= line_chart.HEIGHT - line_chart.BOTTOM


def test_a_gap_where_a_value_is_not_finite():
  svg = line_chart.chart("t", [line([1, 2, math.nan, 3, 4])], x_label="step")
  (path,) = re.findall(r'<path d="([^"]*)" class="line s1">', svg)
  assert re.sub("[^ML]", "", path) == "MLML"


def test_hover_text_names_values_and_intervals():
  y = np.array([0.5, 0.75])
  svg = line_chart.chart("t", [line(y, low=y - 0.25, high=y + 0.125, points=True)], x_label="epoch")
  assert "<title>epoch 1\na: 0.75 (0.5\N{EN DASH}0.875)</title>" in svg
  assert svg.count("whisker s1") == 2 and svg.count("<circle") == 2


def test_a_reference_stays_inside_with_its_name():
  svg = line_chart.chart(
    "t", [line([1, 2, 3])], x_label="step", levels=[line_chart.Level("ln K", 8.0, inside=True)]
  )
  assert "ln K</text>" in svg
  (y,) = re.findall(r'y1="([0-9.]+)" y2="[0-9.]+" class="level ref"', svg)
  assert line_chart.TOP <= float(y) <= line_chart.HEIGHT - line_chart.BOTTOM


@pytest.mark.parametrize(
  "y", [[5.0], [2.0, 2.0], [0.0, 0.0], [1e-12, 2e-12], [1e30, 1.0], [-3.0, -3.0], [math.inf, 1.0]]
)
@pytest.mark.parametrize("log", [False, True])
def test_awkward_ranges(y, log):
  svg = line_chart.chart("t", [line(y)], x_label="step", log=log)
  assert not re.search(r'="[^"]*(nan|inf)[^"]*"', re.sub(r'aria-label="[^"]*"', "", svg))


def test_nothing_finite():
  assert "No finite value yet" in line_chart.chart("t", [line([math.nan])], x_label="step")

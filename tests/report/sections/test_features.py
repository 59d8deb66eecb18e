"""The section on features: what it says, what it leaves out, and that it draws all there is."""

import re

import numpy as np
import pytest
from pages import Checked

from cxrjax.report import run_files
from cxrjax.report.run_writer import Writer
from cxrjax.report.sections import features


def drawn(workdir):
  html = features.section(run_files.read(workdir))
  parsed = Checked(str(html))
  parsed.words = " ".join(" ".join(parsed.text).split())
  return str(html), parsed


def write(workdir, n=12, **changed):
  """Two queries with three neighbours each among `n` test images of two classes and one site."""
  arrays = {
    "xy": np.random.default_rng(0).standard_normal((n, 2)),
    "query": np.array([0, 1]),
    "similarity": np.array([[0.9, 0.8, 0.7], [0.6, np.nan, np.nan]]),
    "image": np.zeros((2, 8, 8), np.uint8),
    "near_image": np.zeros((2, 3, 8, 8), np.uint8),
    "names_label": np.array(["normal", "tuberculosis"]),
    "group_label": np.arange(n) % 2,
    "near_label": np.array([[0, 1, -1], [1, -1, -1]]),
    "patch_colours": np.zeros((2, 2, 2, 3), np.uint8),
    **changed,
  }
  with Writer(workdir) as writer:
    writer.arrays("features", **{k: v for k, v in arrays.items() if v is not None})
    writer.facts(
      features={
        "evaluator": "probe",
        "train": 10,
        "of_train": 30,
        "test": n,
        "of_test": n,
        "neighbours": 3,
        "map": {"method": "PCA", "explains": [0.5, 0.25]},
        "shared": [{"by": "label", "value": 0.75, "low": 0.7, "high": 0.8, "chance": 0.5}],
      }
    )


def test_says_whose_neighbours_they_are_and_marks_other_labels(tmp_path):
  write(tmp_path)
  _, parsed = drawn(tmp_path)
  assert "12 test images and 10 of 30 labelled training images" in parsed.words
  assert "0.750 (0.700\N{EN DASH}0.800) 0.500" in parsed.words
  assert "explain 75 % of the variance" in parsed.words
  assert parsed.words.count("\N{NOT EQUAL TO} tuberculosis") == 1  # of the first query
  assert parsed.images == 2 + 3 + 1 + 2 * 2  # no picture for a neighbour that there is not
  assert "normal (6)" in parsed.words and "tuberculosis (6)" in parsed.words


def test_a_site_that_neighbours_share_is_said(tmp_path):
  write(tmp_path)
  rows = [
    {"by": "label", "value": 0.75, "low": 0.7, "high": 0.8, "chance": 0.5},
    {"by": "site", "value": 0.7, "low": 0.6, "high": 0.8, "chance": 0.5},
    {"by": "sex", "value": 0.6, "low": 0.4, "high": 0.8, "chance": 0.5},
  ]
  with Writer(tmp_path) as writer:
    writer.facts(features={"shared": rows})
  _, parsed = drawn(tmp_path)
  assert "The features also encode the site : neighbours share it" in parsed.words


def test_every_test_image_is_one_point_of_every_map(tmp_path):
  write(
    tmp_path,
    n=50,
    names_site=np.array(["a", "b"]),
    group_site=np.arange(50) // 25,
    near_site=np.zeros((2, 3), int),
  )
  html, _ = drawn(tmp_path)
  points = "".join(re.findall(r'<path d="([^"]*)" class="points', html))
  assert points.count("M") == 2 * 50


def test_many_groups_share_the_last_colour(tmp_path):
  names = np.array([f"site {i}" for i in range(12)])
  group = np.repeat(np.arange(12), np.arange(1, 13))
  write(
    tmp_path,
    n=len(group),
    names_site=names,
    group_site=group,
    names_label=None,
    group_label=None,
    near_label=None,
    near_site=np.zeros((2, 3), int),
  )
  _, parsed = drawn(tmp_path)
  named = [f"site {i} ({i + 1})" for i in range(12)]
  assert [n in parsed.words for n in named] == [False] * 6 + [True] * 6
  assert f"others, unknown ({sum(range(1, 7))})" in parsed.words


@pytest.mark.parametrize(
  "missing", ["xy", "query", "patch_colours", "names_label", "group_label", "near_label"]
)
def test_what_is_missing_costs_only_its_own_part(tmp_path, missing):
  from cxrjax.report.pages import run_page

  write(tmp_path, **{missing: None})
  run_page.write(tmp_path)
  assert "What the features encode" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("xy", [np.full((12, 2), np.nan), np.zeros((12, 2)), np.empty((0, 2))])
def test_a_map_of_nothing(tmp_path, xy):
  write(tmp_path, xy=xy)
  html, _ = drawn(tmp_path)
  assert "nan" not in html


def test_no_features_no_section(tmp_path):
  assert features.section(run_files.read(tmp_path)) is None

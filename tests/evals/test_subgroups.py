"""Who is in which group, what is told of it, and what too few decide."""

import math

import numpy as np
import pytest
from sklearn.metrics import recall_score, roc_auc_score

from cxrjax.data.base import Table
from cxrjax.evals import subgroups

N = 200


def made(seed=0, **columns):
  rng = np.random.default_rng(seed)
  labels = np.eye(2, dtype=np.float32)[rng.integers(0, 2, N)]
  p = np.clip(0.5 + 0.3 * (labels[:, 1] - 0.5) + 0.2 * rng.normal(size=N), 0, 1)
  of = Table(
    ids=tuple(map(str, range(N))),
    patients=tuple(f"p{i // 2}" for i in range(N)),
    sites=columns.pop("sites", ("",) * N),
    labels=labels,
    **columns,
  )
  return np.stack([1 - p, p], 1), labels, of


def table(scores, labels, of, **options):
  called = np.stack([scores[:, 1] < 0.5, scores[:, 1] >= 0.5], 1)
  return subgroups.table(scores, labels, called, of, ("normal", "sick"), True, **options)


def test_groups_have_the_metrics_of_their_images():
  sexes = tuple(np.random.default_rng(1).choice(["F", "M", ""], N, p=[0.5, 0.45, 0.05]))
  scores, labels, of = made(sexes=sexes)
  rows, notes = table(scores, labels, of)
  assert [(r["by"], r["group"]) for r in rows] == [
    ("sex", "female"),
    ("sex", "male"),
    ("sex", "unknown"),
  ]
  assert {n.split(":")[0] for n in notes} == {"age", "view", "site"}
  for row, code in zip(rows[:2], ("F", "M"), strict=True):
    at = np.array(sexes) == code
    y, p = labels[at, 1], scores[at, 1]
    assert (row["n"], row["positives"], row["class"]) == (at.sum(), y.sum(), "sick")
    assert row["auroc"]["value"] == pytest.approx(roc_auc_score(y, p))
    assert row["sensitivity"]["value"] == pytest.approx(recall_score(y, p >= 0.5))
    assert row["specificity"]["value"] == pytest.approx(recall_score(1 - y, p < 0.5))
    assert row["auroc"]["low"] < row["auroc"]["value"] < row["auroc"]["high"]


def test_bands_of_age():
  ages = np.array(
    [0, 17.9, 18, 39, 40, 59, 60, 79, 80, 101, np.nan, 25] + [30.0] * (N - 12), np.float32
  )
  rows, _ = table(*made(ages=ages))
  assert [(r["group"], r["n"]) for r in rows] == [
    ("0 to 17 years", 2),
    ("18 to 39 years", N - 9),
    ("40 to 59 years", 2),
    ("60 to 79 years", 2),
    ("80 years and older", 2),
    ("unknown", 1),
  ]
  rows, _ = table(*made(ages=ages), bands=(50,))
  assert [r["group"] for r in rows] == ["0 to 49 years", "50 years and older", "unknown"]


def test_too_few_patients_decide_nothing():
  scores, labels, of = made(sites=("big",) * 190 + ("small",) * 10)
  labels[190:] = np.eye(2)[[0] * 4 + [1] * 6]  # two and three patients
  rows, _ = table(scores, labels, of)
  small = rows[1]
  assert (small["group"], small["n"], small["patients"]) == ("small", 10, 5)
  for measure in ("auroc", "sensitivity", "specificity"):
    assert math.isnan(small[measure]["value"])
    assert "fewer than 5 patients" in small[measure]["undefined"]
  assert all(math.isfinite(rows[0][m]["value"]) for m in ("auroc", "sensitivity", "specificity"))


def test_findings_have_rows_of_their_own_and_unknown_ones_do_not_count():
  scores, labels, of = made(sites=tuple(f"s{i % 2}" for i in range(N)))
  labels[:40, 0] = np.nan
  rows, notes = subgroups.table(
    scores, labels, scores >= 0.5, of, ("one", "two"), False, ("site", "view")
  )
  assert [(r["class"], r["group"], r["n"]) for r in rows] == [
    ("one", "s0", 80),
    ("one", "s1", 80),
    ("two", "s0", 100),
    ("two", "s1", 100),
  ]
  assert notes == ["view: not known of any image"]


def test_one_group_divides_nothing_and_many_are_cut():
  scores, labels, of = made(views=("PA",) * N)
  rows, notes = table(scores, labels, of, attributes=("view",))
  assert not rows and notes == ["view: PA in all images"]
  sites = tuple(f"s{i % 30:02}" for i in range(N - 30)) + tuple(f"s{i:02}" for i in range(15)) * 2
  rows, notes = table(*made(sites=sites), attributes=("site",))
  assert len(rows) == subgroups.MAX_GROUPS and notes == ["site: the 20 largest of 30 groups"]
  assert {r["group"] for r in rows} >= {f"s{i:02}" for i in range(15)}
